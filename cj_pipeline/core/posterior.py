"""Draws from the posterior of the scores, the width of their prior integrated out.

Model: P(i beats j) = logistic(score_i - score_j + γ·[i read first] - γ·[j read first]); scores independently N(0, σ²);
a prior on the width σ; γ, the order effect, N(0, 1), or absent. Where a batch shows that its scores are not normally
spread, shapes learned from it stand beside that prior (`prior_shape`). Here: the draws, by Gibbs sampling for batches
of up to `GIBBS_UP_TO_ITEMS` items under the normal prior, and by expectation propagation otherwise. Not here:
Pólya–Gamma variables (`polya_gamma`) and what is read from draws, intervals, ranks, reliability (`reliability`).
`completion` imports none of this.

The Gibbs sampler. Given Pólya–Gamma variables, one per pair, scores and γ are jointly normal (Polson, Scott & Windle
2013). So a sweep (1) draws these variables given scores and γ; (2) moves the width by Metropolis steps with scores and
γ integrated out in closed form, then draws them given the width, by one more Cholesky factor; (3) moves the width once
more with the scores in units of it held fixed and the Pólya–Gamma variables integrated out (interweaving, Yu & Meng
2011). Drawing the width given the scores, as textbooks do, is slow where pairs are neighbours and the scale hangs
together by long chains. Of small batches several chains run at once, for what a sweep costs is mostly the number of
its steps.

References:
    Geyer, C. J. (1992). Practical Markov chain Monte Carlo. Statistical Science 7, 473-483.
    Polson, N. G., Scott, J. G. & Windle, J. (2013). Bayesian inference for logistic models using Pólya–Gamma latent
        variables. Journal of the American Statistical Association 108, 1339-1349.
    Yu, Y. & Meng, X.-L. (2011). To center or not to center: that is not the question. Journal of Computational and
        Graphical Statistics 20, 531-570.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import exp, inf, isfinite, log
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from cj_pipeline.core.bradley_terry_mode import find_mode
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.expectation_propagation import MOMENT_TOLERANCE, propagate
from cj_pipeline.core.judgment_table import JudgmentTable, PairSums
from cj_pipeline.core.pair_counts import PairCounts, count_pairs, counts_of
from cj_pipeline.core.polya_gamma import draw_polya_gamma
from cj_pipeline.core.prior_shape import (
    SHAPE_TOLERANCE,
    SHAPED_FROM,
    ScorePosterior,
    posterior_at_one_width,
    posterior_over_shapes,
)
from cj_pipeline.core.prior_width import width_posterior
from cj_pipeline.core.score_prior import IndependentPrior
from cj_pipeline.core.score_shape import ScoreShape

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

GIBBS_UP_TO_ITEMS: Final = 300
"""Above, a sweep's cubic cost makes expectation propagation the better buy."""

# Standard deviations of the proposals for log σ, from fine to far.
_COLLAPSED_MOVES: Final = (0.3, 1.5)
_SCALING_MOVES: Final = (0.1, 0.4, 1.2)
# Chains at once, and up to how many items: above, a step's arithmetic outweighs its overhead, and each chain burns in.
_CHAINS: Final = 8
_MANY_CHAINS_UP_TO: Final = 100
_CORRECTION_SWEEPS: Final = 30
# Log density where a shape has none: a draw that starts there takes any step that leads back.
_OUTSIDE: Final = -1e9
# Logits. Where chains begin does not matter much.
_NEAR_THE_MODE: Final = 1e-3


@dataclass(frozen=True)
class WidthPrior:
    """A prior on σ, the width of the scores' prior, given by the density of log σ up to a constant.

    Attributes:
        name: what results call it.
        low, high: logits; outside, the density is zero.
        log_density: of log σ, up to a constant.
    """

    name: str
    low: float
    high: float
    log_density: Callable[[float], float]


