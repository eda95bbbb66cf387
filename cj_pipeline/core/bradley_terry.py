"""The Bradley–Terry model: scores on a logit scale from who beat whom, and how well they are known.

P(i beats j) = 1 / (1 + exp(-(score_i - score_j))) (Bradley & Terry 1952). Judgments whose reading order is known also
tell how much being read first helps: P(i, read first, beats j) = 1 / (1 + exp(-(score_i - score_j + advantage))), an
order effect (Davidson & Beaver 1977) that adds up in logits, with advantage ~ N(0, 1).

Scores have a zero in one of two frames. In the batch frame they sum to zero: a score says how far an essay is from the
middle of its batch. In the bank frame, which a fit with known items has besides, these are near their known values, and
a standard error is that of a place on the bank's scale. Differences, and their standard errors, are the same in both.

Here live the fit, its covariance and standard errors, all by number of item; the scores of a batch by essay id are in
`scoring`. What the fit is made of has its own modules: judgments added up and what they connect (`pair_counts`), priors
(`score_prior`), the mode (`bradley_terry_mode`; for many items `sparse_bradley_terry`) and the prior's width and shape,
fitted to the batch (`prior_width`, `prior_shape`). Which pairs to judge (`designs`), when to stop (`completion`),
summaries and flags (`diagnostics`), where known positions come from (`anchor_bank`) and grades (`grades`) live
elsewhere.

References:
    Bradley, R. A. & Terry, M. E. (1952). Rank analysis of incomplete block designs: I. The method of paired
        comparisons. Biometrika 39, 324-345.
    Davidson, R. R. & Beaver, R. J. (1977). On extending the Bradley-Terry model to incorporate within-pair order
        effects. Biometrics 33, 693-702.
    Ford, L. R. (1957). Solution of a ranking problem from binary comparisons. American Mathematical Monthly 64(8),
        part 2, 28-33.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cj_pipeline.core.bradley_terry_mode import Information, Mode, Top, find_mode, maximise_likelihood_of_few
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.expectation_propagation import NormalPosterior, Sites, propagate
from cj_pipeline.core.pair_counts import FEW_ITEMS, PairCounts, count_pairs, require_finite_estimate, strong_components
from cj_pipeline.core.prior_shape import ScorePosterior, posterior_over_shapes
from cj_pipeline.core.prior_width import checked_width, log_hyperprior, width_posterior
from cj_pipeline.core.score_prior import AnchoredPrior, IndependentPrior, KnownItems, ScorePrior, StandIns
from cj_pipeline.core.sparse_bradley_terry import (
    Variances,
    find_sparse_mode,
    sparse_contrast_variance,
    sparse_variances,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

STEP_TOLERANCE: Final = 1e-9
"""Logits. A fit has converged when its last full Newton step is no larger, in every item."""

SPARSE_FROM: Final = 150
"""Items. From here on, Newton steps are sparse (`sparse_bradley_terry`), unless the prior's width or an
order effect is fitted."""

_NORMAL_95: Final = 1.959964

DENSE_UP_TO: Final = 3_000
"""Items. Up to here, standard errors come from the full covariance; beyond, see `BradleyTerryFit.standard_errors`."""


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
        scores: (n_items,) logits, in the batch frame: summing to zero, in every component where there are several.
            Known items relate components, so with them the sum over all items is zero. Where scores are probably not
            normally spread, the means of their posterior; else its mode.
        n_items: number of items.
        components: (n_items,) labels of the connected components of the comparison graph. Scores of different
            components share no judgment: only a prior relates them.
        win_components: (n_items,) labels of the strongly connected components of the win graph. One label means
            that the maximum-likelihood estimate is finite (Ford 1957).
        converged: whether the last full Newton step was at most `STEP_TOLERANCE` in every item.
        iterations: Newton steps taken in all, with steps and sweeps on the grid of prior widths.
        prior_sd: logits; the width of the normal prior, which the scores are at unless another shape is likelier; None
            for maximum likelihood. With known items it is that of the others.
        prior_sd_interval: logits; 95 % posterior interval of a fitted width, else None.
        order_effect: logits by which being read first helps; None if it was not fitted.
        order_effect_se: its standard error, logits.
        comparison_counts: (n_items,) number of judgments of each item (sum of their weights).
        pairs: the judgments, added up over pairs.
        prior: what the scores were fitted under; of a shape that is likelier than the normal one, its stand-ins.
        score_spread: (n_items, k) matrix S; S Sᵀ is the covariance of the scores over the fitted width's
            posterior (of the bank scores, with known items), or of the means over widths and shapes where the scores
            are under a shape. k is 0 when the width was not fitted.
        posterior: of the scores, width and shape of the prior integrated out; None unless the width was fitted.
        bank_scores: (n_items,) logits, in the bank frame, which is that of the known items' means; None without them.
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
    prior: ScorePrior | StandIns = field(repr=False)
    score_spread: FloatArray = field(repr=False)
    posterior: ScorePosterior | None = field(repr=False)
    bank_scores: FloatArray | None = None

    def covariance(self) -> FloatArray:
        """(n_items, n_items) covariance of the scores in their sum-to-zero convention, logits², read-only.

        C H⁻¹ C with C the centring matrix and H the information matrix plus the prior precision, under a learned shape
        the precision of the normal distribution that stands for the posterior (`expectation_propagation`); the
        pseudo-inverse of the information matrix for maximum likelihood. An order effect's uncertainty is in it: its
        row and column are eliminated, not held fixed. With a fitted prior width, the spread of
        the scores over the width's posterior is added. Variances of contrasts are the same in both frames.

        Raises:
            InputError: beyond `DENSE_UP_TO` items, whose covariance is not computed as a whole.
        """
        return self._covariance

    def covariance_at_width(self) -> FloatArray:
        """(n_items, n_items) `covariance()` without the spread over a fitted prior, as if that were known.

        Raises:
            InputError: see `covariance`.
        """
        return self._covariance_at_width

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

    def score_intervals(self) -> FloatArray:
        """(n_items, 2) 95 % posterior intervals of the scores, batch frame, logits: mean ± 1.96 standard deviations.

        On wide scales `scores` are off their middle, towards zero: what is one-sided does not say how one-sided it is.

        Raises:
            InputError: the prior's width was not fitted.
        """
        if self.posterior is None:
            raise InputError("posterior intervals need a fitted prior: give prior_sd='fitted'")
        means, sds = self.posterior.moments()
        return np.stack([means - _NORMAL_95 * sds, means + _NORMAL_95 * sds], axis=1)

    def posterior_moments(self) -> tuple[FloatArray, FloatArray]:
        """Mean and covariance of the scores' posterior at `prior_sd`, by expectation propagation; what grades rest on.

        Returns:
            (n_items,) logits, summing to zero, and (n_items, n_items) logits², centred likewise; read-only.

        Raises:
            InputError: the scores are maximum-likelihood estimates, without a prior.
        """
        if self.prior_sd is None:
            raise InputError("posterior moments need a prior: give prior_sd='fitted' or a number of logits")
        return self._posterior_moments

    def integrated_moments(self, *, widened: float = 1.0) -> tuple[FloatArray, FloatArray]:
        """Mean and covariance of the scores' posterior, a fitted prior integrated out; what pairing goes by.

        Means are averages over the posterior of the prior's width and shape. To the covariance at `prior_sd`, or, where
        scores are probably not normally spread, at the likeliest shape, `score_spread` is added; where next to nothing
        is known of the width, the variance is larger still. Beside a likelier normal prior, means under shapes add
        nothing: with them, pairs were chosen too far apart (on twenty levels a logit apart, 160 essays, 16 judgments
        each, six batches, the RMSE was 1.41 instead of .95).

        Args:
            widened: at least 1; the covariance at one prior is what it would be if that were so many times as wide and
                the judgments told as much as they do. Means and spread stay.

        Raises:
            InputError: see `posterior_moments`; `widened` below 1, or known items, whose prior is not widened.
        """
        if not widened >= 1.0 or (widened > 1.0 and self.bank_scores is not None):
            raise InputError("a prior can be widened by a factor of at least 1, and only without known items")
        likeliest = None if self.posterior is None else self.posterior.likeliest_shape()
        if likeliest is not None:
            means = self.scores
            covariance = self._covariance_under(likeliest.stand_ins.widened(widened), likeliest.sites)
        else:
            means, covariance = self.posterior_moments()
            if widened > 1.0 and self.prior_sd is not None:
                covariance = self._covariance_under(IndependentPrior(widened * self.prior_sd), self._propagated.sites)
            if self.posterior is not None:
                means = self.posterior.moments()[0]
        return means, covariance + _centred(self.score_spread @ self.score_spread.T)

    def at_normal_prior(self) -> "BradleyTerryFit":
        """The fit itself, or, where its scores are under a learned shape, one at the normal prior of width `prior_sd`.

        Scores, covariance and order effect are those of a fit with `prior_sd` as a number. What takes the prior out of
        the scores again asks for this one.
        """
        if not isinstance(self.prior, StandIns):
            return self
        return self._at_normal_prior

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

    def bank_covariance(self) -> FloatArray:
        """(n_items, n_items) covariance of `bank_scores`, logits², read-only; not centred.

        An item's variance is what is not known of its place on the bank's scale, known items' own uncertainty
        included. With a fitted prior width, the spread over its posterior is added.

        Raises:
            InputError: there were no known items, so there is no bank frame.
        """
        return _frozen(self.bank_covariance_at_width() + self.score_spread @ self.score_spread.T)

    def bank_covariance_at_width(self) -> FloatArray:
        """(n_items, n_items) `bank_covariance()` without the spread over a fitted width: as if `prior_sd` were known.

        Raises:
            InputError: see `bank_covariance`.
        """
        if self.bank_scores is None:
            raise InputError("there is no bank frame: the fit was made without known items")
        return self._bank_covariance_at_width

    def bank_standard_errors(self) -> FloatArray:
        """(n_items,) square roots of the diagonal of `bank_covariance()`, logits.

        Raises:
            InputError: there were no known items.
        """
        return _root(np.diag(self.bank_covariance()))

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
        scaled = Information.at(self.pairs, self.scores, self.order_effect or 0.0, IndependentPrior(None))
        errors = _root(np.diag(scaled.inverse()))
        errors[self.comparison_counts == 0] = np.inf
        return errors

    @property
    def _is_dense(self) -> bool:
        # the sparse solvers know neither order effect nor known items
        return self.n_items <= DENSE_UP_TO or self.pairs.ordered or self.bank_scores is not None

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
        return _frozen(self._covariance_at_width + _centred(self.score_spread @ self.score_spread.T))

    @cached_property
    def _covariance_at_width(self) -> FloatArray:
        if not self._is_dense:
            raise InputError(
                f"the full covariance of {self.n_items} items is not computed (at most {DENSE_UP_TO}): ask for "
                "standard_errors(), or for standard_error_of_contrast(i, j) of the pairs that matter"
            )
        return _frozen(_centred(self._inverse))

    @cached_property
    def _at_normal_prior(self) -> "BradleyTerryFit":
        prior = IndependentPrior(self.prior_sd)
        mode = find_mode(self.pairs, prior, self.scores, self.order_effect or 0.0, STEP_TOLERANCE)
        return replace(
            self,
            scores=mode.scores,
            prior=prior,
            order_effect=mode.advantage if self.pairs.ordered else None,
            score_spread=np.zeros((self.n_items, 0)),
            posterior=None,
        )

    @cached_property
    def _propagated(self) -> NormalPosterior:
        prior = self.prior if not isinstance(self.prior, StandIns) else IndependentPrior(self.prior_sd)
        return propagate(self.pairs, prior)

    def _covariance_under(self, prior: ScorePrior | StandIns, sites: Sites) -> FloatArray:
        """Centred; the judgments' precisions as found under one prior, combined with another."""
        return _centred(Information.of_weights(self.pairs, sites.precisions, prior).inverse())

    @cached_property
    def _posterior_moments(self) -> tuple[FloatArray, FloatArray]:
        found = self._propagated
        means = found.means - found.means.mean()
        means.flags.writeable = False
        return means, _frozen(_centred(found.information.inverse()))

    @cached_property
    def _bank_covariance_at_width(self) -> FloatArray:
        return _frozen(self._inverse)

    @property
    def _inverse(self) -> FloatArray:
        likeliest = None if self.posterior is None else self.posterior.likeliest_shape()
        if likeliest is not None:
            return Information.of_weights(self.pairs, likeliest.sites.precisions, likeliest.stand_ins).inverse()
        return Information.at(self.pairs, self.scores, self.order_effect or 0.0, self.prior).inverse()


