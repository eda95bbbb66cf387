"""Pictures of one batch as PNG bytes, and tables as Markdown: the scale, the comparison graph, the wave history.

Here lives how results are drawn. What they are lives elsewhere: the numbers come finished in the frames of
`workflow.frames`, and nothing is estimated, rounded for later use or decided here. No picture and no table shows essay
text or a justification.

The same frames give the same bytes. matplotlib is imported inside the functions (its import is slow) and used through
its object interface only, so no display is needed and pictures may be drawn in several threads at once.
"""

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import polars as pl

from cj_pipeline.core.completion import Decision
from cj_pipeline.core.models import ComparisonStatus, PairMode

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

SIMULATED_MARK: Final = "SIMULATED JUDGE — no statement about pupils"
"""Stands under the title of every picture of simulated judgments."""

INTERVAL: Final = 1.96
"""Half-width of the drawn intervals in standard errors: 95 % of a normal distribution."""

# Lengths below are inches, font sizes points. 8 inches at 150 dots per inch make a picture 1200 pixels wide.
_WIDTH: Final = 8.0
_DPI: Final = 150
_MARGIN: Final = 0.2
_FONT: Final = "DejaVu Sans"
_LABEL_SIZE: Final = 8.0
_NOTE_SIZE: Final = 8.5

_INK: Final = "#1f2328"
_QUIET: Final = "#59626c"
_RULE: Final = "#d9dde2"
_STRIPE: Final = "#f5f6f8"
_UNGRADED: Final = "#ffffff"
_ALARM: Final = "#a40e26"
# Okabe and Ito's colours, told apart with any colour vision
_BLUE: Final = "#0072b2"
_SKY: Final = "#56b4e9"
_ORANGE: Final = "#e69f00"
_VERMILION: Final = "#d55e00"

_BAND: Final = {PairMode.COVERAGE: "#e6eef6", PairMode.RESAMPLING: "#f8f0dc"}

_NODE_SIZE: Final = 6.8
_NODE_LABEL_WIDTH: Final = 1.1
_FOREST_ROWS_IN_FULL: Final = 60
_FOREST_BODY_MAX: Final = 12.6
_FOREST_LABEL_PITCH: Final = 0.18

_STOP_REASONS: Final = {
    "stable": "the scores are stable",
    "budget_spent": "the budget is spent",
    "small_net_cap": "every pair of the small net is judged and its resampling passes are used",
    "low_success_rate": "too few comparisons were judged successfully",
    "provider_rejected": "the judge refused for a reason that no retry mends",
}


def forest_plot(scores: pl.DataFrame, projections: pl.DataFrame, *, title: str, simulated: bool) -> bytes:
    """The scale: every essay's score with its 95 % interval, best on top, coloured by grade.

    Args:
        scores: rows of `frames.BT_SCORES`, one batch. Intervals are ±1.96 `se`, in logits.
        projections: rows of `frames.GRADE_PROJECTIONS` of the same batch. May be empty or lack essays, whose
            grade is then not shown. The order of `probabilities` is the order of the legend.
        title: heading of the picture.
        simulated: whether the judgments were simulated, which the picture then says.

    Returns:
        A PNG, 1200 pixels wide. Anchors are diamonds in the colour of their expert grade, students circles in that
        of their projected grade. Above 60 essays all are drawn and as many labelled as can be read, anchors first.
        Without a score to draw, a picture that says why.
    """
    return _png(_forest_figure(scores, projections, title=title, simulated=simulated))


def comparison_graph_picture(
    scores: pl.DataFrame, comparisons: pl.DataFrame, projections: pl.DataFrame, *, title: str, simulated: bool
) -> bytes:
    """The comparison graph: essays as nodes at their score, judged pairs as edges, wider the more often judged.

    The height of a node only keeps nodes apart and has no meaning; it follows from the scores alone.

    Args:
        scores: rows of `frames.BT_SCORES`, one batch.
        comparisons: rows of `frames.COMPARISONS` of the same batch; those with a judgment are drawn.
        projections: rows of `frames.GRADE_PROJECTIONS` of the same batch, as in `forest_plot`.
        title: heading of the picture.
        simulated: whether the judgments were simulated, which the picture then says.

    Returns:
        A PNG, 1200 pixels wide. Labels that would cover a node or another label are left out; those of anchors come
        first and show the reference they were registered under. Ids too long to tell apart give way to ranks.
        Without scores or judged comparisons, a picture that says why.
    """
    return _png(_graph_figure(scores, comparisons, projections, title=title, simulated=simulated))


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
    return _png(_wave_figure(waves, threshold=threshold, budget=budget, title=title, simulated=simulated))


