"""The one thing Dagster loads. `build_definitions` can be called with other resources by a test.

No I/O and no environment reads happen here: settings are read in the process that runs.
"""

from collections.abc import Mapping
from typing import Any

from dagster import Definitions, in_process_executor

from cj_pipeline.defs.assets import alignment, inputs, judging, leaderboard, publishing, results, scoring
from cj_pipeline.defs.checks.alignment import ALIGNMENT_CHECKS
from cj_pipeline.defs.checks.expectations import EXPECTATION_CHECKS
from cj_pipeline.defs.checks.native import NATIVE_CHECKS
from cj_pipeline.defs.io_managers import LakeIOManager
from cj_pipeline.defs.jobs import JOBS
from cj_pipeline.defs.resources import CJResource
from cj_pipeline.defs.sensors import SENSORS

ASSETS = [
    inputs.essays,
    inputs.anchors,
    judging.run_waves,
    scoring.bt_scores,
    scoring.bt_se_summary,
    scoring.bt_quality_flags,
    scoring.batch_state,
    results.grade_projections,
    publishing.comparison_graph,
    alignment.alignment_report,
    leaderboard.alignment_leaderboard,
]


def build_definitions(resources: Mapping[str, Any] | None = None) -> Definitions:
    """All definitions; `resources` replaces some of the default ones by key (`cj`, `io_manager`)."""
    return Definitions(
        assets=ASSETS,
        asset_checks=[*NATIVE_CHECKS, *EXPECTATION_CHECKS, *ALIGNMENT_CHECKS],
        jobs=JOBS,
        sensors=SENSORS,
        resources={"cj": CJResource(), "io_manager": LakeIOManager(), **(resources or {})},
        executor=in_process_executor,
    )


defs = build_definitions()
