"""Group eng5: the run artefact of the programme's batches, and how a judge agrees with the experts.

Other batches have no such assets: for them nothing is yielded, and the checks on them are skipped.
"""

from collections.abc import Iterator

from dagster import AssetExecutionContext, MaterializeResult, MetadataValue, asset

from cj_pipeline.core.errors import RequestError
from cj_pipeline.core.models import BatchKind
from cj_pipeline.defs.assets.common import CODE_VERSION, OWNERS, batch_metadata, numbers, picture
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


@asset(
    partitions_def=CJ_BATCH,
    group_name="eng5",
    kinds={"json"},
    owners=OWNERS,
    code_version=CODE_VERSION,
    deps=["comparison_graph"],
    output_required=False,
)
def assessment_run(context: AssetExecutionContext, cj: CJResource) -> Iterator[MaterializeResult[None]]:
    """The run artefact of what `execute`, `anchor-align-test` or a matrix submitted, as the ledger has it now."""
    from cj_pipeline.eng5.artefact import RunArtefact, RunMode
    from cj_pipeline.eng5.artefact_building import started_mode
    from cj_pipeline.eng5.batches import eng5_scale
    from cj_pipeline.eng5.handlers import finish_run
    from cj_pipeline.eng5.inventory import read_inventory

    settings = cj.settings()
    with plain_errors(), cj.ledger() as ledger:
        batch = batch_of_partition(ledger, context.partition_key)
        mode = started_mode(settings.outputs_dir, batch.batch_id)
        if mode is None and batch.kind is BatchKind.ANCHOR_ALIGN:
            # submitted by other means than a mode or a matrix, which write one at once
            mode = RunMode.ANCHOR_ALIGN_TEST
        if mode is None:
            context.log.info(
                f"batch {batch.batch_id} was not submitted by a mode of the ENG5 programme: no run artefact"
            )
            return
        try:
            inventory = read_inventory(settings.effective_eng5_assets_dir, eng5_scale())
            path = finish_run(ledger, settings, batch.batch_id, inventory, mode)
        except RequestError as error:
            # the batch may come from another folder than this process knows, which is no fault of its results
            context.log.warning(
                f"no run artefact: {error}. Write it by `cj eng5 collect {batch.batch_id} --assets DIR`"
            )
            return
    run = RunArtefact.model_validate_json(path.read_bytes())
    observed = run.validation.runner_status.observed
    yield MaterializeResult(
        metadata={
            **batch_metadata(batch),
            "mode": mode.value,
            "partial_data": run.validation.runner_status.partial_data,
            "judged": observed.judged,
            "failed": observed.failed,
            "grade_projections": observed.grade_projections,
            **numbers({"cost_usd": run.costs.total_usd}),
            "path": MetadataValue.path(str(path.resolve())),
        }
    )