def markdown_table(
    frame: pl.DataFrame, columns: Sequence[str] | None = None, *, limit: int = 30, float_digits: int = 2
) -> str:
    """A frame as a GitHub Markdown table whose cells show as they are written, whatever they contain.

    Args:
        frame: any frame.
        columns: the columns to show, in order; all but `justification` if None.
        limit: rows shown at most; a line under the table counts the others.
        float_digits: decimals of floating-point numbers.

    Returns:
        The table, numbers aligned right, nulls as "–", line breaks as spaces.

    Raises:
        ValueError: `justification` was asked for (it may quote essays, which must not reach metadata), a column
            does not exist, or `limit` or `float_digits` is negative.
    """
    if limit < 0 or float_digits < 0:
        raise ValueError(f"limit ({limit}) and float_digits ({float_digits}) must not be negative")
    shown = [name for name in frame.columns if name != "justification"] if columns is None else list(columns)
    if "justification" in shown:
        raise ValueError("justifications may quote essays and are never shown in a table: leave the column out")
    if missing := [name for name in shown if name not in frame.columns]:
        raise ValueError(f"no column {', '.join(map(repr, missing))} in a frame with {', '.join(frame.columns)}")
    if not shown:
        return "(no columns)"
    rules = ["---:" if frame.schema[name].is_numeric() else "---" for name in shown]
    rows = [
        [_escape_markdown(_cell_text(value, float_digits)) for value in row]
        for row in frame.select(shown).head(limit).iter_rows()
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in ([_escape_markdown(name) for name in shown], rules, *rows)]
    if frame.is_empty():
        lines += ["", "(no rows)"]
    elif frame.height > limit:
        lines += ["", f"… and {frame.height - limit} more"]
    return "\n".join(lines)


def _cell_text(value: Any, float_digits: int) -> str:
    """A value as people read it. Lists are joined by commas, the fields of a struct by spaces."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        text = f"{value:.{float_digits}f}"
        return text.removeprefix("-") if text.startswith("-") and not text.strip("-0.") else text
    if isinstance(value, Mapping):
        return " ".join(_cell_text(field, float_digits) for field in value.values())
    if isinstance(value, list | tuple):
        return ", ".join(_cell_text(item, float_digits) for item in value)
    return str(value)


def _escape_markdown(text: str) -> str:
    """`text` such that GitHub Markdown shows exactly it, on one line. Underscores inside words need no escape."""
    one_line = " ".join(text.splitlines())
    escaped = re.sub(r"([\\|`*~\[\]])", r"\\\1", one_line)
    escaped = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# What the pictures of the scale and of the graph share: the essays, their grades and the grades' colours


@dataclass(frozen=True)
class _Essay:
    """An essay as drawn: `grade` is the expert grade of an anchor and the projected one of a student."""

    essay_id: str
    is_anchor: bool
    rank: int | None
    score: float
    se: float | None
    grade: str | None
    confidence: float | None
    label: str | None


def _drawn_essays(scores: pl.DataFrame, projections: pl.DataFrame) -> list[_Essay]:
    """The essays that have a score, best first."""
    projected = {row["essay_id"]: row for row in projections.iter_rows(named=True)}
    essays = []
    for row in scores.iter_rows(named=True):
        if not _is_number(row["score"]):
            continue
        is_anchor = bool(row["is_anchor"])
        projection = projected.get(row["essay_id"], {})
        available = bool(projection.get("available"))
        essays.append(
            _Essay(
                essay_id=row["essay_id"],
                is_anchor=is_anchor,
                rank=row["rank"],
                score=row["score"],
                se=row["se"] if _is_number(row["se"]) else None,
                grade=row["known_grade"] if is_anchor else projection.get("grade") if available else None,
                confidence=projection.get("confidence") if available and not is_anchor else None,
                label=projection.get("label") if available and not is_anchor else None,
            )
        )
    return sorted(essays, key=lambda essay: (-essay.score, essay.essay_id))


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _scale_order(projections: pl.DataFrame, essays: Sequence[_Essay]) -> list[str]:
    """The grades in scale order, as `probabilities` lists them.

    Grades it does not list (all of them when no grade could be projected) follow in the order of their essays' mean
    scores, which is the best that the data tell about a scale nobody named.
    """
    order: dict[str, None] = {}
    for row in projections.iter_rows(named=True):
        order.update(dict.fromkeys(entry["grade"] for entry in row["probabilities"] or []))
    members: dict[str, list[float]] = {}
    for essay in essays:
        if essay.grade is not None and essay.grade not in order:
            members.setdefault(essay.grade, []).append(essay.score)
    return [*order, *sorted(members, key=lambda grade: (float(np.mean(members[grade])), grade))]


def _grade_colours(grades: Sequence[str]) -> dict[str, str]:
    """A colour per grade, dark for the first to light for the last; viridis without its palest end."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    palette = colormaps["viridis"]
    last = max(len(grades) - 1, 1)
    return {grade: to_hex(palette(0.93 * index / last)) for index, grade in enumerate(grades)}


def _scale_notes(scores: pl.DataFrame, projections: pl.DataFrame, essays: Sequence[_Essay]) -> list[str]:
    """What a reader must know before trusting the scores and grades drawn."""
    notes = []
    if scoreless := scores.height - len(essays):
        notes.append(f"{_count(scoreless, 'essay')} without a score: not drawn.")
    if (parts := scores["component"].drop_nulls().n_unique()) > 1:
        notes.append(
            f"The judged pairs fall into {parts} parts that no judgment connects: scores compare only within a part."
        )
    students = [essay for essay in essays if not essay.is_anchor]
    if ungraded := sum(essay.grade is None for essay in students):
        share = (
            "No student has a grade" if ungraded == len(students) else f"{_count(ungraded, 'student')} without a grade"
        )
        notes.append(f"{share}. {_common_reason(projections)}")
    return notes


def _common_reason(projections: pl.DataFrame) -> str:
    """Why grades are missing, in the words of the projection that gives the reason most often."""
    reasons = Counter(
        row["reason"] for row in projections.iter_rows(named=True) if not row["available"] and row["reason"]
    )
    if not reasons:
        return "No grade has been projected."
    text = min(reasons, key=lambda reason: (-reasons[reason], reason))
    return text if text.endswith(".") else f"{text}."


