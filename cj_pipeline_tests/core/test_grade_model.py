"""The model of grades against brute force: importance sampling, dense algebra, and leaving out for real."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cj_pipeline.core import grade_model
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.grade_model import believe, calibrate, cuts, differences, fit_shares, standing
from cj_pipeline.core.grade_scale import BUILTIN_SCALES, GradeScale
from cj_pipeline.core.grades import GradeProjectionResult, project_grades

THREE = GradeScale("three", ("E", "C", "A"))
SWEDISH = BUILTIN_SCALES["swedish_8_anchor"]
PRIOR_SD = 1.5


def laplacian(rng: np.random.Generator, n: int, strength: float = 2.0) -> np.ndarray:
    """Information of judgments: shifts of all scores alike cost nothing."""
    weights = np.triu(strength * rng.random((n, n)), 1)
    weights += weights.T
    return np.diag(weights.sum(axis=1)) - weights


def exam(seed: int, grades: list[int], students: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Information matrix, scores under a prior, and their covariance; anchors first."""
    rng = np.random.default_rng(seed)
    n = len(grades) + students
    information = laplacian(rng, n)
    truth = np.concatenate([np.array(grades) - 1.0, rng.normal(0, 1, students)]) + rng.normal(0, 0.3, n)
    posterior = np.linalg.inv(information + np.eye(n) / PRIOR_SD**2)
    return information, posterior @ information @ truth, posterior


def project(
    scores: np.ndarray, covariance: np.ndarray, grades: list[int], scale: GradeScale = THREE, **options: float | None
) -> GradeProjectionResult:
    ids = [f"e{i:03d}" for i in range(scores.size)]
    return project_grades(
        scale,
        scores=dict(zip(ids, scores.tolist(), strict=True)),
        ses=dict.fromkeys(ids, 1.0),
        components=dict.fromkeys(ids, 0),
        known_grades={ids[i]: scale.labels[grade] for i, grade in enumerate(grades)},
        covariance=covariance,
        **({"prior_sd": PRIOR_SD} | options),
    )


def uniform(result: GradeProjectionResult) -> np.ndarray:
    return np.array([list(p.probabilities_uniform.values()) for p in result.projections])


# The whole model


