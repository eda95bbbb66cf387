"""Simulated exams: what a budget buys, before any money is spent.

Pure functions. An exam is drawn (true scores, grades, anchors), a judge is simulated by the Bradley–Terry law with an
order effect and lapses, and the batch goes through the same pairing, fit, grades and stop rule as a real one, wave by
wave. What is recorded at each wave's end is compared with the truth. Here: drawing, playing, and summing up over
replications. Not here: the judge that answers inside the pipeline (`judges.simulated`), and printing.

A student of grade g has a true score of step·(g + ε), ε ~ N(0, within²): `step` is how many logits the judge puts
between neighbouring grades, so it is the judge's strength. Anchors follow the same law, one grade after another from
the lowest to the highest.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cj_pipeline.core.completion import StoppingSettings, coverage, decide, is_small_net
from cj_pipeline.core.designs import WaveRequest, plan_next_wave
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.grade_scale import GradeScale
from cj_pipeline.core.grades import project_scored
from cj_pipeline.core.models import (
    BatchState,
    Comparison,
    ComparisonStatus,
    PairDesign,
    PairMode,
    PlannedPair,
    Value,
    Winner,
)
from cj_pipeline.core.pairing import wave_size
from cj_pipeline.core.precision import (
    WavePrecision,
    expected_rps,
    low_reliability,
    precise_enough,
    wave_precision,
)
from cj_pipeline.core.scoring import BTScoringResult, compute_bt_scores_and_se, max_score_change

FloatArray = NDArray[np.float64]

MEASURES: Final = ("rmse", "tau_b", "exact", "adjacent", "rps", "expected_rps")
"""What is measured of each wave; see `WaveResult`."""


class Exam(Value):
    """What kind of exam is simulated.

    Attributes:
        students: essays to be graded.
        anchors: essays with a known grade; 0 simulates scores without grades.
        step: logits between neighbouring grades, as the judge sees them.
        within: standard deviation of true scores within a grade, steps.
        order_effect: logits by which being read first helps.
        lapses: share of judgments that a coin decides.
    """

    students: int = Field(24, ge=2, le=2000)
    anchors: int = Field(12, ge=0, le=500)
    step: float = Field(1.25, gt=0, le=20)
    within: float = Field(0.4, ge=0, le=3)
    order_effect: float = Field(0.0, ge=-5, le=5)
    lapses: float = Field(0.0, ge=0, lt=1)


@dataclass(frozen=True)
class WaveResult:
    """How near a batch was to the truth at a wave's end.

    Attributes:
        judgments: so far.
        rmse: root mean squared error of the students' scores, logits, both centred over all essays.
        tau_b: Kendall's τ-b of the students' scores with their true scores (Kendall 1945).
        exact, adjacent: share of students whose grade is the true one, or at most one step off; None without grades.
        rps: ranked probability score of the students' grades, mean, steps; None without grades.
        expected_rps: what the batch itself would say it is.
    """

    judgments: int
    rmse: float
    tau_b: float
    exact: float | None
    adjacent: float | None
    rps: float | None
    expected_rps: float | None


@dataclass(frozen=True)
class PlayedExam:
    """One simulated exam, played to the end of its budget.

    Attributes:
        waves: all of them.
        stop_waves: after how many of them the stop rule, the budget or a small net's cap would have ended a batch.
        reason: which, as `completion.decide` calls it.
    """

    waves: tuple[WaveResult, ...]
    stop_waves: int
    reason: str

    @property
    def as_stopped(self) -> "PlayedExam":
        """The exam as a batch's users would have got it."""
        return replace(self, waves=self.waves[: self.stop_waves])


@dataclass(frozen=True)
class BudgetRow:
    """Means over replications at one number of judgments, each with the half width of its 95 % interval.

    `measures` maps a name of `MEASURES` to (mean, half width); a measure that was not had is missing.
    """

    judgments: int
    measures: dict[str, tuple[float, float]]


class ExamSettings(StoppingSettings, Protocol):
    """The settings of a batch that a simulated exam obeys."""

    comparisons_per_stability_check_iteration: int
    pair_design: PairDesign
    pair_generation_seed: int
    enable_comparison_position_balancing: bool
    bt_standard_error_max: float


@dataclass(frozen=True)
class _Truth:
    ids: tuple[str, ...]
    scores: dict[str, float]
    grades: dict[str, int]
    anchors: frozenset[str]


