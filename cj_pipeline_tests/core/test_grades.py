"""Grade projection: its properties, its refusals, and simulated exams. The model itself: `test_grade_model`."""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from cj_pipeline.core import grades
from cj_pipeline.core.bradley_terry import BradleyTerryFit, fit_bradley_terry
from cj_pipeline.core.errors import GradeScaleError, InputError
from cj_pipeline.core.grade_scale import BUILTIN_SCALES, GradeScale
from cj_pipeline.core.grades import (
    ConfidenceLabel,
    GradeProjection,
    GradeProjectionResult,
    ScoreBasis,
    basis_of_grades,
    label_confidence,
    project_grades,
)
from cj_pipeline.core.judgment_table import judgment_table
from cj_pipeline.core.posterior import draw_posterior
from cj_pipeline.core.score_prior import known_items

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


# Centres


def gaps(result: GradeProjectionResult) -> list[float]:
    return [high - low for low, high in pairwise(result.centres.values())]


def test_grades_without_anchors_lie_at_equal_steps_between_their_neighbours():
    result = project(FIVE, {"e": ("E", 0.0), "d": ("D", 1.0), "a": ("A", 7.0)}, {"s": 3.0}, se=0.1)
    assert gaps(result)[1] == pytest.approx(gaps(result)[2], abs=1e-6) == pytest.approx(gaps(result)[3], abs=1e-6)
    assert result.centres["A"] - result.centres["D"] == pytest.approx(6, abs=0.5)
    assert gaps(result)[0] < gaps(result)[1]


def test_centres_are_less_sure_the_farther_they_are_from_anchors():
    scale = GradeScale("s", ("E", "D", "C", "B", "A"), below_lowest="F")
    result = project(scale, {"e": ("E", 0.0), "c": ("C", 2.0)}, {"s": 0.3}, se=0.1)
    ses = result.centre_ses
    assert ses["E"] < ses["F"]
    assert ses["C"] < ses["B"] < ses["A"]
    # the unseen steps at the top are all alike
    assert gaps(result)[3] == pytest.approx(gaps(result)[4])


def test_grades_whose_anchors_are_in_the_wrong_order_are_still_in_order():
    anchors = {"e": ("E", 0.0), "d": ("D", 2.2), "c": ("C", 1.8), "b": ("B", 3.0), "a": ("A", 4.0)}
    result = project(FIVE, anchors, {"s": 2.0})
    assert min(gaps(result)) == gaps(result)[1] > 0.2
    assert [(found.lower_graded, found.higher_graded) for found in result.inversions] == [("d", "c")]
    assert result.inversions[0].z == pytest.approx(0.4 / math.sqrt(0.5))
    assert result.inversions[0].probability == pytest.approx(stats.norm.cdf(0.4 / math.sqrt(0.5)))


# Probabilities


def test_two_grades_are_separated_halfway_between_their_anchors():
    result = project(PASS, {"e": ("E", -1.0), "a": ("A", 1.0)}, {"low": -0.5, "high": 0.5, "middle": 0.0})
    found = by_id(result)
    assert [found[essay].grade for essay in ("low", "high")] == ["E", "A"]
    assert found["middle"].probabilities == pytest.approx({"E": 0.5, "A": 0.5})
    assert found["low"].probabilities["E"] == pytest.approx(found["high"].probabilities["A"])
    assert found["middle"].boundary_distance_se == pytest.approx(0, abs=1e-6)
    (boundary,) = result.boundaries
    assert (boundary.boundary, boundary.is_pass) == ("E|A", True)
    assert boundary.score == pytest.approx(0, abs=1e-6)
    # two anchors with a variance of spread² + SE² each, at their mean
    assert boundary.se > math.sqrt(0.5**2 / 2)
    assert found["high"].would_change < 0.5
    assert found["middle"].would_change == pytest.approx(0.5, abs=1e-6)


