"""Draws from the posterior of the scores, the width of their prior integrated out.

Model: P(i beats j) = logistic(score_i - score_j + γ·[i read first] - γ·[j read first]); scores independently N(0, σ²);
a prior on the width σ; γ, the order effect, N(0, 1), or absent. Here: the draws, by Gibbs sampling for batches of up to
`GIBBS_UP_TO_ITEMS` items and by expectation propagation above, and draws of Pólya–Gamma variables.
What is read from draws (intervals, ranks, reliability) lives in `reliability`. `completion` imports none of this.

The Gibbs sampler. Given Pólya–Gamma variables, one per pair, scores and γ are jointly normal (Polson, Scott & Windle
2013). So a sweep (1) draws these variables given scores and γ; (2) moves the width by Metropolis steps with scores and
γ integrated out in closed form, then draws them given the width, by one more Cholesky factor; (3) moves the width once
more with the scores in units of it held fixed and the Pólya–Gamma variables integrated out (interweaving, Yu & Meng
2011). Drawing the width given the scores, as textbooks do, is slow where pairs are neighbours and the scale hangs
together by long chains.

References:
    Devroye, L. (2009). On exact simulation algorithms for some distributions related to Jacobi theta functions.
        Statistics & Probability Letters 79, 2251-2259.
    Geyer, C. J. (1992). Practical Markov chain Monte Carlo. Statistical Science 7, 473-483.
    Michael, J. R., Schucany, W. R. & Haas, R. W. (1976). Generating random variates using transformations with
        multiple roots. The American Statistician 30, 88-90.
    Polson, N. G., Scott, J. G. & Windle, J. (2013). Bayesian inference for logistic models using Pólya–Gamma latent
        variables. Journal of the American Statistical Association 108, 1339-1349.
    Yu, Y. & Meng, X.-L. (2011). To center or not to center: that is not the question. Journal of Computational and
        Graphical Statistics 20, 531-570.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import exp, inf, isfinite, log, pi
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.expectation_propagation import Sites, propagate
from cj_pipeline.core.judgment_table import JudgmentTable, PairSums
from cj_pipeline.core.pair_counts import PairCounts, count_pairs
from cj_pipeline.core.prior_width import width_posterior
from cj_pipeline.core.score_prior import IndependentPrior

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

GIBBS_UP_TO_ITEMS: Final = 300
"""Above, a sweep's cubic cost makes expectation propagation the better buy."""

EXACT_COUNT: Final = 170
"""Pólya–Gamma variables are exact sums up to this many judgments of a pair; above, normal with the same moments.

The skewness of PG(b, 0) is 2.3/√b, so .18 here.
"""