def fit_bradley_terry(
    winners: ArrayLike,
    losers: ArrayLike,
    n_items: int,
    *,
    weights: ArrayLike | None = None,
    prior_sd: float | Literal["fitted"] | None = "fitted",
    winner_first: ArrayLike | None = None,
    known: KnownItems | None = None,
) -> BradleyTerryFit:
    """Fit the Bradley–Terry model by Newton's method, from a cold start, without any randomness.

    Args:
        winners: (n_judgments,) integers, the index of the item that won each judgment.
        losers: (n_judgments,) integers, the index of the item that lost it.
        n_items: number of items; indices are 0 … n_items - 1. Items without judgments are allowed under a prior.
        weights: (n_judgments,) positive multiplicities; a weight of 2 is the judgment given twice.
        prior_sd: "fitted": scores ~ N(0, σ²) independently, log σ ~ N(log 2, 1), the posterior of σ by
            expectation propagation (see `prior_width`) on an adaptive grid; the scores are the mode at
            exp(E[log σ]), and their covariance includes their spread over σ. Every item gets a finite score. From 100
            items on, unless some are known, other shapes than the normal are tried (see `prior_shape`); where these are
            likelier, scores are means over shapes and widths.
            A number: the mode under N(0, prior_sd²), logits. None: maximum likelihood.
        winner_first: (n_judgments,) booleans, whether the winner was the item read first. Given, the advantage of
            being read first is fitted along, under N(0, `ORDER_EFFECT_PRIOR_SD`²) whatever `prior_sd` is, so that it
            is finite for every design. Not given, there is none.
        known: items placed by earlier judgments, none of which may be among these. Their scores have the prior
            N(known.mean, known.covariance); those of all others are N(level, σ²) around a free level, so that the shift
            between batch and bank is free; see `score_prior`. Every step is then dense, whatever the number of items.

    Raises:
        InputError: arrays of unequal length or wrong type, an index out of range, an item against itself, a
            weight or a `prior_sd` that is not a positive finite number (`prior_sd` within `PRIOR_SD_RANGE`), or known
            items with `prior_sd=None`.
        DisconnectedError: `prior_sd=None` and the comparison graph falls into several components.
        SeparationError: `prior_sd=None` and the win graph is not strongly connected (Ford 1957).
    """
    pairs = count_pairs(winners, losers, n_items, weights, winner_first)
    win_components = strong_components(pairs)
    advantage_variance = 0.0
    spread: FloatArray = np.zeros((pairs.n_items, 0))
    interval: tuple[float, float] | None = None
    scores_posterior: ScorePosterior | None = None
    iterations = 0
    width: float | None
    if prior_sd is None:
        if known is not None:
            raise InputError("beside known items the others need a prior: give prior_sd='fitted' or a number of logits")
        require_finite_estimate(pairs.components, win_components)
        width = None
    else:
        if isinstance(prior_sd, str):
            if prior_sd != "fitted":
                raise InputError(f"prior_sd {prior_sd!r} is not known: give 'fitted', a number of logits, or None")
            posterior = width_posterior(pairs, lambda width: _prior(width, known, pairs.n_items))
            width, interval, spread = posterior.centre, posterior.interval, posterior.score_spread()
            scores_posterior = posterior_over_shapes(
                pairs,
                posterior,
                lambda width: _prior(width, known, pairs.n_items),
                log_hyperprior,
                shaped=known is None,
            )
            iterations = posterior.iterations + scores_posterior.sweeps
            advantage_variance = posterior.advantage_variance
        else:
            width = checked_width(prior_sd)
    prior = _prior(width, known, pairs.n_items)
    mode = _find_top(pairs, prior, width, dense=prior_sd == "fitted" or known is not None)
    advantage = None
    if isinstance(mode, Mode) and pairs.ordered:
        advantage = mode.advantage
        advantage_variance += Information.at(pairs, mode.scores, advantage, prior).advantage_variance
    scores = mode.scores if known is None else mode.scores - mode.scores.mean()
    under: ScorePrior | StandIns = prior
    if scores_posterior is not None and (likeliest := scores_posterior.likeliest_shape()) is not None:
        scores, spread, under = scores_posterior.moments()[0], scores_posterior.spread(), likeliest.stand_ins
    return BradleyTerryFit(
        scores=scores,
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
        prior=under,
        score_spread=spread,
        posterior=scores_posterior,
        bank_scores=None if known is None else mode.scores,
    )


