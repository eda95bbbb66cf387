"""What the true scores of graded anchors may be, given a judge's judgments and the experts' grades.

Here: the model, its draws, and Kendall's τ with its greatest attainable value. Not here: what is reported of one batch
(`alignment`), and the scores themselves (`bradley_terry`).

The model. Anchor i has the expert grade g_i, numbered from low to high and standardised over the anchors (mean 0,
standard deviation 1)::

    P(i beats j) = logistic(θ_i − θ_j + γ·[i read first] − γ·[j read first])
    θ_i = b·g_i + ε_i,   ε_i ~ N(0, τ²),   b ~ N(0, 3²),   log τ ~ N(0, 1),   γ ~ N(0, 1)

b is how far the judge separates what experts separate (logits per standard deviation of grades; it may be negative),
τ how far it departs from them. τ is integrated on a grid, b in closed form: θ ~ N(0, 9·ggᵀ + τ²·identity). The prior
median of τ is half that of the width of all scores in the fit.

Why a model of its own. τ-b of the fitted scores is a figure of these judgments, with their noise; of interest is τ-b of
the true scores, of which the judgments are a sample. Noise can only be added to a nearly perfect order, not taken away,
so resampled or redrawn scores have more inversions than the truth: a percentile bootstrap, and likewise draws under a
prior that knows no grades, put the interval too low. A prior that may find the grades relevant, and how relevant, does
not. It takes the judgments themselves, because fitted scores and their covariance already hold another prior.

The sampler. Given a Pólya–Gamma variable per pair, θ and γ are jointly normal (Polson, Scott & Windle 2013). A sweep
draws these variables; then τ on its grid with θ and γ integrated out; then θ and γ; then rescales θ as a whole by
Metropolis steps, which spares the chain the slow way along its length where hardly any judgment contradicts the order.

References:
    Kendall, M. G. (1945). The treatment of ties in ranking problems. Biometrika 33, 239-251.
    Polson, N. G., Scott, J. G. & Windle, J. (2013). Bayesian inference for logistic models using Pólya–Gamma latent
        variables. Journal of the American Statistical Association 108, 1339-1349.
"""

from dataclasses import dataclass
from functools import cached_property
from math import log, nan, sqrt
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.judgment_table import JudgmentTable, PairSums
from cj_pipeline.core.polya_gamma import draw_polya_gamma
from cj_pipeline.core.posterior import effective_sizes

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

SLOPE_SD: Final = 3.0
"""Prior standard deviation of b, logits per standard deviation of the grades."""
DEPARTURE_LOG_SD: Final = 1.0
"""Prior standard deviation of log τ, whose prior mean is 0: a median of one logit."""

_GRID: Final = np.exp(np.linspace(-3.0, 3.0, 21) * DEPARTURE_LOG_SD)
_GRID_LOG_PRIOR: Final = -0.5 * (np.log(_GRID) / DEPARTURE_LOG_SD) ** 2
_RESCALINGS: Final = (0.1, 0.4)
"""Standard deviations of the proposed log factors."""


@dataclass(frozen=True)
class KendallTau:
    """Agreement of two orders (Kendall 1945). Made by `kendall_tau`.

    Attributes:
        pairs: all pairs of items.
        concordant, discordant: pairs in the same and in opposite order; those tied in either are neither.
        tied_grades, tied_scores: pairs tied in each.
    """

    pairs: int
    concordant: int
    discordant: int
    tied_grades: int
    tied_scores: int

    @property
    def tau_a(self) -> float:
        """(concordant − discordant) / pairs: below 1 by the share of tied pairs, even in perfect order."""
        return (self.concordant - self.discordant) / self.pairs if self.pairs else nan

    @property
    def tau_b(self) -> float:
        """(concordant − discordant) / √(pairs without tied grades · pairs without tied scores); NaN if none is."""
        product = (self.pairs - self.tied_grades) * (self.pairs - self.tied_scores)
        return (self.concordant - self.discordant) / sqrt(product) if product else nan

    @property
    def attainable(self) -> float:
        """The greatest τ-b that scores without ties can have: √(pairs without tied grades / pairs)."""
        untied = self.pairs - self.tied_grades
        # written like tau_b, so that a perfect order reaches it to the last bit
        return untied / sqrt(untied * self.pairs) if untied else nan


