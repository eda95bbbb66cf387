"""The Bradley–Terry model: scores on a logit scale from who beat whom, and how well they are known.

P(i beats j) = 1 / (1 + exp(-(score_i - score_j))) (Bradley & Terry 1952). Judgments whose reading order is known also
tell how much being read first helps: P(i, read first, beats j) = 1 / (1 + exp(-(score_i - score_j + advantage))), an
order effect (Davidson & Beaver 1977) that adds up in logits, with advantage ~ N(0, 1). Here live the fit by Newton's
method on the information matrix, its covariance and standard errors, the Gaussian prior with its width fitted to the
batch, and the conditions under which a finite estimate exists (Ford 1957; Hunter 2004). Which pairs to judge
(`pairing`), when to stop (`completion`), summaries and flags (`diagnostics`) and grades (`grades`) live elsewhere.

The prior's width is weighed by the marginal likelihood of the judgments. The plain Laplace approximation of it is off
by a little for every item that was seen once or twice, which adds up: in a wave of disjoint pairs, whose outcomes say
nothing about the width at all, it prefers an ever smaller one the more pairs there are. So each pair's factor is
integrated exactly against the Gaussian that the rest of the fit implies for its difference (a first-order correction in
the sense of Cseke & Heskes 2011; exact where every item is in one pair).

References:
    Bradley, R. A. & Terry, M. E. (1952). Rank analysis of incomplete block designs: I. The method of paired
        comparisons. Biometrika 39, 324-345.
    Cseke, B. & Heskes, T. (2011). Approximate marginals in latent Gaussian models. Journal of Machine Learning Research
        12, 417-454.
    Davidson, R. R. & Beaver, R. J. (1977). On extending the Bradley-Terry model to incorporate within-pair order
        effects. Biometrics 33, 693-702.
    Ford, L. R. (1957). Solution of a ranking problem from binary comparisons. American Mathematical Monthly 64(8),
        part 2, 28-33.
    Hunter, D. R. (2004). MM algorithms for generalized Bradley-Terry models. Annals of Statistics 32, 384-406.
    Tierney, L. & Kadane, J. B. (1986). Accurate approximations for posterior moments and marginal densities.
        Journal of the American Statistical Association 81, 82-86.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from math import exp, isfinite, log, pi
from typing import Any, Final, Literal, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cj_pipeline.core.diagnostics import SeSummary, bt_se_summary
from cj_pipeline.core.errors import DisconnectedError, InputError, SeparationError
from cj_pipeline.core.judgment_table import item_indices
from cj_pipeline.core.models import Comparison, ComparisonStatus, Winner
from cj_pipeline.core.sparse_bradley_terry import (
    SparseMode,
    Variances,
    find_sparse_mode,
    sparse_contrast_variance,
    sparse_variances,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

STEP_TOLERANCE: Final = 1e-9
"""Logits. A fit has converged when its last full Newton step is no larger, in every item."""

PRIOR_SD_RANGE: Final = (1e-4, 1e4)
"""Logits. Wider priors are maximum likelihood in all but name, and lose the digits that tell them from it."""

ORDER_EFFECT_PRIOR_SD: Final = 1.0
"""Logits. Width of the prior of the first position's advantage."""

SPARSE_FROM: Final = 150
"""Items. From here on, Newton steps are sparse (`sparse_bradley_terry`), unless the prior's width or an
order effect is fitted."""

DENSE_UP_TO: Final = 3_000
"""Items. Up to here, standard errors come from the full covariance; beyond, see `BradleyTerryFit.standard_errors`."""

# Hyperprior of the fitted width: log sigma ~ N(log 2, 1), explored to 5 hyper-sd either side.
_HYPER_MEAN: Final = log(2.0)
_HYPER_REACH: Final = 5
# The grid covers all widths whose posterior density is within exp(-10) of the highest, by at least 11 points:
# at most 0.9 posterior sd apart, where sums over the grid equal integrals to many digits.
_LOG_DENSITY_DROP: Final = 10.0
_LEAST_GRID_POINTS: Final = 11
# One Newton step from 1e-6 leaves an error of the order of its square.
_GRID_STEP_TOLERANCE: Final = 1e-6
# The integral over one pair's difference: the cavity is seen to 9 sd, at points that leave an error below 1e-4.
_CAVITY_REACH: Final = 9.0
_QUADRATURE_POINTS: Final = 81
_PAIRS_AT_ONCE: Final = 4096
_JUDGMENTS_AT_ONCE: Final = 65_536
# So many pairs an item, if they connect everything, save looking at the others.
_ENOUGH_PAIRS: Final = 32
_MAX_ITERATIONS: Final = 200
_MAX_HALVINGS: Final = 40
_ITEMS_NAMED: Final = 20


class ScoringSettings(Protocol):
    """The setting that scoring reads."""

    @property
    def bt_standard_error_max(self) -> float:
        """Logits. Reported standard errors are capped here."""