def _count(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"


# Setting type: measuring, shortening and wrapping text before the figure and its height exist


def _font(size: float, *, bold: bool = False) -> "FontProperties":
    from matplotlib.font_manager import FontProperties

    return FontProperties(family=_FONT, size=size, weight="bold" if bold else "normal")


def _without_middle(text: str, kept: int) -> str:
    return f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"


class _Ruler:
    """Measures text in inches."""

    def __init__(self) -> None:
        from matplotlib.backends.backend_agg import RendererAgg

        renderer: Any = RendererAgg
        self._renderer = renderer(1, 1, _DPI)

    def width(self, text: str, size: float, *, bold: bool = False) -> float:
        """Width of one line of text."""
        measure: Any = self._renderer.get_text_width_height_descent
        return float(measure(text, _font(size, bold=bold), ismath=False)[0]) / _DPI

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


class _Sheet:
    """A figure in the making: what stands above the drawing is collected first, because the height follows from it."""

    def __init__(self, title: str, *, simulated: bool) -> None:
        self.ruler = _Ruler()
        self._height = _MARGIN
        self._draw: list[Callable[[Figure, float], object]] = []
        self._lines(title, 13.0, _INK, bold=True)
        if simulated:
            self._height += 0.02
            self._lines(SIMULATED_MARK, 10.0, _ALARM, bold=True)
        self._height += 0.04

    def note(self, text: str) -> None:
        """Add a paragraph of small print."""
        self._lines(text, _NOTE_SIZE, _QUIET)

    def _lines(self, text: str, size: float, colour: str, *, bold: bool = False) -> None:
        for line in self.ruler.wrap(text, size, _WIDTH - 2 * _MARGIN, bold=bold):
            self._text(line, _MARGIN, size, colour, bold=bold)
            self._height += 1.35 * size / 72

    def _text(self, text: str, x: float, size: float, colour: str, *, bold: bool = False, lower: float = 0.0) -> None:
        above = self._height + lower

        def draw(figure: "Figure", height: float) -> None:
            place = (x / _WIDTH, 1 - above / height)
            font = _font(size, bold=bold)
            figure.text(*place, text, va="top", color=colour, fontproperties=font, parse_math=False)

        self._draw.append(draw)

    def legend(self, heading: str, entries: Sequence[tuple["Artist", str]]) -> None:
        """Add a legend in reading order, on as many lines as it needs."""
        if not entries:
            return
        self._height += 0.06
        indent = _MARGIN + 0.72
        room = _WIDTH - _MARGIN - indent
        self._text(heading, _MARGIN, _LABEL_SIZE, _QUIET, lower=0.012)
        lines: list[list[tuple[Artist, str]]] = [[]]
        used = 0.0
        for artist, label in entries:
            short = self.ruler.shorten(label, _LABEL_SIZE, room / 2)
            needed = self.ruler.width(short, _LABEL_SIZE) + 3.4 * _LABEL_SIZE / 72
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
            _legend(figure, entries, "upper left", (indent / _WIDTH, 1 - (above + 0.005) / height))

        self._draw.append(draw)

    def figure(self, below: float) -> "Figure":
        """The figure with `below` inches of room under what was collected."""
        from matplotlib.figure import Figure

        height = self._height + below
        figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor="white")
        for draw in self._draw:
            draw(figure, height)
        return figure

    def message(self, text: str) -> "Figure":
        """The figure when there is nothing to draw: `text` says why."""
        below = 1.3
        figure = self.figure(below)
        lines = self.ruler.wrap(text, 11.0, _WIDTH - 8 * _MARGIN)
        place = (0.5, 0.5 * below / figure.get_figheight())
        font = _font(11.0)
        figure.text(
            *place, "\n".join(lines), ha="center", va="center", color=_INK, fontproperties=font, parse_math=False
        )
        return figure


def _legend(owner: Any, entries: Sequence[tuple["Artist", str]], location: str, anchor: tuple[float, float]) -> None:
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
        prop=_font(_LABEL_SIZE),
        labelcolor=_INK,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _axes(figure: "Figure", left: float, bottom: float, width: float, height: float) -> "Axes":
    """Axes placed in inches from the lower left corner, with quiet ticks and no box."""
    tall = figure.get_figheight()
    axes = figure.add_axes((left / _WIDTH, bottom / tall, width / _WIDTH, height / tall), facecolor="none")
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_RULE)
    axes.tick_params(length=0, labelsize=_LABEL_SIZE, labelcolor=_QUIET, labelfontfamily=_FONT, pad=4)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_plain_number)
    axes.set_axisbelow(True)
    return axes


def _plain_number(value: float, _position: float = 0) -> str:
    """A tick label without offsets, powers or mathematical typesetting."""
    return f"{value:.6g}".replace("-", "−") if abs(value) > 1e-12 else "0"


def _marker(shape: str, face: str, *, size: float = 7.0, edge: str = _INK) -> "Artist":
    """A legend's sample of a point."""
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="none", marker=shape, markersize=size, markerfacecolor=face, markeredgecolor=edge)


