"""The page every picture is drawn on: its size, type and colours, title and legends, and how it becomes a PNG.

Text is measured, shortened and wrapped before the figure and its height exist. What a picture says or shows does not
belong here: nothing in this module knows of essays, grades or waves.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

SIMULATED_MARK: Final = "SIMULATED JUDGE — no statement about pupils"
"""Stands under the title of every picture of simulated judgments."""

# Lengths are inches, font sizes points. 8 inches at 150 dots per inch make a picture 1200 pixels wide.
WIDTH: Final = 8.0
DPI: Final = 150
MARGIN: Final = 0.2
LABEL_SIZE: Final = 8.0
NOTE_SIZE: Final = 8.5
_FONT: Final = "DejaVu Sans"

INK: Final = "#1f2328"
QUIET: Final = "#59626c"
RULE: Final = "#d9dde2"
STRIPE: Final = "#f5f6f8"
_ALARM: Final = "#a40e26"


class Sheet:
    """A figure in the making: what stands above the drawing is collected first, because the height follows from it."""

    def __init__(self, title: str, *, simulated: bool) -> None:
        self.ruler = Ruler()
        self._height = MARGIN
        self._draw: list[Callable[[Figure, float], object]] = []
        self._lines(title, 13.0, INK, bold=True)
        if simulated:
            self._height += 0.02
            self._lines(SIMULATED_MARK, 10.0, _ALARM, bold=True)
        self._height += 0.04

    def note(self, text: str) -> None:
        """Add a paragraph of small print."""
        self._lines(text, NOTE_SIZE, QUIET)

    def _lines(self, text: str, size: float, colour: str, *, bold: bool = False) -> None:
        for line in self.ruler.wrap(text, size, WIDTH - 2 * MARGIN, bold=bold):
            self._text(line, MARGIN, size, colour, bold=bold)
            self._height += 1.35 * size / 72

    def _text(self, text: str, x: float, size: float, colour: str, *, bold: bool = False, lower: float = 0.0) -> None:
        above = self._height + lower

        def draw(figure: "Figure", height: float) -> None:
            place = (x / WIDTH, 1 - above / height)
            font = typeface(size, bold=bold)
            figure.text(*place, text, va="top", color=colour, fontproperties=font, parse_math=False)

        self._draw.append(draw)

    def legend(self, heading: str, entries: Sequence[tuple["Artist", str]]) -> None:
        """Add a legend in reading order, on as many lines as it needs."""
        if not entries:
            return
        self._height += 0.06
        indent = MARGIN + 0.72
        room = WIDTH - MARGIN - indent
        self._text(heading, MARGIN, LABEL_SIZE, QUIET, lower=0.012)
        lines: list[list[tuple[Artist, str]]] = [[]]
        used = 0.0
        for artist, label in entries:
            short = self.ruler.shorten(label, LABEL_SIZE, room / 2)
            needed = self.ruler.width(short, LABEL_SIZE) + 3.4 * LABEL_SIZE / 72
            if used + needed > room:
                lines.append([])
                used = 0.0
            lines[-1].append((artist, short))
            used += needed
        for line in lines:
            self._legend_line(line, indent)
            self._height += 0.19

    def _legend_line(self, entries: Sequence[tuple["Artist", str]], indent: float) -> None:
        above = self._height

        def draw(figure: "Figure", height: float) -> None:
            legend_line(figure, entries, "upper left", (indent / WIDTH, 1 - (above + 0.005) / height))

        self._draw.append(draw)

    def figure(self, below: float) -> "Figure":
        """The figure with `below` inches of room under what was collected."""
        from matplotlib.figure import Figure

        height = self._height + below
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
        for draw in self._draw:
            draw(figure, height)
        return figure

    def message(self, text: str) -> "Figure":
        """The figure when there is nothing to draw: `text` says why."""
        below = 1.3
        figure = self.figure(below)
        lines = self.ruler.wrap(text, 11.0, WIDTH - 8 * MARGIN)
        place = (0.5, 0.5 * below / figure.get_figheight())
        font = typeface(11.0)
        figure.text(
            *place, "\n".join(lines), ha="center", va="center", color=INK, fontproperties=font, parse_math=False
        )
        return figure


class Ruler:
    """Measures text in inches."""

    def __init__(self) -> None:
        from matplotlib.backends.backend_agg import RendererAgg

        renderer: Any = RendererAgg
        self._renderer = renderer(1, 1, DPI)

    def width(self, text: str, size: float, *, bold: bool = False) -> float:
        """Width of one line of text."""
        measure: Any = self._renderer.get_text_width_height_descent
        return float(measure(text, typeface(size, bold=bold), ismath=False)[0]) / DPI

    def shorten(self, text: str, size: float, room: float) -> str:
        """`text`, with its middle left out if it is wider than `room`: ids tend to differ at their ends."""
        if self.width(text, size) <= room:
            return text
        fitting = bisect_right(
            range(2, len(text)), room, key=lambda kept: self.width(_without_middle(text, kept), size)
        )
        return _without_middle(text, 1 + fitting) if fitting else "…"

    def wrap(self, text: str, size: float, room: float, *, bold: bool = False) -> list[str]:
        """`text` in lines no wider than `room`; a word that is wider is shortened."""
        lines: list[str] = []
        for word in text.split():
            fitting = self.shorten(word, size, room * (0.9 if bold else 1.0))
            if lines and self.width(f"{lines[-1]} {fitting}", size, bold=bold) <= room:
                lines[-1] = f"{lines[-1]} {fitting}"
            else:
                lines.append(fitting)
        return lines


def _without_middle(text: str, kept: int) -> str:
    return f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"


def typeface(size: float, *, bold: bool = False) -> "FontProperties":
    """The one typeface of every picture, at a size in points."""
    from matplotlib.font_manager import FontProperties

    return FontProperties(family=_FONT, size=size, weight="bold" if bold else "normal")


def legend_line(
    owner: Any, entries: Sequence[tuple["Artist", str]], location: str, anchor: tuple[float, float]
) -> None:
    """One line of legend on a figure or on axes, without a frame."""
    legend = owner.legend(
        [artist for artist, _ in entries],
        [label for _, label in entries],
        loc=location,
        bbox_to_anchor=anchor,
        ncols=len(entries),
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.4,
        handletextpad=0.5,
        columnspacing=1.5,
        prop=typeface(LABEL_SIZE),
        labelcolor=INK,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def marker(shape: str, face: str, *, size: float = 7.0, edge: str = INK) -> "Artist":
    """A legend's sample of a point."""
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="none", marker=shape, markersize=size, markerfacecolor=face, markeredgecolor=edge)


def add_axes(figure: "Figure", left: float, bottom: float, width: float, height: float) -> "Axes":
    """Axes placed in inches from the lower left corner, with quiet ticks and no box."""
    tall = figure.get_figheight()
    axes = figure.add_axes((left / WIDTH, bottom / tall, width / WIDTH, height / tall), facecolor="none")
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(length=0, labelsize=LABEL_SIZE, labelcolor=QUIET, labelfontfamily=_FONT, pad=4)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(plain_number)
    axes.set_axisbelow(True)
    return axes


def plain_number(value: float, _position: float = 0) -> str:
    """A tick label without offsets, powers or mathematical typesetting."""
    return f"{value:.6g}".replace("-", "−") if abs(value) > 1e-12 else "0"


def is_number(value: float | None) -> bool:
    """Whether a value has a place on an axis: neither missing, infinite nor NaN."""
    return value is not None and math.isfinite(value)


def png_bytes(figure: "Figure") -> bytes:
    """The figure as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = BytesIO()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(buffer)
    return buffer.getvalue()
