"""Group judging: waves are planned, judged and decided here, in one step that cannot be split.

The loop itself is `workflow.loop`; here its waves become observations and its end becomes two materialisations.
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetObservation,
    AssetOut,
    DagsterRunStatus,
    Output,
    multi_asset,
)

from cj_pipeline.core.models import BatchStatus
from cj_pipeline.defs.assets.common import CODE_VERSION, OWNERS, asset_metadata, batch_metadata, numbers, preview
from cj_pipeline.defs.partitions import CJ_BATCH
from cj_pipeline.defs.resources import CJResource, batch_of_partition, plain_errors
from cj_pipeline.ledger import Ledger
from cj_pipeline.workflow.frames import JUDGMENTS, PAIRS
from cj_pipeline.workflow.loop import Outcome, Progress, WaveReport, advance_batch, process_owner
from cj_pipeline.workflow.results import comparisons_frame, judgments_frame, pairs_frame


@multi_asset(
    name="run_waves",
    outs={
        "pair_waves": AssetOut(
            description="The plan: every comparison of the batch, in the order of planning, wave by wave.",
            group_name="judging",
            kinds={"python", "polars"},
            owners=OWNERS,
            code_version=CODE_VERSION,
            metadata=asset_metadata(PAIRS),
        ),
        "llm_judgments": AssetOut(
            description="The judge's answer to every comparison, or how it failed; with tokens and cost. "
            "Each wave is one observation.",
            group_name="judging",
            kinds={"python", "polars"},
            owners=OWNERS,
            code_version=CODE_VERSION,
            is_required=False,
            metadata=asset_metadata(JUDGMENTS),
        ),
    },
    deps=["essays", "anchors"],
    partitions_def=CJ_BATCH,
    can_subset=False,
)
def run_waves(context: AssetExecutionContext, cj: CJResource) -> Iterator[Any]:
    """Advance the batch: waves until the decision is final, a limit of the settings, a wait, a hold or an interrupt."""
    batch_id = context.partition_key
    settings = cj.settings()
    with plain_errors(), cj.ledger() as ledger:
        batch_of_partition(ledger, batch_id)
        if _launched_by_hand(context):
            ledger.resume(batch_id, f"launched by hand, run {context.run.run_id}")
        try:
            advance = advance_batch(
                ledger,
                batch_id,
                settings,
                owner=process_owner(context.run.run_id),
                on_event=lambda event: _observe(context, event),
            )
        except BaseException:
            _hold_if_terminated(context, ledger, batch_id)
            raise
        if advance.outcome is Outcome.HELD:
            context.log.warning(f"batch {batch_id} was put on hold: it goes on after `cj resume {batch_id}`")
        waiting = advance.waiting
        if waiting is not None:
            context.log.info(f"batch {batch_id} waits, until {waiting.until:%Y-%m-%d %H:%M:%S} UTC: {waiting.reason}")
        comparisons = comparisons_frame(ledger, batch_id)
        batch = ledger.batch(batch_id)
        state = ledger.state(batch_id)
        cost = ledger.cost_usd(batch_id)
    counts = numbers(
        {
            "submitted": state.submitted,
            "judged": state.judged,
            "failed": state.failed,
            "pending": state.pending,
            "total_budget": state.total_budget,
            "success_rate": state.success_rate,
            "waves_in_this_run": advance.waves,
            "judged_in_this_run": advance.judged,
        }
    )
    yield Output(
        pairs_frame(comparisons),
        output_name="pair_waves",
        metadata={
            **batch_metadata(batch),
            **counts,
            **({} if waiting is None else {"waiting_for": waiting.reason, "waiting_until": str(waiting.until)}),
            "preview": preview(pairs_frame(comparisons)),
        },
    )
    if waiting is not None:
        # not yielded, so that scores and publication are skipped until there is something new to score
        return
    judgments = judgments_frame(comparisons)
    columns = ["comparison_id", "essay_a", "essay_b", "winner", "confidence", "status", "error_type"]
    yield Output(
        judgments,
        output_name="llm_judgments",
        metadata={
            **batch_metadata(batch),
            **counts,
            **numbers({"cost_usd": cost}),
            "cost_known": cost is not None,
            "tokens_in": int(judgments["tokens_in"].sum()),
            "tokens_out": int(judgments["tokens_out"].sum()),
            "preview": preview(judgments, columns),
        },
    )


def _launched_by_hand(context: AssetExecutionContext) -> bool:
    """Whether a person launched the run: a sensor's runs carry its name, which a re-execution by hand inherits."""
    return "dagster/sensor_name" not in context.run.tags or context.run.parent_run_id is not None


def _observe(context: AssetExecutionContext, event: Progress | WaveReport) -> None:
    if isinstance(event, Progress):
        return
    values = asdict(event)
    flags = values.pop("flags")
    context.log_event(
        AssetObservation(
            asset_key=AssetKey("llm_judgments"),
            partition=context.partition_key,
            description=f"wave {event.wave}: {event.decision} ({event.reason})",
            metadata=numbers({**values, **flags}),
        )
    )


def _hold_if_terminated(context: AssetExecutionContext, ledger: Ledger, batch_id: str) -> None:
    """A run that a person terminated holds its batch; one that died with its machine does not."""
    run = context.instance.get_run_by_id(context.run.run_id)
    terminated = run is not None and run.status in (DagsterRunStatus.CANCELING, DagsterRunStatus.CANCELED)
    status = ledger.batch(batch_id).status
    if terminated and status in (BatchStatus.SUBMITTED, BatchStatus.JUDGING):
        ledger.hold(batch_id, f"run {context.run.run_id} was terminated: `cj resume {batch_id}` to go on")
