"""Control charts: is tonight's figure what earlier nights let one expect, or has something changed?

Pure functions and immutable values. Here: the chart of one figure per night (τ-b, position bias, cost, latency) and the
charts of all anchors, each held against a bank of earlier nights. Not here: which batches are nights and what was
measured on them (`workflow.calibration_history`), the bank (`anchor_bank`), and what to do about an alarm.

Each night is held against a *baseline*: the first nights that were in control, `baseline_nights` of them at most. Until
there are so many, the baseline grows with every night that is in control (a self-starting chart; Hawkins 1987); then it
stands, so that a slow drift does not become its own yardstick. A night that is out of control never enters it. Before
`min_nights` there is no verdict.

One figure. With n baseline nights of mean m and variance v (n - 1 degrees of freedom), of mean squared standard error
s², a night of value x and standard error s_x is at

    t = (x - m) / sqrt(max(v + s_x² - s², s_x²) + max(v, s²) / n),     z = Φ⁻¹(T_{n-1}(t))

so that z is standard normal for a normal figure with equal standard errors, however few the nights, and independent
from night to night while the baseline grows. A night that was measured less exactly gets wider limits.

Two rules, the Shewhart and the EWMA chart (Shewhart 1931; Roberts 1959; together: Lucas & Saccucci 1990):

    beyond limits:   |z| > k
    drifting:        |E| > k sqrt(λ/(2 - λ) (1 - (1 - λ)^2j)),    E = (1 - λ) E + λ z,  z cut off at ± k, night j

The first finds a large change at once, the second a small one that stays. z is cut off so that one wild night cannot
make the EWMA speak for nights to come. One-sided charts have only one side of each rule. A drift is found some nights
after it began, which is estimated as the last time E was on the other side of zero (Nishina 1992); nights since then
leave the baseline again. Once the baseline stands, nights share its error, a correlation of r = 1/(n + 1), and the
variance of E has r (1 - (1 - λ)^j)² besides.

Anchors. z is that of `anchor_bank.check_drift` against the bank of the baseline. With m anchors k is raised so that all
of them together give a false alarm as rarely as one figure does (Bonferroni): Φ(-k_m) = Φ(-k) / m.

References:
    Hawkins, D. M. (1987). Self-starting CUSUM charts for location and scale. The Statistician 36, 299-315.
    Lucas, J. M. & Saccucci, M. S. (1990). Exponentially weighted moving average control schemes: properties and
        enhancements. Technometrics 32, 1-12.
    Montgomery, D. C. (2009). Introduction to Statistical Quality Control, 6th ed. Wiley, chapters 6 and 9.
    Nishina, K. (1992). A comparison of control charts from the viewpoint of change-point estimation. Quality and
        Reliability Engineering International 8, 537-541.
    Roberts, S. W. (1959). Control chart tests based on geometric moving averages. Technometrics 1, 239-250.
    Shewhart, W. A. (1931). Economic Control of Quality of Manufactured Product. Van Nostrand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from math import inf, isfinite, sqrt
from typing import Final, TypeVar

import numpy as np
from pydantic import Field
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from cj_pipeline.core.anchor_bank import AnchorBank, NightScores, check_drift, estimate_bank
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.models import Value

Night = TypeVar("Night")

DEFAULT_SIGMAS: Final = 3.0
"""Standard deviations. Shewhart's limit: one false alarm in 370 nights of a two-sided chart."""

MIN_ANCHORS: Final = 3
"""Anchors a night and its bank must share, so that there is a line to hold an anchor against."""


class Side(StrEnum):
    """Which change of a figure is bad."""

    BOTH = "both"
    ABOVE = "above"
    BELOW = "below"


class Verdict(StrEnum):
    """What a chart says of one night."""

    IN_CONTROL = "in control"
    BEYOND = "beyond limits"
    DRIFTING = "drifting"
    TOO_FEW = "not enough nights yet"
    NO_VALUE = "no value"

    @property
    def is_alarm(self) -> bool:
        """Whether someone should look."""
        return self in (Verdict.BEYOND, Verdict.DRIFTING)


