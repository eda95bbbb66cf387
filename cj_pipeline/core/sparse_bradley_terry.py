"""Bradley–Terry for many items: the mode and its standard errors without a dense matrix.

Here live Newton's method on sparse information matrices, the two ways of solving with them (preconditioned conjugate
gradients, and a banded Cholesky factorisation where an ordering of the items makes the matrix narrow), and the diagonal
of their inverse. The model, its checks and small batches are in `bradley_terry`, which calls this module.

Throughout, H = L + precision·I, where L is the Laplacian of the graph of pairs: pair (i, j) judged n_ij times has the
weight n_ij p (1 - p), p = P(i beats j). L is blind to a shift of a whole component, so all vectors are kept summing to
zero in every component; there H has the inverse Q = P H⁺ P, P the projection that centres within components.

Newton steps are solved inexactly while they are long (Dembo, Eisenstat & Steihaug 1982) and damped as generalised
self-concordance allows (Sun & Tran-Dinh 2019): a step that moves no judged difference by more than 1.7 logits increases
the likelihood, and a step of log(1 + R)/R times one that moves a difference by R always does. The error of conjugate
gradients is measured in the norm of H, by the decrease of the last iterations (Strakoš & Tichý 2002), because a small
residual does not mean a small error on graphs that are long and thin. The error e of an item is at most its standard
error times that norm, by the Cauchy–Schwarz inequality.

The diagonal of Q is estimated in two parts (after Bekas, Kokiopoulou & Saad 2007). With D the diagonal and W = D - H
the rest, X = D⁻¹ + D⁻¹W D⁻¹ + D⁻¹W D⁻¹W D⁻¹ has a diagonal that is known exactly. What is left, Q - P X P, is small on
well-connected graphs, and random signs z see its diagonal:

    q_i = (P X P)_ii + E[ z_i d_i^-½ ((Q - P X P) D^½ z)_i ]

The spread of this over the probes is the error of their mean.

References:
    Bekas, C., Kokiopoulou, E. & Saad, Y. (2007). An estimator for the diagonal of a matrix. Applied Numerical
        Mathematics 57, 1214-1229.
    Dembo, R. S., Eisenstat, S. C. & Steihaug, T. (1982). Inexact Newton methods. SIAM Journal on Numerical Analysis
        19, 400-408.
    Erisman, A. M. & Tinney, W. F. (1975). On computing certain elements of the inverse of a sparse matrix.
        Communications of the ACM 18, 177-179.
    Strakoš, Z. & Tichý, P. (2002). On error estimation in the conjugate gradient method and why it works in finite
        precision computations. Electronic Transactions on Numerical Analysis 13, 56-80.
    Sun, T. & Tran-Dinh, Q. (2019). Generalized self-concordant functions: a recipe for Newton-type methods.
        Mathematical Programming 178, 145-213.
"""

import contextlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cj_pipeline.core.bradley_terry_mode import SINGULAR, Top, start_of_likelihood
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.pair_counts import PairCounts

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

ERROR_LIMIT: Final = 0.03
"""An estimated standard error is replaced by an exact one where it may be off by more than this share of itself."""

_MAX_NEWTON_STEPS: Final = 200
_STALLED_STEPS: Final = 4
# A step that changes no difference by more increases the likelihood: (e^R - R - 1)/R² < 1 (Sun & Tran-Dinh 2019).
_SAFE_RANGE: Final = 1.7
_PAIRS_AT_ONCE: Final = 32_768
# Conjugate gradients: relative errors, in the norm of H.
_LOOSEST: Final = 0.1
_FINAL: Final = 0.01
_PROBE_ERROR: Final = 1e-4
_EXACT_ERROR: Final = 1e-6
_MAX_CG_ITERATIONS: Final = 20_000
# After so many iterations a narrow ordering of the items is looked for.
_PATIENCE: Final = 150
# The banded factor: at most 320 MB, and some 10 s at 3e9 operations a second.
_BAND_NUMBERS: Final = 4e7
_BAND_WORK: Final = 3e10
# Probes, 32 at a time; more are drawn while more than 1 % of the errors are in doubt.
_PROBES_AT_ONCE: Final = 32
_MOST_PROBES: Final = 128
_DOUBTFUL_SHARE: Final = 0.01
# An item's variance is taken to be within four standard errors of its mean over the probes: 1 in 16,000 is not.
_SAFETY: Final = 4.0
# Exact replacements, unless all are asked for: some 20 s at 5e8 numbers a second.
_EXACT_WORK: Final = 1e10
_SEED: Final = 20_240_501