def simulate_exams(
    exam: Exam,
    settings: ExamSettings,
    scale: GradeScale,
    *,
    budget: int,
    replications: int,
    seed: int,
    progress: Callable[[int], None] = lambda _done: None,
) -> list[PlayedExam]:
    """Play an exam over and over, each to the end of its budget, whatever its stop rule says on the way.

    Args:
        exam: what is drawn.
        settings: a batch's tunables: pairing, waves and stop rule.
        scale: the grades.
        budget: most comparisons of each exam.
        replications: how many exams.
        seed: of everything; replication r of a seed is the same whatever the number of replications.
        progress: told after each exam how many are played.

    Raises:
        InputError: a budget or number of replications below 1.
    """
    if budget < 1 or replications < 1:
        raise InputError(f"budget {budget} and replications {replications} must be at least 1")
    played = []
    for replication in range(replications):
        played.append(_play(exam, settings, scale, budget, np.random.default_rng([seed, replication]), replication))
        progress(replication + 1)
    return played


def budget_table(played: Sequence[PlayedExam], budgets: Iterable[int]) -> list[BudgetRow]:
    """Means over exams at given numbers of judgments.

    An exam with fewer judgments counts with its last wave; between two waves the earlier one counts.
    """
    rows = []
    for budget in budgets:
        at = [
            max((wave for wave in exam.waves if wave.judgments <= budget), key=lambda w: w.judgments, default=None)
            for exam in played
        ]
        reached = [wave for wave in at if wave is not None]
        measures = {}
        for name in MEASURES:
            values = [value for wave in reached if (value := getattr(wave, name)) is not None]
            if len(values) == len(played):
                measures[name] = _mean_with_margin(values)
        rows.append(BudgetRow(budget, measures))
    return rows


def _mean_with_margin(values: Sequence[float]) -> tuple[float, float]:
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2:
        return float(array.mean()), math.inf
    return float(array.mean()), float(1.96 * array.std(ddof=1) / math.sqrt(array.size))


# --- one exam ----------------------------------------------------------------------------------------------------


def _draw(exam: Exam, scale: GradeScale, rng: np.random.Generator) -> _Truth:
    graded = len(scale.labels) - 1  # the label below the lowest grade is nobody's expert grade
    grades = {f"s{i:04d}": int(grade) for i, grade in enumerate(rng.integers(1, graded + 1, exam.students))}
    anchors = [f"k{i:04d}" for i in range(exam.anchors)]
    places = np.linspace(1, graded, exam.anchors) if exam.anchors > 1 else np.full(exam.anchors, (graded + 1) / 2)
    grades |= {anchor: round(float(place)) for anchor, place in zip(anchors, places, strict=True)}
    scores = {essay: exam.step * (grade + exam.within * float(rng.normal())) for essay, grade in grades.items()}
    return _Truth(tuple(sorted(grades)), scores, grades, frozenset(anchors))


def _play(
    exam: Exam,
    settings: ExamSettings,
    scale: GradeScale,
    budget: int,
    rng: np.random.Generator,
    replication: int,
) -> PlayedExam:
    truth = _draw(exam, scale, rng)
    small = is_small_net(len(truth.ids), settings)
    history: list[Comparison] = []
    modes: list[PairMode] = []
    results: list[WaveResult] = []
    measured: list[WavePrecision] = []
    mode, scored = PairMode.COVERAGE, None
    stopped: tuple[int, str] | None = None
    while True:
        size = wave_size(
            len(truth.ids),
            least=settings.comparisons_per_stability_check_iteration,
            budget_left=budget - len(history),
        )
        request = WaveRequest(
            essay_ids=truth.ids,
            history=history,
            size=size.size,
            scores=scored.scores if scored else {},
            ses=scored.ses_uncapped if scored else {},
            seed=settings.pair_generation_seed,
            batch_id=f"simulated-{replication}",
            wave=len(modes) + 1,
            mode=mode,
            small_net=small,
            anchor_grades={anchor: scale.labels[truth.grades[anchor]] for anchor in truth.anchors},
            balance_positions=settings.enable_comparison_position_balancing,
            fit=scored.fit if scored else None,
        )
        pairs = plan_next_wave(settings.pair_design, request)
        if not pairs:
            return PlayedExam(tuple(results), *(stopped or (len(results), "small_net_cap")))
        history += [_judge(exam, truth, pair, len(modes) + 1, len(history) + i, rng) for i, pair in enumerate(pairs)]
        modes.append(mode)
        before = scored.scores if scored else None
        scored = compute_bt_scores_and_se(history, truth.ids, settings, anchor_ids=truth.anchors)
        result, precision = _compare(truth, scale, scored, len(history), len(modes), full=not size.cut_by_budget)
        results.append(result)
        measured.append(precision)
        covered = coverage(truth.ids, history, modes)
        state = BatchState(
            batch_id="simulated",
            node_count=len(truth.ids),
            total_budget=budget,
            submitted=len(history),
            judged=len(history),
            failed=0,
            pending=0,
            max_possible_pairs=covered.max_possible_pairs,
            successful_pairs=covered.successful_pairs_count,
            resampling_passes=covered.resampling_pass_count,
            wave_cut_by_budget=size.cut_by_budget,
            max_score_change=max_score_change(before, scored.scores),
        )
        decision = decide(state, settings, precise=precise_enough(measured))
        if decision.is_final and stopped is None:
            stopped = (len(results), decision.reason)
        # without a change of scores, and not told that it is precise, no stop rule ends it
        onward = decide(state.model_copy(update={"max_score_change": None}), settings)
        if stopped is not None and onward.is_final:
            return PlayedExam(tuple(results), *stopped)
        mode = onward.next_mode or mode


