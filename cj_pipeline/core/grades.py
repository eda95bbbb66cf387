"""Grades: the calibration of a scale on anchors, and what grade each essay's score stands for.

Here: `project_grades`, which turns scores and expert-graded anchors into grade probabilities. Not here: the scales
(`grade_scale`), and the scores and their standard errors (`bradley_terry`).

The model. An essay of grade g scores N(c_g, t² + SE²): c_g is the grade's centre, t the spread of true scores
within a grade, SE the standard error of the score. Score errors are taken as independent between essays. The
labels of a scale, `below_lowest` included, are numbered 0, 1, … from low to high.

1. Anchor weights are w = 1/(t² + SE²).
2. The mean gap per grade step, d, is the slope of the weighted least-squares line of score on grade number.
   d ≤ 0 means that higher expert grades do not score higher: no grade is given.
3. The centres of the observed grades are the weighted least-squares fit to the anchors' scores under
   c_{g+1} − c_g ≥ d/3 (`MIN_GAP_SHARE`): isotonic regression (pool adjacent violators) of score − (d/3)·g, with
   (d/3)·g added back. So grades that the anchors put in the wrong order end close together but never as one.
4. Unobserved grades between two observed ones lie at equal steps on the score scale between them; beyond the
   ends each step is d. `below_lowest` is such an end unless an anchor has it.
5. The spread: log t is the posterior mean under log t ~ N(log(d/2), 0.5²) and the restricted likelihood of the
   anchors' scores (level and slope integrated out), centres walking by steps of mean d and sd d/2 (`STEP_CV`), on
   a grid of ±3 prior sd. Steps 1–3 and 5 start from t² = the variance of the anchors' scores and run
   `CALIBRATION_ROUNDS` times.
6. Given what is pooled, every centre is a linear function m·y of the anchors' scores. Its variance is that of
   the scores, Σ m_i²(t² + SE_i²), plus (d/2)² times the squared error of m·y per step between grades, for steps
   need not be equal; halfway between two observed grades j steps apart this is (d/2)²·j/4, as for a bridge.
7. P(grade g | score x) ∝ prior_g · N(x; c_g, t² + SE² + var c_g). Beyond the outermost centres the log density
   goes on from there with, above the top centre, a variance no larger than that of any higher grade, and below
   the bottom centre than that of any lower grade: centres are in order, so not knowing how far down a low grade
   lies is no reason to find it at the top. An anchor's own probabilities come from a calibration without it.

Sources: Barlow, Bartholomew, Bremner and Brunk (1972), Statistical Inference under Order Restrictions (step 3);
Patterson and Thompson (1971), Biometrika 58, 545–554 (step 5).

Checked on simulated exams (`test_grades.py`): where steps and spread vary as assumed, mean confidence is some .03
below accuracy, on the careful side. Step 3 makes steps below d/3 look like d/3.
"""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.grade_scale import GradeScale
from cj_pipeline.core.models import Value

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

CONFIDENCE_HIGH: Final = 0.75
"""Probability of the primary grade from which its label is HIGH."""
CONFIDENCE_MID: Final = 0.50
"""Probability of the primary grade from which its label is MID; below it the label is LOW."""

MIN_GAP_SHARE: Final = 1 / 3
"""Smallest distance of neighbouring centres, as a share of the mean gap."""
STEP_CV: Final = 0.5
"""Assumed coefficient of variation of the steps between centres."""
SPREAD_PRIOR_SHARE: Final = 0.5
"""Prior median of the within-grade spread, as a share of the mean gap."""
SPREAD_PRIOR_LOG_SD: Final = 0.5
"""Prior standard deviation of the log of the within-grade spread."""
CALIBRATION_ROUNDS: Final = 3

_NO_SPREAD = 1e-9  # logits: scores, and neighbouring centres, closer than this are equal
_SPREAD_GRID_SD = np.linspace(-3.0, 3.0, 61)


class ConfidenceLabel(StrEnum):
    """How sure a grade is: its probability is at least .75 (HIGH), at least .5 (MID), or lower (LOW)."""

    HIGH = "HIGH"
    MID = "MID"
    LOW = "LOW"


