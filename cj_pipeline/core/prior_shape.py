"""The shape of the scores' prior, learned from the batch, and the scores' posterior over widths and shapes.

On a long scale most judgments are between neighbours, and how far its ends are apart rests on what is taken to be known
of the scores. Under a normal prior whose width is fitted, essays that lie in two groups, in one long tail, or evenly
along the scale are drawn together, all in the same direction, and their intervals do not know it. So of batches that
are large enough the shape is learned: log density = a spline of the score, smooth in that its third derivative is
small,

    log p(spline) = -smoothing/2 · ∫ (f'''(z))² dz,     z = score / width,

which leaves the normal density alone, since a parabola has none (Silverman 1982). The spline is fitted as Efron (2016)
fits densities behind noise: by what is left of each item when its own prior is taken out of the posterior, its cavity.
Cavities depend on the prior in turn, so the two are found by turns (`expectation_propagation`). Smoothings are tried
from strong to weak. Each, and the normal prior, counts by its marginal likelihood: that of the judgments under the
shape, the width integrated out, times Laplace's approximation of the integral over the spline (with cavities held),
less what expectation propagation errs by in favour of shapes where judgments are few.

Here: learning, and the average. Not here: the density and its moments (`score_shape`), the posterior of a normal
prior's width (`prior_width`).

References:
    Efron, B. (2016). Empirical Bayes deconvolution estimates. Biometrika 103, 1-20.
    Silverman, B. W. (1982). On the estimation of a probability density function by the maximum penalized likelihood
        method. Annals of Statistics 10, 795-810.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import ceil, isfinite, log
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.expectation_propagation import NormalPosterior, Sites, propagate
from cj_pipeline.core.pair_counts import PairCounts
from cj_pipeline.core.prior_width import WidthPosterior
from cj_pipeline.core.score_prior import IndependentPrior, ScorePrior, StandIns
from cj_pipeline.core.score_shape import ScoreShape, score_shape

FloatArray = NDArray[np.float64]

SHAPED_FROM: Final = 100
"""Items. Fewer hardly show a shape, and keep the normal prior."""

SHAPED_UP_TO: Final = 3_000
"""Items. More keep it, too: every sweep takes a dense matrix of them."""

SMOOTHINGS: Final = (1.0, 0.1, 0.01)
"""Strong to weak. What is beyond the normal prior has half of the prior probability, evenly shared."""

# In widths of the normal prior: between knots of the spline, between places of the fit and of the result, beyond the
# outermost item.
_KNOT_SPACING: Final = 0.5
_PLACE_SPACING: Final = 0.06
_PLACES_PER_FIT: Final = 4
_BEYOND: Final = 3.0
_MOST_ROUNDS: Final = 40
_STEPS_PER_ROUND: Final = 2
# Looser than elsewhere: evidence is close before moments are, and with humps these settle slowly.
_ROUND_TOLERANCE: Final = 0.02
SHAPE_TOLERANCE: Final = 0.01
_MOST_SWEEPS: Final = 40
_LEAST_GAIN: Final = 0.02
_MOST_HALVINGS: Final = 10
_LEAST_CURVATURE: Final = 1e-3
# Nats per item and squared judgment per item: of 600 normally spread items with 4 judgments each, expectation
# propagation had 8 nats more than thermodynamic integration for a shape it had learned, of 120 with some 18 each none.
_EVIDENCE_ERROR: Final = 0.25
# Logarithms: of the share below which a smoothing is left out, and of the density below which a width is.
_NEGLIGIBLE: Final = 4.0
_LOG_DENSITY_DROP: Final = 7.0
# Logarithm of the most that a shape is stretched or compressed.
_WIDTH_REACH: Final = 3.0


@dataclass(frozen=True, eq=False)
class ScorePosterior:
    """The scores' posterior as a mixture of normal ones, one for each prior that is not ruled out.

    Attributes:
        priors: (k,) of them.
        masses: (k,) posterior probabilities, summing to 1.
        widths: (k,) standard deviation of each prior, logits.
        means: (k, n_items) logits, each summing to zero.
        variances: (k, n_items) logits², of centred scores.
        sites: (k,) what to start expectation propagation from at each.
        examined: whether shapes were tried.
        sweeps: of expectation propagation that this took.
    """

    priors: tuple[ScorePrior | ScoreShape, ...]
    masses: FloatArray
    widths: FloatArray
    means: FloatArray
    variances: FloatArray
    sites: tuple[Sites, ...]
    examined: bool
    sweeps: int

    @cached_property
    def normal_share(self) -> float:
        """Posterior probability of the normal priors together; 1 where there are no others."""
        shaped = [isinstance(prior, ScoreShape) for prior in self.priors]
        return 1.0 - float(self.masses[shaped].sum())

    def moments(self) -> tuple[FloatArray, FloatArray]:
        """(n_items,) posterior means and standard deviations of centred scores, logits, the prior integrated out."""
        mean = self.masses @ self.means
        variance = self.masses @ (self.variances + (self.means - mean) ** 2)
        return mean, np.sqrt(np.maximum(variance, 0.0))

    def spread(self) -> FloatArray:
        """(n_items, k) matrix S with S Sᵀ the covariance of the means over the priors."""
        deviations = self.means - self.masses @ self.means
        spread: FloatArray = (np.sqrt(self.masses)[:, None] * deviations).T
        return spread

    def likeliest_shape(self) -> "Likeliest | None":
        """The likeliest prior that is not normal; None where a normal one is as likely as all these together."""
        if self.normal_share >= 0.5:
            return None
        shaped = [
            (mass, place, sites.of_items)
            for place, (mass, sites) in enumerate(zip(self.masses.tolist(), self.sites, strict=True))
            if sites.of_items is not None
        ]
        _, place, stand_ins = max(shaped, key=lambda found: found[0])
        return Likeliest(self.sites[place], stand_ins)


@dataclass(frozen=True, eq=False)
class Likeliest:
    """What stands for the likeliest shape.

    Attributes:
        sites: of the pairs.
        stand_ins: of the prior.
    """

    sites: Sites
    stand_ins: StandIns


def posterior_over_shapes(
    pairs: PairCounts,
    normal: WidthPosterior,
    prior_of: Callable[[float], ScorePrior],
    log_prior: Callable[[float], float],
    *,
    shaped: bool,
) -> ScorePosterior:
    """Average over the widths of a normal prior and, from `SHAPED_FROM` items on, over learned shapes.

    Args:
        pairs: the judgments.
        normal: the posterior of the normal prior's width.
        prior_of: the normal prior at a width, logits.
        log_prior: log density of log width, up to a constant; of a shape, of its standard deviation. A shape that
            is learned at a width where it is minus infinity is left out.
        shaped: whether shapes are tried, where judgments connect all items; with known items they are not.
    """
    points = [
        _Point(prior_of(width), width, float(density), mean, variance, sites)
        for width, density, mean, variance, sites in zip(
            normal.widths.tolist(), normal.log_densities, normal.means, normal.variances, normal.sites, strict=True
        )
    ]
    sweeps = 0
    connected = not pairs.components.any()
    examined = shaped and connected and SHAPED_FROM <= pairs.n_items <= SHAPED_UP_TO
    if examined:
        search = _Search(pairs, normal, log_prior)
        search.run()
        points += search.points
        sweeps = search.sweeps
    weights = np.array([point.log_weight for point in points])
    masses = np.exp(weights - weights.max())
    masses /= masses.sum()
    return ScorePosterior(
        priors=tuple(point.prior for point in points),
        masses=masses,
        widths=np.array([point.width for point in points]),
        means=np.array([point.means for point in points]),
        variances=np.array([point.variances for point in points]),
        sites=tuple(point.sites for point in points),
        examined=examined,
        sweeps=sweeps,
    )


def posterior_at_one_width(pairs: PairCounts, width: float) -> ScorePosterior:
    """The posterior of the scores under one normal prior, its width known, logits."""
    prior = IndependentPrior(width)
    found = propagate(pairs, prior)
    mean, variance = found.centred_moments()
    return ScorePosterior(
        priors=(prior,),
        masses=np.ones(1),
        widths=np.array([width]),
        means=mean[None],
        variances=variance[None],
        sites=(found.sites,),
        examined=False,
        sweeps=found.sweeps,
    )


@dataclass(frozen=True, eq=False)
class _Point:
    """One prior: its standard deviation, log of its weight, and the posterior under it."""

    prior: ScorePrior | ScoreShape
    width: float
    log_weight: float
    means: FloatArray
    variances: FloatArray
    sites: Sites


@dataclass(frozen=True, eq=False)
class _Learned:
    """What one smoothing came to."""

    shape: ScoreShape
    found: NormalPosterior
    log_share: float


class _Search:
    """Shapes of one batch, from strong smoothing to weak, and widths of each."""

    def __init__(self, pairs: PairCounts, normal: WidthPosterior, log_prior: Callable[[float], float]) -> None:
        self.pairs, self.log_prior = pairs, log_prior
        self.spacing = float(normal.offsets[1] - normal.offsets[0])
        top = int(np.argmax(normal.log_densities))
        self.start_width, self.start_sites = float(normal.widths[top]), normal.sites[top]
        self.basis = _Splines.over(normal.means[top], self.start_width)
        self.normal_top = float(normal.log_densities[top]) - log_prior(log(self.start_width))
        judgments = float(pairs.comparison_counts().mean())
        self.evidence_error = _EVIDENCE_ERROR * pairs.n_items / judgments**2
        self.points: list[_Point] = []
        self.sweeps = 0

    def run(self) -> None:
        """Find the points of all shapes that are not ruled out."""
        learned: list[_Learned] = []
        coefficients, sites = self.basis.parabola(self.start_width), self.start_sites
        best = self.normal_top
        for smoothing in SMOOTHINGS:
            result = self._learn(coefficients, sites, smoothing)
            if result is None:
                break
            coefficients, latest = result
            sites = latest.found.sites
            learned.append(latest)
            best = max(best, latest.found.log_evidence + latest.log_share)
        for latest in learned:
            if latest.found.log_evidence + latest.log_share > best - _NEGLIGIBLE:
                self._explore_widths(latest)

    def _learn(self, coefficients: FloatArray, sites: Sites, smoothing: float) -> tuple[FloatArray, _Learned] | None:
        """Spline and posterior by turns; None where the posterior cannot be found."""
        rounds = 0
        while True:
            rounds += 1
            shape = self.basis.shape(coefficients)
            found = self._propagate(shape, sites, _ROUND_TOLERANCE)
            if found is None or found.item_cavities is None:
                return None
            sites = found.sites
            # judgments do not see where all scores lie: the middle stays at zero
            means, variances = found.item_cavities
            fit = _CavityFit.of(self.basis, means - found.means.mean(), variances, smoothing)
            improved, gain = fit.improved(coefficients)
            if gain < _LEAST_GAIN or rounds == _MOST_ROUNDS:
                # with half of the prior probability for all smoothings
                handicap = log(len(SMOOTHINGS)) + self.evidence_error
                return coefficients, _Learned(shape, found, fit.log_occam(coefficients) - handicap)
            coefficients = improved

    def _explore_widths(self, learned: _Learned) -> None:
        """Points at the widths of one shape, as far apart as those of the normal prior."""
        centre = self._point(learned, 0, learned.found.sites)
        if centre is None:
            return
        self.points.append(centre)
        top = centre.log_weight
        for direction in (1, -1):
            step, latest = direction, centre
            start = _stretched(centre.sites, float(np.exp(direction * self.spacing)))
            while True:
                point = self._point(learned, step, start) or self._point(learned, step, latest.sites)
                if point is None or point.log_weight < top - _LOG_DENSITY_DROP:
                    break
                self.points.append(point)
                top = max(top, point.log_weight)
                start, latest = _beyond(latest.sites, point.sites), point
                step += direction

    def _point(self, learned: _Learned, step: int, start: Sites) -> _Point | None:
        """One width of a shape; None where it cannot be, or its posterior cannot be found."""
        shape = learned.shape.stretched(float(np.exp(step * self.spacing)))
        log_prior = self.log_prior(log(shape.sd))
        if abs(step) * self.spacing > _WIDTH_REACH or not isfinite(log_prior):
            return None
        found = self._propagate(shape, start, SHAPE_TOLERANCE)
        if found is None:
            return None
        weight = found.log_evidence + log_prior + learned.log_share
        return _Point(shape, shape.sd, weight, *found.centred_moments(), found.sites)

    def _propagate(self, shape: ScoreShape, sites: Sites, tolerance: float) -> NormalPosterior | None:
        try:
            found = propagate(self.pairs, shape, sites, tolerance=tolerance, most_sweeps=_MOST_SWEEPS)
        except InputError:
            # with humps, stand-ins may be negative, and all together not be a distribution
            return None
        self.sweeps += found.sweeps
        # away from the fixed point the evidence may be anything
        return found if found.converged and isfinite(found.log_evidence) else None


def _stretched(sites: Sites, factor: float) -> Sites:
    """A start at a shape `factor` times as wide."""
    items = sites.of_items
    if items is None:
        return sites
    return Sites(sites.precisions, sites.shifts, StandIns(items.precisions / factor**2, items.shifts / factor))


def _beyond(before: Sites, latest: Sites) -> Sites:
    """A start as far beyond the latest sites as these are beyond the ones before."""
    items = latest.of_items
    if items is None or before.of_items is None:
        return latest
    return Sites(
        np.maximum(2.0 * latest.precisions - before.precisions, 0.0),
        2.0 * latest.shifts - before.shifts,
        StandIns(2.0 * items.precisions - before.of_items.precisions, 2.0 * items.shifts - before.of_items.shifts),
    )


@dataclass(frozen=True, eq=False)
class _Splines:
    """Cubic B-splines on evenly spaced knots: the space of log densities.

    Attributes:
        knot_spacing: in widths.
        places: (g,) logits, where densities are fitted; `design`: (g, k) the splines there.
        fine_places, fine_design: the same where they are reported.
    """

    knot_spacing: float
    places: FloatArray
    design: FloatArray
    fine_places: FloatArray
    fine_design: FloatArray

    @classmethod
    def over(cls, means: FloatArray, width: float) -> "_Splines":
        """Splines that reach beyond all items."""
        from scipy.interpolate import BSpline

        low, high = float(means.min()) - _BEYOND * width, float(means.max()) + _BEYOND * width
        stretches = ceil((high - low) / (_KNOT_SPACING * width))
        count = _PLACES_PER_FIT * ceil((high - low) / (_PLACE_SPACING * width))
        # in units of the spacing of the knots; the last place belongs to the last stretch
        along = np.minimum(np.linspace(0.0, stretches, count + 1), np.nextafter(float(stretches), 0.0))
        fine = BSpline.design_matrix(along, np.arange(-3.0, stretches + 4.0), 3).toarray()
        fine_places = np.linspace(low, high, count + 1)
        spacing = (high - low) / stretches / width
        return cls(spacing, fine_places[::_PLACES_PER_FIT], fine[::_PLACES_PER_FIT], fine_places, fine)

    def parabola(self, width: float) -> FloatArray:
        """(k,) coefficients of the log density of N(0, width²), up to a constant."""
        return np.asarray(np.linalg.lstsq(self.design, -0.5 * (self.places / width) ** 2)[0], dtype=np.float64)

    def shape(self, coefficients: FloatArray) -> ScoreShape:
        """The density, finely."""
        return score_shape(self.fine_places, self.fine_design @ coefficients)

    @cached_property
    def bends(self) -> FloatArray:
        """(k, k) matrix B, cᵀBc the integral of the squared third derivative, by differences of coefficients."""
        differences = np.diff(np.eye(self.design.shape[1]), 3, axis=0)
        bends: FloatArray = differences.T @ differences / self.knot_spacing**5
        return bends

    @cached_property
    def directions(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Orthonormal: (k, 2) the straight line and the parabola; (k, k - 3) the bent, and (k - 3,) how much they are.

        Left out is the constant, which densities do not have.
        """
        bent, basis = np.linalg.eigh(self.bends)
        k = len(bent)
        trend = np.linspace(-1.0, 1.0, k)
        unbent = np.linalg.qr(np.stack([np.ones(k), trend, trend**2], axis=1))[0][:, 1:]
        return unbent, basis[:, 3:], bent[3:]


