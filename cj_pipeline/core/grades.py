"""Grades: what grade each essay's score stands for, going by the anchors, and how far that can be trusted.

Here: `project_grades` with the projections, boundaries and anchor report it returns, in the scale's own labels and, for
what cannot be had, in words. Not here: the statistical model (`grade_model`), the scales (`grade_scale`), and the
scores and their covariance (`bradley_terry`).

Every essay's grade is given twice: under the grades' shares as fitted to this batch's students (norm-referencing: a
strong class makes high grades likelier) and under equal shares. The first is printed; which of them counts is for a
board to decide. The printed grade is the posterior **median**: neither a higher nor a lower grade is more likely than
not, and one boundary at a time can be defended. It need not be the single most probable grade.

Two kinds of error are kept apart. A student's own comparisons err for that student alone and average out over a class.
The anchors err for all alike: a boundary that is off moves everybody. So each boundary has its own interval.
"""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cj_pipeline.core.bradley_terry import BradleyTerryFit
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.grade_model import (
    Calibration,
    Standing,
    anchor_line,
    believe,
    calibrate,
    cuts,
    differences,
    fit_shares,
    in_parts,
    likelihoods,
    middles,
    standing,
)
from cj_pipeline.core.grade_scale import GradeScale
from cj_pipeline.core.models import Value
from cj_pipeline.core.scoring import BTScoringResult

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

CONFIDENCE_HIGH: Final = 0.75
"""Probability of the printed grade from which its label is HIGH."""
CONFIDENCE_MID: Final = 0.50
"""Probability of the printed grade from which its label is MID; below it the label is LOW."""
MISFIT: Final = 2.0
"""Standard deviations by which an anchor must be off before it is called a misfit."""

_Z95: Final = 1.959963984540054
_NO_SPREAD: Final = 1e-9  # logits: scores, and neighbouring centres, closer than this are equal
_INVERSIONS_NAMED: Final = 3


class ConfidenceLabel(StrEnum):
    """How sure a grade is: its probability is at least .75 (HIGH), at least .5 (MID), or lower (LOW)."""

    HIGH = "HIGH"
    MID = "MID"
    LOW = "LOW"


class GradeProjection(Value):
    """The grade of one essay, or the reason why there is none.

    For an anchor everything comes from a calibration without that anchor, to be read beside `known_grade`; the shares
    of the grades are then the scale's own, since anchors are not drawn from the class.

    Attributes:
        grade: the posterior median: the lowest label that the truth exceeds with a probability of at most 1/2.
        confidence: its probability.
        label: see `ConfidenceLabel`.
        boundary_distance_se: expected distance from the nearest boundary over the standard deviation of that distance,
            in which the anchors' error counts. Never negative.
        nearest_boundary: the boundary nearest on the score scale, as `lower|upper`.
        would_change: probability that another grade would be printed if score and boundaries were known exactly.
        probabilities: label → probability, low to high; empty if not available.
        grade_uniform, confidence_uniform, probabilities_uniform: the same with all grades equally common beforehand.
    """

    essay_id: str
    is_anchor: bool
    known_grade: str | None
    available: bool
    reason: str | None = None
    grade: str | None = None
    confidence: float | None = None
    label: ConfidenceLabel | None = None
    boundary_distance_se: float | None = None
    nearest_boundary: str | None = None
    would_change: float | None = None
    probabilities: dict[str, float] = Field(default_factory=dict)
    grade_uniform: str | None = None
    confidence_uniform: float | None = None
    probabilities_uniform: dict[str, float] = Field(default_factory=dict)


class GradeBoundary(Value):
    """Where one grade ends and the next begins, and what that means for the class.

    Attributes:
        boundary: as `lower|upper`.
        is_pass: whether it is the boundary between failing and passing.
        score: where it lies, logits, on the scale of the scores that grades rest on: a true score there is graded
            either way. Published scores lie nearer to zero (`basis_of_grades`).
        se: its standard error from the anchors, logits. It moves all students alike.
        low, high: its 95 % interval, logits.
        share_above: expected share of students whose grade is above the boundary.
        share_low, share_high: share printed above it if it lay at `high` or at `low`: what the anchors leave open.
        accuracy: expected share of students printed on the side their grade is on.
        consistency: chance that a second judging of the same essays and anchors, as long as this one, would put a
            student on the same side; mean.
        false_pass: expected share of students printed above it whose grade is below. Of all students.
        false_fail: the other way round.
    """

    boundary: str
    is_pass: bool
    score: float
    se: float
    low: float
    high: float
    share_above: float
    share_low: float
    share_high: float
    accuracy: float
    consistency: float
    false_pass: float
    false_fail: float


