import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import polars as pl
import pytest
from matplotlib.text import Text

from cj_pipeline.reports.figures import SIMULATED_MARK, comparison_graph_picture, forest_plot, wave_history_picture
from cj_pipeline_tests.reports.figures.seen import all_text, decoded, forest, graph, history, painted
from cj_pipeline_tests.reports.made import (
    EMPTY_COMPARISONS,
    EMPTY_PROJECTIONS,
    EMPTY_SCORES,
    EMPTY_WAVES,
    made_projections,
    made_scores,
    made_waves,
    neighbours,
)

Draw = Callable[[], bytes]


def drawings(*, backwards: bool = False) -> list[Draw]:
    """How to draw each of the pictures of one batch, on demand from its frames with their rows in either order."""
    scores = made_scores(10, anchors=4)
    given = [scores, neighbours(scores), made_projections(scores), made_waves([None, 1.0, 0.2, 0.0])]
    scores, comparisons, projections, waves = [frame.reverse() if backwards else frame for frame in given]
    return [
        lambda: forest_plot(scores, projections, title="T", simulated=True),
        lambda: comparison_graph_picture(scores, comparisons, projections, title="T", simulated=True),
        lambda: wave_history_picture(waves, threshold=0.05, budget=60, title="T", simulated=True),
    ]


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return [draw() for draw in drawings()]


def test_every_picture_is_a_white_page_1200_pixels_wide_with_something_on_it(pictures: list[bytes]) -> None:
    for picture in pictures:
        pixels = decoded(picture)
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
        red = (painted(figure) == (0xA4, 0x0E, 0x26)).all(axis=2).sum()
        assert bool(red > 500) is simulated


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


def test_the_same_frames_give_the_same_bytes_also_from_several_threads(pictures: list[bytes]) -> None:
    with ThreadPoolExecutor(3) as pool:
        again = list(pool.map(lambda draw: draw(), drawings() * 2))
    assert again == pictures * 2


def test_row_order_of_the_frames_does_not_matter(pictures: list[bytes]) -> None:
    assert [draw() for draw in drawings(backwards=True)] == pictures


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