def _find_top(pairs: PairCounts, prior: ScorePrior, width: float | None, *, dense: bool) -> Top:
    """Where the posterior, or the likelihood, is highest, found the quickest way; a `Mode` where more is read of it."""
    if width is None and pairs.n_items <= FEW_ITEMS and not pairs.ordered:
        top = maximise_likelihood_of_few(pairs, STEP_TOLERANCE)
        if top.converged:
            return top
    if pairs.n_items >= SPARSE_FROM and not dense and not pairs.ordered:
        return find_sparse_mode(pairs, 0.0 if width is None else width**-2, STEP_TOLERANCE)
    return find_mode(pairs, prior, prior.start(pairs.n_items), 0.0, STEP_TOLERANCE)


def _prior(width: float | None, known: KnownItems | None, n_items: int) -> ScorePrior:
    if known is None or width is None:
        return IndependentPrior(width)
    return AnchoredPrior(known, width, n_items)


def log_marginal_likelihood(
    winners: ArrayLike,
    losers: ArrayLike,
    n_items: int,
    *,
    prior_sd: float,
    weights: ArrayLike | None = None,
    winner_first: ArrayLike | None = None,
    known: KnownItems | None = None,
) -> float:
    """log P(judgments | prior_sd), the scores integrated out by expectation propagation (`expectation_propagation`).

    A fitted order effect is integrated out as well. With known items the prior is theirs, and the value is up to a
    constant that depends on them alone.

    Args and errors as in `fit_bradley_terry`.
    """
    pairs = count_pairs(winners, losers, n_items, weights, winner_first)
    return propagate(pairs, _prior(checked_width(prior_sd), known, pairs.n_items)).log_evidence


def _centred(covariance: FloatArray) -> FloatArray:
    """C covariance C, with C the centring matrix."""
    rows: FloatArray = covariance.mean(axis=1)
    centred: FloatArray = covariance - rows[:, None] - rows[None, :] + rows.mean()
    return centred


def _frozen(covariance: FloatArray) -> FloatArray:
    """The matrix made symmetric to the last bit, and read-only."""
    covariance = (covariance + covariance.T) / 2.0
    covariance.flags.writeable = False
    return covariance


def _root(values: Any) -> FloatArray:
    """Square root of variances whose rounding error may have crossed zero."""
    root: FloatArray = np.sqrt(np.maximum(values, 0.0))
    return root