@dataclass(frozen=True, eq=False)
class PairCounts:
    """Judgments added up over unordered pairs and the order they were read in: all that the likelihood sees of them.

    Attributes:
        n_items: number of items.
        first, second: (n_pairs,) item indices, first < second, in ascending order of (first, second, order).
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
        terms = self.first_wins * np.logaddexp(0.0, -difference) + self.second_wins * np.logaddexp(0.0, difference)
        return -float(terms.sum())

    def gradient(self, scores: FloatArray, advantage: float = 0.0) -> tuple[FloatArray, float]:
        """(n_items,) derivative of the log likelihood in the scores, and its derivative in the advantage."""
        win, lose = self._probabilities(scores, advantage)
        surplus = self.first_wins * lose - self.second_wins * win
        return self._per_item(surplus, -surplus), float(self.order @ surplus)

    def information(self, scores: FloatArray, advantage: float = 0.0) -> tuple[FloatArray, FloatArray, float]:
        """Negative Hessian of the log likelihood, in three blocks.

        Returns:
            (n_items, n_items) of the scores, the Laplacian of the weighted graph; (n_items,) between the scores and
            the advantage, which sums to zero in every component; the advantage's own.
        """
        win, lose = self._probabilities(scores, advantage)
        weight = (self.first_wins + self.second_wins) * win * lose
        matrix = np.zeros((self.n_items, self.n_items))
        np.add.at(matrix, (self.first, self.second), -weight)
        matrix += matrix.T
        np.fill_diagonal(matrix, self._per_item(weight, weight))
        signed = weight * self.order
        return matrix, self._per_item(signed, -signed), float(weight @ self.order**2)

    def comparison_counts(self) -> FloatArray:
        """(n_items,) sum of the weights of each item's judgments."""
        played = self.first_wins + self.second_wins
        return self._per_item(played, played)

    @cached_property
    def component_projection(self) -> FloatArray:
        """(n_items, n_items) projection onto the vectors that are constant within each component."""
        sizes = np.bincount(self.components)
        same: NDArray[np.bool_] = self.components[:, None] == self.components[None, :]
        return same / sizes[self.components][:, None]

    def centred_within_components(self, scores: FloatArray) -> FloatArray:
        """`scores` shifted so that they sum to zero in every component."""
        means = np.bincount(self.components, weights=scores) / np.bincount(self.components)
        return scores - means[self.components]

    def _probabilities(self, scores: FloatArray, advantage: float) -> tuple[FloatArray, FloatArray]:
        """P(first wins) and P(second wins), each accurate to the last digits however small it is."""
        difference = self.predictor(scores, advantage)
        return np.exp(-np.logaddexp(0.0, -difference)), np.exp(-np.logaddexp(0.0, difference))

    def _per_item(self, first_values: FloatArray, second_values: FloatArray) -> FloatArray:
        sums: FloatArray = np.bincount(self.first, weights=first_values, minlength=self.n_items).astype(np.float64)
        sums += np.bincount(self.second, weights=second_values, minlength=self.n_items)
        return sums


@dataclass(frozen=True, eq=False)
class StandardErrorAccuracy:
    """How far the standard errors of a fit may be off.

    Attributes:
        relative_error: (n_items,) share of itself by which a standard error may be off (four times the standard error
            of the estimate); 0 where it is exact.
        exact: (n_items,) whether it is exact to rounding.
        probes: random probes that the others were estimated from; 0 if all are exact.
    """

    relative_error: FloatArray
    exact: NDArray[np.bool_]
    probes: int


