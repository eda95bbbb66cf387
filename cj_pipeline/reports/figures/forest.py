"""The scale: every essay's score with its interval, a row each.

What it shares with the comparison graph is in `essays`, the page it stands on in `sheet`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from cj_pipeline.core.words import counted
from cj_pipeline.reports.figures.essays import (
    Essay,
    drawn_essays,
    essay_colour,
    essay_legends,
    grade_colours,
    scale_notes,
    scale_order,
    score_axis,
)
from cj_pipeline.reports.figures.sheet import (
    INK,
    LABEL_SIZE,
    MARGIN,
    QUIET,
    STRIPE,
    WIDTH,
    Ruler,
    Sheet,
    add_axes,
    is_number,
    png_bytes,
    typeface,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROWS_IN_FULL: Final = 60
_BODY_MAX: Final = 12.6
_LABEL_PITCH: Final = 0.18


def forest_plot(scores: pl.DataFrame, projections: pl.DataFrame, *, title: str, simulated: bool) -> bytes:
    """The scale: every essay's score with its 95 % interval, best on top, coloured by grade.

    Args:
        scores: rows of `frames.BT_SCORES`, one batch. Intervals are `score_low` to `score_high`, in logits.
        projections: rows of `frames.GRADE_PROJECTIONS` of the same batch. May be empty or lack essays, whose
            grade is then not shown. The order of `probabilities` is the order of the legend.
        title: heading of the picture.
        simulated: whether the judgments were simulated, which the picture then says.

    Returns:
        A PNG, 1200 pixels wide. Anchors are diamonds in the colour of their expert grade, students circles in that
        of their projected grade. Above 60 essays all are drawn and as many labelled as can be read, anchors first.
        Without a score to draw, a picture that says why.
    """
    return png_bytes(forest_figure(scores, projections, title=title, simulated=simulated))


def forest_figure(scores: pl.DataFrame, projections: pl.DataFrame, *, title: str, simulated: bool) -> "Figure":
    """The figure behind `forest_plot`: points `anchors` and `students`, bars `intervals`, by gid."""
    sheet = Sheet(title, simulated=simulated)
    if scores.is_empty():
        return sheet.message("Nothing to draw: no essay has been scored.")
    essays = drawn_essays(scores, projections)
    if not essays:
        return sheet.message("Nothing to draw: none of the essays has a score.")
    colours = grade_colours(scale_order(projections, essays))
    count = len(essays)
    # few essays stand wide apart; many share a height that a page can hold
    pitch = min(max(3.0 / count, 0.21), 0.34, _BODY_MAX / count)
    stride = 1 if count <= _ROWS_IN_FULL else math.ceil(_LABEL_PITCH / pitch)
    labelled = _labelled_rows([essay.is_anchor for essay in essays], stride)

    sheet.note("Bradley–Terry score with its 95 % interval, best on top.")
    for note in [*scale_notes(scores, projections, essays), *_interval_notes(essays)]:
        sheet.note(note)
    if len(labelled) < count:
        sheet.note(f"All {count} essays are drawn, {len(labelled)} of them labelled.")
    essay_legends(sheet, essays, colours)

    body, heading, foot = pitch * count, 0.38 if count > 30 else 0.3, 0.62
    figure = sheet.figure(heading + body + foot)
    left, right = _write_rows(figure, sheet.ruler, essays, labelled, pitch, foot)
    _draw_intervals(add_axes(figure, left, foot, right - left, body), essays, colours, pitch)
    return figure


def _labelled_rows(is_anchor: Sequence[bool], stride: int) -> list[int]:
    """The rows whose labels are shown, at least `stride` apart: anchors, the ends, then others from the top."""
    chosen: list[int] = []
    ends = (0, len(is_anchor) - 1)
    for row in sorted(range(len(is_anchor)), key=lambda row: (not is_anchor[row], row not in ends, row)):
        if all(abs(row - other) >= stride for other in chosen):
            chosen.append(row)
    return sorted(chosen)


def _interval_notes(essays: Sequence[Essay]) -> list[str]:
    missing = sum(essay.interval is None for essay in essays)
    return [f"{counted(missing, 'essay')} without an interval."] if missing else []


def _write_rows(
    figure: "Figure", ruler: Ruler, essays: Sequence[Essay], labelled: Sequence[int], pitch: float, foot: float
) -> tuple[float, float]:
    """Write rank, id, grade and confidence of the labelled rows; where the axes may begin and end between them."""
    count, tall = len(essays), figure.get_figheight()
    ids = {row: ruler.shorten(essays[row].essay_id, LABEL_SIZE, 2.1) for row in labelled}
    grades = {row: ruler.shorten(essays[row].grade or "–", LABEL_SIZE, 1.2) for row in labelled}
    id_width = max(ruler.width(text, LABEL_SIZE) for text in [*ids.values(), "essay"])
    grade_width = max(ruler.width(text, LABEL_SIZE, bold=True) for text in [*grades.values(), "grade"])
    rank_right = MARGIN + ruler.width(str(count), LABEL_SIZE) + 0.04
    id_left = rank_right + 0.12
    confidence_left = WIDTH - MARGIN - ruler.width("100 % HIGH", LABEL_SIZE) - 0.08
    grade_left = confidence_left - grade_width - 0.14

    def write(x: float, row: float, text: str, colour: str = INK, *, align: Any = "left", bold: bool = False) -> None:
        place = (x / WIDTH, (foot + (count - row - 0.5) * pitch) / tall)
        font = typeface(LABEL_SIZE, bold=bold)
        figure.text(*place, text, ha=align, va="center_baseline", color=colour, fontproperties=font, parse_math=False)

    # clear of the axis labels that stand above a tall picture
    heading_row = -0.5 - (0.2 if count > 30 else 0.13) / pitch
    write(id_left, heading_row, "essay", QUIET)
    for row in labelled:
        rank = essays[row].rank
        write(rank_right, row, "" if rank is None else str(rank), QUIET, align="right")
        write(id_left, row, ids[row])
    if all(essay.grade is None for essay in essays):
        return id_left + id_width + 0.12, WIDTH - 2 * MARGIN
    write(grade_left, heading_row, "grade", QUIET)
    write(confidence_left, heading_row, "confidence", QUIET)
    for row in labelled:
        write(grade_left, row, grades[row], bold=essays[row].is_anchor)
        write(confidence_left, row, _confidence_text(essays[row]), QUIET)
    return id_left + id_width + 0.12, grade_left - 0.14


def _confidence_text(essay: Essay) -> str:
    if essay.is_anchor:
        return "expert"
    if not is_number(essay.confidence):
        return ""
    return f"{essay.confidence:.0%} {essay.label or ''}".replace("%", " %").strip()


def _draw_intervals(axes: "Axes", essays: Sequence[Essay], colours: Mapping[str, str], pitch: float) -> None:
    """Points and bars of the forest plot, one row each, row 0 on top."""
    count = len(essays)
    barred = [(row, *essay.interval) for row, essay in enumerate(essays) if essay.interval is not None]
    low = min([essay.score for essay in essays] + [start for _, start, _ in barred])
    high = max([essay.score for essay in essays] + [end for _, _, end in barred])
    pad = 0.04 * (high - low) or 0.5
    axes.set_xlim(low - pad, high + pad)
    axes.set_ylim(count - 0.5, -0.5)
    score_axis(axes)
    axes.axvline(0, color=QUIET, linewidth=0.8, zorder=1)
    axes.tick_params(axis="x", labeltop=count > 30)
    if count <= _ROWS_IN_FULL:
        for row in range(0, count, 2):
            axes.axhspan(row - 0.5, row + 0.5, color=STRIPE, linewidth=0, zorder=0)
    axes.hlines(
        [row for row, _, _ in barred],
        [start for _, start, _ in barred],
        [end for _, _, end in barred],
        colors="#8b949e",
        linewidth=min(1.6, pitch * 72 * 0.35),
        zorder=2,
        clip_on=False,
    ).set_gid("intervals")
    crowded = count > _ROWS_IN_FULL
    size = 4.4 if crowded else 7.5
    for gid, shape, is_anchor in (("students", "o", False), ("anchors", "D", True)):
        members = [(row, essay) for row, essay in enumerate(essays) if essay.is_anchor is is_anchor]
        if members:
            axes.scatter(
                [essay.score for _, essay in members],
                [row for row, _ in members],
                s=size**2 * (1.4 if crowded and is_anchor else 1.0),
                marker=shape,
                c=[essay_colour(essay, colours) for _, essay in members],
                edgecolors=INK,
                linewidths=0.4 if crowded else 0.7,
                zorder=4 if is_anchor else 3,
                clip_on=False,
            ).set_gid(gid)
