"""What a budget buys: accuracy of simulated exams over the number of judgments, in panels above one another."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from cj_pipeline.core.simulation import BudgetRow
from cj_pipeline.reports.figures.sheet import (
    LABEL_SIZE,
    MARGIN,
    QUIET,
    RULE,
    WIDTH,
    Sheet,
    add_axes,
    png_bytes,
    typeface,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE: Final = "#0072b2"
_PANELS: Final = (
    (("rmse",), "Root mean squared error of scores (logits)"),
    (("tau_b",), "Kendall's τ-b with the true order"),
    (("exact", "adjacent"), "Share of students with the true grade (lower) or one at most a step off (upper)"),
    (("rps",), "Ranked probability score of grades (steps)"),
)


def simulation_picture(rows: Sequence[BudgetRow], *, title: str, notes: Sequence[str]) -> bytes:
    """Accuracy over judgments, with 95 % intervals of the means.

    Args:
        rows: means by number of judgments, ascending.
        title: heading.
        notes: small print under it: what was simulated.

    Returns:
        A PNG, 1200 pixels wide. Measures that no row has get no panel.
    """
    return png_bytes(simulation_figure(rows, title=title, notes=notes))


def simulation_figure(rows: Sequence[BudgetRow], *, title: str, notes: Sequence[str]) -> "Figure":
    """The figure behind `simulation_picture`."""
    sheet = Sheet(title, simulated=True)
    for note in notes:
        sheet.note(note)
    panels = [
        (names, heading) for names, heading in _PANELS if any(name in row.measures for name in names for row in rows)
    ]
    if not panels:
        return sheet.message("Nothing to draw: the budget is smaller than the first wave.")
    left, right, foot, gap, height = 0.72, MARGIN + 0.05, 0.55, 0.45, 1.45
    top = len(panels) * height + (len(panels) - 1) * gap + foot
    figure = sheet.figure(0.35 + top)
    for number, (names, heading) in enumerate(panels):
        axes = add_axes(figure, left, top - height, WIDTH - left - right, height)
        top -= height + gap
        axes.set_title(heading, loc="left", fontproperties=typeface(LABEL_SIZE), color=QUIET, pad=5)
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        axes.set_xlim(0, 1.02 * rows[-1].judgments)
        for name in names:
            points = [(row.judgments, *row.measures[name]) for row in rows if name in row.measures]
            budgets, means, margins = (list(values) for values in zip(*points, strict=True))
            low = [mean - margin for mean, margin in zip(means, margins, strict=True)]
            high = [mean + margin for mean, margin in zip(means, margins, strict=True)]
            axes.fill_between(budgets, low, high, color=_BLUE, alpha=0.18, linewidth=0)
            axes.plot(budgets, means, color=_BLUE, linewidth=1.3, marker="o", markersize=3.2).pop().set_gid(name)
        if names[0] in ("exact", "tau_b"):
            axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.0)
        else:
            axes.set_ylim(0, None)
        axes.tick_params(axis="x", labelbottom=number == len(panels) - 1)
        if number == len(panels) - 1:
            axes.set_xlabel("judgments", fontproperties=typeface(LABEL_SIZE), color=QUIET, labelpad=4)
    return figure