@dataclass(frozen=True, eq=False)
class Variances:
    """Diagonal of Q, the inverse information centred within components.

    Attributes:
        values: (n_items,) logits².
        relative_error: (n_items,) share of itself by which the root of a value may be off: four standard errors of
            its mean over the probes, 0 where the value was solved for.
        exact: (n_items,) whether the value was solved for.
        probes: random probes drawn; 0 if all values are exact.
    """

    values: FloatArray
    relative_error: FloatArray
    exact: NDArray[np.bool_]
    probes: int


def find_sparse_mode(pairs: PairCounts, precision: float, tolerance: float) -> Top:
    """Maximise log likelihood - precision·|scores|²/2 by inexact, damped Newton steps.

    Without a prior they start from each item's wins; from zero, where no weight vanishes, if that fails. Converged when
    the last full step, solved to 1 % in the norm of H, is at most `tolerance` (logits) in every item.
    With precision 0 a finite maximum must exist (a strongly connected win graph).

    Raises:
        InputError: weights differ by so many orders of magnitude that an item's information vanishes.
    """
    likelihood = _Likelihood(pairs, precision)
    if precision == 0.0:
        with contextlib.suppress(InputError):
            top = _climb(pairs, likelihood, start_of_likelihood(pairs), tolerance)
            if top.converged:
                return top
    return _climb(pairs, likelihood, np.zeros(pairs.n_items), tolerance)


def _climb(pairs: PairCounts, likelihood: "_Likelihood", scores: FloatArray, tolerance: float) -> Top:
    """`find_sparse_mode` from given scores."""
    gradient, information = likelihood.derivatives(scores)
    solver = _Solver(pairs)
    iterations, stalled, converged = 0, 0, False
    longest = 1.0
    while iterations < _MAX_NEWTON_STEPS and stalled < _STALLED_STEPS:
        iterations += 1
        # the step to come is about the square of the last one, and need not be better than the tolerance
        expected = min(1.0, longest * longest)
        error = min(_LOOSEST, max(0.1 * expected, 0.1 * tolerance / expected))
        if expected <= tolerance:
            error = _FINAL
        step = solver.solve(information, gradient, error)
        length = float(np.abs(step).max())
        if length <= tolerance:
            if error > _FINAL:
                step = solver.solve(information, gradient, _FINAL)
                length = float(np.abs(step).max())
            if length <= tolerance:
                scores, converged = scores + step, solver.succeeded
                break
        stalled = stalled + 1 if length > 0.5 * longest and length < 1e-3 else 0
        longest = length
        trial = scores + step
        trial_gradient, trial_information = likelihood.derivatives(trial)
        if np.ptp(step) > _SAFE_RANGE and float(trial_gradient @ step) < 0.0:
            # past the top along the step: it may be lower there than here
            widest = likelihood.widest(step)
            trial = scores + np.log1p(widest) / widest * step
            trial_gradient, trial_information = likelihood.derivatives(trial)
        scores, gradient, information = trial, trial_gradient, trial_information
    return Top(scores=_centred(scores, pairs.components), iterations=iterations, converged=converged)