@dataclass(frozen=True, eq=False)
class BradleyTerryFit:
    """Scores of one batch and what is known about them. Made by `fit_bradley_terry`.

    Attributes:
        scores: (n_items,) logits, summing to zero (under a prior: in every component).
        n_items: number of items.
        components: (n_items,) labels of the connected components of the comparison graph. Scores of different
            components share no judgment: only a prior relates them.
        win_components: (n_items,) labels of the strongly connected components of the win graph. One label means
            that the maximum-likelihood estimate is finite (Ford 1957).
        converged: whether the last full Newton step was at most `STEP_TOLERANCE` in every item.
        iterations: Newton steps taken in all, those on the grid of prior widths included.
        prior_sd: logits; the width of the prior that the scores are at, None for maximum likelihood.
        prior_sd_interval: logits; 95 % posterior interval of a fitted width, else None.
        order_effect: logits by which being read first helps; None if it was not fitted.
        order_effect_se: its standard error, logits.
        comparison_counts: (n_items,) number of judgments of each item (sum of their weights).
        pairs: the judgments, added up over pairs.
        score_spread: (n_items, k) matrix S; S Sᵀ is the covariance of the scores over the fitted width's
            posterior. k is 0 when the width was not fitted.
    """

    scores: FloatArray
    n_items: int
    components: IntArray
    win_components: IntArray
    converged: bool
    iterations: int
    prior_sd: float | None
    prior_sd_interval: tuple[float, float] | None
    order_effect: float | None
    order_effect_se: float | None
    comparison_counts: FloatArray
    pairs: PairCounts = field(repr=False)
    score_spread: FloatArray = field(repr=False)

    def covariance(self) -> FloatArray:
        """(n_items, n_items) covariance of the scores in their sum-to-zero convention, logits², read-only.

        C H⁻¹ C with C the centring matrix and H the information matrix plus the prior precision; the
        pseudo-inverse of the information matrix for maximum likelihood. An order effect's uncertainty is in it: its
        row and column are eliminated, not held fixed. With a fitted prior width, the spread of
        the scores over the width's posterior is added.

        Raises:
            InputError: beyond `DENSE_UP_TO` items, whose covariance is not computed as a whole.
        """
        return self._covariance

    def standard_errors(self, *, exact: bool = False) -> FloatArray:
        """(n_items,) square roots of the diagonal of `covariance()`, logits.

        Exact up to `DENSE_UP_TO` items. Beyond, those that are not cheap to solve for are estimated;
        `standard_error_accuracy` says which, and how far they may be off.

        Args:
            exact: solve for every item, however long it takes.
        """
        if self._is_dense:
            return _root(np.diag(self._covariance))
        variances = self._exact_variances if exact else self._variances
        return _root(self._in_batch_frame(variances.values))

    @property
    def standard_error_accuracy(self) -> "StandardErrorAccuracy":
        """How far `standard_errors()` may be off."""
        if self._is_dense:
            return StandardErrorAccuracy(np.zeros(self.n_items), np.ones(self.n_items, dtype=bool), 0)
        found = self._variances
        # the other terms of the variance are exact: the estimated one weighs less by its share of the whole
        whole = self._in_batch_frame(found.values)
        share = np.divide(found.values, whole, out=np.zeros_like(whole), where=whole > 0)
        return StandardErrorAccuracy(found.relative_error * share, found.exact, found.probes)

    def standard_error_of_contrast(self, i: int, j: int) -> float:
        """Standard error of score i minus score j, logits.

        Raises:
            InputError: if an index is not in 0 … n_items - 1.
        """
        for index in (i, j):
            if not 0 <= index < self.n_items:
                raise InputError(f"contrast of items {i} and {j}: there are items 0 to {self.n_items - 1} only")
        if not self._is_dense:
            return self._sparse_contrast(i, j)
        covariance = self._covariance
        return float(_root(covariance[i, i] + covariance[j, j] - 2.0 * covariance[i, j]))

    def prior_free_standard_errors(self) -> FloatArray:
        """(n_items,) standard errors from the judgments alone, at these scores, logits.

        From the information of the likelihood without prior, centred within each connected component; infinite
        for an item without judgments. Beyond `DENSE_UP_TO` items estimated, as `standard_errors` are.
        """
        if not self._is_dense:
            variances = self._variances if self.prior_sd is None else sparse_variances(self.pairs, self.scores, 0.0)
            errors: FloatArray = _root(variances.values)
            errors[self.comparison_counts == 0] = np.inf
            return errors
        scaled = _Information.at(self.pairs, self.scores, self.order_effect or 0.0, precision=0.0)
        errors = _root(np.diag(scaled.inverse()))
        errors[self.comparison_counts == 0] = np.inf
        return errors

    @property
    def _is_dense(self) -> bool:
        # the sparse solvers know no order effect
        return self.n_items <= DENSE_UP_TO or self.pairs.ordered

    @property
    def _precision(self) -> float:
        return 0.0 if self.prior_sd is None else self.prior_sd**-2

    @cached_property
    def _variances(self) -> Variances:
        """Variances centred within components, for many items."""
        return sparse_variances(self.pairs, self.scores, self._precision)

    @cached_property
    def _exact_variances(self) -> Variances:
        return sparse_variances(self.pairs, self.scores, self._precision, exact=True)

    def _in_batch_frame(self, within_components: FloatArray) -> FloatArray:
        """(n_items,) diagonal of `covariance()` from variances centred within components.

        Under a prior, the mean of a component of k items has the variance 1/k of one item's prior, and the mean of all
        n items, which the sum-to-zero convention takes away, 1/n.
        """
        whole: FloatArray = within_components + (self.score_spread**2).sum(axis=1)
        if self.prior_sd is not None:
            whole += self.prior_sd**2 * (1.0 / np.bincount(self.components)[self.components] - 1.0 / self.n_items)
        return whole

    def _sparse_contrast(self, i: int, j: int) -> float:
        """`standard_error_of_contrast` for many items."""
        precision, labels = self._precision, self.components
        if i == j:
            return 0.0
        variance = float(((self.score_spread[i] - self.score_spread[j]) ** 2).sum())
        variance += sparse_contrast_variance(self.pairs, self.scores, precision, i, j)
        if labels[i] != labels[j] and self.prior_sd is not None:
            sizes = np.bincount(labels)
            variance += self.prior_sd**2 * float(1.0 / sizes[labels[i]] + 1.0 / sizes[labels[j]])
        return float(_root(variance))

    @cached_property
    def _covariance(self) -> FloatArray:
        if not self._is_dense:
            raise InputError(
                f"the full covariance of {self.n_items} items is not computed (at most {DENSE_UP_TO}): ask for "
                "standard_errors(), or for standard_error_of_contrast(i, j) of the pairs that matter"
            )
        inverse = _Information.at(self.pairs, self.scores, self.order_effect or 0.0, self._precision).inverse()
        rows: FloatArray = inverse.mean(axis=1)
        covariance: FloatArray = inverse - rows[:, None] - rows[None, :] + rows.mean()
        covariance += self.score_spread @ self.score_spread.T
        covariance = (covariance + covariance.T) / 2.0
        covariance.flags.writeable = False
        return covariance


@dataclass(frozen=True)
class BTScoringResult:
    """Scores, standard errors and counts of one batch by essay id. Made by `compute_bt_scores_and_se`.

    Attributes:
        essay_ids: ascending; the order of the items in `fit`, and of every dict below.
        scores: logits, summing to zero.
        ses: reported standard errors, logits, capped at `bt_standard_error_max`.
        ses_uncapped: the same without the cap; grades use these.
        prior_free_ses: standard errors from the judgments alone, logits; infinite for an isolated essay.
        per_essay_counts: judged comparisons of each essay.
        wins, losses: of those, won and lost.
        components: label of each essay's connected component of the comparison graph.
        se_summary: see `diagnostics.bt_se_summary`.
        fit: the fit itself, with the full covariance.
    """

    essay_ids: tuple[str, ...]
    scores: dict[str, float]
    ses: dict[str, float]
    ses_uncapped: dict[str, float]
    prior_free_ses: dict[str, float]
    per_essay_counts: dict[str, int]
    wins: dict[str, int]
    losses: dict[str, int]
    components: dict[str, int]
    se_summary: SeSummary
    fit: BradleyTerryFit

    def ranking(self) -> list[str]:
        """Essay ids, best first; equal scores by id."""
        return sorted(self.essay_ids, key=lambda essay: (-self.scores[essay], essay))


