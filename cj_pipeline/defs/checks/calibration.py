"""Calibration over time as checks on `anchor_calibration_history`: one for each measure, and one for missing nights.

A check that fails does not fail the run: the history is as good as ever, it is the judge that needs a look.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    asset_check,
    multi_asset_check,
)

from cj_pipeline.defs.resources import CJResource, plain_errors
from cj_pipeline.eng5.calibration_history import Measure, calibration_history, check_night

WATCHED: Final = {
    Measure.ANCHORS: "No anchor is read otherwise than on earlier nights.",
    Measure.TAU_B: "The judge agrees with the experts as well as on earlier nights (Kendall's τ-b).",
    Measure.POSITION: "Being read first helps as much, or as little, as on earlier nights.",
    Measure.COST: "A judgment costs no more than on earlier nights.",
    Measure.LATENCY: "A call takes no longer than on earlier nights.",
}
_ONLY_WARN: Final = (Measure.COST, Measure.LATENCY)


@multi_asset_check(
    name="calibration_control",
    specs=[
        AssetCheckSpec(
            f"{measure}_in_control",
            asset="anchor_calibration_history",
            description=f"{description} Beyond CJ_CALIBRATION_SIGMAS standard deviations, or drifting.",
        )
        for measure, description in WATCHED.items()
    ],
)
def calibration_control(context: AssetCheckExecutionContext, cj: CJResource) -> Iterator[AssetCheckResult]:
    """One result per measure, about the last night."""
    with plain_errors(), cj.ledger() as ledger:
        history = calibration_history(ledger, cj.settings())
    for measure in Measure:
        said = history.verdict(measure)
        yield AssetCheckResult(
            check_name=f"{measure}_in_control",
            passed=said.in_control,
            severity=AssetCheckSeverity.WARN if measure in _ONLY_WARN else AssetCheckSeverity.ERROR,
            metadata={"night": said.night or "", "nights": len(history.rows)},
            description=said.text,
        )


@asset_check(
    asset="anchor_calibration_history",
    description="The last night that was due by 09:00 UTC was calibrated. Tells a missed night from a failed one.",
)
def night_is_there(context: AssetCheckExecutionContext, cj: CJResource) -> AssetCheckResult:
    """By the ledger and the clock, so that it also speaks when nothing has happened."""
    with plain_errors(), cj.ledger() as ledger:
        found = check_night(ledger, cj.settings(), datetime.now(UTC))
    return AssetCheckResult(
        passed=found.there,
        severity=AssetCheckSeverity.ERROR,
        metadata={"night": found.night.isoformat()},
        description=found.text,
    )


CALIBRATION_CHECKS = [calibration_control, night_is_there]
