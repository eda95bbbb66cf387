"""Whether the judgments behave as the model says: misfit, contradictions, position bias, repeats and surprises.

Here: infit and outfit per essay and per judge, transitivity and upsets, each held against a parametric bootstrap of
the fitted model on the same pairs; the first-position advantage; agreement of repeated judgments; calibration of
predicted wins; and which judgments to look at first. The fit itself lives in `bradley_terry`, draws in `posterior`.
Gauges only: no decision of the program may depend on them.

Why a bootstrap. Fixed limits such as 0.7 to 1.3 for mean squares assume many judgments per essay against opponents met
without regard to results. With ten judgments per essay, or close opponents only, a perfect judge falls outside them,
or never could; what a perfect judge would show on these very pairs is found by simulating one.

References:
    Brown, L. D., Cai, T. T. & DasGupta, A. (2001). Interval estimation for a binomial proportion. Statistical Science
        16, 101-133.
    Davison, A. C. & Hinkley, D. V. (1997). Bootstrap Methods and their Application. Cambridge University Press.
    Kendall, M. G. & Babington Smith, B. (1940). On the method of paired comparisons. Biometrika 31, 324-345.
    MacKay, D. J. C. (1992). The evidence framework applied to classification networks. Neural Computation 4, 720-736.
    McNemar, Q. (1947). Note on the sampling error of the difference between correlated proportions. Psychometrika 12,
        153-157.
    Wilson, E. B. (1927). Probable inference, the law of succession, and statistical inference. JASA 22, 209-212.
    Wright, B. D. & Masters, G. N. (1982). Rating Scale Analysis. Chicago: MESA Press.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import pi, sqrt
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cj_pipeline.core.bradley_terry import STEP_TOLERANCE, fit_bradley_terry
from cj_pipeline.core.bradley_terry_mode import Mode, find_mode
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.judgment_table import JudgmentTable, PairSums
from cj_pipeline.core.pair_counts import counts_of
from cj_pipeline.core.posterior import PosteriorDraws
from cj_pipeline.core.score_prior import IndependentPrior

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

CLEAR_DIFFERENCE: Final = 3.0
"""Logits. Beyond it the better essay should win 19 of 20 times or more; upsets there are lapses of the judge."""

CALIBRATION_EDGES: Final = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

_Z95: Final = 1.959963984540054


@dataclass(frozen=True)
class Share:
    """A share of counted cases with its uncertainty.

    Attributes:
        count, total: cases, and out of how many.
        share: count / total; None when total is 0.
        interval: 95 % Wilson interval; (0, 1) when total is 0.
    """

    count: int
    total: int
    share: float | None
    interval: tuple[float, float]


def share_of(count: int, total: int) -> Share:
    """A share with its 95 % Wilson interval (Wilson 1927; recommended by Brown, Cai & DasGupta 2001).

    Raises:
        InputError: not 0 <= count <= total.
    """
    if not 0 <= count <= total:
        raise InputError(f"a share needs 0 <= count <= total, not {count} of {total}")
    if total == 0:
        return Share(0, 0, None, (0.0, 1.0))
    return Share(count, total, count / total, _wilson(count / total, total))


def _wilson(share: float, total: float) -> tuple[float, float]:
    centre = (share + _Z95**2 / (2.0 * total)) / (1.0 + _Z95**2 / total)
    reach = _Z95 / (1.0 + _Z95**2 / total) * sqrt(share * (1.0 - share) / total + _Z95**2 / (4.0 * total**2))
    return max(0.0, centre - reach), min(1.0, centre + reach)


# -- misfit against a perfect judge on the same pairs ----------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Bootstrapped:
    """One figure of the batch, and what a perfect judge shows on the same pairs.

    Attributes:
        share: the figure, of the cases counted; None when there are none.
        total: cases.
        expected: its mean under the model; None when there are no cases.
        interval: 2.5 % and 97.5 % points under the model.
        p_value: two-sided; None when there are no cases.
    """

    share: float | None
    total: int
    expected: float | None
    interval: tuple[float, float]
    p_value: float | None


@dataclass(frozen=True, eq=False)
class JudgmentFit:
    """How well the judgments fit the model. Made by `assess_fit`.

    Attributes:
        infit: (n_items,) Σ(y - p)² / Σp(1 - p) over the essay's judgments; NaN without judgments. 1 is expected from
            a perfect judge who is not fitted to, above is erratic, below is more consistent than chance allows.
        outfit: (n_items,) mean of (y - p)² / p(1 - p): the same, with surprises between distant essays weighing more.
        infit_limits, outfit_limits: (n_items, 2) 2.5 % and 97.5 % points of a perfect judge on the same pairs. Their
            distance is the power: misfit inside them cannot be seen with these judgments.
        infit_p, outfit_p: (n_items,) two-sided p-values; NaN without judgments. With n essays, expect .05 n below .05.
        transitivity: share of triads without a circle, of those of which all three pairs were judged and decided.
        upsets: share of judgments won by the essay more than `CLEAR_DIFFERENCE` logits behind.
        judges: infit and outfit of each judge's judgments, in the order of their names; empty if judges were not told
            apart.
        replications: simulated batches.
    """

    infit: FloatArray
    outfit: FloatArray
    infit_limits: FloatArray
    outfit_limits: FloatArray
    infit_p: FloatArray
    outfit_p: FloatArray
    transitivity: Bootstrapped
    upsets: Bootstrapped
    judges: tuple["JudgeFit", ...]
    replications: int


@dataclass(frozen=True, eq=False)
class JudgeFit:
    """Mean squares over the judgments of one judge, as in `JudgmentFit`.

    Attributes:
        judge: its name.
        judgments: how many are its.
        infit, outfit: mean squares; both are 1 on average for judgments that scores are not fitted to.
        infit_limits, outfit_limits: 2.5 % and 97.5 % points of a perfect judge with the same judgments.
        infit_p, outfit_p: two-sided p-values.
    """

    judge: str
    judgments: int
    infit: float
    outfit: float
    infit_limits: tuple[float, float]
    outfit_limits: tuple[float, float]
    infit_p: float
    outfit_p: float


def assess_fit(
    table: JudgmentTable,
    draws: PosteriorDraws,
    *,
    seed: int,
    prior_sd: float | None = None,
    replications: int = 200,
    judges: Sequence[str] | None = None,
) -> JudgmentFit:
    """Infit, outfit, transitivity and upsets, against simulated judges who follow the model on the same pairs.

    In each replication the true scores (and order effect) are a posterior draw, outcomes are drawn, the model is fitted
    to them as it was to the judgments, and the same figures are computed, so that the fit's optimism is in both. Truths
    at the fitted scores themselves would be too close together, because these are shrunk: real judges who follow the
    model would look too consistent. With draws, p-values are centred and somewhat cautious in the tails.

    Args:
        table: the judgments.
        draws: from `draw_posterior` of the same table. If they have an order effect, so has the fit.
        seed: of the simulated outcomes.
        prior_sd: logits; the width that scores are fitted under, fitted here when not given.
        replications: simulated batches, at least 20.
        judges: (n_judgments,) who judged, for mean squares of each judge; one scale is fitted to all of them.

    Raises:
        InputError: draws of another number of items, too few replications, or not one judge per judgment.
    """
    if draws.n_items != table.n_items:
        raise InputError(f"the draws are of {draws.n_items} items, the judgments of {table.n_items}")
    if replications < 20:
        raise InputError(f"replications must be at least 20, not {replications}")
    if judges is not None and len(judges) != len(table):
        raise InputError(f"{len(judges)} judges are given for {len(table)} judgments")
    ordered = draws.order_effects is not None
    sums = table.readings if ordered else table.pairs
    width = prior_sd or fit_bradley_terry(table.winners, table.losers, table.n_items).prior_sd or 2.0
    rng = np.random.default_rng(seed)
    names, by_judge = _told_apart(table, sums, judges)
    observed = _figures(sums, by_judge, width, ordered, start=None)
    simulated = []
    for row in rng.integers(len(draws.scores), size=replications):
        effect = float(draws.order_effects[row]) if draws.order_effects is not None else 0.0
        win = _logistic(draws.scores[row, sums.first] - draws.scores[row, sums.second] + effect)
        outcomes, judged = _simulate_outcomes(sums, by_judge, win, rng)
        simulated.append(_figures(outcomes, judged, width, ordered, start=observed.mode))
    infits, outfits = np.array([s.infit for s in simulated]), np.array([s.outfit for s in simulated])
    return JudgmentFit(
        infit=observed.infit,
        outfit=observed.outfit,
        infit_limits=np.quantile(infits, [0.025, 0.975], axis=0).T,
        outfit_limits=np.quantile(outfits, [0.025, 0.975], axis=0).T,
        infit_p=_two_sided(observed.infit, infits),
        outfit_p=_two_sided(observed.outfit, outfits),
        transitivity=_bootstrapped(observed.transitive, [s.transitive for s in simulated]),
        upsets=_bootstrapped(observed.upsets, [s.upsets for s in simulated]),
        judges=_judge_fits(names, by_judge, observed, simulated),
        replications=replications,
    )


def mean_squares(sums: PairSums, win: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Infit and outfit mean squares of each item (Wright & Masters 1982, ch. 5).

    Args:
        sums: the judgments.
        win: (n_pairs,) probability that each pair's first item wins, between 0 and 1.

    Returns:
        Two (n_items,) arrays; NaN for items without judgments.
    """
    squares, variance = _residuals(sums.first_wins, sums.second_wins, win)

    def per_item(values: FloatArray) -> FloatArray:
        added = np.bincount(sums.first, weights=values, minlength=sums.n_items).astype(np.float64)
        added += np.bincount(sums.second, weights=values, minlength=sums.n_items)
        return added

    with np.errstate(invalid="ignore", divide="ignore"):
        infit = per_item(squares) / per_item(np.asarray(sums.totals * variance, dtype=np.float64))
        outfit = per_item(squares / variance) / per_item(sums.totals.astype(np.float64))
    return infit, outfit