class GradeInversion(Value):
    """Two anchors that the scores put in the other order than the experts.

    `z` is the difference of their scores over its standard error: how sure the scores are of their order. Above 0.
    `probability` is that of the essays' exact scores being in that order, too.
    """

    lower_graded: str
    higher_graded: str
    z: float
    probability: float


class AnchorCheck(Value):
    """How an anchor fits in with the others, which make the calibration it is checked against.

    Attributes:
        essay_id: the anchor.
        known_grade: the experts' grade.
        misfit: standard deviations by which it scores above (below, if negative) what its grade leads to expect; None
            if the other anchors do not suffice to say.
        probability: of the experts' grade, all grades being equally common; None likewise.
        leverage: by how much the centre of its grade follows its score, 0 to 1.
        influence: largest shift of a boundary, in mean steps of the scale, if it were left out; None likewise.
        replace_first: whether it is the one to replace first: of those off by `MISFIT` the most influential.
    """

    essay_id: str
    known_grade: str
    misfit: float | None
    probability: float | None
    leverage: float | None
    influence: float | None
    replace_first: bool = False


class GradeProjectionResult(Value):
    """The grades of a batch and the calibration they come from.

    If the comparisons fall into several components, each has its own calibration; centres and boundaries are those
    of the one that most essays were graded by, on the scale of its scores.

    Attributes:
        available: whether any student got a grade (any anchor, if there are no students).
        reason: why not, if not.
        projections: one per essay, in the order of the scores given.
        centres: label → centre, in logits, low to high. Empty if there is none.
        centre_ses: label → standard error of the centre, in logits.
        spread: standard deviation of true scores within a grade, in logits.
        step: mean distance of neighbouring centres, in logits.
        grade_shares: label → its share in the class as fitted, by which grades are weighed.
        boundaries: between neighbouring grades, low to high.
        anchors: one per anchor that has a score, in the order of the scores given.
        anchor_verdict: the anchor report in a sentence or two; None without anchors.
        inversions: anchors in the wrong order, surest first.
    """

    available: bool
    reason: str | None
    projections: tuple[GradeProjection, ...]
    centres: dict[str, float] = Field(default_factory=dict)
    centre_ses: dict[str, float] = Field(default_factory=dict)
    spread: float | None = None
    step: float | None = None
    grade_shares: dict[str, float] = Field(default_factory=dict)
    boundaries: tuple[GradeBoundary, ...] = ()
    anchors: tuple[AnchorCheck, ...] = ()
    anchor_verdict: str | None = None
    inversions: tuple[GradeInversion, ...] = ()


NO_ANCHORS: Final = (
    "This batch has no anchors (essays that experts have graded), so scores cannot be turned into grades."
)
NOT_CONNECTED: Final = (
    "This essay was not compared with the anchors, neither directly nor by way of other essays, "
    "so its score cannot be turned into a grade."
)
ONE_GRADE: Final = (
    "The anchors this essay was compared with all have the same expert grade; "
    "anchors with at least two different grades are needed."
)
NO_SPREAD: Final = "The anchors this essay was compared with all have the same score, so no grades can be told apart."
INVERTED: Final = (
    "Anchors with higher expert grades did not score higher than those with lower ones, "
    "so the scores cannot be turned into grades."
)
NO_SCORE: Final = "This essay has no score, because too few of its comparisons were judged."
WITHOUT_ITSELF: Final = "An anchor is checked against the other anchors, and these do not suffice. "


class ScoreBasis(NamedTuple):
    """What of a fit grades rest on: arguments of `project_grades`. Made by `basis_of_grades`.

    Attributes:
        scores: (n_items,) logits, summing to zero.
        covariance: (n_items, n_items) logits².
        prior_sd: logits, the width of the prior that both come from.
        anchors_placed: whether earlier judgments have placed anchors.
    """

    scores: FloatArray
    covariance: FloatArray
    prior_sd: float | None
    anchors_placed: bool