def fit_bradley_terry(
    winners: ArrayLike,
    losers: ArrayLike,
    n_items: int,
    *,
    weights: ArrayLike | None = None,
    prior_sd: float | Literal["fitted"] | None = "fitted",
    winner_first: ArrayLike | None = None,
) -> BradleyTerryFit:
    """Fit the Bradley–Terry model by Newton's method, from a cold start, without any randomness.

    Args:
        winners: (n_judgments,) integers, the index of the item that won each judgment.
        losers: (n_judgments,) integers, the index of the item that lost it.
        n_items: number of items; indices are 0 … n_items - 1. Items without judgments are allowed under a prior.
        weights: (n_judgments,) positive multiplicities; a weight of 2 is the judgment given twice.
        prior_sd: "fitted": scores ~ N(0, σ²) independently, log σ ~ N(log 2, 1), the posterior of σ by the
            corrected Laplace approximation (see the module) on an adaptive grid; the scores are the mode at
            exp(E[log σ]), and their covariance includes their spread over σ. Every item gets a finite score.
            A number: the mode under N(0, prior_sd²), logits. None: maximum likelihood.
        winner_first: (n_judgments,) booleans, whether the winner was the item read first. Given, the advantage of
            being read first is fitted along, under N(0, `ORDER_EFFECT_PRIOR_SD`²) whatever `prior_sd` is, so that it
            is finite for every design. Not given, there is none.

    Raises:
        InputError: arrays of unequal length or wrong type, an index out of range, an item against itself, a
            weight or a `prior_sd` that is not a positive finite number (`prior_sd` within `PRIOR_SD_RANGE`).
        DisconnectedError: `prior_sd=None` and the comparison graph falls into several components.
        SeparationError: `prior_sd=None` and the win graph is not strongly connected (Ford 1957).
    """
    pairs = _aggregate(winners, losers, n_items, weights, winner_first)
    win_components = _win_components(pairs)
    advantage_variance = 0.0
    spread: FloatArray = np.zeros((pairs.n_items, 0))
    interval: tuple[float, float] | None = None
    iterations = 0
    width: float | None
    if prior_sd is None:
        _require_finite_estimate(pairs.components, win_components)
        width, precision = None, 0.0
    else:
        if isinstance(prior_sd, str):
            if prior_sd != "fitted":
                raise InputError(f"prior_sd {prior_sd!r} is not known: give 'fitted', a number of logits, or None")
            posterior = _width_posterior(pairs)
            width, interval, spread = posterior.centre, posterior.interval, posterior.score_spread()
            iterations, advantage_variance = posterior.iterations, posterior.advantage_variance
        else:
            width = _checked_width(prior_sd)
        precision = width**-2
    mode: _Mode | SparseMode
    advantage = None
    if pairs.n_items >= SPARSE_FROM and prior_sd != "fitted" and not pairs.ordered:
        mode = find_sparse_mode(pairs, precision, STEP_TOLERANCE)
    else:
        mode = _find_mode(pairs, precision, np.zeros(pairs.n_items), 0.0, STEP_TOLERANCE)
        if pairs.ordered:
            advantage = mode.advantage
            advantage_variance += _Information.at(pairs, mode.scores, advantage, precision).advantage_variance
    return BradleyTerryFit(
        scores=mode.scores,
        n_items=pairs.n_items,
        components=pairs.components,
        win_components=win_components,
        converged=mode.converged,
        iterations=iterations + mode.iterations,
        prior_sd=width,
        prior_sd_interval=interval,
        order_effect=advantage,
        order_effect_se=advantage_variance**0.5 if pairs.ordered else None,
        comparison_counts=pairs.comparison_counts(),
        pairs=pairs,
        score_spread=spread,
    )


def log_marginal_likelihood(
    winners: ArrayLike,
    losers: ArrayLike,
    n_items: int,
    *,
    prior_sd: float,
    weights: ArrayLike | None = None,
    winner_first: ArrayLike | None = None,
) -> float:
    """log P(judgments | prior_sd), the scores integrated out: Laplace, with every pair's own factor integrated exactly.

    log P ≈ log L(s) - |s|²/(2σ²) - n log σ - ½ log det H, with s the mode under N(0, σ²) and H the information
    matrix plus 1/σ² (Tierney & Kadane 1986); the powers of 2π cancel. A fitted order effect is one dimension more.

    Args and errors as in `fit_bradley_terry`.
    """
    pairs = _aggregate(winners, losers, n_items, weights, winner_first)
    width = _checked_width(prior_sd)
    return _log_marginal(pairs, width, np.zeros(pairs.n_items), 0.0)[0]


def compute_bt_scores_and_se(
    judgments: Sequence[Comparison],
    essay_ids: Sequence[str],
    settings: ScoringSettings,
    *,
    anchor_ids: Collection[str] = (),
) -> BTScoringResult:
    """Score a batch from its comparisons, under the prior whose width is fitted to it, with the order effect.

    The result does not depend on the order of `judgments` or of `essay_ids`, to the last bit.

    Args:
        judgments: the batch's comparisons; only those with status JUDGED count.
        essay_ids: all essays of the batch, anchors included, judged or not; at least one.
        settings: where reported standard errors are capped, logits.
        anchor_ids: which of the essays are anchors (for `se_summary` only).

    Raises:
        InputError: no essay, an essay or comparison id given twice, a comparison or anchor that names an essay
            not in `essay_ids`, or a judged comparison without a winner.
    """
    ordered_ids = tuple(sorted(essay_ids))
    index = {essay: position for position, essay in enumerate(ordered_ids)}
    _require_sound_judgments(judgments, ordered_ids, index, anchor_ids)
    judged = sorted(
        (comparison for comparison in judgments if comparison.status is ComparisonStatus.JUDGED),
        key=lambda comparison: comparison.comparison_id,
    )
    results = [(cast(str, comparison.winner_id), cast(str, comparison.loser_id)) for comparison in judged]
    fit = fit_bradley_terry(
        np.array([index[winner] for winner, _ in results], dtype=np.int64),
        np.array([index[loser] for _, loser in results], dtype=np.int64),
        len(ordered_ids),
        winner_first=np.array([comparison.winner is Winner.A for comparison in judged], dtype=np.bool_),
    )
    wins = dict.fromkeys(ordered_ids, 0)
    losses = dict.fromkeys(ordered_ids, 0)
    for winner, loser in results:
        wins[winner] += 1
        losses[loser] += 1
    cap = settings.bt_standard_error_max
    uncapped = _by_id(ordered_ids, fit.standard_errors())
    capped = {essay: min(se, cap) for essay, se in uncapped.items()}
    prior_free = _by_id(ordered_ids, fit.prior_free_standard_errors())
    return BTScoringResult(
        essay_ids=ordered_ids,
        scores=_by_id(ordered_ids, fit.scores),
        ses=capped,
        ses_uncapped=uncapped,
        prior_free_ses=prior_free,
        per_essay_counts={essay: wins[essay] + losses[essay] for essay in ordered_ids},
        wins=wins,
        losses=losses,
        components={essay: int(fit.components[position]) for essay, position in index.items()},
        se_summary=bt_se_summary(capped, prior_free, results, cap=cap, anchor_ids=anchor_ids),
        fit=fit,
    )


