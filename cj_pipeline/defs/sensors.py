"""Sensors: they take in batches, keep every open batch moving, and end the ones that stay silent.

A tick decides and launches; work happens in runs. The ledger is the truth, Dagster's run status is never proof of life.
"""

import asyncio
import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from dagster import (
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    DefaultSensorStatus,
    RunRequest,
    RunsFilter,
    RunStatusSensorContext,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    run_status_sensor,
    sensor,
)

from cj_pipeline.core.completion import decide_silent
from cj_pipeline.core.errors import CJError
from cj_pipeline.core.models import BatchKind, BatchStatus
from cj_pipeline.defs.backfills import batches_awaiting_backfill
from cj_pipeline.defs.inbox import claim_settled_folders, open_claims, reject_claim
from cj_pipeline.defs.jobs import (
    alignment_leaderboard_job,
    assess_batch_job,
    continue_batch_job,
    ingest_batch_job,
    job_for,
)
from cj_pipeline.defs.partitions import add_partitions
from cj_pipeline.defs.resources import CJResource
from cj_pipeline.eng5.leaderboard import countable_batches
from cj_pipeline.ledger import BatchBusyError, BatchEndedError, Lease, Ledger
from cj_pipeline.ledger.records import BatchRecord
from cj_pipeline.settings import BatchTunables, CJSettings
from cj_pipeline.workflow.jobs import ask_after
from cj_pipeline.workflow.loop import owner_run_id, process_owner

PARTITION_TAG: Final = "dagster/partition"
CLAIM_TAG: Final = "cj/claim"
LAUNCH_TAG: Final = "cj/launch"
MAX_INGEST_RUNS: Final = 3
_UNDERWAY: Final = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]


@sensor(
    job=ingest_batch_job,
    minimum_interval_seconds=5,
    default_status=DefaultSensorStatus.RUNNING,
    description="Claims batch folders that have settled in the inbox and launches a run for each.",
)
def new_batch_sensor(context: SensorEvaluationContext, cj: CJResource) -> Iterator[RunRequest | SkipReason]:
    """A claim whose run died is launched again, three times at most; then it is rejected with the reason."""
    settings = cj.settings()
    claim_settled_folders(settings)
    waiting = open_claims(settings)
    if waiting:
        # a ledger that cannot be reached is no fault of the folders: they wait
        try:
            with cj.ledger():
                pass
        except CJError as error:
            yield SkipReason(str(error))
            return
    else:
        yield SkipReason(f"nothing in {settings.inbox_dir}: drop a folder with a batch.yaml there")
    for claim in waiting:
        runs = context.instance.get_runs(RunsFilter(job_name=ingest_batch_job.name, tags={CLAIM_TAG: claim}))
        if any(not run.is_finished for run in runs):
            continue
        if len(runs) >= MAX_INGEST_RUNS:
            reject_claim(settings, claim, f"{len(runs)} runs ended without taking it in: see run {runs[0].run_id}")
            continue
        yield RunRequest(
            run_key=f"ingest:{claim}:{len(runs) + 1}",
            run_config={"ops": {"ingest_batch": {"config": {"claim": claim}}}},
            tags={CLAIM_TAG: claim},
        )


@sensor(
    jobs=[assess_batch_job, continue_batch_job],
    minimum_interval_seconds=5,
    default_status=DefaultSensorStatus.RUNNING,
    description="Launches every batch that still needs a run: not final, or final and not yet published.",
)
def continue_batch_sensor(context: SensorEvaluationContext, cj: CJResource) -> SensorResult | SkipReason:
    """By the launch rules of the design: no live lease, no run underway or about to be, not on hold or to wait."""
    settings = cj.settings()
    requests = []
    awaiting = batches_awaiting_backfill(context.instance)
    with cj.ledger() as ledger:
        batches = ledger.batches()
        add_partitions(context.instance, [batch.batch_id for batch in batches])
        for batch in ledger.open_batches():
            if batch.lease_live or batch.hold_reason is not None or batch.batch_id in awaiting:
                continue
            launch = claim_launch(context.instance, ledger, batch, settings)
            if launch is not None:
                requests.append(launch_request(context.instance, batch, launch))
    if not requests:
        return SkipReason(f"{len(batches)} batches, none needs a launch now")
    return SensorResult(run_requests=requests)


def claim_launch(
    instance: DagsterInstance, ledger: Ledger, batch: BatchRecord, settings: CJSettings, *, job_over: bool = False
) -> int | None:
    """A launch of the batch, unless a run of it is underway or about to be: two sensors may look at the same moment."""
    # in this order: a run that appears in between is then either seen as underway or missing from the highest
    highest = _highest_launch(instance, batch)
    if _run_underway(instance, batch, settings):
        return None
    return ledger.claim_launch(batch.batch_id, after=highest, job_over=job_over)


