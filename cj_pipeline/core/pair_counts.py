"""Judgments added up over pairs, which is all that the Bradley–Terry likelihood sees of them, and what they connect.

Here: the sums with the likelihood, its gradient and its information; how they are made from arrays of judgments; and
the conditions under which a finite estimate exists (Ford 1957; Hunter 2004). Not here: any fit (`bradley_terry`), and
judgments one by one (`judgment_table`).

References:
    Ford, L. R. (1957). Solution of a ranking problem from binary comparisons. American Mathematical Monthly 64(8),
        part 2, 28-33.
    Hunter, D. R. (2004). MM algorithms for generalized Bradley-Terry models. Annals of Statistics 32, 384-406.
"""

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cj_pipeline.core.errors import DisconnectedError, InputError, SeparationError, listed
from cj_pipeline.core.judgment_table import PairSums, checked_judgments

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_JUDGMENTS_AT_ONCE: Final = 65_536
# So many pairs an item, if they connect everything, save looking at the others.
_ENOUGH_PAIRS: Final = 32
FEW_ITEMS: Final = 128
"""Up to here, matrices of all pairs are quicker than lists of those judged."""

_CLOSED_UP_TO: Final = 256
"""Items. Up to here, what hangs together is found sooner on such a matrix than in a sparse graph."""


@dataclass(frozen=True, eq=False)
class PairCounts:
    """Judgments added up over unordered pairs and the order they were read in: all that the likelihood sees of them.

    Attributes:
        n_items: number of items.
        first, second: (n_pairs,) item indices, first < second; `count_pairs` puts rows in ascending order of
            (first, second, order).
        order: (n_pairs,) 1 where `first` was read first, -1 where `second` was, 0 where no order effect is fitted.
        first_wins, second_wins: (n_pairs,) sums of weights.
        components: (n_items,) label of each item's connected component; labels ascend with their lowest item.
        ordered: whether an order effect is fitted.
    """

    n_items: int
    first: IntArray
    second: IntArray
    order: FloatArray
    first_wins: FloatArray
    second_wins: FloatArray
    components: IntArray
    ordered: bool

    def predictor(self, scores: FloatArray, advantage: float) -> FloatArray:
        """(n_pairs,) logit of P(first beats second)."""
        difference: FloatArray = scores[self.first] - scores[self.second]
        return difference + advantage * self.order if self.ordered else difference

    def log_likelihood(self, scores: FloatArray, advantage: float = 0.0) -> float:
        """Sum of log P(winner beats loser) over the judgments."""
        difference = self.predictor(scores, advantage)
        # log(1 + e^d) = d + log(1 + e^-d)
        surprise = np.logaddexp(0.0, -difference)
        return -float((self.first_wins + self.second_wins) @ surprise + self.second_wins @ difference)

    def derivatives(self, scores: FloatArray, advantage: float = 0.0) -> tuple[FloatArray, FloatArray]:
        """First and negative second derivatives of the log likelihood in each pair's predictor.

        Returns:
            (n_pairs,) slopes, logits⁻¹, and (n_pairs,) weights, logits⁻².
        """
        from scipy.special import expit

        difference = self.predictor(scores, advantage)
        # each is accurate to the last digits, however small it is
        win, lose = expit(difference), expit(-difference)
        return self.first_wins * lose - self.second_wins * win, (self.first_wins + self.second_wins) * win * lose

    def transposed(self, values: FloatArray) -> tuple[FloatArray, float]:
        """(n_pairs,) values carried back to what predictors are made of: (n_items,) scores, and the advantage."""
        return self._per_item(values, -values), float(self.order @ values)

    def information(self, weight: FloatArray) -> tuple[FloatArray, FloatArray, float]:
        """Precision of scores and advantage where predictors have the precisions `weight` (n_pairs,), in three blocks.

        With the weights of `derivatives` it is the negative Hessian of the log likelihood.

        Returns:
            (n_items, n_items) of the scores, the Laplacian of the weighted graph; (n_items,) between the scores and
            the advantage, which sums to zero in every component; the advantage's own.
        """
        n = self.n_items
        upper = np.bincount(self._cells, weights=weight, minlength=n * n).reshape(n, n)
        # sums over no pair at all are whole numbers
        matrix: FloatArray = -(upper + upper.T).astype(np.float64, copy=False)
        matrix.flat[:: n + 1] = -matrix.sum(axis=1)
        if not self.ordered:
            return matrix, np.zeros(n), 0.0
        signed = weight * self.order
        return matrix, self._per_item(signed, -signed), float(weight.sum())

    def comparison_counts(self) -> FloatArray:
        """(n_items,) sum of the weights of each item's judgments."""
        played = self.first_wins + self.second_wins
        return self._per_item(played, played)

    def win_counts(self) -> FloatArray:
        """(n_items,) sum of the weights of the judgments that each item won."""
        return self._per_item(self.first_wins, self.second_wins)

    @cached_property
    def component_sizes(self) -> IntArray:
        """(n_components,) items of each component."""
        return np.bincount(self.components)

    @cached_property
    def component_projection(self) -> FloatArray:
        """(n_items, n_items) projection onto the vectors that are constant within each component."""
        same: NDArray[np.bool_] = self.components[:, None] == self.components[None, :]
        return same / self.component_sizes[self.components][:, None]

    def component_means(self, values: FloatArray) -> FloatArray:
        """(n_components,) means of (n_items,) values over each component."""
        if self.component_sizes.size == 1:
            return np.array([values.sum() / self.n_items])
        return np.bincount(self.components, weights=values) / self.component_sizes

    def centred_within_components(self, scores: FloatArray) -> FloatArray:
        """`scores` shifted so that they sum to zero in every component."""
        means = self.component_means(scores)
        return scores - (means if means.size == 1 else means[self.components])

    @cached_property
    def _cells(self) -> IntArray:
        """(n_pairs,) where each pair stands in a flattened (n_items, n_items) matrix."""
        return self.first * self.n_items + self.second

    def _per_item(self, first_values: FloatArray, second_values: FloatArray) -> FloatArray:
        sums = np.bincount(self.first, weights=first_values, minlength=self.n_items).astype(np.float64, copy=False)
        sums += np.bincount(self.second, weights=second_values, minlength=self.n_items)
        return sums