def sparse_variances(pairs: PairCounts, scores: FloatArray, precision: float, *, exact: bool = False) -> Variances:
    """Diagonal of Q = P H⁺ P at `scores`: exact where that is cheap or in doubt, else estimated from random probes.

    Exact for all items if an ordering makes H narrow (chains, rings, pairs near in score). Otherwise probes, whose
    seed is fixed; the values that may be off by more than 6 % (their roots by more than `ERROR_LIMIT`) are solved for,
    the worst first, as many as some 20 seconds allow. What is still in doubt then shows in `relative_error`.

    Args:
        scores: (n_items,) logits, where the information is taken.
        precision: of the prior, logits⁻²; 0 for none.
        exact: solve for every item; takes n_items solutions.
    """
    _, information = _Likelihood(pairs, precision).derivatives(scores)
    solver = _Solver(pairs)
    values: FloatArray = np.zeros(pairs.n_items)
    error: FloatArray = np.zeros(pairs.n_items)
    # an item that nothing is compared with has no variance within its component
    unknown = np.bincount(pairs.components)[pairs.components] > 1
    if not unknown.any():
        return Variances(values, error, ~unknown, 0)
    if exact:
        band = solver.find_band(information)
        items = np.flatnonzero(unknown)
        values[items] = band.variances()[items] if band else solver.variances_of(information, items)
        return Variances(values, error, np.ones_like(unknown), 0)
    if solver.is_slow(information) and (band := solver.find_band(information)):
        return Variances(np.where(unknown, band.variances(), 0.0), error, np.ones_like(unknown), 0)
    estimate = _ProbeEstimate(pairs, information)
    while True:
        estimate.draw()
        values, error = estimate.values(), estimate.relative_error()
        doubtful = np.flatnonzero(unknown & (error > ERROR_LIMIT))
        if doubtful.size <= _DOUBTFUL_SHARE * pairs.n_items or estimate.probes >= _MOST_PROBES:
            break
        if doubtful.size > _DOUBTFUL_SHARE * pairs.n_items and (band := solver.find_band(information)):
            return Variances(np.where(unknown, band.variances(), 0.0), 0.0 * error, np.ones_like(unknown), 0)
    affordable = int(_EXACT_WORK / (estimate.iterations * (len(pairs.first) + 10 * pairs.n_items)))
    chosen = doubtful[np.argsort(-error[doubtful], kind="stable")][:affordable]
    values[chosen] = solver.variances_of(information, chosen)
    values[~unknown] = error[~unknown] = error[chosen] = 0.0
    known = ~unknown
    known[chosen] = True
    return Variances(values, error, known, estimate.probes)


def sparse_contrast_variance(pairs: PairCounts, scores: FloatArray, precision: float, i: int, j: int) -> float:
    """(e_i - e_j)' Q (e_i - e_j), logits²: exact, by one solution. Items of one component."""
    _, information = _Likelihood(pairs, precision).derivatives(scores)
    contrast: FloatArray = np.zeros(pairs.n_items)
    contrast[i] += 1.0
    contrast[j] -= 1.0
    return float(contrast @ _Solver(pairs).solve(information, contrast, _EXACT_ERROR))


# -- the likelihood --------------------------------------------------------------------------------------------


