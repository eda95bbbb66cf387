"""Grade projection, against hand calculation, scipy's own routines and simulated exams."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import optimize, stats

from cj_pipeline.core import grades
from cj_pipeline.core.errors import GradeScaleError, InputError
from cj_pipeline.core.grade_scale import BUILTIN_SCALES, GradeScale
from cj_pipeline.core.grades import (
    ConfidenceLabel,
    GradeProjection,
    GradeProjectionResult,
    fit_isotonic,
    grade_probabilities,
    label_confidence,
    project_grades,
)

LEGACY = BUILTIN_SCALES["eng5_np_legacy_9_step"]
SWEDISH = BUILTIN_SCALES["swedish_8_anchor"]
FIVE = GradeScale("five", ("E", "D", "C", "B", "A"))
PASS = GradeScale("pass", ("E", "A"))


def project(
    scale: GradeScale,
    anchors: dict[str, tuple[str, float]],
    students: dict[str, float],
    *,
    se: float | dict[str, float] = 0.5,
    components: dict[str, int] | None = None,
) -> GradeProjectionResult:
    scores = {anchor: score for anchor, (_, score) in anchors.items()} | students
    return project_grades(
        scale,
        scores=scores,
        ses=se if isinstance(se, dict) else dict.fromkeys(scores, se),
        components=components or dict.fromkeys(scores, 0),
        known_grades={anchor: grade for anchor, (grade, _) in anchors.items()},
    )


def by_id(result: GradeProjectionResult) -> dict[str, GradeProjection]:
    return {projection.essay_id: projection for projection in result.projections}


def expected_step(projection: GradeProjection) -> float:
    return sum(step * probability for step, probability in enumerate(projection.probabilities.values()))


# Isotonic fit and centres


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(-50, 50).map(lambda v: round(v, 3)), st.floats(0.01, 100)), min_size=1, max_size=30)
)
def test_the_isotonic_fit_agrees_with_scipy(pairs):
    values, weights = (np.array(column) for column in zip(*pairs, strict=True))
    fit, blocks = fit_isotonic(values, weights)
    reference = optimize.isotonic_regression(values, weights=weights)
    np.testing.assert_allclose(fit, reference.x, rtol=1e-9, atol=1e-9)
    for block in np.unique(blocks):
        members = blocks == block
        assert fit[members][0] == pytest.approx(np.average(values[members], weights=weights[members]), abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_centres_are_the_least_squares_fit_under_the_smallest_gap(seed):
    rng = np.random.default_rng(seed)
    steps = np.r_[np.arange(5), rng.integers(0, 5, 6)]
    scores = 0.8 * steps + rng.normal(0, 1.0, steps.size)
    ses = rng.uniform(0.2, 1.0, steps.size)
    ids = [f"a{place}" for place in range(steps.size)]
    result = project(
        FIVE,
        {name: (FIVE.labels[step], score) for name, step, score in zip(ids, steps, scores, strict=True)},
        {"s": 0.0},
        se=dict(zip([*ids, "s"], [*ses, 0.3], strict=True)),
    )
    assert result.spread is not None
    root_weights = 1 / np.sqrt(result.spread**2 + ses**2)
    gap = np.polyfit(steps, scores, 1, w=root_weights)[0]
    # centres = start + cumulated increments, each increment at least a third of the gap
    design = np.c_[np.ones(steps.size), steps[:, None] > np.arange(4)] * root_weights[:, None]
    bounds = ([-np.inf, *[gap / 3] * 4], np.inf)
    solution = optimize.lsq_linear(design, scores * root_weights, bounds=bounds, tol=1e-14).x
    assert min(solution[1:]) == pytest.approx(gap / 3, rel=1e-4), "the smallest gap should bind in this example"
    np.testing.assert_allclose(list(result.centres.values()), np.cumsum(solution), atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_the_spread_is_the_posterior_mean_of_its_logarithm_by_brute_force(seed):
    rng = np.random.default_rng(seed)
    steps = np.r_[np.arange(5), rng.integers(0, 5, 8)]
    scores = 1.2 * steps + rng.normal(0, 0.8, steps.size)
    ses = rng.uniform(0.2, 0.5, steps.size)
    ids = [f"a{place}" for place in range(steps.size)]
    result = project(
        FIVE,
        {name: (FIVE.labels[step], score) for name, step, score in zip(ids, steps, scores, strict=True)},
        {},
        se=dict(zip(ids, ses, strict=True)),
    )
    assert result.spread is not None
    gap = np.polyfit(steps, scores, 1, w=1 / np.sqrt(result.spread**2 + ses**2))[0]
    line = np.c_[np.ones(steps.size), steps]
    walk = (gap / 2) ** 2 * np.minimum(steps[:, None], steps)
    logs = np.log(gap / 2) + np.linspace(-1.5, 1.5, 401)
    log_posterior = [
        # a very wide normal prior on level and slope stands in for the restricted likelihood
        stats.multivariate_normal.logpdf(
            scores - scores.mean(), cov=np.diag(math.exp(2 * log) + ses**2) + walk + 1e5 * line @ line.T
        )
        + stats.norm.logpdf(log, np.log(gap / 2), 0.5)
        for log in logs
    ]
    weights = np.exp(np.array(log_posterior) - max(log_posterior))
    assert math.log(result.spread) == pytest.approx(np.average(logs, weights=weights), abs=0.01)


def test_a_grade_without_anchors_lies_between_its_neighbours_on_the_score_scale():
    result = project(FIVE, {"e": ("E", 0.0), "d": ("D", 1.0), "a": ("A", 7.0)}, {"s": 3.0})
    assert list(result.centres.values()) == pytest.approx([0, 1, 3, 5, 7])


def test_centre_uncertainty_agrees_with_hand_calculation_between_and_beyond_the_anchors():
    scale = GradeScale("s", ("E", "D", "C"), below_lowest="F")
    result = project(scale, {"e": ("E", 0.0), "c": ("C", 2.0)}, {"s": 0.3}, se=0.5)
    # two anchors say nothing about the spread, so it is the prior's: half the gap of 1
    assert result.spread == pytest.approx(0.5, rel=1e-9)
    one = 0.5**2 + 0.5**2
    assert list(result.centres.values()) == pytest.approx([-1, 0, 1, 2], abs=1e-9)
    # F = 1.5·e − 0.5·c: one unseen step, and a gap of half the sum of two steps
    variances = [(1.5**2 + 0.5**2) * one + 0.5**2 * (1 + 2 * 0.5**2), one, one / 2 + 0.5**2 * 2 * 0.5**2, one]
    assert [se**2 for se in result.centre_ses.values()] == pytest.approx(variances, rel=1e-9)


def test_grades_whose_anchors_are_in_the_wrong_order_stay_apart_by_a_third_of_the_mean_gap():
    anchors = {"e": ("E", 0.0), "d": ("D", 2.2), "c": ("C", 1.8), "b": ("B", 3.0), "a": ("A", 4.0)}
    result = project(FIVE, anchors, {"s": 2.0})
    gap = np.polyfit(range(5), [score for _, score in anchors.values()], 1)[0]
    assert result.centres["D"] == pytest.approx(2.0 - gap / 6)
    assert result.centres["C"] == pytest.approx(2.0 + gap / 6)
    assert [(found.lower_graded, found.higher_graded) for found in result.inversions] == [("d", "c")]
    assert result.inversions[0].z == pytest.approx(0.4 / math.sqrt(0.5))


# Probabilities


def test_two_grades_agree_with_hand_calculation():
    # spread² = 1 (half the gap of 2), so each density has variance 1 + .25 + (1 + .25) = 2.5
    result = project(PASS, {"e": ("E", -1.0), "a": ("A", 1.0)}, {"s": 0.5}, se=0.5)
    student = by_id(result)["s"]
    assert student.grade == "A"
    assert student.confidence == pytest.approx(1 / (1 + math.exp(-0.4)), rel=1e-9)
    assert student.probabilities == pytest.approx({"E": 0.401312340, "A": 0.598687660}, abs=1e-9)
    assert student.label is ConfidenceLabel.MID
    assert student.nearest_boundary == "E|A"
    assert student.boundary_distance_se == pytest.approx(0.5 / math.sqrt(0.25 + 1.25), rel=1e-9)


def test_probabilities_agree_with_direct_evaluation_of_the_normal_densities():
    rng = np.random.default_rng(5)
    anchors = {f"a{step}": (label, step + rng.normal(0, 0.4)) for step, label in enumerate(SWEDISH.labels)}
    students = {f"s{number}": score for number, score in enumerate(rng.uniform(1, 6, 20))}
    ses = {essay: rng.uniform(0.2, 1.5) for essay in [*anchors, *students]}
    result = project(SWEDISH, anchors, students, se=ses)
    assert min(result.centres.values()) < 1 < 6 < max(result.centres.values())
    centres, centre_ses = (np.array(list(part.values())) for part in (result.centres, result.centre_ses))
    for essay, score in students.items():
        density = np.array(SWEDISH.priors) * stats.norm.pdf(
            score, centres, np.sqrt(result.spread**2 + ses[essay] ** 2 + centre_ses**2)
        )
        projection = by_id(result)[essay]
        assert list(projection.probabilities.values()) == pytest.approx(list(density / density.sum()), abs=1e-12)
        assert projection.confidence == max(projection.probabilities.values())
        assert projection.probabilities[projection.grade] == projection.confidence
        middles = (centres[:-1] + centres[1:]) / 2
        nearest = int(np.argmin(abs(score - middles)))
        assert projection.nearest_boundary == f"{SWEDISH.labels[nearest]}|{SWEDISH.labels[nearest + 1]}"
        middle_se = (centre_ses[nearest] + centre_ses[nearest + 1]) / 2
        assert projection.boundary_distance_se == pytest.approx(
            abs(score - middles[nearest]) / math.sqrt(ses[essay] ** 2 + middle_se**2)
        )


def test_equally_sure_centres_give_plain_normal_densities():
    scores, centres, priors = np.linspace(-4, 8, 25), np.array([0.0, 1.0, 2.5, 4.0]), np.array([0.1, 0.2, 0.3, 0.4])
    found = grade_probabilities(
        scores, np.full(25, 0.6), centres=centres, centre_variances=np.full(4, 0.3), spread=0.5, priors=priors
    )
    density = priors * stats.norm.pdf(scores[:, None], centres, math.sqrt(0.25 + 0.36 + 0.3))
    np.testing.assert_allclose(found, density / density.sum(axis=1, keepdims=True), rtol=1e-9)


def test_scores_far_outside_the_scale_give_the_end_grades_and_no_overflow():
    # anchors at two neighbouring grades near the top leave the low centres very unsure: no reason to find them on top
    projections = by_id(
        project(LEGACY, {"c": ("C+", 0.0), "b": ("B", 1.0)}, {"low": -400.0, "top": 6.0, "high": 400.0})
    )
    for essay, label in (("low", "F"), ("top", "A"), ("high", "A")):
        assert projections[essay].grade == label
        assert math.fsum(projections[essay].probabilities.values()) == pytest.approx(1, abs=1e-12)


@st.composite
def grade_models(draw: st.DrawFn, *, equally_sure: bool) -> dict[str, np.ndarray]:
    gaps = draw(st.lists(st.floats(0.01, 3), min_size=1, max_size=9))
    size = len(gaps) + 1
    priors = np.array(draw(st.lists(st.floats(0.01, 1), min_size=size, max_size=size)))
    count = 1 if equally_sure else size
    variances = np.array(draw(st.lists(st.floats(0, 20), min_size=count, max_size=count)))
    return {
        "centres": np.cumsum([-4.0, *gaps]),
        "centre_variances": np.broadcast_to(variances, size),
        "priors": priors / priors.sum(),
    }


def check_higher_score_is_not_lower_grade(scores: list[float], se: float, model: dict[str, np.ndarray]) -> None:
    probabilities = grade_probabilities(np.array(scores), np.array([se, se]), spread=0.4, **model)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-12)
    reaching = np.cumsum(probabilities[:, ::-1], axis=1)
    assert np.all(reaching[1] >= reaching[0] - 1e-9)
    steps = np.arange(model["centres"].size)
    assert probabilities[1] @ steps >= probabilities[0] @ steps - 1e-8


@settings(deadline=None)
@given(
    scores=st.tuples(st.floats(-12, 25), st.floats(-12, 25)).map(sorted),
    se=st.floats(0.01, 3),
    model=grade_models(equally_sure=True),
)
def test_a_higher_score_never_means_a_lower_grade_when_the_centres_are_equally_sure(scores, se, model):
    check_higher_score_is_not_lower_grade(scores, se, model)


@settings(deadline=None)
@given(
    beyond=st.tuples(st.floats(0, 30), st.floats(0, 30)).map(sorted),
    se=st.floats(0.01, 3),
    model=grade_models(equally_sure=False),
)
def test_beyond_the_outermost_centres_it_never_does_however_unsure_they_are(beyond, se, model):
    top, bottom = model["centres"][-1], model["centres"][0]
    check_higher_score_is_not_lower_grade([top + beyond[0], top + beyond[1]], se, model)
    check_higher_score_is_not_lower_grade([bottom - beyond[1], bottom - beyond[0]], se, model)


def test_probabilities_do_not_jump_at_the_outermost_centres():
    model = {
        "centres": np.array([0.0, 1.0, 2.0]),
        "centre_variances": np.array([9.0, 0.5, 1.0]),
        "priors": np.full(3, 1 / 3),
    }
    for edge in (0.0, 2.0):
        around = grade_probabilities(np.array([edge - 1e-7, edge + 1e-7]), np.full(2, 0.5), spread=0.4, **model)
        np.testing.assert_allclose(around[0], around[1], atol=1e-6)


@settings(deadline=None)
@given(score=st.floats(-3, 8), ses=st.tuples(st.floats(0.05, 4), st.floats(0.05, 4)).map(sorted))
def test_a_less_certain_score_gives_flatter_probabilities(score, ses):
    probabilities = grade_probabilities(
        np.array([score, score]),
        np.array(ses),
        centres=np.arange(6.0),
        centre_variances=np.full(6, 0.1),
        spread=0.4,
        priors=np.full(6, 1 / 6),
    )
    entropies = stats.entropy(probabilities, axis=1)
    assert entropies[1] >= entropies[0] - 1e-9


def test_a_score_that_says_nothing_leaves_the_priors():
    anchors = {label: (label, float(step)) for step, label in enumerate(SWEDISH.labels)}
    ses = dict.fromkeys(anchors, 0.3) | {"s": 1e6}
    student = by_id(project(SWEDISH, anchors, {"s": 3.0}, se=ses))["s"]
    assert list(student.probabilities.values()) == pytest.approx(SWEDISH.priors, abs=1e-6)
    assert (student.grade, student.label) == ("C", ConfidenceLabel.LOW)


@settings(max_examples=25, deadline=None)
@given(shift=st.floats(-100, 100), seed=st.integers(0, 1000))
def test_adding_a_constant_to_all_scores_moves_the_centres_and_changes_nothing_else(shift, seed):
    rng = np.random.default_rng(seed)
    anchors = {f"a{step}": (label, 1.1 * step + rng.normal(0, 0.7)) for step, label in enumerate(LEGACY.labels)}
    students = {f"s{number}": score for number, score in enumerate(rng.uniform(-1, 10, 5))}
    here = project(LEGACY, anchors, students)
    there = project(
        LEGACY,
        {anchor: (grade, score + shift) for anchor, (grade, score) in anchors.items()},
        {student: score + shift for student, score in students.items()},
    )
    assert list(there.centres.values()) == pytest.approx([centre + shift for centre in here.centres.values()])
    assert there.spread == pytest.approx(here.spread)
    for one, other in zip(here.projections, there.projections, strict=True):
        assert list(other.probabilities.values()) == pytest.approx(list(one.probabilities.values()), abs=1e-7)
        assert other.boundary_distance_se == pytest.approx(one.boundary_distance_se, abs=1e-6)


def test_exact_anchors_are_recovered_and_students_at_their_centres_get_their_grades():
    centres = {label: 1.5 * step - 6 for step, label in enumerate(LEGACY.grades)}
    anchors = {f"{label}/{copy}": (label, score) for label, score in centres.items() for copy in (1, 2)}
    result = project(LEGACY, anchors, {f"student {label}": score for label, score in centres.items()}, se=1e-4)
    assert result.centres == pytest.approx({"F": -7.5} | centres)
    for label in centres:
        student = by_id(result)[f"student {label}"]
        assert (student.grade, student.label) == (label, ConfidenceLabel.HIGH)
        assert by_id(result)[f"{label}/1"].grade == label


def test_an_expert_grade_may_be_the_label_below_the_lowest_grade():
    anchors = {label: (label, 2.0 * step) for step, label in enumerate(LEGACY.labels)} | {"F": ("F", -5.0)}
    assert project(LEGACY, anchors, {"s": -5.0}).centres["F"] == pytest.approx(-5.0)


@pytest.mark.parametrize(
    ("confidence", "label"), [(1.0, "HIGH"), (0.75, "HIGH"), (0.7499, "MID"), (0.5, "MID"), (0.4999, "LOW")]
)
def test_the_label_follows_from_the_confidence(confidence, label):
    assert label_confidence(confidence) == label


# Anchors


def test_an_anchor_is_projected_by_a_calibration_without_it():
    anchors = {f"a{step}": (label, 1.2 * step) for step, label in enumerate(FIVE.labels)} | {"odd": ("E", 4.8)}
    projection = by_id(project(FIVE, anchors, {"s": 0.0}))["odd"]
    without = project(FIVE, {name: anchor for name, anchor in anchors.items() if name != "odd"}, {"odd": 4.8})
    assert (projection.is_anchor, projection.known_grade, projection.grade) == (True, "E", "A")
    assert projection.probabilities == pytest.approx(by_id(without)["odd"].probabilities)
    assert by_id(without)["odd"].known_grade is None


def test_an_anchor_that_the_others_cannot_check_says_so_while_students_get_grades():
    result = project(PASS, {"e": ("E", -1.0), "a": ("A", 1.0)}, {"s": 0.5})
    assert result.available
    assert not by_id(result)["a"].available
    assert by_id(result)["a"].reason.startswith("An anchor is checked against the other anchors")
    assert by_id(result)["a"].known_grade == "A"


def test_inversions_are_listed_surest_first_and_ties_are_none():
    anchors = {"e": ("E", 1.0), "d": ("D", 0.8), "c": ("C", 0.0), "b": ("B", 2.0), "a": ("A", 2.0), "a2": ("A", 5.0)}
    found = [(pair.lower_graded, pair.higher_graded) for pair in project(FIVE, anchors, {}).inversions]
    assert found == [("e", "c"), ("d", "c"), ("e", "d")]


# Refusals


def test_without_anchors_every_essay_says_so():
    result = project(FIVE, {}, {"s": 0.0, "t": 1.0})
    assert not result.available
    assert [p.available for p in result.projections] == [False, False]
    assert {p.reason for p in result.projections} == {result.reason}
    assert "no anchors" in result.reason
    assert (result.centres, result.spread, result.inversions) == ({}, None, ())


@pytest.mark.parametrize(
    ("anchors", "words"),
    [
        ({"a": ("C", 0.0), "b": ("C", 1.0)}, "all have the same expert grade"),
        ({"a": ("E", 1.0), "b": ("A", 1.0)}, "all have the same score"),
        ({"a": ("E", 1.0), "b": ("A", 0.0)}, "did not score higher"),
        ({"a": ("E", 0.0), "b": ("C", 1.0), "c": ("A", 0.0)}, "did not score higher"),
    ],
)
def test_anchors_that_cannot_carry_grades_give_a_reason_and_no_grade(anchors, words):
    result = project(FIVE, anchors, {"s": 0.4})
    assert not result.available
    student = by_id(result)["s"]
    assert words in student.reason
    assert result.reason == student.reason
    assert (student.grade, student.confidence, student.label, student.probabilities) == (None, None, None, {})


def test_students_without_a_path_to_the_anchors_get_none_while_others_get_grades():
    anchors = {"e": ("E", -1.0), "a": ("A", 1.0), "lone": ("A", 0.0)}
    components = {"e": 0, "a": 0, "lone": 1, "with": 0, "apart": 2, "beside the lone": 1}
    students = {"with": 0.5, "apart": 0.5, "beside the lone": 0.5}
    result = project(PASS, anchors, students, components=components)
    assert (result.available, result.reason) == (True, None)
    assert by_id(result)["with"].available
    assert "was not compared with the anchors" in by_id(result)["apart"].reason
    assert "same expert grade" in by_id(result)["beside the lone"].reason


def test_each_component_is_calibrated_on_its_own_anchors_only():
    here = {"e": ("E", -1.0), "a": ("A", 1.0)}
    there = {"e2": ("E", 9.0), "a2": ("A", 15.0)}
    components = dict.fromkeys([*here, "s", "t"], "x") | dict.fromkeys([*there, "u"], "y")
    both = project(PASS, here | there, {"s": 0.5, "t": 0.1, "u": 10.0}, components=components)
    assert by_id(both)["s"] == by_id(project(PASS, here, {"s": 0.5}))["s"]
    assert by_id(both)["u"] == by_id(project(PASS, there, {"u": 10.0}))["u"]
    assert both.centres == pytest.approx({"E": -1, "A": 1}), "the centres shown are those of the larger component"
    assert both.inversions == ()


def test_an_essay_without_a_score_is_left_out_and_disturbs_no_other():
    anchors = {"e": ("E", -1.0), "a": ("A", 1.0)}
    plain = by_id(project(PASS, anchors, {"s": 0.5}))["s"]
    scores = {"s": 0.5, "unseen": math.nan}
    with_unseen = by_id(
        project(
            PASS,
            anchors | {"lost": ("A", 0.0)},
            scores,
            se=dict.fromkeys([*anchors, *scores], 0.5) | {"lost": math.inf},
        )
    )
    assert with_unseen["s"] == plain
    assert "has no score" in with_unseen["unseen"].reason
    assert "has no score" in with_unseen["lost"].reason


def test_input_that_does_not_fit_together_is_refused_by_name():
    good = {
        "scores": {"e": 0.0, "a": 1.0},
        "ses": {"e": 0.1, "a": 0.1},
        "components": {"e": 0, "a": 0},
        "known_grades": {"e": "E", "a": "A"},
    }
    for change, error, message in (
        ({"ses": {"e": 0.1}}, InputError, "without a standard error: a;"),
        ({"components": {"a": 0}}, InputError, "without a component: e;"),
        ({"ses": {"e": 0.1, "a": -0.1}}, InputError, "negative standard error: a;"),
        ({"known_grades": {"z": "E"}}, InputError, "without a score: z;"),
        ({"known_grades": {"e": "G"}}, GradeScaleError, "'G' is not on the scale"),
    ):
        with pytest.raises(error, match=message):
            project_grades(PASS, **(good | change))


def test_projections_keep_the_order_of_the_scores_and_cannot_be_changed():
    result = project(FIVE, {"z": ("E", 0.0), "b": ("A", 3.0)}, {"y": 1.0, "a": 2.0})
    assert [p.essay_id for p in result.projections] == ["z", "b", "y", "a"]
    with pytest.raises(ValidationError, match="frozen"):
        result.projections[0].grade = "A"


# Simulated exams


def simulate_exams(count: int, seed: int, spread_share: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, shape (exams, 24, 10), and true grade steps, shape (exams, 24), of students on the legacy scale.

    Twelve anchors, one on each grade and three more. Steps between centres are gamma with mean 1.25 and cv 1/2; the
    spread is log-normal about half a step, or fixed.
    """
    rng = np.random.default_rng(seed)
    found, truth = [], []
    for _ in range(count):
        centres = np.r_[0, np.cumsum(rng.gamma(4, 1.25 / 4, 9))]
        spread = 1.25 * (spread_share or math.exp(rng.normal(math.log(0.5), 0.5)))
        steps = np.r_[np.arange(1, 10), rng.integers(1, 10, 3), rng.choice(10, 24, p=LEGACY.label_priors)]
        ses = rng.uniform(0.3, 0.6, steps.size)
        scores = centres[steps] + rng.normal(0, spread, steps.size) + rng.normal(0, ses)
        ids = [f"e{place}" for place in range(steps.size)]
        result = project_grades(
            LEGACY,
            scores=dict(zip(ids, scores.tolist(), strict=True)),
            ses=dict(zip(ids, ses.tolist(), strict=True)),
            components=dict.fromkeys(ids, 0),
            known_grades={name: LEGACY.labels[step] for name, step in zip(ids[:12], steps[:12], strict=True)},
        )
        found.append([list(projection.probabilities.values()) for projection in result.projections[12:]])
        truth.append(steps[12:])
    return np.array(found), np.array(truth)