def _essay_legends(sheet: _Sheet, essays: Sequence[_Essay], colours: Mapping[str, str]) -> None:
    """The legend of marks, and that of grades in scale order."""
    marks = [
        (any(essay.is_anchor for essay in essays), _marker("D", "#b8bec6", size=6.0), "anchor, expert grade"),
        (
            any(not essay.is_anchor and essay.grade is not None for essay in essays),
            _marker("o", "#b8bec6"),
            "student, projected grade",
        ),
        (any(essay.grade is None for essay in essays), _marker("o", _UNGRADED), "no grade"),
    ]
    sheet.legend("Essays", [(artist, label) for present, artist, label in marks if present])
    sheet.legend("Grades", [(_marker("s", colour), grade) for grade, colour in colours.items()])


def _png(figure: "Figure") -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = BytesIO()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(buffer)
    return buffer.getvalue()


# The scale


def _forest_figure(scores: pl.DataFrame, projections: pl.DataFrame, *, title: str, simulated: bool) -> "Figure":
    """The figure behind `forest_plot`: points `anchors` and `students`, bars `intervals`, by gid."""
    sheet = _Sheet(title, simulated=simulated)
    if scores.is_empty():
        return sheet.message("Nothing to draw: no essay has been scored.")
    essays = _drawn_essays(scores, projections)
    if not essays:
        return sheet.message("Nothing to draw: none of the essays has a score.")
    colours = _grade_colours(_scale_order(projections, essays))
    count = len(essays)
    # few essays stand wide apart; many share a height that a page can hold
    pitch = min(max(3.0 / count, 0.21), 0.34, _FOREST_BODY_MAX / count)
    stride = 1 if count <= _FOREST_ROWS_IN_FULL else math.ceil(_FOREST_LABEL_PITCH / pitch)
    labelled = _labelled_rows([essay.is_anchor for essay in essays], stride)

    sheet.note(f"Bradley–Terry score with its 95 % interval (±{INTERVAL} standard errors), best on top.")
    for note in [*_scale_notes(scores, projections, essays), *_interval_notes(scores, essays)]:
        sheet.note(note)
    if len(labelled) < count:
        sheet.note(f"All {count} essays are drawn, {len(labelled)} of them labelled.")
    _essay_legends(sheet, essays, colours)

    body, heading, foot = pitch * count, 0.38 if count > 30 else 0.3, 0.62
    figure = sheet.figure(heading + body + foot)
    left, right = _write_rows(figure, sheet.ruler, essays, labelled, pitch, foot)
    _draw_intervals(_axes(figure, left, foot, right - left, body), essays, colours, pitch)
    return figure


def _write_rows(
    figure: "Figure", ruler: _Ruler, essays: Sequence[_Essay], labelled: Sequence[int], pitch: float, foot: float
) -> tuple[float, float]:
    """Write rank, id, grade and confidence of the labelled rows; where the axes may begin and end between them."""
    count, tall = len(essays), figure.get_figheight()
    ids = {row: ruler.shorten(essays[row].essay_id, _LABEL_SIZE, 2.1) for row in labelled}
    grades = {row: ruler.shorten(essays[row].grade or "–", _LABEL_SIZE, 1.2) for row in labelled}
    id_width = max(ruler.width(text, _LABEL_SIZE) for text in [*ids.values(), "essay"])
    grade_width = max(ruler.width(text, _LABEL_SIZE, bold=True) for text in [*grades.values(), "grade"])
    rank_right = _MARGIN + ruler.width(str(count), _LABEL_SIZE) + 0.04
    id_left = rank_right + 0.12
    confidence_left = _WIDTH - _MARGIN - ruler.width("100 % HIGH", _LABEL_SIZE) - 0.08
    grade_left = confidence_left - grade_width - 0.14

    def write(x: float, row: float, text: str, colour: str = _INK, *, align: Any = "left", bold: bool = False) -> None:
        place = (x / _WIDTH, (foot + (count - row - 0.5) * pitch) / tall)
        font = _font(_LABEL_SIZE, bold=bold)
        figure.text(*place, text, ha=align, va="center_baseline", color=colour, fontproperties=font, parse_math=False)

    # clear of the axis labels that stand above a tall picture
    heading_row = -0.5 - (0.2 if count > 30 else 0.13) / pitch
    write(id_left, heading_row, "essay", _QUIET)
    for row in labelled:
        rank = essays[row].rank
        write(rank_right, row, "" if rank is None else str(rank), _QUIET, align="right")
        write(id_left, row, ids[row])
    if all(essay.grade is None for essay in essays):
        return id_left + id_width + 0.12, _WIDTH - 2 * _MARGIN
    write(grade_left, heading_row, "grade", _QUIET)
    write(confidence_left, heading_row, "confidence", _QUIET)
    for row in labelled:
        write(grade_left, row, grades[row], bold=essays[row].is_anchor)
        write(confidence_left, row, _confidence_text(essays[row]), _QUIET)
    return id_left + id_width + 0.12, grade_left - 0.14


def _labelled_rows(is_anchor: Sequence[bool], stride: int) -> list[int]:
    """The rows whose labels are shown, at least `stride` apart: anchors, the ends, then others from the top."""
    chosen: list[int] = []
    ends = (0, len(is_anchor) - 1)
    for row in sorted(range(len(is_anchor)), key=lambda row: (not is_anchor[row], row not in ends, row)):
        if all(abs(row - other) >= stride for other in chosen):
            chosen.append(row)
    return sorted(chosen)