class ChartRules(Value):
    """When a night is out of control.

    Attributes:
        sigmas: k, in standard deviations of a night.
        min_nights: baseline nights before there is a verdict.
        baseline_nights: nights after which the baseline stands.
        ewma_weight: λ, the weight of tonight.
    """

    sigmas: float = Field(DEFAULT_SIGMAS, gt=0, le=8)
    min_nights: int = Field(5, ge=2)
    baseline_nights: int = Field(30, ge=2)
    ewma_weight: float = Field(0.2, gt=0, le=1)

    def shared_between(self, charts: int) -> "ChartRules":
        """The rules of each of several charts that together are to raise as few false alarms as one."""
        return self.model_copy(update={"sigmas": float(-ndtri(ndtr(-self.sigmas) / max(1, charts)))})


class NightFigure(Value):
    """What was measured on one night; None where it could not be. `se`: how exactly, 0 where that is not known."""

    night: str
    value: float | None
    se: float = Field(0.0, ge=0, allow_inf_nan=False)


class ChartPoint(Value):
    """One night on a chart.

    Attributes:
        night: the batch.
        value, se: what was measured.
        baseline: nights it is held against.
        centre: what they let one expect; None without a verdict, and so are the next four.
        low, high: limits; None also on the side that is not watched.
        z: standard deviations from the centre.
        ewma: E, in standard deviations of its own.
        verdict: of this night.
    """

    night: str
    value: float | None
    se: float
    baseline: int
    centre: float | None = None
    low: float | None = None
    high: float | None = None
    z: float | None = None
    ewma: float | None = None
    verdict: Verdict


@dataclass(frozen=True)
class _Ewma:
    """E after some nights; `since` is the number of the night at which it came to its side of zero."""

    value: float = 0.0
    nights: int = 0
    since: int = 0

    def after(self, z: float, number: int, rules: ChartRules) -> "_Ewma":
        weight = rules.ewma_weight
        value = (1 - weight) * self.value + weight * min(max(z, -rules.sigmas), rules.sigmas)
        same_side = self.value * value > 0
        return _Ewma(value, self.nights + 1, self.since if same_side else number)

    def standardised(self, rules: ChartRules, baseline: int) -> float:
        weight, fading = rules.ewma_weight, (1 - rules.ewma_weight) ** self.nights
        variance = weight / (2 - weight) * (1 - fading**2)
        if baseline >= rules.baseline_nights:
            variance += (1 - fading) ** 2 / (baseline + 1)
        return self.value / sqrt(variance)


def control_chart(
    figures: Sequence[NightFigure], *, side: Side, least_sd: float, rules: ChartRules | None = None
) -> tuple[ChartPoint, ...]:
    """The chart of one figure; see the module for the rules.

    Args:
        figures: one for each night, oldest first.
        side: which change is bad.
        least_sd: standard deviation, in the figure's unit, below which differences between nights are of no interest;
            positive. It also keeps a figure that happened to be the same every night from alarms about nothing.
        rules: limits and baseline.

    Raises:
        InputError: `least_sd` is not positive.
    """
    if not (isfinite(least_sd) and least_sd > 0):
        raise InputError(f"least_sd {least_sd} must be a positive number")
    rules = rules or ChartRules()
    baseline: dict[int, NightFigure] = {}
    ewma = _Ewma()
    points = []
    for number, figure in enumerate(figures):
        if figure.value is None or not isfinite(figure.value):
            points.append(_without_verdict(figure, len(baseline), Verdict.NO_VALUE))
            continue
        if len(baseline) < rules.min_nights:
            point = _without_verdict(figure, len(baseline), Verdict.TOO_FEW)
        else:
            centre, scale = _expected(list(baseline.values()), figure.se, least_sd)
            freedom = len(baseline) - 1
            z = _normal_score((figure.value - centre) / scale, freedom)
            ewma = ewma.after(z, number, rules)
            reach = scale * _t_quantile(rules.sigmas, freedom)
            point = _judged(figure, len(baseline), centre, reach, z, ewma, side, rules)
        points.append(point)
        if point.verdict is Verdict.DRIFTING:
            baseline = _before(baseline, ewma.since, rules)
        elif not point.verdict.is_alarm and len(baseline) < rules.baseline_nights:
            baseline[number] = figure
    return tuple(points)


