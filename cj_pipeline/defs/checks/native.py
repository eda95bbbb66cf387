"""What must always hold of a batch, checked against the ledger's own rows each time its assets materialise.

A check looks; it mends nothing and decides nothing. Only `batch_succeeded` is blocking: it sits on the last asset and
makes the run of a failed batch fail after everything was published.
"""

import math
from typing import Any

import polars as pl
from dagster import AssetCheckExecutionContext, AssetCheckResult, AssetCheckSeverity, asset_check

from cj_pipeline.core.models import ComparisonStatus
from cj_pipeline.defs.partitions import CJ_BATCH
from cj_pipeline.defs.resources import CJResource, plain_errors
from cj_pipeline.workflow import results


@asset_check(
    asset="pair_waves",
    partitions_def=CJ_BATCH,
    description="No more comparisons were submitted than the budget allows.",
)
def budget_is_a_wall(context: AssetCheckExecutionContext, cj: CJResource, pair_waves: pl.DataFrame) -> AssetCheckResult:
    """Submitted (planned and not withdrawn) ≤ total_budget."""
    with plain_errors(), cj.ledger() as ledger:
        budget = ledger.batch(context.partition_key).total_budget
    submitted = pair_waves.filter(pl.col("status") != ComparisonStatus.WITHDRAWN.value).height
    return AssetCheckResult(
        passed=budget is not None and submitted <= budget,
        severity=AssetCheckSeverity.ERROR,
        metadata={"submitted": submitted, "total_budget": budget or 0},
        description=None if budget is not None else "the batch has no budget, which is a defect",
    )


@asset_check(
    asset="pair_waves",
    partitions_def=CJ_BATCH,
    description="Every essay is read first about as often as second: |A − B| ≤ 1 (2 while a small net is repaired).",
)
def positions_are_balanced(
    context: AssetCheckExecutionContext, cj: CJResource, pair_waves: pl.DataFrame
) -> AssetCheckResult:
    """Largest |A − B| over planned comparisons."""
    with plain_errors(), cj.ledger() as ledger:
        batch = ledger.batch(context.partition_key)
        table = results.position_table(ledger, batch.batch_id)
    small = table.height < int(batch.settings["min_resampling_net_size"])
    balanced = bool(batch.settings["enable_comparison_position_balancing"])
    largest = max((abs(skew) for skew in table["skew"].to_list()), default=0)
    return AssetCheckResult(
        passed=not balanced or largest <= (2 if small else 1),
        severity=AssetCheckSeverity.ERROR,
        metadata={"largest_skew": largest, "small_net": small, "balancing": balanced},
    )


@asset_check(
    asset="llm_judgments",
    partitions_def=CJ_BATCH,
    description="What the asset says was judged and failed is what the ledger counts.",
)
def counters_match_the_ledger(
    context: AssetCheckExecutionContext, cj: CJResource, llm_judgments: pl.DataFrame
) -> AssetCheckResult:
    """Counts of the frame against counts of the ledger's rows; progress never exceeds 100 %."""
    with plain_errors(), cj.ledger() as ledger:
        state = ledger.state(context.partition_key)
    counted = dict(llm_judgments.group_by("status").len().iter_rows())
    expected = {"judged": state.judged, "failed": state.failed, "planned": state.pending}
    differing = {name: value for name, value in expected.items() if counted.get(name, 0) != value}
    progress = state.callbacks / state.total_budget if state.total_budget else 0.0
    return AssetCheckResult(
        passed=not differing and progress <= 1.0,
        severity=AssetCheckSeverity.ERROR,
        metadata={"progress": progress, **{f"ledger_{name}": value for name, value in expected.items()}},
        description=f"differs from the ledger in: {', '.join(differing)}" if differing else None,
    )


@asset_check(
    asset="bt_scores",
    partitions_def=CJ_BATCH,
    description="Every essay can be compared with every other through judged comparisons.",
)
def graph_is_connected(cj: CJResource, bt_scores: pl.DataFrame) -> AssetCheckResult:
    """One component; a warning, because an unfinished batch may still fall into parts."""
    parts = bt_scores["component"].n_unique() if bt_scores.height else 0
    return AssetCheckResult(
        passed=parts <= 1, severity=AssetCheckSeverity.WARN, metadata={"components": parts, "essays": bt_scores.height}
    )


@asset_check(
    asset="grade_projections",
    partitions_def=CJ_BATCH,
    description="The grade probabilities of every graded essay sum to 1.",
)
def probabilities_sum_to_one(cj: CJResource, grade_projections: pl.DataFrame) -> AssetCheckResult:
    """|Σ − 1| ≤ 1e-9 for every essay with a grade."""
    available = grade_projections.filter(pl.col("available"))
    sums = [math.fsum(entry["probability"] for entry in row) for row in available["probabilities"].to_list()]
    deviations = [abs(total - 1.0) for total in sums]
    # asked one by one: a NaN is not within the bound, and max() may overlook it
    return AssetCheckResult(
        passed=all(deviation <= 1e-9 for deviation in deviations),
        severity=AssetCheckSeverity.ERROR,
        metadata={"graded": available.height, "largest_deviation": max(deviations, default=0.0)},
    )


@asset_check(
    asset="comparison_graph",
    partitions_def=CJ_BATCH,
    blocking=True,
    description="The batch did not fail and had enough essays. Everything is published either way, with the reason.",
)
def batch_succeeded(context: AssetCheckExecutionContext, cj: CJResource) -> AssetCheckResult:
    """Fails for a batch that ended without a scale, so that `dagster asset materialize` and CI exit non-zero."""
    with plain_errors(), cj.ledger() as ledger:
        batch = ledger.batch(context.partition_key)
    failed = batch.status.is_final and not batch.status.has_grades
    metadata: dict[str, Any] = {"status": batch.status.value, "stop_reason": batch.stop_reason or ""}
    reason = results.NO_GRADES_BECAUSE.get(batch.stop_reason or "", batch.stop_reason)
    return AssetCheckResult(
        passed=not failed,
        severity=AssetCheckSeverity.ERROR,
        metadata=metadata,
        description=f"batch {batch.batch_id} ended as {batch.status.value}: {reason}" if failed else None,
    )


NATIVE_CHECKS = [
    budget_is_a_wall,
    positions_are_balanced,
    counters_match_the_ledger,
    graph_is_connected,
    probabilities_sum_to_one,
    batch_succeeded,
]
