"""Group inputs: the essays and anchors of a batch, as snapshotted at submission. No text leaves the ledger."""

import polars as pl
from dagster import AssetExecutionContext, asset

from cj_pipeline.core.models import EssayRole
from cj_pipeline.defs.assets.common import CODE_VERSION, OWNERS, asset_metadata, batch_metadata, preview
from cj_pipeline.defs.partitions import CJ_BATCH
from cj_pipeline.defs.resources import CJResource, batch_of_partition, plain_errors
from cj_pipeline.workflow.frames import ESSAYS
from cj_pipeline.workflow.results import essays_frame


def _snapshot(context: AssetExecutionContext, cj: CJResource, role: EssayRole) -> pl.DataFrame:
    with plain_errors(), cj.ledger() as ledger:
        batch = batch_of_partition(ledger, context.partition_key)
        frame = essays_frame(ledger, batch.batch_id, role)
    shown = ["essay_id", "word_count"] if role is EssayRole.STUDENT else ["essay_id", "known_grade", "word_count"]
    context.add_output_metadata(
        {
            **batch_metadata(batch),
            "count": frame.height,
            "words": int(frame["word_count"].sum()),
            "preview": preview(frame, shown),
        }
    )
    return frame


@asset(
    partitions_def=CJ_BATCH,
    group_name="inputs",
    kinds={"python", "polars"},
    owners=OWNERS,
    code_version=CODE_VERSION,
    metadata=asset_metadata(ESSAYS),
)
def essays(context: AssetExecutionContext, cj: CJResource) -> pl.DataFrame:
    """The student essays of the batch: ids, hashes and word counts."""
    return _snapshot(context, cj, EssayRole.STUDENT)


@asset(
    partitions_def=CJ_BATCH,
    group_name="inputs",
    kinds={"python", "polars"},
    owners=OWNERS,
    code_version=CODE_VERSION,
    metadata=asset_metadata(ESSAYS),
)
def anchors(context: AssetExecutionContext, cj: CJResource) -> pl.DataFrame:
    """The anchors of the batch's assignment, with their expert grades, as of the revision it was submitted with."""
    return _snapshot(context, cj, EssayRole.ANCHOR)