def _residuals(first_wins: IntArray, second_wins: IntArray, win: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Squared residuals, summed over the judgments of each row, and the variance of one judgment."""
    squares: FloatArray = first_wins * (1.0 - win) ** 2 + second_wins * win**2
    return squares, np.maximum(win * (1.0 - win), 1e-12)


def count_triads(sums: PairSums) -> tuple[int, int]:
    """(transitive, all) triads of items of which all three pairs were judged and decided by majority.

    A triad is circular when each of its items beats one of the others (Kendall & Babington Smith 1940).
    """
    balance = np.zeros((sums.n_items, sums.n_items))
    np.add.at(balance, (sums.first, sums.second), sums.first_wins - sums.second_wins)
    beats = (balance - balance.T > 0).astype(np.float64)
    decided = beats + beats.T
    triads = round(float(((decided @ decided) * decided).sum()) / 6.0)
    circular = round(float(((beats @ beats) * beats.T).sum()) / 3.0)
    return triads - circular, triads


@dataclass(frozen=True, eq=False)
class _ByJudge:
    """The judgments of each pair by each judge: `pair` and `judge` are (n_cells,) indices, ascending."""

    pair: IntArray
    judge: IntArray
    first_wins: IntArray
    second_wins: IntArray
    n_judges: int

    @property
    def totals(self) -> IntArray:
        return self.first_wins + self.second_wins

    def mean_squares(self, win: FloatArray) -> FloatArray:
        """(2, n_judges) infit and outfit; `win` is (n_pairs,) as in `mean_squares`."""
        squares, variance = _residuals(self.first_wins, self.second_wins, win[self.pair])

        def per_judge(values: FloatArray) -> FloatArray:
            return np.bincount(self.judge, weights=values, minlength=self.n_judges).astype(np.float64)

        infit = per_judge(squares) / per_judge(np.asarray(self.totals * variance, dtype=np.float64))
        return np.array([infit, per_judge(squares / variance) / per_judge(self.totals.astype(np.float64))])


def _told_apart(table: JudgmentTable, sums: PairSums, judges: Sequence[str] | None) -> tuple[list[str], _ByJudge]:
    """Names of the judges, and their judgments; one nameless judge if they are not told apart."""
    names, judge = np.unique(np.array(judges if judges is not None else [""] * len(table)), return_inverse=True)
    cells, cell = np.unique(sums.row * len(names) + judge, return_inverse=True)
    first_won = table.winners == sums.first[sums.row]
    told = _ByJudge(
        pair=cells // len(names),
        judge=cells % len(names),
        first_wins=np.bincount(cell[first_won], minlength=cells.size),
        second_wins=np.bincount(cell[~first_won], minlength=cells.size),
        n_judges=len(names),
    )
    return ([] if judges is None else [str(name) for name in names]), told


def _simulate_outcomes(
    sums: PairSums, by_judge: _ByJudge, win: FloatArray, rng: np.random.Generator
) -> tuple[PairSums, _ByJudge]:
    """The same judgments with new winners; `win` is (n_pairs,), the chance of each pair's first item."""
    wins = rng.binomial(by_judge.totals, win[by_judge.pair])
    first_wins = np.bincount(by_judge.pair, weights=wins, minlength=sums.first.size).astype(np.int64)
    return (
        replace(sums, first_wins=first_wins, second_wins=sums.totals - first_wins),
        replace(by_judge, first_wins=wins, second_wins=by_judge.totals - wins),
    )


def _judge_fits(
    names: list[str], by_judge: _ByJudge, observed: "_Figures", simulated: "list[_Figures]"
) -> tuple[JudgeFit, ...]:
    drawn = np.array([figures.by_judge for figures in simulated])
    limits = np.quantile(drawn, [0.025, 0.975], axis=0)
    p_values = [_two_sided(observed.by_judge[which], drawn[:, which]) for which in (0, 1)]
    judgments = np.bincount(by_judge.judge, weights=by_judge.totals, minlength=by_judge.n_judges)
    return tuple(
        JudgeFit(
            judge=name,
            judgments=int(judgments[place]),
            infit=float(observed.by_judge[0, place]),
            outfit=float(observed.by_judge[1, place]),
            infit_limits=(float(limits[0, 0, place]), float(limits[1, 0, place])),
            outfit_limits=(float(limits[0, 1, place]), float(limits[1, 1, place])),
            infit_p=float(p_values[0][place]),
            outfit_p=float(p_values[1][place]),
        )
        for place, name in enumerate(names)
    )


@dataclass(frozen=True, eq=False)
class _Figures:
    mode: Mode
    infit: FloatArray
    outfit: FloatArray
    by_judge: FloatArray
    transitive: tuple[int, int]
    upsets: tuple[int, int]


def _figures(sums: PairSums, by_judge: _ByJudge, width: float, ordered: bool, start: Mode | None) -> _Figures:
    mode = _mode(sums, width, ordered, start)
    gap = mode.scores[sums.first] - mode.scores[sums.second]
    win = _logistic(gap + mode.advantage)
    infit, outfit = mean_squares(sums, win)
    clear = np.abs(gap) > CLEAR_DIFFERENCE
    behind = np.where(gap > 0, sums.second_wins, sums.first_wins)
    upsets = int(behind[clear].sum()), int(sums.totals[clear].sum())
    return _Figures(mode, infit, outfit, by_judge.mean_squares(win), count_triads(sums), upsets)


def _mode(sums: PairSums, width: float, ordered: bool, start: Mode | None = None) -> Mode:
    """The most probable scores and order effect under N(0, width²); near the mode, a start saves steps."""
    scores, advantage = (np.zeros(sums.n_items), 0.0) if start is None else (start.scores, start.advantage)
    return find_mode(counts_of(sums, ordered=ordered), IndependentPrior(width), scores, advantage, STEP_TOLERANCE)


def _two_sided(observed: FloatArray, simulated: FloatArray) -> FloatArray:
    """Monte Carlo p-values, 2 min((1 + #below)/(B + 1), (1 + #above)/(B + 1)) (Davison & Hinkley 1997, 4.2)."""
    # the last digits depend on where Newton's method began
    slack = 1e-9 * (1.0 + np.abs(observed))
    below = (simulated <= observed + slack).sum(axis=0)
    above = (simulated >= observed - slack).sum(axis=0)
    p = np.minimum(1.0, 2.0 * (1.0 + np.minimum(below, above)) / (len(simulated) + 1.0))
    values: FloatArray = np.where(np.isnan(observed), np.nan, p)
    return values


def _bootstrapped(observed: tuple[int, int], simulated: list[tuple[int, int]]) -> Bootstrapped:
    # a replication may have no case at all, and then says nothing
    shares = np.array([count / total for count, total in simulated if total])
    count, total = observed
    if not total or not shares.size:
        return Bootstrapped(count / total if total else None, total, None, (0.0, 1.0), None)
    low, high = np.quantile(shares, [0.025, 0.975])
    p = float(_two_sided(np.array([count / total]), shares[:, None])[0])
    return Bootstrapped(count / total, total, float(shares.mean()), (float(low), float(high)), p)


def _logistic(x: FloatArray) -> FloatArray:
    values: FloatArray = np.exp(-np.logaddexp(0.0, -x))
    return values


# -- position and repeats --------------------------------------------------------------------------------------


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
    sums, values = table.readings, _checked_scores(table, scores)
    win = _logistic(values[sums.first] - values[sums.second] + order_effect)
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
    return Agreement(int(shares.size), mean, _wilson(mean, shares.size), float(expected.mean()))


def _checked_scores(table: JudgmentTable, scores: ArrayLike) -> FloatArray:
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (table.n_items,):
        raise InputError(f"scores must be {table.n_items} numbers, one per item, not of shape {values.shape}")
    return values


# -- predictions and surprises ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class CalibrationBin:
    """Judgments whose favourite had a predicted chance between `low` and `high`.

    Attributes:
        low, high: edges of the bin.
        predicted: mean predicted chance of the favourite; None for an empty bin.
        won: share of these judgments that the favourite won, with its interval.
    """

    low: float
    high: float
    predicted: float | None
    won: Share


def predict_wins(
    table: JudgmentTable,
    *,
    seed: int,
    prior_sd: float | None = None,
    folds: int = 10,
    order_effect: bool = False,
) -> FloatArray:
    """(n_judgments,) chance that each judgment's winner had, predicted from the judgments of other pairs.

    Pairs (in either order) are dealt into folds; each fold is predicted from the fit to all others, the uncertainty of
    the difference included: logistic(d / √(1 + π v / 8)), v its variance (MacKay 1992).

    Args:
        table: the judgments.
        seed: of the deal.
        prior_sd: logits; the width scores are fitted under, fitted here when not given.
        folds: at least 2.
        order_effect: whether the reading order is in the model.

    Raises:
        InputError: fewer than 2 folds, or a reading order that is wanted and not known.
    """
    if folds < 2:
        raise InputError(f"folds must be at least 2, not {folds}")
    if not len(table):
        return np.zeros(0)
    width = prior_sd or fit_bradley_terry(table.winners, table.losers, table.n_items).prior_sd or 2.0
    n_pairs = len(table.pairs.first)
    fold = (np.random.default_rng(seed).permutation(n_pairs) % folds)[table.pairs.row]
    sign = np.where(table.known_order(), 1.0, -1.0) if order_effect else np.zeros(len(table))
    predicted = np.empty(len(table))
    for k in range(min(folds, n_pairs)):
        rest, held = table.rows(fold != k), np.flatnonzero(fold == k)
        mode = _mode(rest.readings if order_effect else rest.pairs, width, order_effect)
        known = mode.information
        covariance = known.inverse()
        i, j = table.winners[held], table.losers[held]
        difference = mode.scores[i] - mode.scores[j] + sign[held] * mode.advantage
        variance = covariance[i, i] + covariance[j, j] - 2.0 * covariance[i, j]
        if order_effect:
            # scores and advantage have the covariance -border / complement
            with_advantage = 1.0 - 2.0 * sign[held] * (known.border[i] - known.border[j])
            variance += with_advantage * known.advantage_variance
        predicted[held] = _logistic(difference / np.sqrt(1.0 + pi * variance / 8.0))
    return predicted


def calibration_table(winner_chances: ArrayLike) -> list[CalibrationBin]:
    """How often favourites won, by how likely they were to win; see `predict_wins`.

    Args:
        winner_chances: (n_judgments,) the chance each winner had, 0 to 1. Where it is exactly 1/2 there was no
            favourite, and the judgment is left out.

    Raises:
        InputError: a chance outside 0 to 1.
    """
    chances = np.asarray(winner_chances, dtype=np.float64)
    if not ((chances >= 0.0) & (chances <= 1.0)).all():
        raise InputError("winner_chances must be between 0 and 1")
    chances = chances[chances != 0.5]
    favourite = np.maximum(chances, 1.0 - chances)
    position = np.clip(np.searchsorted(CALIBRATION_EDGES, favourite, side="right") - 1, 0, len(CALIBRATION_EDGES) - 2)
    table = []
    for k, (low, high) in enumerate(pairwise(CALIBRATION_EDGES)):
        inside = position == k
        won = share_of(int((chances[inside] > 0.5).sum()), int(inside.sum()))
        table.append(CalibrationBin(low, high, float(favourite[inside].mean()) if won.total else None, won))
    return table


@dataclass(frozen=True)
class Surprise:
    """A judgment that the fitted scores make unlikely.

    Attributes:
        row: its row in the table.
        winner, loser: item indices.
        chance: the chance the winner had under the fit, below 1/2.
    """

    row: int
    winner: int
    loser: int
    chance: float


def surprising_judgments(
    table: JudgmentTable, scores: ArrayLike, *, most: int = 10, order_effect: float = 0.0
) -> list[Surprise]:
    """The judgments whose winner had the least chance, most surprising first; equal ones by their row.

    Args:
        table: the judgments.
        scores: (n_items,) fitted scores, logits.
        most: how many at most.
        order_effect: fitted advantage of the essay read first, logits; needs the reading order when not zero.

    Raises:
        InputError: `scores` has another length, or the reading order is needed and not known.
    """
    values = _checked_scores(table, scores)
    difference = values[table.winners] - values[table.losers]
    if order_effect:
        difference += np.where(table.known_order(), order_effect, -order_effect)
    chance = _logistic(difference)
    rows = np.lexsort((np.arange(chance.size), chance))[: max(most, 0)]
    return [
        Surprise(int(row), int(table.winners[row]), int(table.losers[row]), float(chance[row]))
        for row in rows
        if chance[row] < 0.5
    ]
