"""Pólya–Gamma variables: what, given them, makes judgments normal.

Exact draws, by rejection from an alternating series, and moments. Who uses them, and for what: `posterior`,
`alignment_posterior`.

References:
    Devroye, L. (2009). On exact simulation algorithms for some distributions related to Jacobi theta functions.
        Statistics & Probability Letters 79, 2251-2259.
    Michael, J. R., Schucany, W. R. & Haas, R. W. (1976). Generating random variates using transformations with
        multiple roots. The American Statistician 30, 88-90.
    Polson, N. G., Scott, J. G. & Windle, J. (2013). Bayesian inference for logistic models using Pólya–Gamma latent
        variables. Journal of the American Statistical Association 108, 1339-1349.
"""

from math import log, pi
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

EXACT_COUNT: Final = 170
"""Pólya–Gamma variables are exact sums up to this many judgments of a pair; above, normal with the same moments.

The skewness of PG(b, 0) is 2.3/√b, so .18 here.
"""

# Devroye's switch between the two series of the density.
_SWITCH: Final = 0.64


def draw_polya_gamma(counts: ArrayLike, tilts: ArrayLike, rng: np.random.Generator) -> FloatArray:
    """One PG(b, c) variable for each count b and tilt c (Polson, Scott & Windle 2013).

    Up to `EXACT_COUNT` a sum of b exact draws of PG(1, c) (Devroye 2009); above, a normal variable with the same mean
    and variance.

    Args:
        counts: (k,) integers >= 1.
        tilts: (k,) real numbers.
        rng: the source of randomness.

    Returns:
        (k,) positive numbers.
    """
    b, c = np.asarray(counts, dtype=np.int64), np.asarray(tilts, dtype=np.float64)
    draws = np.empty(b.shape)
    exact = b <= EXACT_COUNT
    if exact.all():
        if b.size and b.max() == 1:
            return _draw_jacobi(np.abs(c) / 2.0, rng) / 4.0
        owner = np.repeat(np.arange(b.size), b)
        parts = _draw_jacobi(np.abs(c[owner]) / 2.0, rng) / 4.0
        summed: FloatArray = np.bincount(owner, weights=parts, minlength=b.size).astype(np.float64)
        return summed
    draws[exact] = draw_polya_gamma(b[exact], c[exact], rng)
    mean, variance = polya_gamma_moments(b[~exact], c[~exact])
    # more than 170 draws are at least 10 sd from zero
    draws[~exact] = np.maximum(rng.normal(mean, np.sqrt(variance)), mean * 1e-3)
    return draws


def polya_gamma_moments(counts: ArrayLike, tilts: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Mean b/(2c)·tanh(c/2) and variance b/(4c³)·(sinh c - c)/cosh²(c/2) of PG(b, c); at c = 0, b/4 and b/24."""
    b, c = np.asarray(counts, dtype=np.float64), np.abs(np.asarray(tilts, dtype=np.float64))
    small = c < 1e-2
    safe = np.where(small, 1.0, c)
    mean = np.where(small, 0.25 - c**2 / 48.0, np.tanh(safe / 2.0) / (2.0 * safe))
    # (sinh c - c) / cosh²(c/2) = 2 tanh(c/2) - c / cosh²(c/2), which does not overflow
    spread = 2.0 * np.tanh(safe / 2.0) - safe * (1.0 - np.tanh(safe / 2.0) ** 2)
    variance = np.where(small, 1.0 / 24.0 - c**2 / 120.0, spread / (4.0 * safe**3))
    return b * mean, b * variance


def _draw_jacobi(tilts: FloatArray, rng: np.random.Generator) -> FloatArray:
    """J*(1, z) for each z >= 0, by rejection from an alternating series (Devroye 2009; Polson et al. 2013, 4.1).

    The proposal is an inverse Gaussian cut to (0, t) or an exponential beyond t; PG(1, c) = J*(1, c/2) / 4.
    """
    from scipy.special import log_ndtr

    t = _SWITCH
    result = np.empty(tilts.size)
    rate = pi**2 / 8.0 + tilts**2 / 2.0
    log_right = np.log(pi / (2.0 * rate)) - rate * t
    log_left = log(2.0) + np.logaddexp(
        log_ndtr((t * tilts - 1.0) / np.sqrt(t)) - tilts, log_ndtr(-(t * tilts + 1.0) / np.sqrt(t)) + tilts
    )
    share_right = np.exp(log_right - np.logaddexp(log_right, log_left))
    waiting = np.arange(tilts.size)
    while waiting.size:
        right = rng.random(waiting.size) < share_right[waiting]
        x = np.empty(waiting.size)
        x[right] = t + rng.standard_exponential(int(right.sum())) / rate[waiting[right]]
        x[~right] = _draw_cut_inverse_gaussian(tilts[waiting[~right]], rng)
        accepted = _accept_by_series(x, rng)
        result[waiting[accepted]] = x[accepted]
        waiting = waiting[~accepted]
    return result


def _draw_cut_inverse_gaussian(tilts: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Inverse Gaussian with mean 1/z and shape 1, cut to (0, t), for each z >= 0."""
    t = _SWITCH
    result = np.empty(tilts.size)
    waiting = np.flatnonzero(tilts < 1.0 / t)
    while waiting.size:
        # with the mean above t: the one-sided stable law cut to (0, t), thinned by exp(-z² x / 2)
        normal, other = rng.standard_exponential((2, waiting.size))
        x = t / (1.0 + t * normal) ** 2
        good = (normal**2 <= 2.0 * other / t) & (rng.random(waiting.size) <= np.exp(-0.5 * tilts[waiting] ** 2 * x))
        result[waiting[good]] = x[good]
        waiting = waiting[~good]
    waiting = np.flatnonzero(tilts >= 1.0 / t)
    while waiting.size:
        mean = 1.0 / tilts[waiting]
        y = mean * rng.standard_normal(waiting.size) ** 2
        # Michael, Schucany & Haas (1976); the smaller root, written without cancellation
        x = mean * 2.0 / (2.0 + y + np.sqrt(y * (4.0 + y)))
        x = np.where(rng.random(waiting.size) > mean / (mean + x), mean**2 / x, x)
        good = x < t
        result[waiting[good]] = x[good]
        waiting = waiting[~good]
    return result


def _accept_by_series(x: FloatArray, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Accept each x with the ratio of the target's density to the first term of its alternating series."""
    accepted = np.zeros(x.size, dtype=np.bool_)
    partial = _series_term(0, x)
    level = rng.random(x.size) * partial
    open_rows, term = np.arange(x.size), 0
    while open_rows.size:
        term += 1
        value = _series_term(term, x[open_rows])
        if term % 2:
            partial[open_rows] -= value
            decided = level[open_rows] <= partial[open_rows]
            accepted[open_rows[decided]] = True
        else:
            partial[open_rows] += value
            decided = level[open_rows] > partial[open_rows]
        open_rows = open_rows[~decided]
    return accepted


def _series_term(k: int, x: FloatArray) -> FloatArray:
    """a_k(x): the k-th coefficient of the density of J*(1, 0), in the form that decreases in k at this x."""
    half = k + 0.5
    left = x <= _SWITCH
    exponent = np.where(left, -2.0 * half**2 / x, -0.5 * half**2 * pi**2 * x)
    factor = np.where(left, (2.0 / (pi * x)) ** 1.5, 1.0)
    term: FloatArray = pi * half * factor * np.exp(exponent)
    return term