def anchor_charts(
    nights: Sequence[NightScores], *, rules: ChartRules | None = None
) -> Mapping[str, tuple[ChartPoint, ...]]:
    """A chart for each anchor of any night: how far it is from where the bank of earlier nights and the others put it.

    A point's value is the drift of `anchor_bank.check_drift` in logits, its centre 0. A night on which any anchor is
    out of control does not enter the baseline.

    Args:
        nights: oldest first, each once.
        rules: those of one figure; all anchors of a night share them.
    """
    rules = rules or ChartRules()
    anchors = sorted({anchor for night in nights for anchor in night.anchors})
    charts: dict[str, list[ChartPoint]] = {anchor: [] for anchor in anchors}
    ewmas = dict.fromkeys(anchors, _Ewma())
    baseline = _Baseline({})
    for number, night in enumerate(nights):
        shared = rules.shared_between(len(night.anchors))
        judged = _judged_anchors(baseline, night, ewmas, number, shared)
        for anchor in anchors:
            seen = baseline.times(anchor)
            if anchor in judged:
                point, ewmas[anchor] = judged[anchor]
            else:
                young = anchor in night.anchors and seen < rules.min_nights
                nothing = NightFigure(night=night.night, value=None)
                point = _without_verdict(nothing, seen, Verdict.TOO_FEW if young else Verdict.NO_VALUE)
            charts[anchor].append(point)
        tonight = {anchor: points[-1].verdict for anchor, points in charts.items()}
        drifting = [ewmas[anchor].since for anchor, verdict in tonight.items() if verdict is Verdict.DRIFTING]
        if drifting:
            baseline = _Baseline(_before(baseline.nights, min(drifting), rules))
        elif not any(verdict.is_alarm for verdict in tonight.values()) and len(baseline.nights) < rules.baseline_nights:
            baseline = _Baseline({**baseline.nights, number: night})
    return {anchor: tuple(points) for anchor, points in charts.items()}


def _judged_anchors(
    baseline: "_Baseline", night: NightScores, ewmas: Mapping[str, _Ewma], number: int, rules: ChartRules
) -> dict[str, tuple[ChartPoint, _Ewma]]:
    """The anchors of a night that can be judged, each with its E after it.

    The anchor furthest out is taken away before the others are judged again: it would pull the line they are held
    against towards itself, night after night.
    """
    found: dict[str, tuple[ChartPoint, _Ewma]] = {}
    if len(baseline.nights) < rules.min_nights:
        return found
    while True:
        trial: dict[str, tuple[ChartPoint, _Ewma]] = {}
        for anchor, (drift, se) in baseline.drifts(night).items():
            seen = baseline.times(anchor)
            if seen >= rules.min_nights:
                ewma = ewmas[anchor].after(drift / se, number, rules)
                figure = NightFigure(night=night.night, value=drift, se=se)
                reach = rules.sigmas * se
                trial[anchor] = _judged(figure, seen, 0.0, reach, drift / se, ewma, Side.BOTH, rules), ewma
        alarms = [anchor for anchor, (point, _) in trial.items() if point.verdict.is_alarm]
        if not alarms or len(night.anchors) <= MIN_ANCHORS:
            return {**found, **trial}
        worst = max(alarms, key=lambda anchor: _furthest(trial[anchor][0]))
        found[worst] = trial[worst]
        night = _without_anchor(night, worst)


def _furthest(point: ChartPoint) -> float:
    return max(abs(point.z or 0.0), abs(point.ewma or 0.0))


