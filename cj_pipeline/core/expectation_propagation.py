"""A normal approximation of the scores' posterior by its moments instead of its mode: expectation propagation (EP).

Each pair's likelihood t(d) = logistic(d)^wins logistic(-d)^losses, d the difference of the two scores plus or minus the
first position's advantage, has a Gaussian stand-in ("site") exp(b d - a d²/2). All sites together with the normal prior
are a normal distribution q. Sites are fixed points of: take a pair's site out of q (what is left of d is its *cavity*),
put the true t in its place, and choose the site that gives d the mean and variance it then has (Minka 2001). Mode and
curvature, Laplace's approximation, see only the top of the posterior. On wide scales it leans away from zero, for the
outcome of a one-sided pair does not say how one-sided, so its mean lies farther out than its mode.

Here: the fixed point at one prior, by parallel sweeps with damping (one Cholesky factorisation each), and its estimate
of log P(judgments | prior). t is log-concave, so a cavity is never narrower than what t leaves of it: a >= 0 always,
and every cavity is proper. A prior that is not normal (`score_shape`) has one site more for each item, found in the
same way; its a may be below zero. Not here: the prior's width (`prior_width`) and shape (`prior_shape`), draws
(`posterior`), the mode (`bradley_terry_mode`). Work and memory are those of dense matrices, n_items² numbers.

References:
    Kuss, M. & Rasmussen, C. E. (2005). Assessing approximate inference for binary Gaussian process classification.
        Journal of Machine Learning Research 6, 1679-1704.
    Minka, T. P. (2001). Expectation propagation for approximate Bayesian inference. UAI 17, 362-369.
    Rasmussen, C. E. & Williams, C. K. I. (2006). Gaussian Processes for Machine Learning, section 3.6. MIT Press.
"""

from dataclasses import dataclass
from math import log, pi
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cj_pipeline.core.bradley_terry_mode import Information, find_mode
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.pair_counts import PairCounts
from cj_pipeline.core.score_prior import IndependentPrior, ScorePrior, StandIns
from cj_pipeline.core.score_shape import ScoreShape

FloatArray = NDArray[np.float64]

MOMENT_TOLERANCE: Final = 1e-4
"""Sites are consistent when no pair's exact mean and variance differ from those of q by more than this, in units of
its standard deviation and variance. The evidence is stationary there, so its error is of the order of the square."""

_DAMPING: Final = 0.9
_LEAST_DAMPING: Final = 0.1
_REGAINED: Final = 1.2
_SITES_AT_ONCE: Final = 4096
_MODE_TOLERANCE: Final = 1e-3
_LEAST_KEPT: Final = 1e-9
# An item's site may widen its cavity by no more than makes its variance ten times as large.
_MOST_WIDENED: Final = 0.9
_MOST_RETREATS: Final = 6
# The integral over one pair's difference: steps to its mode, standard deviations of the cavity that are seen.
_MODE_STEPS: Final = 4
_CAVITY_REACH: Final = 7.0
_QUADRATURE_PLACES: Final = np.linspace(-1.0, 1.0, 41)
# Logits. The logistic function bends over some 2 logits: points are no farther apart than that asks for.
_WIDEST_SCALE: Final = 2.0


@dataclass(frozen=True, eq=False)
class Sites:
    """The Gaussian stand-ins exp(b d - a d²/2) of the pairs' likelihoods.

    Attributes:
        precisions: (n_pairs,) a >= 0, logits⁻².
        shifts: (n_pairs,) b, logits⁻¹.
        of_items: the stand-ins of a prior that is not normal; None of one that is.
    """

    precisions: FloatArray
    shifts: FloatArray
    of_items: StandIns | None = None