def _highest_launch(instance: DagsterInstance, batch: BatchRecord) -> int:
    """The highest launch that has become a run: more than the ledger counts if that was restored."""
    runs = instance.get_runs(RunsFilter(tags={PARTITION_TAG: batch.batch_id}), limit=20)
    return max((int(run.tags[LAUNCH_TAG]) for run in runs if LAUNCH_TAG in run.tags), default=0)


def launch_request(instance: DagsterInstance, batch: BatchRecord, launch: int) -> RunRequest:
    """The run of a claimed launch: the batch's job for its partition."""
    return RunRequest(
        run_key=f"{batch.batch_id}:{launch}",
        job_name=job_for(instance, batch.batch_id),
        partition_key=batch.batch_id,
        tags={"cj/correlation_id": batch.correlation_id, LAUNCH_TAG: str(launch)},
    )


def _run_underway(instance: DagsterInstance, batch: BatchRecord, settings: CJSettings) -> bool:
    """Whether a run of the batch is queued, starting or alive; dead ones are reported failed on the way."""
    runs = instance.get_runs(RunsFilter(tags={PARTITION_TAG: batch.batch_id}, statuses=_UNDERWAY))
    alive = False
    for run in runs:
        reason = _why_dead(instance, run, batch, settings)
        if reason is None:
            alive = True
        else:
            instance.report_run_failed(run, message=f"reported failed by continue_batch_sensor: {reason}")
    return alive


def _why_dead(instance: DagsterInstance, run: DagsterRun, batch: BatchRecord, settings: CJSettings) -> str | None:
    """Why a started run cannot be alive; None if it may be."""
    if run.status not in (DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING):
        return None
    if batch.lease_abandoned and owner_run_id(batch.lease_owner) == run.run_id:
        return "it held the batch's lease, and neither renewed nor released it"
    silence = datetime.now(UTC).timestamp() - _last_event_timestamp(instance, run)
    if silence > settings.run_silence_minutes * 60:
        return f"it holds no lease and has shown no event for {silence / 60:.0f} minutes"
    return None


def _last_event_timestamp(instance: DagsterInstance, run: DagsterRun) -> float:
    newest = instance.get_records_for_run(run.run_id, limit=1, ascending=False).records
    if newest:
        return newest[0].timestamp
    record = instance.get_run_record_by_id(run.run_id)
    return 0.0 if record is None else record.create_timestamp.timestamp()


@sensor(
    jobs=[assess_batch_job, continue_batch_job],
    minimum_interval_seconds=15,
    default_status=DefaultSensorStatus.RUNNING,
    description="Asks providers after batch jobs that are out, and launches a run for each that is over.",
)
def provider_batch_sensor(context: SensorEvaluationContext, cj: CJResource) -> SensorResult | SkipReason:
    """Only polls: the run that it launches takes the results in, under the batch's lease.

    Its cursor remembers when each job was last asked after; `CJ_BATCH_API_POLL_SECONDS` apart.
    """
    settings = cj.settings()
    now = datetime.now(UTC).timestamp()
    asked: dict[str, float] = json.loads(context.cursor or "{}")
    still_out: dict[str, float] = {}
    requests, lines = [], []
    with cj.ledger() as ledger:
        for batch in ledger.open_batches():
            if batch.lease_live or batch.hold_reason is not None or batch.status.is_final:
                continue
            jobs = [job for job in ledger.jobs_out(batch.batch_id) if job.provider_job_id is not None]
            if not jobs or _run_underway(context.instance, batch, settings):
                continue
            job = jobs[0]
            last = asked.get(job.job_key, 0.0)
            if now - last < settings.batch_api_poll_seconds:
                still_out[job.job_key] = last
                continue
            still_out[job.job_key] = now
            try:
                phase = asyncio.run(ask_after(batch, job, settings))
            except CJError as error:
                lines.append(f"{batch.batch_id}: {job.provider_job_id}: {error}")
                continue
            lines.append(f"{batch.batch_id}: {job.provider_job_id} is {phase.value}")
            if phase.is_over:
                launch = claim_launch(context.instance, ledger, batch, settings, job_over=True)
                if launch is not None:
                    requests.append(launch_request(context.instance, batch, launch))
    cursor = json.dumps(still_out, sort_keys=True)
    if not requests:
        return SensorResult(skip_reason="; ".join(lines) or "no provider batch job needs a look", cursor=cursor)
    return SensorResult(run_requests=requests, cursor=cursor)