def basis_of_grades(fit: BradleyTerryFit) -> ScoreBasis:
    """Means and covariance of the scores' posterior; beside placed anchors, its mode and curvature.

    Not the published scores, which are the mode: on long scales that lies nearer to the middle, by the more the farther
    out an essay is. With the prior taken out again, means lie farther out than the truth, students' and anchors' alike,
    so that grades do not notice. Anchors that a bank holds in place do not go along, and there the mode is the better.

    The spread over the prior's fitted width is left out: it stretches the whole scale, anchors included, and the prior
    is taken out of every score that grades rest on.
    """
    if fit.bank_scores is None:
        return ScoreBasis(*fit.posterior_moments(), fit.prior_sd, anchors_placed=False)
    return ScoreBasis(fit.scores, fit.covariance_at_width(), fit.prior_sd, anchors_placed=True)


def project_scored(
    scale: GradeScale, scored: BTScoringResult, known_grades: Mapping[str, str], *, expert_error: float = 0.0
) -> GradeProjectionResult:
    """Grades of a scored batch, by `basis_of_grades`.

    Args and errors as in `project_grades`; projections are in ascending order of essay ids.
    """
    basis = basis_of_grades(scored.fit)
    return project_grades(
        scale,
        scores=dict(zip(scored.essay_ids, basis.scores.tolist(), strict=True)),
        ses=scored.ses_uncapped,
        components=scored.components,
        known_grades=known_grades,
        covariance=basis.covariance,
        prior_sd=basis.prior_sd,
        anchors_placed=basis.anchors_placed,
        expert_error=expert_error,
    )


def project_grades(
    scale: GradeScale,
    *,
    scores: Mapping[str, float],
    ses: Mapping[str, float],
    components: Mapping[str, Hashable],
    known_grades: Mapping[str, str],
    covariance: FloatArray | None = None,
    prior_sd: float | None = None,
    anchors_placed: bool = False,
    expert_error: float = 0.0,
) -> GradeProjectionResult:
    """Project every essay's score onto the grade scale, by the model of `grade_model`.

    Args:
        scale: the grade scale.
        scores: essay id → score, logits. A score that is not finite means that the essay has none.
        ses: essay id → standard error of the score, logits, ≥ 0, uncapped. Not finite: as for scores.
        components: essay id → label of the connected component of comparisons the essay is in. Scores of different
            components share no scale, so each component is calibrated on its own anchors.
        known_grades: anchor id → expert grade, one of the scale's labels.
        covariance: (n, n) of the scores in the order given, logits², at one prior width, in any frame (only
            differences are used). None: scores are independent with their SEs.
        prior_sd: with `covariance`, the width of the prior N(0, prior_sd²) that scores and covariance come from,
            which is taken out again; None: they come from maximum likelihood.
        anchors_placed: whether anchors have their prior from earlier judgments (`fit_bradley_terry(known=...)`). Only
            the students' is then taken out, N(level, prior_sd²) around a free level.
        expert_error: probability, below 1, that an expert's grade is off by one.

    Returns:
        A projection for every essay in `scores`, in that order; those that cannot be had carry their reason.

    Raises:
        GradeScaleError: an expert grade that the scale does not have.
        InputError: an essay without SE or component, a negative SE, an anchor without a score entry, a covariance of
            another shape, or an `expert_error` that is not in [0, 1).
    """
    steps = {anchor: scale.index(grade) for anchor, grade in known_grades.items()}
    _check_essays(scores, ses, components, known_grades)
    if covariance is not None and covariance.shape != (len(scores), len(scores)):
        raise InputError(f"covariance of {len(scores)} scores must be square of that size, not {covariance.shape}")
    if not 0.0 <= expert_error < 1.0:
        raise InputError(f"expert_error {expert_error} must be a probability below 1")
    ids = list(scores)
    x = np.array([scores[essay] for essay in ids], dtype=np.float64)
    se = np.array([ses[essay] for essay in ids], dtype=np.float64)
    known = np.isfinite(x) & np.isfinite(se)

    by_component: dict[Hashable, list[int]] = {}
    for place, essay in enumerate(ids):
        if known[place]:
            by_component.setdefault(components[essay], []).append(place)
    graded: list[_Graded] = []
    answers: list[_Answer | str] = [NO_SCORE if known_grades else NO_ANCHORS] * len(ids)
    checks: dict[int, AnchorCheck] = {}
    inversions: list[GradeInversion] = []
    for places in by_component.values():
        part = _Component(
            places=np.array(places, dtype=np.int64),
            ids=[ids[place] for place in places],
            scores=x[places],
            ses=se[places],
            covariance=None if covariance is None else covariance[np.ix_(places, places)],
            prior_sd=prior_sd,
            placed=anchors_placed,
            steps=steps,
        )
        inversions += _find_inversions(part)
        refusal = (NOT_CONNECTED if known_grades else NO_ANCHORS) if not part.anchors.size else part.refusal()
        found = None if refusal else _grade(part, scale, expert_error)
        for row, place in enumerate(places):
            answers[place] = refusal if refusal else found.answers[row] if found else NO_SCORE
        checks |= {int(part.places[row]): check for row, check in _check_anchors(part, found, scale).items()}
        if found:
            graded.append(found)

    projections = tuple(_describe(essay, scale, known_grades.get(essay), answers[i]) for i, essay in enumerate(ids))
    counted = [p for p in projections if not p.is_anchor] or list(projections)
    available = any(projection.available for projection in counted)
    reasons = Counter(projection.reason for projection in counted)
    reason = None if available else (reasons.most_common(1)[0][0] if reasons else NO_ANCHORS)
    best = max(graded, key=lambda one: len(one.answers), default=None)
    inversions.sort(key=lambda one: (-one.z, one.lower_graded, one.higher_graded))
    anchors = _name_replacement([checks[place] for place in sorted(checks)])
    return GradeProjectionResult(
        available=available,
        reason=reason,
        projections=projections,
        centres=best.by_label(best.centres) if best else {},
        centre_ses=best.by_label(best.centre_ses) if best else {},
        spread=best.spread if best else None,
        step=best.step if best else None,
        grade_shares=best.by_label(best.shares) if best else {},
        boundaries=best.boundaries if best else (),
        anchors=anchors,
        anchor_verdict=_verdict(reason, anchors, inversions) if known_grades else None,
        inversions=tuple(inversions),
    )


