import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from html import unescape
from io import BytesIO
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
import pytest
from markdown_it import MarkdownIt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from cj_pipeline.reports import figures
from cj_pipeline.reports.figures import (
    SIMULATED_MARK,
    comparison_graph_picture,
    forest_plot,
    markdown_table,
    wave_history_picture,
)
from cj_pipeline.workflow import frames

SCALE = ["F", "F+", "E-", "E+", "D-", "D+", "C-", "C+", "B", "A"]
LONG_IDS = [f"{'district-school-group-':x<60}{number:04d}" for number in range(10_000)]


def made_scores(count: int, *, anchors: int = 0, ids: list[str] | None = None, **changes: Any) -> pl.DataFrame:
    """`count` essays, best first; the last `anchors` of every other row are anchors with grades by rank."""
    values = np.random.default_rng(7).normal(0, 1.6, count)
    values = np.sort(values - values.mean())[::-1]
    anchor_rows = set(range(count)[:: max(1, count // anchors)][:anchors]) if anchors else set()
    rows = []
    for row, value in enumerate(values):
        is_anchor = row in anchor_rows
        plain = ids[row] if ids else f"essay-{row:03d}"
        rows.append(
            {
                "batch_id": "batch",
                "essay_id": f"ANCHOR_np-{row:03d}_{row:08x}" if is_anchor else plain,
                "is_anchor": is_anchor,
                "known_grade": SCALE[-1 - row * len(SCALE) // count] if is_anchor else None,
                "rank": row + 1,
                "score": float(value),
                "se": 0.3 + 0.01 * (row % 20),
                "se_uncapped": 0.3 + 0.01 * (row % 20),
                "comparisons": 10,
                "wins": 5,
                "losses": 5,
                "component": 0,
                **changes,
            }
        )
    return frames.BT_SCORES.frame(rows)


def made_projections(
    scores: pl.DataFrame, *, scale: list[str] = SCALE, reason: str | None = None, confidence: float = 0.634
) -> pl.DataFrame:
    """A projection per essay, by rank; unavailable ones if a reason is given."""
    rows = []
    for row, essay in enumerate(scores.iter_rows(named=True)):
        grade = scale[-1 - row * len(scale) // scores.height]
        rows.append(
            {
                "batch_id": "batch",
                "essay_id": essay["essay_id"],
                "is_anchor": essay["is_anchor"],
                "known_grade": essay["known_grade"],
                "available": reason is None,
                "reason": reason,
                "grade": grade if reason is None else None,
                "confidence": confidence if reason is None else None,
                "label": "MID" if reason is None else None,
                "probabilities": [{"grade": name, "probability": 0.1} for name in scale] if reason is None else [],
                "simulated": True,
            }
        )
    return frames.GRADE_PROJECTIONS.frame(rows)


def made_comparisons(pairs: list[tuple[str, str]], *, status: str = "judged") -> pl.DataFrame:
    return frames.COMPARISONS.frame(
        [
            {
                "batch_id": "batch",
                "wave": 1,
                "comparison_id": f"c{number:05d}",
                "essay_a": essay_a,
                "essay_b": essay_b,
                "winner": "a" if status == "judged" else None,
                "winner_id": essay_a if status == "judged" else None,
                "loser_id": essay_b if status == "judged" else None,
                "justification": "it quotes the essay",
                "status": status,
                "tokens_in": 0,
                "tokens_out": 0,
                "attempts": 1,
                "pair_mode": "coverage",
            }
            for number, (essay_a, essay_b) in enumerate(pairs)
        ]
    )


def neighbours(scores: pl.DataFrame) -> pl.DataFrame:
    """Every essay against the next three."""
    ids = scores["essay_id"].to_list()
    return made_comparisons([(ids[i], ids[j]) for i in range(len(ids)) for j in range(i + 1, min(i + 4, len(ids)))])


def made_waves(changes: list[float | None], **last: Any) -> pl.DataFrame:
    """A wave per change, the first half coverage; each asks for more, unless `last` says otherwise of the last."""
    moment = datetime(2026, 3, 1, tzinfo=UTC)
    rows = []
    for number, change in enumerate(changes, start=1):
        mode = "coverage" if number <= max(1, len(changes) // 2) else "resampling"
        rows.append(
            {
                "batch_id": "batch",
                "wave": number,
                "pair_mode": mode,
                "planned": 12,
                "judged": 11,
                "failed": 1,
                "callbacks": 12 * number,
                "max_score_change": change,
                "mean_se": 1.0 / number,
                "max_se": 2.0 / number,
                "decision": "REQUEST_MORE_COMPARISONS",
                "reason": mode,
                "started_at": moment,
                "ended_at": moment,
            }
        )
    rows[-1].update(last)
    return frames.WAVES.frame(rows)


def forest(scores: pl.DataFrame, projections: pl.DataFrame, *, title: str = "T", simulated: bool = False) -> Figure:
    return figures._forest_figure(scores, projections, title=title, simulated=simulated)


def graph(
    scores: pl.DataFrame,
    comparisons: pl.DataFrame,
    projections: pl.DataFrame,
    *,
    title: str = "T",
    simulated: bool = False,
) -> Figure:
    return figures._graph_figure(scores, comparisons, projections, title=title, simulated=simulated)


def history(
    waves: pl.DataFrame, *, threshold: float = 0.05, budget: int = 100, title: str = "T", simulated: bool = False
) -> Figure:
    return figures._wave_figure(waves, threshold=threshold, budget=budget, title=title, simulated=simulated)


def part(figure: Figure, gid: str) -> Any:
    """The one artist that carries the gid."""
    (artist,) = figure.findobj(lambda artist: artist.get_gid() == gid)
    return artist


def parts(figure: Figure, gid: str) -> list[Any]:
    return figure.findobj(lambda artist: artist.get_gid() == gid)


def points(figure: Figure) -> dict[float, str]:
    """Colour of each point by its score."""
    found = {}
    for gid in ("anchors", "students"):
        for collection in parts(figure, gid):
            colours = [to_hex(colour) for colour in collection.get_facecolors()]
            found.update(zip(collection.get_offsets()[:, 0].tolist(), colours, strict=True))
    return found


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def legend_colours(figure: Figure) -> dict[str, str]:
    return {
        text.get_text(): to_hex(handle.get_markerfacecolor())
        for legend in figure.legends
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
        if hasattr(handle, "get_markerfacecolor")
    }


def drawn_texts(figure: Figure) -> list[tuple[str, Any]]:
    """Every text that drawing the figure really writes, with its extent in pixels."""
    written: list[tuple[str, Any]] = []
    original = Text.draw

    def record(text: Text, renderer: Any, *args: Any, **kwargs: Any) -> None:
        if text.get_visible() and text.get_text().strip():
            written.append((text.get_text(), text.get_window_extent(renderer)))
        original(text, renderer, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", record)
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
    return written


def all_text(figure: Figure) -> str:
    return " ".join(" ".join(text for text, _ in drawn_texts(figure)).split())


def decoded(png: bytes) -> np.ndarray:
    with Image.open(BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def assert_legible(figure: Figure) -> None:
    """No text leaves the page and no two texts overlap."""
    written = drawn_texts(figure)
    width, height = figure.get_size_inches() * figure.dpi
    for text, box in written:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, f"{text!r} is cropped"
    for (one, box), (other, other_box) in combinations(written, 2):
        apart = box.x1 <= other_box.x0 or other_box.x1 <= box.x0 or box.y1 <= other_box.y0 or other_box.y1 <= box.y0
        assert apart, f"{one!r} and {other!r} overlap"


EMPTY_SCORES = frames.BT_SCORES.frame([])
EMPTY_PROJECTIONS = frames.GRADE_PROJECTIONS.frame([])
EMPTY_COMPARISONS = frames.COMPARISONS.frame([])
EMPTY_WAVES = frames.WAVES.frame([])


# Every picture


@pytest.mark.parametrize("count", [1, 5, 24, 400])
def test_a_forest_plot_is_a_white_page_1200_pixels_wide_of_bounded_height(count: int) -> None:
    scores = made_scores(count, anchors=min(count, 12))
    pixels = decoded(forest_plot(scores, made_projections(scores), title="T", simulated=True))
    assert pixels.shape[1] == 1200
    assert 300 <= pixels.shape[0] <= 2400
    assert (pixels[:10] == 255).all() and (pixels[-10:] == 255).all() and (pixels[:, :10] == 255).all()


def test_the_other_pictures_are_1200_pixels_wide_too() -> None:
    scores = made_scores(24, anchors=12)
    graph_png = comparison_graph_picture(
        scores, neighbours(scores), made_projections(scores), title="T", simulated=False
    )
    waves_png = wave_history_picture(
        made_waves([None, 0.5, 0.1]), threshold=0.05, budget=90, title="T", simulated=False
    )
    for png in (graph_png, waves_png):
        pixels = decoded(png)
        assert pixels.shape[1] == 1200
        assert (pixels[:, :10] == 255).all() and (pixels[:, -10:] == 255).all()
        assert (pixels != 255).any(axis=2).mean() > 0.01


@pytest.mark.parametrize("simulated", [True, False])
def test_the_simulated_mark_is_visible_in_every_picture_exactly_when_the_judge_was_simulated(simulated: bool) -> None:
    scores = made_scores(6, anchors=2)
    projections = made_projections(scores)
    drawn = [
        forest(scores, projections, simulated=simulated),
        graph(scores, neighbours(scores), projections, simulated=simulated),
        history(made_waves([None, 0.1]), simulated=simulated),
        forest(EMPTY_SCORES, EMPTY_PROJECTIONS, simulated=simulated),
        graph(EMPTY_SCORES, EMPTY_COMPARISONS, EMPTY_PROJECTIONS, simulated=simulated),
        history(EMPTY_WAVES, simulated=simulated),
    ]
    for figure in drawn:
        assert (SIMULATED_MARK in all_text(figure)) is simulated
        red = (decoded(figures._png(figure)) == (0xA4, 0x0E, 0x26)).all(axis=2).sum()
        assert bool(red > 500) is simulated


@pytest.mark.parametrize("count", [1, 5, 24, 61, 400])
def test_no_text_of_a_forest_plot_is_cropped_or_overlaps_another(count: int) -> None:
    scores = made_scores(count, anchors=min(12, count // 2), ids=LONG_IDS)
    assert_legible(forest(scores, made_projections(scores, confidence=1.0), title="A title " * 20, simulated=True))


@pytest.mark.parametrize(
    ("count", "ids"), [(2, None), (5, LONG_IDS), (24, None), (24, LONG_IDS), (60, None), (60, LONG_IDS), (400, None)]
)
def test_no_text_of_a_comparison_graph_is_cropped_or_overlaps_another(count: int, ids: list[str] | None) -> None:
    scores = made_scores(count, anchors=min(12, count // 2), ids=ids)
    assert_legible(graph(scores, neighbours(scores), made_projections(scores), title="x" * 300, simulated=True))


@pytest.mark.parametrize("count", [1, 2, 13, 150])
def test_no_text_of_a_wave_history_is_cropped_or_overlaps_another(count: int) -> None:
    changes = [None, *(2.0 * 0.97**wave for wave in range(1, count))]
    assert_legible(history(made_waves(changes), budget=12_345, simulated=True))


def test_long_grade_names_wrap_in_the_legend_and_stay_legible() -> None:
    scale = [f"{word} godkänd med beröm" for word in ("Svagt", "Knappt", "Nästan", "Väl", "Fullt", "Mer än fullt")]
    scores = made_scores(24, anchors=4).with_columns(
        known_grade=pl.when("is_anchor").then(pl.lit(scale[2])).otherwise(None)
    )
    projections = made_projections(scores, scale=scale)
    for figure in (forest(scores, projections), graph(scores, neighbours(scores), projections)):
        assert_legible(figure)
        assert [text for text in legend_texts(figure) if "godkänd" in text] == scale


def test_dollar_signs_are_text_and_not_mathematics() -> None:
    scores = made_scores(4, anchors=2).with_columns(known_grade=pl.when("is_anchor").then(pl.lit("$x_1$")))
    projections = made_projections(scores, scale=["$x_1$", "$y^2$"])
    waves = made_waves([None, 0.2], decision="FINALIZE_FAILURE", reason="cost $5, not $6")
    for figure in (
        forest(scores, projections, title="$5 or $6"),
        graph(scores, neighbours(scores), projections, title="$5 or $6"),
        history(waves, title="$5 or $6"),
    ):
        texts = figure.findobj(lambda artist: isinstance(artist, Text) and artist.get_text().count("$") >= 2)
        assert texts
        assert not any(text.get_parse_math() for text in texts)


def test_the_same_frames_give_the_same_bytes_also_from_several_threads() -> None:
    scores = made_scores(9, anchors=3)
    projections, comparisons, waves = made_projections(scores), neighbours(scores), made_waves([None, 1.0, 0.2, 0.0])

    def draw(_: int) -> tuple[bytes, bytes, bytes]:
        return (
            forest_plot(scores, projections, title="T", simulated=True),
            comparison_graph_picture(scores, comparisons, projections, title="T", simulated=True),
            wave_history_picture(waves, threshold=0.05, budget=60, title="T", simulated=True),
        )

    first = draw(0)
    with ThreadPoolExecutor(3) as pool:
        assert all(again == first for again in pool.map(draw, range(3)))


def test_row_order_of_the_frames_does_not_matter() -> None:
    scores = made_scores(10, anchors=4)
    projections, comparisons, waves = made_projections(scores), neighbours(scores), made_waves([None, 1.0, 0.2])
    assert forest_plot(scores, projections, title="T", simulated=False) == forest_plot(
        scores.reverse(), projections.reverse(), title="T", simulated=False
    )
    assert comparison_graph_picture(
        scores, comparisons, projections, title="T", simulated=False
    ) == comparison_graph_picture(
        scores.reverse(), comparisons.reverse(), projections.reverse(), title="T", simulated=False
    )
    assert wave_history_picture(waves, threshold=0.05, budget=60, title="T", simulated=False) == wave_history_picture(
        waves.reverse(), threshold=0.05, budget=60, title="T", simulated=False
    )


def test_matplotlib_is_imported_when_the_first_picture_is_drawn_and_pyplot_never() -> None:
    program = """
import sys
from cj_pipeline.reports import figures
from cj_pipeline.workflow import frames
assert "matplotlib" not in sys.modules, "imported too early"
figures.wave_history_picture(frames.WAVES.frame([]), threshold=0.05, budget=1, title="T", simulated=True)
assert "matplotlib" in sys.modules
assert "matplotlib.pyplot" not in sys.modules, "pyplot keeps global state"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# The forest plot


def test_points_stand_at_the_scores_best_on_top() -> None:
    scores = made_scores(24, anchors=8)
    figure = forest(scores.sample(fraction=1.0, shuffle=True, seed=1), made_projections(scores))
    offsets = np.vstack([part(figure, gid).get_offsets() for gid in ("anchors", "students")])
    from_the_top = offsets[np.argsort(offsets[:, 1])]
    assert from_the_top[:, 0].tolist() == scores["score"].to_list()
    assert from_the_top[:, 1].tolist() == list(range(24))
    bottom, top = figure.axes[0].get_ylim()
    assert top < bottom


def test_bars_reach_1_96_standard_errors_to_each_side() -> None:
    scores = made_scores(24, anchors=8)
    segments = part(forest(scores, made_projections(scores)), "intervals").get_segments()
    drawn = np.array(segments)
    assert drawn[:, 0, 0] == pytest.approx((scores["score"] - 1.96 * scores["se"]).to_numpy())
    assert drawn[:, 1, 0] == pytest.approx((scores["score"] + 1.96 * scores["se"]).to_numpy())
    assert drawn[:, :, 1].tolist() == [[row, row] for row in range(24)]


def test_anchors_have_a_shape_of_their_own() -> None:
    scores = made_scores(24, anchors=8)
    figure = forest(scores, made_projections(scores))
    anchors, students = part(figure, "anchors"), part(figure, "students")
    assert len(anchors.get_offsets()) == 8
    assert len(students.get_offsets()) == 16
    assert len(anchors.get_paths()[0].vertices) == 5
    assert len(students.get_paths()[0].vertices) > 10


@pytest.mark.parametrize("picture", ["forest", "graph"])
def test_anchors_take_the_colour_of_their_expert_grade_and_students_of_their_projected_one(picture: str) -> None:
    scores = made_scores(24, anchors=8).with_columns(known_grade=pl.when("is_anchor").then(pl.lit("F+")))
    projections = made_projections(scores)
    figure = forest(scores, projections) if picture == "forest" else graph(scores, neighbours(scores), projections)
    colours, drawn = legend_colours(figure), points(figure)
    for essay, projection in zip(scores.iter_rows(named=True), projections.iter_rows(named=True), strict=True):
        grade = "F+" if essay["is_anchor"] else projection["grade"]
        assert drawn[essay["score"]] == colours[grade]
    assert len(drawn) == 24
    assert len({colours[grade] for grade in SCALE}) == len(SCALE)


@pytest.mark.parametrize("scale", [SCALE, ["zeta", "alpha", "mid", "10", "9"]])
def test_the_legend_lists_every_grade_in_scale_order(scale: list[str]) -> None:
    scores = made_scores(12)
    projections = made_projections(scores, scale=scale)
    for figure in (forest(scores, projections), graph(scores, neighbours(scores), projections)):
        assert [text for text in legend_texts(figure) if text in scale] == scale


def test_grade_colours_grow_lighter_along_the_scale() -> None:
    colours = list(figures._grade_colours(SCALE).values())
    luminance = [np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) @ [0.2126, 0.7152, 0.0722] for c in colours]
    assert luminance == sorted(luminance)
    assert luminance[-1] < 230


def test_without_projections_anchors_keep_their_grades_ordered_by_score() -> None:
    scores = made_scores(12, anchors=4)
    figure = forest(scores, EMPTY_PROJECTIONS)
    known = scores.filter("is_anchor").sort("score")["known_grade"].to_list()
    assert [text for text in legend_texts(figure) if text in SCALE] == known
    students = {to_hex(colour) for colour in part(figure, "students").get_facecolors()}
    assert students == {"#ffffff"}
    assert "No student has a grade. No grade has been projected." in all_text(figure)


def test_the_reason_for_missing_grades_is_told_in_the_projections_words() -> None:
    scores = made_scores(12)
    projections = made_projections(scores, reason="The batch has no anchors")
    assert "No student has a grade. The batch has no anchors." in all_text(forest(scores, projections))
    some = pl.concat([made_projections(scores).head(10), projections.tail(2)])
    assert "2 students without a grade. The batch has no anchors." in all_text(forest(scores, some))


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
    assert figures._labelled_rows([False] * 10, 1) == list(range(10))
    assert figures._labelled_rows([False] * 10, 3) == [0, 3, 6, 9]
    assert figures._labelled_rows([row in (4, 5) for row in range(10)], 3) == [0, 4, 9]


def test_long_ids_lose_their_middle_and_keep_their_ends() -> None:
    scores = made_scores(5, ids=[f"{number}{'-' * 62}{number}" for number in range(5)])
    labels = [text.get_text() for text in forest(scores, made_projections(scores)).texts if "…" in text.get_text()]
    assert len(labels) == 5
    assert sorted((label[0], label[-1]) for label in labels) == [(str(n), str(n)) for n in range(5)]


def test_essays_without_a_score_are_counted_and_not_drawn() -> None:
    scores = made_scores(6).with_columns(score=pl.when(pl.col("rank") <= 2).then(None).otherwise("score"))
    figure = forest(scores, EMPTY_PROJECTIONS)
    assert len(points(figure)) == 4
    assert "2 essays without a score: not drawn." in all_text(figure)


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf")])
def test_an_essay_without_a_standard_error_has_a_point_and_no_bar(missing: float | None) -> None:
    scores = made_scores(6).with_columns(se=pl.when(pl.col("rank") == 2).then(pl.lit(missing)).otherwise("se"))
    figure = forest(scores, EMPTY_PROJECTIONS)
    assert len(points(figure)) == 6
    assert len(part(figure, "intervals").get_segments()) == 5
    assert "1 essay without a standard error" in all_text(figure)


def test_capped_standard_errors_and_unconnected_parts_are_pointed_out() -> None:
    sound = all_text(forest(made_scores(6), EMPTY_PROJECTIONS))
    assert "capped" not in sound and "parts" not in sound
    scores = made_scores(6).with_columns(
        se_uncapped=pl.when(pl.col("rank") == 1).then(9.0).otherwise("se_uncapped"),
        component=pl.when(pl.col("rank") < 3).then(1).otherwise(0),
    )
    written = all_text(forest(scores, EMPTY_PROJECTIONS))
    assert "The standard error of 1 essay is capped" in written
    assert "fall into 2 parts" in written


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (EMPTY_SCORES, "no essay has been scored"),
        (pl.DataFrame(), "no essay has been scored"),
        (made_scores(3, score=None), "none of the essays has a score"),
        (made_scores(3, score=float("nan")), "none of the essays has a score"),
    ],
)
def test_without_scores_the_pictures_of_the_scale_say_why_there_is_nothing(scores: pl.DataFrame, reason: str) -> None:
    for figure in (forest(scores, EMPTY_PROJECTIONS), graph(scores, EMPTY_COMPARISONS, EMPTY_PROJECTIONS)):
        assert reason in all_text(figure)
        assert not figure.axes
        assert_legible(figure)


def test_projections_without_columns_count_as_none() -> None:
    scores = made_scores(4)
    assert forest_plot(scores, pl.DataFrame(), title="T", simulated=False) == forest_plot(
        scores, EMPTY_PROJECTIONS, title="T", simulated=False
    )


# The comparison graph


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
    assert "4 judgments of 2 pairs among 4 essays." in all_text(figure)
    assert "1 comparison failed: not drawn." in all_text(figure)


def test_many_edges_are_fainter_than_few() -> None:
    few, many = made_scores(6), made_scores(300)
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


# The wave history


def test_each_panel_draws_its_column_wave_by_wave() -> None:
    figure = history(made_waves([None, 0.8, 0.3, 0.04]).reverse(), threshold=0.05, budget=60)
    assert part(figure, "change").get_xydata().tolist() == [[2, 0.8], [3, 0.3], [4, 0.04]]
    assert part(figure, "mean_se").get_xydata() == pytest.approx(np.array([[w, 1 / w] for w in (1, 2, 3, 4)]))
    assert part(figure, "max_se").get_xydata() == pytest.approx(np.array([[w, 2 / w] for w in (1, 2, 3, 4)]))
    assert list(part(figure, "threshold").get_ydata()) == [0.05, 0.05]
    assert list(part(figure, "budget").get_ydata()) == [60, 60]


def test_outcomes_add_up_over_waves_with_failures_on_top() -> None:
    figure = history(made_waves([None, 0.8, 0.3]), budget=60)
    judged, failed = parts(figure, "judged"), parts(figure, "failed")
    assert [bar.get_height() for bar in judged] == [11, 22, 33]
    assert [(bar.get_y(), bar.get_height()) for bar in failed] == [(11, 1), (22, 2), (33, 3)]
    assert [bar.get_x() + bar.get_width() / 2 for bar in judged] == pytest.approx([1, 2, 3])


def test_the_budget_stays_in_sight_and_an_absent_one_is_not_drawn() -> None:
    figure = history(made_waves([None, 0.8]), budget=5000)
    assert figure.axes[3].get_ylim()[1] > 5000
    assert "budget 5000" in all_text(figure)
    assert not parts(history(made_waves([None, 0.8]), budget=0), "budget")


def test_bands_tell_coverage_from_resampling_in_every_panel() -> None:
    figure = history(made_waves([None, 0.8, 0.3, 0.1, 0.1]))
    coverage, resampling = (to_hex(colour) for colour in figures._BAND.values())
    for axes in figure.axes:
        spans = {
            to_hex(patch.get_facecolor()): (patch.get_x(), patch.get_x() + patch.get_width())
            for patch in axes.patches
            if to_hex(patch.get_facecolor()) in (coverage, resampling)
        }
        assert spans == {coverage: (0.5, 2.5), resampling: (2.5, 5.5)}
    assert {"coverage", "resampling"} <= set(legend_texts(figure))


def test_decisions_are_marked_at_their_waves() -> None:
    figure = history(made_waves([None, 0.8, 0.04], decision="FINALIZE_SCORING", reason="stable"))
    assert part(figure, "REQUEST_MORE_COMPARISONS").get_offsets()[:, 0].tolist() == [1, 2]
    assert part(figure, "FINALIZE_SCORING").get_offsets()[:, 0].tolist() == [3]
    assert {"more comparisons", "stop and score"} <= set(legend_texts(figure))
    assert "stop as failed" not in legend_texts(figure)


@pytest.mark.parametrize(
    ("decision", "reason", "told"),
    [
        ("FINALIZE_SCORING", "stable", "Stopped after wave 3: the scores are stable."),
        ("FINALIZE_SCORING", "budget_spent", "Stopped after wave 3: the budget is spent."),
        ("FINALIZE_SCORING", "a new reason", "Stopped after wave 3: a new reason."),
        ("FINALIZE_FAILURE", "low_success_rate", "Failed after wave 3: too few comparisons were judged successfully."),
        ("FINALIZE_FAILURE", None, "Failed after wave 3: no reason recorded."),
        ("REQUEST_MORE_COMPARISONS", "resampling", "Last decision, after wave 3: more comparisons (resampling)."),
        ("WAIT_FOR_CALLBACKS", "pending", "Last decision, after wave 3: wait for answers."),
        (None, None, "Wave 3 has not been decided."),
    ],
)
def test_the_subtitle_tells_what_was_decided_last_and_why(decision: str | None, reason: str | None, told: str) -> None:
    assert told in all_text(history(made_waves([None, 0.8, 0.04], decision=decision, reason=reason)))


@pytest.mark.parametrize(
    ("changes", "threshold", "scale"),
    [
        ([None, 2.0, 0.5, 0.04], 0.05, "log"),
        ([None, 0.10, 0.08, 0.06], 0.05, "linear"),
        ([None, 2.0, 0.5, 0.04], 0.0, "linear"),
        ([None, 0.0, 0.0, 0.0], 0.05, "linear"),
        ([None, None, None], 0.05, "linear"),
    ],
)
def test_changes_get_a_log_axis_when_they_span_a_factor_of_ten(
    changes: list[float | None], threshold: float, scale: str
) -> None:
    axes = history(made_waves(changes), threshold=threshold).axes[1]
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    shown = [value for value in (*changes, threshold) if value is not None]
    assert low <= min(shown) and max(shown) <= high


def test_a_wave_that_moved_no_score_is_marked_on_a_log_axis_instead_of_dropped() -> None:
    figure = history(made_waves([None, 2.0, 0.0, 0.1]))
    assert part(figure, "unmoved").get_offsets()[:, 0].tolist() == [3]
    assert "no change" in all_text(figure)
    drawn = part(figure, "change").get_ydata()
    assert np.isnan(drawn).tolist() == [False, True, False]


def test_a_history_without_values_says_so_in_its_panels() -> None:
    waves = made_waves([None]).with_columns(
        mean_se=pl.lit(None, pl.Float64), max_se=pl.lit(None, pl.Float64), judged=pl.lit(None, pl.Int64)
    )
    written = all_text(history(waves))
    assert "no change has been recorded" in written
    assert "no standard error has been recorded" in written


@pytest.mark.parametrize("waves", [EMPTY_WAVES, pl.DataFrame()])
def test_without_a_wave_the_history_says_so(waves: pl.DataFrame) -> None:
    figure = history(waves)
    assert "no wave has been planned" in all_text(figure)
    assert not figure.axes


# Markdown


def test_a_table_aligns_numbers_right_and_rounds_floats() -> None:
    frame = pl.DataFrame({"essay": ["a", "b"], "wins": [3, None], "score": [1.005, -2.5], "anchor": [True, False]})
    assert markdown_table(frame, float_digits=1).splitlines() == [
        "| essay | wins | score | anchor |",
        "| --- | ---: | ---: | --- |",
        "| a | 3 | 1.0 | yes |",
        "| b | – | -2.5 | no |",
    ]


def test_a_float_that_rounds_to_zero_has_no_sign() -> None:
    frame = pl.DataFrame({"x": [-0.001, -0.01, -10.0]})
    assert markdown_table(frame).splitlines()[2:] == ["| 0.00 |", "| -0.01 |", "| -10.00 |"]
    assert markdown_table(frame, float_digits=0).splitlines()[2:] == ["| 0 |", "| 0 |", "| -10 |"]


def test_columns_are_chosen_and_ordered_by_name() -> None:
    frame = pl.DataFrame({"a": [1], "b": [2], "c": [3]})
    assert markdown_table(frame, ["c", "a"]).splitlines() == ["| c | a |", "| ---: | ---: |", "| 3 | 1 |"]


def test_a_cut_table_says_how_many_rows_are_missing() -> None:
    frame = pl.DataFrame({"n": range(40)})
    assert markdown_table(frame).splitlines()[-3:] == ["| 29 |", "", "… and 10 more"]
    assert markdown_table(frame, limit=39).endswith("\n\n… and 1 more")
    assert markdown_table(frame, limit=40).endswith("| 39 |")
    assert markdown_table(frame, limit=0) == "| n |\n| ---: |\n\n… and 40 more"


def test_an_empty_table_says_so() -> None:
    assert markdown_table(frames.WAVES.frame([]), ["wave"]) == "| wave |\n| ---: |\n\n(no rows)"
    assert markdown_table(pl.DataFrame()) == "(no columns)"


def test_pipes_backslashes_and_line_breaks_are_escaped() -> None:
    frame = pl.DataFrame({"a|b": ["x|y", "x\\|y", "one\r\ntwo\nthree"]})
    assert markdown_table(frame).splitlines() == [
        r"| a\|b |",
        "| --- |",
        r"| x\|y |",
        r"| x\\\|y |",
        "| one two three |",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "x|y", "x\\|y", "ends with \\", "`code`", "**bold** and *italic*", "_start_ and mid_word_s", "~~gone~~",
        "<script>alert(1)</script>", "<b>", "&amp; & &lt;", "[link](http://x)", "![image](http://x/y.png)",
        "# heading", "- item", "a __b__ c", "ANCHOR_np-3_0a1b2c3d",
    ],
)  # fmt: skip
def test_a_markdown_parser_reads_back_exactly_what_a_cell_holds(text: str) -> None:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    html = parser.render(markdown_table(pl.DataFrame({"first": [text], "second": ["end"]})))
    cells = [unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", html)]
    assert cells == [text, "end"]


def test_justifications_never_reach_a_table() -> None:
    frame = made_comparisons([("a", "b")])
    assert "quotes" not in markdown_table(frame)
    assert "justification" not in markdown_table(frame)
    with pytest.raises(ValueError, match="justifications"):
        markdown_table(frame, ["essay_a", "justification"])
    with pytest.raises(ValueError, match="justifications"):
        markdown_table(pl.DataFrame({"a": [1]}), ["justification"])


def test_unusable_arguments_are_named() -> None:
    frame = pl.DataFrame({"a": [1]})
    with pytest.raises(ValueError, match="no column 'b' in a frame with a"):
        markdown_table(frame, ["a", "b"])
    with pytest.raises(ValueError, match="limit"):
        markdown_table(frame, limit=-1)


def test_probabilities_read_as_grades_with_numbers() -> None:
    frame = made_projections(made_scores(1), scale=["E", "C", "A"])
    assert markdown_table(frame, ["probabilities"]).splitlines()[-1] == "| E 0.10, C 0.10, A 0.10 |"
