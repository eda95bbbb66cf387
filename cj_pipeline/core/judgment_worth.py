"""What a judgment of each pair is expected to tell, before it is made.

Here: the information that one judgment has, by how much it lowers a weighted sum of variances, which weights stand for
grades, and the covariance after it was made. Not here: which pairs may be chosen, and in which order (`designs`), and
the posterior that it starts from (`bradley_terry`).

Let V be the posterior covariance of the scores, x = e_i - e_j, and w the information that one judgment of the pair is
expected to have about its difference. The judgment takes V to V - V x xᵀ V w / (1 + w s²), with s² = xᵀVx the variance
of the difference (Sherman & Morrison 1950; for several judgments at once, Woodbury 1950). w is E[p(1-p)] with p =
logistic(d) and d ~ N(m, s²), m the difference of the means: MacKay's (1992) approximation of the logistic integral,
differentiated, gives w = κ p̃(1-p̃) with p̃ = logistic(κ m) and κ = 1/√(1 + πs²/8).

Where scores are asked for, the judgment is worth the expected fall of their summed variances, which is that of the
squared error (A-optimality; Chaloner & Verdinelli 1995):

    fall(i, j) = w Σ_k (V x)_k² / (1 + w s²)

Where grades are asked for: let F be the probability that student k is above boundary b. The grades' expected ranked
probability score (RPS; Epstein 1969) is the sum of F(1 - F) over students and boundaries. With m the expected distance
of k from b and v its variance, F = Φ(m/√v) in the Gaussian posterior, and a judgment that takes Δ from v is expected to
take φ(m/√v)² Δ/v from F(1 - F), to first order in Δ: afterwards E[F²] = Φ₂(m/√v, m/√v; Δ/v), the bivariate normal
distribution function, whose derivative in the correlation is φ² at zero (Plackett 1954). So it is worth

    fall(i, j) = w Σ_kb (exp(-m²/v) / 2πv) (cᵀV x)² / (1 + w s²)      c = e_k - b

A boundary is the middle between neighbouring grades' centres, which are the means of their anchors' scores; which
grades are neighbours, these means say. Where boundaries are taken to be blurred, v has the blur's variance besides.

References:
    Chaloner, K. & Verdinelli, I. (1995). Bayesian experimental design: a review. Statistical Science 10, 273-304.
    Epstein, E. S. (1969). A scoring system for probability forecasts of ranked categories. Journal of Applied
        Meteorology 8, 985-987.
    MacKay, D. J. C. (1992). The evidence framework applied to classification networks. Neural Computation 4, 720-736.
    Plackett, R. L. (1954). A reduction formula for normal multivariate integrals. Biometrika 41, 351-360.
    Sherman, J. & Morrison, W. J. (1950). Adjustment of an inverse matrix corresponding to a change in one element of a
        given matrix. Annals of Mathematical Statistics 21, 124-127.
    Woodbury, M. A. (1950). Inverting modified matrices. Memorandum Report 42, Statistical Research Group, Princeton.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def expected_information(difference: FloatArray, variance: FloatArray) -> FloatArray:
    """E[p(1-p)] of one judgment whose difference in scores is N(difference, variance), approximately.

    Args:
        difference: any shape, logits.
        variance: the same shape, logits².

    Returns:
        The same shape, in (0, 1/4].
    """
    shrink = 1.0 / np.sqrt(1.0 + np.pi * np.maximum(variance, 0.0) / 8.0)
    odds = np.exp(-np.abs(shrink * difference))
    return shrink * odds / (1.0 + odds) ** 2


def expected_fall(difference: FloatArray, covariance: FloatArray, importance: FloatArray | None = None) -> FloatArray:
    """By how much one judgment of each pair is expected to lower a sum of variances, tr(importance·covariance).

    Args:
        difference: (n, n) logits; the expected difference of the two scores.
        covariance: (n, n) logits², of the scores.
        importance: (n, n) symmetric, positive semidefinite; the sum over what counts of its weight times c cᵀ, where
            cᵀ scores is what counts. None: every score counts alike.

    Returns:
        (n, n) w xᵀ V importance V x / (1 + w s²), symmetric.
    """
    variance = _of_differences(covariance)
    weight = expected_information(difference, variance)
    weighted = covariance if importance is None else importance @ covariance
    fall: FloatArray = weight * _of_differences(covariance @ weighted) / (1.0 + weight * variance)
    return fall


def grade_boundaries(means: FloatArray, grades: Mapping[int, str]) -> tuple[FloatArray, float]:
    """Where grades change, as mixtures of anchors: the middle between the means of one grade's and of the next one's.

    Args:
        means: (n,) logits, of the scores; they say which grade is the next.
        grades: item to expert grade, of the anchors.

    Returns:
        (k, n) rows that sum to one, ascending: a row's product with the scores is a boundary; and the mean step from
        one grade to the next, logits. No rows, and no step, unless the anchors have several grades.
    """
    labels = sorted(set(grades.values()))
    centres: FloatArray = np.zeros((len(labels), means.size))
    for row, label in enumerate(labels):
        centres[row, [item for item, grade in grades.items() if grade == label]] = 1.0
    centres /= centres.sum(axis=1, keepdims=True)
    centres = centres[np.argsort(centres @ means, kind="stable")]
    step = float((centres[-1] - centres[0]) @ means) / (len(labels) - 1) if len(labels) > 1 else 0.0
    return (centres[1:] + centres[:-1]) / 2.0, step


def importance_for_grades(
    means: FloatArray, covariance: FloatArray, students: IntArray, boundaries: FloatArray, blur: float
) -> FloatArray:
    """What counts for the grades' RPS: each student's distance from each boundary, by what knowing it better is worth.

    Args:
        means: (n,) logits.
        covariance: (n, n) logits².
        students: items that are to be graded.
        boundaries: (k, n) see `grade_boundaries`.
        blur: logits; the standard deviation of boundaries beside what is not known of the scores.

    Returns:
        (n, n) positive semidefinite, logits⁻². With `expected_fall` it gives, to first order, the expected fall of
        Σ F(1 - F), the students' expected RPS at boundaries so blurred.
    """
    across = boundaries @ covariance
    variance = np.diag(covariance)[students, None] - 2.0 * across.T[students] + (across * boundaries).sum(axis=1)
    variance = np.maximum(variance, 0.0) + blur**2
    distance = means[students, None] - boundaries @ means
    weight = np.exp(-(distance**2) / variance) / (2.0 * np.pi * variance)
    importance: FloatArray = boundaries.T @ (weight.sum(axis=0)[:, None] * boundaries)
    mixed = weight @ boundaries
    importance[students] -= mixed
    importance[:, students] -= mixed.T
    importance[students, students] += weight.sum(axis=1)
    return importance


def learn(covariance: FloatArray, difference: FloatArray, pairs: Sequence[tuple[int, int]]) -> None:
    """Bring the covariance up to date, in place, for one judgment of each pair (Woodbury 1950)."""
    if not pairs:
        return
    i, j = np.array(pairs).T
    columns = covariance[:, i] - covariance[:, j]
    between = columns[i] - columns[j]
    root = np.sqrt(expected_information(difference[i, j], np.diag(between)))
    columns *= root
    between = np.eye(len(pairs)) + root[:, None] * between * root
    covariance -= columns @ np.linalg.solve(between, columns.T)


def _of_differences(matrix: FloatArray) -> FloatArray:
    """(n, n) xᵀ matrix x for every x = e_i - e_j."""
    diagonal = np.diag(matrix)
    result: FloatArray = diagonal[:, None] + diagonal[None, :] - 2.0 * matrix
    return result