@sensor(
    minimum_interval_seconds=60,
    default_status=DefaultSensorStatus.RUNNING,
    description="Ends a launched batch that has been silent past its timeout: recovered at 80 % and more, else failed.",
)
def batch_monitor_sensor(context: SensorEvaluationContext, cj: CJResource) -> SkipReason:
    """Acts only on a batch launched since its last activity and not on hold; publication is the next sensor's work."""
    settings = cj.settings()
    with cj.ledger() as ledger:
        ended = [
            line
            for batch in ledger.silent_batches(datetime.now(UTC))
            if (line := end_silent_batch(ledger, batch, settings)) is not None
        ]
    for line in ended:
        context.log.warning(line)
    return SkipReason("; ".join(ended) or "no batch has been silent past its timeout")


def end_silent_batch(ledger: Ledger, batch: BatchRecord, settings: CJSettings) -> str | None:
    """Recover or fail one silent batch under its lease; what was done, or None if someone is at work on it.

    Calls that were left without an answer become `lost`; comparisons never sent are withdrawn.
    """
    try:
        with Lease.acquire(
            ledger, batch.batch_id, owner=f"monitor {process_owner()}", seconds=settings.lease_seconds
        ) as lease:
            state = lease.state()
            decision = decide_silent(state, BatchTunables.model_validate(batch.settings))
            status = decision.status or BatchStatus.FAILED
            lease.finalise(status, decision.reason)
    except (BatchBusyError, BatchEndedError):
        return None
    return (
        f"batch {batch.batch_id} was silent for {batch.settings['batch_timeout_hours']} h: {status}, {decision.reason}"
    )


@run_status_sensor(
    run_status=DagsterRunStatus.CANCELED,
    monitored_jobs=[assess_batch_job, continue_batch_job],
    default_status=DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=5,
    description="Puts the batch of a terminated run on hold, so that it is not launched again behind a person's back.",
)
def terminated_run_sensor(context: RunStatusSensorContext, cj: CJResource) -> Any:
    """Also for runs terminated while they were queued, which never got to run any of our code."""
    batch_id = context.dagster_run.tags.get(PARTITION_TAG)
    if batch_id is None:
        return SkipReason("the run had no batch")
    with cj.ledger() as ledger:
        try:
            batch = ledger.batch(batch_id)
            if batch.hold_reason is None and not batch.status.is_final and not _resumed_since(context, ledger):
                ledger.hold(
                    batch_id, f"run {context.dagster_run.run_id} was terminated: `cj resume {batch_id}` to go on"
                )
        except CJError as error:
            return SkipReason(str(error))
    return None


def _resumed_since(context: RunStatusSensorContext, ledger: Ledger) -> bool:
    """Whether someone resumed the batch after the run had ended: then the termination is old news."""
    record = context.instance.get_run_record_by_id(context.dagster_run.run_id)
    ended = record.end_time if record is not None and record.end_time is not None else 0.0
    events = ledger.events(context.dagster_run.tags[PARTITION_TAG])
    return any(event["event"] == "resumed" and event["at"].timestamp() > ended for event in events)


@sensor(
    job=alignment_leaderboard_job,
    minimum_interval_seconds=30,
    default_status=DefaultSensorStatus.RUNNING,
    description="Rebuilds the leaderboard of judges and prompts when batches of anchors have finished.",
)
def alignment_leaderboard_sensor(context: SensorEvaluationContext, cj: CJResource) -> RunRequest | SkipReason:
    """Once per set of finished batches, and not while others are being judged: a rebuild takes seconds a row."""
    with cj.ledger() as ledger:
        finished = countable_batches(ledger)
        at_work = [
            batch.batch_id
            for batch in ledger.open_batches()
            if batch.kind is BatchKind.ANCHOR_ALIGN and batch.hold_reason is None and batch.not_before is None
        ]
    if not finished:
        return SkipReason("no batch of anchors judged as students has finished")
    if at_work:
        return SkipReason(f"{len(at_work)} batches of anchors are being judged, e.g. {at_work[0]}")
    lines = "\n".join(f"{batch.batch_id} {batch.completed_at}" for batch in finished)
    return RunRequest(run_key=f"leaderboard:{hashlib.sha256(lines.encode()).hexdigest()[:16]}")


SENSORS: Final = [
    new_batch_sensor,
    continue_batch_sensor,
    provider_batch_sensor,
    batch_monitor_sensor,
    terminated_run_sensor,
    alignment_leaderboard_sensor,
]