def _check_essays(
    scores: Mapping[str, float],
    ses: Mapping[str, float],
    components: Mapping[str, Hashable],
    known_grades: Mapping[str, str],
) -> None:
    for needed, given, what in (
        (scores, ses, "a standard error"),
        (scores, components, "a component"),
        (known_grades, scores, "a score"),
    ):
        missing = [essay for essay in needed if essay not in given]
        if missing:
            raise InputError(f"essays without {what}: {_name_some(missing)}; give one for each of them")
    negative = [essay for essay in scores if ses[essay] < 0]
    if negative:
        raise InputError(f"essays with a negative standard error: {_name_some(negative)}; give values of 0 or more")


def _name_some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")


@dataclass(frozen=True, eq=False)
class _Component:
    """The essays of one connected component: places in the batch (n,), ids, scores and SEs (n,), covariance (n, n).

    `placed`: see `anchors_placed` of `project_grades`.
    """

    places: IntArray
    ids: Sequence[str]
    scores: FloatArray
    ses: FloatArray
    covariance: FloatArray | None
    prior_sd: float | None
    placed: bool
    steps: Mapping[str, int]

    @cached_property
    def anchors(self) -> IntArray:
        """Rows that are anchors."""
        return np.array([row for row, essay in enumerate(self.ids) if essay in self.steps], dtype=np.int64)

    @cached_property
    def students(self) -> IntArray:
        """Rows that are not."""
        return np.setdiff1d(np.arange(len(self.ids)), self.anchors)

    @cached_property
    def grades(self) -> IntArray:
        """Grade numbers of the anchors."""
        return np.array([self.steps[self.ids[row]] for row in self.anchors.tolist()], dtype=np.int64)

    def refusal(self, without: int | None = None) -> str | None:
        """Why the anchors (all but one, if asked) cannot carry grades, or None if they can."""
        anchors, grades = self.anchors, self.grades
        if without is not None:
            anchors, grades = np.delete(anchors, without), np.delete(grades, without)
        if np.unique(grades).size < 2:
            return ONE_GRADE
        if np.ptp(self.scores[anchors]) <= _NO_SPREAD:
            return NO_SPREAD
        slope, _ = anchor_line(self.scores[anchors], self.ses[anchors], grades)
        return INVERTED if slope <= _NO_SPREAD else None


