"""The jobs: what can be launched, by a sensor or by hand. All run in one process."""

from typing import Final

from dagster import (
    AssetKey,
    AssetSelection,
    DagsterInstance,
    JobDefinition,
    OpExecutionContext,
    define_asset_job,
    in_process_executor,
    job,
    op,
)
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from cj_pipeline.defs.inbox import ingest_claimed
from cj_pipeline.defs.resources import CJResource

_INPUTS: Final = AssetSelection.groups("inputs")
_RESULTS: Final = AssetSelection.groups("scoring", "results", "publishing", "eng5")
_JUDGING: Final = AssetSelection.groups("judging")

assess_batch_job = define_asset_job(
    "assess_batch_job",
    selection=_INPUTS | _JUDGING | _RESULTS,
    executor_def=in_process_executor,
    description="The whole batch: inputs and their checks, waves to a stop, scores, grades, publication.",
)
continue_batch_job = define_asset_job(
    "continue_batch_job",
    selection=_JUDGING | _RESULTS,
    executor_def=in_process_executor,
    description="Go on with a batch: the same without its inputs and their checks.",
)
rescore_batch_job = define_asset_job(
    "rescore_batch_job",
    selection=_RESULTS,
    executor_def=in_process_executor,
    description="Scores, grades and publication from the judgments on record. No call is made.",
)
alignment_leaderboard_job = define_asset_job(
    "alignment_leaderboard_job",
    selection=AssetSelection.assets("alignment_leaderboard"),
    executor_def=in_process_executor,
    description="Rebuild the leaderboard of judges and prompts from the ledger. No call is made.",
)


@op(config_schema={"claim": str}, description="Read a claimed inbox folder, submit it, and move it where it belongs.")
def ingest_batch(context: OpExecutionContext, cj: CJResource) -> None:
    """Accepted: moved to `inbox/accepted/`. Refused: moved to `inbox/rejected/` beside an `error.txt`."""
    settings = cj.settings()
    with cj.ledger() as ledger:
        result = ingest_claimed(settings, ledger, context.instance, context.op_config["claim"])
    context.log.info(result.message)
    context.add_output_metadata(
        {"accepted": result.accepted, "batch_id": result.batch_id or "", "message": result.message}
    )


@job(executor_def=in_process_executor, description="Take in one batch folder that the inbox sensor has claimed.")
def ingest_batch_job() -> None:
    """One op, so that reading files happens in a run and not in a sensor's tick."""
    ingest_batch()


def job_for(instance: DagsterInstance, batch_id: str) -> str:
    """The name of the job that a batch needs next: the whole one until its inputs have materialised once."""
    started = batch_id in instance.get_materialized_partitions(AssetKey("essays"))
    return continue_batch_job.name if started else assess_batch_job.name


JOBS: Final[list[JobDefinition | UnresolvedAssetJobDefinition]] = [
    assess_batch_job,
    continue_batch_job,
    rescore_batch_job,
    alignment_leaderboard_job,
    ingest_batch_job,
]
