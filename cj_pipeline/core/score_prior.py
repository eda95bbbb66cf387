"""What is taken to be known of scores before a batch is judged: a normal prior, as the fit uses it.

Either all items are exchangeable, independent N(0, σ²), or some of them have been placed by earlier judgments
(`KnownItems`): these have means and a full covariance of their own, in the frame of those judgments (the bank frame),
and all others are N(level, σ²) around a level of which nothing is known. Because judgments see differences only, a free
level of the others is also a free shift between the batch and the bank. Here: these priors. Not here: how σ is found
(`prior_width`), the mode (`bradley_terry_mode`), and where known positions come from (`anchor_bank`).
"""

from dataclasses import dataclass
from functools import cached_property
from math import log
from typing import Final, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cj_pipeline.core.errors import InputError, listed
from cj_pipeline.core.pair_counts import PairCounts

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

LEVEL_PRIOR_SD: Final = 100.0
"""Logits. How little is known of the level of items beside known ones: so wide that it says nothing."""


@dataclass(frozen=True, eq=False)
class Stiffening:
    """What an information matrix was given beyond likelihood and prior, so that it can be factorised.

    Attributes:
        variance: (n_components,) logits²; to be added to the inverse along a shift of each component.
        log_determinant: to be taken from the log determinant.
    """

    variance: FloatArray
    log_determinant: float


class ScorePrior(Protocol):
    """A normal prior of the scores with mean m and precision matrix P, P possibly zero."""

    def penalty(self, scores: FloatArray) -> float:
        """(scores - m)ᵀ P (scores - m)."""

    def slope(self, scores: FloatArray) -> FloatArray:
        """(n_items,) P (scores - m)."""

    def add_to(self, matrix: FloatArray, pairs: PairCounts) -> Stiffening:
        """Add P to the (n_items, n_items) information matrix of the judgments, in place, and make it regular."""

    def centred(self, values: FloatArray, pairs: PairCounts) -> FloatArray:
        """`values` without what rounding left of a shift that the prior rules out at the mode."""

    def start(self, n_items: int) -> FloatArray:
        """(n_items,) scores to start from: m."""

    def log_normaliser(self, n_items: int) -> float:
        """½ log det P up to what does not depend on the prior's width."""


@dataclass(frozen=True)
class IndependentPrior:
    """Independent N(0, width²); a width of None is no prior at all.

    A shift of a whole component changes no likelihood, so the information has the eigenvalue width⁻² there: tiny for a
    wide prior, zero for none. It is stiffened in exactly these directions, and inverse and determinant follow in closed
    form.
    """

    width: float | None

    @property
    def precision(self) -> float:
        """width⁻², logits⁻²; 0 without a prior."""
        return 0.0 if self.width is None else self.width**-2

    def penalty(self, scores: FloatArray) -> float:
        """See `ScorePrior.penalty`."""
        return self.precision * float(scores @ scores)

    def slope(self, scores: FloatArray) -> FloatArray:
        """See `ScorePrior.slope`."""
        return self.precision * scores

    def add_to(self, matrix: FloatArray, pairs: PairCounts) -> Stiffening:
        """See `ScorePrior.add_to`."""
        stiffness = pairs.component_means(matrix.diagonal())
        stiffness[stiffness == 0] = 1.0
        if stiffness.size == 1:
            matrix += stiffness / pairs.n_items
        else:
            matrix += stiffness[pairs.components][:, None] * pairs.component_projection
        matrix.flat[:: pairs.n_items + 1] += self.precision
        if self.width is None:
            return Stiffening(-1.0 / stiffness, np.inf)
        variance = 1.0 / self.precision - 1.0 / (self.precision + stiffness)
        return Stiffening(variance, float(np.log1p(stiffness / self.precision).sum()))

    def centred(self, values: FloatArray, pairs: PairCounts) -> FloatArray:
        """The values summing to zero in every component, as the mode does."""
        return pairs.centred_within_components(values)

    def start(self, n_items: int) -> FloatArray:
        """Zero."""
        return np.zeros(n_items)

    def log_normaliser(self, n_items: int) -> float:
        """-n log width; 0 without a prior."""
        return 0.0 if self.width is None else -n_items * log(self.width)


@dataclass(frozen=True, eq=False)
class StandIns:
    """Normal stand-ins exp(b s - a s²/2), one per item, for a prior whose shape is not normal (`score_shape`).

    Attributes:
        precisions: (n_items,) a, logits⁻²; negative where the shape has more than one hump around an item.
        shifts: (n_items,) b, logits⁻¹.
    """

    precisions: FloatArray
    shifts: FloatArray

    def widened(self, factor: float) -> "StandIns":
        """The stand-ins of a prior `factor` times as wide around the same places."""
        return StandIns(self.precisions / factor**2, self.shifts / factor**2)

    def add_to(self, matrix: FloatArray, pairs: PairCounts) -> Stiffening:
        """See `ScorePrior.add_to`; nothing is stiffened."""
        matrix.flat[:: pairs.n_items + 1] += self.precisions
        return Stiffening(np.zeros(int(pairs.components.max()) + 1), 0.0)


