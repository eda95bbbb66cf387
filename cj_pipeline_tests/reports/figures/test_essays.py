import numpy as np
import polars as pl
import pytest
from matplotlib.colors import to_hex

from cj_pipeline.reports.figures import forest_plot
from cj_pipeline.reports.figures.essays import grade_colours
from cj_pipeline_tests.reports.figures.seen import (
    all_text,
    assert_legible,
    forest,
    graph,
    heading,
    legend_colours,
    legend_texts,
    part,
    points,
)
from cj_pipeline_tests.reports.made import (
    EMPTY_COMPARISONS,
    EMPTY_PROJECTIONS,
    EMPTY_SCORES,
    SCALE,
    made_projections,
    made_scores,
    neighbours,
)


def test_long_grade_names_wrap_in_the_legend_and_stay_legible() -> None:
    scale = [f"{word} godkänd med beröm" for word in ("Svagt", "Knappt", "Nästan", "Väl", "Fullt", "Mer än fullt")]
    scores = made_scores(24, anchors=4).with_columns(
        known_grade=pl.when("is_anchor").then(pl.lit(scale[2])).otherwise(None)
    )
    projections = made_projections(scores, scale=scale)
    for figure in (forest(scores, projections), graph(scores, neighbours(scores), projections)):
        assert_legible(figure)
        assert [text for text in legend_texts(figure) if "godkänd" in text] == scale


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
    colours = list(grade_colours(SCALE).values())
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
    assert "No student has a grade. No grade has been projected." in heading(figure)


def test_the_reason_for_missing_grades_is_told_in_the_projections_words() -> None:
    scores = made_scores(12)
    projections = made_projections(scores, reason="The batch has no anchors")
    assert "No student has a grade. The batch has no anchors." in heading(forest(scores, projections))
    some = pl.concat([made_projections(scores).head(10), projections.tail(2)])
    assert "2 students without a grade. The batch has no anchors." in heading(forest(scores, some))


def test_essays_without_a_score_are_counted_and_not_drawn() -> None:
    scores = made_scores(6).with_columns(score=pl.when(pl.col("rank") <= 2).then(None).otherwise("score"))
    figure = forest(scores, EMPTY_PROJECTIONS)
    assert len(points(figure)) == 4
    assert "2 essays without a score: not drawn." in heading(figure)


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
