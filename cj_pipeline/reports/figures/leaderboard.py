"""Judges and prompts against the same experts: a row each, τ-b with its interval.

What the figures mean is in `core.leaderboard`; the page the picture stands on in `sheet`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cj_pipeline.reports.figures.sheet import (
    INK,
    LABEL_SIZE,
    MARGIN,
    QUIET,
    STRIPE,
    WIDTH,
    Sheet,
    add_axes,
    marker,
    png_bytes,
    typeface,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE: Final = "#0072b2"
_GREY: Final = "#8b949e"
_PITCH: Final = 0.38
_HEADING: Final = 0.42
_FOOT: Final = 0.62
_LABEL_WIDTH: Final = 2.75
_FIGURES_WIDTH: Final = 1.75
_SMALL: Final = 7.0
MOST_ROWS: Final = 20
"""Rows drawn of a group; a note says how many more there are."""


@dataclass(frozen=True)
class LeaderboardBar:
    """One row of the picture.

    Attributes:
        judge, prompts: what it is, in two lines.
        fitted: τ-b of the fitted scores.
        mean, interval: τ-b of the true scores.
        figures: what stands to the right.
        may_be_best: whether it cannot be told apart from the first row.
    """

    judge: str
    prompts: str
    fitted: float
    mean: float
    interval: tuple[float, float]
    figures: str
    may_be_best: bool


@dataclass(frozen=True)
class LeaderboardPanel:
    """Rows that can be compared, best first, with the heading over them and the greatest τ-b attainable."""

    heading: str
    attainable: float
    bars: Sequence[LeaderboardBar]


def leaderboard_picture(
    panels: Sequence[LeaderboardPanel], *, title: str, notes: Sequence[str], simulated: bool
) -> bytes:
    """Posterior mean and 95 % interval of τ-b, a panel per group of comparable rows.

    Args:
        panels: what to draw; without any, the picture says so.
        title: heading of the picture.
        notes: paragraphs of small print under it.
        simulated: whether all judgments were simulated, which the picture then says.

    Returns:
        A PNG, 1200 pixels wide.
    """
    return png_bytes(leaderboard_figure(panels, title=title, notes=notes, simulated=simulated))


def leaderboard_figure(
    panels: Sequence[LeaderboardPanel], *, title: str, notes: Sequence[str], simulated: bool
) -> "Figure":
    """The figure behind `leaderboard_picture`: bars `intervals`, points `may-be-best` and `behind`, by gid."""
    sheet = Sheet(title, simulated=simulated)
    for note in notes:
        sheet.note(note)
    if not panels:
        return sheet.message("Nothing to draw: no finished batch held a judge against experts.")
    sheet.legend(
        "row",
        [
            (marker("o", _BLUE), "cannot be told apart from the leader"),
            (marker("o", "white", edge=_GREY), "behind the leader"),
            (marker("|", INK, size=9), "τ-b of the fitted scores"),
        ],
    )
    heights = [_HEADING + _PITCH * min(len(panel.bars), MOST_ROWS) + _FOOT for panel in panels]
    figure = sheet.figure(sum(heights))
    above = sum(heights)
    for panel, height in zip(panels, heights, strict=True):
        above -= height
        _draw_panel(figure, sheet, panel, above)
    return figure


def _draw_panel(figure: "Figure", sheet: Sheet, panel: LeaderboardPanel, below: float) -> None:
    """A panel whose lower edge is `below` inches above that of the figure."""
    bars = list(panel.bars[:MOST_ROWS])
    count, tall = len(bars), figure.get_figheight()
    body = _PITCH * count
    left = MARGIN + _LABEL_WIDTH
    axes = add_axes(figure, left, below + _FOOT, WIDTH - left - _FIGURES_WIDTH - MARGIN, body)

    def write(
        x: float, y: float, text: str, colour: str, size: float, *, bold: bool = False, right: bool = False
    ) -> None:
        figure.text(
            x / WIDTH,
            (below + y) / tall,
            text,
            ha="right" if right else "left",
            va="center_baseline",
            color=colour,
            fontproperties=typeface(size, bold=bold),
            parse_math=False,
        )

    heading = sheet.ruler.shorten(panel.heading, LABEL_SIZE, 0.9 * (WIDTH - 2 * MARGIN))
    write(MARGIN, _FOOT + body + 0.18, heading, INK, LABEL_SIZE, bold=True)
    if len(panel.bars) > count:
        write(MARGIN, 0.12, f"… and {len(panel.bars) - count} more rows, further down", QUIET, _SMALL)
    for row, bar in enumerate(bars):
        middle = _FOOT + body - (row + 0.5) * _PITCH
        room = _LABEL_WIDTH - 0.15
        write(MARGIN, middle + 0.075, sheet.ruler.shorten(bar.judge, LABEL_SIZE, room), INK, LABEL_SIZE)
        write(MARGIN, middle - 0.075, sheet.ruler.shorten(bar.prompts, _SMALL, room), QUIET, _SMALL)
        write(WIDTH - MARGIN, middle, bar.figures, QUIET, _SMALL, right=True)
        if row % 2 == 0:
            axes.axhspan(row - 0.5, row + 0.5, color=STRIPE, linewidth=0, zorder=0)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_yticks([])
    low, high = min(bar.interval[0] for bar in bars), max(*(bar.interval[1] for bar in bars), panel.attainable)
    pad = 0.06 * (high - low) or 0.05
    axes.set_xlim(low - pad, high + pad)
    axes.axvline(panel.attainable, color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.hlines(
        range(count), [bar.interval[0] for bar in bars], [bar.interval[1] for bar in bars], colors=_GREY, linewidth=1.6
    ).set_gid("intervals")
    axes.scatter([bar.fitted for bar in bars], range(count), marker="|", s=60, c=INK, linewidths=1.0, zorder=2)
    for gid, face, edge, wanted in (("may-be-best", _BLUE, INK, True), ("behind", "white", _GREY, False)):
        chosen = [(bar.mean, row) for row, bar in enumerate(bars) if bar.may_be_best is wanted]
        if chosen:
            axes.scatter(
                [mean for mean, _ in chosen],
                [row for _, row in chosen],
                s=44,
                c=face,
                edgecolors=edge,
                linewidths=0.8,
                zorder=3,
                clip_on=False,
            ).set_gid(gid)
    axes.set_xlabel(
        "Kendall's τ-b with the experts, 95 % interval; dashed: the greatest attainable",
        fontproperties=typeface(LABEL_SIZE),
        color=QUIET,
        labelpad=4,
    )