def _without_anchor(night: NightScores, anchor: str) -> NightScores:
    kept = [place for place, name in enumerate(night.anchors) if name != anchor]
    centring = np.eye(len(kept)) - 1.0 / len(kept)
    return NightScores(
        night=night.night,
        anchors=tuple(night.anchors[place] for place in kept),
        scores=centring @ night.scores[kept],
        covariance=centring @ night.covariance[np.ix_(kept, kept)] @ centring,
    )


@dataclass(frozen=True, eq=False)
class _Baseline:
    """Nights in control; their bank is estimated once, also when the baseline stands for long."""

    nights: Mapping[int, NightScores]

    @cached_property
    def bank(self) -> AnchorBank | None:
        if not self.nights:
            return None
        try:
            return estimate_bank(list(self.nights.values()))
        except InputError:
            # nights that share no anchors, after most were replaced
            return None

    def times(self, anchor: str) -> int:
        return sum(anchor in night.anchors for night in self.nights.values())

    def drifts(self, night: NightScores) -> dict[str, tuple[float, float]]:
        """Drift and its SE of each anchor that can be held against the bank; of none where there is no bank yet."""
        if self.bank is None or len(set(self.bank.anchors) & set(night.anchors)) < MIN_ANCHORS:
            return {}
        return {
            one.anchor: (one.drift, one.se)
            for one in check_drift(self.bank, night)
            if one.drift is not None and one.se < inf
        }


def _without_verdict(figure: NightFigure, baseline: int, verdict: Verdict) -> ChartPoint:
    return ChartPoint(night=figure.night, value=figure.value, se=figure.se, baseline=baseline, verdict=verdict)


def _expected(baseline: Sequence[NightFigure], se: float, least_sd: float) -> tuple[float, float]:
    """Centre, and the standard deviation of a further night from it."""
    values = np.array([figure.value for figure in baseline], dtype=np.float64)
    known = max(float(np.mean([figure.se**2 for figure in baseline])), least_sd**2)
    spread = float(values.var(ddof=1))
    own = max(se**2, least_sd**2)
    return float(values.mean()), sqrt(max(spread + own - known, own) + max(spread, known) / len(baseline))


def _judged(
    figure: NightFigure,
    baseline: int,
    centre: float,
    reach: float,
    z: float,
    ewma: _Ewma,
    side: Side,
    rules: ChartRules,
) -> ChartPoint:
    standardised = ewma.standardised(rules, baseline)
    if _out(z, rules.sigmas, side):
        verdict = Verdict.BEYOND
    elif _out(standardised, rules.sigmas, side):
        verdict = Verdict.DRIFTING
    else:
        verdict = Verdict.IN_CONTROL
    return ChartPoint(
        night=figure.night,
        value=figure.value,
        se=figure.se,
        baseline=baseline,
        centre=centre,
        low=None if side is Side.ABOVE else centre - reach,
        high=None if side is Side.BELOW else centre + reach,
        z=z,
        ewma=standardised,
        verdict=verdict,
    )


def _out(z: float, sigmas: float, side: Side) -> bool:
    return (z > sigmas and side is not Side.BELOW) or (z < -sigmas and side is not Side.ABOVE)


def _before(baseline: Mapping[int, Night], since: int, rules: ChartRules) -> dict[int, Night]:
    """The baseline without the nights from `since` on, but never fewer than verdicts need."""
    kept = [number for number in sorted(baseline) if number < since]
    kept = kept if len(kept) >= rules.min_nights else sorted(baseline)[: rules.min_nights]
    return {number: baseline[number] for number in kept}


def _normal_score(t: float, freedom: int) -> float:
    """The standard normal quantile of Student's t at `t`, exact in the tails."""
    tail = float(stdtr(freedom, -abs(t)))
    # a tail too small for a double is as far out as one can say
    return float(np.copysign(-ndtri(max(tail, 1e-300)), t))


def _t_quantile(sigmas: float, freedom: int) -> float:
    """How many scaled deviations of Student's t are as rare as `sigmas` of a normal variable."""
    return float(-stdtrit(freedom, ndtr(-sigmas)))