def excess_confidence(probabilities: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Mean of confidence − accuracy over exams, and its Monte Carlo standard error."""
    by_exam = (probabilities.max(axis=2) - (probabilities.argmax(axis=2) == truth)).mean(axis=1)
    return float(by_exam.mean()), float(by_exam.std(ddof=1) / math.sqrt(by_exam.size))


def test_confidence_is_as_high_as_accuracy_or_a_little_lower_in_simulated_exams():
    probabilities, truth = simulate_exams(150, seed=11)
    excess, mc_se = excess_confidence(probabilities, truth)
    assert mc_se < 0.013
    assert -0.05 - 2 * mc_se < excess < 2 * mc_se
    # "this grade or better" at every grade: expected calibration error over tenths of equal size
    predicted = np.cumsum(probabilities[:, :, ::-1], axis=2)[:, :, -2::-1].ravel()
    observed = (truth[:, :, None] >= np.arange(1, 10)).ravel()
    parts = np.array_split(np.argsort(predicted), 10)
    assert np.mean([abs(observed[part].mean() - predicted[part].mean()) for part in parts]) < 0.02


def test_confidence_is_not_much_too_high_when_grades_overlap_more_than_assumed():
    excess, mc_se = excess_confidence(*simulate_exams(80, seed=12, spread_share=0.72))
    assert excess < 0.03 + 2 * mc_se


def test_the_simulation_catches_confidence_that_ignores_the_uncertainty_of_centres(monkeypatch):
    def careless(scores, ses, *, centres, centre_variances, spread, priors):
        return grade_probabilities(
            scores, ses, centres=centres, centre_variances=0 * centre_variances, spread=spread, priors=priors
        )

    monkeypatch.setattr(grades, "grade_probabilities", careless)
    excess, mc_se = excess_confidence(*simulate_exams(150, seed=11))
    assert excess > 2 * mc_se


def test_more_anchors_make_every_centre_surer():
    anchors = {f"{label}/{copy}": (label, step + 0.1 * copy) for step, label in enumerate("EDCBA") for copy in (-1, 1)}
    few = project(FIVE, anchors, {})
    many = project(FIVE, anchors | {f"{name}+": anchor for name, anchor in anchors.items()}, {})
    for label in FIVE.labels:
        assert many.centre_ses[label] < few.centre_ses[label]
    assert all(low < high for low, high in pairwise(many.centres.values()))