def _interval_notes(scores: pl.DataFrame, essays: Sequence[_Essay]) -> list[str]:
    notes = []
    if missing := sum(essay.se is None for essay in essays):
        notes.append(f"{_count(missing, 'essay')} without a standard error: drawn without an interval.")
    capped = scores.filter(pl.col("se_uncapped") > pl.col("se") + 1e-9).height
    if capped:
        notes.append(f"The standard error of {_count(capped, 'essay')} is capped: the interval is longer than drawn.")
    return notes


def _confidence_text(essay: _Essay) -> str:
    if essay.is_anchor:
        return "expert"
    if not _is_number(essay.confidence):
        return ""
    return f"{essay.confidence:.0%} {essay.label or ''}".replace("%", " %").strip()


def _draw_intervals(axes: "Axes", essays: Sequence[_Essay], colours: Mapping[str, str], pitch: float) -> None:
    """Points and bars of the forest plot, one row each, row 0 on top."""
    count = len(essays)
    low = min(essay.score - INTERVAL * (essay.se or 0.0) for essay in essays)
    high = max(essay.score + INTERVAL * (essay.se or 0.0) for essay in essays)
    pad = 0.04 * (high - low) or 0.5
    axes.set_xlim(low - pad, high + pad)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_yticks([])
    axes.grid(axis="x", color=_RULE, linewidth=0.6)
    axes.axvline(0, color=_QUIET, linewidth=0.8, zorder=1)
    axes.set_xlabel(
        "Bradley–Terry score (logits), better to the right",
        fontproperties=_font(_LABEL_SIZE),
        color=_QUIET,
        parse_math=False,
        labelpad=5,
    )
    axes.tick_params(axis="x", labeltop=count > 30)
    if count <= _FOREST_ROWS_IN_FULL:
        for row in range(0, count, 2):
            axes.axhspan(row - 0.5, row + 0.5, color=_STRIPE, linewidth=0, zorder=0)
    barred = [(row, essay) for row, essay in enumerate(essays) if essay.se is not None]
    axes.hlines(
        [row for row, _ in barred],
        [essay.score - INTERVAL * (essay.se or 0.0) for _, essay in barred],
        [essay.score + INTERVAL * (essay.se or 0.0) for _, essay in barred],
        colors="#8b949e",
        linewidth=min(1.6, pitch * 72 * 0.35),
        zorder=2,
        clip_on=False,
    ).set_gid("intervals")
    crowded = count > _FOREST_ROWS_IN_FULL
    size = 4.4 if crowded else 7.5
    for gid, shape, is_anchor in (("students", "o", False), ("anchors", "D", True)):
        members = [(row, essay) for row, essay in enumerate(essays) if essay.is_anchor is is_anchor]
        if members:
            axes.scatter(
                [essay.score for _, essay in members],
                [row for row, _ in members],
                s=size**2 * (1.4 if crowded and is_anchor else 1.0),
                marker=shape,
                c=[_essay_colour(essay, colours) for _, essay in members],
                edgecolors=_INK,
                linewidths=0.4 if crowded else 0.7,
                zorder=4 if is_anchor else 3,
                clip_on=False,
            ).set_gid(gid)


def _essay_colour(essay: _Essay, colours: Mapping[str, str]) -> str:
    return _UNGRADED if essay.grade is None else colours[essay.grade]


# The comparison graph


def _graph_figure(
    scores: pl.DataFrame, comparisons: pl.DataFrame, projections: pl.DataFrame, *, title: str, simulated: bool
) -> "Figure":
    """The figure behind `comparison_graph_picture`: points `anchors` and `students`, lines `pairs`, by gid."""
    sheet = _Sheet(title, simulated=simulated)
    if scores.is_empty():
        return sheet.message("Nothing to draw: no essay has been scored.")
    essays = _drawn_essays(scores, projections)
    if not essays:
        return sheet.message("Nothing to draw: none of the essays has a score.")
    if comparisons.is_empty():
        return sheet.message("Nothing to draw: no comparison has been planned.")
    statuses = Counter(comparisons["status"].to_list())
    pairs = _judged_pairs(comparisons, {essay.essay_id for essay in essays})
    if not pairs:
        others = ", ".join(f"{statuses[status]} {status}" for status in ComparisonStatus if statuses[status])
        return sheet.message(f"Nothing to draw: no pair of scored essays has a judgment (comparisons: {others}).")
    colours = _grade_colours(_scale_order(projections, essays))

    judgments = sum(pairs.values())
    sheet.note(
        f"{_count(judgments, 'judgment')} of {_count(len(pairs), 'pair')} among {_count(len(essays), 'essay')}. "
        "Left to right: the score. The height only keeps essays apart."
    )
    if failed := statuses[ComparisonStatus.FAILED]:
        sheet.note(f"{_count(failed, 'comparison')} failed: not drawn.")
    names = _node_names(essays, sheet.ruler)
    if any(name == f"rank {essay.rank}" for essay, name in zip(essays, names, strict=True)):
        sheet.note("Essays whose ids are too long to tell apart here are shown by their rank.")
    if len(essays) > 30:
        sheet.note("Where essays stand close together, labels are left out.")
    for note in _scale_notes(scores, projections, essays):
        sheet.note(note)
    _essay_legends(sheet, essays, colours)
    alpha = min(max(5.0 / math.sqrt(len(pairs)), 0.06), 0.5)
    sheet.legend("Pairs", _width_samples(max(pairs.values())))

    height = min(max(3.2, 1.6 * math.sqrt(len(essays))), 7.6)
    foot = 0.62
    figure = sheet.figure(0.12 + height + foot)
    width = _WIDTH - 2 * _MARGIN
    axes = _axes(figure, _MARGIN, foot, width, height)
    places = _node_places(essays, axes, width, height)
    _draw_pairs(axes, essays, places, pairs, alpha)
    _draw_nodes(axes, essays, places, colours)
    _write_node_labels(axes, sheet.ruler, essays, names, places, colours, (width, height))
    return figure


