"""Pólya–Gamma variables against their published moments, their Laplace transform and each other."""

from math import cosh, sinh, sqrt, tanh

import numpy as np
import pytest

from cj_pipeline.core import polya_gamma
from cj_pipeline.core.polya_gamma import draw_polya_gamma, polya_gamma_moments


@pytest.mark.parametrize("c", [0.02, 0.5, 2.0, 9.0])
def test_moments_are_those_published_by_polson_scott_and_windle(c):
    mean, variance = polya_gamma_moments(3, c)
    assert mean == pytest.approx(3 / (2 * c) * tanh(c / 2), rel=1e-6)
    assert variance == pytest.approx(3 / (4 * c**3) * (sinh(c) - c) / cosh(c / 2) ** 2, rel=1e-4)


@pytest.mark.parametrize("count", [1, 4, 400])
@pytest.mark.parametrize("c", [0.0, 1.0, -3.1, 3.2, 20.0, 800.0])
def test_draws_have_the_published_mean_and_variance(count, c):
    size = 40_000
    draws = draw_polya_gamma(np.full(size, count), np.full(size, c), np.random.default_rng(7))
    mean, variance = polya_gamma_moments(count, c)
    assert (draws > 0).all()
    assert abs(draws.mean() - mean) < 4.5 * sqrt(variance / size)
    # the spread of a sample variance, from the sample's own fourth moment
    error = sqrt(((draws - mean) ** 2).var() / size)
    assert abs(draws.var() - variance) < 4.5 * error


@pytest.mark.parametrize(("count", "c"), [(1, 0.0), (1, 2.5), (1, 6.0), (3, 1.0)])
@pytest.mark.parametrize("t", [0.5, 5.0])
def test_draws_have_the_laplace_transform_that_defines_the_law(count, c, t):
    size = 40_000
    values = np.exp(-t * draw_polya_gamma(np.full(size, count), np.full(size, c), np.random.default_rng(8)))
    expected = (cosh(c / 2) / cosh(sqrt((c**2 / 2 + t) / 2))) ** count
    assert abs(values.mean() - expected) < 4.5 * values.std() / sqrt(size)


def test_the_normal_stand_in_for_large_counts_has_the_quantiles_of_the_exact_sum(monkeypatch):
    counts, tilts = np.full(4000, 171), np.full(4000, 1.0)
    stand_in = draw_polya_gamma(counts, tilts, np.random.default_rng(1))
    monkeypatch.setattr(polya_gamma, "EXACT_COUNT", 1000)
    exact = draw_polya_gamma(counts, tilts, np.random.default_rng(2))
    at = [0.025, 0.25, 0.5, 0.75, 0.975]
    # sampling error of the outer quantiles is .04 sd each; skewness .18 moves them by at most .09 sd
    assert np.abs(np.quantile(stand_in, at) - np.quantile(exact, at)).max() < 0.25 * exact.std()
