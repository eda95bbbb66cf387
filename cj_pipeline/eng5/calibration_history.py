"""Calibration over time: what every night measured, and which night is out of control.

Here: the figures of a night, their control charts, the verdicts that checks show, and whether the last night that was
due is there. Made from the ledger alone; the clock comes from the caller. Not here: the charts' statistics
(`core.control_chart`), which batches are nights (`workflow.calibration`), and how the history is written
(`calibration_files`).

Costs and latencies are charted as logarithms, because they change by factors, and shown in dollars and seconds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from math import exp, isfinite, log
from typing import Final

import numpy as np

from cj_pipeline.core.alignment_posterior import kendall_tau
from cj_pipeline.core.anchor_bank import NightScores
from cj_pipeline.core.control_chart import (
    ChartPoint,
    ChartRules,
    NightFigure,
    Side,
    Verdict,
    anchor_charts,
    control_chart,
)
from cj_pipeline.core.grade_scale import GradeScale
from cj_pipeline.core.models import BatchStatus
from cj_pipeline.eng5.nightly import month_spending, night_configuration
from cj_pipeline.ledger import Ledger
from cj_pipeline.ledger.records import AttemptRecord
from cj_pipeline.settings import CJSettings
from cj_pipeline.workflow.calibration import (
    JudgeConfiguration,
    Night,
    Nights,
    calibration_batches,
    calibration_nights,
    night_id,
    night_of,
)
from cj_pipeline.workflow.registration import assignment_scale

NIGHT_HOUR: Final = 3
"""UTC. When the schedule submits a night."""

DEADLINE_HOUR: Final = 9
"""UTC. When a night must be finished; later it counts as missed."""

_TAU_DRAWS: Final = 200
_TAU_SEED: Final = 20260101


class Measure(StrEnum):
    """What is watched from night to night, an asset check each."""

    ANCHORS = "anchor_drift"
    TAU_B = "tau_b"
    POSITION = "position_bias"
    COST = "cost"
    LATENCY = "latency"


@dataclass(frozen=True)
class _Rule:
    """How one figure is charted: which side is bad, what is of no interest, whether its logarithm is taken."""

    side: Side
    least_sd: float
    logarithm: bool = False


_RULES: Final[Mapping[Measure, _Rule]] = {
    Measure.TAU_B: _Rule(Side.BELOW, 0.01),
    Measure.POSITION: _Rule(Side.BOTH, 0.05),
    Measure.COST: _Rule(Side.ABOVE, 0.05, logarithm=True),
    Measure.LATENCY: _Rule(Side.ABOVE, 0.1, logarithm=True),
}

TITLES: Final[Mapping[Measure, str]] = {
    Measure.ANCHORS: "Anchor drift (logits)",
    Measure.TAU_B: "Agreement with the experts (Kendall's τ-b)",
    Measure.POSITION: "Advantage of the essay read first (logits)",
    Measure.COST: "Cost per judgment (US dollars)",
    Measure.LATENCY: "Latency per call (seconds, geometric mean)",
}


@dataclass(frozen=True)
class NightRow:
    """The figures of one night; None where there is none.

    Attributes:
        batch_id, date: the night.
        judgments: that its scores come from.
        tau_b, tau_b_se: of its scores with the expert grades; the SE is that of draws from the scores' covariance.
        order_effect, order_effect_se: logits by which being read first helps.
        cost_usd: of the whole night; None if a price is missing.
        cost_per_judgment: in US dollars.
        latency_seconds: geometric mean over answered calls; None for a simulated judge.
        cost_log_se, latency_log_se: SEs of their logarithms.
    """

    batch_id: str
    date: date
    judgments: int
    tau_b: float | None
    tau_b_se: float
    order_effect: float | None
    order_effect_se: float
    cost_usd: float | None
    cost_per_judgment: float | None
    cost_log_se: float
    latency_seconds: float | None
    latency_log_se: float


@dataclass(frozen=True)
class MeasureVerdict:
    """What the charts of one measure say of the last night."""

    measure: Measure
    in_control: bool
    text: str
    night: str | None


@dataclass(frozen=True, eq=False)
class CalibrationHistory:
    """All nights of an assignment and a judge configuration, with their charts. Made by `calibration_history`.

    Attributes:
        rows: one for each night, oldest first.
        charts: of the figures of one number a night, in their own units.
        anchors: a chart for each anchor, drift in logits.
        nights: where they come from, with what was left out.
        simulated: whether the judge is.
    """

    assignment_id: str
    configuration: JudgeConfiguration
    rules: ChartRules
    rows: tuple[NightRow, ...]
    charts: Mapping[Measure, tuple[ChartPoint, ...]]
    anchors: Mapping[str, tuple[ChartPoint, ...]]
    nights: Nights
    simulated: bool

    def charts_of(self, measure: Measure) -> Mapping[str, tuple[ChartPoint, ...]]:
        """The charts of a measure by name: the anchor's, or the measure's own."""
        return self.anchors if measure is Measure.ANCHORS else {measure.value: self.charts[measure]}

    def verdict(self, measure: Measure) -> MeasureVerdict:
        """Whether the last night is in control, in words."""
        if not self.rows:
            return MeasureVerdict(measure, True, "no night yet", None)
        last = {name: points[-1] for name, points in self.charts_of(measure).items()}
        alarms = {name: point for name, point in last.items() if point.verdict.is_alarm}
        where = f"night {self.rows[-1].date}"
        if alarms:
            told = "; ".join(_alarm(name, point, measure) for name, point in sorted(alarms.items()))
            return MeasureVerdict(measure, False, f"{where}: {told}", self.rows[-1].batch_id)
        judged = [point for point in last.values() if point.verdict is Verdict.IN_CONTROL]
        young = [point for point in last.values() if point.verdict is Verdict.TOO_FEW]
        if judged:
            text = f"in control against {max(point.baseline for point in judged)} earlier nights"
        elif young:
            text = f"not enough nights yet: {max(p.baseline for p in young) + 1} of {self.rules.min_nights + 1}"
        else:
            text = "there is nothing to chart"
        return MeasureVerdict(measure, True, f"{where}: {text}", self.rows[-1].batch_id)

    def alarms(self) -> list[tuple[NightRow, Measure, str, ChartPoint]]:
        """Every point out of control, oldest night first: night, measure, the chart's name, point."""
        return [
            (row, measure, name, points[index])
            for index, row in enumerate(self.rows)
            for measure in Measure
            for name, points in sorted(self.charts_of(measure).items())
            if points[index].verdict.is_alarm
        ]