class _Likelihood:
    """Gradient and information of the penalised likelihood, pair by pair in pieces that fit the cache."""

    def __init__(self, pairs: PairCounts, precision: float) -> None:
        self._pairs = pairs
        self._precision = precision
        self._played = pairs.first_wins + pairs.second_wins
        # fresh memory costs more than what is computed into it, and so do new sparse matrices: all are made once
        self._weight: FloatArray = np.empty(len(pairs.first))
        self._surplus: FloatArray = np.empty(len(pairs.first))
        index_type = np.int32 if max(pairs.n_items, len(pairs.first)) < 2**31 - 1 else np.int64
        rows = np.searchsorted(pairs.first, np.arange(pairs.n_items + 1)).astype(index_type)
        columns = pairs.second.astype(index_type)
        self._weights = _Upper.of(self._weight, columns, rows)
        self._surpluses = _Upper.of(self._surplus, columns, rows)

    def derivatives(self, scores: FloatArray) -> "tuple[FloatArray, _SparseInformation]":
        """(n_items,) gradient, centred within components, and the information at `scores`, until the next call."""
        pairs, weight, surplus = self._pairs, self._weight, self._surplus
        for start in range(0, len(weight), _PAIRS_AT_ONCE):
            part = slice(start, start + _PAIRS_AT_ONCE)
            difference = scores[pairs.first[part]] - scores[pairs.second[part]]
            odds = np.exp(-np.abs(difference))
            likely = 1.0 / (1.0 + odds)
            unlikely = odds * likely
            ahead = difference >= 0.0
            weight[part] = self._played[part] * likely * unlikely
            surplus[part] = pairs.first_wins[part] * np.where(ahead, unlikely, likely)
            surplus[part] -= pairs.second_wins[part] * np.where(ahead, likely, unlikely)
        ones = np.ones(pairs.n_items)
        gradient = self._surpluses.rows @ ones - self._surpluses.columns @ ones - self._precision * scores
        diagonal = self._weights.rows @ ones + self._weights.columns @ ones + self._precision
        if not (diagonal > 0.0).all() and diagonal[np.bincount(pairs.components)[pairs.components] > 1].min() <= 0.0:
            raise InputError(SINGULAR)
        information = _SparseInformation(self._weights, diagonal, pairs.components, self._precision)
        return _centred(gradient, pairs.components), information

    def widest(self, step: FloatArray) -> float:
        """Largest change of a judged difference."""
        return float(np.abs(step[self._pairs.first] - step[self._pairs.second]).max())


@dataclass(frozen=True, eq=False)
class _Upper:
    """One number per pair as an upper triangular matrix, and its transpose. Both see changes of `values`.

    Attributes:
        values: (n_pairs,) numbers.
        rows: (n_items, n_items) sparse, item `first` by item `second`.
        columns: its transpose.
    """

    values: FloatArray
    rows: Any
    columns: Any

    @classmethod
    def of(cls, values: FloatArray, indices: NDArray[Any], starts: NDArray[Any]) -> "_Upper":
        from scipy.sparse import csr_array

        rows = csr_array((values, indices, starts), shape=(starts.size - 1, starts.size - 1))
        return cls(values, rows, rows.T)


@dataclass(frozen=True, eq=False)
class _SparseInformation:
    """H = D - W, W = U + Uᵀ.

    Attributes:
        upper: U, the weights of the pairs.
        diagonal: (n_items,) D, precision included.
        components: (n_items,) labels.
        precision: of the prior.
    """

    upper: _Upper
    diagonal: FloatArray
    components: IntArray
    precision: float

    @cached_property
    def inverse_diagonal(self) -> FloatArray:
        """(n_items,) D⁻¹, zero for items that neither judgments nor a prior reach."""
        return np.divide(1.0, self.diagonal, out=np.zeros_like(self.diagonal), where=self.diagonal > 0)

    def others(self, x: FloatArray) -> FloatArray:
        """W x, for (n_items,) or (n_items, k)."""
        if x.ndim == 2 and x.shape[1] == 1:
            return self.others(x[:, 0])[:, None]
        product: FloatArray = self.upper.rows @ x
        product += self.upper.columns @ x
        return product


def _centred(x: FloatArray, components: IntArray) -> FloatArray:
    """`x`, (n_items,) or (n_items, k), shifted so that every column sums to zero in every component."""
    centred: FloatArray
    if not components.any():
        return x - x.mean(axis=0)  # type: ignore[no-any-return]
    sizes = np.bincount(components)
    if x.ndim == 1:
        centred = x - (np.bincount(components, weights=x) / sizes)[components]
    else:
        from scipy.sparse import csr_array

        n = components.size
        sums = csr_array((np.ones(n), (components, np.arange(n))), shape=(sizes.size, n)) @ x
        centred = x - (sums / sizes[:, None])[components]
    return centred


# -- solving ---------------------------------------------------------------------------------------------------


