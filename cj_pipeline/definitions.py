"""The one thing Dagster loads. `build_definitions` can be called with other resources by a test.

No I/O happens here, and no setting is read but one, whether the nightly schedules are on by default: Dagster wants it
with the definition. All others are read in the process that runs.
"""

from collections.abc import Mapping
from typing import Any

from dagster import Definitions, in_process_executor

from cj_pipeline.defs.assets import calibration, eng5, inputs, judging, leaderboard, publishing, results, scoring
from cj_pipeline.defs.calibration import CALIBRATION_JOBS, CALIBRATION_SENSORS, nightly_schedules
from cj_pipeline.defs.checks.alignment import ALIGNMENT_CHECKS
from cj_pipeline.defs.checks.calibration import CALIBRATION_CHECKS
from cj_pipeline.defs.checks.expectations import EXPECTATION_CHECKS
from cj_pipeline.defs.checks.native import NATIVE_CHECKS
from cj_pipeline.defs.eng5_jobs import ENG5_JOBS
from cj_pipeline.defs.io_managers import LakeIOManager
from cj_pipeline.defs.jobs import JOBS
from cj_pipeline.defs.resources import CJResource
from cj_pipeline.defs.sensors import SENSORS
from cj_pipeline.settings import nightly_calibration_is_on

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
    eng5.alignment_report,
    eng5.assessment_run,
    calibration.anchor_bank,
    calibration.anchor_calibration_history,
    leaderboard.alignment_leaderboard,
]


def build_definitions(resources: Mapping[str, Any] | None = None, *, nightly_calibration: bool = False) -> Definitions:
    """All definitions.

    Args:
        resources: in place of default ones, by key (`cj`, `io_manager`).
        nightly_calibration: whether the nightly schedules are on where nobody has switched them in the UI.
    """
    return Definitions(
        assets=ASSETS,
        asset_checks=[*NATIVE_CHECKS, *EXPECTATION_CHECKS, *ALIGNMENT_CHECKS, *CALIBRATION_CHECKS],
        jobs=[*JOBS, *ENG5_JOBS, *CALIBRATION_JOBS],
        schedules=nightly_schedules(running=nightly_calibration),
        sensors=[*SENSORS, *CALIBRATION_SENSORS],
        resources={"cj": CJResource(), "io_manager": LakeIOManager(), **(resources or {})},
        executor=in_process_executor,
    )


defs = build_definitions(nightly_calibration=nightly_calibration_is_on())