# Devroye's switch between the two series of the density.
_SWITCH: Final = 0.64
# Standard deviations of the proposals for log σ, from fine to far.
_COLLAPSED_MOVES: Final = (0.3, 1.5)
_SCALING_MOVES: Final = (0.1, 0.4, 1.2)
_CORRECTION_SWEEPS: Final = 30
_NEWTON_TOLERANCE: Final = 1e-9
_NEWTON_STEPS: Final = 100


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
        widths: (n_draws,) σ, logits.
        order_effects: (n_draws,) γ, logits: the advantage of the essay read first; None if it was not in the model.
        method: "gibbs" (exact up to Monte Carlo error) or "ep" (expectation propagation: normal around the mean at
            each width, most of the skewness put back).
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
        gibbs_up_to: items; larger batches are drawn by expectation propagation, and `method` says so.

    Raises:
        InputError: a count out of range, an unknown prior, a width that is not positive, a reading order that is
            wanted and not known.
    """
    if n_draws < 2 or burn_in < 0 or thin < 1:
        raise InputError(f"need n_draws >= 2, burn_in >= 0, thin >= 1, not {n_draws}, {burn_in}, {thin}")
    sums = table.readings if order_effect else table.pairs
    prior = _width_prior(width_prior)
    rng = np.random.default_rng(seed)
    if table.n_items <= gibbs_up_to:
        return _gibbs(sums, prior, order_effect, n_draws, burn_in, thin, rng)
    return _propagated(table, prior, order_effect, n_draws, rng)


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
    low, high = log(prior.low), log(prior.high)
    width = min(max(2.0, prior.low), prior.high)
    state = find_mode(sums, width, order_effect=order_effect).estimate
    design, moves = _Design(sums, order_effect), prior.low < prior.high
    kept_scores, kept_widths = np.empty((n_draws, n)), np.empty(n_draws)
    kept_effects = np.empty(n_draws) if order_effect else None

    def log_target(log_width: float, shape: FloatArray, effect: float) -> float:
        """Of log σ given the scores in units of σ."""
        return _log_likelihood(sums, exp(log_width) * shape, effect) + prior.log_density(log_width)

    for sweep in range(burn_in + n_draws * thin):
        scores, effect = state[:n], float(state[n]) if order_effect else 0.0
        normal = _NormalGivenWeights(
            design, draw_polya_gamma(sums.totals, scores[sums.first] - scores[sums.second] + effect, rng), width
        )
        if moves:
            for reach in _COLLAPSED_MOVES:
                proposal = log(width) + reach * rng.standard_normal()
                if not low <= proposal <= high:
                    continue
                proposed = normal.at_width(exp(proposal))
                gain = proposed.log_evidence - normal.log_evidence
                gain += prior.log_density(proposal) - prior.log_density(log(width))
                if log(1.0 - rng.random()) < gain:
                    width, normal = exp(proposal), proposed
        state = normal.draw(rng)
        scores, effect = state[:n], float(state[n]) if order_effect else 0.0
        if moves:
            log_width, shape = log(width), scores / width
            density = log_target(log_width, shape, effect)
            for reach in _SCALING_MOVES:
                proposal = log_width + reach * rng.standard_normal()
                if not low <= proposal <= high:
                    continue
                value = log_target(proposal, shape, effect)
                if log(1.0 - rng.random()) < value - density:
                    log_width, density = proposal, value
            width = exp(log_width)
            state[:n] = width * shape
        kept, position = divmod(sweep - burn_in, thin)
        if sweep >= burn_in and position == thin - 1:
            kept_scores[kept] = state[:n] - state[:n].mean()
            kept_widths[kept] = width
            if kept_effects is not None:
                kept_effects[kept] = state[n]
    return PosteriorDraws(kept_scores, kept_widths, kept_effects, "gibbs", prior.name)


class _Design:
    """Which items, and the order effect, each pair's difference is made of; one row of X per pair."""

    def __init__(self, sums: PairSums, order_effect: bool) -> None:
        n = sums.n_items
        self.sums, self.order_effect = sums, order_effect
        self.size = n + order_effect
        self.right = self.transposed(sums.first_wins - sums.totals / 2.0)
        self.cells = np.concatenate(
            [sums.first * self.size + sums.second, sums.second * self.size + sums.first],
        )

    def transposed(self, values: FloatArray) -> FloatArray:
        """Xᵀ values: per item the sum over pairs where it is first less those where it is second; then the sum."""
        sums, n = self.sums, self.sums.n_items
        per_item = np.bincount(sums.first, weights=values, minlength=n).astype(np.float64)
        per_item -= np.bincount(sums.second, weights=values, minlength=n)
        return np.append(per_item, values.sum()) if self.order_effect else per_item

    def information(self, weights: FloatArray) -> FloatArray:
        """(size, size) XᵀΩX, plus the precision 1 of the order effect."""
        sums, n = self.sums, self.sums.n_items
        both = np.concatenate([weights, weights])
        cells = np.bincount(self.cells, weights=both, minlength=self.size**2).astype(np.float64)
        matrix: FloatArray = -cells.reshape(self.size, self.size)
        down = np.bincount(sums.first, weights=weights, minlength=n)
        up = np.bincount(sums.second, weights=weights, minlength=n)
        items = np.arange(n)
        matrix[items, items] += down + up
        if self.order_effect:
            matrix[n, :n] = matrix[:n, n] = down - up
            matrix[n, n] = weights.sum() + 1.0
        return matrix

    def factor(self, information: FloatArray, width: float) -> FloatArray:
        """Lower Cholesky factor of the information plus the precision of scores at this width."""
        items = np.arange(self.sums.n_items)
        precision = information.copy()
        precision[items, items] += width**-2
        factor: FloatArray = np.linalg.cholesky(precision).astype(np.float64, copy=False)
        return factor


class _NormalGivenWeights:
    """The normal posterior of scores and γ given one Pólya–Gamma weight per pair and a width.

    `log_evidence` is log P(judgments | weights, width), scores and γ integrated out, up to a constant in the width.
    """

    def __init__(
        self, design: _Design, weights: FloatArray, width: float, information: FloatArray | None = None
    ) -> None:
        from scipy.linalg import solve_triangular

        self.design, self.weights = design, weights
        self.information = design.information(weights) if information is None else information
        self.factor = design.factor(self.information, width)
        self.half = solve_triangular(self.factor, design.right, lower=True, check_finite=False)
        log_determinant = 2.0 * float(np.log(np.diag(self.factor)).sum())
        self.log_evidence = (
            0.5 * float(self.half @ self.half) - design.sums.n_items * log(width) - 0.5 * log_determinant
        )

    def at_width(self, width: float) -> "_NormalGivenWeights":
        """The same weights under another width."""
        return _NormalGivenWeights(self.design, self.weights, width, self.information)

    def draw(self, rng: np.random.Generator) -> FloatArray:
        """(size,) one draw of scores and γ."""
        from scipy.linalg import solve_triangular

        noisy = self.half + rng.standard_normal(self.design.size)
        draw: FloatArray = solve_triangular(self.factor, noisy, lower=True, trans="T", check_finite=False)
        return draw


def _log_likelihood(sums: PairSums, scores: FloatArray, effect: float) -> float:
    difference = scores[sums.first] - scores[sums.second] + effect
    # log logistic(-x) = log logistic(x) - x: one logarithm for both
    return float((sums.first_wins - sums.totals) @ difference - sums.totals @ np.logaddexp(0.0, -difference))