def test_the_grade_is_the_median_and_the_boundary_the_nearest_one():
    rng = np.random.default_rng(5)
    anchors = {f"a{step}": (label, step + rng.normal(0, 0.4)) for step, label in enumerate(SWEDISH.labels)}
    students = {f"s{number}": score for number, score in enumerate(rng.uniform(-1, 8, 40))}
    result = project(SWEDISH, anchors, students, se=0.6)
    located = {boundary.boundary: boundary for boundary in result.boundaries}
    for projection in result.projections:
        reached = np.cumsum(list(projection.probabilities.values()))
        step = SWEDISH.labels.index(projection.grade)
        assert reached[step] >= 0.5 and (step == 0 or reached[step - 1] < 0.5)
        assert projection.confidence == projection.probabilities[projection.grade]
        assert projection.label is label_confidence(projection.confidence)
    for essay, score in students.items():
        distance = {name: abs(score - boundary.score) for name, boundary in located.items()}
        assert distance[by_id(result)[essay].nearest_boundary] == pytest.approx(min(distance.values()), abs=1e-6)


def test_a_class_of_high_grades_makes_high_grades_likelier_and_equal_shares_take_no_notice():
    anchors = {label: (label, 1.5 * step) for step, label in enumerate(FIVE.labels)}
    one = by_id(project(FIVE, anchors, {"s": 3.75}))["s"]
    many = project(FIVE, anchors, {"s": 3.75} | {f"t{i}": 6.0 for i in range(200)})
    among = by_id(many)["s"]
    assert among.probabilities_uniform == pytest.approx(one.probabilities_uniform)
    assert one.probabilities == pytest.approx(one.probabilities_uniform), "one student's class says nothing about it"
    assert among.probabilities["A"] > one.probabilities["A"] + 0.1
    assert max(many.grade_shares, key=many.grade_shares.get) == "A"
    assert math.fsum(many.grade_shares.values()) == pytest.approx(1)


def test_scores_far_outside_the_scale_give_the_end_grades_and_no_overflow():
    # anchors at two neighbouring grades near the top leave the low centres very unsure: no reason to find them on top
    projections = by_id(
        project(LEGACY, {"c": ("C+", 0.0), "b": ("B", 1.0)}, {"low": -400.0, "top": 6.0, "high": 400.0})
    )
    for essay, label in (("low", "F"), ("top", "A"), ("high", "A")):
        assert projections[essay].grade == label
        assert math.fsum(projections[essay].probabilities.values()) == pytest.approx(1, abs=1e-12)


@settings(deadline=None, max_examples=25)
@given(
    anchors=st.lists(st.tuples(st.sampled_from(FIVE.labels), st.floats(-0.5, 0.5)), min_size=2, max_size=7),
    beyond=st.tuples(st.floats(0, 30), st.floats(0, 30)).map(sorted),
    se=st.floats(0.05, 3),
)
def test_beyond_the_outermost_centres_a_higher_score_never_gives_a_lower_grade(anchors, beyond, se):
    placed = {f"a{i}": (grade, FIVE.labels.index(grade) + off) for i, (grade, off) in enumerate(anchors)}
    result = project(FIVE, placed, {})
    if not result.centres:
        return
    top, bottom = result.centres["A"], result.centres["E"]
    students = {"up": top + beyond[0], "upper": top + beyond[1]}
    students |= {"down": bottom - beyond[0], "lower": bottom - beyond[1]}
    found = by_id(project(FIVE, placed, students, se=dict.fromkeys(placed, 0.5) | dict.fromkeys(students, se)))
    grade = {essay: FIVE.index(found[essay].grade_uniform) for essay in students}
    assert grade["upper"] >= grade["up"] >= grade["down"] >= grade["lower"]


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
    assert {label: result.centres[label] for label in centres} == pytest.approx(centres, abs=0.05)
    assert -8 < result.centres["F"] < -7
    for label in centres:
        student = by_id(result)[f"student {label}"]
        assert (student.grade, student.label) == (label, ConfidenceLabel.HIGH)
        assert by_id(result)[f"{label}/1"].grade == label


def test_an_expert_grade_may_be_the_label_below_the_lowest_grade():
    anchors = {label: (label, 2.0 * step) for step, label in enumerate(LEGACY.labels)} | {"F": ("F", -5.0)}
    with_it = project(LEGACY, anchors, {"s": -5.0})
    without = project(LEGACY, {label: anchor for label, anchor in anchors.items() if label != "F"}, {"s": -5.0})
    assert with_it.centres["F"] < without.centres["F"] - 0.5
    assert with_it.centre_ses["F"] < without.centre_ses["F"]


@pytest.mark.parametrize(
    ("confidence", "label"), [(1.0, "HIGH"), (0.75, "HIGH"), (0.7499, "MID"), (0.5, "MID"), (0.4999, "LOW")]
)
def test_the_label_follows_from_the_confidence(confidence, label):
    assert label_confidence(confidence) == label