class GradeProjection(Value):
    """The grade of one essay, or the reason why there is none.

    For an anchor the projection comes from a calibration without that anchor, to be read beside `known_grade`.

    Attributes:
        grade: the most probable label; of equally probable ones the lower.
        confidence: its probability.
        boundary_distance_se: distance from the score to the nearest boundary, in standard errors of that distance.
            A boundary is the midpoint of two neighbouring centres (it knows nothing of priors), and its own SE,
            the mean of the two centres' SEs, counts: √(SE² + SE_boundary²). Never negative.
        nearest_boundary: the boundary nearest on the score scale, as `lower|upper`.
        probabilities: label → probability, low to high; empty if not available.
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
    probabilities: dict[str, float] = Field(default_factory=dict)


class GradeInversion(Value):
    """Two anchors that the scores put in the other order than the experts.

    `z` is the difference of their scores over √(SE² + SE²): how sure the scores are of their order. Above 0.
    """

    lower_graded: str
    higher_graded: str
    z: float


class GradeProjectionResult(Value):
    """The grades of a batch and the calibration they come from.

    Attributes:
        available: whether any student got a grade (any anchor, if there are no students).
        reason: why not, if not.
        projections: one per essay, in the order of the scores given.
        centres: label → centre, in logits, low to high. If the comparisons fall into several components, each has
            its own calibration, and this is the one most essays were graded by. Empty if there is none.
        centre_ses: label → standard error of the centre, in logits.
        spread: standard deviation of true scores within a grade, in logits.
        inversions: anchors in the wrong order, surest first.
    """

    available: bool
    reason: str | None
    projections: tuple[GradeProjection, ...]
    centres: dict[str, float] = Field(default_factory=dict)
    centre_ses: dict[str, float] = Field(default_factory=dict)
    spread: float | None = None
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


def fit_isotonic(values: FloatArray, weights: FloatArray) -> tuple[FloatArray, IntArray]:
    """Weighted least-squares fit that never decreases, by pooling adjacent violators.

    Args:
        values: shape (n,), n ≥ 1, in the order in which the fit must not decrease.
        weights: shape (n,), positive.

    Returns:
        The fit, shape (n,), and the number of the pooled block each value belongs to, shape (n,), from 0.
    """
    means: list[float] = []
    masses: list[float] = []
    sizes: list[int] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        means.append(value)
        masses.append(weight)
        sizes.append(1)
        while len(means) > 1 and means[-2] >= means[-1]:
            mean, mass, size = means.pop(), masses.pop(), sizes.pop()
            total = masses[-1] + mass
            means[-1] += (mean - means[-1]) * mass / total
            masses[-1] = total
            sizes[-1] += size
    return np.repeat(np.asarray(means), sizes), np.repeat(np.arange(len(means), dtype=np.int64), sizes)


def grade_probabilities(
    scores: FloatArray,
    ses: FloatArray,
    *,
    centres: FloatArray,
    centre_variances: FloatArray,
    spread: float,
    priors: FloatArray,
) -> FloatArray:
    """P(grade | score) ∝ prior · N(score; centre, spread² + SE² + centre variance), normalised over the grades.

    Beyond the outermost centres the densities go on as step 7 of the module's model says. With equal centre variances
    that is the plain normal everywhere, and at one SE the grade is stochastically increasing in the score.

    Args:
        scores: shape (n,), logits.
        ses: shape (n,), logits, uncapped.
        centres: shape (k,), logits, increasing.
        centre_variances: shape (k,), squared logits.
        spread: within-grade standard deviation, logits.
        priors: shape (k,), positive.

    Returns:
        Shape (n, k); each row sums to 1.
    """
    variances = spread**2 + ses[:, None] ** 2 + centre_variances
    score = scores[:, None]
    inside = np.clip(score, centres[0], centres[-1])
    of_higher = np.minimum.accumulate(variances[:, ::-1], axis=1)[:, ::-1]
    of_lower = np.minimum.accumulate(variances, axis=1)
    misfit = (inside - centres) ** 2 / variances
    # the squares' difference in product form, exactly 0 inside
    misfit += (score - inside) * (score + inside - 2.0 * centres) / np.where(score > inside, of_higher, of_lower)
    log_weights = np.log(priors) - 0.5 * (np.log(variances) + misfit)
    weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
    result: FloatArray = weights / weights.sum(axis=1, keepdims=True)
    return result


@dataclass(frozen=True, eq=False)
class _Anchors:
    """The anchors of one component: places in the batch, scores, squared SEs and grade numbers, each shape (n,)."""

    places: IntArray
    scores: FloatArray
    variances: FloatArray
    steps: IntArray

    def take(self, keep: npt.NDArray[np.bool_]) -> "_Anchors":
        return _Anchors(self.places[keep], self.scores[keep], self.variances[keep], self.steps[keep])


@dataclass(frozen=True, eq=False)
class _Calibration:
    """Centres and their variances, shape (k,) over the labels, and the within-grade spread."""

    centres: FloatArray
    variances: FloatArray
    spread: float


@dataclass(frozen=True, eq=False)
class _Ladder:
    """Steps 1–4 of the module's model at one spread: centres = `operator` @ anchor scores, shape (k, n)."""

    gap: float
    operator: FloatArray