def _judge(
    exam: Exam, truth: _Truth, pair: PlannedPair, wave: int, number: int, rng: np.random.Generator
) -> Comparison:
    logit = truth.scores[pair.essay_a] - truth.scores[pair.essay_b] + exam.order_effect
    first = (1.0 - exam.lapses) / (1.0 + math.exp(-logit)) + exam.lapses / 2.0
    return Comparison(
        comparison_id=f"c{number:07d}",
        wave=wave,
        essay_a=pair.essay_a,
        essay_b=pair.essay_b,
        pair_mode=pair.pair_mode,
        status=ComparisonStatus.JUDGED,
        winner=Winner.A if rng.random() < first else Winner.B,
    )


def _compare(
    truth: _Truth, scale: GradeScale, scored: BTScoringResult, judgments: int, wave: int, *, full: bool
) -> tuple[WaveResult, WavePrecision]:
    from scipy.stats import kendalltau

    students = [essay for essay in truth.ids if essay not in truth.anchors]
    mean = sum(truth.scores.values()) / len(truth.ids)
    true = np.array([truth.scores[essay] - mean for essay in students])
    found = np.array([scored.scores[essay] for essay in students])
    projections = (
        project_scored(
            scale, scored, {anchor: scale.labels[truth.grades[anchor]] for anchor in truth.anchors}
        ).projections
        if truth.anchors
        else ()
    )
    graded = {p.essay_id: p for p in projections if p.available and not p.is_anchor}
    exact = adjacent = rps = said = None
    if len(graded) == len(students):
        off = [abs(scale.index(p.grade or "") - truth.grades[essay]) for essay, p in graded.items()]
        exact, adjacent = float(np.mean([d == 0 for d in off])), float(np.mean([d <= 1 for d in off]))
        rps = float(np.mean([_rps(list(p.probabilities.values()), truth.grades[e]) for e, p in graded.items()]))
        said = float(np.mean([expected_rps(p.probabilities) for p in graded.values()]))
    result = WaveResult(
        judgments=judgments,
        rmse=float(np.sqrt(np.mean((found - true) ** 2))),
        tau_b=float(kendalltau(found, true).statistic),
        exact=exact,
        adjacent=adjacent,
        rps=rps,
        expected_rps=said,
    )
    precision = wave_precision(
        wave,
        full=full,
        judgments=scored.per_essay_counts.values(),
        projections=projections,
        reliability_low=lambda: low_reliability(*scored.fit.integrated_moments(), wave),
    )
    return result, precision


def _rps(probabilities: Sequence[float], grade: int) -> float:
    """Ranked probability score of one forecast, unnormalised: Σ_k (F_k - 1[grade ≤ k])²."""
    cumulative = np.cumsum(probabilities)
    return float(np.sum((cumulative - (np.arange(cumulative.size) >= grade))[:-1] ** 2))


def even_budgets(budget: int, count: int) -> list[int]:
    """At most `count` numbers of judgments up to the budget, evenly spaced, the budget last."""
    points = {round(budget * (i + 1) / count) for i in range(count)}
    return sorted(point for point in points if point > 0)


def stopped_at(played: Sequence[PlayedExam]) -> tuple[float, float, float]:
    """Judgments until the stop rule or the budget ends an exam: 10 % quantile, median and 90 % quantile."""
    low, middle, high = np.quantile([exam.as_stopped.waves[-1].judgments for exam in played], [0.1, 0.5, 0.9])
    return float(low), float(middle), float(high)
