"""How well the judgments of a batch tell its essays apart: intervals, ranks, groups and reliability coefficients.

Here: what is read from posterior draws (`posterior.draw_posterior`), of which `expected_r_squared` is the headline,
and the coefficients of the literature, which stand beside it. These take the spread of estimated scores for spread of
true scores. That holds when pairs were chosen without looking at results; when close scores are paired, chance
differences are confirmed by the next pairing, and the coefficients rise although nothing is measured (Bramley 2015;
Bramley & Vitello 2019); when distant scores are, as by the adaptive design, chance differences are undone, and they
fall below nothing. Each of them says so. `completion` imports none of this.

References:
    Bramley, T. (2015). Investigating the reliability of adaptive comparative judgment. Cambridge Assessment.
    Bramley, T. & Vitello, S. (2019). The effect of adaptivity on the reliability coefficient in adaptive comparative
        judgement. Assessment in Education 26, 43-58.
    Brown, W. (1910). British Journal of Psychology 3, 296-322; Spearman, C. (1910). Ibid., 271-295.
    Wright, B. D. & Masters, G. N. (1982). Rating Scale Analysis. Chicago: MESA Press.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cj_pipeline.core.bradley_terry import fit_bradley_terry
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.judgment_table import JudgmentTable
from cj_pipeline.core.posterior import PosteriorDraws

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_CELLS_AT_ONCE: Final = 2_000_000
_ROUNDING: Final = 1e-9


# -- from posterior draws --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExpectedRSquared:
    """The headline reliability. Made by `expected_r_squared`.

    Attributes:
        mean: expected squared correlation between the scores and the truth, 0 to 1.
        low: its 10 % quantile: with probability .9 the batch is at least this reliable.
    """

    mean: float
    low: float


def score_intervals(draws: PosteriorDraws, level: float = 0.95) -> FloatArray:
    """(n_items, 2) equal-tailed posterior intervals of the scores (batch frame: scores sum to zero), logits.

    Raises:
        InputError: `level` is not between 0 and 1.
    """
    tail = _tail(level)
    intervals: FloatArray = np.quantile(draws.scores, [tail, 1.0 - tail], axis=0).T
    return intervals


def rank_intervals(draws: PosteriorDraws, level: float = 0.95) -> IntArray:
    """(n_items, 2) intervals of the ranks, 1 being the best: no more than (1 - level)/2 of the draws on either side.

    Raises:
        InputError: `level` is not between 0 and 1.
    """
    tail = _tail(level)
    ranks = np.empty(draws.scores.shape, dtype=np.int64)
    np.put_along_axis(ranks, np.argsort(-draws.scores, axis=1), np.arange(1, draws.n_items + 1)[None, :], axis=1)
    bounds = np.quantile(ranks, [tail, 1.0 - tail], axis=0, method="inverted_cdf")
    return bounds.T.astype(np.int64)


def probability_better(draws: PosteriorDraws) -> FloatArray:
    """(n_items, n_items) matrix of P(score of the row's item > score of the column's); 1/2 on the diagonal."""
    n = draws.n_items
    better = np.full((n, n), 0.5)
    for item in range(n):
        above = (draws.scores[:, item : item + 1] > draws.scores[:, item + 1 :]).mean(axis=0)
        better[item, item + 1 :] = above
        better[item + 1 :, item] = 1.0 - above
    return better


def told_apart(draws: PosteriorDraws, level: float = 0.95) -> NDArray[np.bool_]:
    """(n_items, n_items) whether the order of two items is certain, so that all such statements hold at once.

    With m and s the posterior mean and standard deviation of a difference, items are told apart when |m|/s > q; q is
    the 1 - (1 - level)/2 quantile over draws of the largest |m|/s among the pairs that the draw has in the other
    order. So in that share of the draws (one side of an interval of `level`) no pair told apart is the other way
    round. A draw that stretches or compresses the whole scale leaves orders alone; bounds on the differences, such as
    those of `columns_told_apart`, would have to reach over it.

    Raises:
        InputError: `level` is not between 0 and 1, or there are too few draws for one to lie beyond it.
    """
    tail = _tail(level)
    if len(draws.scores) * tail < 1.0:
        raise InputError(
            f"{len(draws.scores)} draws say nothing at the level {level}: give at least {ceil(1.0 / tail)}"
        )
    pairs = _Differences.of(draws.scores)
    sign = np.sign(pairs.means)

    def largest_in_the_other_order(differences: FloatArray) -> FloatArray:
        most: FloatArray = np.where(differences * sign <= 0.0, pairs.clear, 0.0).max(axis=1)
        return most

    return pairs.clearer(draws.scores, largest_in_the_other_order, 1.0 - tail)


def columns_told_apart(draws: FloatArray, level: float = 0.95) -> NDArray[np.bool_]:
    """(n, n) whether the quantities behind two columns of draws differ, so that all such statements hold at once.

    With m and s the posterior mean and standard deviation of a difference d, columns are told apart when |m|/s > q; q
    is the `level` quantile over draws of the largest |d - m|/s among all pairs. So with probability `level` no
    difference lies outside its m ± q s, however many pairs one looks at. For quantities that were not shrunk towards
    each other: where all of them are equal, `told_apart` would find a difference in many tables, the more columns the
    more.

    Args:
        draws: (n_draws, n) posterior draws, a column per quantity.
        level: of all statements together.

    Raises:
        InputError: `level` is not between 0 and 1.
    """
    _tail(level)
    pairs = _Differences.of(draws)

    def largest_deviation(differences: FloatArray) -> FloatArray:
        most: FloatArray = (np.abs(differences - pairs.means) / pairs.spread).max(axis=1)
        return most

    return pairs.clearer(draws, largest_deviation, level)


@dataclass(frozen=True, eq=False)
class _Differences:
    """Of every pair of columns of draws, the difference.

    Attributes:
        first, second: (n_pairs,) the columns.
        means: (n_pairs,) of the differences, first minus second.
        spread: (n_pairs,) their standard deviations, above zero.
        clear: (n_pairs,) how many of these the mean is from zero.
    """

    first: IntArray
    second: IntArray
    means: FloatArray
    spread: FloatArray
    clear: FloatArray

    @classmethod
    def of(cls, draws: FloatArray) -> "_Differences":
        first, second = np.triu_indices(draws.shape[1], 1)
        means = draws.mean(axis=0)
        centred = draws - means
        covariance = centred.T @ centred / len(centred)
        variance = np.diag(covariance)
        between = variance[first] + variance[second] - 2.0 * covariance[first, second]
        # of columns that always differ by the same, rounding is not spread
        least = _ROUNDING * max(float(np.abs(draws).max()), np.finfo(np.float64).tiny)
        spread = np.maximum(np.sqrt(np.maximum(between, 0.0)), least)
        difference = means[first] - means[second]
        return cls(first, second, difference, spread, np.abs(difference) / spread)

    def clearer(
        self, draws: FloatArray, largest: Callable[[FloatArray], FloatArray], level: float
    ) -> NDArray[np.bool_]:
        """(n, n) whether a pair is clearer than the `level` quantile, over draws, of `largest` of their differences."""
        n = draws.shape[1]
        apart = np.zeros((n, n), dtype=np.bool_)
        if self.clear.size:
            block = max(1, _CELLS_AT_ONCE // self.clear.size)
            rows = (draws[start : start + block] for start in range(0, len(draws), block))
            found = np.concatenate([largest(some[:, self.first] - some[:, self.second]) for some in rows])
            # often the quantile is a pair's own clearness: these must be the same number
            apart[self.first, self.second] = self.clear > np.quantile(found, level, method="higher")
        return apart | apart.T


def indistinguishable_groups(
    draws: PosteriorDraws, level: float = 0.95, *, order: Sequence[int] | None = None
) -> list[list[int]]:
    """Groups of items that cannot be told apart, best first.

    They are the longest runs in rank order without a pair `told_apart`. An item is in every run it fits in, so
    neighbouring groups overlap. Every item is in at least one.

    Args:
        draws: of the scores.
        level: see `told_apart`.
        order: the items, best first, as they are shown; by their posterior means if not given.

    Raises:
        InputError: see `told_apart`.
    """
    apart = told_apart(draws, level)
    ranked = np.lexsort((np.arange(draws.n_items), -draws.means)) if order is None else np.array(order)
    groups: list[list[int]] = []
    end = 0
    for start in range(draws.n_items):
        reach = max(end, start + 1)
        while reach < draws.n_items and not apart[ranked[reach], ranked[start:reach]].any():
            reach += 1
        if reach > end:
            groups.append([int(item) for item in ranked[start:reach]])
            end = reach
    return groups


def expected_r_squared(draws: PosteriorDraws) -> ExpectedRSquared | None:
    """Squared correlation between the posterior mean scores and each draw: its mean and its 10 % quantile.

    The truth is one more draw from the posterior, so this is what the squared correlation between scores and truth is
    expected to be. It looks at the judgments through their likelihood only, which does not depend on how pairs were
    chosen (as long as they were chosen by what had been seen). Headline figures use draws with `width_prior="flat"`,
    so that the reliability of a batch is not prejudged by how wide batches usually are.

    Returns:
        None for fewer than three items: any two are perfectly correlated.
    """
    if draws.n_items < 3:
        return None
    r_squared = squared_correlations(draws.means, draws.scores)
    return ExpectedRSquared(float(r_squared.mean()), float(np.quantile(r_squared, 0.1)))


def squared_correlations(scores: FloatArray, draws: FloatArray) -> FloatArray:
    """(n_draws,) squared correlation between (n_items,) scores and each of (n_draws, n_items) draws.

    0 where the scores, or a draw's, are all equal.
    """
    means = scores - scores.mean()
    centred = draws - draws.mean(axis=1, keepdims=True)
    squares = (centred**2).sum(axis=1) * float(means @ means)
    squared: FloatArray = (centred @ means) ** 2 / np.maximum(squares, np.finfo(float).tiny)
    return squared


def _tail(level: float) -> float:
    if not 0.0 < level < 1.0:
        raise InputError(f"level must be between 0 and 1, not {level!r}")
    return (1.0 - level) / 2.0


# -- the coefficients of the literature ------------------------------------------------------------------------


@dataclass(frozen=True)
class SplitHalf:
    """Split-half reliability: misleading unless pairing ignored the results. Made by `split_half`.

    Attributes:
        correlation: mean correlation between the scores of two random halves of the judgments.
        reliability: stepped up to the whole, 2r / (1 + r) (Spearman 1910; Brown 1910).
        spread: standard deviation of the correlation over splits.
        splits: how many.
    """

    correlation: float
    reliability: float
    spread: float
    splits: int


@dataclass(frozen=True)
class Separation:
    """Separation reliability and index: misleading unless pairing ignored the results. Made by `separation`.

    Attributes:
        reliability: 1 - MSE/var; negative when errors are larger than the spread of scores.
        index: G = √((var - MSE)/MSE), the true spread in units of the error; 0 where var < MSE.
    """

    reliability: float
    index: float


def split_half(table: JudgmentTable, *, seed: int, splits: int = 20, prior_sd: float | None = None) -> SplitHalf | None:
    """Correlate the scores of random halves of the judgments. Misleading unless pairing ignored the results.

    The results that chose a pair are in both halves' design, so chance differences are confirmed in either half. The
    halves are scored under the prior width of the whole batch; an essay that a half does not have scores zero there.

    Args:
        table: the judgments, at least 2.
        seed: of the random halves.
        splits: how many times to halve.
        prior_sd: logits; the width of the whole batch's fit, fitted here when not given.

    Returns:
        None if fewer than three items or two judgments, or if a half has all scores equal in every split.

    Raises:
        InputError: `splits` is not positive.
    """
    if splits < 1:
        raise InputError(f"splits must be positive, not {splits}")
    if table.n_items < 3 or len(table) < 2:
        return None
    width = prior_sd or fit_bradley_terry(table.winners, table.losers, table.n_items).prior_sd or 2.0
    rng = np.random.default_rng(seed)
    correlations = []
    for _ in range(splits):
        shuffled = rng.permutation(len(table))
        halves = (shuffled[: len(table) // 2], shuffled[len(table) // 2 :])
        one, other = (
            fit_bradley_terry(table.winners[half], table.losers[half], table.n_items, prior_sd=width).scores
            for half in halves
        )
        size = float(one @ one) * float(other @ other)
        if size > 0:
            correlations.append(float(one @ other) / size**0.5)
    if not correlations:
        return None
    mean = float(np.mean(correlations))
    return SplitHalf(mean, 2.0 * mean / (1.0 + mean), float(np.std(correlations)), len(correlations))


def separation(scores: ArrayLike, standard_errors: ArrayLike) -> Separation | None:
    """Separation reliability of *maximum-likelihood* scores. Misleading unless pairing ignored the results.

    1 - MSE/var with var the variance of the scores (n - 1 below the line) and MSE = Σ se² / (n - 1): standard errors
    in the sum-to-zero frame have n - 1 degrees of freedom as well (Wright & Masters 1982, ch. 5). Scores under a prior
    are shrunk already and have their own coefficient, `shrunken_reliability`.

    Args:
        scores: (n_items,) maximum-likelihood scores, logits.
        standard_errors: (n_items,) their standard errors, logits, not capped.

    Returns:
        None for fewer than two items, or when scores are all equal or errors all zero.

    Raises:
        InputError: arrays of different shape or not finite.
    """
    values, errors = _matched(scores, standard_errors)
    if values.size < 2:
        return None
    variance, error = float(values.var(ddof=1)), float((errors**2).sum()) / (values.size - 1)
    if variance == 0.0 or error == 0.0:
        return None
    return Separation(1.0 - error / variance, max(0.0, (variance - error) / error) ** 0.5)


def shrunken_reliability(scores: ArrayLike, standard_errors: ArrayLike) -> float | None:
    """var / (var + mean posterior variance), for scores under a prior. Misleading unless pairing ignored the results.

    Scores under a prior vary as the true scores do less their posterior variance, so the sum estimates the true
    variance (the "empirical reliability" of item response theory).

    Args:
        scores: (n_items,) modes or means of the posterior, logits.
        standard_errors: (n_items,) posterior standard deviations, logits, not capped.

    Returns:
        None for fewer than two items, or when scores and errors are all zero.

    Raises:
        InputError: arrays of different shape or not finite.
    """
    values, errors = _matched(scores, standard_errors)
    if values.size < 2:
        return None
    variance, error = float(values.var(ddof=1)), float((errors**2).sum()) / (values.size - 1)
    return variance / (variance + error) if variance + error > 0 else None


def _matched(scores: ArrayLike, standard_errors: ArrayLike) -> tuple[FloatArray, FloatArray]:
    values, errors = np.asarray(scores, dtype=np.float64), np.asarray(standard_errors, dtype=np.float64)
    if values.ndim != 1 or values.shape != errors.shape:
        raise InputError(
            f"scores and standard_errors must be one-dimensional and match: {values.shape}, {errors.shape}"
        )
    if not (np.isfinite(values).all() and np.isfinite(errors).all()):
        raise InputError("scores and standard_errors must be finite")
    return values, errors
