"""Densities fitted behind noise: scipy's splines and optimiser, importance sampling, known densities."""

import numpy as np
import pytest
from scipy.interpolate import BSpline
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import multivariate_t, norm

from cj_pipeline.core.spline_density import CavityFit, LogDensitySplines


def noisy(truth, noise, seed):
    """(n,) what is seen of each item, and with which variance."""
    return truth + noise * np.random.default_rng(seed).standard_normal(truth.size), np.full(truth.size, noise**2)


def skewed(n, seed):
    scores = 1.5 * np.random.default_rng(seed).exponential(size=n)
    return scores - scores.mean()


def fitted(basis, means, variances, smoothing):
    fit = CavityFit.of(basis, means, variances, smoothing)
    coefficients, gain = basis.parabola(means.std()), np.inf
    while gain > 1e-9:
        coefficients, gain = fit.improved(coefficients)
    return fit, coefficients


def log_likelihood(basis, means, variances, coefficients):
    """Of (..., k) splines: log of the mass that each item's density and the spline's have together, on the places."""
    log_density = coefficients @ basis.design.T
    density = np.exp(log_density - logsumexp(log_density, axis=-1, keepdims=True))
    kernels = np.exp(-0.5 * (basis.places - means[:, None]) ** 2 / variances[:, None])
    return np.log(density @ kernels.T).sum(axis=-1)


def roughness(basis, coefficients):
    """Integral of the squared third derivative over z, by scipy: constant in every stretch."""
    stretches = coefficients.size - 3
    spline = BSpline(basis.knot_spacing * np.arange(-3.0, stretches + 4.0), coefficients, 3)
    middles = basis.knot_spacing * (np.arange(stretches) + 0.5)
    return float((spline.derivative(3)(middles) ** 2).sum() * basis.knot_spacing)


def test_the_penalty_is_the_integral_of_the_squared_third_derivative():
    basis = LogDensitySplines.over(np.array([-2.0, 3.0]), 1.3)
    coefficients = np.random.default_rng(1).standard_normal(basis.design.shape[1])
    assert coefficients @ basis.bends @ coefficients == pytest.approx(roughness(basis, coefficients), rel=1e-9)


def test_a_parabola_is_a_normal_density_and_costs_nothing():
    basis = LogDensitySplines.over(np.array([-4.0, 4.0]), 1.5)
    parabola = basis.parabola(1.5)
    assert parabola @ basis.bends @ parabola == pytest.approx(0.0, abs=1e-6)
    shape = basis.shape(parabola)
    np.testing.assert_allclose(np.exp(shape.log_density), norm.pdf(shape.places, scale=1.5), atol=1e-6)
    assert shape.sd == pytest.approx(1.5, rel=1e-4)


def test_the_fit_is_where_a_general_optimiser_finds_the_penalised_likelihood_highest():
    means, variances = noisy(skewed(300, 2), 0.4, 3)
    basis = LogDensitySplines.over(means, means.std())

    def loss(coefficients):
        likelihood = log_likelihood(basis, means, variances, coefficients)
        return -likelihood + 0.5 * 0.1 * roughness(basis, coefficients)

    _, found = fitted(basis, means, variances, 0.1)
    start = basis.parabola(means.std())
    best = minimize(loss, start, method="BFGS", options={"gtol": 1e-4})
    assert loss(found) == pytest.approx(best.fun, abs=1e-3)
    assert loss(found) < loss(start) - 5.0
    shapes = basis.shape(found), basis.shape(best.x)
    np.testing.assert_allclose(np.exp(shapes[0].log_density), np.exp(shapes[1].log_density), atol=0.002)


def test_what_a_spline_is_less_than_its_maximum_worth_is_what_importance_sampling_integrates():
    means, variances = noisy(skewed(400, 4), 0.3, 5)
    basis = LogDensitySplines.over(means, means.std())
    fit, top = fitted(basis, means, variances, 0.1)
    unbent, bent, bends = basis.directions
    every = np.concatenate([unbent, bent], axis=1)

    def log_posterior(steps):
        coefficients = top + steps @ every.T
        along = coefficients @ bent
        prior = 0.5 * (np.log(0.1 * bends / (2.0 * np.pi)) - 0.1 * bends * along**2).sum(axis=-1)
        return log_likelihood(basis, means, variances, coefficients) + prior

    def curvature(directions):
        """(directions, directions) of the log posterior at its top, negated, by differences."""
        step = 1e-3
        moves = step * np.eye(directions)
        signs = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
        values = [a * b * log_posterior(a * moves[:, None] + b * moves) for a, b in signs]
        found = -sum(values) / (4.0 * step**2)
        return (found + found.T) / 2.0

    whole = curvature(every.shape[1])
    draws = multivariate_t(shape=np.linalg.inv(whole) * 1.1, df=30, seed=6)
    steps = draws.rvs(6_000)
    weights = log_posterior(steps) - draws.logpdf(steps)
    integral = logsumexp(weights) - np.log(len(steps))
    # the two directions in which nothing is preferred are a parabola's, too
    flat = np.log(2.0 * np.pi) - 0.5 * np.linalg.slogdet(whole[:2, :2])[1]
    found = log_likelihood(basis, means, variances, top) + fit.log_occam(top) + flat
    assert found == pytest.approx(integral, abs=0.2)
    assert fit.log_occam(top) < -2.0


def test_a_spline_that_is_not_let_bend_is_worth_what_a_parabola_is():
    means, variances = noisy(np.random.default_rng(7).standard_normal(200), 0.5, 8)
    basis = LogDensitySplines.over(means, means.std())
    worth = []
    for smoothing in (1.0, 1e2, 1e4, 1e6):
        fit, top = fitted(basis, means, variances, smoothing)
        worth.append(fit.log_occam(top))
    assert worth == sorted(worth)
    assert worth[-1] == pytest.approx(0.0, abs=0.01)