def max_score_change(previous: Mapping[str, float] | None, current: Mapping[str, float]) -> float | None:
    """Largest |change of a score| over the essays in both, logits; None when there is nothing to compare with."""
    if not previous:
        return None
    return max((abs(current[essay] - previous[essay]) for essay in previous if essay in current), default=None)


# -- input -----------------------------------------------------------------------------------------------------


def _aggregate(
    winners: ArrayLike, losers: ArrayLike, n_items: int, weights: ArrayLike | None, winner_first: ArrayLike | None
) -> PairCounts:
    """Check the judgments and add them up over unordered pairs and reading orders, in ascending order of both."""
    if isinstance(n_items, bool) or not isinstance(n_items, int | np.integer) or n_items < 1:
        raise InputError(f"n_items must be a positive integer, not {n_items!r}")
    n = int(n_items)
    winner, loser = item_indices("winners", winners, n), item_indices("losers", losers, n)
    if winner.size != loser.size:
        raise InputError(f"winners and losers must be of equal length, not {winner.size} and {loser.size}")
    itself = np.flatnonzero(winner == loser)
    if itself.size:
        raise InputError(f"judgment {itself[0]}: item {winner[itself[0]]} is compared with itself")
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


def _truths(values: ArrayLike, length: int) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if array.shape != (length,) or (length and array.dtype.kind != "b"):
        raise InputError(f"winner_first must be {length} booleans, one per judgment, not {array.dtype} {array.shape}")
    return array.astype(np.bool_)


def _counted(n: int, winner: IntArray, loser: IntArray) -> PairCounts:
    """Add up judgments of weight one: sorted by pair and outcome, piece by piece to spare memory, and counted."""
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


def _multiplicities(weights: ArrayLike, length: int) -> FloatArray:
    array = np.asarray(weights)
    if array.shape != (length,) or (length and array.dtype.kind not in "iuf"):
        raise InputError(f"weights must be {length} numbers, one per judgment, not {array.dtype} {array.shape}")
    bad = np.flatnonzero(~(np.isfinite(array.astype(np.float64)) & (array.astype(np.float64) > 0)))
    if bad.size:
        raise InputError(f"weights[{bad[0]}] is {array[bad[0]]}: a weight must be positive and finite")
    return array.astype(np.float64)


def _checked_width(prior_sd: float) -> float:
    low, high = PRIOR_SD_RANGE
    if isinstance(prior_sd, bool) or not isinstance(prior_sd, int | float | np.number):
        raise InputError(f"prior_sd must be 'fitted', a number of logits, or None, not {prior_sd!r}")
    width = float(prior_sd)
    if not (isfinite(width) and low <= width <= high):
        raise InputError(f"prior_sd {width} is outside {low} to {high} logits; None is maximum likelihood")
    return width


def _require_sound_judgments(
    judgments: Sequence[Comparison], ordered_ids: Sequence[str], known: Mapping[str, int], anchor_ids: Collection[str]
) -> None:
    if not ordered_ids:
        raise InputError("essay_ids is empty: there is nothing to score")
    repeated = sorted({a for a, b in pairwise(ordered_ids) if a == b})
    if repeated:
        raise InputError(f"essay_ids names essays more than once: {_named(repeated)}")
    strangers = sorted(essay for essay in anchor_ids if essay not in known)
    if strangers:
        raise InputError(f"anchor_ids names essays that are not in essay_ids: {_named(strangers)}")
    seen: set[str] = set()
    for comparison in judgments:
        where = f"comparison {comparison.comparison_id}"
        if comparison.comparison_id in seen:
            raise InputError(f"{where} is given twice: a judgment counts once")
        seen.add(comparison.comparison_id)
        for essay in (comparison.essay_a, comparison.essay_b):
            if essay not in known:
                raise InputError(f"{where} names essay {essay}, which is not in essay_ids")
        if comparison.status is ComparisonStatus.JUDGED and comparison.winner is None:
            raise InputError(f"{where} is judged but has no winner")


def _by_id(essay_ids: Sequence[str], values: FloatArray) -> dict[str, float]:
    return {essay: float(value) for essay, value in zip(essay_ids, values, strict=True)}


def _named(items: Sequence[object]) -> str:
    """The items in words, the first `_ITEMS_NAMED` of them."""
    text = ", ".join(str(item) for item in items[:_ITEMS_NAMED])
    more = len(items) - _ITEMS_NAMED
    return f"{text} and {more} more" if more > 0 else text


# -- connectedness ---------------------------------------------------------------------------------------------