@dataclass(frozen=True, eq=False)
class _Answer:
    """Of one essay: probabilities (K,) under the shares in use and under equal ones, and where it stands (K-1,)."""

    probabilities: FloatArray
    uniform: FloatArray
    exact: FloatArray
    distances: FloatArray
    errors: FloatArray


@dataclass(frozen=True, eq=False)
class _Graded:
    """One component's calibration and what it says of each of its essays; arrays over labels are (K,)."""

    answers: Sequence[_Answer | str]
    calibration: Calibration
    labels: tuple[str, ...]
    centres: FloatArray
    centre_ses: FloatArray
    spread: float
    step: float
    shares: FloatArray
    boundaries: tuple[GradeBoundary, ...]

    def by_label(self, values: FloatArray) -> dict[str, float]:
        return dict(zip(self.labels, values.tolist(), strict=True))


def _grade(part: _Component, scale: GradeScale, expert_error: float) -> _Graded:
    """Calibrate one component on its anchors and grade its essays."""
    labels = len(scale.labels)
    prior = np.array(scale.label_priors)
    belief = believe(
        part.scores, part.ses, part.covariance, part.prior_sd, part.anchors, part.grades, placed=part.placed
    )
    calibration = calibrate(belief, labels, expert_error)
    everyone = calibration.everyone
    weights = everyone.weights[:, 0]
    spread = float(np.exp(weights @ np.log(everyone.spread)))

    answers: list[_Answer | str] = [NO_SCORE] * len(part.ids)
    common, offsets = _grade_students(part, calibration, prior, answers)
    _grade_anchors(part, calibration, prior, spread, answers)

    where, error = _mixed(weights, *everyone.from_origin(np.eye(labels)))
    means, variances = everyone.from_origin(middles(labels))
    boundary, boundary_se = _mixed(weights, means + offsets, variances)
    answered = [answer for row in part.students.tolist() if isinstance(answer := answers[row], _Answer)]
    return _Graded(
        answers=answers,
        calibration=calibration,
        labels=scale.labels,
        centres=where,
        centre_ses=error,
        spread=spread,
        step=float(np.exp(weights @ np.log(everyone.step))),
        shares=common,
        boundaries=_describe_boundaries(scale, boundary, boundary_se, answered),
    )


def _grade_students(
    part: _Component, calibration: Calibration, prior: FloatArray, answers: list[_Answer | str]
) -> tuple[FloatArray, FloatArray]:
    """Enter the students' answers; the grades' shares (K,), and cuts less midpoints at each grid point (G, K-1)."""
    everyone, students = calibration.everyone, part.students
    parts = in_parts(np.arange(students.size))
    found = [differences(everyone, students[rows], calibration.own_priors) for rows in parts]
    likelihood = np.vstack([np.zeros((0, prior.size)), *map(likelihoods, found)])
    fitted = fit_shares(likelihood, prior)
    centres = everyone.centres[:, 0]
    offsets = cuts(centres, everyone.spread, fitted.everyone) - centres @ middles(prior.size).T
    stands = [standing(f, offsets[:, None], fitted.others[rows]) for f, rows in zip(found, parts, strict=True)]
    _enter(answers, students, fitted.probabilities, likelihood, stands)
    return fitted.everyone, offsets


def _grade_anchors(
    part: _Component, calibration: Calibration, prior: FloatArray, spread: float, answers: list[_Answer | str]
) -> None:
    """Enter the anchors' answers, each without its own grade, under the scale's own shares."""
    found = differences(calibration.anchors, np.arange(part.anchors.size))
    centres = calibration.anchors.average()
    offsets = cuts(centres, np.full(part.anchors.size, spread), prior) - centres @ middles(prior.size).T
    likelihood = likelihoods(found)
    probabilities = likelihood * prior
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    _enter(answers, part.anchors, probabilities, likelihood, [standing(found, offsets[None], prior)])
    for number, row in enumerate(part.anchors.tolist()):
        refusal = part.refusal(without=number)
        if refusal:
            answers[row] = WITHOUT_ITSELF + refusal


