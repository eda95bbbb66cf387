"""The width of the scores' prior: how likely the judgments are under it, and its posterior.

log σ ~ N(log 2, 1), weighed by the marginal likelihood of the judgments. The plain Laplace approximation of it is off
by a little for every item that was seen once or twice, which adds up: in a wave of disjoint pairs, whose outcomes say
nothing about the width at all, it prefers an ever smaller one the more pairs there are. So each pair's factor is
integrated exactly against the Gaussian that the rest of the fit implies for its difference (a first-order correction in
the sense of Cseke & Heskes 2011; exact where every item is in one pair).

Here: the marginal likelihood and the grid over σ. Not here: the mode at one width (`bradley_terry_mode`) and the scores
that are reported (`bradley_terry`).

References:
    Cseke, B. & Heskes, T. (2011). Approximate marginals in latent Gaussian models. Journal of Machine Learning Research
        12, 417-454.
    Tierney, L. & Kadane, J. B. (1986). Accurate approximations for posterior moments and marginal densities.
        Journal of the American Statistical Association 81, 82-86.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, isfinite, log, pi
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cj_pipeline.core.bradley_terry_mode import Mode, find_mode
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.pair_counts import PairCounts
from cj_pipeline.core.score_prior import ScorePrior

FloatArray = NDArray[np.float64]

PRIOR_SD_RANGE: Final = (1e-4, 1e4)
"""Logits. Wider priors are maximum likelihood in all but name, and lose the digits that tell them from it."""

# Hyperprior of the fitted width: log sigma ~ N(log 2, 1), explored to 5 hyper-sd either side.
_HYPER_MEAN: Final = log(2.0)
_HYPER_REACH: Final = 5
# The grid covers all widths whose posterior density is within exp(-10) of the highest, by at least 11 points:
# at most 0.9 posterior sd apart, where sums over the grid equal integrals to many digits.
_LOG_DENSITY_DROP: Final = 10.0
_LEAST_GRID_POINTS: Final = 11
# One Newton step from 1e-6 leaves an error of the order of its square.
_GRID_STEP_TOLERANCE: Final = 1e-6
# The integral over one pair's difference: the cavity is seen to 9 sd, at points that leave an error below 1e-4.
_CAVITY_REACH: Final = 9.0
_QUADRATURE_POINTS: Final = 81
_PAIRS_AT_ONCE: Final = 4096


def checked_width(prior_sd: float) -> float:
    """A prior's width as a float, logits.

    Raises:
        InputError: not a number within `PRIOR_SD_RANGE`.
    """
    low, high = PRIOR_SD_RANGE
    if isinstance(prior_sd, bool) or not isinstance(prior_sd, int | float | np.number):
        raise InputError(f"prior_sd must be 'fitted', a number of logits, or None, not {prior_sd!r}")
    width = float(prior_sd)
    if not (isfinite(width) and low <= width <= high):
        raise InputError(f"prior_sd {width} is outside {low} to {high} logits; None is maximum likelihood")
    return width


def log_marginal(pairs: PairCounts, prior: ScorePrior, start: FloatArray, advantage_start: float) -> tuple[float, Mode]:
    """Corrected Laplace log marginal likelihood under one prior, and the mode it was taken at.

    Args:
        pairs: the judgments.
        prior: of the scores, proper.
        start: (n_items,) logits, where the search for the mode begins.
        advantage_start: logits.
    """
    mode = find_mode(pairs, prior, start, advantage_start, _GRID_STEP_TOLERANCE)
    laplace = mode.objective + prior.log_normaliser(pairs.n_items) - 0.5 * mode.information.log_determinant()
    return laplace + _pair_correction(pairs, mode), mode


def _pair_correction(pairs: PairCounts, mode: Mode) -> float:
    """Sum over pairs of log(exact / Laplace) for the pair's own factor, the rest of the fit held Gaussian.

    At the mode a pair's difference has mean η and variance V, of which its own factor contributes the precision W and
    the slope g. Taking these away leaves the cavity N(η - C g, C), C = 1 / (1/V - W): what the prior and all other
    pairs say. Against it the factor's integral is known exactly, and so is that of its Gaussian stand-in.

    With an order effect, η is the difference plus or minus the advantage where a pair was read in one order. A pair
    read in both has one difference: its two factors are integrated together, the advantage at its mode.
    """
    if not len(pairs.first):
        return 0.0
    # a shift common to a component cancels in differences, so the stiffened inverse serves
    inverse = mode.information.stiffened_inverse()
    variance = np.diag(inverse)[pairs.first] + np.diag(inverse)[pairs.second] - 2.0 * inverse[pairs.first, pairs.second]
    wins, losses = pairs.first_wins, pairs.second_wins
    if not pairs.ordered:
        difference = pairs.predictor(mode.scores, 0.0)
        return _summed_log_ratios(difference, variance, wins[:, None], losses[:, None], np.zeros((len(wins), 1)))
    slope = mode.information.border[pairs.first] - mode.information.border[pairs.second]
    spread = mode.information.advantage_variance
    follows = (pairs.first[1:] == pairs.first[:-1]) & (pairs.second[1:] == pairs.second[:-1])
    twin = np.flatnonzero(follows)
    alone = np.setdiff1d(np.arange(len(wins)), np.concatenate([twin, twin + 1]))
    difference = pairs.predictor(mode.scores, mode.advantage)
    total = _summed_log_ratios(
        difference[alone],
        (variance - 2.0 * pairs.order * slope * spread + spread)[alone],
        wins[alone, None],
        losses[alone, None],
        np.zeros((alone.size, 1)),
    )
    both = np.stack([twin, twin + 1], axis=1)
    return total + _summed_log_ratios(
        pairs.predictor(mode.scores, 0.0)[twin],
        (variance - slope**2 * spread)[twin],
        wins[both],
        losses[both],
        mode.advantage * pairs.order[both],
    )


def _summed_log_ratios(
    difference: FloatArray, variance: FloatArray, wins: FloatArray, losses: FloatArray, offsets: FloatArray
) -> float:
    """Sum of `_log_factor_ratio`, `_PAIRS_AT_ONCE` at a time."""
    return sum(
        float(_log_factor_ratio(difference[r], variance[r], wins[r], losses[r], offsets[r]).sum())
        for r in np.array_split(np.arange(len(difference)), 1 + len(difference) // _PAIRS_AT_ONCE)
        if r.size
    )


def _log_factor_ratio(
    difference: FloatArray, variance: FloatArray, wins: FloatArray, losses: FloatArray, offsets: FloatArray
) -> FloatArray:
    """(k,) log(exact / Laplace) of k factors Π_m σ(x + offset_m)^wins_m σ(-x - offset_m)^losses_m.

    See `_pair_correction`. The trapezoidal rule on x = mean + sd·sinh(t): close together where the posterior is, and
    far enough out to see all of the cavity. For an analytic integrand that decays at both ends it converges
    exponentially in the spacing.

    Args:
        difference, variance: (k,) of x at the mode.
        wins, losses, offsets: (k, m).
    """
    at = difference[:, None] + offsets
    win, lose = np.exp(-np.logaddexp(0.0, -at)), np.exp(-np.logaddexp(0.0, at))
    precision = ((wins + losses) * win * lose).sum(axis=1)
    slope = (wins * lose - losses * win).sum(axis=1)
    cavity = 1.0 / np.maximum(1.0 / variance - precision, 1e-9 / variance)
    centre = difference - cavity * slope
    scale = np.sqrt(variance)
    reach = np.arcsinh((_CAVITY_REACH * np.sqrt(cavity) + np.abs(difference - centre)) / scale)
    t = np.linspace(-1.0, 1.0, _QUADRATURE_POINTS) * reach[:, None]
    x = difference[:, None] + scale[:, None] * np.sinh(t)
    exponent = -0.5 * (x - centre[:, None]) ** 2 / cavity[:, None] + np.log(scale[:, None] * np.cosh(t))
    for won, lost, offset in zip(wins.T, losses.T, offsets.T, strict=True):
        moved = x + offset[:, None]
        exponent -= won[:, None] * np.logaddexp(0.0, -moved) + lost[:, None] * np.logaddexp(0.0, moved)
    top = exponent.max(axis=1)
    spacing = 2.0 * reach / (_QUADRATURE_POINTS - 1)
    exact = top + np.log(np.exp(exponent - top[:, None]).sum(axis=1) * spacing) - 0.5 * np.log(2.0 * pi * cavity)
    at_mode = -(wins * np.logaddexp(0.0, -at) + losses * np.logaddexp(0.0, at)).sum(axis=1)
    gaussian = at_mode + 0.5 * np.log(variance / cavity) - 0.5 * (difference - centre) ** 2 / cavity
    ratio: FloatArray = exact - gaussian
    return ratio


@dataclass(frozen=True, eq=False)
class WidthPosterior:
    """Posterior of log σ on an evenly spaced grid.

    Attributes:
        offsets: (k,) log σ - log 2, ascending.
        masses: (k,) posterior probabilities, summing to 1.
        log_densities: (k,) their logarithms up to a constant.
        scores: (k, n_items) the mode at each width.
        advantages: (k,) the first position's advantage at each.
        iterations: Newton steps taken.
    """

    offsets: FloatArray
    masses: FloatArray
    log_densities: FloatArray
    scores: FloatArray
    advantages: FloatArray
    iterations: int

    @property
    def advantage_variance(self) -> float:
        """Variance of the advantage over the posterior of σ, logits²."""
        return float(self.masses @ (self.advantages - self.masses @ self.advantages) ** 2)

    @property
    def centre(self) -> float:
        """exp(E[log σ]), logits."""
        return exp(_HYPER_MEAN + float(self.masses @ self.offsets))

    @property
    def interval(self) -> tuple[float, float]:
        """The 2.5 % and 97.5 % points of σ, logits, the log density taken as linear between grid points."""
        fine = np.linspace(self.offsets[0], self.offsets[-1], 4001)
        density = np.exp(np.interp(fine, self.offsets, self.log_densities))
        cumulative = np.cumsum(density) / density.sum()
        low, high = np.interp([0.025, 0.975], cumulative, fine)
        return exp(_HYPER_MEAN + float(low)), exp(_HYPER_MEAN + float(high))

    def score_spread(self) -> FloatArray:
        """(n_items, k) matrix S with S Sᵀ the covariance of the modes over the posterior of σ."""
        deviations = self.scores - self.masses @ self.scores
        spread: FloatArray = (np.sqrt(self.masses)[:, None] * deviations).T
        return spread


def width_posterior(pairs: PairCounts, prior_of: Callable[[float], ScorePrior]) -> WidthPosterior:
    """Explore log σ on a lattice that is halved where the posterior lives until it holds enough points.

    Args:
        pairs: the judgments.
        prior_of: the scores' prior at a width in logits.
    """
    # only scores are kept of each mode: its factorisation is n² numbers
    log_density: dict[float, float] = {}
    scores: dict[float, FloatArray] = {}
    advantages: dict[float, float] = {}
    iterations = 0

    def explore(offset: float, start: FloatArray, advantage_start: float) -> None:
        nonlocal iterations
        marginal, mode = log_marginal(pairs, prior_of(exp(_HYPER_MEAN + offset)), start, advantage_start)
        log_density[offset] = marginal - 0.5 * offset**2
        scores[offset] = mode.scores
        advantages[offset] = mode.advantage
        iterations += mode.iterations

    spacing = 1.0
    start = prior_of(exp(_HYPER_MEAN)).start(pairs.n_items)
    advantage_start = 0.0
    for step in range(-_HYPER_REACH, _HYPER_REACH + 1):
        explore(float(step), start, advantage_start)
        start, advantage_start = scores[float(step)], advantages[float(step)]
    while True:
        floor = max(log_density.values()) - _LOG_DENSITY_DROP
        inside = [offset for offset, density in log_density.items() if density >= floor]
        low = max(min(inside) - spacing, -float(_HYPER_REACH))
        high = min(max(inside) + spacing, float(_HYPER_REACH))
        if len(inside) >= _LEAST_GRID_POINTS:
            break
        # offsets are multiples of powers of two, so sums of them are exact and the lattice has no gaps
        for k in range(round((high - low) / spacing)):
            near = low + k * spacing
            explore(low + (k + 0.5) * spacing, scores[near], advantages[near])
        spacing /= 2.0
    offsets = np.array(sorted(offset for offset in scores if low <= offset <= high))
    densities = np.array([log_density[offset] for offset in offsets])
    densities -= densities.max()
    masses = np.exp(densities)
    return WidthPosterior(
        offsets=offsets,
        masses=masses / masses.sum(),
        log_densities=densities,
        scores=np.array([scores[offset] for offset in offsets]),
        advantages=np.array([advantages[offset] for offset in offsets]),
        iterations=iterations,
    )