@dataclass(frozen=True, eq=False)
class NormalPosterior:
    """The normal distribution q that stands for the posterior at one prior. Made by `propagate`.

    Attributes:
        means: (n_items,) of the scores, logits, in the prior's frame.
        advantage: mean of the first position's advantage, logits; 0 where it is not fitted.
        information: the inverse covariance of scores and advantage, factorised.
        log_evidence: log P(judgments | prior), up to what `ScorePrior.log_normaliser` leaves out.
        sites: to start from at a prior nearby.
        sweeps: how many were made.
        converged: whether moments agree to the tolerance.
        item_cavities: (n_items,) means and variances of the scores with the prior's site taken out: what the judgments
            say of each item, all others under the prior. None where the prior is normal.
    """

    means: FloatArray
    advantage: float
    information: Information
    log_evidence: float
    sites: Sites
    sweeps: int
    converged: bool
    item_cavities: tuple[FloatArray, FloatArray] | None = None

    def centred_moments(self) -> tuple[FloatArray, FloatArray]:
        """(n_items,) means, logits, and (n_items,) variances, logits², of the scores less their mean over all items."""
        inverse = self.information.inverse()
        rows = inverse.mean(axis=1)
        return self.means - self.means.mean(), np.diag(inverse) - 2.0 * rows + rows.mean()

    def draw(self, n_draws: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """(n_draws, n_items) scores and (n_draws,) advantages, logits, drawn from q."""
        from scipy.linalg import solve_triangular

        information = self.information
        labels = information.pairs.components
        noise = rng.standard_normal((self.means.size, n_draws))
        off = solve_triangular(information.factor, noise, lower=True, trans="T", check_finite=False)
        shift = rng.standard_normal((int(labels.max()) + 1, n_draws))
        # each component's shift was held back by the stiffening; its mean over k items varies by variance / k
        scale = np.sqrt(information.stiffening.variance / np.bincount(labels))
        off += (scale[:, None] * shift)[labels]
        advantages = rng.standard_normal(n_draws) * information.advantage_variance**0.5
        off -= np.outer(information.border, advantages)
        return self.means + off.T, self.advantage + advantages


@dataclass(frozen=True, eq=False)
class _Moments:
    """(n_pairs,) means, logits, and variances, logits², of predictors."""

    means: FloatArray
    variances: FloatArray


def propagate(
    pairs: PairCounts,
    prior: ScorePrior | ScoreShape,
    start: Sites | None = None,
    *,
    tolerance: float = MOMENT_TOLERANCE,
    most_sweeps: int = 40,
) -> NormalPosterior:
    """The fixed point of expectation propagation at one prior.

    Sweeps update all sites at once from the same q, most of the way. After a sweep that made moments agree worse, the
    next goes half as far, and each good one a little farther again.

    Args:
        pairs: the judgments.
        prior: of the scores, proper; a shape is every item's, independently.
        start: sites found at a prior nearby, a shape's at a shape; without, those of the mode.
        tolerance: see `MOMENT_TOLERANCE`.
        most_sweeps: after so many it ends where it is.

    Returns:
        What was reached; `converged` says whether that is the fixed point. Priors that are many times
        wider than the scores are slow, and their evidence is close long before their moments are.

    Raises:
        InputError: the precision matrix is singular to working precision, or, with a shape, not positive definite.
    """
    if isinstance(prior, ScoreShape):
        return _propagate_shaped(pairs, prior, start, _Pace(tolerance, most_sweeps))
    sites = _sites_of_mode(pairs, prior) if start is None else start
    origin = prior.start(pairs.n_items)
    offsets = pairs.predictor(origin, 0.0)
    pace = _Pace(tolerance, most_sweeps)
    while True:
        information = Information.of_weights(pairs, sites.precisions, prior)
        slope, advantage_slope = pairs.transposed(sites.shifts - sites.precisions * offsets)
        slope = prior.centred(slope, pairs)
        step, advantage = information.step(slope, advantage_slope)
        marginal = _Moments(pairs.predictor(origin + step, advantage), information.predictor_variances())
        cavity = _without(marginal, sites)
        exact, log_masses = _tilted(pairs, cavity)
        if pace.is_done(_disagreement(exact, marginal)):
            break
        sites = _towards(sites, _sites_between(cavity, exact), pace.damping)
    explained = float(slope @ step) + advantage_slope * advantage
    explained += float((2.0 * sites.shifts * offsets - sites.precisions * offsets**2).sum())
    return NormalPosterior(
        means=origin + step,
        advantage=advantage,
        information=information,
        log_evidence=float((log_masses - _log_masses_of(sites, cavity)).sum())
        + prior.log_normaliser(pairs.n_items)
        + 0.5 * (explained - information.log_determinant()),
        sites=sites,
        sweeps=pace.sweeps,
        converged=pace.converged,
    )


def _propagate_shaped(pairs: PairCounts, shape: ScoreShape, start: Sites | None, pace: "_Pace") -> NormalPosterior:
    """`propagate` under a shape: sites of pairs and of items are updated from the same q."""
    sites = _sites_of_mode(pairs, IndependentPrior(shape.sd)) if start is None else start
    items = sites.of_items
    if items is None:
        items = StandIns(np.full(pairs.n_items, shape.sd**-2), np.full(pairs.n_items, shape.moments[0] / shape.sd**2))
    try:
        at = _ShapedSweep.of(pairs, shape, sites, items)
    except InputError:
        # stand-ins that are no distribution together; without the negative ones they are
        at = _ShapedSweep.of(pairs, shape, sites, StandIns(np.maximum(items.precisions, 0.0), items.shifts))
    while not pace.is_done(at.disagreement()):
        onward = at.onward(pace.damping)
        if onward is None:
            break
        at = onward
    mass = float((at.log_masses - _log_masses_of(at.sites, at.cavity)).sum())
    mass += float((at.own_log_masses - _log_masses_of(at.items, at.own_cavity)).sum())
    return NormalPosterior(
        means=at.own.means,
        advantage=at.advantage,
        information=at.information,
        # beside a normal prior, whose normaliser leaves out as many factors of (2 pi)^-1/2
        log_evidence=mass + 0.5 * (pairs.n_items * log(2.0 * pi) + at.explained - at.information.log_determinant()),
        sites=Sites(at.sites.precisions, at.sites.shifts, at.items),
        sweeps=pace.sweeps,
        converged=pace.converged,
        item_cavities=(at.own_cavity.means, at.own_cavity.variances),
    )


@dataclass(frozen=True, eq=False)
class _ShapedSweep:
    """q under a shape at given sites, and what each pair and each item would have it be."""

    shape: ScoreShape
    sites: Sites
    items: StandIns
    information: Information
    advantage: float
    explained: float
    marginal: _Moments
    cavity: _Moments
    exact: _Moments
    log_masses: FloatArray
    own: _Moments
    own_cavity: _Moments
    own_exact: _Moments
    own_log_masses: FloatArray

    @classmethod
    def of(cls, pairs: PairCounts, shape: ScoreShape, sites: Sites, items: StandIns) -> "_ShapedSweep":
        """One sweep.

        Raises:
            InputError: the sites do not make a distribution, or not without one of them.
        """
        information = Information.of_weights(pairs, sites.precisions, items)
        slope, advantage_slope = pairs.transposed(sites.shifts)
        slope = slope + items.shifts
        means, advantage = information.step(slope, advantage_slope)
        own_variances, variances = information.variances()
        own, marginal = _Moments(means, own_variances), _Moments(pairs.predictor(means, advantage), variances)
        improper = (variances <= 0.0) | (sites.precisions * variances >= 1.0)
        if improper.any() or (items.precisions * own_variances > 1.0 + _LEAST_KEPT).any():
            raise InputError("with one site taken out, the others are no distribution")
        cavity, own_cavity = _without(marginal, sites), _without(own, items)
        exact, log_masses = _tilted(pairs, cavity)
        *own_exact, own_log_masses = shape.tilted_moments(own_cavity.means, own_cavity.variances)
        return cls(
            shape=shape,
            sites=sites,
            items=items,
            information=information,
            advantage=advantage,
            explained=float(slope @ means) + advantage_slope * advantage,
            marginal=marginal,
            cavity=cavity,
            exact=exact,
            log_masses=log_masses,
            own=own,
            own_cavity=own_cavity,
            own_exact=_Moments(*own_exact),
            own_log_masses=own_log_masses,
        )

    def disagreement(self) -> float:
        return max(_disagreement(self.exact, self.marginal), _disagreement(self.own_exact, self.own))

    def onward(self, damping: float) -> "_ShapedSweep | None":
        """The next sweep, less far where that leads out of the distributions; None where nothing leads on."""
        wanted = _sites_between(self.cavity, self.exact)
        for retreat in range(_MOST_RETREATS):
            part = damping * 0.5**retreat
            items = _stand_ins_towards(self.items, self.own_cavity, self.own_exact, part)
            try:
                return _ShapedSweep.of(self.information.pairs, self.shape, _towards(self.sites, wanted, part), items)
            except InputError:
                continue
        return None


class _Pace:
    """How far sweeps go, and when they end."""

    def __init__(self, tolerance: float, most_sweeps: int) -> None:
        self.tolerance, self.most_sweeps = tolerance, most_sweeps
        self.damping, self.sweeps, self.converged = _DAMPING, 0, False
        self._previous = np.inf

    def is_done(self, disagreement: float) -> bool:
        """Whether the sweep that left moments disagreeing by so much was the last."""
        self.sweeps += 1
        self.converged = disagreement <= self.tolerance
        if self.converged or self.sweeps >= self.most_sweeps:
            return True
        worse = disagreement > self._previous
        self.damping = max(self.damping / 2.0, _LEAST_DAMPING) if worse else min(self.damping * _REGAINED, _DAMPING)
        self._previous = disagreement
        return False


def _disagreement(exact: _Moments, marginal: _Moments) -> float:
    """Largest difference between moments, in standard deviations and shares of the variance."""
    means = np.abs(exact.means - marginal.means) / np.sqrt(marginal.variances)
    variances = np.abs(exact.variances / marginal.variances - 1.0)
    return float(np.maximum(means, variances).max(initial=0.0))


def _sites_of_mode(pairs: PairCounts, prior: ScorePrior) -> Sites:
    """Laplace's approximation as sites: the tangent parabola of each log likelihood at the mode."""
    mode = find_mode(pairs, prior, prior.start(pairs.n_items), 0.0, _MODE_TOLERANCE)
    difference = pairs.predictor(mode.scores, mode.advantage)
    slopes, precisions = pairs.derivatives(mode.scores, mode.advantage)
    return Sites(precisions, slopes + precisions * difference)


def _without(marginal: _Moments, sites: Sites | StandIns) -> _Moments:
    """The cavities: q's marginals with their own site divided out."""
    # positive up to rounding where no other precision is negative
    kept = np.maximum(1.0 - sites.precisions * marginal.variances, _LEAST_KEPT)
    variances = marginal.variances / kept
    return _Moments((marginal.means - sites.shifts * marginal.variances) / kept, variances)


def _sites_between(cavity: _Moments, exact: _Moments) -> Sites:
    """The sites that make of each cavity a normal distribution with the exact moments."""
    # log-concave likelihoods narrow their cavity; the quadrature's error may say otherwise
    precisions = np.maximum(1.0 / exact.variances - 1.0 / cavity.variances, 0.0)
    return Sites(precisions, (exact.means - cavity.means) / cavity.variances + precisions * exact.means)


def _towards(sites: Sites, wanted: Sites, damping: float) -> Sites:
    return Sites(
        sites.precisions + damping * (wanted.precisions - sites.precisions),
        sites.shifts + damping * (wanted.shifts - sites.shifts),
    )


def _stand_ins_towards(items: StandIns, cavity: _Moments, exact: _Moments, damping: float) -> StandIns:
    """Like `_sites_between` and `_towards`; a shape may leave more than its cavity has."""
    kept = 1.0 / cavity.variances
    precisions = np.maximum(1.0 / exact.variances - kept, -_MOST_WIDENED * kept)
    shifts = (exact.means - cavity.means) * kept + precisions * exact.means
    return StandIns(
        items.precisions + damping * (precisions - items.precisions), items.shifts + damping * (shifts - items.shifts)
    )


def _log_masses_of(sites: Sites | StandIns, cavity: _Moments) -> FloatArray:
    """(n_pairs,) log of the integral of exp(b d - a d²/2) over the cavity."""
    stiffness = 1.0 + sites.precisions * cavity.variances
    exponent = cavity.variances * sites.shifts**2 + 2.0 * sites.shifts * cavity.means
    exponent -= sites.precisions * cavity.means**2
    masses: FloatArray = 0.5 * (exponent / stiffness - np.log(stiffness))
    return masses


def _tilted(pairs: PairCounts, cavity: _Moments) -> tuple[_Moments, FloatArray]:
    """Moments of cavity times exact likelihood, and (n_pairs,) log of its integral, `_SITES_AT_ONCE` at a time."""
    count = len(pairs.first)
    means, variances, log_masses = np.empty(count), np.empty(count), np.empty(count)
    for start in range(0, count, _SITES_AT_ONCE):
        part = slice(start, start + _SITES_AT_ONCE)
        means[part], variances[part], log_masses[part] = tilted_moments(
            pairs.first_wins[part],
            pairs.second_wins[part],
            cavity.means[part],
            cavity.variances[part],
        )
    return _Moments(means, variances), log_masses


def tilted_moments(
    wins: FloatArray, losses: FloatArray, cavity_means: FloatArray, cavity_variances: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean, variance and log integral of logistic(x)^wins logistic(-x)^losses N(x; cavity), for each of k sites.

    The trapezoidal rule on x = mode + scale·sinh(t): close together where the density is, and out to where it has
    fallen below that of a normal distribution at 7 sd, since it falls off faster than its cavity. For an analytic
    integrand that decays at both ends it converges exponentially in the spacing.

    Args:
        wins, losses: (k,).
        cavity_means, cavity_variances: (k,) logits and logits².
    """
    counts = wins + losses
    mode, curvature = _tilted_mode(wins, counts, cavity_means, cavity_variances)
    scale = np.minimum(1.0 / np.sqrt(curvature), _WIDEST_SCALE)
    reach = np.arcsinh(_CAVITY_REACH * np.sqrt(cavity_variances) / scale)
    grown = np.exp(_QUADRATURE_PLACES * reach[:, None])
    shrunk = 1.0 / grown
    off = (0.5 * scale)[:, None] * (grown - shrunk)
    x = mode[:, None] + off
    # log logistic(-x) = log logistic(x) - x: one logarithm for both, of a number between 1 and 2
    softplus = np.maximum(x, 0.0) + np.log(1.0 + np.exp(-np.abs(x)))
    exponent = wins[:, None] * x - counts[:, None] * softplus
    exponent -= (x - cavity_means[:, None]) ** 2 * (0.5 / cavity_variances)[:, None]
    top = exponent.max(axis=1)
    mass = np.exp(exponent - top[:, None]) * (grown + shrunk)
    total = mass.sum(axis=1)
    shift = np.vecdot(mass, off) / total
    variances = np.vecdot(mass, (off - shift[:, None]) ** 2) / total
    spacing = reach * (_QUADRATURE_PLACES[1] - _QUADRATURE_PLACES[0])
    log_masses = top + np.log(0.5 * total * spacing * scale) - 0.5 * np.log(2.0 * pi * cavity_variances)
    return mode + shift, variances, log_masses


def _tilted_mode(
    wins: FloatArray, counts: FloatArray, cavity_means: FloatArray, cavity_variances: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """About where each site's tilted density is highest, and the curvature of its logarithm there.

    Newton's method within a bracket: the likelihood's slope is between -losses and wins.
    """
    from scipy.special import expit

    low = cavity_means - cavity_variances * (counts - wins)
    high = cavity_means + cavity_variances * wins
    x = np.clip(0.0, low, high)
    for step in range(_MODE_STEPS + 1):
        chance = expit(x)
        curvature = counts * chance * (1.0 - chance) + 1.0 / cavity_variances
        if step == _MODE_STEPS:
            break
        slope = wins - counts * chance - (x - cavity_means) / cavity_variances
        uphill = slope > 0.0
        low, high = np.where(uphill, x, low), np.where(uphill, high, x)
        moved = x + slope / curvature
        x = np.where((moved >= low) & (moved <= high), moved, 0.5 * (low + high))
    return x, curvature
