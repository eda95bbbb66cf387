"""Tonight's calibration: the batch of a night, what it may cost, and its submission.

Here: the request that settings and date make, the month's ceiling, and submitting a night once. Time comes from the
caller. Not here: what finished nights say (`workflow.calibration`, `calibration_history`), and who launches the batch
(the schedule in `defs`, or `cj eng5 calibrate`).

A night judges anchors only, uses its whole budget (so that every night is known about as well), and has a pairing seed
of its own: pairs then differ from night to night, and so do the draws of a simulated judge.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.models import BatchKind, StopRule
from cj_pipeline.judges.catalogue import open_judge, provider_and_model
from cj_pipeline.ledger import Ledger, UnknownAssignmentError, UnknownBatchError
from cj_pipeline.ledger.records import BatchRecord
from cj_pipeline.settings import BatchTunables, CJSettings, effective_tunables, parse_overrides
from cj_pipeline.workflow.calibration import (
    MIN_ANCHORS,
    JudgeConfiguration,
    assignment_configuration,
    calibration_batches,
    night_id,
)
from cj_pipeline.workflow.intake import BatchRequest
from cj_pipeline.workflow.judging import judge_setup
from cj_pipeline.workflow.preflight import Finding, look_at_judge
from cj_pipeline.workflow.registration import Submission, submit_batch


@dataclass(frozen=True)
class MonthSpending:
    """What the calibration of a calendar month costs.

    Attributes:
        month: YYYY-MM, UTC.
        committed_usd: what its batches have cost or may still cost at most, without the night that is asked about.
        tonight_usd: what that night may cost at most.
        ceiling_usd: what all of it may cost.
    """

    month: str
    committed_usd: float
    tonight_usd: float
    ceiling_usd: float

    @property
    def refusal(self) -> str | None:
        """Why the night may not run, with figures and remedy; None if it may."""
        if self.committed_usd + self.tonight_usd <= self.ceiling_usd:
            return None
        return (
            f"calibration has cost up to {self.committed_usd:.2f} US dollars in {self.month}, and tonight's could cost "
            f"{self.tonight_usd:.2f} (CJ_CALIBRATION_MAX_COST_USD): more than the month's {self.ceiling_usd:.2f} "
            "(CJ_CALIBRATION_MONTH_USD). Raise the ceiling, lower a night's limit, or wait for the next month"
        )


@dataclass(frozen=True)
class NightSubmission:
    """What submitting a night did: `submission`, or `skipped` with the reason."""

    batch_id: str
    submission: Submission | None
    skipped: str | None = None


def night_request(settings: CJSettings, night: date, *, batch_id: str | None = None) -> BatchRequest:
    """The calibration batch of a night, from the settings.

    Args:
        settings: assignment, judge and limits.
        night: which night; it also seeds the pairing.
        batch_id: instead of the night's own.
    """
    simulated = provider_and_model(settings.calibration_judge) is None
    stated: dict[str, Any] = {
        "max_comparisons": settings.calibration_max_comparisons,
        "max_cost_usd": None if simulated else settings.calibration_max_cost_usd,
        "reasoning_effort": settings.calibration_reasoning_effort,
        "output_verbosity": settings.calibration_output_verbosity,
        "pair_generation_seed": int(f"{night:%Y%m%d}"),
        # the whole budget, whatever happens to be stable
        "stop_rule": StopRule.STABILITY,
        "min_comparisons_for_stability_check": settings.calibration_max_comparisons + 1,
        "min_resampling_net_size": 0,
        # nobody looks at stability, so waves need only be as small as pairing asks for
        "comparisons_per_stability_check_iteration": 30,
    }
    return BatchRequest(
        batch_id=batch_id or night_id(night),
        assignment_id=settings.calibration_assignment,
        kind=BatchKind.CALIBRATION,
        judge=settings.calibration_judge,
        overrides=parse_overrides(
            {name: value for name, value in stated.items() if value is not None}, where="calibration"
        ),
        students=(),
    )


def night_configuration(ledger: Ledger, settings: CJSettings) -> JudgeConfiguration:
    """The judge configuration of tonight's batch, which its history is about.

    Raises:
        UnknownAssignmentError: the assignment is not registered.
        InputError: there is no such judge.
    """
    assignment = ledger.assignment(settings.calibration_assignment)
    identity = _identity(settings)
    return assignment_configuration(assignment, _tunables(settings), **identity)


def submit_night(
    ledger: Ledger, settings: CJSettings, now: datetime, *, batch_id: str | None = None
) -> NightSubmission:
    """Submit the calibration of the night that `now` is in (UTC), unless the month's ceiling forbids it.

    Submitting again changes nothing, whatever has been spent since.

    Args:
        ledger: where to.
        settings: assignment, judge and limits.
        now: with a time zone.
        batch_id: for a further batch in one night.

    Raises:
        CJError: the assignment is not registered, has too few anchors, the judge is unknown or has no price, or the
            night was submitted with other settings. Nothing was stored then.
    """
    moment = now.astimezone(UTC)
    request = night_request(settings, moment.date(), batch_id=batch_id)
    _require_anchors(ledger, settings)
    if not _is_there(ledger, request.batch_id):
        _require_limit(settings)
        refusal = month_spending(ledger, settings, moment).refusal
        if refusal is not None:
            return NightSubmission(request.batch_id, None, refusal)
    return NightSubmission(request.batch_id, submit_batch(ledger, settings, request))


def look_at_nights_judge(settings: CJSettings) -> list[Finding]:
    """Whether the configured judge can be asked now; costs nothing. For whoever judges the night in its own process."""
    return look_at_judge(settings, _tunables(settings), settings.calibration_judge)


def month_spending(ledger: Ledger, settings: CJSettings, now: datetime) -> MonthSpending:
    """What this month's calibration has cost at most, over all assignments, and what one more night may add."""
    moment = now.astimezone(UTC)
    batches = [batch for batch in calibration_batches(ledger) if _month(batch.created_at) == _month(moment)]
    simulated = provider_and_model(settings.calibration_judge) is None
    return MonthSpending(
        month=_month(moment),
        committed_usd=sum(_at_most(ledger, batch) for batch in batches),
        tonight_usd=0.0 if simulated else settings.calibration_max_cost_usd or 0.0,
        ceiling_usd=settings.calibration_month_usd,
    )