def _component_labels(
    n_items: int, origin: IntArray, target: IntArray, connection: Literal["weak", "strong"]
) -> IntArray:
    """(n_items,) component labels, 0, 1, … in ascending order of each component's lowest item."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    graph = csr_array((np.ones(origin.size), (origin, target)), shape=(n_items, n_items))
    count, labels = connected_components(graph, directed=True, connection=connection)
    if count == 1:
        return np.zeros(n_items, dtype=np.int64)
    _, lowest, position = np.unique(labels, return_index=True, return_inverse=True)
    rank: IntArray = np.argsort(np.argsort(lowest))
    return rank[position].astype(np.int64)


def _comparison_components(n_items: int, first: IntArray, second: IntArray) -> IntArray:
    """Connected components of the comparison graph."""
    stride = 1 + first.size // (_ENOUGH_PAIRS * n_items)
    labels = _component_labels(n_items, first[::stride], second[::stride], "weak")
    return labels if stride == 1 or not labels.any() else _component_labels(n_items, first, second, "weak")


def _win_components(pairs: PairCounts) -> IntArray:
    """Strongly connected components of the graph with an edge from each winner to each loser."""
    stride = 1 + pairs.first.size // (_ENOUGH_PAIRS * pairs.n_items)
    labels = _strong_labels(pairs, stride)
    return labels if stride == 1 or not labels.any() else _strong_labels(pairs, 1)


def _strong_labels(pairs: PairCounts, stride: int) -> IntArray:
    first, second = pairs.first[::stride], pairs.second[::stride]
    down, up = pairs.first_wins[::stride] > 0, pairs.second_wins[::stride] > 0
    winners = np.concatenate([first[down], second[up]])
    losers = np.concatenate([second[down], first[up]])
    return _component_labels(pairs.n_items, winners, losers, "strong")


def _require_finite_estimate(components: IntArray, win_components: IntArray) -> None:
    """Raise unless maximum likelihood has a finite estimate (Ford 1957; Hunter 2004, assumption 1)."""
    remedy = "Judge more pairs that link them to the rest, or fit with a prior (prior_sd='fitted')."
    apart = _outside_largest(components)
    if apart:
        raise DisconnectedError(
            f"no maximum-likelihood estimate: the comparison graph falls into {components.max() + 1} components, "
            f"and nothing compares item(s) {_named(apart)} with the others. {remedy}",
            apart,
        )
    apart = _outside_largest(win_components)
    if apart:
        raise SeparationError(
            f"no finite maximum-likelihood estimate: the win graph falls into {win_components.max() + 1} strongly "
            "connected components (Ford 1957), so some items only win against the others or only lose to them: "
            f"item(s) {_named(apart)}. {remedy}",
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


# -- the mode and its curvature --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Information:
    """H = information + precision·I, factorised after the directions that judgments cannot see were stiffened.

    A shift of a whole component changes no likelihood, so H has the eigenvalue `precision` there: tiny for a wide
    prior, zero for maximum likelihood. Adding `stiffness` to exactly these eigenvalues keeps the Cholesky
    factorisation sound; inverse and determinant of H itself follow in closed form. The advantage of the first
    position is eliminated by its Schur complement, so that `factor` stays that of the scores' block.

    Attributes:
        factor: Cholesky factor of the scores' block.
        border: (n_items,) A⁻¹ b, with A the scores' block and b the one between scores and advantage.
        complement: information on the advantage that the scores leave, its prior included; 1/complement is its
            variance. Infinite, and border zero, without an order effect.
    """

    factor: Any
    pairs: PairCounts
    stiffness: FloatArray
    precision: float
    border: FloatArray
    complement: float

    @classmethod
    def at(cls, pairs: PairCounts, scores: FloatArray, advantage: float, precision: float) -> "_Information":
        from scipy.linalg import cho_factor, cho_solve

        matrix, between, own = pairs.information(scores, advantage)
        sizes = np.bincount(pairs.components)
        stiffness = np.bincount(pairs.components, weights=np.diag(matrix)) / sizes
        stiffness[stiffness == 0] = 1.0
        matrix += stiffness[pairs.components][:, None] * pairs.component_projection
        matrix[np.diag_indices(pairs.n_items)] += precision
        try:
            factor = cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)
        except np.linalg.LinAlgError:
            raise InputError(
                "the information matrix is singular to working precision: weights differ by too many orders of "
                "magnitude. Rescale or drop the extreme ones"
            ) from None
        border: FloatArray = np.zeros(pairs.n_items)
        complement = np.inf
        if pairs.ordered:
            border = cho_solve(factor, between, check_finite=False)
            complement = own + ORDER_EFFECT_PRIOR_SD**-2 - float(between @ border)
        return cls(factor, pairs, stiffness, precision, border, complement)

    @property
    def advantage_variance(self) -> float:
        """Variance of the first position's advantage, logits²; 0 if it is not fitted."""
        return 1.0 / self.complement

    def step(self, gradient: FloatArray, advantage_gradient: float) -> tuple[FloatArray, float]:
        """The Newton step of scores and advantage, for a gradient that sums to zero in every component."""
        from scipy.linalg import cho_solve

        alone: FloatArray = cho_solve(self.factor, gradient, check_finite=False)
        if not self.pairs.ordered:
            return alone, 0.0
        advantage = (advantage_gradient - float(self.border @ gradient)) / self.complement
        return alone - advantage * self.border, advantage

    def stiffened_inverse(self) -> FloatArray:
        """(n_items, n_items) covariance of the scores, up to shifts of whole components, the advantage integrated."""
        from scipy.linalg import cho_solve

        inverse: FloatArray = cho_solve(self.factor, np.eye(self.pairs.n_items), check_finite=False)
        return inverse + np.outer(self.border, self.border) * self.advantage_variance

    def inverse(self) -> FloatArray:
        """H⁻¹; without a prior its pseudo-inverse, which is centred within every component."""
        stiffened = self.stiffened_inverse()
        free = 1.0 / self.precision if self.precision > 0 else 0.0
        shift = free - 1.0 / (self.precision + self.stiffness)
        return stiffened + shift[self.pairs.components][:, None] * self.pairs.component_projection

    def log_determinant(self) -> float:
        """log det H, for a positive precision; with an order effect, of the matrix with one row and column more."""
        stiffened = 2.0 * float(np.log(np.diag(self.factor[0])).sum())
        advantage = log(self.complement) if self.pairs.ordered else 0.0
        return stiffened - float(np.log1p(self.stiffness / self.precision).sum()) + advantage


