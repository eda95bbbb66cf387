"""The width of the scores' prior: its posterior, on a grid.

log σ ~ N(log 2, 1), weighed by the marginal likelihood of the judgments, as expectation propagation estimates it.
Laplace's approximation of it is off by a little for every item that was seen once or twice, or that nearly always won
or lost, and always in favour of a narrower prior, which adds up: in a wave of disjoint pairs, whose outcomes say
nothing about the width at all, it prefers an ever smaller one the more pairs there are, and on wide scales scores are
drawn together. It only tells where to look.

Here: the grid over σ. Not here: the marginal likelihood at one width (`expectation_propagation`), the mode there
(`bradley_terry_mode`) and the scores that are reported (`bradley_terry`).

References:
    Kuss, M. & Rasmussen, C. E. (2005). Assessing approximate inference for binary Gaussian process classification.
        Journal of Machine Learning Research 6, 1679-1704.
    Tierney, L. & Kadane, J. B. (1986). Accurate approximations for posterior moments and marginal densities.
        Journal of the American Statistical Association 81, 82-86.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, floor, isfinite, log, log2, prod, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cj_pipeline.core.bradley_terry_mode import find_mode
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.expectation_propagation import Sites, propagate
from cj_pipeline.core.pair_counts import PairCounts
from cj_pipeline.core.score_prior import ScorePrior

FloatArray = NDArray[np.float64]

PRIOR_SD_RANGE: Final = (1e-4, 1e4)
"""Logits. Wider priors are maximum likelihood in all but name, and lose the digits that tell them from it."""

# Hyperprior of the fitted width: log sigma ~ N(log 2, 1), explored to 5 hyper-sd either side.
_HYPER_MEAN: Final = log(2.0)
_HYPER_REACH: Final = 5.0
# The grid covers all widths whose posterior density is within exp(-10) of the highest, by at least 11 points:
# at most 0.9 posterior sd apart, where sums over the grid equal integrals to many digits.
_LOG_DENSITY_DROP: Final = 10.0
_LEAST_GRID_POINTS: Final = 11
# Posterior sd, as Laplace's approximation has it, which is seldom too wide: about 12 points then.
_SPACING: Final = 0.78
_SITES_FOR_START: Final = 3
# One Newton step from 1e-6 leaves an error of the order of its square.
_GRID_STEP_TOLERANCE: Final = 1e-6


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


@dataclass(frozen=True, eq=False)
class WidthPosterior:
    """Posterior of log σ on an evenly spaced grid.

    Attributes:
        offsets: (k,) log σ - log 2, ascending.
        masses: (k,) posterior probabilities, summing to 1.
        log_densities: (k,) log of P(judgments | σ), as expectation propagation has it, plus that of σ's prior density
            up to a constant.
        scores: (k, n_items) the mode at each width.
        advantages: (k,) the first position's advantage at each.
        sites: what to start expectation propagation from at each.
        means: (k, n_items) of the posterior at each, by expectation propagation, summing to zero.
        variances: (k, n_items) of it, logits².
        iterations: Newton steps and sweeps of expectation propagation taken.
    """

    offsets: FloatArray
    masses: FloatArray
    log_densities: FloatArray
    scores: FloatArray
    advantages: FloatArray
    sites: tuple[Sites, ...]
    means: FloatArray
    variances: FloatArray
    iterations: int

    @property
    def advantage_variance(self) -> float:
        """Variance of the advantage over the posterior of σ, logits²."""
        return float(self.masses @ (self.advantages - self.masses @ self.advantages) ** 2)

    @property
    def widths(self) -> FloatArray:
        """(k,) σ, logits."""
        widths: FloatArray = np.exp(_HYPER_MEAN + self.offsets)
        return widths

    @property
    def centre(self) -> float:
        """exp(E[log σ]), logits."""
        return exp(_HYPER_MEAN + float(self.masses @ self.offsets))

    @property
    def interval(self) -> tuple[float, float]:
        """The 2.5 % and 97.5 % points of σ, logits, the log density taken as linear between grid points."""
        fine = np.linspace(self.offsets[0], self.offsets[-1], 4001)
        density = np.exp(np.interp(fine, self.offsets, self.log_densities - self.log_densities.max()))
        cumulative = np.cumsum(density) / density.sum()
        low, high = np.interp([0.025, 0.975], cumulative, fine)
        return exp(_HYPER_MEAN + float(low)), exp(_HYPER_MEAN + float(high))

    def score_spread(self) -> FloatArray:
        """(n_items, k) matrix S with S Sᵀ the covariance of the modes over the posterior of σ."""
        deviations = self.scores - self.masses @ self.scores
        spread: FloatArray = (np.sqrt(self.masses)[:, None] * deviations).T
        return spread


def log_hyperprior(log_width: float) -> float:
    """Log density of log σ under N(log 2, 1), up to a constant."""
    return -0.5 * (log_width - _HYPER_MEAN) ** 2


def width_posterior(
    pairs: PairCounts,
    prior_of: Callable[[float], ScorePrior],
    log_prior: Callable[[float], float] = log_hyperprior,
) -> WidthPosterior:
    """Explore log σ on a lattice that is halved where the posterior lives until it holds enough points.

    Args:
        pairs: the judgments.
        prior_of: the scores' prior at a width in logits.
        log_prior: log density of log σ up to a constant, minus infinity where σ cannot be; somewhere finite within
            `_HYPER_REACH` of log 2.
    """
    return _Lattice(pairs, prior_of, log_prior).explored()


class _Lattice:
    """What has been found of the posterior of log σ, by offset from log 2.

    Offsets are multiples of powers of two, so sums of them are exact and the lattice has no gaps.
    """

    def __init__(
        self,
        pairs: PairCounts,
        prior_of: Callable[[float], ScorePrior],
        log_prior: Callable[[float], float],
    ) -> None:
        self.pairs, self.prior_of, self.log_prior = pairs, prior_of, log_prior
        # only scores and sites are kept of each point: a factorisation is n² numbers
        self.modes: dict[float, tuple[FloatArray, float]] = {}
        self.laplace: dict[float, float] = {}
        self.sites: dict[float, Sites] = {}
        self.moments: dict[float, tuple[FloatArray, FloatArray]] = {}
        self.log_density: dict[float, float] = {}
        self.iterations = 0

    def explored(self) -> WidthPosterior:
        """The posterior, on at least `_LEAST_GRID_POINTS` points."""
        top, spacing = self._locate()
        spacing = self._spacing_for_the_grid(top, spacing)
        self._propagate(top)
        while True:
            self._extend(spacing)
            floor = max(self.log_density.values()) - _LOG_DENSITY_DROP
            inside = [offset for offset, density in self.log_density.items() if density >= floor]
            near = [
                offset
                for offset in sorted(self.log_density)
                if min(inside) - spacing <= offset <= max(inside) + spacing
            ]
            if len(inside) >= _LEAST_GRID_POINTS:
                return self._at(near)
            spacing /= 2.0
            for offset in near[:-1]:
                self._propagate(offset + spacing)

    def _locate(self) -> tuple[float, float]:
        """About where the density is highest, by Laplace's approximation, and a spacing at which neighbours see it."""
        spacing = 1.0
        for offset in np.arange(-_HYPER_REACH, _HYPER_REACH + spacing, spacing).tolist():
            if self._possible(offset):
                self._find_mode(offset)
        while True:
            top = max(self.laplace, key=self.laplace.__getitem__)
            beside = [offset for offset in (top - spacing, top + spacing) if self._possible(offset)]
            # next to the end of what is possible, no midpoint has come to lie there
            unknown = [offset for offset in beside if offset not in self.laplace]
            if unknown:
                for offset in unknown:
                    self._find_mode(offset)
                continue
            if all(self.laplace[top] - self.laplace[offset] <= _LOG_DENSITY_DROP for offset in beside):
                return top, spacing
            for offset in beside:
                self._find_mode((top + offset) / 2.0)
            spacing /= 2.0

    def _spacing_for_the_grid(self, top: float, spacing: float) -> float:
        """`spacing`, or less where the parabola through Laplace's densities says that the grid has too few points then.

        A multiple of a power of two, as all offsets are.
        """
        beside = [self.laplace.get(offset) for offset in (top - spacing, top + spacing)]
        drops = [self.laplace[top] - density for density in beside if density is not None]
        if len(drops) < 2 or sum(drops) <= 0.0:
            return spacing
        posterior_sd = spacing / sqrt(sum(drops))
        wanted = min(spacing, _SPACING * posterior_sd)
        unit = 2.0 ** floor(log2(wanted) - 2.0)
        return unit * floor(wanted / unit)

    def _extend(self, spacing: float) -> None:
        """Go on from either end until the density is negligible there."""
        for direction in (-1.0, 1.0):
            end = direction * max(direction * offset for offset in self.log_density)
            while self.log_density[end] >= max(self.log_density.values()) - _LOG_DENSITY_DROP and self._possible(
                end + direction * spacing
            ):
                end += direction * spacing
                self._propagate(end)

    def _find_mode(self, offset: float) -> None:
        prior = self.prior_of(exp(_HYPER_MEAN + offset))
        start, advantage = prior.start(self.pairs.n_items), 0.0
        if self.modes:
            start, advantage = self.modes[min(self.modes, key=lambda known: abs(known - offset))]
        mode = find_mode(self.pairs, prior, start, advantage, _GRID_STEP_TOLERANCE)
        self.modes[offset] = mode.scores, mode.advantage
        laplace = mode.objective + prior.log_normaliser(self.pairs.n_items) - 0.5 * mode.information.log_determinant()
        self.laplace[offset] = laplace + self.log_prior(_HYPER_MEAN + offset)
        self.iterations += mode.iterations

    def _propagate(self, offset: float) -> None:
        found = propagate(self.pairs, self.prior_of(exp(_HYPER_MEAN + offset)), self._sites_near(offset))
        self.sites[offset] = found.sites
        self.moments[offset] = found.centred_moments()
        self.log_density[offset] = found.log_evidence + self.log_prior(_HYPER_MEAN + offset)
        self.iterations += found.sweeps
        if offset not in self.modes:
            self._find_mode(offset)

    def _sites_near(self, offset: float) -> Sites | None:
        """On the curve through the sites of the three nearest points (Lagrange); None if none is known."""
        near = sorted(self.sites, key=lambda known: (abs(known - offset), known))[:_SITES_FOR_START]
        if not near:
            return None
        shares = [prod((offset - other) / (known - other) for other in near if other != known) for known in near]
        weighted = [(share, self.sites[known]) for share, known in zip(shares, near, strict=True)]
        return Sites(
            np.maximum(sum(share * sites.precisions for share, sites in weighted), 0.0),
            np.asarray(sum(share * sites.shifts for share, sites in weighted)),
        )

    def _possible(self, offset: float) -> bool:
        return abs(offset) <= _HYPER_REACH and isfinite(self.log_prior(_HYPER_MEAN + offset))

    def _at(self, offsets: list[float]) -> WidthPosterior:
        densities = np.array([self.log_density[offset] for offset in offsets])
        masses = np.exp(densities - densities.max())
        return WidthPosterior(
            offsets=np.array(offsets),
            masses=masses / masses.sum(),
            log_densities=densities,
            scores=np.array([self.modes[offset][0] for offset in offsets]),
            advantages=np.array([self.modes[offset][1] for offset in offsets]),
            sites=tuple(self.sites[offset] for offset in offsets),
            means=np.array([self.moments[offset][0] for offset in offsets]),
            variances=np.array([self.moments[offset][1] for offset in offsets]),
            iterations=self.iterations,
        )
