"""Judge against experts: every anchor's score over its expert grade.

What the figures mean is in `core.alignment`; the page the picture stands on in `sheet`.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from cj_pipeline.core.alignment import Alignment, AnchorAlignment
from cj_pipeline.reports.figures.sheet import (
    INK,
    LABEL_SIZE,
    MARGIN,
    QUIET,
    RULE,
    STRIPE,
    WIDTH,
    Sheet,
    add_axes,
    png_bytes,
    typeface,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INTERVAL: Final = 1.96
"""Half-width of the drawn intervals in standard errors: 95 % of a normal distribution."""

_BLUE: Final = "#0072b2"
_RED: Final = "#c0202e"
_HEIGHT: Final = 3.9
_ID_SIZE: Final = 7.0
_SPAN: Final = 0.84
"""Share of a grade's column that its anchors spread over."""


def alignment_picture(alignment: Alignment, *, title: str, simulated: bool) -> bytes:
    """Score with its 95 % interval over expert grade, direct inversions joined by lines.

    Args:
        alignment: what to draw.
        title: heading of the picture.
        simulated: whether the judgments were simulated, which the picture then says.

    Returns:
        A PNG, 1200 pixels wide. Labels leave out what all anchor ids begin with.
    """
    return png_bytes(alignment_figure(alignment, title=title, simulated=simulated))


def alignment_figure(alignment: Alignment, *, title: str, simulated: bool) -> "Figure":
    """The figure behind `alignment_picture`: points `anchors`, bars `intervals`, lines `inversions`, by gid."""
    tau, (low, high) = alignment.tau, alignment.tau.interval
    sheet = Sheet(title, simulated=simulated)
    sheet.note(
        f"Bradley–Terry score with its 95 % interval (±{INTERVAL} standard errors) over expert grade. A judge who "
        "agrees with the experts makes the points rise from left to right."
    )
    sheet.note(
        f"Kendall's τ-b {tau.tau_b:.2f} of at most {tau.attainable:.2f}; that of the true scores is between {low:.2f} "
        f"and {high:.2f} with 95 %."
    )
    if alignment.inversions:
        sheet.note(
            "A red line joins two anchors of which the lower-graded one won against the other: a thin line where it "
            "won no more than half of their judgments."
        )
    figure = sheet.figure(_HEIGHT)
    left, foot = 0.72, 0.55
    axes = add_axes(figure, left, foot, WIDTH - left - MARGIN, _HEIGHT - foot - 0.15)
    grades = _grades(alignment.anchors)
    places = _places(alignment.anchors, grades)
    crowds = Counter(anchor.grade for anchor in alignment.anchors)
    for column in range(0, len(grades), 2):
        axes.axvspan(column - 0.5, column + 0.5, color=STRIPE, linewidth=0, zorder=0)
    scores = {anchor.essay_id: anchor.score for anchor in alignment.anchors}
    for pair in alignment.inversions:
        rare = pair.lower_wins <= pair.higher_wins
        axes.plot(
            [places[pair.lower], places[pair.higher]],
            [scores[pair.lower], scores[pair.higher]],
            color=_RED,
            linewidth=0.7 if rare else 1.6,
            alpha=0.75,
            zorder=2,
            gid="inversions",
        )
    xs = [places[anchor.essay_id] for anchor in alignment.anchors]
    axes.vlines(
        xs,
        [anchor.score - INTERVAL * anchor.se for anchor in alignment.anchors],
        [anchor.score + INTERVAL * anchor.se for anchor in alignment.anchors],
        colors="#8b949e",
        linewidth=1.4,
        zorder=1,
    ).set_gid("intervals")
    axes.scatter(
        xs, list(scores.values()), s=42, marker="D", c=_BLUE, edgecolors=INK, linewidths=0.7, zorder=3
    ).set_gid("anchors")
    column_width = (WIDTH - left - MARGIN) / len(grades)
    for anchor, label in zip(alignment.anchors, _labels(alignment.anchors), strict=True):
        # under its interval, where neither another point nor a line to one is likely
        axes.annotate(
            sheet.ruler.shorten(label, _ID_SIZE, 0.95 * column_width * _SPAN / crowds[anchor.grade]),
            (places[anchor.essay_id], anchor.score - INTERVAL * anchor.se),
            xytext=(0, -3),
            textcoords="offset points",
            ha="center",
            va="top",
            color=INK,
            fontproperties=typeface(_ID_SIZE),
            parse_math=False,
            zorder=4,
        )
    axes.margins(y=0.09)
    axes.set_xlim(-0.5, len(grades) - 0.5)
    axes.set_xticks(range(len(grades)), grades)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_xlabel("expert grade, better to the right", fontproperties=typeface(LABEL_SIZE), color=QUIET, labelpad=5)
    axes.set_ylabel("Bradley–Terry score (logits)", fontproperties=typeface(LABEL_SIZE), color=QUIET, labelpad=5)
    return figure


def _grades(anchors: Sequence[AnchorAlignment]) -> list[str]:
    """The grades that anchors have, low to high."""
    ranks = {anchor.grade: anchor.expected_rank for anchor in anchors}
    return sorted(ranks, key=lambda grade: -ranks[grade])


def _places(anchors: Sequence[AnchorAlignment], grades: Sequence[str]) -> dict[str, float]:
    """Where each anchor stands: its grade's column, those of one grade side by side in order of their ids."""
    places = {}
    for column, grade in enumerate(grades):
        members = sorted(anchor.essay_id for anchor in anchors if anchor.grade == grade)
        step = _SPAN / len(members)
        for k, essay in enumerate(members):
            places[essay] = column + (k - (len(members) - 1) / 2) * step
    return places


def _labels(anchors: Sequence[AnchorAlignment]) -> list[str]:
    """Ids without what all of them begin with, up to a separator."""
    ids = [anchor.essay_id for anchor in anchors]
    first, last = min(ids), max(ids)
    shared = next((k for k, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    cut = max(first.rfind(separator, 0, shared) for separator in "_-.") + 1
    return [essay[cut:] for essay in ids]