def _calibrate(anchors: _Anchors, labels: int) -> _Calibration | str:
    """Fit the model of this module to one component's anchors; or the reason why that is not possible."""
    if len(set(anchors.steps.tolist())) < 2:
        return ONE_GRADE
    if np.ptp(anchors.scores) <= _NO_SPREAD:
        return NO_SPREAD
    # about their mean, so that adding a constant to all scores changes nothing but the centres
    origin = float(anchors.scores.mean())
    scores = anchors.scores - origin
    spread_sq = float(scores.var())
    for _ in range(CALIBRATION_ROUNDS):
        ladder = _fit_ladder(anchors, scores, spread_sq, labels)
        if ladder is None:
            return INVERTED
        spread_sq = _estimate_spread_sq(anchors, scores, ladder.gap)
    ladder = _fit_ladder(anchors, scores, spread_sq, labels)
    if ladder is None:
        return INVERTED
    sampling = ladder.operator**2 @ (spread_sq + anchors.variances)
    return _Calibration(
        centres=ladder.operator @ scores + origin,
        variances=sampling + (STEP_CV * ladder.gap) ** 2 * _count_uneven_steps(anchors, ladder.operator),
        spread=math.sqrt(spread_sq),
    )


def _fit_ladder(anchors: _Anchors, scores: FloatArray, spread_sq: float, labels: int) -> _Ladder | None:
    """Mean gap and centres at the given spread²; None if the mean gap is not positive."""
    weights = 1.0 / (spread_sq + anchors.variances)
    deviations = anchors.steps - np.average(anchors.steps, weights=weights)
    slope = weights * deviations / (weights @ deviations**2)
    gap = float(slope @ scores)
    if gap <= _NO_SPREAD:
        return None

    observed, member = np.unique(anchors.steps, return_inverse=True)
    mass = np.bincount(member, weights=weights).astype(np.float64)
    lifted = scores - MIN_GAP_SHARE * gap * anchors.steps
    _, block_of_grade = fit_isotonic(np.bincount(member, weights=weights * lifted) / mass, mass)
    blocks = block_of_grade[member]

    block_mass = np.bincount(blocks, weights=weights)
    means = (np.arange(block_mass.size)[:, None] == blocks) * weights / block_mass[:, None]
    lift = observed - (means @ anchors.steps)[block_of_grade]
    at_observed = means[block_of_grade] + MIN_GAP_SHARE * lift[:, None] * slope

    every = np.arange(labels)
    upper = np.clip(np.searchsorted(observed, every), 0, observed.size - 1)
    lower = np.where(observed[upper] > every, np.maximum(upper - 1, 0), upper)
    width = np.maximum(observed[upper] - observed[lower], 1)
    inside = np.clip(every, observed[0], observed[-1])
    beyond = every - inside
    share = (inside - observed[lower]) / width
    operator = (1.0 - share)[:, None] * at_observed[lower] + share[:, None] * at_observed[upper]
    return _Ladder(gap=gap, operator=operator + beyond[:, None] * slope)


def _count_uneven_steps(anchors: _Anchors, operator: FloatArray) -> FloatArray:
    """Variance of each centre's error, in units of one step's variance, if the true steps vary: shape (k,)."""
    every = np.arange(operator.shape[0])
    below = every[:-1]
    error = operator @ (anchors.steps[:, None] > below) - (every[:, None] > below)
    result: FloatArray = (error**2).sum(axis=1)
    return result


