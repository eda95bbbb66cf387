"""The comparison graph: essays as nodes, judged pairs as lines between them, and where nodes and their names stand.

What it shares with the scale is in `essays`, the page it stands on in `sheet`.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from cj_pipeline.core.models import ComparisonStatus
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
from cj_pipeline.reports.figures.sheet import INK, MARGIN, QUIET, WIDTH, Ruler, Sheet, add_axes, png_bytes, typeface

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NODE_SIZE: Final = 6.8
_NODE_LABEL_WIDTH: Final = 1.1


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
    return png_bytes(graph_figure(scores, comparisons, projections, title=title, simulated=simulated))


def graph_figure(
    scores: pl.DataFrame, comparisons: pl.DataFrame, projections: pl.DataFrame, *, title: str, simulated: bool
) -> "Figure":
    """The figure behind `comparison_graph_picture`: points `anchors` and `students`, lines `pairs`, by gid."""
    sheet = Sheet(title, simulated=simulated)
    if scores.is_empty():
        return sheet.message("Nothing to draw: no essay has been scored.")
    essays = drawn_essays(scores, projections)
    if not essays:
        return sheet.message("Nothing to draw: none of the essays has a score.")
    if comparisons.is_empty():
        return sheet.message("Nothing to draw: no comparison has been planned.")
    statuses = Counter(comparisons["status"].to_list())
    pairs = _judged_pairs(comparisons, {essay.essay_id for essay in essays})
    if not pairs:
        others = ", ".join(f"{statuses[status]} {status}" for status in ComparisonStatus if statuses[status])
        return sheet.message(f"Nothing to draw: no pair of scored essays has a judgment (comparisons: {others}).")
    colours = grade_colours(scale_order(projections, essays))

    judgments = sum(pairs.values())
    sheet.note(
        f"{counted(judgments, 'judgment')} of {counted(len(pairs), 'pair')} among {counted(len(essays), 'essay')}. "
        "Left to right: the score. The height only keeps essays apart."
    )
    if failed := statuses[ComparisonStatus.FAILED]:
        sheet.note(f"{counted(failed, 'comparison')} failed: not drawn.")
    names = _node_names(essays, sheet.ruler)
    if any(name == f"rank {essay.rank}" for essay, name in zip(essays, names, strict=True)):
        sheet.note("Essays whose ids are too long to tell apart here are shown by their rank.")
    if len(essays) > 30:
        sheet.note("Where essays stand close together, labels are left out.")
    for note in scale_notes(scores, projections, essays):
        sheet.note(note)
    essay_legends(sheet, essays, colours)
    alpha = min(max(5.0 / math.sqrt(len(pairs)), 0.06), 0.5)
    sheet.legend("Pairs", _width_samples(max(pairs.values())))

    height = min(max(3.2, 1.6 * math.sqrt(len(essays))), 7.6)
    foot = 0.62
    figure = sheet.figure(0.12 + height + foot)
    width = WIDTH - 2 * MARGIN
    axes = add_axes(figure, MARGIN, foot, width, height)
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
    labels = {number: counted(number, "judgment") for number in shown}
    if most > 8:
        labels[8] = "8 judgments or more"
    return [
        (Line2D([], [], color=QUIET, linewidth=_pair_width(number), solid_capstyle="butt"), labels[number])
        for number in shown
    ]


def _node_radius(count: int, *, is_anchor: bool) -> float:
    """From the centre of a node to its outermost point. In a crowd only anchors stay large enough for a grade."""
    if count <= 30:
        return 0.17 if is_anchor else 0.135
    if count <= 80:
        return 0.15 if is_anchor else 0.11
    return 0.125 if is_anchor else 0.05


def _node_places(essays: Sequence[Essay], axes: "Axes", width: float, height: float) -> np.ndarray:
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
    essays: Sequence[Essay],
    places: np.ndarray,
    pairs: Mapping[tuple[str, str], int],
    alpha: float,
) -> None:
    from matplotlib.collections import LineCollection

    at = {essay.essay_id: (essay.score, float(y)) for essay, y in zip(essays, places[:, 1], strict=True)}
    lines = LineCollection(
        [(at[one], at[other]) for one, other in pairs],
        linewidths=[_pair_width(judgments) for judgments in pairs.values()],
        colors=QUIET,
        alpha=alpha,
        zorder=2,
    )
    lines.set_gid("pairs")
    axes.add_collection(lines, autolim=False)


def _draw_nodes(axes: "Axes", essays: Sequence[Essay], places: np.ndarray, colours: Mapping[str, str]) -> None:
    score_axis(axes)
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
                c=[essay_colour(essays[index], colours) for index in members],
                edgecolors=INK,
                linewidths=1.3 if is_anchor else 0.6,
                zorder=4 if is_anchor else 3,
            ).set_gid(gid)


def _node_names(essays: Sequence[Essay], ruler: Ruler) -> list[str]:
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


def _write_node_labels(
    axes: "Axes",
    ruler: Ruler,
    essays: Sequence[Essay],
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
            fontproperties=typeface(_NODE_SIZE, bold=bold),
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
            write((spot[0] + spot[2]) / 2, (spot[1] + spot[3]) / 2, name, INK, path_effects=halo)


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