# -- Pólya–Gamma variables -------------------------------------------------------------------------------------


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


# -- the mode, and draws around it -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Mode:
    """The most probable scores (and γ) at one width of the prior.

    Attributes:
        estimate: (n_items,) scores, logits, or (n_items + 1,) with γ last.
        factor: lower Cholesky factor of the precision there.
    """

    estimate: FloatArray
    factor: FloatArray


def find_mode(sums: PairSums, width: float, *, order_effect: bool = False, start: FloatArray | None = None) -> Mode:
    """The mode of scores ~ N(0, width²) and γ ~ N(0, 1) given the judgments, by Newton's method with halved steps.

    Args:
        sums: the judgments, over ordered pairs if γ is wanted.
        width: σ, logits.
        order_effect: whether γ is in the model.
        start: where to begin, else zero; near the mode it saves steps.
    """
    from scipy.linalg import cho_solve

    n = sums.n_items
    design = _Design(sums, order_effect)
    ridge = np.full(design.size, width**-2)
    ridge[n:] = 1.0
    estimate = np.zeros(design.size) if start is None else start.copy()

    def objective(x: FloatArray) -> float:
        return _log_likelihood(sums, x[:n], float(x[n:].sum())) - 0.5 * float(ridge @ x**2)

    value = objective(estimate)
    factor = np.empty((0, 0))
    for _ in range(_NEWTON_STEPS):
        difference = estimate[sums.first] - estimate[sums.second] + float(estimate[n:].sum())
        win = np.exp(-np.logaddexp(0.0, -difference))
        factor = design.factor(design.information(sums.totals * win * (1.0 - win)), width)
        slope = design.transposed(np.asarray(sums.first_wins - sums.totals * win, dtype=np.float64)) - ridge * estimate
        step = cho_solve((factor, True), slope, check_finite=False)
        if float(np.abs(step).max()) <= _NEWTON_TOLERANCE:
            break
        scale = 1.0
        while scale > 1e-9 and objective(estimate + scale * step) < value - 1e-12 * (1.0 + abs(value)):
            scale /= 2.0
        estimate = estimate + scale * step
        value = objective(estimate)
    return Mode(estimate, factor)


def _propagated(
    table: JudgmentTable, prior: WidthPrior, order_effect: bool, n_draws: int, rng: np.random.Generator
) -> PosteriorDraws:
    """Draws from the normal stand-ins of the posterior over a grid of widths, each with its posterior mass."""
    first = table.known_order() if order_effect else None
    pairs = count_pairs(table.winners, table.losers, table.n_items, None, first)
    grid = _width_grid(pairs, prior)
    counts = rng.multinomial(n_draws, [mass for _, mass, _ in grid])
    scores, advantages, widths = [], [], []
    for (width, _, sites), count in zip(grid, counts, strict=True):
        if count:
            drawn, advantage = propagate(pairs, IndependentPrior(width), sites).draw(int(count), rng)
            scores.append(drawn)
            advantages.append(advantage)
            widths.append(np.full(count, width))
    order = rng.permutation(n_draws)
    drawn, widths_drawn, effects = (np.concatenate(part)[order] for part in (scores, widths, advantages))
    _correct_by_metropolis(table.readings if order_effect else table.pairs, drawn, effects, widths_drawn, rng)
    return PosteriorDraws(
        scores=drawn - drawn.mean(axis=1, keepdims=True),
        widths=widths_drawn,
        order_effects=effects if order_effect else None,
        method="ep",
        width_prior=prior.name,
    )


def _width_grid(pairs: PairCounts, prior: WidthPrior) -> list[tuple[float, float, Sites | None]]:
    """Widths, their posterior masses, and where to start expectation propagation at each."""
    if prior.low == prior.high:
        return [(prior.low, 1.0, None)]

    def log_density(log_width: float) -> float:
        return prior.log_density(log_width) if log(prior.low) <= log_width <= log(prior.high) else -inf

    found = width_posterior(pairs, IndependentPrior, log_density)
    return list(zip(found.widths.tolist(), found.masses.tolist(), found.sites, strict=True))


def _correct_by_metropolis(
    sums: PairSums, drawn: FloatArray, effects: FloatArray, widths: FloatArray, rng: np.random.Generator
) -> None:
    """Move every draw by Metropolis steps, item by item, towards the posterior at its width; in place.

    The real posterior is skewed away from zero, above all for items that nearly always win or lose. Most of that is in
    an item's own conditional distribution, which a few sweeps reach from a normal start; all draws move together.

    Args:
        sums: the judgments.
        drawn: (n_draws, n_items) scores.
        effects: (n_draws,) γ of each draw, which stays.
        widths: (n_draws,) σ of each draw.
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
            step = 2.4 / np.sqrt(widths**-2 + 0.12 * totals[own].sum())

            def log_conditional(score: FloatArray, own: IntArray = own, against: FloatArray = against) -> FloatArray:
                value: FloatArray = wins[own] @ (score + against)
                value -= totals[own] @ np.logaddexp(0.0, score + against)
                value -= 0.5 * (score / widths) ** 2
                return value

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