class BruteForce:
    """Gamma steps drawn from their prior on the model's grid, everything Gaussian integrated by dense algebra."""

    def __init__(self, scores: np.ndarray, covariance: np.ndarray, grades: list[int], draws: int = 3000) -> None:
        self.precision = np.linalg.inv(covariance)
        self.linear = self.precision @ scores
        self.grades = np.array(grades)
        anchors = np.arange(len(grades))
        belief = believe(scores, np.ones(scores.size), covariance, PRIOR_SD, anchors, self.grades)
        self.steps, self.spreads = grade_model._grid(belief)
        rng = np.random.default_rng(0)
        climbs = np.array([rng.gamma(4, d / 4, (draws, 2)) for d in self.steps])
        self.centres = np.concatenate([np.zeros((len(self.steps), draws, 1)), np.cumsum(climbs, axis=2)], axis=2)
        share = np.log(self.spreads / self.steps)
        self.log_prior = -0.5 * ((share - np.log(0.5)) / 0.5) ** 2

    def posterior(self, free: list[int], expected: dict[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log evidence (grid, draws), means (grid, draws, n + 1) of scores and level, and covariance (grid, ...).

        The prior of the anchors and of `free` is taken out; `expected` essays have these grades besides the anchors.
        """
        n = self.linear.size
        rows = np.array([*range(len(self.grades)), *expected])
        grades = np.array([*self.grades, *expected.values()])
        without = np.zeros(n)
        without[[*range(len(self.grades)), *free]] = 1 / PRIOR_SD**2
        evidence, means, covariances = [], [], []
        for spread, centres, prior in zip(self.spreads, self.centres, self.log_prior, strict=True):
            # essays of known grade: (theta - level - centre)² / spread²
            onto = np.zeros((rows.size, n + 1))
            onto[np.arange(rows.size), rows] = 1
            onto[:, n] = -1
            whole = onto.T @ onto / spread**2
            whole[:n, :n] += self.precision - np.diag(without)
            target = centres[:, grades]
            linear = target @ onto / spread**2
            linear[:, :n] += self.linear
            covariance = np.linalg.inv(whole)
            value = 0.5 * np.einsum("di,ij,dj->d", linear, covariance, linear) - 0.5 * np.linalg.slogdet(whole)[1]
            value += prior - 0.5 * (target**2).sum(axis=1) / spread**2 - rows.size * np.log(spread)
            evidence.append(value)
            means.append(linear @ covariance)
            covariances.append(covariance)
        return np.array(evidence), np.array(means), np.array(covariances)


@pytest.mark.parametrize("seed", range(3))
def test_grades_agree_with_importance_sampling_of_the_whole_model(seed):
    grades = [0, 1, 1, 2]
    _, scores, covariance = exam(seed, grades, students=3)
    result = project(scores, covariance, grades)
    brute = BruteForce(scores, covariance, grades)
    for student in (4, 5, 6):
        evidence = np.array([brute.posterior([student], {student: k})[0] for k in range(3)])
        masses = np.exp(evidence - evidence.max()).sum(axis=(1, 2))
        assert uniform(result)[student] == pytest.approx(masses / masses.sum(), abs=0.01)


def test_calibration_and_boundaries_agree_with_importance_sampling():
    grades = [0, 1, 1, 2]
    _, scores, covariance = exam(7, grades, students=3)
    result = project(scores, covariance, grades)
    brute = BruteForce(scores, covariance, grades, draws=6000)
    evidence, means, covariances = brute.posterior([], {})
    weights = np.exp(evidence - evidence.max())
    weights /= weights.sum()
    by_point = weights.sum(axis=1)
    assert np.log(result.spread) == pytest.approx(by_point @ np.log(brute.spreads), abs=0.02)
    assert np.log(result.step) == pytest.approx(by_point @ np.log(brute.steps), abs=0.02)
    # a centre on the scale of published scores, whose mean is 0
    contrast = np.append(np.full(7, -1 / 7), 1.0)
    found = means @ contrast
    for label, centre, error in zip(range(3), result.centres.values(), result.centre_ses.values(), strict=True):
        at = found + brute.centres[..., label]
        mean = (weights * at).sum()
        variance = (weights * (at - mean) ** 2).sum() + by_point @ (covariances @ contrast @ contrast)
        assert centre == pytest.approx(mean, abs=0.02)
        assert error == pytest.approx(np.sqrt(variance), rel=0.03)


def test_an_anchor_left_out_is_a_student_whose_grade_nobody_knows():
    grades = [0, 0, 1, 1, 2, 2]
    _, scores, covariance = exam(3, grades, students=4)
    together = uniform(project(scores, covariance, grades))
    for anchor in range(6):
        order = [anchor, *(i for i in range(10) if i != anchor)]
        rest = [grade for i, grade in enumerate(grades) if i != anchor]
        # the anchor goes to the end, as a student
        order = [*order[1:], anchor]
        apart = uniform(project(scores[order], covariance[np.ix_(order, order)], rest))
        # the grid of mean steps is laid around another line
        assert together[anchor] == pytest.approx(apart[-1], abs=0.02)


# What judgments say


def test_a_students_own_prior_leaves_no_trace():
    grades = [0, 1, 2, 2]
    information, scores, covariance = exam(11, grades, students=1)
    # with one student and every anchor freed of its prior, all that is left is the likelihood
    likelihood = np.linalg.pinv(information)
    estimate = likelihood @ (np.linalg.inv(covariance) @ scores)
    plain = project(estimate, likelihood, grades, prior_sd=None)
    assert uniform(project(scores, covariance, grades))[4] == pytest.approx(uniform(plain)[4], abs=0.01)


def test_only_differences_of_scores_matter():
    grades = [0, 1, 2, 2]
    _, scores, covariance = exam(12, grades, students=5)
    tilt = np.linspace(-0.3, 0.5, 9)
    moved = project(scores + 40.0, covariance + tilt[:, None] + tilt + 3.0, grades)
    here = project(scores, covariance, grades)
    assert uniform(moved) == pytest.approx(uniform(here), abs=1e-9)
    assert moved.centres == pytest.approx(here.centres)
    assert [b.score for b in moved.boundaries] == pytest.approx([b.score for b in here.boundaries])


def test_correlated_errors_of_a_student_and_its_anchors_count_once():
    # student and anchors share one error, which cancels: independent errors of that size would leave much more doubt
    grades = [0, 0, 1, 1, 2, 2, 2]
    scores = np.array([-1.1, -0.9, -0.1, 0.1, 0.9, 1.1, 1.0, 0.0])
    shared = np.full((8, 8), 0.6) + 0.01 * np.eye(8)
    together = project(scores, shared, grades, prior_sd=None)
    ids = [f"e{i:03d}" for i in range(8)]
    apart = project_grades(
        THREE,
        scores=dict(zip(ids, scores.tolist(), strict=True)),
        ses=dict.fromkeys(ids, 0.61**0.5),
        components=dict.fromkeys(ids, 0),
        known_grades={ids[i]: THREE.labels[grade] for i, grade in enumerate(grades)},
    )
    assert uniform(together)[7, 1] > 0.8 > 0.55 > uniform(apart)[7, 1]


def test_anchors_count_for_less_when_experts_err():
    grades = [0, 1, 2, 2]
    _, scores, covariance = exam(13, grades, students=6)
    sure, unsure = (project(scores, covariance, grades, expert_error=q) for q in (0.0, 0.3))
    assert all(unsure.centre_ses[label] > sure.centre_ses[label] for label in THREE.labels)
    assert sure.anchors[0].leverage > unsure.anchors[0].leverage
    for bad in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match="expert_error"):
            project(scores, covariance, grades, expert_error=bad)


def test_a_covariance_of_another_size_is_refused():
    _, scores, covariance = exam(14, [0, 2], students=2)
    with pytest.raises(InputError, match=r"covariance of 4 scores"):
        project(scores, covariance[:3, :3], [0, 2])


def test_an_essay_without_judgments_of_its_own_takes_the_shares_of_the_others():
    grades = [0, 1, 2, 2]
    _, scores, covariance = exam(15, grades, students=6)
    covariance[9] = covariance[:, 9] = 0.0
    covariance[9, 9], scores[9] = PRIOR_SD**2, 0.0
    result = project(scores, covariance, grades)
    assert uniform(result)[9] == pytest.approx([1 / 3] * 3, abs=0.01)


# Parts


def test_steps_are_as_the_gamma_prior_has_them_where_no_anchor_is():
    precision, linear = np.zeros((1, 4, 4)), np.zeros((1, 4))
    precision[0, 0, 0] = 1.0  # only the lowest centre is known: N(0, 1)
    means, covariance, _, _ = grade_model._climb(precision, linear, np.array([2.0]), 6)
    assert means[0] == pytest.approx([0, 2, 4, 6])
    assert np.diag(covariance[0]) == pytest.approx([1, 2, 3, 4])


@pytest.mark.parametrize(("precision", "linear"), [(0.0, 0.0), (0.3, -2.0), (4.0, 9.0), (1e6, 2e6), (2.0, 40.0)])
def test_a_gamma_times_a_normal_agrees_with_numerical_integration(precision, linear):
    mean = 1.3
    s = np.exp(np.linspace(-18, 5, 400_001))
    log_density = 4 * np.log(4 / mean) - np.log(6) + 4 * np.log(s) - 4 * s / mean - precision * s**2 / 2 + linear * s
    top = log_density.max()
    mass = np.exp(log_density - top)
    spacing = np.log(s[1] / s[0])
    first = (mass * s).sum() / mass.sum()
    found = grade_model._gamma_times_normal(np.array([precision]), np.array([linear]), np.array([mean]))
    assert found[0][0] == pytest.approx(top + np.log(mass.sum() * spacing), abs=1e-5)
    assert found[1][0] == pytest.approx(first, rel=1e-5)
    assert found[2][0] == pytest.approx((mass * (s - first) ** 2).sum() / mass.sum(), rel=1e-3)


@settings(deadline=None, max_examples=30)
@given(
    steps=st.lists(st.floats(0.05, 3), min_size=1, max_size=8),
    spread=st.floats(0.1, 2),
    seed=st.integers(0, 100),
)
def test_at_a_cut_the_truth_is_as_likely_to_be_above_as_below(steps, spread, seed):
    centres = np.cumsum([0.0, *steps])
    weights = np.random.default_rng(seed).dirichlet(np.full(centres.size, 3.0)) + 1e-3
    found = cuts(centres, np.array(spread), weights)
    assert np.all(np.diff(found) > -1e-6)
    mass = weights * np.exp(-0.5 * ((found[:, None] - centres) / spread) ** 2)
    above = np.array([row[k + 1 :].sum() / row.sum() for k, row in enumerate(mass)])
    assert above == pytest.approx(np.full(len(steps), 0.5), abs=1e-4)


def test_shares_follow_a_class_up_to_what_it_may_count_and_leave_a_lone_student_alone():
    rng = np.random.default_rng(4)
    prior = np.array([0.2, 0.3, 0.5])
    lone = rng.random((1, 3))
    fitted = fit_shares(lone, prior)
    assert fitted.others[0] == pytest.approx(prior)
    assert fitted.probabilities[0] == pytest.approx(lone[0] * prior / (lone[0] @ prior))
    for size, counted in ((30, 30), (2000, 40)):
        truth = rng.choice(3, size, p=[0.7, 0.2, 0.1])
        likelihood = np.exp(-0.5 * ((truth + rng.normal(0, 0.3, size))[:, None] - np.arange(3)) ** 2 / 0.09)
        fitted = fit_shares(likelihood, prior)
        seen = np.bincount(truth, minlength=3) / size
        # twelve students' worth of prior, four per label
        assert fitted.everyone == pytest.approx((12 * prior + counted * seen) / (12 + counted), abs=0.03)
        assert fitted.probabilities.sum(axis=1) == pytest.approx(np.ones(size))
        shuffled = rng.permutation(size)
        assert fit_shares(likelihood[shuffled], prior).probabilities == pytest.approx(
            fitted.probabilities[shuffled], abs=1e-6
        )


def test_the_grade_at_the_exact_score_agrees_with_draws():
    grades = [0, 1, 1, 2]
    _, scores, covariance = exam(21, grades, students=2)
    belief = believe(scores, np.ones(6), covariance, PRIOR_SD, np.arange(4), np.array(grades))
    everyone = calibrate(belief, 3).everyone
    found = differences(everyone, np.array([4, 5]), belief.own_priors)
    weights = np.array([0.2, 0.5, 0.3])
    offsets = cuts(everyone.centres[:, 0], everyone.spread, weights)
    offsets -= (everyone.centres[:, 0, 1:] + everyone.centres[:, 0, :-1]) / 2
    stands = standing(found, offsets[:, None], weights)
    rng = np.random.default_rng(1)
    for essay in range(2):
        counts = np.zeros(3)
        for point in range(len(everyone.spread)):
            # scores minus centres, weighted by how well they suit any grade at all
            drawn = rng.multivariate_normal(
                found.means[point, essay], found.covariance[point, essay], 20_000, check_valid="ignore"
            )
            suits = (weights * np.exp(-0.5 * (drawn / everyone.spread[point]) ** 2)).sum(axis=1) / everyone.spread[
                point
            ]
            middles = (drawn[:, 1:] + drawn[:, :-1]) / 2 - offsets[point]
            printed = (middles > 0).sum(axis=1)
            counts += everyone.weights[point, 0] * np.bincount(printed, weights=suits, minlength=3)
        assert stands.exact[essay] == pytest.approx(counts / counts.sum(), abs=0.015)


def test_a_component_of_anchors_only_is_calibrated():
    grades = [0, 0, 1, 1, 2, 2]
    _, scores, covariance = exam(5, grades, students=0)
    result = project(scores, covariance, grades)
    assert result.available
    assert result.boundaries == (), "there is no class to tell about"
    one_more = exam(5, grades, students=0)[0]
    plain = project(
        np.linalg.pinv(one_more) @ np.linalg.inv(covariance) @ scores, np.linalg.pinv(one_more), grades, prior_sd=None
    )
    assert uniform(result) == pytest.approx(uniform(plain), abs=0.01)


# The anchor report


def anchored(odd: float) -> GradeProjectionResult:
    grades = [0, 1, 2, 3, 4, 5, 6, 7, 3, 5]
    rng = np.random.default_rng(8)
    scores = np.concatenate([np.array(grades) - 3.5, rng.normal(0, 2, 10)])
    scores[8] += odd
    return project(scores, 0.05 * np.eye(20), grades, SWEDISH, prior_sd=None)


def test_an_anchor_far_from_its_grade_is_the_one_to_replace_first():
    result = anchored(odd=3.0)
    (first,) = [check for check in result.anchors if check.replace_first]
    assert (first.essay_id, first.known_grade) == ("e008", "D+")
    assert first.misfit > 2
    assert first.probability < 0.05
    assert first.influence == max(check.influence for check in result.anchors)
    assert "e008" in result.anchor_verdict and "above" in result.anchor_verdict
    assert {(p.lower_graded, p.higher_graded) for p in result.inversions} == {
        ("e008", "e004"),
        ("e008", "e005"),
        ("e008", "e009"),
    }
    assert all(0.5 < pair.probability < 1 for pair in result.inversions)


def test_anchors_that_agree_are_all_left_in_place():
    result = anchored(odd=0.0)
    assert not any(check.replace_first for check in result.anchors)
    assert result.anchor_verdict == "Every anchor fits in with the others."
    assert all(0 < check.leverage < 1 for check in result.anchors)
    # two anchors of a grade hold its centre together, one alone holds more of it
    assert result.anchors[2].leverage > result.anchors[3].leverage


def test_anchors_that_carry_no_grades_say_so_in_the_report():
    scores = np.array([1.0, 0.0, 0.3])
    result = project(scores, 0.1 * np.eye(3), [0, 2], prior_sd=None)
    assert result.anchor_verdict.startswith("The anchors carry no grades.")
    assert [check.misfit for check in result.anchors] == [None, None]
    assert result.boundaries == ()


# The class


def test_boundary_figures_add_up_to_what_the_projections_say():
    rng = np.random.default_rng(9)
    grades = [0, 1, 2, 3, 4, 5, 6, 7, 3, 5]
    scores = np.concatenate([np.array(grades) - 3.5, rng.normal(0, 2, 30)])
    result = project(scores, 0.2 * np.eye(40), grades, SWEDISH, prior_sd=None)
    students = [p for p in result.projections if not p.is_anchor]
    assert [b.boundary for b in result.boundaries if b.is_pass] == ["F|E"]
    for number, boundary in enumerate(result.boundaries):
        above = np.array([sum(list(p.probabilities.values())[number + 1 :]) for p in students])
        printed = np.array([SWEDISH.index(p.grade) > number for p in students])
        assert boundary.share_above == pytest.approx(above.mean())
        assert boundary.false_pass == pytest.approx(np.where(printed, 1 - above, 0).mean())
        assert boundary.false_fail == pytest.approx(np.where(printed, 0, above).mean())
        assert boundary.accuracy == pytest.approx(1 - boundary.false_pass - boundary.false_fail)
        assert 0.5 <= boundary.consistency <= 1
        assert boundary.low < boundary.score < boundary.high
        assert boundary.share_low <= boundary.share_high
    assert all(low.score < high.score for low, high in zip(result.boundaries, result.boundaries[1:], strict=False))


def test_anchor_error_stays_when_students_are_judged_without_end():
    grades = [0, 1, 2, 3, 4, 5, 6, 7]
    rng = np.random.default_rng(10)
    scores = np.concatenate([np.array(grades) - 3.5, rng.normal(0, 2, 10)])
    few = np.diag([0.2] * 8 + [0.3] * 10)
    many = np.diag([0.2] * 8 + [1e-6] * 10)
    short, endless = (project(scores, v, grades, SWEDISH, prior_sd=None) for v in (few, many))
    for one, other in zip(short.boundaries, endless.boundaries, strict=True):
        assert other.se > 0.5 * one.se
    sure = [p.would_change for p in endless.projections if not p.is_anchor]
    assert max(sure) > 0.1, "where the boundary lies is not known any better"
    assert np.mean(sure) < np.mean([p.would_change for p in short.projections if not p.is_anchor])