def kendall_tau(grades: ArrayLike, scores: ArrayLike) -> KendallTau:
    """Compare the order of two rows of numbers, pair by pair.

    Args:
        grades: (n,) the one that may have ties by nature.
        scores: (n,) the other.

    Raises:
        InputError: rows that are not one-dimensional or of unequal length.
    """
    x, y = np.asarray(grades, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise InputError(f"grades and scores must be rows of equal length, not of shape {x.shape} and {y.shape}")
    i, j = np.triu_indices(x.size, k=1)
    by_grade, by_score = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
    agreement = by_grade * by_score
    return KendallTau(
        pairs=i.size,
        concordant=int((agreement > 0).sum()),
        discordant=int((agreement < 0).sum()),
        tied_grades=int((by_grade == 0).sum()),
        tied_scores=int((by_score == 0).sum()),
    )


@dataclass(frozen=True, eq=False)
class AlignmentDraws:
    """Draws from the posterior of the true scores of graded anchors. Made by `draw_alignment`.

    Attributes:
        grades: (n_anchors,) grade numbers, low to high.
        scores: (n_draws, n_anchors) logits, every draw summing to zero.
        departures: (n_draws,) τ, logits.
        order_effects: (n_draws,) γ, logits: the advantage of the essay read first.
    """

    grades: IntArray
    scores: FloatArray
    departures: FloatArray
    order_effects: FloatArray

    @cached_property
    def tau_b(self) -> FloatArray:
        """(n_draws,) τ-b of grades and true scores. To compare two batches, compare these draw by draw."""
        i, j = np.triu_indices(self.grades.size, k=1)
        by_grade = np.sign(self.grades[i] - self.grades[j]).astype(np.float64)
        balance = np.sign(self.scores[:, i] - self.scores[:, j]) @ by_grade
        taus: FloatArray = balance / sqrt(float(np.abs(by_grade).sum()) * i.size)
        return taus

    def tau_b_interval(self, level: float = 0.95) -> tuple[float, float]:
        """The values of τ-b outside which no more than (1 − level)/2 of the draws lie on either side.

        Raises:
            InputError: `level` is not between 0 and 1.
        """
        if not 0.0 < level < 1.0:
            raise InputError(f"level must be between 0 and 1, not {level!r}")
        tails = [(1.0 - level) / 2.0, (1.0 + level) / 2.0]
        low, high = np.quantile(self.tau_b, tails, method="inverted_cdf")
        return float(low), float(high)

    @cached_property
    def effective_draws(self) -> float:
        """How many independent draws the least well mixed anchor score is worth (Geyer 1992)."""
        return float(effective_sizes(self.scores).min())


def draw_alignment(
    table: JudgmentTable, grades: ArrayLike, *, seed: int, n_draws: int = 1000, burn_in: int = 200, thin: int = 3
) -> AlignmentDraws:
    """Draw true scores, τ and γ given judgments and grades; the order of the judgments does not matter.

    Args:
        table: judgments of the anchors, with the reading order.
        grades: (n_items,) grade numbers, low to high, of at least two grades.
        seed: of the random numbers.
        n_draws: draws returned, at least 2.
        burn_in, thin: sweeps left out at the start, and sweeps per returned draw.

    Raises:
        InputError: grades of another number of items or all the same, a table that does not know the reading order, a
            count out of range.
    """
    numbers = np.asarray(grades, dtype=np.int64)
    if numbers.shape != (table.n_items,):
        raise InputError(f"grades must be {table.n_items} numbers, one per item, not of shape {numbers.shape}")
    if np.unique(numbers).size < 2:
        raise InputError("alignment needs anchors of at least two grades: with one there is no order to agree with")
    if n_draws < 2 or burn_in < 0 or thin < 1:
        raise InputError(f"need n_draws >= 2, burn_in >= 0, thin >= 1, not {n_draws}, {burn_in}, {thin}")
    model = _Model(table.readings, numbers)
    rng = np.random.default_rng(seed)
    state, width = np.zeros(table.n_items + 1), 1.0
    scores, departures, effects = np.empty((n_draws, table.n_items)), np.empty(n_draws), np.empty(n_draws)
    for sweep in range(burn_in + n_draws * thin):
        weights = draw_polya_gamma(model.sums.totals, model.design @ state, rng)
        state, width = model.draw(weights, rng)
        state[:-1] *= model.rescaling(state, width, rng)
        kept, position = divmod(sweep - burn_in, thin)
        if sweep >= burn_in and position == thin - 1:
            scores[kept] = state[:-1] - state[:-1].mean()
            departures[kept], effects[kept] = width, state[-1]
    return AlignmentDraws(numbers, scores, departures, effects)


class _Model:
    """The prior of (θ, γ) at every τ of the grid, and the judgments' design, one row per ordered pair."""

    def __init__(self, sums: PairSums, grades: IntArray) -> None:
        n, pairs = sums.n_items, np.arange(sums.first.size)
        self.sums = sums
        self.standard = (grades - grades.mean()) / grades.std()
        self.design = np.zeros((pairs.size, n + 1))
        self.design[pairs, sums.first], self.design[pairs, sums.second], self.design[:, n] = 1.0, -1.0, 1.0
        self.right = self.design.T @ (sums.first_wins - sums.totals / 2.0)
        # θ has variance τ² + 9n along the grades and τ² across them (the standardised grades have length √n)
        along = _GRID**2 + SLOPE_SD**2 * n
        across = np.eye(n) - np.outer(self.standard, self.standard) * (SLOPE_SD**2 / along)[:, None, None]
        self.precisions = np.zeros((_GRID.size, n + 1, n + 1))
        self.precisions[:, :n, :n] = across / (_GRID**2)[:, None, None]
        self.precisions[:, n, n] = 1.0
        self.log_prior = _GRID_LOG_PRIOR - (n - 1) * np.log(_GRID) - 0.5 * np.log(along)

    def draw(self, weights: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, float]:
        """τ given the Pólya–Gamma weights, θ and γ integrated out; then (n + 1,) θ and γ given both."""
        factors = np.linalg.cholesky(self.precisions + (self.design.T * weights) @ self.design)
        halves = np.linalg.solve(factors, np.broadcast_to(self.right, factors.shape[:2])[..., None])[..., 0]
        log_determinants = np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1)
        density = self.log_prior - log_determinants + 0.5 * (halves**2).sum(axis=1)
        masses = np.cumsum(np.exp(density - density.max()))
        k = int(np.searchsorted(masses, rng.random() * masses[-1]))
        noisy = halves[k] + rng.standard_normal(halves.shape[1])
        state: FloatArray = np.linalg.solve(factors[k].T, noisy)
        return state, float(_GRID[k])

    def rescaling(self, state: FloatArray, width: float, rng: np.random.Generator) -> float:
        """A factor for θ that leaves its posterior given γ and τ as it is (Metropolis, log factors symmetric)."""
        theta, effect = state[:-1], state[-1]
        difference = self.design[:, :-1] @ theta
        along = float(self.standard @ theta) ** 2 / theta.size
        # −½ θᵀ precision θ, per square of the factor
        prior = -0.5 * ((float(theta @ theta) - along) / width**2 + along / (width**2 + SLOPE_SD**2 * theta.size))

        def log_density(factor: float) -> float:
            d = factor * difference + effect
            log_likelihood = self.sums.first_wins @ d - self.sums.totals @ np.logaddexp(0.0, d)
            return float(log_likelihood) + prior * factor**2 + theta.size * log(factor)

        factor, density = 1.0, log_density(1.0)
        for reach in _RESCALINGS:
            proposal = factor * float(np.exp(reach * rng.standard_normal()))
            proposed = log_density(proposal)
            if log(1.0 - rng.random()) < proposed - density:
                factor, density = proposal, proposed
        return factor