def count_pairs(
    winners: ArrayLike, losers: ArrayLike, n_items: int, weights: ArrayLike | None, winner_first: ArrayLike | None
) -> PairCounts:
    """Check the judgments and add them up over unordered pairs and reading orders, in ascending order of both.

    Args and errors as in `bradley_terry.fit_bradley_terry`.
    """
    n, winner, loser = checked_judgments(winners, losers, n_items)
    if weights is None and winner_first is None:
        return _counted(n, winner, loser)
    multiplicity = np.ones(winner.size) if weights is None else _multiplicities(weights, winner.size)
    first_won = winner < loser
    codes = np.minimum(winner, loser) * n + np.maximum(winner, loser)
    if winner_first is not None:
        codes = 2 * codes + (first_won == _truths(winner_first, winner.size))
    unique, position = np.unique(codes, return_inverse=True)
    first_wins = np.bincount(position, weights=multiplicity * first_won, minlength=unique.size).astype(np.float64)
    second_wins = np.bincount(position, weights=multiplicity * ~first_won, minlength=unique.size).astype(np.float64)
    order = np.zeros(unique.size)
    if winner_first is not None:
        order = 2.0 * (unique % 2) - 1.0
        unique = unique // 2
    first, second = unique // n, unique % n
    components = _comparison_components(n, first, second)
    return PairCounts(n, first, second, order, first_wins, second_wins, components, winner_first is not None)


def counts_of(sums: PairSums, *, ordered: bool) -> PairCounts:
    """A table's sums as the fit has them, row by row.

    Args:
        sums: over pairs, or over readings where an order effect is to be fitted.
        ordered: whether it is; `first` of each row was then read first.
    """
    turned = sums.first > sums.second
    first, second = np.minimum(sums.first, sums.second), np.maximum(sums.first, sums.second)
    return PairCounts(
        n_items=sums.n_items,
        first=first,
        second=second,
        order=np.where(turned, -1.0, 1.0) if ordered else np.zeros(first.size),
        first_wins=np.where(turned, sums.second_wins, sums.first_wins).astype(np.float64),
        second_wins=np.where(turned, sums.first_wins, sums.second_wins).astype(np.float64),
        components=_comparison_components(sums.n_items, first, second),
        ordered=ordered,
    )