def calibration_history(ledger: Ledger, settings: CJSettings) -> CalibrationHistory:
    """The history of the assignment and judge that the settings name, from the ledger alone.

    Raises:
        UnknownAssignmentError: the assignment is not registered.
        InputError: there is no such judge.
    """
    configuration = night_configuration(ledger, settings)
    nights = calibration_nights(ledger, settings.calibration_assignment, configuration, since=settings.calibration_from)
    used = nights.nights
    scale = assignment_scale(ledger.assignment(settings.calibration_assignment))
    rules = ChartRules(sigmas=settings.calibration_sigmas)
    rows = tuple(_row(ledger, night, scale) for night in used)
    return CalibrationHistory(
        assignment_id=settings.calibration_assignment,
        configuration=configuration,
        rules=rules,
        rows=rows,
        charts={measure: chart_of(rows, measure, rules) for measure in _RULES},
        anchors=anchor_charts([night.scores for night in used], rules=rules),
        nights=nights,
        simulated=any(night.batch.simulated for night in used),
    )


# --- the figures of a night ----------------------------------------------------------------------------------------


def _row(ledger: Ledger, night: Night, scale: GradeScale) -> NightRow:
    batch_id = night.batch.batch_id
    attempts = ledger.attempts(batch_id)
    judged = ledger.state(batch_id).judged
    cost = ledger.cost_usd(batch_id)
    numbers = {anchor: scale.labels.index(grade) for anchor, grade in night.grades.items()}
    tau_b, tau_b_se = night_tau_b(night.scores, numbers)
    fit = night.scored.fit
    # a simulated judge's haste says nothing of any provider
    latencies = [] if night.batch.simulated else [log(seconds) for seconds in _latencies(attempts)]
    return NightRow(
        batch_id=batch_id,
        date=night.date,
        judgments=judged,
        tau_b=tau_b,
        tau_b_se=tau_b_se,
        order_effect=fit.order_effect,
        order_effect_se=fit.order_effect_se or 0.0,
        cost_usd=cost,
        cost_per_judgment=None if cost is None or not judged else cost / judged,
        cost_log_se=_log_mean_se(attempts, judged),
        latency_seconds=exp(float(np.mean(latencies))) if latencies else None,
        latency_log_se=_mean_se(latencies),
    )


