"""A smooth density behind noise: the log density is a spline, fitted to what is known of each item.

The splines are cubic, on even knots. Of two that fit alike the one with the smaller third derivative is preferred,

    log p(spline) = -smoothing/2 · ∫ (f'''(z))² dz,     z = score / width,

so that a parabola, the normal density, costs nothing (Silverman 1982). What is known of an item is a normal
distribution of its score, and the likelihood of the density is the mass of their product, as where Efron (2016) finds
densities behind noise.

Here: splines, penalised likelihood and its volume. Not here: where the items' distributions come from and which
smoothing is the right one (`prior_shape`), moments of the density (`score_shape`).

References:
    Efron, B. (2016). Empirical Bayes deconvolution estimates. Biometrika 103, 1-20.
    Silverman, B. W. (1982). On the estimation of a probability density function by the maximum penalized likelihood
        method. Annals of Statistics 10, 795-810.
"""

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cj_pipeline.core.score_shape import ScoreShape, score_shape

FloatArray = NDArray[np.float64]

# In widths: between knots, between places of the result, beyond the outermost item.
_KNOT_SPACING: Final = 0.5
_PLACE_SPACING: Final = 0.06
_BEYOND: Final = 3.0
_PLACES_PER_FIT: Final = 4
_NEWTON_STEPS: Final = 2
_MOST_HALVINGS: Final = 10
_LEAST_CURVATURE: Final = 1e-3


