"""The alignment targets as checks on `alignment_report`: seen in the UI, and failing a run where they are enforced."""

from collections.abc import Iterator
from typing import Final

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    multi_asset_check,
)

from cj_pipeline.core.alignment import TargetName
from cj_pipeline.defs.partitions import CJ_BATCH
from cj_pipeline.defs.resources import CJResource, plain_errors

TARGETS: Final[dict[TargetName, str]] = {
    "inversions": "Few pairs of anchors were judged the wrong way round.",
    "zero_win": "Every anchor won at least one judgment.",
    "tau_b": "The order of the scores agrees with that of the expert grades (Kendall's τ-b).",
    "top_regressions": "No anchor of the two highest grades scores below a lower-graded one.",
}


@multi_asset_check(
    name="alignment_targets",
    specs=[
        # blocking, so that one of severity ERROR fails the run; which severity it is, the settings say at run time
        AssetCheckSpec(
            f"{name}_target",
            asset="alignment_report",
            description=f"{description} An error where CJ_ENFORCE_TARGETS is set, else a warning.",
            blocking=True,
            partitions_def=CJ_BATCH,
        )
        for name, description in TARGETS.items()
    ],
)
def alignment_targets(context: AssetCheckExecutionContext, cj: CJResource) -> Iterator[AssetCheckResult]:
    """One result per target. A batch that is not final yet is only warned of."""
    from cj_pipeline.core.alignment import judge_targets
    from cj_pipeline.eng5.anchor_align import ledger_alignment
    from cj_pipeline.eng5.batches import eng5_scale

    with plain_errors(), cj.ledger() as ledger:
        enforced = cj.settings().enforce_targets and ledger.batch(context.partition_key).status.is_final
        verdicts = judge_targets(ledger_alignment(ledger, context.partition_key, eng5_scale()))
    for verdict in verdicts:
        yield AssetCheckResult(
            check_name=f"{verdict.name}_target",
            passed=verdict.met,
            severity=AssetCheckSeverity.ERROR if enforced else AssetCheckSeverity.WARN,
            metadata={"value": verdict.value, "target": verdict.target},
            description=verdict.text,
        )


ALIGNMENT_CHECKS = [alignment_targets]