WIDTH_PRIORS: Final = {
    prior.name: prior
    for prior in (
        WidthPrior("lognormal", exp(log(2.0) - 5.0), exp(log(2.0) + 5.0), lambda x: -0.5 * (x - log(2.0)) ** 2),
        WidthPrior("flat", 1e-3, 10.0, lambda x: x),
        WidthPrior("flat-log", 1e-2, 10.0, lambda _: 0.0),
    )
}
"""lognormal: log σ ~ N(log 2, 1), as in the fit. flat: σ uniform up to 10 logits. flat-log: log σ uniform, .01 to 10.

The flat ones are improper unless bounded: outcomes that a very wide prior explains perfectly (nobody contradicts
anybody) never rule it out, and no outcome rules out σ = 0, which flat-log would then make certain.
"""


@dataclass(frozen=True, eq=False)
class PosteriorDraws:
    """Draws from the posterior of one batch. Made by `draw_posterior`.

    Attributes:
        scores: (n_draws, n_items) logits, every draw summing to zero.
        widths: (n_draws,) σ, logits: the standard deviation of the prior, whatever its shape.
        order_effects: (n_draws,) γ, logits: the advantage of the essay read first; None if it was not in the model.
        method: "gibbs" (exact up to Monte Carlo error) or "ep" (expectation propagation: normal around the mean at
            each width and shape, most of the skewness put back).
        width_prior: name of the prior on σ, or "fixed".
    """

    scores: FloatArray
    widths: FloatArray
    order_effects: FloatArray | None
    method: Literal["gibbs", "ep"]
    width_prior: str

    @property
    def n_items(self) -> int:
        """Number of items."""
        return int(self.scores.shape[1])

    @cached_property
    def means(self) -> FloatArray:
        """(n_items,) posterior mean scores, logits."""
        means: FloatArray = self.scores.mean(axis=0)
        return means

    @cached_property
    def effective_draws(self) -> float:
        """How many independent draws the least well mixed item score is worth (Geyer 1992); n_draws for EP."""
        if self.method == "ep":
            return float(len(self.scores))
        return float(effective_sizes(self.scores).min())


def draw_posterior(
    table: JudgmentTable,
    *,
    seed: int,
    n_draws: int = 1000,
    width_prior: Literal["lognormal", "flat", "flat-log"] | float = "lognormal",
    order_effect: bool = False,
    burn_in: int = 200,
    thin: int = 3,
    gibbs_up_to: int = GIBBS_UP_TO_ITEMS,
) -> PosteriorDraws:
    """Draw scores, σ and (if asked for) the order effect from their joint posterior.

    The draws depend on the judgments and the seed only, not on the order of the judgments.

    Args:
        table: the judgments.
        seed: of the random numbers.
        n_draws: draws returned, at least 2.
        width_prior: a name from `WIDTH_PRIORS`, or a number: σ fixed there, logits.
        order_effect: whether γ is in the model; the table must then know the reading order.
        burn_in, thin: sweeps left out at the start, and sweeps per returned draw (Gibbs).
        gibbs_up_to: items; larger batches, and those whose scores are probably not normally spread, are drawn by
            expectation propagation, and `method` says so.

    Raises:
        InputError: a count out of range, an unknown prior, a width that is not positive, a reading order that is
            wanted and not known.
    """
    if n_draws < 2 or burn_in < 0 or thin < 1:
        raise InputError(f"need n_draws >= 2, burn_in >= 0, thin >= 1, not {n_draws}, {burn_in}, {thin}")
    sums = table.readings if order_effect else table.pairs
    prior = _width_prior(width_prior)
    rng = np.random.default_rng(seed)
    many = table.n_items > gibbs_up_to
    if many or (table.n_items >= SHAPED_FROM and prior.low < prior.high):
        first = table.known_order() if order_effect else None
        pairs = count_pairs(table.winners, table.losers, table.n_items, None, first)
        found = _over_priors(pairs, prior)
        if many or found.likeliest_shape() is not None:
            scores, widths, effects = _propagated(sums, pairs, found, n_draws, rng)
            return PosteriorDraws(scores, widths, effects if order_effect else None, "ep", prior.name)
    return _gibbs(sums, prior, order_effect, n_draws, burn_in, thin, rng)