@dataclass(frozen=True, eq=False)
class _Mode:
    scores: FloatArray
    advantage: float
    objective: float
    information: _Information
    iterations: int
    converged: bool


def _find_mode(
    pairs: PairCounts, precision: float, start: FloatArray, advantage_start: float, tolerance: float
) -> _Mode:
    """Maximise log likelihood - precision·|scores|²/2 (and the advantage's prior) by Newton's method.

    Steps that do not increase the objective are halved.
    """
    advantage_precision = ORDER_EFFECT_PRIOR_SD**-2

    def objective(scores: FloatArray, advantage: float) -> float:
        prior = precision * float(scores @ scores) + advantage_precision * advantage**2
        return pairs.log_likelihood(scores, advantage) - 0.5 * prior

    scores, advantage = start, advantage_start
    value = objective(scores, advantage)
    iterations, converged = 0, False
    while iterations < _MAX_ITERATIONS:
        iterations += 1
        information = _Information.at(pairs, scores, advantage, precision)
        uphill, advantage_uphill = pairs.gradient(scores, advantage)
        gradient = pairs.centred_within_components(uphill - precision * scores)
        step, advantage_step = information.step(gradient, advantage_uphill - advantage_precision * advantage)
        if max(float(np.abs(step).max()), abs(advantage_step)) <= tolerance:
            scores, advantage = scores + step, advantage + advantage_step
            converged = True
            break
        # the objective is only known to its rounding error, which must not reject a sound step near the top
        floor = value - 1e-12 * (1.0 + abs(value))
        scales = (2.0**-k for k in range(_MAX_HALVINGS))
        scale = next((s for s in scales if objective(scores + s * step, advantage + s * advantage_step) >= floor), None)
        if scale is None:
            break
        scores, advantage = scores + scale * step, advantage + scale * advantage_step
        value = objective(scores, advantage)
    scores = pairs.centred_within_components(scores)
    return _Mode(scores, advantage, objective(scores, advantage), information, iterations, converged)


def _log_marginal(pairs: PairCounts, prior_sd: float, start: FloatArray, advantage_start: float) -> tuple[float, _Mode]:
    """Corrected Laplace log marginal likelihood at one prior width, and the mode it was taken at."""
    mode = _find_mode(pairs, prior_sd**-2, start, advantage_start, _GRID_STEP_TOLERANCE)
    laplace = mode.objective - pairs.n_items * log(prior_sd) - 0.5 * mode.information.log_determinant()
    return laplace + _pair_correction(pairs, mode), mode


def _pair_correction(pairs: PairCounts, mode: _Mode) -> float:
    """Sum over pairs of log(exact / Laplace) for the pair's own factor, the rest of the fit held Gaussian.

    At the mode a pair's difference has mean η and variance V, of which its own factor contributes the precision W and
    the slope g. Taking these away leaves the cavity N(η - C g, C), C = 1 / (1/V - W): what the prior and all other
    pairs say. Against it the factor's integral is known exactly, and so is that of its Gaussian stand-in.

    With an order effect, η is the difference plus or minus the advantage where a pair was read in one order. A pair
    read in both has one difference: its two factors are integrated together, the advantage at its mode.
    """
    if not len(pairs.first):
        return 0.0
    # a shift common to a component cancels in differences, so the stiffened inverse serves
    inverse = mode.information.stiffened_inverse()
    variance = np.diag(inverse)[pairs.first] + np.diag(inverse)[pairs.second] - 2.0 * inverse[pairs.first, pairs.second]
    wins, losses = pairs.first_wins, pairs.second_wins
    if not pairs.ordered:
        difference = pairs.predictor(mode.scores, 0.0)
        return _summed_log_ratios(difference, variance, wins[:, None], losses[:, None], np.zeros((len(wins), 1)))
    slope = mode.information.border[pairs.first] - mode.information.border[pairs.second]
    spread = mode.information.advantage_variance
    follows = (pairs.first[1:] == pairs.first[:-1]) & (pairs.second[1:] == pairs.second[:-1])
    twin = np.flatnonzero(follows)
    alone = np.setdiff1d(np.arange(len(wins)), np.concatenate([twin, twin + 1]))
    difference = pairs.predictor(mode.scores, mode.advantage)
    total = _summed_log_ratios(
        difference[alone],
        (variance - 2.0 * pairs.order * slope * spread + spread)[alone],
        wins[alone, None],
        losses[alone, None],
        np.zeros((alone.size, 1)),
    )
    both = np.stack([twin, twin + 1], axis=1)
    return total + _summed_log_ratios(
        pairs.predictor(mode.scores, 0.0)[twin],
        (variance - slope**2 * spread)[twin],
        wins[both],
        losses[both],
        mode.advantage * pairs.order[both],
    )


