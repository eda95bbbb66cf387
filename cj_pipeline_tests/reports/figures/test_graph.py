from itertools import combinations

import numpy as np
import polars as pl
import pytest

from cj_pipeline_tests.reports.figures.seen import all_text, assert_legible, drawn_texts, graph, heading, part
from cj_pipeline_tests.reports.made import (
    EMPTY_COMPARISONS,
    EMPTY_PROJECTIONS,
    LONG_IDS,
    made_comparisons,
    made_projections,
    made_scores,
    neighbours,
)


@pytest.mark.parametrize(
    ("count", "ids"), [(2, None), (5, LONG_IDS), (24, None), (24, LONG_IDS), (60, None), (60, LONG_IDS), (400, None)]
)
def test_no_text_of_a_comparison_graph_is_cropped_or_overlaps_another(count: int, ids: list[str] | None) -> None:
    scores = made_scores(count, anchors=min(12, count // 2), ids=ids)
    assert_legible(graph(scores, neighbours(scores), made_projections(scores), title="x" * 300, simulated=True))


def test_nodes_stand_at_their_scores_and_do_not_touch() -> None:
    scores = made_scores(24, anchors=8)
    figure = graph(scores, neighbours(scores), made_projections(scores))
    figure.draw_without_rendering()
    offsets = np.vstack([part(figure, gid).get_offsets() for gid in ("anchors", "students")])
    assert sorted(offsets[:, 0]) == sorted(scores["score"])
    inches = figure.axes[0].transData.transform(offsets) / figure.dpi
    radii = np.array([0.17] * 8 + [0.135] * 16)
    for one, other in combinations(range(24), 2):
        assert np.hypot(*(inches[one] - inches[other])) > (radii[one] + radii[other]) * 0.9


def test_edges_are_the_judged_pairs_in_either_order_as_wide_as_often_judged() -> None:
    scores = made_scores(4)
    a, b, c, d = scores["essay_id"].to_list()
    comparisons = pl.concat(
        [
            made_comparisons([(a, b), (b, a), (a, b), (c, b)]),
            made_comparisons([(a, c)], status="failed"),
            made_comparisons([(a, d)], status="planned"),
            made_comparisons([(c, d)], status="withdrawn"),
            made_comparisons([(d, "essay-unknown")]),
        ]
    )
    figure = graph(scores, comparisons, EMPTY_PROJECTIONS)
    lines = part(figure, "pairs")
    place = dict(part(figure, "students").get_offsets().tolist())
    value = dict(zip(scores["essay_id"], scores["score"], strict=True))
    ends = [sorted((value[essay], place[value[essay]]) for essay in pair) for pair in ((a, b), (b, c))]
    assert [sorted(map(tuple, segment.tolist())) for segment in lines.get_segments()] == ends
    thrice, once = lines.get_linewidths()
    assert thrice > 1.5 * once
    assert "4 judgments of 2 pairs among 4 essays." in heading(figure)
    assert "1 comparison failed: not drawn." in heading(figure)


def test_many_edges_are_fainter_than_few() -> None:
    few, many = made_scores(6), made_scores(200)
    few_alpha = part(graph(few, neighbours(few), EMPTY_PROJECTIONS), "pairs").get_alpha()
    many_alpha = part(graph(many, neighbours(many), EMPTY_PROJECTIONS), "pairs").get_alpha()
    assert many_alpha < few_alpha / 2


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (None, "no comparison has been planned"),
        ("planned", "(comparisons: 2 planned)"),
        ("failed", "(comparisons: 2 failed)"),
    ],
)
def test_without_a_judgment_the_graph_says_why_there_is_nothing(status: str | None, reason: str) -> None:
    scores = made_scores(4)
    pairs = [("essay-000", "essay-001"), ("essay-002", "essay-003")]
    comparisons = made_comparisons(pairs, status=status) if status else EMPTY_COMPARISONS
    figure = graph(scores, comparisons, EMPTY_PROJECTIONS)
    assert reason in all_text(figure)
    assert not figure.axes


def test_nodes_are_named_by_id_anchors_by_reference_and_ambiguous_short_ids_by_rank() -> None:
    scores = made_scores(6, anchors=2)
    written = [text for text, _ in drawn_texts(graph(scores, neighbours(scores), EMPTY_PROJECTIONS))]
    assert {"np-000", "essay-001", "essay-002", "np-003", "essay-004", "essay-005"} <= set(written)
    long = made_scores(6, ids=[f"school-{number}-{'x' * 60}" for number in range(6)])
    alike = long.with_columns(essay_id="same-beginning-" + pl.col("essay_id") + "-same-ending-of-it")
    written = [text for text, _ in drawn_texts(graph(alike, neighbours(alike), EMPTY_PROJECTIONS))]
    assert {f"rank {rank}" for rank in range(1, 7)} <= set(written)
    assert any("too long to tell apart" in text for text in written)


def test_essays_with_equal_scores_stand_above_each_other() -> None:
    scores = made_scores(8, score=0.0)
    figure = graph(scores, neighbours(scores), EMPTY_PROJECTIONS)
    offsets = part(figure, "students").get_offsets()
    assert set(offsets[:, 0]) == {0.0}
    assert len(set(offsets[:, 1])) == 8
    assert_legible(figure)
