"""Group eng5: how a judge agrees with the experts, for batches that judged anchors as students.

Other batches have no such asset: for them nothing is yielded, and the checks on it are skipped.
"""

from collections.abc import Iterator

from dagster import AssetExecutionContext, MaterializeResult, MetadataValue, asset

from cj_pipeline.defs.assets.common import CODE_VERSION, OWNERS, batch_metadata, picture
from cj_pipeline.defs.partitions import CJ_BATCH
from cj_pipeline.defs.resources import CJResource, batch_of_partition, plain_errors


@asset(
    partitions_def=CJ_BATCH,
    group_name="eng5",
    kinds={"python"},
    owners=OWNERS,
    code_version=CODE_VERSION,
    deps=["comparison_graph"],
    output_required=False,
)
def alignment_report(context: AssetExecutionContext, cj: CJResource) -> Iterator[MaterializeResult[None]]:
    """The judge's order of the anchors against the experts': Markdown and HTML on disk, figures and picture here."""
    from cj_pipeline.core.alignment import AlignmentTargets
    from cj_pipeline.eng5.anchor_align import can_be_reported, ledger_report, write_report
    from cj_pipeline.eng5.batches import eng5_scale

    settings = cj.settings()
    with plain_errors(), cj.ledger() as ledger:
        batch = batch_of_partition(ledger, context.partition_key)
        if not can_be_reported(ledger, batch):
            context.log.info(f"batch {batch.batch_id} is not about judge against experts: no alignment report")
            return
        report = ledger_report(ledger, batch.batch_id, eng5_scale(), AlignmentTargets())
        written = write_report(report, settings.outputs_dir / "eng5" / batch.batch_id)
    tau = report.alignment.tau
    yield MaterializeResult(
        # the report itself quotes justifications, which stay out of metadata
        metadata={
            **batch_metadata(batch),
            **{verdict.name: verdict.value for verdict in report.verdicts},
            "tau_b_low": tau.interval[0],
            "tau_b_high": tau.interval[1],
            "judgments": report.alignment.judgments,
            "scores": picture(report.picture(), "score over expert grade"),
            "path": MetadataValue.path(str(written[0].resolve())),
        }
    )