def _truths(values: ArrayLike, length: int) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if array.shape != (length,) or (length and array.dtype.kind != "b"):
        raise InputError(f"winner_first must be {length} booleans, one per judgment, not {array.dtype} {array.shape}")
    return array.astype(np.bool_)


def _counted(n: int, winner: IntArray, loser: IntArray) -> PairCounts:
    """Add up judgments of weight one: sorted by pair and outcome, piece by piece to spare memory, and counted.

    For few items a matrix of all pairs is quicker.
    """
    if n <= FEW_ITEMS:
        wins = np.bincount(winner * n + loser, minlength=n * n)
        upper, lower = _triangles(n)
        judged = np.flatnonzero(wins[upper] + wins[lower])
        first, second = np.divmod(upper[judged], n)
        first_wins, second_wins = wins[upper[judged]].astype(np.float64), wins[lower[judged]].astype(np.float64)
        components = _comparison_components(n, first, second)
        return PairCounts(n, first, second, np.zeros(first.size), first_wins, second_wins, components, ordered=False)
    # 32-bit numbers sort in half the time
    outcomes: NDArray[Any] = np.empty(winner.size, dtype=np.int32 if 2 * n * n < 2**31 else np.int64)
    for start in range(0, winner.size, _JUDGMENTS_AT_ONCE):
        part = slice(start, start + _JUDGMENTS_AT_ONCE)
        low, high = np.minimum(winner[part], loser[part]), np.maximum(winner[part], loser[part])
        outcomes[part] = 2 * (low * n + high) + (winner[part] == low)
    outcomes.sort()
    first_won = outcomes & 1
    outcomes >>= 1
    fresh = np.ones(outcomes.size, dtype=bool)
    np.not_equal(outcomes[1:], outcomes[:-1], out=fresh[1:])
    starts = np.flatnonzero(fresh)
    codes = outcomes[starts]
    first_wins = np.add.reduceat(first_won, starts).astype(np.float64) if starts.size else np.zeros(0)
    second_wins = np.empty(starts.size)
    np.subtract(starts[1:], starts[:-1], out=second_wins[:-1], casting="unsafe")
    second_wins[-1:] = outcomes.size - starts[-1:]
    second_wins -= first_wins
    first = codes // n
    second = (codes - first * n).astype(np.int64)
    first = first.astype(np.int64)
    order = np.zeros(starts.size)
    components = _comparison_components(n, first, second)
    return PairCounts(n, first, second, order, first_wins, second_wins, components, ordered=False)


@cache
def _triangles(n: int) -> tuple[IntArray, IntArray]:
    """Cells of a flattened (n, n) matrix above its diagonal, in ascending order, and those opposite."""
    row, column = np.triu_indices(n, 1)
    return row * n + column, column * n + row


def _multiplicities(weights: ArrayLike, length: int) -> FloatArray:
    array = np.asarray(weights)
    if array.shape != (length,) or (length and array.dtype.kind not in "iuf"):
        raise InputError(f"weights must be {length} numbers, one per judgment, not {array.dtype} {array.shape}")
    bad = np.flatnonzero(~(np.isfinite(array.astype(np.float64)) & (array.astype(np.float64) > 0)))
    if bad.size:
        raise InputError(f"weights[{bad[0]}] is {array[bad[0]]}: a weight must be positive and finite")
    return array.astype(np.float64)


# -- connectedness ---------------------------------------------------------------------------------------------


def _component_labels(
    n_items: int, origin: IntArray, target: IntArray, connection: Literal["weak", "strong"]
) -> IntArray:
    """(n_items,) component labels, 0, 1, … in ascending order of each component's lowest item."""
    if n_items <= _CLOSED_UP_TO:
        return _closed_labels(n_items, origin, target, connection)
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    graph = csr_array((np.ones(origin.size), (origin, target)), shape=(n_items, n_items))
    count, labels = connected_components(graph, directed=True, connection=connection)
    if count == 1:
        return np.zeros(n_items, dtype=np.int64)
    _, lowest, position = np.unique(labels, return_index=True, return_inverse=True)
    rank: IntArray = np.argsort(np.argsort(lowest))
    return rank[position].astype(np.int64)


