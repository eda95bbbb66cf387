"""Whether scores go with something they should not: length, or the group an essay belongs to, at the same expert grade.

Pure functions. Here: regressions of scores on a trait of the essays, given their expert grades. Not here: precision
(`reliability`), the judges' consistency (`judgment_fit`, `judge_habits`), and agreement with the experts themselves.

Standard errors say how exactly a scale is measured. Whether it is the right scale they cannot say: a judge who counts
words is very reliable. Among essays of one expert grade, whatever still raises the score is something that experts did
not reward. Without expert grades nothing can be said: good essays are often longer.

References:
    Frisch, R. & Waugh, F. V. (1933). Partial time regressions as compared with individual trends. Econometrica 1,
        387-401.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cj_pipeline.core.errors import InputError

FloatArray = NDArray[np.float64]

LEAST_FREEDOM: Final = 3
"""Essays beyond the number of coefficients below which nothing is estimated."""


@dataclass(frozen=True)
class Association:
    """How scores go with a trait among essays of the same expert grade. Made by `association_given_grade`.

    Attributes:
        slope: logits per unit of the trait.
        low, high: 95 % interval.
        p_value: two-sided, of no association.
        essays: how many have a score, a grade and the trait.
    """

    slope: float
    low: float
    high: float
    p_value: float
    essays: int


def association_given_grade(scores: ArrayLike, grades: ArrayLike, trait: ArrayLike) -> Association | None:
    """Least squares of score = a + b·grade + slope·trait + error, the errors normal, independent and of one spread.

    The error holds the differences within a grade, which are usually larger than standard errors; so the interval comes
    from the residuals (t distribution) and not from standard errors.

    Args:
        scores: (n,) logits; not finite where there is none.
        grades: (n,) number of the expert grade, low to high; not finite where there is none.
        trait: (n,) a number for each essay, or 0 and 1; not finite where unknown.

    Returns:
        None where it cannot be told: fewer than `LEAST_FREEDOM` essays to spare, or a trait that is the same, or grows
        with the grade exactly.

    Raises:
        InputError: arrays of unequal length.
    """
    from scipy.stats import t

    y, g, x = (np.asarray(values, dtype=np.float64) for values in (scores, grades, trait))
    if not y.shape == g.shape == x.shape or y.ndim != 1:
        raise InputError(f"scores, grades and trait must be equally long rows, not {y.shape}, {g.shape}, {x.shape}")
    known = np.isfinite(y) & np.isfinite(g) & np.isfinite(x)
    y, x = y[known], x[known]
    # essays of one grade leave no slope of grade to estimate
    given = np.column_stack([np.ones(y.size), *([g[known]] if y.size and np.ptp(g[known]) else [])])
    freedom = y.size - given.shape[1] - 1
    if freedom < LEAST_FREEDOM:
        return None
    x_left, y_left = (values - given @ np.linalg.lstsq(given, values, rcond=None)[0] for values in (x, y))
    spread = float(x_left @ x_left)
    if spread <= 1e-12 * float(x @ x) + np.finfo(float).tiny:
        return None
    slope = float(x_left @ y_left) / spread
    residuals = y_left - slope * x_left
    error = float(np.sqrt(residuals @ residuals / freedom / spread))
    reach = float(t.ppf(0.975, freedom)) * error
    p_value = float(2.0 * t.sf(abs(slope) / error, freedom)) if error > 0 else 0.0
    return Association(slope, slope - reach, slope + reach, p_value, int(y.size))


def group_differences(
    scores: ArrayLike, grades: ArrayLike, groups: Sequence[Hashable | None]
) -> dict[Hashable, Association | None]:
    """Each group against all other essays of the same expert grade: logits by which it scores higher.

    Args:
        scores, grades: as in `association_given_grade`.
        groups: (n,) the group of each essay; None where unknown.

    Returns:
        Group → difference, in the order in which groups appear; with two groups each is the other's mirror.

    Raises:
        InputError: arrays of unequal length.
    """
    found: dict[Hashable, Association | None] = {}
    for group in dict.fromkeys(group for group in groups if group is not None):
        trait = [float("nan") if other is None else float(other == group) for other in groups]
        found[group] = association_given_grade(scores, grades, trait)
    return found
