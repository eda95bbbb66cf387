"""The wave history: what each wave changed, measured, spent and decided, in panels above one another.

Whether a wave's scores are stable is decided in `core.completion`; here decisions are only shown.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final, Literal

import polars as pl

from cj_pipeline.core.completion import Decision
from cj_pipeline.core.models import PairMode
from cj_pipeline.reports.figures.sheet import (
    DPI,
    INK,
    LABEL_SIZE,
    MARGIN,
    NOTE_SIZE,
    QUIET,
    RULE,
    STRIPE,
    WIDTH,
    Sheet,
    add_axes,
    is_number,
    legend_line,
    marker,
    plain_number,
    png_bytes,
    typeface,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision
_BLUE: Final = "#0072b2"
_SKY: Final = "#56b4e9"
_ORANGE: Final = "#e69f00"
_VERMILION: Final = "#d55e00"

_BAND: Final = {PairMode.COVERAGE: "#e6eef6", PairMode.RESAMPLING: "#f8f0dc"}

_STOP_REASONS: Final = {
    "stable": "the scores are stable",
    "precise": "the grades (without grades: the scores) are known well enough",
    "precision_flat": "more judgments would hardly change the grades",
    "cost_spent": "the next call could exceed max_cost_usd",
    "single_wave": "everything was judged in one wave",
    "budget_spent": "the budget is spent",
    "small_net_cap": "every pair of the small net is judged and its resampling passes are used",
    "low_success_rate": "too few comparisons were judged successfully",
    "provider_rejected": "the judge refused for a reason that no retry mends",
}


@dataclass(frozen=True)
class _DecisionMark:
    words: str
    shape: str
    face: str
    edge: str


_DECISION_MARKS: Final = {
    Decision.REQUEST_MORE_COMPARISONS: _DecisionMark("more comparisons", ">", "#b8bec6", QUIET),
    Decision.WAIT_FOR_CALLBACKS: _DecisionMark("wait for answers", "o", "#ffffff", INK),
    Decision.FINALIZE_SCORING: _DecisionMark("stop and score", "s", _BLUE, INK),
    Decision.FINALIZE_FAILURE: _DecisionMark("stop as failed", "X", _VERMILION, INK),
}


def wave_history_picture(waves: pl.DataFrame, *, threshold: float, budget: int, title: str, simulated: bool) -> bytes:
    """How the batch came to its end: change of scores, standard errors and spent budget, wave by wave.

    Args:
        waves: rows of `frames.WAVES`, one batch, in any order.
        threshold: SCORE_STABILITY_THRESHOLD of the batch, in logits.
        budget: `total_budget` of the batch, in comparisons.
        title: heading of the picture.
        simulated: whether the judgments were simulated, which the picture then says.

    Returns:
        A PNG, 1200 pixels wide. Background bands tell coverage from resampling waves, marks above them what was
        decided at a wave's end, and the line under the title what was decided last and why. Without a wave, a
        picture that says so.
    """
    return png_bytes(wave_figure(waves, threshold=threshold, budget=budget, title=title, simulated=simulated))


def wave_figure(waves: pl.DataFrame, *, threshold: float, budget: int, title: str, simulated: bool) -> "Figure":
    """The figure behind `wave_history_picture`: a strip of decisions over three panels, in this order of axes."""
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    sheet = Sheet(title, simulated=simulated)
    if waves.is_empty():
        return sheet.message("Nothing to draw: no wave has been planned.")
    ordered = waves.sort("wave")
    sheet.note(_ending(ordered))
    modes = [mode for mode in PairMode if mode in ordered["pair_mode"].to_list()]
    sheet.legend("Waves", [(Patch(facecolor=_BAND[mode], edgecolor=RULE), mode.value) for mode in modes])
    decisions = [decision for decision in _DECISION_MARKS if decision in ordered["decision"].to_list()]
    sheet.legend("Decisions", [(_decision_marker(decision), _DECISION_MARKS[decision].words) for decision in decisions])

    left, right, foot, gap = 0.72, MARGIN + 0.05, 0.55, 0.38
    heights = (0.24, 1.65, 1.4, 1.65)
    top = sum(heights) + gap * (len(heights) - 1) + foot
    figure = sheet.figure(0.1 + top)
    panels = []
    for height in heights:
        panels.append(add_axes(figure, left, top - height, WIDTH - left - right, height))
        top -= height + gap
    numbers = ordered["wave"].to_list()
    for axes in panels:
        axes.set_xlim(numbers[0] - 0.5, numbers[-1] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=13, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
        axes.tick_params(axis="x", labelbottom=axes is panels[-1])
        for mode, members in groupby(ordered.iter_rows(named=True), key=lambda row: row["pair_mode"]):
            run = [row["wave"] for row in members]
            axes.axvspan(run[0] - 0.5, run[-1] + 0.5, color=_BAND.get(mode, STRIPE), linewidth=0, zorder=0)
    _draw_decisions(panels[0], ordered)
    _draw_change(panels[1], ordered, threshold)
    _draw_standard_errors(panels[2], ordered)
    _draw_spending(panels[3], ordered, budget)
    panels[3].set_xlabel("wave", fontproperties=typeface(LABEL_SIZE), color=QUIET, labelpad=4)
    return figure


def _ending(waves: pl.DataFrame) -> str:
    """What was decided last, and why."""
    last = waves.row(-1, named=True)
    wave, decision, reason = last["wave"], last["decision"], last["reason"]
    if decision in (Decision.FINALIZE_SCORING, Decision.FINALIZE_FAILURE):
        how = "Failed" if decision == Decision.FINALIZE_FAILURE else "Stopped"
        return f"{how} after wave {wave}: {_STOP_REASONS.get(reason, reason or 'no reason recorded')}."
    if decision == Decision.REQUEST_MORE_COMPARISONS:
        return f"Last decision, after wave {wave}: more comparisons ({reason or 'no reason recorded'})."
    if decision == Decision.WAIT_FOR_CALLBACKS:
        return f"Last decision, after wave {wave}: wait for answers."
    return f"Wave {wave} has not been decided."


def _decision_marker(decision: Decision) -> "Artist":
    mark = _DECISION_MARKS[decision]
    return marker(mark.shape, mark.face, edge=mark.edge)


def _draw_decisions(axes: "Axes", waves: pl.DataFrame) -> None:
    axes.set_yticks([])
    axes.set_ylim(-1, 1)
    for decision, mark in _DECISION_MARKS.items():
        decided = waves.filter(pl.col("decision") == decision.value)["wave"].to_list()
        if decided:
            axes.scatter(
                decided,
                [0] * len(decided),
                marker=mark.shape,
                s=42 if waves.height <= 60 else 14,
                c=mark.face,
                edgecolors=mark.edge,
                linewidths=0.7,
                zorder=3,
                clip_on=False,
            ).set_gid(decision.value)


def _draw_change(axes: "Axes", waves: pl.DataFrame, threshold: float) -> None:
    """Largest change of a score by wave; on a log axis when the values differ tenfold and the threshold allows."""
    from matplotlib.lines import Line2D

    changes = [
        (wave, change) for wave, change in waves.select("wave", "max_score_change").iter_rows() if is_number(change)
    ]
    positive = [change for _, change in changes if change > 0]
    logarithmic = bool(positive) and threshold > 0 and max(*positive, threshold) >= 10 * min(*positive, threshold)
    _panel_heading(
        axes, "Largest change of a score (logits, log axis)" if logarithmic else "Largest change of a score (logits)"
    )
    if logarithmic:
        _set_log_axis(axes, min(*positive, threshold), max(*positive, threshold))
    else:
        axes.set_ylim(0, 1.15 * max([threshold, *positive]) or 1.0)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.axhline(threshold, color=_VERMILION, linewidth=1.2, linestyle=(0, (4, 2)), zorder=2).set_gid("threshold")
    # a logarithm has no place for zero: the line breaks there, and a mark of its own stands at the foot
    drawn = [(wave, change if change > 0 or not logarithmic else math.nan) for wave, change in changes]
    _draw_series(axes, drawn, _BLUE, "change", "-", waves.height)
    entries: list[tuple[Artist, str]] = [
        (_line_sample(_BLUE), "change"),
        (
            Line2D([], [], color=_VERMILION, linewidth=1.2, linestyle=(0, (2.5, 1.2))),
            f"stable at {threshold:g} or less",
        ),
    ]
    unmoved = [wave for wave, change in changes if change == 0]
    if logarithmic and unmoved:
        floor = axes.get_ylim()[0]
        axes.scatter(
            unmoved, [floor] * len(unmoved), marker="v", s=30, c="#ffffff", edgecolors=_BLUE, zorder=4, clip_on=False
        ).set_gid("unmoved")
        entries.append((marker("v", "#ffffff", size=5.5, edge=_BLUE), "no change"))
    _panel_legend(axes, entries)
    if not changes:
        _say(axes, "no change has been recorded: it takes two waves")


def _set_log_axis(axes: "Axes", low: float, high: float) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_yscale("log")
    axes.set_ylim(low / 1.6, high * 1.6)
    ticks = [
        digit * 10.0**power
        for power in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        for digit in ((1, 2, 5) if high / low < 1000 else (1,))
    ]
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low / 1.6 <= tick <= high * 1.6]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(plain_number)


def _draw_standard_errors(axes: "Axes", waves: pl.DataFrame) -> None:
    _panel_heading(axes, "Standard error (logits)")
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    top = 0.0
    for column, colour, style in (("max_se", _VERMILION, "--"), ("mean_se", _BLUE, "-")):
        values = [(wave, value) for wave, value in waves.select("wave", column).iter_rows() if is_number(value)]
        top = max([top, *(value for _, value in values)])
        _draw_series(axes, values, colour, column, style, waves.height)
    axes.set_ylim(0, 1.15 * top or 1.0)
    _panel_legend(axes, [(_line_sample(_VERMILION, "--"), "largest"), (_line_sample(_BLUE), "mean")])
    if top == 0.0:
        _say(axes, "no standard error has been recorded")


def _draw_spending(axes: "Axes", waves: pl.DataFrame, budget: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    _panel_heading(axes, "Comparisons with an outcome, in total")
    numbers = waves["wave"].to_numpy()
    judged = waves["judged"].fill_null(0).cum_sum().to_numpy()
    failed = waves["failed"].fill_null(0).cum_sum().to_numpy()
    axes.set_ylim(0, 1.15 * max(budget, int((judged + failed).max())) or 1.0)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    for heights, floor, colour, gid in ((judged, 0 * judged, _SKY, "judged"), (failed, judged, _ORANGE, "failed")):
        for bar in axes.bar(
            numbers, heights, bottom=floor, width=min(0.72, 0.18 * len(numbers)), color=colour, linewidth=0, zorder=2
        ):
            bar.set_gid(gid)
    entries: list[tuple[Artist, str]] = [(Patch(color=_SKY), "judged"), (Patch(color=_ORANGE), "failed")]
    if budget > 0:
        axes.axhline(budget, color=INK, linewidth=1.2, linestyle=(0, (4, 2)), zorder=3).set_gid("budget")
        sample = Line2D([], [], color=INK, linewidth=1.2, linestyle=(0, (2.5, 1.2)))
        entries.append((sample, f"budget {budget}"))
    _panel_legend(axes, entries)


def _draw_series(
    axes: "Axes", values: Sequence[tuple[int, float]], colour: str, gid: str, style: str, waves: int
) -> None:
    """A line with a marker per wave; many waves get the line only, a single one still shows."""
    (line,) = axes.plot(
        [wave for wave, _ in values],
        [value for _, value in values],
        color=colour,
        linewidth=1.6,
        linestyle=style,
        marker="o",
        markersize=4.2 if waves <= 60 else 1.8,
        zorder=3,
    )
    line.set_gid(gid)


def _line_sample(colour: str, style: Literal["-", "--"] = "-") -> "Artist":
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linewidth=1.6, linestyle=style, marker="o", markersize=4.2)


def _panel_heading(axes: "Axes", text: str) -> None:
    axes.set_title(text, loc="left", fontproperties=typeface(NOTE_SIZE, bold=True), color=INK, pad=5)


def _panel_legend(axes: "Axes", entries: Sequence[tuple["Artist", str]]) -> None:
    """A legend on the line of the panel's heading, at its right end."""
    _, height = axes.get_window_extent().size
    legend_line(axes, entries, "lower right", (1.0, 1 + 0.05 * DPI / height))


def _say(axes: "Axes", text: str) -> None:
    """Write in the middle of an empty panel why it is empty."""
    axes.text(
        0.5,
        0.5,
        text,
        transform=axes.transAxes,
        ha="center",
        va="center",
        color=QUIET,
        fontproperties=typeface(NOTE_SIZE),
        parse_math=False,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2},
    )