def _estimate_spread_sq(anchors: _Anchors, scores: FloatArray, gap: float) -> float:
    """Spread² of step 5, in squared logits, by the likelihood within grades times that of the grades' means."""
    grid = SPREAD_PRIOR_SHARE * gap * np.exp(SPREAD_PRIOR_LOG_SD * _SPREAD_GRID_SD)
    observed, member = np.unique(anchors.steps, return_inverse=True)
    of_grade = (member[:, None] == np.arange(observed.size)).astype(np.float64)
    variances = grid[:, None] ** 2 + anchors.variances
    mass = (1.0 / variances) @ of_grade
    means = ((scores / variances) @ of_grade) / mass
    within = np.log(variances).sum(axis=1) + np.log(mass).sum(axis=1)
    within += ((scores - means[:, member]) ** 2 / variances).sum(axis=1)

    walk = (STEP_CV * gap) ** 2 * np.minimum(observed[:, None], observed[None, :])
    covariances = walk + np.eye(observed.size) / mass[:, None, :]
    line = np.stack([np.ones(observed.size), observed.astype(np.float64)], axis=1)
    solved = np.linalg.solve(covariances, np.broadcast_to(line, (grid.size, *line.shape)))
    information = line.T @ solved
    fitted = np.linalg.solve(information, np.einsum("tkp,tk->tp", solved, means)[..., None])
    residuals = means[..., None] - line @ fitted
    between = np.linalg.slogdet(covariances)[1] + np.linalg.slogdet(information)[1]
    between += (residuals * np.linalg.solve(covariances, residuals)).sum(axis=(1, 2))

    log_posterior = -0.5 * (within + between + _SPREAD_GRID_SD**2)
    posterior = np.exp(log_posterior - log_posterior.max())
    return float(np.exp(2.0 * (posterior @ np.log(grid)) / posterior.sum()))


