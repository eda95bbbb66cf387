"""Group publishing: what leaves the pipeline. The DuckDB graph, and the mark that the batch was published."""

import polars as pl
from dagster import AssetExecutionContext, MaterializeResult, MetadataValue, asset

from cj_pipeline.analysis.graph import publish_batch
from cj_pipeline.core.errors import CJError
from cj_pipeline.defs.assets.common import CODE_VERSION, OWNERS, batch_metadata, preview
from cj_pipeline.defs.partitions import CJ_BATCH
from cj_pipeline.defs.resources import CJResource, batch_of_partition, plain_errors
from cj_pipeline.ledger import BatchBusyError, Lease
from cj_pipeline.workflow import results
from cj_pipeline.workflow.frames import (
    ANCHOR_REPORT,
    ATTEMPTS,
    BATCHES,
    BT_SCORES,
    COMPARISONS,
    ESSAYS,
    GRADE_BOUNDARIES,
    GRADE_PROJECTIONS,
    QUALITY_FLAGS,
    SE_SUMMARIES,
    WAVES,
)
from cj_pipeline.workflow.loop import process_owner
from cj_pipeline.workflow.registration import scale_of


class StaleResultsError(CJError):
    """What a run scored is not what the ledger holds."""


@asset(
    partitions_def=CJ_BATCH,
    group_name="publishing",
    kinds={"python", "duckdb"},
    owners=OWNERS,
    code_version=CODE_VERSION,
)
def comparison_graph(
    context: AssetExecutionContext,
    cj: CJResource,
    llm_judgments: pl.DataFrame,
    batch_state: pl.DataFrame,
    bt_scores: pl.DataFrame,
    bt_se_summary: pl.DataFrame,
    bt_quality_flags: pl.DataFrame,
    grade_projections: pl.DataFrame,
) -> MaterializeResult[None]:
    """The DuckDB file that analysts open: essays as nodes, judgments as edges, scores and grades beside them."""
    settings = cj.settings()
    with plain_errors(), cj.ledger() as ledger:
        batch = batch_of_partition(ledger, context.partition_key)
        as_of = results.judged_count(llm_judgments)
        # justifications never pass through the lake: the edges come from the ledger
        comparisons = results.comparisons_frame(ledger, batch.batch_id)
        _refuse_other_judgments(batch.batch_id, as_of, results.judged_count(comparisons), batch_state)
        projected = results.project(batch, scale_of(ledger, batch), bt_scores, llm_judgments)
        publication = publish_batch(
            settings.graph_path,
            batch.batch_id,
            {
                BATCHES.name: batch_state,
                ESSAYS.name: results.essays_frame(ledger, batch.batch_id),
                COMPARISONS.name: comparisons,
                ATTEMPTS.name: results.attempts_frame(ledger, batch.batch_id, comparisons),
                BT_SCORES.name: bt_scores,
                WAVES.name: results.waves_frame(ledger, batch.batch_id, comparisons),
                SE_SUMMARIES.name: bt_se_summary,
                QUALITY_FLAGS.name: bt_quality_flags,
                GRADE_PROJECTIONS.name: grade_projections,
                GRADE_BOUNDARIES.name: projected.boundaries,
                ANCHOR_REPORT.name: projected.anchors,
            },
            as_of=as_of,
        )
        try:
            with Lease.acquire(
                ledger,
                batch.batch_id,
                owner=process_owner(context.run.run_id),
                seconds=settings.lease_seconds,
                wait=settings.lease_seconds,
            ) as lease:
                lease.mark_published(as_of)
        except BatchBusyError as error:
            context.log.warning(f"published, but not marked so, because the batch goes on: {error}")
    return MaterializeResult(
        metadata={
            **batch_metadata(batch),
            "as_of": as_of,
            "published": publication.published,
            "path": MetadataValue.path(str(settings.graph_path.resolve())),
            "comparisons": comparisons.height,
            "rankings": preview(
                grade_projections.filter(~pl.col("is_anchor")), ["essay_id", "grade", "confidence", "label"]
            ),
        }
    )


def _refuse_other_judgments(batch_id: str, scored: int, recorded: int, batch_state: pl.DataFrame) -> None:
    """Scores, state and edges must tell of the same judgments, or the graph would contradict itself.

    Raises:
        StaleResultsError: they do not.
    """
    stated = int(batch_state.row(0, named=True)["as_of"])
    if not scored == stated == recorded:
        raise StaleResultsError(
            f"batch {batch_id}: this run scored {scored} judgments and the ledger holds {recorded}: another run is at "
            "work on the batch, or the lake is older than the ledger. Launch continue_batch_job, which reads afresh"
        )