@dataclass(frozen=True, eq=False)
class LogDensitySplines:
    """Cubic B-splines on evenly spaced knots: the space of log densities.

    Attributes:
        knot_spacing: in widths.
        places: (g,) logits, where densities are fitted; `design`: (g, k) the splines there.
        fine_places, fine_design: the same where they are reported.
    """

    knot_spacing: float
    places: FloatArray
    design: FloatArray
    fine_places: FloatArray
    fine_design: FloatArray

    @classmethod
    def over(cls, means: FloatArray, width: float) -> "LogDensitySplines":
        """Splines that reach beyond all items."""
        from scipy.interpolate import BSpline

        low, high = float(means.min()) - _BEYOND * width, float(means.max()) + _BEYOND * width
        stretches = ceil((high - low) / (_KNOT_SPACING * width))
        count = _PLACES_PER_FIT * ceil((high - low) / (_PLACE_SPACING * width))
        # in units of the spacing of the knots; the last place belongs to the last stretch
        along = np.minimum(np.linspace(0.0, stretches, count + 1), np.nextafter(float(stretches), 0.0))
        fine = BSpline.design_matrix(along, np.arange(-3.0, stretches + 4.0), 3).toarray()
        fine_places = np.linspace(low, high, count + 1)
        spacing = (high - low) / stretches / width
        return cls(spacing, fine_places[::_PLACES_PER_FIT], fine[::_PLACES_PER_FIT], fine_places, fine)

    def parabola(self, width: float) -> FloatArray:
        """(k,) coefficients of the log density of N(0, width²), up to a constant."""
        return np.asarray(np.linalg.lstsq(self.design, -0.5 * (self.places / width) ** 2)[0], dtype=np.float64)

    def shape(self, coefficients: FloatArray) -> ScoreShape:
        """The density, finely."""
        return score_shape(self.fine_places, self.fine_design @ coefficients)

    @cached_property
    def bends(self) -> FloatArray:
        """(k, k) matrix B, cᵀBc the integral of the squared third derivative, by differences of coefficients."""
        differences = np.diff(np.eye(self.design.shape[1]), 3, axis=0)
        bends: FloatArray = differences.T @ differences / self.knot_spacing**5
        return bends

    @cached_property
    def directions(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Orthonormal: (k, 2) the straight line and the parabola; (k, k - 3) the bent, and (k - 3,) how much they are.

        Left out is the constant, which densities do not have.
        """
        bent, basis = np.linalg.eigh(self.bends)
        k = len(bent)
        trend = np.linspace(-1.0, 1.0, k)
        unbent = np.linalg.qr(np.stack([np.ones(k), trend, trend**2], axis=1))[0][:, 1:]
        return unbent, basis[:, 3:], bent[3:]


@dataclass(frozen=True, eq=False)
class CavityFit:
    """The penalised likelihood of a spline, given each item's cavity.

    Attributes:
        basis: of the log density.
        log_kernels: (n_items, g) log of each cavity's density at the places, up to a constant.
        smoothing: weight of the squared third derivative, `bends`.
    """

    basis: LogDensitySplines
    log_kernels: FloatArray
    smoothing: float

    @classmethod
    def of(cls, basis: LogDensitySplines, means: FloatArray, variances: FloatArray, smoothing: float) -> "CavityFit":
        """Items known by (n_items,) means, logits, and variances, logits²; smoothing is the penalty's weight."""
        kernels = (basis.places - means[:, None]) ** 2 * (-0.5 / variances)[:, None]
        return cls(basis, kernels, smoothing)

    @cached_property
    def penalty(self) -> FloatArray:
        """(k, k) matrix P; the log prior density of a spline is -cᵀPc/2, up to a constant."""
        return self.smoothing * self.basis.bends

    def improved(self, coefficients: FloatArray) -> tuple[FloatArray, float]:
        """Coefficients after a few Newton steps, and how much the objective has gained."""
        began = value = self._objective(coefficients)
        for _ in range(_NEWTON_STEPS):
            slope, curvature = self._derivatives(coefficients)
            bent, basis = np.linalg.eigh(curvature)
            step = basis @ ((basis.T @ slope) / np.maximum(np.abs(bent), _LEAST_CURVATURE))
            for halving in range(_MOST_HALVINGS):
                tried = coefficients + 0.5**halving * step
                reached = self._objective(tried)
                if reached > value:
                    coefficients, value = tried, reached
                    break
            else:
                break
        return coefficients, value - began

    def log_occam(self, coefficients: FloatArray) -> float:
        """Log of prior density times volume of the spline's bends, by Laplace, beside a parabola's."""
        unbent, bent, bends = self.basis.directions
        curvature = self._derivatives(coefficients)[1]
        every = np.concatenate([unbent, bent], axis=1)
        whole = _log_determinant(every.T @ curvature @ every)
        prior = float(np.log(self.smoothing * bends).sum()) - float(coefficients @ self.penalty @ coefficients)
        return 0.5 * (prior - whole + _log_determinant(unbent.T @ curvature @ unbent))

    def _log_density(self, coefficients: FloatArray) -> FloatArray:
        from scipy.special import logsumexp

        values = self.basis.design @ coefficients
        return np.asarray(values - logsumexp(values))

    def _objective(self, coefficients: FloatArray) -> float:
        from scipy.special import logsumexp

        fitted = logsumexp(self.log_kernels + self._log_density(coefficients), axis=1).sum()
        return float(fitted) - 0.5 * float(coefficients @ self.penalty @ coefficients)

    def _derivatives(self, coefficients: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(k,) slope of the objective and (k, k) its curvature, negated."""
        design, log_density = self.basis.design, self._log_density(coefficients)
        density = np.exp(log_density)
        placed = self.log_kernels + log_density
        placed = np.exp(placed - placed.max(axis=1, keepdims=True))
        placed /= placed.sum(axis=1, keepdims=True)
        n = len(placed)
        mean, means, found = density @ design, placed @ design, placed.sum(axis=0)
        slope = design.T @ (found - n * density) - self.penalty @ coefficients
        curvature = design.T @ ((n * density - found)[:, None] * design)
        curvature += means.T @ means - n * np.outer(mean, mean) + self.penalty
        return slope, curvature


def _log_determinant(matrix: FloatArray) -> float:
    """Of a matrix that should be positive definite; what is not counts as hardly curved."""
    return float(np.log(np.maximum(np.linalg.eigvalsh(matrix), _LEAST_CURVATURE)).sum())
