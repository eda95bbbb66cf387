"""Group calibration: the anchor bank, and what every night measured. Unpartitioned, rebuilt from the ledger.

Both are about the assignment and judge that the settings name. Where there is nothing to tell yet, nothing is yielded,
so that a run of everything for one batch does not fail by them.
"""

from collections.abc import Iterator
from datetime import timedelta

from dagster import AssetExecutionContext, FreshnessPolicy, MaterializeResult, MetadataValue, asset

from cj_pipeline.defs.assets.common import CODE_VERSION, OWNERS, column_schema, numbers, picture, preview
from cj_pipeline.defs.resources import CJResource, plain_errors
from cj_pipeline.eng5.calibration_files import (
    BANK_TABLE,
    NIGHTS_TABLE,
    bank_frame,
    history_picture,
    nights_frame,
    stored_bank,
    write_bank,
    write_history,
)
from cj_pipeline.eng5.calibration_history import DEADLINE_HOUR, NIGHT_HOUR, Measure, calibration_history
from cj_pipeline.ledger import Ledger
from cj_pipeline.settings import CJSettings
from cj_pipeline.workflow.calibration import calibration_batches, calibration_nights

GROUP = "calibration"


@asset(
    group_name=GROUP,
    kinds={"python", "duckdb"},
    owners=OWNERS,
    code_version=CODE_VERSION,
    output_required=False,
    metadata={"dagster/column_schema": column_schema(BANK_TABLE)},
)
def anchor_bank(context: AssetExecutionContext, cj: CJResource) -> Iterator[MaterializeResult[None]]:
    """Where the judge puts the anchors, from all finished nights: JSON and a DuckDB table."""
    from cj_pipeline.eng5.nightly import night_configuration

    settings = cj.settings()
    with plain_errors(), cj.ledger() as ledger:
        if not _calibrated(context, ledger, settings):
            return
        nights = calibration_nights(
            ledger,
            settings.calibration_assignment,
            night_configuration(ledger, settings),
            since=settings.calibration_from,
        )
        if not nights.nights:
            reasons = "; ".join(f"{one.batch_id}: {one.reason}" for one in nights.left_out)
            context.log.warning(f"no night of the configured judge, so no anchor bank: {reasons}")
            return
        stored = stored_bank(nights)
        written = write_bank(stored, nights, settings.calibration_dir)
    frame = bank_frame(stored, nights)
    low, high = stored.bank.night_sd_interval
    yield MaterializeResult(
        metadata={
            "assignment": stored.assignment_id,
            "judge": stored.configuration.profile,
            "simulated": stored.simulated,
            "nights": len(stored.bank.nights),
            "left_out": len(nights.left_out),
            "anchors": preview(frame, ["anchor_ref", "expert_grade", "position", "se"], limit=100),
            "mean_se": float(frame["se"].to_numpy().mean()),
            "night_sd": stored.bank.night_variance**0.5,
            "night_sd_low": low,
            "night_sd_high": high,
            "path": MetadataValue.path(str(written[0].resolve())),
        }
    )


@asset(
    group_name=GROUP,
    kinds={"python", "duckdb"},
    owners=OWNERS,
    code_version=CODE_VERSION,
    output_required=False,
    # a night that never came leaves this behind; one that came and failed is told by the check `night_is_there`
    freshness_policy=FreshnessPolicy.cron(
        deadline_cron=f"0 {DEADLINE_HOUR} * * *", lower_bound_delta=timedelta(hours=DEADLINE_HOUR - NIGHT_HOUR)
    ),
    metadata={"dagster/column_schema": column_schema(NIGHTS_TABLE)},
)
def anchor_calibration_history(context: AssetExecutionContext, cj: CJResource) -> Iterator[MaterializeResult[None]]:
    """Every night's figures and control charts: DuckDB tables, Markdown and a picture."""
    settings = cj.settings()
    with plain_errors(), cj.ledger() as ledger:
        if not _calibrated(context, ledger, settings):
            return
        history = calibration_history(ledger, settings)
        written = write_history(history, settings.calibration_dir)
    last = history.rows[-1] if history.rows else None
    verdicts = {measure: history.verdict(measure) for measure in Measure}
    yield MaterializeResult(
        metadata={
            "assignment": history.assignment_id,
            "judge": history.configuration.profile,
            "simulated": history.simulated,
            "nights": len(history.rows),
            "left_out": len(history.nights.left_out),
            **{f"{measure}_verdict": said.text for measure, said in verdicts.items()},
            **(
                {}
                if last is None
                else numbers(
                    {
                        "tau_b": last.tau_b,
                        "order_effect": last.order_effect,
                        "cost_usd": last.cost_usd,
                        "latency_seconds": last.latency_seconds,
                    }
                )
            ),
            "last_nights": preview(
                nights_frame(history).reverse(), ["night", "used", "reason", "judgments", "tau_b", "cost_usd"], limit=14
            ),
            "charts": picture(history_picture(history), "control charts"),
            "path": MetadataValue.path(str(written[0].resolve())),
        }
    )


def _calibrated(context: AssetExecutionContext, ledger: Ledger, settings: CJSettings) -> bool:
    """Whether the configured assignment has a calibration batch at all; says so if not."""
    if calibration_batches(ledger, settings.calibration_assignment):
        return True
    context.log.info(
        f"assignment {settings.calibration_assignment} (CJ_CALIBRATION_ASSIGNMENT) has no calibration batch yet: "
        "`cj eng5 calibrate` makes one"
    )
    return False
