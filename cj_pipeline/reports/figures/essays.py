"""What the pictures of the scale and of the graph share: the essays, their grades and the grades' colours.

Where an essay stands in a picture belongs to the picture's own module.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from cj_pipeline.core.words import counted
from cj_pipeline.reports.figures.sheet import LABEL_SIZE, QUIET, RULE, Sheet, is_number, marker, typeface

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_UNGRADED: Final = "#ffffff"


@dataclass(frozen=True)
class Essay:
    """An essay as drawn: `grade` is the expert grade of an anchor and the projected one of a student."""

    essay_id: str
    is_anchor: bool
    rank: int | None
    score: float
    interval: tuple[float, float] | None
    grade: str | None
    confidence: float | None
    label: str | None


def drawn_essays(scores: pl.DataFrame, projections: pl.DataFrame) -> list[Essay]:
    """The essays that have a score, best first."""
    projected = {row["essay_id"]: row for row in projections.iter_rows(named=True)}
    essays = []
    for row in scores.iter_rows(named=True):
        if not is_number(row["score"]):
            continue
        is_anchor = bool(row["is_anchor"])
        projection = projected.get(row["essay_id"], {})
        available = bool(projection.get("available"))
        essays.append(
            Essay(
                essay_id=row["essay_id"],
                is_anchor=is_anchor,
                rank=row["rank"],
                score=row["score"],
                interval=_interval(row["score_low"], row["score_high"]),
                grade=row["known_grade"] if is_anchor else projection.get("grade") if available else None,
                confidence=projection.get("confidence") if available and not is_anchor else None,
                label=projection.get("label") if available and not is_anchor else None,
            )
        )
    return sorted(essays, key=lambda essay: (-essay.score, essay.essay_id))


def _interval(low: float | None, high: float | None) -> tuple[float, float] | None:
    if low is None or high is None or not (is_number(low) and is_number(high)):
        return None
    return low, high


def scale_order(projections: pl.DataFrame, essays: Sequence[Essay]) -> list[str]:
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


def grade_colours(grades: Sequence[str]) -> dict[str, str]:
    """A colour per grade, dark for the first to light for the last; viridis without its palest end."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    palette = colormaps["viridis"]
    last = max(len(grades) - 1, 1)
    return {grade: to_hex(palette(0.93 * index / last)) for index, grade in enumerate(grades)}


def essay_colour(essay: Essay, colours: Mapping[str, str]) -> str:
    """The colour of an essay's mark, given those of the grades."""
    return _UNGRADED if essay.grade is None else colours[essay.grade]


def scale_notes(scores: pl.DataFrame, projections: pl.DataFrame, essays: Sequence[Essay]) -> list[str]:
    """What a reader must know before trusting the scores and grades drawn."""
    notes = []
    if scoreless := scores.height - len(essays):
        notes.append(f"{counted(scoreless, 'essay')} without a score: not drawn.")
    if (parts := scores["component"].drop_nulls().n_unique()) > 1:
        notes.append(
            f"The judged pairs fall into {parts} parts that no judgment connects: scores compare only within a part."
        )
    students = [essay for essay in essays if not essay.is_anchor]
    if ungraded := sum(essay.grade is None for essay in students):
        share = (
            "No student has a grade" if ungraded == len(students) else f"{counted(ungraded, 'student')} without a grade"
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


def essay_legends(sheet: Sheet, essays: Sequence[Essay], colours: Mapping[str, str]) -> None:
    """The legend of marks, and that of grades in scale order."""
    marks = [
        (any(essay.is_anchor for essay in essays), marker("D", "#b8bec6", size=6.0), "anchor, expert grade"),
        (
            any(not essay.is_anchor and essay.grade is not None for essay in essays),
            marker("o", "#b8bec6"),
            "student, projected grade",
        ),
        (any(essay.grade is None for essay in essays), marker("o", _UNGRADED), "no grade"),
    ]
    sheet.legend("Essays", [(artist, label) for present, artist, label in marks if present])
    sheet.legend("Grades", [(marker("s", colour), grade) for grade, colour in colours.items()])


def score_axis(axes: "Axes") -> None:
    """The score runs from left to right, the one axis with a meaning common to both pictures."""
    axes.set_yticks([])
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_xlabel(
        "Bradley–Terry score (logits), better to the right",
        fontproperties=typeface(LABEL_SIZE),
        color=QUIET,
        parse_math=False,
        labelpad=5,
    )
