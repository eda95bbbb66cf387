"""What happens every night: the schedule that submits a calibration, the one that looks after it, and the rebuild.

A night's batch is a batch like any other: once the schedule has submitted and launched it, the sensors keep it moving.
When it is final, `calibration_history_sensor` rebuilds the bank and the history. Not here: what a night is and may cost
(`eng5.nightly`).
"""

import hashlib
from datetime import datetime
from typing import Final

from dagster import (
    AssetSelection,
    DagsterInstance,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SensorEvaluationContext,
    SkipReason,
    define_asset_job,
    in_process_executor,
    schedule,
    sensor,
)

from cj_pipeline.defs.assets.calibration import GROUP
from cj_pipeline.defs.checks.calibration import night_is_there
from cj_pipeline.defs.jobs import assess_batch_job, job_for
from cj_pipeline.defs.partitions import add_partitions
from cj_pipeline.defs.resources import CJResource
from cj_pipeline.defs.sensors import claim_launch, launch_request
from cj_pipeline.eng5.calibration_history import DEADLINE_HOUR, NIGHT_HOUR
from cj_pipeline.eng5.nightly import submit_night
from cj_pipeline.workflow.calibration import calibration_batches

calibration_history_job = define_asset_job(
    "calibration_history_job",
    selection=AssetSelection.groups(GROUP),
    executor_def=in_process_executor,
    description="The anchor bank and the calibration history, rebuilt from the ledger. No call is made.",
)
calibration_watch_job = define_asset_job(
    "calibration_watch_job",
    selection=AssetSelection.checks(night_is_there),
    executor_def=in_process_executor,
    description="Asks whether the last night that was due is there.",
)


def launch_night(instance: DagsterInstance, cj: CJResource, now: datetime) -> RunRequest | SkipReason:
    """Submit the night that `now` is in, add its partition, and launch its batch; submits nothing new when repeated.

    Raises:
        CJError: the night cannot be submitted, see `eng5.nightly.submit_night`.
    """
    settings = cj.settings()
    with cj.ledger() as ledger:
        night = submit_night(ledger, settings, now)
        if night.skipped is not None:
            return SkipReason(night.skipped)
        add_partitions(instance, [night.batch_id])
        batch = ledger.batch(night.batch_id)
        if job_for(instance, batch.batch_id) != assess_batch_job.name:
            return SkipReason(f"{batch.batch_id} was launched before: continue_batch_sensor goes on with it")
        launch = claim_launch(instance, ledger, batch, settings)
        if launch is None:
            return SkipReason(f"{batch.batch_id} is under way, on hold or over: {batch.status.value}")
        return launch_request(instance, batch, launch)


def nightly_schedules(*, running: bool) -> list[ScheduleDefinition]:
    """The two schedules; `running`: whether they are on where nobody has switched them in the UI."""
    status = DefaultScheduleStatus.RUNNING if running else DefaultScheduleStatus.STOPPED

    @schedule(
        cron_schedule=f"0 {NIGHT_HOUR} * * *",
        execution_timezone="UTC",
        job=assess_batch_job,
        default_status=status,
        description="Submits and launches the calibration of the night: anchors only, within its budget and the "
        "month's ceiling (CJ_CALIBRATION_...).",
    )
    def eng5_nightly_calibration(context: ScheduleEvaluationContext, cj: CJResource) -> RunRequest | SkipReason:
        """The night is that of the moment the tick was due, however late it is evaluated."""
        return launch_night(context.instance, cj, context.scheduled_execution_time)

    eng5_calibration_watch = ScheduleDefinition(
        name="eng5_calibration_watch",
        cron_schedule=f"5 {DEADLINE_HOUR} * * *",
        execution_timezone="UTC",
        job=calibration_watch_job,
        default_status=status,
        description="Looks whether the night is there, and reports a missed or failed one.",
    )
    return [eng5_nightly_calibration, eng5_calibration_watch]


@sensor(
    job=calibration_history_job,
    minimum_interval_seconds=30,
    default_status=DefaultSensorStatus.RUNNING,
    description="Rebuilds the anchor bank and the calibration history when a calibration batch has ended.",
)
def calibration_history_sensor(context: SensorEvaluationContext, cj: CJResource) -> RunRequest | SkipReason:
    """Once for each set of ended nights; failed nights count too, since the history tells of them."""
    settings = cj.settings()
    with cj.ledger() as ledger:
        ended = [
            f"{batch.batch_id} {batch.status.value} {batch.completed_at}"
            for batch in calibration_batches(ledger, settings.calibration_assignment)
            if batch.status.is_final
        ]
    if not ended:
        return SkipReason(f"no calibration batch of {settings.calibration_assignment} has ended yet")
    return RunRequest(run_key=f"calibration:{hashlib.sha256(chr(10).join(ended).encode()).hexdigest()[:16]}")


CALIBRATION_JOBS: Final = [calibration_history_job, calibration_watch_job]
CALIBRATION_SENSORS: Final = [calibration_history_sensor]
