"""What a judgment is worth, against integration, inverses and the bivariate normal distribution."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, norm

from cj_pipeline.core.judgment_worth import (
    expected_fall,
    expected_information,
    grade_boundaries,
    importance_for_grades,
    learn,
)


def some_posterior(n, seed):
    """Means and a covariance of full rank, logits."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n, 2 * n)) / math.sqrt(2 * n)
    return rng.normal(0, 1.5, n), root @ root.T + 0.05 * np.eye(n)


def contrast(n, i, j):
    return np.eye(n)[i] - np.eye(n)[j]


def test_one_judgment_is_expected_to_have_the_information_that_integration_gives():
    for difference in (0.0, 0.5, 2.0, 4.0):
        for variance in (0.01, 0.5, 2.0):
            grid = difference + math.sqrt(variance) * np.linspace(-8, 8, 4001)
            density = np.exp(-0.5 * np.linspace(-8, 8, 4001) ** 2)
            p = 1.0 / (1.0 + np.exp(-grid))
            exact = float((density * p * (1 - p)).sum() / density.sum())
            approximate = float(expected_information(np.array(difference), np.array(variance)))
            assert approximate == pytest.approx(exact, rel=0.12)


@settings(deadline=None)
@given(n=st.integers(3, 7), seed=st.integers(0, 2**32), weighted=st.booleans())
def test_the_expected_fall_is_that_of_the_weighted_variances_when_the_precision_grows_by_the_judgment(
    n, seed, weighted
):
    means, covariance = some_posterior(n, seed)
    root = np.random.default_rng(seed).normal(size=(n, 2))
    importance = root @ root.T if weighted else None
    difference = means[:, None] - means[None, :]
    fall = expected_fall(difference, covariance, importance)
    for i in range(n):
        for j in range(i):
            x = contrast(n, i, j)
            weight = float(expected_information(difference[i, j], x @ covariance @ x))
            after = np.linalg.inv(np.linalg.inv(covariance) + weight * np.outer(x, x))
            exact = np.trace((np.eye(n) if importance is None else importance) @ (covariance - after))
            assert fall[i, j] == pytest.approx(exact, rel=1e-6, abs=1e-12)
            assert fall[i, j] == pytest.approx(fall[j, i], rel=1e-9)


@settings(deadline=None)
@given(n=st.integers(2, 7), seed=st.integers(0, 2**32), number=st.integers(0, 5))
def test_after_several_judgments_the_precision_has_grown_by_each_of_them(n, seed, number):
    means, covariance = some_posterior(n, seed)
    rng = np.random.default_rng(seed)
    pairs = [tuple(rng.choice(n, 2, replace=False).tolist()) for _ in range(number)]
    difference = means[:, None] - means[None, :]
    precision = np.linalg.inv(covariance)
    for i, j in pairs:
        x = contrast(n, i, j)
        precision = precision + float(expected_information(difference[i, j], x @ covariance @ x)) * np.outer(x, x)
    learnt = covariance.copy()
    learn(learnt, difference, pairs)
    np.testing.assert_allclose(learnt, np.linalg.inv(precision), atol=1e-9)


def test_boundaries_lie_between_the_means_of_neighbouring_grades_in_the_order_of_the_scores():
    means = np.array([0.3, 2.0, 4.0, -3.0, 8.0, 1.0])
    rows, step = grade_boundaries(means, {1: "B", 2: "B", 3: "A", 4: "F"})
    np.testing.assert_allclose(rows @ means, [0.0, 5.5])
    np.testing.assert_allclose(rows.sum(axis=1), 1.0)
    assert step == pytest.approx((8.0 + 3.0) / 2)


@pytest.mark.parametrize("grades", [{}, {1: "B"}, {1: "B", 2: "B"}])
def test_without_two_grades_there_is_no_boundary_and_no_step(grades):
    rows, step = grade_boundaries(np.arange(4.0), grades)
    assert rows.shape == (0, 4)
    assert step == 0.0


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32), blur=st.sampled_from([0.0, 0.5]))
def test_what_counts_for_grades_falls_as_their_expected_ranked_probability_score_does(seed, blur):
    """Before a judgment F(1 - F), F = Φ(m/√v); after it Φ(m/√v) - Φ₂(m/√v, m/√v; Δ/v), for a small fall Δ of v."""
    n = 6
    means, covariance = some_posterior(n, seed)
    boundaries, _ = grade_boundaries(means, {0: "A", 1: "B", 2: "C"})
    students = np.array([3, 4, 5])
    x = contrast(n, 4, 1)
    after = np.linalg.inv(np.linalg.inv(covariance) + 1e-3 * np.outer(x, x))
    fall = 0.0
    for student in students:
        for row in boundaries:
            c = np.eye(n)[student] - row
            v = c @ covariance @ c + blur**2
            z = float(c @ means) / math.sqrt(v)
            correlation = float(c @ (covariance - after) @ c) / v
            both = multivariate_normal([0.0, 0.0], [[1.0, correlation], [correlation, 1.0]]).cdf([z, z])
            fall += both - norm.cdf(z) ** 2
    importance = importance_for_grades(means, covariance, students, boundaries, blur)
    assert np.trace(importance @ (covariance - after)) == pytest.approx(fall, rel=0.02, abs=2e-8)
    np.testing.assert_allclose(importance, importance.T, atol=1e-12)
    assert np.linalg.eigvalsh(importance)[0] > -1e-9 * np.trace(importance)
