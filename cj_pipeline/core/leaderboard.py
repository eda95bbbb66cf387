"""Several judges or prompts against the same experts: who leads, and which differences are more than noise.

Here: standings of rows (a row is one configuration of judge and prompts), from posterior draws of their τ-b. Not here:
the draws of one row (`alignment_posterior`), its other figures (`alignment`), and what makes a row.

Rows are compared by τ-b of their true scores, drawn row by row from independent posteriors. Of many rows that are
truly equal some lead by chance, the further the more rows there are, and a pairwise "95 % sure that the leader is
better" is then wrong for some row more often than it says. So the mark is simultaneous: all differences of a
leaderboard are within their bounds at once with 95 % probability (`reliability.columns_told_apart`, measured in
`benchmarks/leaderboard.py`).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.models import Value
from cj_pipeline.core.reliability import columns_told_apart


class Standing(Value):
    """How a row stands among the rows it is compared with. Made by `standings`.

    Attributes:
        mean: posterior mean of τ-b; the leader's is the greatest.
        leads: whether it is the leader.
        p_best: probability that no row's τ-b is higher; rows that share the highest share the probability, so that it
            sums to 1 over the rows.
        p_above_leader: probability that its τ-b is above the leader's, ties counted half; 1/2 for the leader itself.
        expected_rank: posterior mean of the rank, 1 the best; equal rows share the mean of their ranks.
        rank_interval: 95 % interval of the rank; a row that shares ranks is counted at the better end of them for
            the lower bound and at the worse end for the upper.
        may_be_best: whether it cannot be told apart from the leader; true for the leader itself.
    """

    mean: float
    leads: bool
    p_best: float
    p_above_leader: float
    expected_rank: float
    rank_interval: tuple[int, int]
    may_be_best: bool


def standings(draws: ArrayLike, *, level: float = 0.95) -> tuple[Standing, ...]:
    """Compare rows by draws of their τ-b.

    Args:
        draws: (n_draws, n_rows) τ-b, a column per row; columns are independent of each other, so they must come from
            different seeds.
        level: of the intervals, and of all statements "cannot be told apart" together.

    Returns:
        One standing per row, in the order of the columns. Of rows with the same mean the first leads.

    Raises:
        InputError: no row, fewer than two draws, a value that is no number, or `level` not between 0 and 1.
    """
    taus = np.asarray(draws, dtype=np.float64)
    if taus.ndim != 2 or taus.shape[0] < 2 or taus.shape[1] < 1 or not np.isfinite(taus).all():
        raise InputError(f"standings need a table of at least two draws of at least one row, not of shape {taus.shape}")
    means = taus.mean(axis=0)
    leader = int(np.argmax(means))
    best = taus == taus.max(axis=1, keepdims=True)
    p_best = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
    against_leader = taus - taus[:, leader : leader + 1]
    above = (against_leader > 0).mean(axis=0) + 0.5 * (against_leader == 0).mean(axis=0)
    low, high = _shared_ranks(taus)
    tail = (1.0 - level) / 2.0
    apart = columns_told_apart(taus, level)[leader]
    return tuple(
        Standing(
            mean=float(means[row]),
            leads=row == leader,
            p_best=float(p_best[row]),
            p_above_leader=float(above[row]),
            expected_rank=float((low[:, row] + high[:, row]).mean() / 2.0),
            rank_interval=(
                int(np.quantile(low[:, row], tail, method="inverted_cdf")),
                int(np.quantile(high[:, row], 1.0 - tail, method="inverted_cdf")),
            ),
            may_be_best=not apart[row],
        )
        for row in range(taus.shape[1])
    )


def _shared_ranks(taus: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(n_draws, n_rows) best and worst rank that each row can claim in each draw."""
    rows = range(taus.shape[1])
    low = np.stack([1 + (taus > taus[:, row : row + 1]).sum(axis=1) for row in rows], axis=1)
    high = np.stack([(taus >= taus[:, row : row + 1]).sum(axis=1) for row in rows], axis=1)
    return low, high