def _closed_labels(n_items: int, origin: IntArray, target: IntArray, connection: Literal["weak", "strong"]) -> IntArray:
    """The same for few items, for which a sparse graph takes longer to make than the answer: by transitive closure."""
    reach = np.zeros((n_items, n_items))
    reach[origin, target] = 1.0
    reach.reshape(-1)[:: n_items + 1] = 1.0
    if connection == "weak":
        reach[target, origin] = 1.0
    if _first_reaches_all(reach) and (connection == "weak" or _first_reaches_all(reach.T)):
        return np.zeros(n_items, dtype=np.int64)
    links = int(np.count_nonzero(reach))
    while links < n_items**2:
        reach = np.minimum(reach @ reach, 1.0)
        longer = int(np.count_nonzero(reach))
        if longer == links:
            break
        links = longer
    lowest = (reach * reach.T).argmax(axis=1)
    rank: IntArray = np.unique(lowest, return_inverse=True)[1]
    return rank


def _first_reaches_all(reach: FloatArray) -> bool:
    """Whether paths lead from item 0 to every item, in a matrix of ones for steps, and for staying."""
    ways, reached = reach[0], 0
    while (number := int(np.count_nonzero(ways))) > reached:
        # only whether there are ways counts, not how many
        ways, reached = np.minimum(ways @ reach, 1.0), number
    return reached == len(reach)


def _comparison_components(n_items: int, first: IntArray, second: IntArray) -> IntArray:
    """Connected components of the comparison graph."""
    stride = 1 + first.size // (_ENOUGH_PAIRS * n_items)
    labels = _component_labels(n_items, first[::stride], second[::stride], "weak")
    return labels if stride == 1 or not labels.any() else _component_labels(n_items, first, second, "weak")


def strong_components(pairs: PairCounts) -> IntArray:
    """(n_items,) labels of the strongly connected components of the graph with an edge from each winner to each loser.

    Labels ascend with their lowest item. One label means that the maximum-likelihood estimate is finite (Ford 1957).
    """
    stride = 1 + pairs.first.size // (_ENOUGH_PAIRS * pairs.n_items)
    labels = _strong_labels(pairs, stride)
    return labels if stride == 1 or not labels.any() else _strong_labels(pairs, 1)


def _strong_labels(pairs: PairCounts, stride: int) -> IntArray:
    first, second = pairs.first[::stride], pairs.second[::stride]
    down, up = pairs.first_wins[::stride] > 0, pairs.second_wins[::stride] > 0
    winners = np.concatenate([first[down], second[up]])
    losers = np.concatenate([second[down], first[up]])
    return _component_labels(pairs.n_items, winners, losers, "strong")


def require_finite_estimate(components: IntArray, win_components: IntArray) -> None:
    """Raise unless maximum likelihood has a finite estimate (Ford 1957; Hunter 2004, assumption 1).

    Args:
        components: (n_items,) labels of the comparison graph's components.
        win_components: (n_items,) labels of the win graph's strongly connected components.

    Raises:
        DisconnectedError: several components.
        SeparationError: several strongly connected components.
    """
    remedy = "Judge more pairs that link them to the rest, or fit with a prior (prior_sd='fitted')."
    apart = _outside_largest(components)
    if apart:
        raise DisconnectedError(
            f"no maximum-likelihood estimate: the comparison graph falls into {components.max() + 1} components, "
            f"and nothing compares item(s) {listed(apart)} with the others. {remedy}",
            apart,
        )
    apart = _outside_largest(win_components)
    if apart:
        raise SeparationError(
            f"no finite maximum-likelihood estimate: the win graph falls into {win_components.max() + 1} strongly "
            "connected components (Ford 1957), so some items only win against the others or only lose to them: "
            f"item(s) {listed(apart)}. {remedy}",
            apart,
        )


def _outside_largest(labels: IntArray) -> list[int]:
    """Items outside the largest component, ascending; all of them if there are several and none has two items."""
    sizes = np.bincount(labels)
    if sizes.size == 1:
        return []
    if sizes.max() == 1:
        return list(range(labels.size))
    return [int(item) for item in np.flatnonzero(labels != sizes.argmax())]