def _summed_log_ratios(
    difference: FloatArray, variance: FloatArray, wins: FloatArray, losses: FloatArray, offsets: FloatArray
) -> float:
    """Sum of `_log_factor_ratio`, `_PAIRS_AT_ONCE` at a time."""
    return sum(
        float(_log_factor_ratio(difference[r], variance[r], wins[r], losses[r], offsets[r]).sum())
        for r in np.array_split(np.arange(len(difference)), 1 + len(difference) // _PAIRS_AT_ONCE)
        if r.size
    )


def _log_factor_ratio(
    difference: FloatArray, variance: FloatArray, wins: FloatArray, losses: FloatArray, offsets: FloatArray
) -> FloatArray:
    """(k,) log(exact / Laplace) of k factors Π_m σ(x + offset_m)^wins_m σ(-x - offset_m)^losses_m.

    See `_pair_correction`. The trapezoidal rule on x = mean + sd·sinh(t): close together where the posterior is, and
    far enough out to see all of the cavity. For an analytic integrand that decays at both ends it converges
    exponentially in the spacing.

    Args:
        difference, variance: (k,) of x at the mode.
        wins, losses, offsets: (k, m).
    """
    at = difference[:, None] + offsets
    win, lose = np.exp(-np.logaddexp(0.0, -at)), np.exp(-np.logaddexp(0.0, at))
    precision = ((wins + losses) * win * lose).sum(axis=1)
    slope = (wins * lose - losses * win).sum(axis=1)
    cavity = 1.0 / np.maximum(1.0 / variance - precision, 1e-9 / variance)
    centre = difference - cavity * slope
    scale = np.sqrt(variance)
    reach = np.arcsinh((_CAVITY_REACH * np.sqrt(cavity) + np.abs(difference - centre)) / scale)
    t = np.linspace(-1.0, 1.0, _QUADRATURE_POINTS) * reach[:, None]
    x = difference[:, None] + scale[:, None] * np.sinh(t)
    exponent = -0.5 * (x - centre[:, None]) ** 2 / cavity[:, None] + np.log(scale[:, None] * np.cosh(t))
    for won, lost, offset in zip(wins.T, losses.T, offsets.T, strict=True):
        moved = x + offset[:, None]
        exponent -= won[:, None] * np.logaddexp(0.0, -moved) + lost[:, None] * np.logaddexp(0.0, moved)
    top = exponent.max(axis=1)
    spacing = 2.0 * reach / (_QUADRATURE_POINTS - 1)
    exact = top + np.log(np.exp(exponent - top[:, None]).sum(axis=1) * spacing) - 0.5 * np.log(2.0 * pi * cavity)
    at_mode = -(wins * np.logaddexp(0.0, -at) + losses * np.logaddexp(0.0, at)).sum(axis=1)
    gaussian = at_mode + 0.5 * np.log(variance / cavity) - 0.5 * (difference - centre) ** 2 / cavity
    ratio: FloatArray = exact - gaussian
    return ratio


def _root(values: Any) -> FloatArray:
    """Square root of variances whose rounding error may have crossed zero."""
    root: FloatArray = np.sqrt(np.maximum(values, 0.0))
    return root


# -- the fitted prior width ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _WidthPosterior:
    """Posterior of log σ on an evenly spaced grid.

    Attributes:
        offsets: (k,) log σ - log 2, ascending.
        masses: (k,) posterior probabilities, summing to 1.
        log_densities: (k,) their logarithms up to a constant.
        scores: (k, n_items) the mode at each width.
        advantages: (k,) the first position's advantage at each.
        iterations: Newton steps taken.
    """

    offsets: FloatArray
    masses: FloatArray
    log_densities: FloatArray
    scores: FloatArray
    advantages: FloatArray
    iterations: int

    @property
    def advantage_variance(self) -> float:
        """Variance of the advantage over the posterior of σ, logits²."""
        return float(self.masses @ (self.advantages - self.masses @ self.advantages) ** 2)

    @property
    def centre(self) -> float:
        """exp(E[log σ]), logits."""
        return exp(_HYPER_MEAN + float(self.masses @ self.offsets))

    @property
    def interval(self) -> tuple[float, float]:
        """The 2.5 % and 97.5 % points of σ, logits, the log density taken as linear between grid points."""
        fine = np.linspace(self.offsets[0], self.offsets[-1], 4001)
        density = np.exp(np.interp(fine, self.offsets, self.log_densities))
        cumulative = np.cumsum(density) / density.sum()
        low, high = np.interp([0.025, 0.975], cumulative, fine)
        return exp(_HYPER_MEAN + float(low)), exp(_HYPER_MEAN + float(high))

    def score_spread(self) -> FloatArray:
        """(n_items, k) matrix S with S Sᵀ the covariance of the modes over the posterior of σ."""
        deviations = self.scores - self.masses @ self.scores
        spread: FloatArray = (np.sqrt(self.masses)[:, None] * deviations).T
        return spread


def _width_posterior(pairs: PairCounts) -> _WidthPosterior:
    """Explore log σ on a lattice that is halved where the posterior lives until it holds enough points."""
    # only scores are kept of each mode: its factorisation is n² numbers
    log_density: dict[float, float] = {}
    scores: dict[float, FloatArray] = {}
    advantages: dict[float, float] = {}
    iterations = 0

    def explore(offset: float, start: FloatArray, advantage_start: float) -> None:
        nonlocal iterations
        log_marginal, mode = _log_marginal(pairs, exp(_HYPER_MEAN + offset), start, advantage_start)
        log_density[offset] = log_marginal - 0.5 * offset**2
        scores[offset] = mode.scores
        advantages[offset] = mode.advantage
        iterations += mode.iterations

    spacing = 1.0
    start: FloatArray = np.zeros(pairs.n_items)
    advantage_start = 0.0
    for step in range(-_HYPER_REACH, _HYPER_REACH + 1):
        explore(float(step), start, advantage_start)
        start, advantage_start = scores[float(step)], advantages[float(step)]
    while True:
        floor = max(log_density.values()) - _LOG_DENSITY_DROP
        inside = [offset for offset, density in log_density.items() if density >= floor]
        low = max(min(inside) - spacing, -float(_HYPER_REACH))
        high = min(max(inside) + spacing, float(_HYPER_REACH))
        if len(inside) >= _LEAST_GRID_POINTS:
            break
        # offsets are multiples of powers of two, so sums of them are exact and the lattice has no gaps
        for k in range(round((high - low) / spacing)):
            near = low + k * spacing
            explore(low + (k + 0.5) * spacing, scores[near], advantages[near])
        spacing /= 2.0
    offsets = np.array(sorted(offset for offset in scores if low <= offset <= high))
    densities = np.array([log_density[offset] for offset in offsets])
    densities -= densities.max()
    masses = np.exp(densities)
    return _WidthPosterior(
        offsets=offsets,
        masses=masses / masses.sum(),
        log_densities=densities,
        scores=np.array([scores[offset] for offset in offsets]),
        advantages=np.array([advantages[offset] for offset in offsets]),
        iterations=iterations,
    )