def night_tau_b(scores: NightScores, grades: Mapping[str, int]) -> tuple[float | None, float]:
    """Kendall's τ-b of a night's scores with the expert grades, and its SE.

    The SE is the standard deviation of τ-b over draws from N(scores, covariance), always the same ones.

    Args:
        scores: of the night.
        grades: number of each anchor's grade, low to high.

    Returns:
        None and 0 if all anchors have one grade.
    """
    numbers = [grades[anchor] for anchor in scores.anchors]
    tau_b = kendall_tau(numbers, scores.scores).tau_b
    if not isfinite(tau_b):
        return None, 0.0
    values, vectors = np.linalg.eigh(scores.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    normal = np.random.default_rng(_TAU_SEED).standard_normal((_TAU_DRAWS, len(numbers)))
    draws = [kendall_tau(numbers, scores.scores + root @ one).tau_b for one in normal]
    return tau_b, float(np.std(draws, ddof=1))


def _latencies(attempts: Sequence[AttemptRecord]) -> list[float]:
    return [
        one.latency_seconds
        for one in attempts
        if one.outcome == "judged" and one.latency_seconds is not None and one.latency_seconds > 0
    ]


def _log_mean_se(attempts: Sequence[AttemptRecord], judged: int) -> float:
    """SE of the logarithm of the mean cost of a judgment, retries included; 0 where it is nothing or unknown."""
    by_comparison: dict[str, float] = {}
    for one in attempts:
        by_comparison[one.comparison_id] = by_comparison.get(one.comparison_id, 0.0) + (one.cost_usd or 0.0)
    costs = list(by_comparison.values())
    mean = float(np.mean(costs)) if costs else 0.0
    return _mean_se(costs) / mean if mean > 0 and judged else 0.0


def _mean_se(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


# --- charts ----------------------------------------------------------------------------------------------------------


_FIGURES: Final[Mapping[Measure, Callable[[NightRow], tuple[float | None, float]]]] = {
    Measure.TAU_B: lambda row: (row.tau_b, row.tau_b_se),
    Measure.POSITION: lambda row: (row.order_effect, row.order_effect_se),
    Measure.COST: lambda row: (row.cost_per_judgment, row.cost_log_se),
    Measure.LATENCY: lambda row: (row.latency_seconds, row.latency_log_se),
}


def chart_of(rows: Sequence[NightRow], measure: Measure, rules: ChartRules) -> tuple[ChartPoint, ...]:
    """The control chart of one figure over the nights, in the figure's own unit; not of `Measure.ANCHORS`."""
    rule = _RULES[measure]
    figures = []
    for row in rows:
        value, se = _FIGURES[measure](row)
        if rule.logarithm:
            value = log(value) if value is not None and value > 0 else None
        figures.append(NightFigure(night=row.batch_id, value=value, se=se))
    points = control_chart(figures, side=rule.side, least_sd=rule.least_sd, rules=rules)
    return tuple(_in_own_unit(point) for point in points) if rule.logarithm else points


def _in_own_unit(point: ChartPoint) -> ChartPoint:
    """A point on a chart of logarithms as one of the figure itself; its SE by the delta method."""
    value = None if point.value is None else exp(point.value)
    return point.model_copy(
        update={
            "value": value,
            "se": point.se * (value or 0.0),
            **{name: None if (at := getattr(point, name)) is None else exp(at) for name in ("centre", "low", "high")},
        }
    )


def _alarm(name: str, point: ChartPoint, measure: Measure) -> str:
    who = f"anchor {name}" if measure is Measure.ANCHORS else TITLES[measure]
    if point.verdict is Verdict.DRIFTING:
        return (
            f"{who} has been drifting over the last nights (EWMA {point.ewma:+.1f} of its standard deviations; tonight "
            f"{point.value:.3g}, expected {point.centre:.3g})"
        )
    return f"{who} is {point.value:.3g}, expected {point.centre:.3g}: {point.z:+.1f} standard deviations"


# --- whether the nights come ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NightDue:
    """Whether the last night that was due is there, in words."""

    night: date
    there: bool
    text: str


def last_night_due(now: datetime) -> date:
    """The night whose deadline passed last: today's from `DEADLINE_HOUR` UTC on, else yesterday's."""
    moment = now.astimezone(UTC)
    return moment.date() if moment.hour >= DEADLINE_HOUR else moment.date() - timedelta(days=1)


def check_night(ledger: Ledger, settings: CJSettings, now: datetime) -> NightDue:
    """Whether a calibration of the configured assignment finished for the last night due, and else what became of it.

    A later night that has finished already counts too. Before the first calibration batch nothing is due.
    """
    due = last_night_due(now)
    batches = calibration_batches(ledger, settings.calibration_assignment)
    finished = [batch for batch in batches if batch.status.has_grades]
    if any(night_of(batch) >= due for batch in finished):
        return NightDue(due, True, f"night {due} is there")
    if not batches:
        return NightDue(due, True, f"assignment {settings.calibration_assignment} has not been calibrated yet")
    last = f"; the last night that finished: {night_of(finished[-1])}" if finished else "; no night has finished yet"
    tonight = [batch for batch in batches if night_of(batch) == due]
    if tonight:
        batch = tonight[-1]
        if batch.status.is_final:
            became = f"ended as {batch.status.value} ({batch.stop_reason})"
            remedy = f"`cj eng5 calibrate --batch-id {batch.batch_id}-again` makes another"
        else:
            held = f", on hold: {batch.hold_reason}" if batch.hold_reason else ""
            started = "has not begun" if batch.status is BatchStatus.SUBMITTED else "is not finished"
            became, remedy = f"{started}{held}", f"see its runs, or `cj run {batch.batch_id}`"
        return NightDue(due, False, f"night {due} failed: batch {batch.batch_id} {became}{last}. {remedy}")
    spending = month_spending(ledger, settings, now)
    why = spending.refusal or "is the schedule eng5_nightly_calibration on, and the daemon alive?"
    return NightDue(due, False, f"night {due} was missed: there is no batch {night_id(due)}{last}. {why}")