def _width_prior(choice: str | float) -> WidthPrior:
    if isinstance(choice, str):
        if choice not in WIDTH_PRIORS:
            raise InputError(f"width_prior {choice!r} is not known: one of {', '.join(WIDTH_PRIORS)}, or a number")
        return WIDTH_PRIORS[choice]
    width = float(choice)
    if not (isfinite(width) and width > 0):
        raise InputError(f"width_prior {choice!r} must be a positive number of logits")
    return WidthPrior("fixed", width, width, lambda _: 0.0)


# -- Gibbs -----------------------------------------------------------------------------------------------------


def _gibbs(
    sums: PairSums,
    prior: WidthPrior,
    order_effect: bool,
    n_draws: int,
    burn_in: int,
    thin: int,
    rng: np.random.Generator,
) -> PosteriorDraws:
    n = sums.n_items
    chains = min(_CHAINS, n_draws) if n <= _MANY_CHAINS_UP_TO else 1
    per_chain = -(-n_draws // chains)
    low, high = log(prior.low), log(prior.high)
    start = min(max(2.0, prior.low), prior.high)
    log_widths = np.full(chains, log(start))
    design, moves = _Design(sums, order_effect, chains), prior.low < prior.high
    mode = find_mode(counts_of(sums, ordered=order_effect), IndependentPrior(start), np.zeros(n), 0.0, _NEAR_THE_MODE)
    states = np.tile(np.append(mode.scores, [mode.advantage] * order_effect), (chains, 1))
    kept_states, kept_widths = np.empty((per_chain, chains, design.size)), np.empty((per_chain, chains))

    def log_prior(at: FloatArray) -> FloatArray:
        return np.array([prior.log_density(value) if low <= value <= high else -inf for value in at.tolist()])

    def accepted(gains: FloatArray) -> NDArray[np.bool_]:
        chosen: NDArray[np.bool_] = -rng.standard_exponential(chains) < gains
        return chosen

    for sweep in range(burn_in + per_chain * thin):
        differences = design.differences(states)
        weights = draw_polya_gamma(np.tile(sums.totals, chains), differences.ravel(), rng).reshape(chains, -1)
        information = design.information(weights)
        normal = _NormalGivenWeights.at(design, information, log_widths)
        if moves:
            for reach in _COLLAPSED_MOVES:
                proposals = log_widths + reach * rng.standard_normal(chains)
                # a width that cannot be is not factorised; its prior refuses it
                proposed = _NormalGivenWeights.at(design, information, np.clip(proposals, low, high))
                gains = proposed.log_evidence + log_prior(proposals) - normal.log_evidence - log_prior(log_widths)
                better = accepted(gains)
                log_widths = np.where(better, proposals, log_widths)
                normal = normal.where(better, proposed)
        states = normal.draw(rng)
        if moves:
            # scores in units of the width stay as they are
            differences = design.differences(states)
            effects = states[:, n:].sum(axis=1)[:, None]
            shapes = (differences - effects) * np.exp(-log_widths)[:, None]
            densities = sums.log_likelihoods(differences) + log_prior(log_widths)
            before = log_widths
            for reach in _SCALING_MOVES:
                proposals = log_widths + reach * rng.standard_normal(chains)
                scale = np.exp(np.clip(proposals, low, high))[:, None]
                values = sums.log_likelihoods(scale * shapes + effects) + log_prior(proposals)
                better = accepted(values - densities)
                log_widths, densities = np.where(better, proposals, log_widths), np.where(better, values, densities)
            states[:, :n] *= np.exp(log_widths - before)[:, None]
        kept, position = divmod(sweep - burn_in, thin)
        if sweep >= burn_in and position == thin - 1:
            kept_states[kept], kept_widths[kept] = states, np.exp(log_widths)
    # one chain after the other, as far as draws are wanted
    drawn = kept_states.swapaxes(0, 1).reshape(-1, design.size)[:n_draws]
    scores = drawn[:, :n] - drawn[:, :n].mean(axis=1, keepdims=True)
    effects_drawn = drawn[:, n].copy() if order_effect else None
    return PosteriorDraws(scores, kept_widths.T.ravel()[:n_draws], effects_drawn, "gibbs", prior.name)


class _Design:
    """Which items, and the order effect, each pair's difference is made of; one row of X per pair.

    States and weights are those of several chains at once, one per row.
    """

    def __init__(self, sums: PairSums, order_effect: bool, chains: int) -> None:
        n = sums.n_items
        self.sums, self.order_effect, self.chains = sums, order_effect, chains
        self.size = n + order_effect
        self.right = self._transposed(sums.first_wins - sums.totals / 2.0)
        chain = np.arange(chains)[:, None]
        self._cells = (chain * self.size**2 + sums.first * self.size + sums.second).ravel()
        self._first, self._second = (chain * n + sums.first).ravel(), (chain * n + sums.second).ravel()

    def differences(self, states: FloatArray) -> FloatArray:
        """(chains, n_pairs) X states, for (chains, size) states."""
        sums = self.sums
        differences: FloatArray = states[:, sums.first] - states[:, sums.second]
        return differences + states[:, -1:] if self.order_effect else differences

    def _transposed(self, values: FloatArray) -> FloatArray:
        """(size,) Xᵀ values: per item the sum over pairs where it is first less where it is second; then the sum."""
        sums, n = self.sums, self.sums.n_items
        per_item = np.bincount(sums.first, weights=values, minlength=n).astype(np.float64)
        per_item -= np.bincount(sums.second, weights=values, minlength=n)
        return np.append(per_item, values.sum()) if self.order_effect else per_item

    def information(self, weights: FloatArray) -> FloatArray:
        """(chains, size, size) XᵀΩX, plus the precision 1 of the order effect, for (chains, n_pairs) weights."""
        n, size, chains = self.sums.n_items, self.size, self.chains
        flat = weights.ravel()
        cells = np.bincount(self._cells, weights=flat, minlength=chains * size**2).astype(np.float64)
        above = cells.reshape(chains, size, size)
        matrix: FloatArray = -(above + above.swapaxes(1, 2))
        down = np.bincount(self._first, weights=flat, minlength=chains * n).reshape(chains, n)
        up = np.bincount(self._second, weights=flat, minlength=chains * n).reshape(chains, n)
        items = np.arange(n)
        matrix[:, items, items] += down + up
        if self.order_effect:
            matrix[:, n, :n] = matrix[:, :n, n] = down - up
            matrix[:, n, n] = weights.sum(axis=1) + 1.0
        return matrix

    def factors(self, information: FloatArray, log_widths: FloatArray) -> FloatArray:
        """(chains, size, size) lower Cholesky factors of the information plus the precision of scores at each width."""
        items = np.arange(self.sums.n_items)
        precision = information.copy()
        precision[:, items, items] += np.exp(-2.0 * log_widths)[:, None]
        factors: FloatArray = np.linalg.cholesky(precision).astype(np.float64, copy=False)
        return factors


@dataclass(frozen=True, eq=False)
class _NormalGivenWeights:
    """The normal posterior of scores and γ, in each chain, given one Pólya–Gamma weight per pair and a width.

    Attributes:
        factors: (chains, size, size) lower Cholesky factors of its precision.
        halves: (chains, size) these, divided into Xᵀ(wins - totals/2).
        log_evidence: (chains,) log P(judgments | weights, width), scores and γ integrated out, up to a constant in the
            width.
    """

    factors: FloatArray
    halves: FloatArray
    log_evidence: FloatArray

    @classmethod
    def at(cls, design: _Design, information: FloatArray, log_widths: FloatArray) -> "_NormalGivenWeights":
        """The weights that gave this information, under these widths."""
        factors = design.factors(information, log_widths)
        halves = np.stack([_solved(factor, design.right) for factor in factors])
        log_determinants = np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1)
        evidence = 0.5 * (halves**2).sum(axis=1) - design.sums.n_items * log_widths - log_determinants
        return cls(factors, halves, evidence)

    def where(self, chosen: NDArray[np.bool_], other: "_NormalGivenWeights") -> "_NormalGivenWeights":
        """`other` in the chosen chains, this one elsewhere."""
        return _NormalGivenWeights(
            np.where(chosen[:, None, None], other.factors, self.factors),
            np.where(chosen[:, None], other.halves, self.halves),
            np.where(chosen, other.log_evidence, self.log_evidence),
        )

    def draw(self, rng: np.random.Generator) -> FloatArray:
        """(chains, size) one draw of scores and γ in each chain."""
        noisy = self.halves + rng.standard_normal(self.halves.shape)
        rows = [_solved(factor, row, transposed=True) for factor, row in zip(self.factors, noisy, strict=True)]
        return np.stack(rows)


