"""How precise a batch is after a wave, and whether that is enough to stop: the stop rule `precision`.

Pure functions. Here: what is measured at a wave's end and what it takes to stop. Not here: the decision itself
(`completion`), scores (`bradley_terry`), grades (`grades`), and figures that are only reported (`diagnostics`).

Where there are grades, precision is that of grades, counted in steps of the scale: the standard deviation of a
student's grade under its posterior probabilities, and the expected ranked probability score (Epstein 1969; here
unnormalised, a sum over boundaries) if the truth is drawn from them, Σ_k F_k (1 - F_k) with F the cumulative
probabilities. Without grades it is reliability: how well scores would correlate with the truth, if the truth is drawn
from the posterior of the scores.

Reference:
    Epstein, E. S. (1969). A scoring system for probability forecasts of ranked categories. Journal of Applied
        Meteorology 8, 985-987.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cj_pipeline.core.grades import GradeProjection
from cj_pipeline.core.models import Value
from cj_pipeline.core.reliability import squared_correlations

FloatArray = NDArray[np.float64]

LEAST_JUDGMENTS: Final = 6
"""Judgments that every essay of the batch must have."""

WAVES_IN_A_ROW: Final = 2
"""Full waves in a row after which the batch must be precise: one may be luck."""

GRADE_SD_STEPS: Final = 0.7
"""Steps of the scale: a student's grade is known well enough when its posterior standard deviation is no larger."""

STUDENTS_KNOWN: Final = 0.9
"""Share of students whose grade must be known that well."""

RELIABILITY_LOW: Final = 0.8
"""Without grades: what the 10 % quantile of the posterior's squared correlation must reach."""

RPS_GAIN: Final = 0.015
"""Relative fall of the expected RPS per wave below which more judgments hardly help ..."""

RPS_WAVES: Final = 4
"""... over this many waves."""

_DRAWS: Final = 400
_QUANTILE: Final = 0.1


class WavePrecision(Value):
    """What was measured at the end of a wave.

    Attributes:
        wave: its number.
        full: whether the budget left the wave its whole size; others are not looked at.
        least_judgments: of the essay with the fewest judgments.
        students_known: share of students with a grade whose posterior sd is at most `GRADE_SD_STEPS`; None without
            grades.
        mean_rps: expected RPS of a student's grade, mean over students, steps; None without grades.
        reliability_low: 10 % quantile of the squared correlation of scores and posterior draws, 0 to 1; None with
            grades.
    """

    wave: int
    full: bool
    least_judgments: int
    students_known: float | None
    mean_rps: float | None
    reliability_low: float | None


def grade_sd(probabilities: Mapping[str, float]) -> float:
    """Standard deviation of a grade in steps of the scale.

    Args:
        probabilities: label → probability, low to high, summing to 1.
    """
    mass = np.fromiter(probabilities.values(), dtype=np.float64)
    steps = np.arange(mass.size)
    mean = mass @ steps
    return float(np.sqrt(mass @ (steps - mean) ** 2))


def expected_rps(probabilities: Mapping[str, float]) -> float:
    """Expected RPS of a grade whose truth is drawn from its own probabilities: Σ_k F_k (1 - F_k), in steps.

    Args:
        probabilities: label → probability, low to high, summing to 1.
    """
    cumulative = np.cumsum(np.fromiter(probabilities.values(), dtype=np.float64))[:-1]
    return float(np.sum(cumulative * (1.0 - cumulative)))


def low_reliability(scores: FloatArray, covariance: FloatArray, seed: int) -> float:
    """10 % quantile of the squared correlation between scores and draws from N(scores, covariance).

    Args:
        scores: (n_items,) logits; posterior means.
        covariance: (n_items, n_items) logits².
        seed: of the draws.

    Returns:
        0 to 1; 0 if all scores are equal.
    """
    if scores.size < 2 or float(np.ptp(scores)) == 0.0:
        return 0.0
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    normal = np.random.default_rng(seed).standard_normal((_DRAWS, scores.size))
    return float(np.quantile(squared_correlations(scores, scores + normal @ root.T), _QUANTILE))


def wave_precision(
    wave: int,
    *,
    full: bool,
    judgments: Iterable[int],
    projections: Sequence[GradeProjection],
    reliability_low: Callable[[], float],
) -> WavePrecision:
    """What is measured at the end of a wave.

    Args:
        wave: its number.
        full: whether the budget left it its whole size.
        judgments: of each essay, anchors included.
        projections: of all essays; empty, or without any grade, if there are no grades.
        reliability_low: gives `low_reliability`; asked only where there are no grades.
    """
    students = [projection for projection in projections if not projection.is_anchor]
    graded = [projection.probabilities for projection in students if projection.available]
    return WavePrecision(
        wave=wave,
        full=full,
        least_judgments=min(judgments, default=0),
        # a student without a grade is a student whose grade is not known
        students_known=sum(grade_sd(p) <= GRADE_SD_STEPS for p in graded) / len(students) if graded else None,
        mean_rps=float(np.mean([expected_rps(p) for p in graded])) if graded else None,
        reliability_low=None if graded else reliability_low(),
    )


def precise_enough(history: Sequence[WavePrecision]) -> str | None:
    """Why a batch may stop, or None if it may not.

    Args:
        history: of all waves so far, in order.

    Returns:
        `precise`: on the last `WAVES_IN_A_ROW` waves, all full and every essay having `LEAST_JUDGMENTS`, at least
        `STUDENTS_KNOWN` of the students had a grade known to `GRADE_SD_STEPS` (without grades: the low reliability
        was at least `RELIABILITY_LOW`). `precision_flat`: with grades, the expected RPS fell by less than `RPS_GAIN` a
        wave over the last `RPS_WAVES` full waves.
    """
    if not history or history[-1].least_judgments < LEAST_JUDGMENTS:
        return None
    last = history[-WAVES_IN_A_ROW:]
    if len(last) == WAVES_IN_A_ROW and all(_is_precise(wave) for wave in last):
        return "precise"
    window = history[-RPS_WAVES - 1 :]
    if len(window) == RPS_WAVES + 1 and all(wave.full and wave.mean_rps is not None for wave in window):
        before, now = window[0].mean_rps or 0.0, window[-1].mean_rps or 0.0
        if now > before * (1.0 - RPS_GAIN) ** RPS_WAVES:
            return "precision_flat"
    return None


def _is_precise(wave: WavePrecision) -> bool:
    if not wave.full or wave.least_judgments < LEAST_JUDGMENTS:
        return False
    if wave.students_known is not None:
        return wave.students_known >= STUDENTS_KNOWN
    return (wave.reliability_low or 0.0) >= RELIABILITY_LOW
