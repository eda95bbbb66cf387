"""Where the posterior of Bradley–Terry scores is highest, and its curvature there: Newton's method on dense matrices.

Here: the factorised information matrix, with the order effect eliminated, the mode, and the maximum of a likelihood of
few items. Not here: the prior's width (`prior_width`), many items (`sparse_bradley_terry`), and what is reported of a
fit (`bradley_terry`).
"""

from dataclasses import dataclass
from math import log
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.pair_counts import PairCounts
from cj_pipeline.core.score_prior import ScorePrior, StandIns, Stiffening

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

ORDER_EFFECT_PRIOR_SD: Final = 1.0
"""Logits. Width of the prior of the first position's advantage."""

_SURELY_UPHILL: Final = 1.0 / 3.0
"""Logits. A Newton step that is no longer in any item, nor in the advantage, moves no predictor by more than d = 1. No
weight then changes by more than a factor e^d on the way, so that the objective gains at least
slope·step·(1 - (e^d - 1 - d)/d²) > 0."""

_NEAR: Final = 1e-4
"""Logits. After a step this short the factorised information serves for the next: it differs by that share from the
one there, and so does the step."""

SINGULAR: Final = (
    "the information matrix is singular to working precision: weights differ by too many orders of magnitude. "
    "Rescale or drop the extreme ones"
)

_MAX_ITERATIONS: Final = 200
_MAX_HALVINGS: Final = 40


@dataclass(frozen=True, eq=False)
class Information:
    """H = information + the prior's precision, factorised after directions that neither sees were stiffened.

    What `stiffening` did is undone in closed form, in inverse and determinant. The advantage of the first position is
    eliminated by its Schur complement, so that `factor` stays that of the scores' block.

    Attributes:
        factor: lower Cholesky factor of the scores' block; what is above its diagonal is of no meaning.
        border: (n_items,) A⁻¹ b, with A the scores' block and b the one between scores and advantage.
        complement: information on the advantage that the scores leave, its prior included; 1/complement is its
            variance. Infinite, and border zero, without an order effect.
    """

    factor: FloatArray
    pairs: PairCounts
    stiffening: Stiffening
    border: FloatArray
    complement: float

    @classmethod
    def at(cls, pairs: PairCounts, scores: FloatArray, advantage: float, prior: ScorePrior | StandIns) -> "Information":
        """H at (n_items,) scores and an advantage, logits.

        Raises:
            InputError: the matrix is singular to working precision.
        """
        return cls.of_weights(pairs, pairs.derivatives(scores, advantage)[1], prior)

    @classmethod
    def of_weights(cls, pairs: PairCounts, weights: FloatArray, prior: ScorePrior | StandIns) -> "Information":
        """H where predictors have the precisions `weights` (n_pairs,), logits⁻²; otherwise as `at`."""
        from scipy.linalg.lapack import dpotrf

        matrix, between, own = pairs.information(weights)
        stiffening = prior.add_to(matrix, pairs)
        # symmetric, so its transpose is the column-major matrix that LAPACK works on in place
        factor, failure = dpotrf(matrix.T, lower=True, clean=False, overwrite_a=True)
        if failure:
            raise InputError(SINGULAR)
        border: FloatArray = np.zeros(pairs.n_items)
        complement = np.inf
        if pairs.ordered:
            border = _solved(factor, between)
            complement = own + ORDER_EFFECT_PRIOR_SD**-2 - float(between @ border)
        return cls(factor, pairs, stiffening, border, complement)

    @property
    def advantage_variance(self) -> float:
        """Variance of the first position's advantage, logits²; 0 if it is not fitted."""
        return 1.0 / self.complement

    def step(self, gradient: FloatArray, advantage_gradient: float) -> tuple[FloatArray, float]:
        """The Newton step of scores and advantage, for a gradient that was `ScorePrior.centred`."""
        alone = _solved(self.factor, gradient)
        if not self.pairs.ordered:
            return alone, 0.0
        advantage = (advantage_gradient - float(self.border @ gradient)) / self.complement
        return alone - advantage * self.border, advantage

    def stiffened_inverse(self) -> FloatArray:
        """(n_items, n_items) covariance of the scores, up to shifts of whole components, the advantage integrated."""
        lower = np.tril(self._lower_inverse())
        inverse: FloatArray = lower + np.tril(lower, -1).T
        return inverse + np.outer(self.border, self.border) * self.advantage_variance

    def _lower_inverse(self) -> FloatArray:
        """Lower triangle of the inverse of the factorised block; what is above the diagonal is of no meaning."""
        from scipy.linalg.lapack import dpotri

        inverse: FloatArray = dpotri(self.factor, lower=True)[0]
        return inverse

    def predictor_variances(self) -> FloatArray:
        """(n_pairs,) variance of each pair's predictor: difference of scores, with the advantage as it was read."""
        return self._predictor_variances(self._lower_inverse())

    def variances(self) -> tuple[FloatArray, FloatArray]:
        """(n_items,) variance of each score and (n_pairs,) `predictor_variances`, logits²."""
        lower = self._lower_inverse()
        labels = self.pairs.components
        own = np.diag(lower) + (self.stiffening.variance / np.bincount(labels))[labels]
        return own + self.border**2 * self.advantage_variance, self._predictor_variances(lower)

    def _predictor_variances(self, lower: FloatArray) -> FloatArray:
        pairs = self.pairs
        # a shift common to a component cancels in differences, so the stiffened inverse serves
        own = np.diag(lower)
        variances: FloatArray = own[pairs.first] + own[pairs.second] - 2.0 * lower[pairs.second, pairs.first]
        if pairs.ordered:
            slope = self.border[pairs.first] - self.border[pairs.second]
            variances += (1.0 - pairs.order * slope) ** 2 * self.advantage_variance
        return variances

    def inverse(self) -> FloatArray:
        """H⁻¹; without a prior its pseudo-inverse, which is centred within every component."""
        shift = self.stiffening.variance[self.pairs.components]
        return self.stiffened_inverse() + shift[:, None] * self.pairs.component_projection

    def log_determinant(self) -> float:
        """log det H, under a prior; with an order effect, of the matrix with one row and column more."""
        stiffened = 2.0 * float(np.log(np.diag(self.factor)).sum())
        advantage = log(self.complement) if self.pairs.ordered else 0.0
        return stiffened - self.stiffening.log_determinant + advantage