def _at_most(ledger: Ledger, batch: BatchRecord) -> float:
    """US dollars: what a finished batch has cost; what an unfinished one may still come to."""
    committed = ledger.committed_usd(batch.batch_id)
    limit = batch.settings.get("max_cost_usd")
    return committed if batch.status.is_final or limit is None else max(committed, float(limit))


def _month(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m}"


def _is_there(ledger: Ledger, batch_id: str) -> bool:
    try:
        ledger.batch(batch_id)
    except UnknownBatchError:
        return False
    return True


def _require_anchors(ledger: Ledger, settings: CJSettings) -> None:
    try:
        assignment = ledger.assignment(settings.calibration_assignment)
    except UnknownAssignmentError as error:
        raise UnknownAssignmentError(f"{error}, or `cj eng5 register` for the ENG5 material") from None
    anchors = len(ledger.anchors(assignment))
    if anchors < MIN_ANCHORS:
        raise InputError(
            f"assignment {settings.calibration_assignment} has {anchors} anchors, and calibration needs {MIN_ANCHORS}: "
            "register them (`cj assignments register --replace`), or name another assignment in "
            "CJ_CALIBRATION_ASSIGNMENT"
        )


def _require_limit(settings: CJSettings) -> None:
    if provider_and_model(settings.calibration_judge) is not None and settings.calibration_max_cost_usd is None:
        raise InputError(
            "CJ_CALIBRATION_MAX_COST_USD is unset: a night needs a limit, or the month's ceiling could not hold"
        )


def _tunables(settings: CJSettings) -> BatchTunables:
    # which night makes no difference to the judge
    return effective_tunables(settings, night_request(settings, date(2000, 1, 1)).overrides)


def _identity(settings: CJSettings) -> dict[str, str]:
    name = settings.calibration_judge
    real = provider_and_model(name)
    if real is not None:
        # opening a real judge would ask for its key
        return {"profile": name, "provider": real[0], "model": real[1]}
    identity = open_judge(name, judge_setup(settings, _tunables(settings))).identity
    return {"profile": name, "provider": identity.provider, "model": identity.model}