def _judged_pairs(comparisons: pl.DataFrame, essay_ids: set[str]) -> dict[tuple[str, str], int]:
    """Judgments per unordered pair of the given essays, ordered by pair."""
    counts: Counter[tuple[str, str]] = Counter()
    for essay_a, essay_b, status in comparisons.select("essay_a", "essay_b", "status").iter_rows():
        if status == ComparisonStatus.JUDGED and essay_a in essay_ids and essay_b in essay_ids:
            counts[min(essay_a, essay_b), max(essay_a, essay_b)] += 1
    return dict(sorted(counts.items()))


def _pair_width(judgments: int) -> float:
    """Line width in points; from 8 judgments on it grows no more."""
    return 0.7 + 0.5 * (min(judgments, 8) - 1)


def _width_samples(most: int) -> list[tuple["Artist", str]]:
    from matplotlib.lines import Line2D

    shown = sorted({1, min(most, 8), (1 + min(most, 8)) // 2})
    labels = {number: _count(number, "judgment") for number in shown}
    if most > 8:
        labels[8] = "8 judgments or more"
    return [
        (Line2D([], [], color=_QUIET, linewidth=_pair_width(number), solid_capstyle="butt"), labels[number])
        for number in shown
    ]


def _node_radius(count: int, *, is_anchor: bool) -> float:
    """From the centre of a node to its outermost point. In a crowd only anchors stay large enough for a grade."""
    if count <= 30:
        return 0.17 if is_anchor else 0.135
    if count <= 80:
        return 0.15 if is_anchor else 0.11
    return 0.125 if is_anchor else 0.05


def _node_places(essays: Sequence[_Essay], axes: "Axes", width: float, height: float) -> np.ndarray:
    """Where the nodes stand, in inches within the axes, shape (n, 2): x from the score, y away from all others.

    Anchors are placed first, then students, each from the best down; each takes, of evenly spaced heights, the one
    with most room around it. Sideways, room counts a third where labels are written, which are wider than high.
    """
    scores = np.array([essay.score for essay in essays])
    radii = np.array([_node_radius(len(essays), is_anchor=essay.is_anchor) for essay in essays])
    margin, edge = 0.62, 0.36
    low, spread = float(scores.min()), float(np.ptp(scores))
    per_inch = spread / (width - 2 * margin)
    left = low - margin * per_inch
    if spread < 1e-9:
        # one column, in the middle
        per_inch, left = 1.0, low - width / 2
    axes.set_xlim(left, left + width * per_inch)
    axes.set_ylim(0, height)
    lanes = np.linspace(edge, height - edge, 2 * max(12, min(len(essays), 60)) + 1)
    narrowing = 3.0 if len(essays) <= 80 else 1.2
    golden = (math.sqrt(5) - 1) / 2
    places = np.column_stack([(scores - left) / per_inch, np.zeros(len(essays))])
    placed: list[int] = []
    for index in sorted(range(len(essays)), key=lambda index: (not essays[index].is_anchor, index)):
        # among equally good heights, the golden ratio's sequence never repeats itself
        wanted = edge + (height - 2 * edge) * math.modf(0.5 + len(placed) * golden)[0]
        gain = -1e-3 * np.abs(lanes - wanted)
        if placed:
            sideways = (places[placed, 0, None] - places[index, 0]) / narrowing
            room = np.hypot(sideways, places[placed, 1, None] - lanes) - radii[placed, None]
            gain = gain + room.min(axis=0).clip(max=height / 3)
        places[index, 1] = lanes[int(np.argmax(gain))]
        placed.append(index)
    return places


def _draw_pairs(
    axes: "Axes",
    essays: Sequence[_Essay],
    places: np.ndarray,
    pairs: Mapping[tuple[str, str], int],
    alpha: float,
) -> None:
    from matplotlib.collections import LineCollection

    at = {essay.essay_id: (essay.score, float(y)) for essay, y in zip(essays, places[:, 1], strict=True)}
    lines = LineCollection(
        [(at[one], at[other]) for one, other in pairs],
        linewidths=[_pair_width(judgments) for judgments in pairs.values()],
        colors=_QUIET,
        alpha=alpha,
        zorder=2,
    )
    lines.set_gid("pairs")
    axes.add_collection(lines, autolim=False)


def _draw_nodes(axes: "Axes", essays: Sequence[_Essay], places: np.ndarray, colours: Mapping[str, str]) -> None:
    axes.set_yticks([])
    axes.grid(axis="x", color=_RULE, linewidth=0.6)
    axes.set_xlabel(
        "Bradley–Terry score (logits), better to the right",
        fontproperties=_font(_LABEL_SIZE),
        color=_QUIET,
        parse_math=False,
        labelpad=5,
    )
    for gid, shape, is_anchor in (("students", "o", False), ("anchors", "D", True)):
        members = [index for index, essay in enumerate(essays) if essay.is_anchor is is_anchor]
        if members:
            radius = _node_radius(len(essays), is_anchor=is_anchor)
            # matplotlib measures a diamond by its side
            size = radius * (math.sqrt(2) if is_anchor else 2)
            axes.scatter(
                [essays[index].score for index in members],
                places[members, 1],
                s=(72 * size) ** 2,
                marker=shape,
                c=[_essay_colour(essays[index], colours) for index in members],
                edgecolors=_INK,
                linewidths=1.3 if is_anchor else 0.6,
                zorder=4 if is_anchor else 3,
            ).set_gid(gid)


def _write_node_labels(
    axes: "Axes",
    ruler: _Ruler,
    essays: Sequence[_Essay],
    names: Sequence[str],
    places: np.ndarray,
    colours: Mapping[str, str],
    size: tuple[float, float],
) -> None:
    """Grades inside nodes where they fit, and names beside them where they cover neither a node nor another name."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Affine2D

    inches = Affine2D().scale(1 / size[0], 1 / size[1]) + axes.transAxes
    radii = np.array([_node_radius(len(essays), is_anchor=essay.is_anchor) for essay in essays])
    boxes = np.column_stack([places - radii[:, None], places + radii[:, None]])
    line = 1.25 * _NODE_SIZE / 72

    def write(x: float, y: float, text: str, colour: str, *, bold: bool = False, **more: Any) -> None:
        axes.text(
            x,
            y,
            text,
            transform=inches,
            ha="center",
            va="center_baseline",
            color=colour,
            fontproperties=_font(_NODE_SIZE, bold=bold),
            parse_math=False,
            zorder=5,
            **more,
        )

    # anchors first: they are what ties the picture to grades
    for index in sorted(range(len(essays)), key=lambda index: (not essays[index].is_anchor, index)):
        essay, (x, y), name = essays[index], places[index], names[index]
        if essay.grade is not None:
            half = np.array([ruler.width(essay.grade, _NODE_SIZE), line]) / 2
            covered = not _is_free(
                np.concatenate([places[index] - half, places[index] + half]), np.delete(boxes, index, 0)
            )
            if half[0] <= 0.78 * radii[index] and not covered:
                write(x, y, essay.grade, _readable_on(colours[essay.grade]), bold=essay.is_anchor)
            elif essay.is_anchor:
                name = f"{ruler.shorten(essay.grade, _NODE_SIZE, _NODE_LABEL_WIDTH)} · {name}"
        # a little wider than the text, so that neighbours do not read as one word
        label = (ruler.width(name, _NODE_SIZE) + 0.06, line)
        spot = _free_spot((x, y), label, radii[index], boxes, size)
        if spot is not None:
            boxes = np.vstack([boxes, spot])
            halo = [withStroke(linewidth=2.2, foreground="white")]
            write((spot[0] + spot[2]) / 2, (spot[1] + spot[3]) / 2, name, _INK, path_effects=halo)


def _node_names(essays: Sequence[_Essay], ruler: _Ruler) -> list[str]:
    """What is written beside each node: the id, an anchor's reference, or the rank where a short id is ambiguous."""
    names = [
        ruler.shorten(
            _anchor_reference(essay.essay_id) if essay.is_anchor else essay.essay_id, _NODE_SIZE, _NODE_LABEL_WIDTH
        )
        for essay in essays
    ]
    times = Counter(names)
    return [
        name if times[name] == 1 or essay.rank is None else f"rank {essay.rank}"
        for essay, name in zip(essays, names, strict=True)
    ]


def _anchor_reference(essay_id: str) -> str:
    """The reference an anchor was registered under: ANCHOR_<reference>_<hash> without its ends."""
    match = re.fullmatch(r"ANCHOR_(.+)_[0-9a-f]{8}", essay_id)
    return match.group(1) if match else essay_id


def _free_spot(
    centre: tuple[float, float], label: tuple[float, float], half: float, boxes: np.ndarray, size: tuple[float, float]
) -> np.ndarray | None:
    """The first of below, above, right and left of a node where a label overlaps no box and stays on the page."""
    (x, y), (width, height) = centre, label
    for left, bottom in (
        (x - width / 2, y - half - height - 0.02),
        (x - width / 2, y + half + 0.02),
        (x + half, y - height / 2),
        (x - half - width, y - height / 2),
    ):
        spot = np.array([left, bottom, left + width, bottom + height])
        on_page = left >= 0 and bottom >= 0 and left + width <= size[0] and bottom + height <= size[1]
        if on_page and _is_free(spot, boxes):
            return spot
    return None


def _is_free(spot: np.ndarray, boxes: np.ndarray) -> bool:
    """Whether a box (left, bottom, right, top) overlaps none of `boxes`, shape (n, 4)."""
    apart = (boxes[:, 2:] <= spot[:2] + 1e-9).any(axis=1) | (boxes[:, :2] >= spot[2:] - 1e-9).any(axis=1)
    return bool(apart.all())


def _readable_on(colour: str) -> str:
    """Black or white, whichever stands out more on `colour` (relative luminance, WCAG 2)."""
    from matplotlib.colors import to_rgb

    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > 0.179 else "#ffffff"


# The wave history


def _wave_figure(waves: pl.DataFrame, *, threshold: float, budget: int, title: str, simulated: bool) -> "Figure":
    """The figure behind `wave_history_picture`: a strip of decisions over three panels, in this order of axes."""
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    sheet = _Sheet(title, simulated=simulated)
    if waves.is_empty():
        return sheet.message("Nothing to draw: no wave has been planned.")
    ordered = waves.sort("wave")
    sheet.note(_ending(ordered))
    modes = [mode for mode in PairMode if mode in ordered["pair_mode"].to_list()]
    sheet.legend("Waves", [(Patch(facecolor=_BAND[mode], edgecolor=_RULE), mode.value) for mode in modes])
    decisions = [decision for decision in _DECISION_MARKS if decision in ordered["decision"].to_list()]
    sheet.legend("Decisions", [(_decision_marker(decision), _DECISION_MARKS[decision].words) for decision in decisions])

    left, right, foot, gap = 0.72, _MARGIN + 0.05, 0.55, 0.38
    heights = (0.24, 1.65, 1.4, 1.65)
    top = sum(heights) + gap * (len(heights) - 1) + foot
    figure = sheet.figure(0.1 + top)
    panels = []
    for height in heights:
        panels.append(_axes(figure, left, top - height, _WIDTH - left - right, height))
        top -= height + gap
    numbers = ordered["wave"].to_list()
    for axes in panels:
        axes.set_xlim(numbers[0] - 0.5, numbers[-1] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=13, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
        axes.tick_params(axis="x", labelbottom=axes is panels[-1])
        for mode, members in groupby(ordered.iter_rows(named=True), key=lambda row: row["pair_mode"]):
            run = [row["wave"] for row in members]
            axes.axvspan(run[0] - 0.5, run[-1] + 0.5, color=_BAND.get(mode, _STRIPE), linewidth=0, zorder=0)
    _draw_decisions(panels[0], ordered)
    _draw_change(panels[1], ordered, threshold)
    _draw_standard_errors(panels[2], ordered)
    _draw_spending(panels[3], ordered, budget)
    panels[3].set_xlabel("wave", fontproperties=_font(_LABEL_SIZE), color=_QUIET, labelpad=4)
    return figure


@dataclass(frozen=True)
class _DecisionMark:
    words: str
    shape: str
    face: str
    edge: str


_DECISION_MARKS: Final = {
    Decision.REQUEST_MORE_COMPARISONS: _DecisionMark("more comparisons", ">", "#b8bec6", _QUIET),
    Decision.WAIT_FOR_CALLBACKS: _DecisionMark("wait for answers", "o", "#ffffff", _INK),
    Decision.FINALIZE_SCORING: _DecisionMark("stop and score", "s", _BLUE, _INK),
    Decision.FINALIZE_FAILURE: _DecisionMark("stop as failed", "X", _VERMILION, _INK),
}


def _decision_marker(decision: Decision) -> "Artist":
    mark = _DECISION_MARKS[decision]
    return _marker(mark.shape, mark.face, edge=mark.edge)


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


def _panel_heading(axes: "Axes", text: str) -> None:
    axes.set_title(text, loc="left", fontproperties=_font(_NOTE_SIZE, bold=True), color=_INK, pad=5)


def _panel_legend(axes: "Axes", entries: Sequence[tuple["Artist", str]]) -> None:
    """A legend on the line of the panel's heading, at its right end."""
    _, height = axes.get_window_extent().size
    _legend(axes, entries, "lower right", (1.0, 1 + 0.05 * _DPI / height))


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
        (wave, change) for wave, change in waves.select("wave", "max_score_change").iter_rows() if _is_number(change)
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
    axes.grid(axis="y", color=_RULE, linewidth=0.6)
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
        entries.append((_marker("v", "#ffffff", size=5.5, edge=_BLUE), "no change"))
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
    axes.yaxis.set_major_formatter(_plain_number)


def _draw_standard_errors(axes: "Axes", waves: pl.DataFrame) -> None:
    _panel_heading(axes, "Standard error (logits)")
    axes.grid(axis="y", color=_RULE, linewidth=0.6)
    top = 0.0
    for column, colour, style in (("max_se", _VERMILION, "--"), ("mean_se", _BLUE, "-")):
        values = [(wave, value) for wave, value in waves.select("wave", column).iter_rows() if _is_number(value)]
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
    axes.grid(axis="y", color=_RULE, linewidth=0.6)
    for heights, floor, colour, gid in ((judged, 0 * judged, _SKY, "judged"), (failed, judged, _ORANGE, "failed")):
        for bar in axes.bar(
            numbers, heights, bottom=floor, width=min(0.72, 0.18 * len(numbers)), color=colour, linewidth=0, zorder=2
        ):
            bar.set_gid(gid)
    entries: list[tuple[Artist, str]] = [(Patch(color=_SKY), "judged"), (Patch(color=_ORANGE), "failed")]
    if budget > 0:
        axes.axhline(budget, color=_INK, linewidth=1.2, linestyle=(0, (4, 2)), zorder=3).set_gid("budget")
        sample = Line2D([], [], color=_INK, linewidth=1.2, linestyle=(0, (2.5, 1.2)))
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


def _say(axes: "Axes", text: str) -> None:
    """Write in the middle of an empty panel why it is empty."""
    axes.text(
        0.5,
        0.5,
        text,
        transform=axes.transAxes,
        ha="center",
        va="center",
        color=_QUIET,
        fontproperties=_font(_NOTE_SIZE),
        parse_math=False,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2},
    )
