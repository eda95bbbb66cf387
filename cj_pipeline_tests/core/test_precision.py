"""The stop rule `precision`: its measures against brute force, and what it takes to stop."""

import itertools

import numpy as np
import pytest

from cj_pipeline.core.bradley_terry import fit_bradley_terry
from cj_pipeline.core.grades import GradeProjection
from cj_pipeline.core.precision import (
    WavePrecision,
    expected_rps,
    grade_sd,
    low_reliability,
    precise_enough,
    wave_precision,
)

DISTRIBUTIONS = [
    {"F": 1.0, "E": 0.0, "D": 0.0},
    {"F": 0.5, "E": 0.5, "D": 0.0},
    {"F": 0.2, "E": 0.3, "D": 0.5},
    {"F": 0.05, "E": 0.15, "D": 0.3, "C": 0.3, "B": 0.15, "A": 0.05},
]


@pytest.mark.parametrize("probabilities", DISTRIBUTIONS)
def test_the_expected_rps_is_the_mean_rps_over_truths_drawn_from_the_forecast(probabilities):
    forecast = np.cumsum(list(probabilities.values()))
    total = 0.0
    for truth, chance in enumerate(probabilities.values()):
        observed = np.arange(len(probabilities)) >= truth
        total += chance * np.sum((forecast - observed)[:-1] ** 2)
    assert expected_rps(probabilities) == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("probabilities", DISTRIBUTIONS)
def test_the_sd_of_a_grade_is_half_the_root_of_the_squared_distance_of_two_draws_doubled(probabilities):
    masses = list(enumerate(probabilities.values()))
    # Var X = E (X - X')² / 2
    squared = sum(p * q * (i - j) ** 2 for (i, p), (j, q) in itertools.product(masses, masses))
    assert grade_sd(probabilities) == pytest.approx((squared / 2) ** 0.5, abs=1e-12)


def test_low_reliability_is_near_one_for_a_sharp_scale_and_near_nothing_for_noise():
    rng = np.random.default_rng(1)
    scores = rng.normal(0, 2, 30)
    scores -= scores.mean()
    centring = np.eye(30) - 1 / 30
    assert low_reliability(scores, 1e-6 * centring, 1) > 0.999
    # independent noise much wider than the scale: squared correlations of 29 dimensions
    assert low_reliability(scores, 1e6 * centring, 1) < 0.01
    # in between: r² of scores with scores + noise of equal variance is about a half
    between = low_reliability(scores, float(scores.var()) * centring, 1)
    assert 0.25 < between < 0.5
    assert low_reliability(np.zeros(5), np.eye(5), 1) == 0.0


def test_low_reliability_grows_with_judgments():
    rng = np.random.default_rng(2)
    truth = rng.normal(0, 1.5, 20)
    found = []
    for rounds in (2, 8, 40):
        first = np.tile(np.arange(20), rounds)
        second = (first + rng.integers(1, 20, first.size)) % 20
        wins = rng.random(first.size) < 1 / (1 + np.exp(truth[second] - truth[first]))
        fit = fit_bradley_terry(np.where(wins, first, second), np.where(wins, second, first), 20)
        found.append(low_reliability(*fit.integrated_moments(), 3))
    assert found == sorted(found)
    assert found[-1] > 0.85


def projection(essay_id, probabilities, *, is_anchor=False):
    return GradeProjection(
        essay_id=essay_id,
        is_anchor=is_anchor,
        known_grade="E" if is_anchor else None,
        available=bool(probabilities),
        probabilities=probabilities,
    )


def test_a_student_without_a_grade_is_not_known_and_anchors_do_not_count():
    sharp = {"F": 0.0, "E": 1.0, "D": 0.0}
    measured = wave_precision(
        3,
        full=True,
        judgments=[9, 7, 8],
        projections=[projection("s1", sharp), projection("s2", {}), projection("k", DISTRIBUTIONS[2], is_anchor=True)],
        reliability_low=lambda: 0.5,
    )
    assert (measured.students_known, measured.mean_rps, measured.least_judgments) == (0.5, 0.0, 7)
    assert measured.reliability_low is None
    without = wave_precision(
        3, full=True, judgments=[9], projections=[projection("s1", {})], reliability_low=lambda: 0.5
    )
    assert (without.students_known, without.mean_rps, without.reliability_low) == (None, None, 0.5)


def wave(number, *, known=None, rps=None, low=0.0, least=6, full=True):
    return WavePrecision(
        wave=number, full=full, least_judgments=least, students_known=known, mean_rps=rps, reliability_low=low
    )


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], None),
        ([wave(1, known=0.95, rps=0.3)], None),
        ([wave(1, known=0.95, rps=0.3), wave(2, known=0.9, rps=0.2)], "precise"),
        ([wave(1, known=0.95, rps=0.3), wave(2, known=0.89, rps=0.2)], None),
        ([wave(1, known=0.89, rps=0.3), wave(2, known=0.95, rps=0.2)], None),
        ([wave(1, known=0.95, rps=0.3, full=False), wave(2, known=0.95, rps=0.2)], None),
        ([wave(1, known=0.95, rps=0.3), wave(2, known=0.95, rps=0.2, least=5)], None),
        ([wave(1, known=0.95, rps=0.3, least=5), wave(2, known=0.95, rps=0.2)], None),
        # with grades, reliability is not asked
        ([wave(1, known=0.5, rps=0.3, low=0.9), wave(2, known=0.5, rps=0.2, low=0.9)], None),
        ([wave(1, low=0.8), wave(2, low=0.8)], "precise"),
        ([wave(1, low=0.8), wave(2, low=0.79)], None),
        # five waves: four falls of 1 % each, of 2 % each, of nothing
        ([wave(i, known=0.2, rps=0.5 * 0.99**i) for i in range(5)], "precision_flat"),
        ([wave(i, known=0.2, rps=0.5 * 0.98**i) for i in range(5)], None),
        ([wave(i, known=0.2, rps=0.5) for i in range(4)], None),
        ([wave(i, known=0.2, rps=0.5, full=i != 2) for i in range(5)], None),
        ([wave(i, low=0.2) for i in range(9)], None),
    ],
)
def test_a_batch_may_stop_when_it_is_precise_twice_or_when_judgments_hardly_help(history, expected):
    assert precise_enough(history) == expected
