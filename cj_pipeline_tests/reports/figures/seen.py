"""The figures behind the pictures, and what can be seen in them."""

from io import BytesIO
from typing import Any

import numpy as np
import polars as pl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from cj_pipeline.reports.figures.forest import forest_figure
from cj_pipeline.reports.figures.graph import graph_figure
from cj_pipeline.reports.figures.waves import wave_figure


def forest(scores: pl.DataFrame, projections: pl.DataFrame, *, title: str = "T", simulated: bool = False) -> Figure:
    return forest_figure(scores, projections, title=title, simulated=simulated)


def graph(
    scores: pl.DataFrame,
    comparisons: pl.DataFrame,
    projections: pl.DataFrame,
    *,
    title: str = "T",
    simulated: bool = False,
) -> Figure:
    return graph_figure(scores, comparisons, projections, title=title, simulated=simulated)


def history(
    waves: pl.DataFrame, *, threshold: float = 0.05, budget: int = 100, title: str = "T", simulated: bool = False
) -> Figure:
    return wave_figure(waves, threshold=threshold, budget=budget, title=title, simulated=simulated)


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


def legend_handles(figure: Figure) -> list[Any]:
    """The samples beside `legend_texts`."""
    return [handle for legend in figure.legends for handle in legend.legend_handles]


def legend_colours(figure: Figure) -> dict[str, str]:
    return {
        text: to_hex(handle.get_markerfacecolor())
        for text, handle in zip(legend_texts(figure), legend_handles(figure), strict=True)
        if hasattr(handle, "get_markerfacecolor")
    }


def heading(figure: Figure) -> str:
    """Everything written on the page outside axes and legends, the small print among it, in one line."""
    return " ".join(text.get_text() for text in figure.texts)


def drawn_texts(figure: Figure) -> list[tuple[str, Any]]:
    """Every text that drawing the figure writes, with its extent in pixels. No pixel is painted: that takes longest."""
    written: list[tuple[str, Any]] = []

    def record(text: Text, renderer: Any, *_: Any, **__: Any) -> None:
        if text.get_visible() and text.get_text().strip():
            written.append((text.get_text(), text.get_window_extent(renderer)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", record)
        figure.draw_without_rendering()
    return written


def all_text(figure: Figure) -> str:
    return " ".join(" ".join(text for text, _ in drawn_texts(figure)).split())


def painted(figure: Figure) -> np.ndarray:
    """The figure's pixels, shape (height, width, 3)."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]


def decoded(png: bytes) -> np.ndarray:
    with Image.open(BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def assert_legible(figure: Figure) -> None:
    """No text leaves the page and no two texts overlap."""
    written = drawn_texts(figure)
    texts, boxes = [text for text, _ in written], np.array([box.extents for _, box in written])
    outside = (boxes[:, :2] < 0).any(axis=1) | (boxes[:, 2:] > figure.get_size_inches() * figure.dpi).any(axis=1)
    assert not outside.any(), f"cropped: {[texts[one] for one in np.flatnonzero(outside)]}"
    before = (boxes[:, None, 2:] <= boxes[None, :, :2]).any(axis=2)
    overlapping = [(texts[one], texts[other]) for one, other in np.argwhere(~(before | before.T)) if one < other]
    assert not overlapping, f"overlapping: {overlapping}"