class _Solver:
    """Solves with H, by conjugate gradients until they are slow and a narrow ordering of the items exists."""

    def __init__(self, pairs: PairCounts) -> None:
        self._pairs = pairs
        self._order: IntArray | None = None
        self._looked = False
        self.succeeded = True

    def solve(self, information: _SparseInformation, right: FloatArray, error: float) -> FloatArray:
        """Q right, for a (n_items,) `right` that sums to zero in every component; `error` is relative, in H's norm."""
        if self._order is None:
            patience = _MAX_CG_ITERATIONS if self._looked else _PATIENCE
            solution, self.succeeded, _ = _conjugate_gradients(information, right[:, None], error, patience)
            if self.succeeded or self._looked:
                return solution[:, 0]
        band = self.find_band(information)
        if band is None:
            return self.solve(information, right, error)
        self.succeeded = True
        return band.solve(right)

    def is_slow(self, information: _SparseInformation) -> bool:
        """Whether conjugate gradients take more than `_PATIENCE` iterations for random right sides."""
        right = np.random.default_rng(_SEED).normal(size=(self._pairs.n_items, 1))
        right = _centred(np.sqrt(information.diagonal)[:, None] * right, self._pairs.components)
        return not _conjugate_gradients(information, right, _PROBE_ERROR, _PATIENCE)[1]

    def find_band(self, information: _SparseInformation) -> "_Band | None":
        """The banded factorisation, if the reverse Cuthill–McKee ordering makes it affordable."""
        n = self._pairs.n_items
        if not self._looked:
            self._looked = True
            if len(self._pairs.first) * len(self._pairs.first) <= _BAND_WORK * n:  # at least n_pairs / n wide
                from scipy.sparse.csgraph import reverse_cuthill_mckee

                order = reverse_cuthill_mckee(
                    (information.upper.rows + information.upper.columns).tocsr(), symmetric_mode=True
                )
                width = _width(self._pairs, _places(order.astype(np.int64)))
                if n * (width + 1.0) <= _BAND_NUMBERS and n * float(width) ** 2 <= _BAND_WORK:
                    self._order = order.astype(np.int64)
        return None if self._order is None else _Band(self._pairs, information, self._order)

    def variances_of(self, information: _SparseInformation, items: IntArray) -> FloatArray:
        """(len(items),) entries of the diagonal of Q, each by its own solution, solved together in blocks."""
        values = np.empty(items.size)
        for start in range(0, items.size, _PROBES_AT_ONCE):
            block = items[start : start + _PROBES_AT_ONCE]
            columns = np.arange(block.size)
            right = np.zeros((self._pairs.n_items, block.size))
            right[block, columns] = 1.0
            right = _centred(right, self._pairs.components)
            solution, _, _ = _conjugate_gradients(information, right, _EXACT_ERROR, _MAX_CG_ITERATIONS)
            values[start : start + block.size] = np.einsum("ij,ij->j", right, solution)
        return values