def project_grades(
    scale: GradeScale,
    *,
    scores: Mapping[str, float],
    ses: Mapping[str, float],
    components: Mapping[str, Hashable],
    known_grades: Mapping[str, str],
) -> GradeProjectionResult:
    """Project every essay's score onto the grade scale, by the model this module describes.

    Args:
        scale: the grade scale.
        scores: essay id → score, logits. A score that is not finite means that the essay has none.
        ses: essay id → standard error of the score, logits, ≥ 0, uncapped. Not finite: as for scores.
        components: essay id → label of the connected component of comparisons the essay is in. Scores of different
            components share no scale, so each component is calibrated on its own anchors.
        known_grades: anchor id → expert grade, one of the scale's labels.

    Returns:
        A projection for every essay in `scores`, in that order; those that cannot be had carry their reason.

    Raises:
        GradeScaleError: an expert grade that the scale does not have.
        InputError: an essay without SE or component, a negative SE, or an anchor without a score entry.
    """
    steps = {anchor: scale.index(grade) for anchor, grade in known_grades.items()}
    _check_essays(scores, ses, components, known_grades)
    ids = list(scores)
    x = np.array([scores[essay] for essay in ids], dtype=np.float64)
    se = np.array([ses[essay] for essay in ids], dtype=np.float64)
    placed = np.isfinite(x) & np.isfinite(se)
    priors = np.array(scale.label_priors)

    by_component: dict[Hashable, list[int]] = {}
    for place, essay in enumerate(ids):
        if placed[place]:
            by_component.setdefault(components[essay], []).append(place)

    no_calibration = NOT_CONNECTED if known_grades else NO_ANCHORS
    answers: list[FloatArray | str] = [NO_SCORE if known_grades else NO_ANCHORS] * len(ids)
    used: list[_Calibration | None] = [None] * len(ids)
    inversions: list[GradeInversion] = []
    best: tuple[int, _Calibration] | None = None

    for places in by_component.values():
        anchors = _select_anchors(places, ids, x, se, steps)
        calibration = _calibrate(anchors, len(priors)) if anchors.places.size else no_calibration
        inversions += _find_inversions(anchors, ids)
        if isinstance(calibration, _Calibration) and (best is None or len(places) > best[0]):
            best = (len(places), calibration)
        students = [place for place in places if ids[place] not in steps]
        _answer(students, calibration, x, se, priors, answers, used)
        for number, place in enumerate(anchors.places.tolist()):
            alone = calibration
            if isinstance(calibration, _Calibration):
                alone = _calibrate(anchors.take(np.arange(anchors.places.size) != number), len(priors))
                alone = WITHOUT_ITSELF + alone if isinstance(alone, str) else alone
            _answer([place], alone, x, se, priors, answers, used)

    projections = tuple(
        _describe(essay, scale, known_grades.get(essay), x[place], se[place], answers[place], used[place])
        for place, essay in enumerate(ids)
    )
    counted = [p for p in projections if not p.is_anchor] or list(projections)
    available = any(projection.available for projection in counted)
    reasons = Counter(projection.reason for projection in counted)
    return GradeProjectionResult(
        available=available,
        reason=None if available else (reasons.most_common(1)[0][0] if reasons else NO_ANCHORS),
        projections=projections,
        centres=dict(zip(scale.labels, best[1].centres.tolist(), strict=True)) if best else {},
        centre_ses=dict(zip(scale.labels, np.sqrt(best[1].variances).tolist(), strict=True)) if best else {},
        spread=best[1].spread if best else None,
        inversions=tuple(sorted(inversions, key=lambda found: (-found.z, found.lower_graded, found.higher_graded))),
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


def _select_anchors(
    places: Sequence[int], ids: Sequence[str], x: FloatArray, se: FloatArray, steps: Mapping[str, int]
) -> _Anchors:
    chosen = np.array([place for place in places if ids[place] in steps], dtype=np.int64)
    grades = np.array([steps[ids[place]] for place in chosen.tolist()], dtype=np.int64)
    return _Anchors(chosen, x[chosen], se[chosen] ** 2, grades)


def _find_inversions(anchors: _Anchors, ids: Sequence[str]) -> list[GradeInversion]:
    """Every pair of anchors of one component whose scores are strictly in the other order than their grades."""
    excess = anchors.scores[:, None] - anchors.scores[None, :]
    lower, higher = np.nonzero((anchors.steps[:, None] < anchors.steps[None, :]) & (excess > 0))
    found = []
    for low, high in zip(lower.tolist(), higher.tolist(), strict=True):
        se = math.sqrt(anchors.variances[low] + anchors.variances[high])
        z = float(excess[low, high]) / se if se > 0 else math.inf
        found.append(
            GradeInversion(lower_graded=ids[anchors.places[low]], higher_graded=ids[anchors.places[high]], z=z)
        )
    return found


def _answer(
    places: Sequence[int],
    calibration: _Calibration | str,
    x: FloatArray,
    se: FloatArray,
    priors: FloatArray,
    answers: list[FloatArray | str],
    used: list[_Calibration | None],
) -> None:
    """Enter the probabilities, or the reason, of the essays at `places` into `answers` and `used`."""
    if isinstance(calibration, str):
        for place in places:
            answers[place] = calibration
        return
    where = np.array(places, dtype=np.int64)
    probabilities = grade_probabilities(
        x[where],
        se[where],
        centres=calibration.centres,
        centre_variances=calibration.variances,
        spread=calibration.spread,
        priors=priors,
    )
    for place, row in zip(places, probabilities, strict=True):
        answers[place] = row
        used[place] = calibration


def _describe(
    essay: str,
    scale: GradeScale,
    known_grade: str | None,
    score: float,
    se: float,
    answer: FloatArray | str,
    calibration: _Calibration | None,
) -> GradeProjection:
    """One essay's projection from its probabilities, or from the reason why it has none."""
    if isinstance(answer, str) or calibration is None:
        return GradeProjection(
            essay_id=essay,
            is_anchor=known_grade is not None,
            known_grade=known_grade,
            available=False,
            reason=answer if isinstance(answer, str) else NO_SCORE,
        )
    best = int(answer.argmax())
    confidence = float(answer[best])
    centres, centre_ses = calibration.centres, np.sqrt(calibration.variances)
    distances = np.abs(score - (centres[:-1] + centres[1:]) / 2)
    nearest = int(distances.argmin())
    boundary_se = (centre_ses[nearest] + centre_ses[nearest + 1]) / 2
    return GradeProjection(
        essay_id=essay,
        is_anchor=known_grade is not None,
        known_grade=known_grade,
        available=True,
        grade=scale.labels[best],
        confidence=confidence,
        label=label_confidence(confidence),
        boundary_distance_se=float(distances[nearest] / math.hypot(se, boundary_se)),
        nearest_boundary=f"{scale.labels[nearest]}|{scale.labels[nearest + 1]}",
        probabilities=dict(zip(scale.labels, answer.tolist(), strict=True)),
    )


def label_confidence(confidence: float) -> ConfidenceLabel:
    """HIGH from a probability of .75, MID from .5, LOW below."""
    if confidence >= CONFIDENCE_HIGH:
        return ConfidenceLabel.HIGH
    return ConfidenceLabel.MID if confidence >= CONFIDENCE_MID else ConfidenceLabel.LOW