def _solved(factor: FloatArray, right: FloatArray) -> FloatArray:
    """A⁻¹ right, from the lower Cholesky factor of A."""
    from scipy.linalg.lapack import dpotrs

    solution: FloatArray = dpotrs(factor, right, lower=True)[0]
    return solution


@dataclass(frozen=True, eq=False, kw_only=True)
class Top:
    """Where a likelihood or a posterior is highest.

    Attributes:
        scores: (n_items,) logits; under an independent prior, or none, summing to zero in every component.
        iterations: Newton steps taken.
        converged: whether the last full one was within the tolerance.
    """

    scores: FloatArray
    iterations: int
    converged: bool


@dataclass(frozen=True, eq=False, kw_only=True)
class Mode(Top):
    """Where a posterior of scores and advantage is highest, and what was found on the way.

    Attributes:
        advantage: of the first position, logits.
        objective: log posterior density there, up to a constant.
        information: at the mode, or within 1e-4 logits of it.
    """

    advantage: float
    objective: float
    information: Information


def find_mode(
    pairs: PairCounts, prior: ScorePrior, start: FloatArray, advantage_start: float, tolerance: float
) -> Mode:
    """Maximise the log likelihood plus the log priors of scores and advantage by Newton's method.

    Long steps that do not increase the objective are halved; short ones always do.

    Args:
        pairs: the judgments.
        prior: of the scores.
        start: (n_items,) logits.
        advantage_start: logits.
        tolerance: logits; how long the last step may be.
    """
    advantage_precision = ORDER_EFFECT_PRIOR_SD**-2

    def objective(scores: FloatArray, advantage: float) -> float:
        penalty = prior.penalty(scores) + advantage_precision * advantage**2
        return pairs.log_likelihood(scores, advantage) - 0.5 * penalty

    scores, advantage = start, advantage_start
    iterations, converged = 0, False
    information: Information | None = None
    value: float | None = None
    while iterations < _MAX_ITERATIONS:
        iterations += 1
        slopes, weights = pairs.derivatives(scores, advantage)
        information = information or Information.of_weights(pairs, weights, prior)
        uphill, advantage_uphill = pairs.transposed(slopes)
        gradient = prior.centred(uphill - prior.slope(scores), pairs)
        step, advantage_step = information.step(gradient, advantage_uphill - advantage_precision * advantage)
        longest = max(float(np.abs(step).max()), abs(advantage_step))
        if longest > _SURELY_UPHILL:
            value = objective(scores, advantage) if value is None else value
            # the objective is only known to its rounding error, which must not reject a sound step near the top
            floor = value - 1e-12 * (1.0 + abs(value))
            for scale in (2.0**-k for k in range(_MAX_HALVINGS)):
                value = objective(scores + scale * step, advantage + scale * advantage_step)
                if value >= floor:
                    break
            else:
                break
            step, advantage_step = scale * step, scale * advantage_step
        else:
            value = None
        scores, advantage = scores + step, advantage + advantage_step
        if longest <= tolerance:
            converged = True
            break
        if longest > _NEAR:
            information = None
    scores = prior.centred(scores, pairs)
    information = information or Information.at(pairs, scores, advantage, prior)
    return Mode(
        scores=scores,
        iterations=iterations,
        converged=converged,
        advantage=advantage,
        objective=objective(scores, advantage),
        information=information,
    )


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def maximise_likelihood_of_few(pairs: PairCounts, tolerance: float) -> Top:
    """Maximise the likelihood without prior or order effect, of items so few that calls cost more than arithmetic.

    Newton's method on matrices of all pairs. Sun & Tran-Dinh's (2019) damping as in `sparse_bradley_terry`: a step that
    leads past the top along its direction is cut to log(1 + R)/R of it, R the most that it moves a difference.

    Args:
        pairs: the judgments, with a strongly connected win graph, and no order effect.
        tolerance: logits; how long the last step may be.

    Returns:
        Not converged where the information is singular to working precision. At zero, where `find_mode` starts, it is
        not.
    """
    from scipy.linalg.lapack import dposv, dpotrs

    n = pairs.n_items
    losses = np.zeros((n, n))
    losses[pairs.first, pairs.second] = pairs.second_wins
    losses[pairs.second, pairs.first] = pairs.first_wins
    played = losses + losses.T
    negative = -played
    ones = np.ones(n)  # a product with it is quicker than a sum

    def chance_and_gradient() -> tuple[FloatArray, FloatArray]:
        # what is lost to overflow is not converged
        strength = np.exp(scores)
        column = strength[:, None]
        chance = column / (column + strength)
        surprise = losses * chance
        # pair by pair, so that what nearly cancels does so before it is added up
        return chance, (surprise.T - surprise) @ ones

    scores = _log_odds(losses.T @ ones, losses @ ones)
    scores -= scores @ ones / n
    chance, gradient = chance_and_gradient()
    longest, iterations, converged = np.inf, 0, False
    while iterations < _MAX_ITERATIONS:
        iterations += 1
        if longest > _NEAR:
            matrix = chance * chance.T
            matrix *= negative
            diagonal = -(matrix @ ones)
            matrix.reshape(-1)[:: n + 1] = diagonal
            # shifts change nothing: any stiffness along them serves
            matrix += (diagonal @ ones) / n**2
            factor, step, failure = dposv(matrix, gradient, lower=True)
            if failure:
                break
        else:
            step = dpotrs(factor, gradient, lower=True)[0]
        scores += step
        # in no item is it longer, and a product is quicker than extremes
        longest = float(step @ step) ** 0.5
        if longest <= tolerance:
            converged = True
            break
        chance, gradient = chance_and_gradient()
        if longest > _SURELY_UPHILL and gradient @ step < 0.0:
            reach = float(np.ptp(step))
            scores -= (1.0 - np.log1p(reach) / reach) * step
            chance, gradient = chance_and_gradient()
    return Top(scores=scores - scores @ ones / n, iterations=iterations, converged=converged)


def start_of_likelihood(pairs: PairCounts) -> FloatArray:
    """(n_items,) scores to start from, logits, summing to zero in every component.

    Each item's against equals, by its wins, half a judgment added to either side.
    """
    won = pairs.win_counts()
    # of huge weights the losses may come out below zero
    lost = np.maximum(pairs.comparison_counts() - won, 0.0)
    return pairs.centred_within_components(_log_odds(won, lost))


def _log_odds(won: FloatArray, lost: FloatArray) -> FloatArray:
    odds: FloatArray = (won + 0.5) / (lost + 0.5)
    return np.log(odds, out=odds)
