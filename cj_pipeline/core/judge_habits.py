"""What a judge does whatever the essays are: favouring a position, and repeating itself.

Here: position bias from the judgments alone, and agreement of repeated judgments beside what independent answers would
show. The order effect in logits is part of the fit (`bradley_terry`). Gauges only: no decision depends on them.

References:
    McNemar, Q. (1947). Note on the sampling error of the difference between correlated proportions. Psychometrika 12,
        153-157.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cj_pipeline.core.judgment_table import JudgmentTable, logistic
from cj_pipeline.core.shares import Share, share_of, wilson_interval

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class PositionBias:
    """Whether being read first helps. Made by `position_bias`.

    Attributes:
        first_wins: share of judgments won by the essay read first. Where positions are balanced, 1/2 is expected.
        p_value: exact two-sided binomial test of 1/2; None without judgments.
        swapped_pairs: pairs with a majority in either order.
        consistent: of these, pairs that the same essay won in both orders.
        first_both, second_both: pairs where whichever essay was read first, or second, won.
        swap_p_value: exact two-sided test that these two are equally frequent (McNemar 1947); None without any.
        verdict: in plain words.
    """

    first_wins: Share
    p_value: float | None
    swapped_pairs: int
    consistent: int
    first_both: int
    second_both: int
    swap_p_value: float | None
    verdict: str


def position_bias(table: JudgmentTable) -> PositionBias:
    """Share of wins in first position, and what changes when the same two essays are read in the other order.

    Pairs judged several times in one order count by their majority; undecided ones are left out.

    Raises:
        InputError: the table does not know the reading order.
    """
    order = table.known_order()
    wins = share_of(int(order.sum()), len(table))
    majority = {
        (int(a), int(b)): int(np.sign(w - v))
        for a, b, w, v in zip(
            table.readings.first,
            table.readings.second,
            table.readings.first_wins,
            table.readings.second_wins,
            strict=True,
        )
        if w != v
    }
    both = [(sign, majority[b, a]) for (a, b), sign in majority.items() if a < b and (b, a) in majority]
    first_both, second_both = both.count((1, 1)), both.count((-1, -1))
    p, swap_p = _even_odds(wins.count, wins.total), _even_odds(first_both, first_both + second_both)
    return PositionBias(
        first_wins=wins,
        p_value=p,
        swapped_pairs=len(both),
        consistent=len(both) - first_both - second_both,
        first_both=first_both,
        second_both=second_both,
        swap_p_value=swap_p,
        verdict=_position_verdict(wins, p, first_both, second_both, swap_p),
    )


def _position_verdict(wins: Share, p: float | None, first_both: int, second_both: int, swap_p: float | None) -> str:
    if wins.share is None or p is None:
        return "There are no judgments, so nothing can be said about the reading order."
    low, high = wins.interval
    said = (
        f"the essay read first won {wins.share:.0%} of {wins.total} judgments (95 % interval {low:.0%} to {high:.0%})"
    )
    by_swap = swap_p is not None and swap_p < 0.05
    if p >= 0.05 and not by_swap:
        return f"No position bias shown: {said}."
    lean = first_both - second_both if by_swap else 2 * wins.count - wins.total
    side = "first" if lean > 0 else "second"
    proof = f"; of pairs read in both orders, {first_both} went to the first and {second_both} to the second both times"
    return f"The judge favours the essay read {side}: {said}{proof if by_swap else ''}."


def _even_odds(count: int, total: int) -> float | None:
    """Exact two-sided binomial p-value of 1/2."""
    from scipy.stats import binomtest

    return float(binomtest(count, total, 0.5).pvalue) if total else None


@dataclass(frozen=True)
class Agreement:
    """How often two judgments of the same two essays name the same winner.

    Attributes:
        pairs: pairs of essays with at least two such judgments.
        share: mean agreement over these pairs; None without any.
        interval: 95 % Wilson interval, every pair of essays counting once.
        expected: mean agreement if answers were independent given the scores; None without pairs. Clearly less than
            `share` means that the judge repeats itself, and repeats say less than standard errors assume.
    """

    pairs: int
    share: float | None
    interval: tuple[float, float]
    expected: float | None


@dataclass(frozen=True)
class RepeatAgreement:
    """Agreement of repeated judgments. Made by `repeat_agreement`.

    Attributes:
        same_order: of judgments that read the two essays in the same order.
        other_order: of judgments that read them in opposite orders.
    """

    same_order: Agreement
    other_order: Agreement


def repeat_agreement(table: JudgmentTable, scores: ArrayLike, *, order_effect: float = 0.0) -> RepeatAgreement:
    """Agreement between judgments of the same pair, read in the same order and in the other.

    Args:
        table: the judgments, with the reading order.
        scores: (n_items,) fitted scores, logits.
        order_effect: fitted advantage of the essay read first, logits.

    Raises:
        InputError: the table does not know the reading order, or `scores` has another length.
    """
    sums, values = table.readings, table.checked_scores(scores)
    win = logistic(values[sums.first] - values[sums.second] + order_effect)
    w, v, n = sums.first_wins, sums.second_wins, sums.totals
    several = n >= 2
    same = (w * (w - 1) + v * (v - 1))[several] / (n * (n - 1))[several]
    row = {(int(a), int(b)): k for k, (a, b) in enumerate(zip(sums.first, sums.second, strict=True))}
    there = np.array([k for (a, b), k in row.items() if a < b and (b, a) in row], dtype=np.int64)
    back = np.array([row[b, a] for (a, b), k in row.items() if a < b and (b, a) in row], dtype=np.int64)
    other = (w[there] * v[back] + v[there] * w[back]) / (n[there] * n[back])
    return RepeatAgreement(
        same_order=_agreement(same, (win**2 + (1.0 - win) ** 2)[several]),
        other_order=_agreement(other, win[there] * (1.0 - win[back]) + (1.0 - win[there]) * win[back]),
    )


def _agreement(shares: FloatArray, expected: FloatArray) -> Agreement:
    if not shares.size:
        return Agreement(0, None, (0.0, 1.0), None)
    mean = float(shares.mean())
    return Agreement(int(shares.size), mean, wilson_interval(mean, shares.size), float(expected.mean()))
