"""Group scoring: the Bradley–Terry scale, how certain it is, what deserves a look, and where the batch stands."""

from typing import Any

import polars as pl
from dagster import AssetExecutionContext, MetadataValue, asset

from cj_pipeline.defs.assets.common import (
    CODE_VERSION,
    OWNERS,
    asset_metadata,
    batch_metadata,
    numbers,
    picture,
    preview,
)
from cj_pipeline.defs.partitions import CJ_BATCH
from cj_pipeline.defs.resources import CJResource, batch_of_partition, plain_errors
from cj_pipeline.reports.figures import wave_history_picture
from cj_pipeline.settings import BatchTunables
from cj_pipeline.workflow import results
from cj_pipeline.workflow.frames import BATCHES, BT_SCORES, QUALITY_FLAGS, SE_SUMMARIES

_SHARED: dict[str, Any] = {
    "partitions_def": CJ_BATCH,
    "group_name": "scoring",
    "owners": OWNERS,
    "code_version": CODE_VERSION,
}


@asset(
    **_SHARED,
    kinds={"python", "scipy"},
    deps=["essays", "anchors"],
    metadata=asset_metadata(BT_SCORES),
)
def bt_scores(context: AssetExecutionContext, cj: CJResource, llm_judgments: pl.DataFrame) -> pl.DataFrame:
    """Bradley–Terry scores in logits with standard errors, best first; they sum to zero over the batch."""
    with plain_errors(), cj.ledger() as ledger:
        batch = batch_of_partition(ledger, context.partition_key)
        essays = results.essays_frame(ledger, batch.batch_id)
        scores = results.score(batch, llm_judgments, essays)
    shown = ["rank", "essay_id", "is_anchor", "known_grade", "score", "se", "comparisons", "wins", "losses"]
    context.add_output_metadata(
        {
            **batch_metadata(batch),
            **numbers({"mean_se": scores["se"].mean(), "max_se": scores["se"].max()}),
            "components": scores["component"].n_unique(),
            "ranking": preview(scores, shown, limit=60),
        }
    )
    return scores


@asset(**_SHARED, kinds={"python"}, metadata=asset_metadata(SE_SUMMARIES))
def bt_se_summary(
    context: AssetExecutionContext, cj: CJResource, bt_scores: pl.DataFrame, llm_judgments: pl.DataFrame
) -> pl.DataFrame:
    """How certain the scale is, over all essays, anchors and students. It changes no decision."""
    with plain_errors(), cj.ledger() as ledger:
        batch = batch_of_partition(ledger, context.partition_key)
        tunables = BatchTunables.model_validate(batch.settings)
        summaries = results.summarise(batch.batch_id, bt_scores, llm_judgments, tunables)
    everything = results.summary_by_scope(summaries)["all"]
    context.add_output_metadata({**batch_metadata(batch), **numbers(everything), "table": preview(summaries)})
    return summaries


@asset(**_SHARED, kinds={"python"}, metadata=asset_metadata(QUALITY_FLAGS))
def bt_quality_flags(context: AssetExecutionContext, cj: CJResource, bt_se_summary: pl.DataFrame) -> pl.DataFrame:
    """What deserves a look: inflated standard errors, sparse coverage, isolated essays. It changes no decision."""
    with plain_errors(), cj.ledger() as ledger:
        batch = batch_of_partition(ledger, context.partition_key)
        flags = results.flag(batch.batch_id, bt_se_summary, BatchTunables.model_validate(batch.settings))
    row = flags.row(0, named=True)
    context.add_output_metadata({**batch_metadata(batch), **{k: v for k, v in row.items() if k != "batch_id"}})
    return flags


@asset(**_SHARED, kinds={"python"}, metadata=asset_metadata(BATCHES))
def batch_state(
    context: AssetExecutionContext, cj: CJResource, bt_se_summary: pl.DataFrame, bt_quality_flags: pl.DataFrame
) -> pl.DataFrame:
    """Where the batch stands, with its processing metadata and the history of its waves as a picture."""
    with plain_errors(), cj.ledger() as ledger:
        batch = batch_of_partition(ledger, context.partition_key)
        comparisons = results.comparisons_frame(ledger, batch.batch_id)
        frame = results.batches_frame(ledger, batch, comparisons)
        waves = results.waves_frame(ledger, batch.batch_id, comparisons)
    row = frame.row(0, named=True)
    flags = {name: value for name, value in bt_quality_flags.row(0, named=True).items() if name != "batch_id"}
    processing_metadata = {
        **batch.processing_metadata,
        "bt_se_summary": results.summary_by_scope(bt_se_summary),
        "bt_quality_flags": flags,
    }
    shown = ["wave", "pair_mode", "judged", "failed", "max_score_change", "mean_se", "max_se", "decision", "reason"]
    context.add_output_metadata(
        {
            **batch_metadata(batch),
            **numbers({name: row[name] for name in ("submitted", "judged", "failed", "total_budget", "cost_usd")}),
            **flags,
            "processing_metadata": MetadataValue.json(processing_metadata),
            "wave_history": picture(
                wave_history_picture(
                    waves,
                    threshold=float(batch.settings["score_stability_threshold"]),
                    budget=batch.total_budget or 0,
                    title=f"Batch {batch.batch_id}: {batch.status.value}",
                    simulated=batch.simulated,
                ),
                "wave history",
            ),
            "waves": preview(waves, shown, limit=200),
        }
    )
    return frame
