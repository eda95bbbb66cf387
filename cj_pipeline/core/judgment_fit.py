"""Whether the judgments behave as the model says: misfit and contradictions, held against a perfect judge.

Here: infit and outfit per essay and per judge, transitivity and upsets, each beside a parametric bootstrap of the
fitted model on the same pairs. What judges do whatever the essays are lives in `judge_habits`, predicted wins and
surprises in `predictions`, the fit itself in `bradley_terry`, draws in `posterior`. Gauges only: no decision of the
program may depend on them.

Why a bootstrap. Fixed limits such as 0.7 to 1.3 for mean squares assume many judgments per essay against opponents met
without regard to results. With ten judgments per essay, or close opponents only, a perfect judge falls outside them,
or never could; what a perfect judge would show on these very pairs is found by simulating one.

References:
    Davison, A. C. & Hinkley, D. V. (1997). Bootstrap Methods and their Application. Cambridge University Press.
    Kendall, M. G. & Babington Smith, B. (1940). On the method of paired comparisons. Biometrika 31, 324-345.
    Wright, B. D. & Masters, G. N. (1982). Rating Scale Analysis. Chicago: MESA Press.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cj_pipeline.core.bradley_terry import STEP_TOLERANCE, fit_bradley_terry
from cj_pipeline.core.bradley_terry_mode import Mode, find_mode
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.judgment_table import JudgmentTable, PairSums, logistic
from cj_pipeline.core.pair_counts import counts_of
from cj_pipeline.core.posterior import PosteriorDraws
from cj_pipeline.core.score_prior import IndependentPrior

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

CLEAR_DIFFERENCE: Final = 3.0
"""Logits. Beyond it the better essay should win 19 of 20 times or more; upsets there are lapses of the judge."""


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

    @property
    def least_p(self) -> float:
        """The smallest p-value that so many simulated batches can give."""
        return 2.0 / (self.replications + 1.0)


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
        win = logistic(draws.scores[row, sums.first] - draws.scores[row, sums.second] + effect)
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
    win = logistic(gap + mode.advantage)
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