@dataclass(frozen=True, eq=False)
class KnownItems:
    """Items whose scores are known, more or less, before the batch is judged. Make it with `known_items`.

    Attributes:
        items: (k,) indices of items.
        mean: (k,) logits, in the bank frame.
        covariance: (k, k) logits², positive definite.
    """

    items: IntArray
    mean: FloatArray
    covariance: FloatArray


def known_items(items: ArrayLike, mean: ArrayLike, covariance: ArrayLike, n_items: int) -> KnownItems:
    """Check what is known of some of `n_items` items, at least one of them.

    Args:
        items: (k,) integers, distinct.
        mean: (k,) logits.
        covariance: (k, k) logits², symmetric and positive definite. Its full matrix counts: what the items have in
            common says where their differences are better known than each of them.

    Raises:
        InputError: no items, wrong shapes, an index twice or out of range, numbers that are not finite, or a matrix
            that is not symmetric and positive definite.
    """
    index = np.asarray(items)
    at, matrix = np.asarray(mean, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
    if index.ndim != 1 or not index.size or index.dtype.kind not in "iu":
        raise InputError(f"known items must be a row of item indices, at least one, not {index.dtype} {index.shape}")
    k = index.size
    outside = sorted({int(item) for item in index if not 0 <= item < n_items})
    if outside or np.unique(index).size < k:
        raise InputError(f"known items must be distinct and of 0 to {n_items - 1}, not {listed(index.tolist())}")
    if at.shape != (k,) or matrix.shape != (k, k):
        raise InputError(f"{k} known items: means of shape {at.shape} and a covariance of shape {matrix.shape} given")
    if not (np.isfinite(at).all() and np.isfinite(matrix).all()):
        raise InputError("means and covariance of known items must be finite")
    if not np.allclose(matrix, matrix.T, rtol=1e-9, atol=0.0) or np.linalg.eigvalsh(matrix)[0] <= 0.0:
        raise InputError(
            "the covariance of known items must be symmetric and positive definite; add the variance of a shift that "
            "all share where it is not"
        )
    return KnownItems(index.astype(np.int64), at, (matrix + matrix.T) / 2.0)


@dataclass(frozen=True, eq=False)
class AnchoredPrior:
    """Known items at their means; all others N(level, width²), level ~ N(mean of the known, `LEVEL_PRIOR_SD`²).

    Attributes:
        known: the items placed beforehand.
        width: of the others, logits.
        n_items: number of items in all.
    """

    known: KnownItems
    width: float
    n_items: int

    @cached_property
    def mean(self) -> FloatArray:
        """(n_items,) logits."""
        mean: FloatArray = np.full(self.n_items, self.known.mean.mean())
        mean[self.known.items] = self.known.mean
        return mean

    @cached_property
    def precision_matrix(self) -> FloatArray:
        """(n_items, n_items) logits⁻²."""
        others = np.setdiff1d(np.arange(self.n_items), self.known.items)
        matrix: FloatArray = np.zeros((self.n_items, self.n_items))
        matrix[np.ix_(self.known.items, self.known.items)] = np.linalg.inv(self.known.covariance)
        # (σ² I + λ² J)⁻¹ = σ⁻² (I - J λ²/(σ² + m λ²))
        shared = LEVEL_PRIOR_SD**2 / (self.width**2 + others.size * LEVEL_PRIOR_SD**2)
        matrix[np.ix_(others, others)] = (np.eye(others.size) - shared) / self.width**2
        return (matrix + matrix.T) / 2.0

    def penalty(self, scores: FloatArray) -> float:
        """See `ScorePrior.penalty`."""
        off = scores - self.mean
        return float(off @ self.precision_matrix @ off)

    def slope(self, scores: FloatArray) -> FloatArray:
        """See `ScorePrior.slope`."""
        slope: FloatArray = self.precision_matrix @ (scores - self.mean)
        return slope

    def add_to(self, matrix: FloatArray, pairs: PairCounts) -> Stiffening:
        """See `ScorePrior.add_to`; the matrix is regular as it is."""
        matrix += self.precision_matrix
        return Stiffening(np.zeros(int(pairs.components.max()) + 1), 0.0)

    def centred(self, values: FloatArray, pairs: PairCounts) -> FloatArray:
        """The values as they are: the known items say where zero is."""
        return values

    def start(self, n_items: int) -> FloatArray:
        """The means."""
        return self.mean.copy()

    def log_normaliser(self, n_items: int) -> float:
        """-½ log det of the others' covariance σ² I + λ² J."""
        others = self.n_items - self.known.items.size
        if not others:
            return 0.0
        return -(others - 1) * log(self.width) - 0.5 * log(self.width**2 + others * LEVEL_PRIOR_SD**2)