# Anchors


def test_an_anchor_is_projected_by_a_calibration_without_it():
    anchors = {f"a{step}": (label, 1.2 * step) for step, label in enumerate(FIVE.labels)} | {"odd": ("E", 2.4)}
    projection = by_id(project(FIVE, anchors, {"s": 0.0}))["odd"]
    without = project(FIVE, {name: anchor for name, anchor in anchors.items() if name != "odd"}, {"odd": 2.4})
    assert (projection.is_anchor, projection.known_grade, projection.grade) == (True, "E", "C")
    # the grid of mean steps is laid around the anchors' line, and differs
    assert projection.probabilities == pytest.approx(by_id(without)["odd"].probabilities, abs=0.02)
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
    assert by_id(both)["s"] == by_id(project(PASS, here, {"s": 0.5, "t": 0.1}))["s"]
    assert by_id(both)["u"] == by_id(project(PASS, there, {"u": 10.0}))["u"]
    assert both.centres == project(PASS, here, {"s": 0.5, "t": 0.1}).centres, "those of the larger component"
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


@pytest.mark.parametrize(("width", "allowed"), [(0.6, 0.05), (1.2, 0.01)])
def test_beside_placed_anchors_only_the_students_prior_is_taken_out(width, allowed):
    """Normal observations: with and without a prior around a free level, grades from equal shares are the same."""
    rng = np.random.default_rng(4)
    anchors, students = 8, 20
    ids = [f"a{i}" for i in range(anchors)] + [f"s{i}" for i in range(students)]
    known = {f"a{i}": FIVE.grades[i // 2] for i in range(anchors)}
    truth = np.concatenate([np.repeat(np.arange(4.0), 2) * 1.2, 1.8 + width * rng.standard_normal(students)])
    ses = np.concatenate([np.full(anchors, 0.25), np.full(students, 0.6)])
    observed = truth + ses * rng.standard_normal(truth.size)
    plain = {"components": dict.fromkeys(ids, 0), "known_grades": known, "ses": dict(zip(ids, ses, strict=True))}
    expected = project_grades(FIVE, scores=dict(zip(ids, observed, strict=True)), covariance=np.diag(ses**2), **plain)

    precision = np.diag(ses**-2.0)
    others = slice(anchors, None)
    shared = 100.0**2 / (width**2 + students * 100.0**2)
    precision[others, others] += (np.eye(students) - shared) / width**2
    covariance = np.linalg.inv(precision)
    means = covariance @ (observed / ses**2)
    found = project_grades(
        FIVE,
        scores=dict(zip(ids, means, strict=True)),
        covariance=covariance,
        prior_sd=width,
        anchors_placed=True,
        **plain,
    )
    for one, other in zip(found.projections, expected.projections, strict=True):
        off = [abs(share - other.probabilities_uniform[grade]) for grade, share in one.probabilities_uniform.items()]
        assert max(off) < allowed


def grades_of(fit: BradleyTerryFit, known: dict[str, str], basis: ScoreBasis) -> np.ndarray:
    """(n_items, K) probabilities under equal shares, by what grades are to rest on."""
    ids = [f"e{i:02d}" for i in range(fit.n_items)]
    found = project_grades(
        LEGACY,
        scores=dict(zip(ids, basis.scores.tolist(), strict=True)),
        ses=dict(zip(ids, fit.standard_errors().tolist(), strict=True)),
        components=dict.fromkeys(ids, 0),
        known_grades=known,
        covariance=basis.covariance,
        prior_sd=basis.prior_sd,
        anchors_placed=basis.anchors_placed,
    )
    return np.array([list(one.probabilities_uniform.values()) for one in found.projections])


def judged_exam(seed: int, step: float, students: np.ndarray, per_student: int) -> tuple[np.ndarray, ...]:
    """Eight anchors a step apart, then students, each judged against anchors by the model: winners, losers, anchors."""
    rng = np.random.default_rng(seed)
    anchors = step * (np.arange(8) - 3.5)
    truth = np.concatenate([anchors, students])
    i = np.repeat(8 + np.arange(students.size), per_student)
    j = rng.integers(0, 8, i.size)
    wins = rng.random(i.size) < 1.0 / (1.0 + np.exp(truth[j] - truth[i]))
    return np.where(wins, i, j), np.where(wins, j, i), anchors


KNOWN = {f"e{k:02d}": LEGACY.grades[k] for k in range(8)}


def test_grades_rest_on_the_moments_that_a_gibbs_sampler_finds_and_not_on_the_mode():
    winners, losers, _ = judged_exam(3, 2.0, np.linspace(-8.0, 8.0, 8), 8)
    fit = fit_bradley_terry(winners, losers, 16, prior_sd=4.0)
    draws = draw_posterior(judgment_table(winners, losers, 16), seed=1, n_draws=4000, width_prior=4.0).scores
    exact = grades_of(fit, KNOWN, ScoreBasis(draws.mean(axis=0), np.cov(draws.T), 4.0, anchors_placed=False))
    found = grades_of(fit, KNOWN, basis_of_grades(fit))
    by_mode = grades_of(fit, KNOWN, ScoreBasis(fit.scores, fit.covariance(), 4.0, anchors_placed=False))
    assert np.abs(found - exact).mean() < 0.5 * np.abs(by_mode - exact).mean()


def test_anchors_that_a_bank_has_placed_bring_grades_nearer_to_the_truth():
    rps = {"with": 0.0, "without": 0.0}
    for seed in range(8):
        students = np.random.default_rng(seed).normal(0.0, 0.8, 10)
        winners, losers, anchors = judged_exam(seed, 1.2, students, 6)
        covariance = 0.05 * np.eye(8) + 0.01 * np.outer(anchors, anchors)
        known = known_items(np.arange(8), anchors, covariance, 18)
        truth = np.abs(students[:, None] - anchors).argmin(axis=1)
        for name, items in (("with", known), ("without", None)):
            fit = fit_bradley_terry(winners, losers, 18, known=items)
            shares = grades_of(fit, KNOWN, basis_of_grades(fit))[8:]
            # the label below the lowest grade comes first
            reached = np.arange(shares.shape[1]) >= truth[:, None] + 1
            rps[name] += float(((shares.cumsum(axis=1) - reached) ** 2).sum())
    assert rps["with"] < rps["without"]


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


@pytest.mark.slow
def test_confidence_is_as_high_as_accuracy_in_simulated_exams():
    probabilities, truth = simulate_exams(100, seed=11)
    excess, mc_se = excess_confidence(probabilities, truth)
    assert mc_se < 0.016
    assert abs(excess) < 2.5 * mc_se
    # "this grade or better" at every grade: expected calibration error over tenths of equal size
    predicted = np.cumsum(probabilities[:, :, ::-1], axis=2)[:, :, -2::-1].ravel()
    observed = (truth[:, :, None] >= np.arange(1, 10)).ravel()
    parts = np.array_split(np.argsort(predicted), 10)
    assert np.mean([abs(observed[part].mean() - predicted[part].mean()) for part in parts]) < 0.02


@pytest.mark.slow
def test_confidence_is_not_much_too_high_when_grades_overlap_more_than_assumed():
    excess, mc_se = excess_confidence(*simulate_exams(80, seed=12, spread_share=0.72))
    assert excess < 0.03 + 2 * mc_se


@pytest.mark.slow
def test_the_simulation_catches_confidence_that_ignores_the_uncertainty_of_centres(monkeypatch):
    def careless(belief, labels, expert_error):
        found = calibrate(belief, labels, expert_error)
        blind = dataclasses.replace(
            found.everyone, covariance=0 * found.everyone.covariance, with_centres=0 * found.everyone.with_centres
        )
        return dataclasses.replace(found, everyone=blind)

    calibrate = grades.calibrate
    monkeypatch.setattr(grades, "calibrate", careless)
    excess, mc_se = excess_confidence(*simulate_exams(100, seed=11))
    assert excess > 2 * mc_se


def test_more_anchors_make_every_centre_surer():
    anchors = {f"{label}/{copy}": (label, step + 0.1 * copy) for step, label in enumerate("EDCBA") for copy in (-1, 1)}
    few = project(FIVE, anchors, {})
    many = project(FIVE, anchors | {f"{name}+": anchor for name, anchor in anchors.items()}, {})
    for label in FIVE.labels:
        assert many.centre_ses[label] < few.centre_ses[label]
    assert all(low < high for low, high in pairwise(many.centres.values()))
