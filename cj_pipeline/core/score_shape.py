"""A prior of the scores whose shape is not normal: one density for every item, kept as a table of its logarithm.

Here: the density, its scale, and its moments against a normal distribution, which expectation propagation asks for. Not
here: how a shape is learned from a batch, and how much it is believed (`prior_shape`).
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

_CAVITY_REACH: Final = 8.0
_COARSELY: Final = 4
# Points over at most 16 standard deviations of a cavity: a tenth of one apart, where sums equal integrals.
_QUADRATURE_PLACES: Final = np.linspace(0.0, 1.0, 161)


@dataclass(frozen=True, eq=False)
class ScoreShape:
    """Items drawn independently from one density on a stretch of the scale. Make it with `score_shape`.

    Attributes:
        places: (k,) logits, ascending, evenly spaced; the density is zero outside.
        log_density: (k,) its logarithm there, between them linear.
    """

    places: FloatArray
    log_density: FloatArray

    @cached_property
    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of the density, logits."""
        masses = np.exp(self.log_density)
        masses /= masses.sum()
        mean = float(masses @ self.places)
        return mean, float(masses @ (self.places - mean) ** 2) ** 0.5

    @property
    def sd(self) -> float:
        """Standard deviation of the density, logits."""
        return self.moments[1]

    def stretched(self, factor: float) -> "ScoreShape":
        """The same shape, `factor` times as wide."""
        return replace(self, places=self.places * factor, log_density=self.log_density - np.log(factor))

    def tilted_moments(
        self, cavity_means: FloatArray, cavity_variances: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Mean, variance and log integral of density(x) N(x; cavity), for each of n items.

        The trapezoidal rule within 8 standard deviations of the cavity about where the product is highest.

        Args:
            cavity_means, cavity_variances: (n,) logits and logits².
        """
        low, high = self.places[0], self.places[-1]
        coarse, log_coarse = self.places[::_COARSELY], self.log_density[::_COARSELY]
        product = log_coarse - (coarse - cavity_means[:, None]) ** 2 * (0.5 / cavity_variances)[:, None]
        apart = float(coarse[1] - coarse[0])
        near = coarse[product.argmax(axis=1)]
        # a narrow cavity has its peak between two of them
        centre = np.clip(cavity_means, near - apart, near + apart).clip(low, high)
        reach = _CAVITY_REACH * np.sqrt(cavity_variances)
        start, end = np.maximum(centre - reach, low), np.minimum(centre + reach, high)
        x = start[:, None] + (end - start)[:, None] * _QUADRATURE_PLACES
        exponent = np.interp(x, self.places, self.log_density)
        exponent -= (x - cavity_means[:, None]) ** 2 * (0.5 / cavity_variances)[:, None]
        top = exponent.max(axis=1)
        mass = np.exp(exponent - top[:, None])
        mass[:, [0, -1]] *= 0.5
        total = mass.sum(axis=1)
        means = np.vecdot(mass, x) / total
        spacing = (end - start) * _QUADRATURE_PLACES[1]
        # what is narrower than the spacing may be anywhere between two points
        variances = np.vecdot(mass, (x - means[:, None]) ** 2) / total
        variances = np.maximum(variances, spacing**2 / 12.0)
        return means, variances, top + np.log(total * spacing) - 0.5 * np.log(2.0 * np.pi * cavity_variances)


def score_shape(places: FloatArray, log_density: FloatArray) -> ScoreShape:
    """The shape with this log density up to a constant, at (k,) evenly spaced places, logits."""
    spacing = float(places[1] - places[0])
    top = float(log_density.max())
    return ScoreShape(places, log_density - top - np.log(spacing * np.exp(log_density - top).sum()))
