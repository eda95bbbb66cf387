"""Calibration over time: a small control chart for each figure and each anchor, all nights from left to right.

What the charts mean is in `core.control_chart`; the page the picture stands on in `sheet`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cj_pipeline.core.control_chart import ChartPoint, Verdict
from cj_pipeline.core.words import counted
from cj_pipeline.reports.figures.sheet import (
    INK,
    LABEL_SIZE,
    MARGIN,
    QUIET,
    RULE,
    WIDTH,
    Sheet,
    add_axes,
    marker,
    png_bytes,
    typeface,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE: Final = "#0072b2"
_RED: Final = "#c0202e"
_ORANGE: Final = "#e69f00"
_BAND: Final = "#dfe9f2"
_COLOURS: Final = {Verdict.BEYOND: _RED, Verdict.DRIFTING: _ORANGE, Verdict.IN_CONTROL: _BLUE}
_ROW: Final = 1.45
_GAP: Final = 0.5
_TICKS: Final = 6


@dataclass(frozen=True)
class Panel:
    """One chart: its heading, its points, and whether it takes a whole row or shares it."""

    title: str
    points: Sequence[ChartPoint]
    wide: bool = False


def control_charts_picture(nights: Sequence[str], panels: Sequence[Panel], *, title: str, simulated: bool) -> bytes:
    """The charts as a PNG, 1200 pixels wide.

    Args:
        nights: labels of the nights, oldest first; every panel has a point for each.
        panels: wide ones take a row each, others stand two in a row.
        title: heading of the picture.
        simulated: whether the judge was simulated, which the picture then says.
    """
    return png_bytes(control_charts_figure(nights, panels, title=title, simulated=simulated))


def control_charts_figure(nights: Sequence[str], panels: Sequence[Panel], *, title: str, simulated: bool) -> "Figure":
    """The figure behind `control_charts_picture`; each point has its verdict as gid."""
    sheet = Sheet(title, simulated=simulated)
    if not nights:
        return sheet.message("There is no finished calibration night yet.")
    sheet.note(
        f"{counted(len(nights), 'night')}. Line and band: what the nights in control until then let one expect, and "
        "its limits. A hollow point has no verdict yet."
    )
    sheet.legend(
        "points",
        [
            (marker("o", _BLUE, edge=_BLUE), "in control"),
            (marker("D", _RED, edge=_RED), "beyond limits"),
            (marker("s", _ORANGE, edge=_ORANGE), "drifting"),
            (marker("o", "white", edge=_BLUE), "no verdict"),
        ],
    )
    rows = _rows(panels)
    height = len(rows) * (_ROW + _GAP) + 0.45
    figure = sheet.figure(height)
    left = 0.62
    for number, row in enumerate(rows):
        bottom = height - (number + 1) * (_ROW + _GAP) - 0.1 + 0.15
        width = (WIDTH - MARGIN - left * len(row)) / len(row)
        for place, panel in enumerate(row):
            axes = add_axes(figure, left + place * (width + left), bottom, width, _ROW)
            _draw(axes, panel)
            _label_nights(axes, nights, ticks=_TICKS if panel.wide else _TICKS // 2)
    return figure


def _rows(panels: Sequence[Panel]) -> list[list[Panel]]:
    rows: list[list[Panel]] = []
    for panel in panels:
        if not panel.wide and rows and len(rows[-1]) == 1 and not rows[-1][0].wide:
            rows[-1].append(panel)
        else:
            rows.append([panel])
    # a panel that is left alone still keeps to its half
    return rows


def _draw(axes: "Axes", panel: Panel) -> None:
    axes.set_title(
        panel.title, loc="left", color=INK, fontproperties=typeface(LABEL_SIZE, bold=True), parse_math=False, pad=4
    )
    judged = [(x, point, point.centre) for x, point in enumerate(panel.points) if point.centre is not None]
    shown = [point.value for point in panel.points if point.value is not None]
    if not shown:
        axes.text(
            0.5, 0.5, "nothing to chart", transform=axes.transAxes, ha="center", color=QUIET,
            fontproperties=typeface(LABEL_SIZE),
        )  # fmt: skip
        axes.set_yticks([])
    if judged:
        floor, ceiling = _reach(panel.points)
        xs = [x for x, _, _ in judged]
        low = [floor if point.low is None else point.low for _, point, _ in judged]
        high = [ceiling if point.high is None else point.high for _, point, _ in judged]
        axes.fill_between(xs, low, high, step="mid", color=_BAND, linewidth=0, zorder=0)
        axes.plot(xs, [centre for _, _, centre in judged], drawstyle="steps-mid", color=QUIET, linewidth=0.8)
        axes.set_ylim(floor, ceiling)
    for x, point in enumerate(panel.points):
        if point.value is None:
            continue
        axes.vlines(x, point.value - point.se, point.value + point.se, colors="#9aa4ae", linewidth=0.9, zorder=1)
        colour = _COLOURS.get(point.verdict)
        axes.scatter(
            [x],
            [point.value],
            s=20,
            marker={Verdict.BEYOND: "D", Verdict.DRIFTING: "s"}.get(point.verdict, "o"),
            facecolors=colour or "white",
            edgecolors=colour or _BLUE,
            linewidths=0.8,
            zorder=3,
            gid=point.verdict.value,
        )
    axes.set_xlim(-0.7, max(1, len(panel.points)) - 0.3)
    axes.grid(axis="y", color=RULE, linewidth=0.5)
    if shown:
        axes.locator_params(axis="y", nbins=4)


def _reach(points: Sequence[ChartPoint]) -> tuple[float, float]:
    """What the axis must show: every value with its SE, and every limit, with a little air."""
    seen = [point.value + sign * point.se for point in points if point.value is not None for sign in (-1, 1)]
    seen += [limit for point in points for limit in (point.low, point.high) if limit is not None]
    air = 0.06 * (max(seen) - min(seen)) or 1.0
    return min(seen) - air, max(seen) + air


def _label_nights(axes: "Axes", nights: Sequence[str], *, ticks: int) -> None:
    step = max(1, -(-len(nights) // ticks))
    places = list(range(0, len(nights), step))
    axes.set_xticks(places, [nights[place] for place in places])
