import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure

from cj_pipeline.reports.figures import forest_plot
from cj_pipeline.reports.figures.forest import _labelled_rows
from cj_pipeline_tests.reports.figures.seen import all_text, assert_legible, decoded, forest, heading, part, points
from cj_pipeline_tests.reports.made import EMPTY_PROJECTIONS, LONG_IDS, made_projections, made_scores


@pytest.mark.parametrize("count", [1, 5, 24, 400])
def test_a_forest_plot_is_a_white_page_1200_pixels_wide_of_bounded_height(count: int) -> None:
    scores = made_scores(count, anchors=min(count, 12))
    pixels = decoded(forest_plot(scores, made_projections(scores), title="T", simulated=True))
    assert pixels.shape[1] == 1200
    assert 300 <= pixels.shape[0] <= 2400
    assert (pixels[:10] == 255).all() and (pixels[-10:] == 255).all() and (pixels[:, :10] == 255).all()


@pytest.mark.parametrize("count", [1, 5, 24, 61, 400])
def test_no_text_of_a_forest_plot_is_cropped_or_overlaps_another(count: int) -> None:
    scores = made_scores(count, anchors=min(12, count // 2), ids=LONG_IDS)
    assert_legible(forest(scores, made_projections(scores, confidence=1.0), title="A title " * 20, simulated=True))


@pytest.fixture(scope="module")
def scores() -> pl.DataFrame:
    return made_scores(24, anchors=8)


@pytest.fixture(scope="module")
def figure(scores: pl.DataFrame) -> Figure:
    """The forest plot of `scores` in no order; only to be looked at."""
    return forest(scores.sample(fraction=1.0, shuffle=True, seed=1), made_projections(scores))


def test_points_stand_at_the_scores_best_on_top(scores: pl.DataFrame, figure: Figure) -> None:
    offsets = np.vstack([part(figure, gid).get_offsets() for gid in ("anchors", "students")])
    from_the_top = offsets[np.argsort(offsets[:, 1])]
    assert from_the_top[:, 0].tolist() == scores["score"].to_list()
    assert from_the_top[:, 1].tolist() == list(range(24))
    bottom, top = figure.axes[0].get_ylim()
    assert top < bottom


def test_bars_are_the_posterior_intervals(scores: pl.DataFrame, figure: Figure) -> None:
    drawn = np.array(part(figure, "intervals").get_segments())
    assert drawn[:, 0, 0] == pytest.approx(scores["score_low"].to_numpy())
    assert drawn[:, 1, 0] == pytest.approx(scores["score_high"].to_numpy())
    assert drawn[:, :, 1].tolist() == [[row, row] for row in range(24)]


def test_anchors_have_a_shape_of_their_own(figure: Figure) -> None:
    anchors, students = part(figure, "anchors"), part(figure, "students")
    assert len(anchors.get_offsets()) == 8
    assert len(students.get_offsets()) == 16
    assert len(anchors.get_paths()[0].vertices) == 5
    assert len(students.get_paths()[0].vertices) > 10


def test_a_row_shows_rank_id_grade_and_confidence() -> None:
    scores = made_scores(4, anchors=2)
    rows: dict[float, list[tuple[float, str]]] = {}
    figure = forest(scores, made_projections(scores, confidence=0.634))
    for text in figure.texts:
        rows.setdefault(round(text.get_position()[1], 6), []).append((text.get_position()[0], text.get_text()))
    written = [[text for _, text in sorted(cells)] for _, cells in sorted(rows.items(), reverse=True)]
    assert written[-5:] == [
        ["essay", "grade", "confidence"],
        ["1", "ANCHOR_np-000_00000000", "A", "expert"],
        ["2", "essay-001", "C+", "63 % MID"],
        ["3", "ANCHOR_np-002_00000002", "D-", "expert"],
        ["4", "essay-003", "E-", "63 % MID"],
    ]


def test_up_to_60_essays_are_all_labelled() -> None:
    scores = made_scores(60, anchors=10)
    written = all_text(forest(scores, made_projections(scores)))
    assert all(essay_id in written for essay_id in scores["essay_id"])
    assert "labelled" not in written


def test_above_60_essays_all_are_drawn_and_the_page_says_how_many_are_labelled() -> None:
    scores = made_scores(400, anchors=20)
    figure = forest(scores, made_projections(scores))
    assert len(points(figure)) == 400
    written = all_text(figure)
    shown = [essay_id for essay_id in scores["essay_id"] if essay_id in written]
    assert f"All 400 essays are drawn, {len(shown)} of them labelled." in written
    assert 40 <= len(shown) <= 70
    assert set(scores.filter("is_anchor")["essay_id"]) <= set(shown)


def test_labels_are_thinned_to_the_stride_anchors_and_ends_first() -> None:
    assert _labelled_rows([False] * 10, 1) == list(range(10))
    assert _labelled_rows([False] * 10, 3) == [0, 3, 6, 9]
    assert _labelled_rows([row in (4, 5) for row in range(10)], 3) == [0, 4, 9]


def test_long_ids_lose_their_middle_and_keep_their_ends() -> None:
    scores = made_scores(5, ids=[f"{number}{'-' * 62}{number}" for number in range(5)])
    labels = [text.get_text() for text in forest(scores, made_projections(scores)).texts if "…" in text.get_text()]
    assert len(labels) == 5
    assert sorted((label[0], label[-1]) for label in labels) == [(str(n), str(n)) for n in range(5)]


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf")])
def test_an_essay_without_an_interval_has_a_point_and_no_bar(missing: float | None) -> None:
    changed = pl.when(pl.col("rank") == 2).then(pl.lit(missing)).otherwise("score_low")
    scores = made_scores(6).with_columns(score_low=changed)
    figure = forest(scores, EMPTY_PROJECTIONS)
    assert len(points(figure)) == 6
    assert len(part(figure, "intervals").get_segments()) == 5
    assert "1 essay without an interval" in heading(figure)


def test_unconnected_parts_are_pointed_out() -> None:
    assert "parts" not in heading(forest(made_scores(6), EMPTY_PROJECTIONS))
    scores = made_scores(6).with_columns(component=pl.when(pl.col("rank") < 3).then(1).otherwise(0))
    assert "fall into 2 parts" in heading(forest(scores, EMPTY_PROJECTIONS))
