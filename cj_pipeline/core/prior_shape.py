"""The shape of the scores' prior, learned from the batch, and the scores' posterior over widths and shapes.

On a long scale most judgments are between neighbours, and how far its ends are apart rests on what is taken to be known
of the scores. Under a normal prior whose width is fitted, essays that lie in two groups, in one long tail, or evenly
along the scale are drawn together, all in the same direction, and their intervals do not know it. So of batches that
are large enough the shape is learned: log density = a spline of the score, smooth in that its third derivative is
small,

    log p(spline) = -smoothing/2 · ∫ (f'''(z))² dz,     z = score / width,

which leaves the normal density alone, since a parabola has none. The spline is fitted by what is left of each item when
its own prior is taken out of the posterior, its cavity (`spline_density`, with sources). Cavities depend on the prior
in turn, so the two are found by turns (`expectation_propagation`). Smoothings are tried from strong to weak. Each, and
the normal prior, counts by its marginal likelihood: that of the judgments under the shape, the width integrated out,
times Laplace's approximation of the integral over the spline (with cavities held), less what expectation propagation
errs by in favour of shapes where judgments are few.

Here: learning, and the average. Not here: the fit of a spline to cavities (`spline_density`), the density and its
moments (`score_shape`), the posterior of a normal prior's width (`prior_width`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, log
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.expectation_propagation import NormalPosterior, Sites, propagate
from cj_pipeline.core.pair_counts import PairCounts
from cj_pipeline.core.prior_width import WidthPosterior
from cj_pipeline.core.score_prior import IndependentPrior, ScorePrior, StandIns
from cj_pipeline.core.score_shape import ScoreShape
from cj_pipeline.core.spline_density import CavityFit, LogDensitySplines

FloatArray = NDArray[np.float64]

SHAPED_FROM: Final = 100
"""Items. Fewer hardly show a shape, and keep the normal prior."""

SHAPED_UP_TO: Final = 3_000
"""Items. More keep it, too: every sweep takes a dense matrix of them."""

SMOOTHINGS: Final = (1.0, 0.1, 0.01)
"""Strong to weak. What is beyond the normal prior has half of the prior probability, evenly shared."""

SHAPE_TOLERANCE: Final = 0.01
"""Of expectation propagation under a shape: looser than elsewhere, as with humps moments settle slowly, and evidence is
close before they are."""

_ROUND_TOLERANCE: Final = 0.02
_MOST_ROUNDS: Final = 40
_MOST_SWEEPS: Final = 40
_LEAST_GAIN: Final = 0.02
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
        normal = [not isinstance(prior, ScoreShape) for prior in self.priors]
        return 1.0 if all(normal) else float(self.masses[normal].sum())

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
        self.basis = LogDensitySplines.over(normal.means[top], self.start_width)
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
            fit = CavityFit.of(self.basis, means - found.means.mean(), variances, smoothing)
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