def _conjugate_gradients(
    information: _SparseInformation, right: FloatArray, error: float, most: int
) -> tuple[FloatArray, bool, int]:
    """Q right by conjugate gradients with the diagonal as preconditioner, all columns of (n_items, k) side by side.

    Stops when in every column the residual (in the norm of D⁻¹) and the error (in the norm of H, estimated from the
    decrease over the last fifth of the iterations) are at most `error` times what they were.

    Returns:
        The solution, centred within components; whether it got there within `most` iterations; how many it took.
    """
    inverse = information.inverse_diagonal[:, None]
    diagonal = information.diagonal[:, None]
    solution: FloatArray = np.zeros_like(right)
    residual: FloatArray = right.copy()
    scaled = inverse * residual
    direction = scaled.copy()
    size = np.einsum("ij,ij->j", residual, scaled)
    first_size = size.copy()
    decreases = [np.zeros_like(size)]
    total = np.zeros_like(size)
    done = first_size <= 0.0
    iteration = 0
    while not done.all() and iteration < most:
        iteration += 1
        image = diagonal * direction
        image -= information.others(direction)
        curvature = np.einsum("ij,ij->j", direction, image)
        alive = (curvature > 0.0) & (size > 0.0)
        alpha = np.divide(size, curvature, out=np.zeros_like(size), where=alive)
        solution += alpha * direction
        residual -= alpha * image
        np.multiply(inverse, residual, out=scaled)
        total += alpha * size
        decreases.append(total.copy())
        new_size = np.einsum("ij,ij->j", residual, scaled)
        beta = np.divide(new_size, size, out=np.zeros_like(size), where=alive)
        size = new_size
        recent = total - decreases[iteration - (1 + iteration // 5)]
        done = ((recent <= error**2 * total) & (size <= error**2 * first_size)) | ~alive
        direction *= beta
        direction += scaled
    return _centred(solution, information.components), bool(done.all()), iteration


def _places(order: IntArray) -> IntArray:
    """(n_items,) where each item is in `order`."""
    places = np.empty_like(order)
    places[order] = np.arange(order.size)
    return places


def _width(pairs: PairCounts, places: IntArray) -> int:
    """How far apart in the ordering the two items of a pair are, at most."""
    return int(np.abs(places[pairs.first] - places[pairs.second]).max(initial=0))


class _Band:
    """Cholesky factor of H, its items reordered into a band.

    Without a prior the first item of every component is held (its diagonal is doubled): for a right side that sums to
    zero this picks the solution in which that item is zero, which centring then shifts.
    """

    def __init__(self, pairs: PairCounts, information: _SparseInformation, order: IntArray) -> None:
        from scipy.linalg import cholesky_banded

        self._components = information.components
        self._order = order
        self._places = _places(order)
        self._width = max(1, _width(pairs, self._places))
        n = order.size
        band = np.zeros((self._width + 1, n))
        diagonal = information.diagonal.copy()
        if information.precision == 0.0:
            held = np.unique(information.components, return_index=True)[1]
            diagonal[held] += np.where(diagonal[held] > 0, diagonal[held], 1.0)
        band[0] = diagonal[order]
        low = np.minimum(self._places[pairs.first], self._places[pairs.second])
        high = np.maximum(self._places[pairs.first], self._places[pairs.second])
        band[high - low, low] = -information.upper.values
        try:
            self._factor = cholesky_banded(band, overwrite_ab=True, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            raise InputError(SINGULAR) from None

    def solve(self, right: FloatArray) -> FloatArray:
        """Q right for a right side that sums to zero in every component."""
        from scipy.linalg import cho_solve_banded

        inner = cho_solve_banded((self._factor, True), right[self._order], check_finite=False)
        return _centred(inner[self._places], self._components)

    def variances(self) -> FloatArray:
        """(n_items,) diagonal of Q."""
        from scipy.linalg import cho_solve_banded

        # centred: G_ii - 2 (G 1)_i / n_c + 1'G 1 / n_c², per component
        sizes = np.bincount(self._components)
        sums = cho_solve_banded((self._factor, True), np.ones(self._order.size), check_finite=False)[self._places]
        totals = np.bincount(self._components, weights=sums)
        size = sizes[self._components]
        values = self._inverse_diagonal()[self._places] - 2.0 * sums / size + totals[self._components] / size**2
        result: FloatArray = np.maximum(values, 0.0)
        return result

    def _inverse_diagonal(self) -> FloatArray:
        """(n_items,) diagonal of (L Lᵀ)⁻¹ in the band's order, block by block from the end (Erisman & Tinney 1975).

        With L_k the k-th diagonal block of L and B_k the one below it, the k-th diagonal block of the inverse is
        L_k⁻ᵀ (I + B_kᵀ Σ B_k) L_k⁻¹, Σ being the block after it.
        """
        from scipy.linalg import solve_triangular

        n, size = self._order.size, max(self._width, 32)
        values = np.empty(n)
        later: FloatArray = np.zeros((0, 0))
        for start in reversed(range(0, n, size)):
            stop = min(start + size, n)
            block, below = self._blocks(start, stop, later.shape[0])
            inverse = solve_triangular(block, np.eye(stop - start), lower=True, check_finite=False)
            inner = np.eye(stop - start) + below.T @ later @ below
            later = inverse.T @ inner @ inverse
            values[start:stop] = np.diag(later)
        return values

    def _blocks(self, start: int, stop: int, after: int) -> tuple[FloatArray, FloatArray]:
        """The block of L with rows and columns start … stop, and the block of the `after` rows below it."""
        size = stop - start
        both = np.zeros((size + after, size))
        reach = np.arange(self._width + 1)[:, None]
        columns = np.arange(size)[None, :]
        rows = reach + columns
        inside = rows < size + after
        both[rows[inside], np.broadcast_to(columns, rows.shape)[inside]] = self._factor[:, start:stop][inside]
        return both[:size], both[size:]


# -- the diagonal by probes --------------------------------------------------------------------------------------


class _ProbeEstimate:
    """The diagonal of Q from the first terms of its Neumann series and random signs; see the module."""

    def __init__(self, pairs: PairCounts, information: _SparseInformation) -> None:
        self._pairs = pairs
        self._information = information
        self._random = np.random.default_rng(_SEED)
        self._sum: FloatArray = np.zeros(pairs.n_items)
        self._squares: FloatArray = np.zeros(pairs.n_items)
        self.probes, self.iterations = 0, 0
        self._known = self._series_diagonal()

    def draw(self) -> None:
        """Add `_PROBES_AT_ONCE` probes."""
        n, k = self._pairs.n_items, _PROBES_AT_ONCE
        signs = self._random.integers(0, 2, (n, k), dtype=np.int8) * 2.0 - 1.0
        root = np.sqrt(self._information.diagonal)[:, None]
        right = _centred(root * signs, self._pairs.components)
        solution, _, self.iterations = _conjugate_gradients(self._information, right, _PROBE_ERROR, _MAX_CG_ITERATIONS)
        solution -= _centred(self._series(right), self._pairs.components)
        solution *= signs
        np.divide(solution, root, out=solution, where=root > 0)
        self._sum += solution.sum(axis=1)
        self._squares += np.einsum("ij,ij->i", solution, solution)
        self.probes += k

    def values(self) -> FloatArray:
        """(n_items,) the estimate, logits²; never below the part that is known to be positive."""
        estimate: FloatArray = np.maximum(self._known + self._sum / self.probes, 0.1 * self._known)
        return estimate

    def relative_error(self) -> FloatArray:
        """(n_items,) `_SAFETY` standard errors of the estimate, as a share, halved for its root."""
        mean = self._sum / self.probes
        variance = np.maximum(self._squares / self.probes - mean**2, 0.0) / (self.probes - 1)
        values = self.values()
        share: FloatArray = np.divide(
            0.5 * _SAFETY * np.sqrt(variance), values, out=np.zeros_like(values), where=values > 0
        )
        return share

    def _series(self, x: FloatArray) -> FloatArray:
        """X x: three terms of the Neumann series of H⁻¹."""
        inverse = self._information.inverse_diagonal if x.ndim == 1 else self._information.inverse_diagonal[:, None]
        inner = x + self._information.others(inverse * x)
        outer = x + self._information.others(inverse * inner)
        product: FloatArray = inverse * outer
        return product

    def _series_diagonal(self) -> FloatArray:
        """(n_items,) diagonal of P X P."""
        information, components = self._information, self._pairs.components
        inverse = information.inverse_diagonal
        rows = information.upper.rows
        squares = _Upper.of(rows.data**2, rows.indices, rows.indptr)
        twice = squares.rows @ inverse + squares.columns @ inverse
        diagonal = inverse + inverse**2 * twice
        # P X P: X_ii - 2 (X 1)_i / n_c + 1'X 1 / n_c², per component
        size = np.bincount(components)[components]
        sums = self._series(np.ones(components.size))
        totals = np.bincount(components, weights=sums)
        centred: FloatArray = diagonal - 2.0 * sums / size + totals[components] / size**2
        return centred
