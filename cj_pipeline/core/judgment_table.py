"""The judgments of one batch as arrays, checked once: who won, who lost, and which essay was read first.

Here: the table, how it is made from comparisons, and its sums over pairs. What is computed from it lives in
`posterior`, `reliability`, `judgment_fit`, `judge_habits` and `predictions`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.models import Comparison, ComparisonStatus, Winner

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class JudgmentTable:
    """Judgments of items 0 … n_items - 1, one row each. Make it with `judgment_table` or `judgment_table_of`.

    Attributes:
        n_items: number of items, judged or not.
        winners, losers: (n_judgments,) item indices.
        winner_read_first: (n_judgments,) whether the winner was the essay read first; None when the order is unknown.
    """

    n_items: int
    winners: IntArray
    losers: IntArray
    winner_read_first: BoolArray | None = None

    def __len__(self) -> int:
        return int(self.winners.size)

    def checked_scores(self, scores: ArrayLike) -> FloatArray:
        """(n_items,) the scores as numbers.

        Raises:
            InputError: another length.
        """
        values = np.asarray(scores, dtype=np.float64)
        if values.shape != (self.n_items,):
            raise InputError(f"scores must be {self.n_items} numbers, one per item, not of shape {values.shape}")
        return values

    @cached_property
    def pairs(self) -> "PairSums":
        """Sums over unordered pairs; `first` is the item with the lower index."""
        return _sum_over_pairs(self, self.winners < self.losers)

    @cached_property
    def readings(self) -> "PairSums":
        """Sums over ordered pairs; `first` is the essay read first.

        Raises:
            InputError: the table does not say which essay was read first.
        """
        return _sum_over_pairs(self, self.known_order())

    def known_order(self) -> BoolArray:
        """`winner_read_first`.

        Raises:
            InputError: the table does not have it.
        """
        if self.winner_read_first is None:
            raise InputError("the order in which the essays were read is not known: give winner_read_first")
        return self.winner_read_first

    def rows(self, chosen: BoolArray | IntArray) -> "JudgmentTable":
        """The table of the chosen rows, with the same items."""
        order = None if self.winner_read_first is None else self.winner_read_first[chosen]
        return JudgmentTable(self.n_items, self.winners[chosen], self.losers[chosen], order)

    def judgment_counts(self) -> IntArray:
        """(n_items,) how many judgments each item is in."""
        return np.bincount(self.winners, minlength=self.n_items) + np.bincount(self.losers, minlength=self.n_items)


@dataclass(frozen=True, eq=False)
class PairSums:
    """Judgments added up over pairs, in ascending order of (first, second).

    Attributes:
        n_items: number of items.
        first, second: (n_pairs,) item indices.
        first_wins, second_wins: (n_pairs,) numbers of judgments.
        row: (n_judgments,) the pair of each judgment.
    """

    n_items: int
    first: IntArray
    second: IntArray
    first_wins: IntArray
    second_wins: IntArray
    row: IntArray

    @property
    def totals(self) -> IntArray:
        """(n_pairs,) judgments of each pair."""
        return self.first_wins + self.second_wins

    def log_likelihoods(self, differences: FloatArray) -> FloatArray:
        """(k,) log P(judgments), for (k, n_pairs) logits of P(first beats second)."""
        # log logistic(-x) = log logistic(x) - x: one logarithm for both, of a number between 1 and 2
        logarithms = np.log(1.0 + np.exp(-np.abs(differences)))
        values: FloatArray = -(
            differences @ self.second_wins + (logarithms - np.minimum(differences, 0.0)) @ self.totals
        )
        return values


def logistic(x: FloatArray) -> FloatArray:
    """1 / (1 + exp(-x)), accurate to the last digits however small it is."""
    values: FloatArray = np.exp(-np.logaddexp(0.0, -x))
    return values


def judgment_table(
    winners: ArrayLike, losers: ArrayLike, n_items: int, winner_read_first: ArrayLike | None = None
) -> JudgmentTable:
    """Check arrays of judgments and make a table of them.

    Args:
        winners, losers: (n_judgments,) integers in 0 … n_items - 1.
        n_items: number of items, at least 1.
        winner_read_first: (n_judgments,) booleans, or None when the reading order is not known.

    Raises:
        InputError: arrays of unequal length or wrong type, an index out of range, an item against itself.
    """
    n, won, lost = checked_judgments(winners, losers, n_items)
    if winner_read_first is None:
        return JudgmentTable(n, won, lost)
    order = np.asarray(winner_read_first)
    if order.shape != won.shape or (order.size and order.dtype != np.bool_):
        raise InputError(f"winner_read_first must be {won.size} booleans, not {order.dtype} {order.shape}")
    return JudgmentTable(n, won, lost, order.astype(np.bool_))


def judgment_table_of(comparisons: Iterable[Comparison], essay_ids: Sequence[str]) -> JudgmentTable:
    """The table of a batch's judged comparisons, in ascending order of comparison id; item k is `essay_ids[k]`.

    Raises:
        InputError: an essay id given twice, or a judged comparison that names another essay or has no winner.
    """
    index = {essay: position for position, essay in enumerate(essay_ids)}
    if len(index) != len(essay_ids):
        raise InputError("essay_ids names an essay more than once")
    judged = sorted(
        (comparison for comparison in comparisons if comparison.status is ComparisonStatus.JUDGED),
        key=lambda comparison: comparison.comparison_id,
    )
    for comparison in judged:
        if comparison.winner is None:
            raise InputError(f"comparison {comparison.comparison_id} is judged but has no winner")
        for essay in (comparison.essay_a, comparison.essay_b):
            if essay not in index:
                raise InputError(
                    f"comparison {comparison.comparison_id} names essay {essay}, which is not in essay_ids"
                )
    return judgment_table(
        np.array([index[cast(str, comparison.winner_id)] for comparison in judged], dtype=np.int64),
        np.array([index[cast(str, comparison.loser_id)] for comparison in judged], dtype=np.int64),
        len(essay_ids),
        np.array([comparison.winner is Winner.A for comparison in judged], dtype=np.bool_),
    )


def checked_judgments(winners: ArrayLike, losers: ArrayLike, n_items: int) -> tuple[int, IntArray, IntArray]:
    """`n_items`, and `winners` and `losers` as arrays of item indices.

    Raises:
        InputError: `n_items` is not a positive integer; arrays of unequal length or wrong type, an index out of range,
            an item against itself.
    """
    if isinstance(n_items, bool) or not isinstance(n_items, int | np.integer) or n_items < 1:
        raise InputError(f"n_items must be a positive integer, not {n_items!r}")
    n = int(n_items)
    won, lost = _item_indices("winners", winners, n), _item_indices("losers", losers, n)
    if won.size != lost.size:
        raise InputError(f"winners and losers must be of equal length, not {won.size} and {lost.size}")
    itself = np.flatnonzero(won == lost)
    if itself.size:
        raise InputError(f"judgment {itself[0]}: item {won[itself[0]]} is compared with itself")
    return n, won, lost


def _item_indices(name: str, values: ArrayLike, n_items: int) -> IntArray:
    array = np.asarray(values)
    if array.ndim != 1:
        raise InputError(f"{name} must be one-dimensional, not of shape {array.shape}")
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.dtype.kind not in "iu":
        raise InputError(f"{name} must be integers (item indices), not {array.dtype}")
    if array.min() < 0 or array.max() >= n_items:
        outside = np.flatnonzero((array < 0) | (array >= n_items))
        raise InputError(f"{name}[{outside[0]}] is {array[outside[0]]}: there are items 0 to {n_items - 1} only")
    return array.astype(np.int64, copy=False)


def _sum_over_pairs(table: JudgmentTable, winner_is_first: BoolArray) -> PairSums:
    n = table.n_items
    first = np.where(winner_is_first, table.winners, table.losers)
    second = np.where(winner_is_first, table.losers, table.winners)
    codes, row = np.unique(first * n + second, return_inverse=True)
    wins = np.bincount(row, weights=winner_is_first, minlength=codes.size).astype(np.int64)
    total = np.bincount(row, minlength=codes.size)
    return PairSums(n, codes // n, codes % n, wins, total - wins, row)