def _solved(factor: FloatArray, right: FloatArray, *, transposed: bool = False) -> FloatArray:
    """L⁻¹ right, or L⁻ᵀ right, for a lower triangular L whose rows lie in memory one after another."""
    from scipy.linalg.lapack import dtrtrs

    # to LAPACK, which goes by columns, it is the upper triangular Lᵀ
    solution: FloatArray = dtrtrs(factor.T, right, lower=0, trans=0 if transposed else 1)[0]
    return solution


# -- expectation propagation -----------------------------------------------------------------------------------


def _over_priors(pairs: PairCounts, prior: WidthPrior) -> ScorePosterior:
    """The posterior over widths and shapes; at one width, where it is fixed, and then normal."""
    if prior.low == prior.high:
        return posterior_at_one_width(pairs, prior.low)

    def log_density(log_width: float) -> float:
        return prior.log_density(log_width) if log(prior.low) <= log_width <= log(prior.high) else -inf

    grid = width_posterior(pairs, IndependentPrior, log_density)
    return posterior_over_shapes(pairs, grid, IndependentPrior, log_density, shaped=True)


def _propagated(
    sums: PairSums, pairs: PairCounts, found: ScorePosterior, n_draws: int, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Scores, widths and γ drawn from the normal stand-ins of the posterior over priors, each with its mass."""
    counts = rng.multinomial(n_draws, found.masses)
    scores, advantages = [], []
    for score_prior, sites, count in zip(found.priors, found.sites, counts.tolist(), strict=True):
        if count:
            # a shape stays where it was found to be at rest
            tolerance = SHAPE_TOLERANCE if isinstance(score_prior, ScoreShape) else MOMENT_TOLERANCE
            some, effect = propagate(pairs, score_prior, sites, tolerance=tolerance).draw(count, rng)
            scores.append(some)
            advantages.append(effect)
    order = rng.permutation(n_draws)
    drawn, effects = np.concatenate(scores)[order], np.concatenate(advantages)[order]
    priors = _PriorsOfDraws(found, np.repeat(np.arange(counts.size), counts)[order])
    _correct_by_metropolis(sums, drawn, effects, priors, rng)
    return drawn - drawn.mean(axis=1, keepdims=True), priors.widths, effects


class _PriorsOfDraws:
    """The prior of each draw, of many at once: labels (n_draws,) count the priors that were found."""

    def __init__(self, found: ScorePosterior, labels: IntArray) -> None:
        self.widths: FloatArray = found.widths[labels]
        shapes = {k: prior for k, prior in enumerate(found.priors) if isinstance(prior, ScoreShape)}
        self._shaped = np.isin(labels, list(shapes))
        row = {k: position for position, k in enumerate(shapes)}
        self._rows = np.array([row[k] for k in labels[self._shaped].tolist()], dtype=np.int64)
        # shapes of one batch have as many places each
        self._tables = np.array([shape.log_density for shape in shapes.values()])
        ends = np.array([[shape.places[0], shape.places[-1]] for shape in shapes.values()]).reshape(-1, 2)
        self._low, self._high = ends[self._rows].T

    def log_density(self, scores: FloatArray) -> FloatArray:
        """(n_draws,) log prior density, up to a constant of each draw, of one score in each draw."""
        values: FloatArray = -0.5 * (scores / self.widths) ** 2
        if self._rows.size:
            last = self._tables.shape[1] - 1
            place = (scores[self._shaped] - self._low) / (self._high - self._low) * last
            left = np.clip(place.astype(np.int64), 0, last - 1)
            beside = self._tables[self._rows, left]
            inside = (place >= 0.0) & (place <= last)
            slope = self._tables[self._rows, left + 1] - beside
            values[self._shaped] = np.where(inside, beside + (place - left) * slope, _OUTSIDE)
        return values


def _correct_by_metropolis(
    sums: PairSums, drawn: FloatArray, effects: FloatArray, priors: _PriorsOfDraws, rng: np.random.Generator
) -> None:
    """Move every draw by Metropolis steps, item by item, towards the posterior at its prior; in place.

    The real posterior is skewed away from zero, above all for items that nearly always win or lose. Most of that is in
    an item's own conditional distribution, which a few sweeps reach from a normal start; all draws move together.

    Args:
        sums: the judgments.
        drawn: (n_draws, n_items) scores.
        effects: (n_draws,) γ of each draw, which stays.
        priors: of each draw.
    """
    n = sums.n_items
    scores = np.ascontiguousarray(drawn.T)
    item = np.concatenate([sums.first, sums.second])
    partner = np.concatenate([sums.second, sums.first])
    wins = np.concatenate([sums.first_wins, sums.second_wins]).astype(np.float64)
    totals = np.concatenate([sums.totals, sums.totals]).astype(np.float64)
    side = np.repeat([1.0, -1.0], len(sums.first))
    order = np.argsort(item, kind="stable")
    ends = np.searchsorted(item[order], np.arange(n + 1))
    rows = [order[ends[i] : ends[i + 1]] for i in range(n)]
    for _ in range(_CORRECTION_SWEEPS):
        for i in range(n):
            own = rows[i]
            against = side[own, None] * effects - scores[partner[own]]
            # near the width of the conditional distribution where chances are typical, p(1 - p) = .12: a step may
            # not depend on the score that moves
            step = 2.4 / np.sqrt(priors.widths**-2 + 0.12 * totals[own].sum())

            def log_conditional(score: FloatArray, own: IntArray = own, against: FloatArray = against) -> FloatArray:
                value: FloatArray = wins[own] @ (score + against)
                value -= totals[own] @ np.logaddexp(0.0, score + against)
                return value + priors.log_density(score)

            current = scores[i]
            proposal = current + step * rng.standard_normal(len(drawn))
            gain = log_conditional(proposal) - log_conditional(current)
            scores[i] = np.where(-rng.standard_exponential(len(drawn)) < gain, proposal, current)
    drawn[:] = scores.T


def effective_sizes(chain: FloatArray) -> FloatArray:
    """(k,) effective number of independent draws in each column of a (n_draws, k) chain.

    n / (1 + 2 Σ autocorrelations), summed in neighbouring pairs while these stay positive (Geyer 1992); at most n.
    """
    n = len(chain)
    centred = chain - chain.mean(axis=0)
    spectrum = np.fft.rfft(centred, 2 * n, axis=0)
    covariance = np.fft.irfft(np.abs(spectrum) ** 2, axis=0)[: n - n % 2] / n
    pairs = covariance[0::2] + covariance[1::2]
    pairs = np.where(np.logical_and.accumulate(pairs > 0, axis=0), pairs, 0.0)
    variance = np.where(covariance[0] > 0, covariance[0], 1.0)
    time = np.maximum(2.0 * pairs.sum(axis=0) / variance - 1.0, 1.0)
    sizes: FloatArray = n / time
    return sizes