@dataclass(frozen=True, eq=False)
class _CavityFit:
    """The penalised likelihood of a spline, given each item's cavity.

    Attributes:
        basis: of the log density.
        log_kernels: (n_items, g) log of each cavity's density at the places, up to a constant.
        penalty: (k, k) the smoothing times `bends`.
    """

    basis: _Splines
    log_kernels: FloatArray
    penalty: FloatArray

    @classmethod
    def of(cls, basis: _Splines, means: FloatArray, variances: FloatArray, smoothing: float) -> "_CavityFit":
        kernels = (basis.places - means[:, None]) ** 2 * (-0.5 / variances)[:, None]
        return cls(basis, kernels, smoothing * basis.bends)

    def improved(self, coefficients: FloatArray) -> tuple[FloatArray, float]:
        """Coefficients after a few Newton steps, and how much the objective has gained."""
        began = value = self._objective(coefficients)
        for _ in range(_STEPS_PER_ROUND):
            slope, curvature = self._derivatives(coefficients)
            bent, basis = np.linalg.eigh(curvature)
            step = basis @ ((basis.T @ slope) / np.maximum(np.abs(bent), _LEAST_CURVATURE))
            for halving in range(_MOST_HALVINGS):
                tried = coefficients + 0.5**halving * step
                reached = self._objective(tried)
                if reached > value:
                    coefficients, value = tried, reached
                    break
            else:
                break
        return coefficients, value - began

    def log_occam(self, coefficients: FloatArray) -> float:
        """Log of prior density times volume of the spline's bends, by Laplace, beside a parabola's."""
        unbent, bent, bends = self.basis.directions
        curvature = self._derivatives(coefficients)[1]
        every = np.concatenate([unbent, bent], axis=1)
        whole = _log_determinant(every.T @ curvature @ every)
        smoothing = self.penalty[0, 0] / self.basis.bends[0, 0]
        prior = float(np.log(smoothing * bends).sum()) - float(coefficients @ self.penalty @ coefficients)
        return 0.5 * (prior - whole + _log_determinant(unbent.T @ curvature @ unbent))

    def _log_density(self, coefficients: FloatArray) -> FloatArray:
        from scipy.special import logsumexp

        values = self.basis.design @ coefficients
        return np.asarray(values - logsumexp(values))

    def _objective(self, coefficients: FloatArray) -> float:
        from scipy.special import logsumexp

        fitted = logsumexp(self.log_kernels + self._log_density(coefficients), axis=1).sum()
        return float(fitted) - 0.5 * float(coefficients @ self.penalty @ coefficients)

    def _derivatives(self, coefficients: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(k,) slope of the objective and (k, k) its curvature, negated."""
        design, log_density = self.basis.design, self._log_density(coefficients)
        density = np.exp(log_density)
        placed = self.log_kernels + log_density
        placed = np.exp(placed - placed.max(axis=1, keepdims=True))
        placed /= placed.sum(axis=1, keepdims=True)
        n = len(placed)
        mean, means, found = density @ design, placed @ design, placed.sum(axis=0)
        slope = design.T @ (found - n * density) - self.penalty @ coefficients
        curvature = design.T @ ((n * density - found)[:, None] * design)
        curvature += means.T @ means - n * np.outer(mean, mean) + self.penalty
        return slope, curvature


def _log_determinant(matrix: FloatArray) -> float:
    """Of a matrix that should be positive definite; what is not counts as hardly curved."""
    return float(np.log(np.maximum(np.linalg.eigvalsh(matrix), _LEAST_CURVATURE)).sum())