def _enter(
    answers: list[_Answer | str],
    rows: IntArray,
    probabilities: FloatArray,
    likelihood: FloatArray,
    stands: Sequence[Standing],
) -> None:
    """Enter what was found of the essays at `rows` into `answers`."""
    uniform = likelihood / likelihood.sum(axis=1, keepdims=True)
    each = (one for stand in stands for one in zip(stand.exact, stand.distances, stand.errors, strict=True))
    for row, fitted, equal, (exact, distances, errors) in zip(rows.tolist(), probabilities, uniform, each, strict=True):
        answers[row] = _Answer(fitted, equal, exact, distances, errors)


def _mixed(weights: FloatArray, means: FloatArray, variances: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of a mixture over the first axis."""
    mean = weights @ means
    return mean, np.sqrt(weights @ (variances + (means - mean) ** 2))


def _median(probabilities: FloatArray) -> int:
    """The lowest label that is exceeded with a probability of at most 1/2."""
    return int(np.searchsorted(np.cumsum(probabilities)[:-1], 0.5))


def _describe(essay: str, scale: GradeScale, known_grade: str | None, answer: _Answer | str) -> GradeProjection:
    """One essay's projection, or the reason why it has none."""
    is_anchor = known_grade is not None
    if isinstance(answer, str):
        return GradeProjection(
            essay_id=essay, is_anchor=is_anchor, known_grade=known_grade, available=False, reason=answer
        )
    middle, middle_uniform = _median(answer.probabilities), _median(answer.uniform)
    confidence = float(answer.probabilities[middle])
    nearest = int(np.abs(answer.distances).argmin())
    error = float(answer.errors[nearest])
    return GradeProjection(
        essay_id=essay,
        is_anchor=is_anchor,
        known_grade=known_grade,
        available=True,
        grade=scale.labels[middle],
        confidence=confidence,
        label=label_confidence(confidence),
        boundary_distance_se=abs(float(answer.distances[nearest])) / error if error > 0 else math.inf,
        nearest_boundary=_name_boundary(scale, nearest),
        would_change=float(1.0 - answer.exact[middle]),
        probabilities=dict(zip(scale.labels, answer.probabilities.tolist(), strict=True)),
        grade_uniform=scale.labels[middle_uniform],
        confidence_uniform=float(answer.uniform[middle_uniform]),
        probabilities_uniform=dict(zip(scale.labels, answer.uniform.tolist(), strict=True)),
    )


def _name_boundary(scale: GradeScale, number: int) -> str:
    return f"{scale.labels[number]}|{scale.labels[number + 1]}"


def _describe_boundaries(
    scale: GradeScale, scores: FloatArray, ses: FloatArray, students: Sequence[_Answer]
) -> tuple[GradeBoundary, ...]:
    """The boundaries between neighbouring grades; none without students."""
    if not students:
        return ()
    # (n, K-1), from below each boundary
    above = 1.0 - np.cumsum([answer.probabilities for answer in students], axis=1)[:, :-1]
    exact = 1.0 - np.cumsum([answer.exact for answer in students], axis=1)[:, :-1]
    printed = np.array([_median(answer.probabilities) for answer in students])[:, None] > np.arange(scores.size)
    distances = np.array([answer.distances for answer in students])
    false_pass = (printed * (1.0 - above)).mean(axis=0)
    false_fail = (~printed * above).mean(axis=0)
    passing = scale.labels.index(scale.lowest_pass) - 1
    return tuple(
        GradeBoundary(
            boundary=_name_boundary(scale, j),
            is_pass=j == passing,
            score=scores[j],
            se=ses[j],
            low=scores[j] - _Z95 * ses[j],
            high=scores[j] + _Z95 * ses[j],
            share_above=above[:, j].mean(),
            share_low=(distances[:, j] > _Z95 * ses[j]).mean(),
            share_high=(distances[:, j] > -_Z95 * ses[j]).mean(),
            accuracy=1.0 - false_pass[j] - false_fail[j],
            consistency=(exact[:, j] ** 2 + (1.0 - exact[:, j]) ** 2).mean(),
            false_pass=false_pass[j],
            false_fail=false_fail[j],
        )
        for j in range(scores.size)
    )


# -- the anchor report --------------------------------------------------------------------------------------------


def _find_inversions(part: _Component) -> list[GradeInversion]:
    """Every pair of anchors of one component whose scores are strictly in the other order than their grades."""
    from scipy.special import ndtr

    anchors, grades = part.anchors, part.grades
    among = np.diag(part.ses[anchors] ** 2) if part.covariance is None else part.covariance[np.ix_(anchors, anchors)]
    own = np.diag(among)
    variances = own[:, None] + own - 2.0 * among
    excess = part.scores[anchors][:, None] - part.scores[anchors]
    found = []
    for low, high in np.argwhere((grades[:, None] < grades) & (excess > 0)).tolist():
        se = math.sqrt(max(variances[low, high], 0.0))
        z = float(excess[low, high]) / se if se > 0 else math.inf
        found.append(
            GradeInversion(
                lower_graded=part.ids[anchors[low]], higher_graded=part.ids[anchors[high]], z=z, probability=ndtr(z)
            )
        )
    return found


def _check_anchors(part: _Component, graded: _Graded | None, scale: GradeScale) -> dict[int, AnchorCheck]:
    """Row → check of each anchor of one component; figures that a refusal leaves out are None."""
    checks = {}
    known = [scale.labels[grade] for grade in part.grades.tolist()]
    if graded is None:
        return {
            row: AnchorCheck(
                essay_id=part.ids[row], known_grade=grade, misfit=None, probability=None, leverage=None, influence=None
            )
            for row, grade in zip(part.anchors.tolist(), known, strict=True)
        }
    calibration = graded.calibration
    misfits, influences = calibration.misfits(part.grades), calibration.influences()
    for number, (row, grade) in enumerate(zip(part.anchors.tolist(), known, strict=True)):
        answer = graded.answers[row]
        checkable = isinstance(answer, _Answer)
        checks[row] = AnchorCheck(
            essay_id=part.ids[row],
            known_grade=grade,
            misfit=float(misfits[number]) if checkable else None,
            probability=float(answer.uniform[scale.index(grade)]) if isinstance(answer, _Answer) else None,
            leverage=float(calibration.leverage[number]),
            influence=float(influences[number]) if checkable else None,
        )
    return checks


def _name_replacement(checks: Sequence[AnchorCheck]) -> tuple[AnchorCheck, ...]:
    """The checks, the anchor to replace first marked: of the misfits the most influential."""
    misfits = [check for check in checks if check.misfit is not None and abs(check.misfit) >= MISFIT]
    first = max(misfits, key=lambda check: check.influence or 0.0, default=None)
    return tuple(
        check.model_copy(update={"replace_first": True}) if first and check is first else check for check in checks
    )


def _verdict(reason: str | None, anchors: Sequence[AnchorCheck], inversions: Sequence[GradeInversion]) -> str:
    """The anchor report in a sentence or two."""
    if reason is not None:
        return f"The anchors carry no grades. {reason}"
    first = next((check for check in anchors if check.replace_first), None)
    sure = [pair for pair in inversions if pair.z >= MISFIT]
    said = []
    if first is not None and first.misfit is not None:
        side = "above" if first.misfit > 0 else "below"
        said.append(
            f"If an anchor is to be regraded or replaced, look at {first.essay_id} first: the judge puts it {side} "
            f"what {first.known_grade} leads to expect, by {abs(first.misfit):.1f} standard deviations."
        )
    if sure:
        named = ", ".join(f"{pair.lower_graded} above {pair.higher_graded}" for pair in sure[:_INVERSIONS_NAMED])
        more = f" and {len(sure) - _INVERSIONS_NAMED} more" if len(sure) > _INVERSIONS_NAMED else ""
        said.append(f"The judge is sure of the other order of {named}{more}.")
    unchecked = sum(check.misfit is None for check in anchors)
    if unchecked:
        said.append(f"{unchecked} of {len(anchors)} anchors cannot be checked against the others.")
    return " ".join(said) or "Every anchor fits in with the others."


def label_confidence(confidence: float) -> ConfidenceLabel:
    """HIGH from a probability of .75, MID from .5, LOW below."""
    if confidence >= CONFIDENCE_HIGH:
        return ConfidenceLabel.HIGH
    return ConfidenceLabel.MID if confidence >= CONFIDENCE_MID else ConfidenceLabel.LOW
