"""Regressions on traits against scipy's, by partial residuals, and against simulated judges who reward length."""

import numpy as np
import pytest
from scipy.stats import linregress

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.validity import association_given_grade, group_differences


def anchors(seed, n=14):
    rng = np.random.default_rng(seed)
    grades = np.repeat(np.arange(n // 2), 2).astype(float)
    return rng, grades, rng.normal(0, 1, n)


def test_it_is_the_partial_regression_that_scipy_gives_on_residuals():
    rng, grades, trait = anchors(1)
    scores = 1.2 * grades + 0.5 * trait + rng.normal(0, 0.4, grades.size)
    found = association_given_grade(scores, grades, trait)
    left = [values - np.polyval(np.polyfit(grades, values, 1), grades) for values in (trait, scores)]
    by_scipy = linregress(*left)
    assert found.slope == pytest.approx(by_scipy.slope)
    # scipy counts one coefficient too few: the grade's
    error = by_scipy.stderr * np.sqrt((grades.size - 2) / (grades.size - 3))
    assert found.high - found.slope == pytest.approx(2.2009852 * error)  # t table, 11 degrees of freedom
    assert found.essays == grades.size


def test_intervals_cover_the_true_slope_as_often_as_they_say():
    covered = 0
    for seed in range(400):
        rng, grades, trait = anchors(seed)
        scores = grades + 0.3 * trait + rng.normal(0, 0.7, grades.size)
        found = association_given_grade(scores, grades, trait)
        covered += found.low <= 0.3 <= found.high
        assert (found.p_value < 0.05) == (not found.low <= 0 <= found.high)
    assert 365 <= covered <= 394  # binomial(400, .95), 0.1 % on either side


def test_a_trait_that_only_goes_with_the_grade_is_no_fault():
    rng, grades, noise = anchors(3, 40)
    longer_when_better = grades + noise
    scores = 1.5 * grades + rng.normal(0, 0.5, grades.size)
    found = association_given_grade(scores, grades, longer_when_better)
    assert found.low < 0 < found.high
    assert np.corrcoef(scores, longer_when_better)[0, 1] > 0.9


def test_essays_without_score_grade_or_trait_are_left_out():
    rng, grades, trait = anchors(4)
    scores = grades + rng.normal(0, 0.5, grades.size)
    gaps = np.array([0, 3, 5])
    holed = scores.copy()
    holed[gaps] = np.nan
    kept = np.delete(np.arange(grades.size), gaps)
    assert association_given_grade(holed, grades, trait) == association_given_grade(
        scores[kept], grades[kept], trait[kept]
    )


def test_what_cannot_be_told_is_not_told():
    _, grades, trait = anchors(5)
    assert association_given_grade(grades, grades, np.full(grades.size, 250.0)) is None
    assert association_given_grade(grades, grades, 2 * grades + 1) is None
    assert association_given_grade(grades[:5], grades[:5], trait[:5]) is None
    assert association_given_grade([], [], []) is None
    # essays of a single grade are all of the same grade
    assert association_given_grade(trait, np.ones(trait.size), np.arange(trait.size)) is not None
    with pytest.raises(InputError, match="equally long"):
        association_given_grade(grades, grades, trait[:3])


def test_groups_are_held_against_all_others_of_the_same_grade():
    rng, grades, _ = anchors(6, 60)
    groups = np.where(np.arange(60) % 3 == 0, "x", "y").tolist()
    scores = grades + 0.8 * (np.array(groups) == "x") + rng.normal(0, 0.1, 60)
    found = group_differences(scores, grades, groups)
    assert list(found) == ["x", "y"]
    assert found["x"].low < 0.8 < found["x"].high
    assert found["y"].slope == pytest.approx(-found["x"].slope)
    groups[0] = None
    assert group_differences(scores, grades, groups)["x"].essays == 59
