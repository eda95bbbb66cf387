"""Group results: grades with their probabilities."""

import polars as pl
from dagster import AssetExecutionContext, asset

from cj_pipeline.defs.assets.common import CODE_VERSION, OWNERS, asset_metadata, batch_metadata, picture, preview
from cj_pipeline.defs.partitions import CJ_BATCH
from cj_pipeline.defs.resources import CJResource, batch_of_partition, plain_errors
from cj_pipeline.reports.figures import comparison_graph_picture, forest_plot
from cj_pipeline.workflow import results
from cj_pipeline.workflow.frames import GRADE_PROJECTIONS
from cj_pipeline.workflow.registration import scale_of


@asset(
    partitions_def=CJ_BATCH,
    group_name="results",
    kinds={"python", "polars"},
    owners=OWNERS,
    code_version=CODE_VERSION,
    deps=["batch_state"],
    metadata=asset_metadata(GRADE_PROJECTIONS),
)
def grade_projections(
    context: AssetExecutionContext, cj: CJResource, bt_scores: pl.DataFrame, llm_judgments: pl.DataFrame
) -> pl.DataFrame:
    """Every essay's grade with all probabilities and a confidence, or the reason there is none."""
    with plain_errors(), cj.ledger() as ledger:
        batch = batch_of_partition(ledger, context.partition_key)
        projected = results.project(batch, scale_of(ledger, batch), bt_scores, llm_judgments)
    result, projections = projected.result, projected.projections
    students = projections.filter(~pl.col("is_anchor"))
    graded = students.filter(pl.col("available"))
    shown = ["essay_id", "grade", "confidence", "label", "would_change", "grade_uniform", "boundary_distance_se"]
    shown += ["nearest_boundary", "reason"]
    anchors = projections.filter(pl.col("is_anchor"))
    inversions = [] if result is None else result.inversions
    title = f"Batch {batch.batch_id}: {batch.status.value}"
    context.add_output_metadata(
        {
            **batch_metadata(batch),
            "students": students.height,
            "graded": graded.height,
            "high_confidence": graded.filter(pl.col("label") == "HIGH").height,
            "inverted_anchor_pairs": len(inversions),
            "scores": picture(
                forest_plot(bt_scores, projections, title=title, simulated=batch.simulated), "scores with SE"
            ),
            "graph": picture(
                comparison_graph_picture(bt_scores, llm_judgments, projections, title=title, simulated=batch.simulated),
                "comparison graph",
            ),
            "grades": preview(students, shown, limit=60),
            "anchor_check": preview(anchors, ["essay_id", "known_grade", "grade", "confidence"], limit=60),
            "anchor_verdict": (result.anchor_verdict if result else None) or "",
            "anchor_report": preview(projected.anchors.drop("batch_id"), limit=60),
            "boundaries": preview(projected.boundaries.drop("batch_id")),
        }
    )
    return projections
