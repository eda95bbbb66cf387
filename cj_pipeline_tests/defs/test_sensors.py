"""The launch rules, the monitor and the hold after a termination: each rule on a real ledger, one tick at a time."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from dagster import (
    AssetMaterialization,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    RunRequest,
    RunsFilter,
    SensorResult,
    SkipReason,
    build_run_status_sensor_context,
    build_sensor_context,
)

from cj_pipeline.core.models import BatchStatus
from cj_pipeline.defs.sensors import batch_monitor_sensor, continue_batch_sensor, terminated_run_sensor
from cj_pipeline.ledger import Lease
from cj_pipeline.ledger import tables as t
from cj_pipeline.workflow.loop import process_owner
from cj_pipeline_tests.defs.stage import Stage

BATCH = "b"
# waves of 8, and no stop before the budget of 20 is spent: two waves are exactly 80 % of it
STEADY = {
    "max_comparisons": 20,
    "comparisons_per_stability_check_iteration": 8,
    "min_comparisons_for_stability_check": 1000,
}
INSTANTLY = 1e-9  # hours


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage.alone(tmp_path / "home", monkeypatch)
    stage.submit_demo(BATCH, students=3, **STEADY)
    return stage


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        yield instance


def tick(stage: Stage, instance: DagsterInstance) -> list[RunRequest]:
    """What one tick of the continuing sensor launches."""
    result = continue_batch_sensor(build_sensor_context(instance=instance, resources={"cj": stage.cj}))
    if isinstance(result, SkipReason):
        return []
    assert isinstance(result, SensorResult)
    return list(result.run_requests or [])


def keys(requests: list[RunRequest]) -> list[str | None]:
    return [request.run_key for request in requests]


def leave_run(
    stage: Stage, instance: DagsterInstance, status: DagsterRunStatus, *, batch: str = BATCH, launch: int | None = None
) -> DagsterRun:
    tags = {"dagster/partition": batch} | ({} if launch is None else {"cj/launch": str(launch)})
    return stage.leave_run(instance, "continue_batch_job", status, tags=tags)


def tick_and_fail(stage: Stage, instance: DagsterInstance) -> list[RunRequest]:
    """A tick after which each run it asked for appears and fails, as with a daemon."""
    requests = tick(stage, instance)
    for request in requests:
        leave_run(stage, instance, DagsterRunStatus.FAILURE, launch=int(request.tags["cj/launch"]))
    return requests


def status_of(instance: DagsterInstance, run: DagsterRun) -> DagsterRunStatus:
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    return found.status


# --- what is launched --------------------------------------------------------------------------------------------


def test_a_batch_that_is_not_final_is_launched_under_a_key_of_its_own(stage: Stage, instance: DagsterInstance) -> None:
    (request,) = tick(stage, instance)
    assert request.run_key == "b:1"
    assert request.partition_key == BATCH
    assert request.tags["cj/correlation_id"] == stage.batch(BATCH).correlation_id
    assert request.tags["cj/launch"] == "1"
    assert stage.batch(BATCH).launch == 1


def test_every_batch_that_needs_a_run_is_launched_in_the_same_tick(stage: Stage, instance: DagsterInstance) -> None:
    stage.submit_demo("c", students=3, max_comparisons=10)
    stage.submit_demo("d", students=3, max_comparisons=10)
    with stage.ledger() as ledger:
        ledger.hold("c", "lunch")
    assert keys(tick(stage, instance)) == ["b:1", "d:1"]


def test_missing_partitions_are_repaired(stage: Stage, instance: DagsterInstance) -> None:
    stage.submit_demo("c", students=3)
    with stage.ledger() as ledger:
        ledger.hold("c", "lunch")
    instance.add_dynamic_partitions("cj_batch", ["b"])
    tick(stage, instance)
    assert set(instance.get_dynamic_partitions("cj_batch")) == {"b", "c"}


def test_a_batch_whose_lease_is_live_is_not_launched(stage: Stage, instance: DagsterInstance) -> None:
    with stage.ledger() as ledger, Lease.acquire(ledger, BATCH, owner="somebody", seconds=30):
        assert tick(stage, instance) == []
    assert keys(tick(stage, instance)) == ["b:1"]


@pytest.mark.parametrize(
    "status",
    [DagsterRunStatus.QUEUED, DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTING, DagsterRunStatus.STARTED],
)
def test_a_batch_with_a_run_underway_is_not_launched(
    stage: Stage, instance: DagsterInstance, status: DagsterRunStatus
) -> None:
    run = leave_run(stage, instance, status)
    assert tick(stage, instance) == []
    assert status_of(instance, run) is status
    assert stage.batch(BATCH).launch == 0


@pytest.mark.parametrize("status", [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED])
def test_a_run_that_has_ended_or_is_of_another_batch_is_in_nobodys_way(
    stage: Stage, instance: DagsterInstance, status: DagsterRunStatus
) -> None:
    leave_run(stage, instance, status)
    leave_run(stage, instance, DagsterRunStatus.STARTED, batch="another")
    assert keys(tick(stage, instance)) == ["b:1"]


def test_a_batch_on_hold_is_launched_only_after_it_was_resumed(stage: Stage, instance: DagsterInstance) -> None:
    with stage.ledger() as ledger:
        ledger.hold(BATCH, "lunch")
        assert tick(stage, instance) == []
        ledger.resume(BATCH)
    assert keys(tick(stage, instance)) == ["b:1"]


def test_a_batch_that_was_asked_to_wait_is_launched_when_its_time_has_come(
    stage: Stage, instance: DagsterInstance
) -> None:
    with stage.ledger() as ledger, Lease.acquire(ledger, BATCH, owner="breaker", seconds=30) as lease:
        lease.wait_until(datetime.now(UTC) + timedelta(seconds=1))
    assert tick(stage, instance) == []
    time.sleep(1.1)
    assert keys(tick(stage, instance)) == ["b:1"]


def test_a_final_batch_is_launched_until_it_is_published(stage: Stage, instance: DagsterInstance) -> None:
    stage.judge(BATCH)
    assert stage.batch(BATCH).status is BatchStatus.COMPLETE_MAX_COMPARISONS
    assert keys(tick(stage, instance)) == ["b:1"]
    with stage.ledger() as ledger, Lease.acquire(ledger, BATCH, owner="publisher", seconds=30) as lease:
        lease.mark_published(20)
    assert tick(stage, instance) == []


def test_the_whole_job_is_launched_until_the_inputs_have_materialised_for_this_batch(
    stage: Stage, instance: DagsterInstance
) -> None:
    instance.report_runless_asset_event(AssetMaterialization("essays", partition="another"))
    (first,) = tick_and_fail(stage, instance)
    assert first.job_name == "assess_batch_job"
    instance.report_runless_asset_event(AssetMaterialization("essays", partition=BATCH))
    (second,) = tick(stage, instance)
    assert second.job_name == "continue_batch_job"


def test_a_run_key_is_never_used_twice(stage: Stage, instance: DagsterInstance) -> None:
    used = set()
    for wave in range(2):
        (request,) = tick(stage, instance)
        used.add(request.run_key)
        leave_run(stage, instance, DagsterRunStatus.FAILURE, launch=wave + 1)
        stage.judge(BATCH, waves_per_run=1)
    (request,) = tick(stage, instance)
    assert request.run_key not in used
    assert len(used) == 2


def test_a_ledger_restored_from_a_backup_does_not_use_up_keys_again(stage: Stage, instance: DagsterInstance) -> None:
    for launch in (1, 2, 12):
        leave_run(stage, instance, DagsterRunStatus.FAILURE, launch=launch)
    leave_run(stage, instance, DagsterRunStatus.FAILURE, batch="another", launch=99)
    assert stage.batch(BATCH).launch == 0
    assert keys(tick(stage, instance)) == ["b:13"]


def test_until_the_run_of_a_launch_has_appeared_there_is_no_second_launch(
    stage: Stage, instance: DagsterInstance
) -> None:
    assert keys(tick(stage, instance)) == ["b:1"]
    assert tick(stage, instance) == []  # as another sensor would, in the moment before the daemon makes the run
    leave_run(stage, instance, DagsterRunStatus.FAILURE, launch=1)
    assert keys(tick(stage, instance)) == ["b:2"]


def test_three_launches_without_a_new_judgment_put_the_batch_on_hold_with_the_reason(
    stage: Stage, instance: DagsterInstance
) -> None:
    launched = [keys(tick_and_fail(stage, instance)) for _ in range(3)]
    assert launched == [["b:1"], ["b:2"], ["b:3"]]
    assert stage.batch(BATCH).hold_reason is None

    assert tick(stage, instance) == []
    assert "3 launches" in (stage.batch(BATCH).hold_reason or "")
    assert "cj resume" in (stage.batch(BATCH).hold_reason or "")

    with stage.ledger() as ledger:
        ledger.resume(BATCH)
    assert [keys(tick_and_fail(stage, instance)) for _ in range(4)] == [["b:4"], ["b:5"], ["b:6"], []]


def test_a_launch_that_brought_a_judgment_starts_the_count_of_idle_ones_again(
    stage: Stage, instance: DagsterInstance
) -> None:
    tick_and_fail(stage, instance)
    tick_and_fail(stage, instance)
    stage.judge(BATCH, waves_per_run=1)
    assert all(len(tick_and_fail(stage, instance)) == 1 for _ in range(3))
    assert tick(stage, instance) == []
    assert stage.batch(BATCH).hold_reason is not None


# --- runs that are dead ------------------------------------------------------------------------------------------


def test_a_started_run_that_abandoned_its_lease_is_reported_failed_and_the_batch_launched(
    stage: Stage, instance: DagsterInstance
) -> None:
    run = leave_run(stage, instance, DagsterRunStatus.STARTED, launch=1)
    with stage.ledger() as ledger:
        # not entered, so never renewed nor released: as a killed worker leaves it
        Lease.acquire(ledger, BATCH, owner=process_owner(run.run_id), seconds=0.4)
    assert tick(stage, instance) == []
    assert status_of(instance, run) is DagsterRunStatus.STARTED

    time.sleep(0.5)
    assert keys(tick(stage, instance)) == ["b:2"]
    assert status_of(instance, run) is DagsterRunStatus.FAILURE


def test_a_lease_abandoned_by_another_process_says_nothing_about_a_run(stage: Stage, instance: DagsterInstance) -> None:
    run = leave_run(stage, instance, DagsterRunStatus.STARTED)
    with stage.ledger() as ledger:
        Lease.acquire(ledger, BATCH, owner=process_owner("another-run"), seconds=0.01)
    time.sleep(0.05)
    assert tick(stage, instance) == []
    assert status_of(instance, run) is DagsterRunStatus.STARTED


def test_a_started_run_silent_for_too_long_is_reported_failed_and_the_batch_launched(
    stage: Stage, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CJ_RUN_SILENCE_MINUTES", "0.01")
    run = leave_run(stage, instance, DagsterRunStatus.STARTED)
    instance.report_engine_event("a first word", run)
    assert tick(stage, instance) == []
    assert status_of(instance, run) is DagsterRunStatus.STARTED

    time.sleep(0.8)
    assert keys(tick(stage, instance)) == ["b:1"]
    assert status_of(instance, run) is DagsterRunStatus.FAILURE
    events = instance.get_records_for_run(run.run_id).records
    assert any("continue_batch_sensor" in record.event_log_entry.message for record in events)


def test_an_event_of_late_keeps_a_run_alive(
    stage: Stage, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CJ_RUN_SILENCE_MINUTES", "0.02")
    run = leave_run(stage, instance, DagsterRunStatus.STARTED)
    instance.report_engine_event("a first word", run)
    time.sleep(1.3)
    instance.report_engine_event("still here", run)
    assert tick(stage, instance) == []
    assert status_of(instance, run) is DagsterRunStatus.STARTED


def test_a_run_that_waits_in_the_queue_may_be_silent_for_as_long_as_it_likes(
    stage: Stage, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CJ_RUN_SILENCE_MINUTES", "0.0001")
    run = leave_run(stage, instance, DagsterRunStatus.QUEUED)
    time.sleep(0.1)
    assert tick(stage, instance) == []
    assert status_of(instance, run) is DagsterRunStatus.QUEUED


def test_a_dead_run_beside_a_living_one_launches_nothing(stage: Stage, instance: DagsterInstance) -> None:
    dead = leave_run(stage, instance, DagsterRunStatus.STARTED)
    waiting = leave_run(stage, instance, DagsterRunStatus.QUEUED)
    with stage.ledger() as ledger:
        Lease.acquire(ledger, BATCH, owner=process_owner(dead.run_id), seconds=0.01)
    time.sleep(0.05)
    assert tick(stage, instance) == []
    assert status_of(instance, dead) is DagsterRunStatus.FAILURE
    assert status_of(instance, waiting) is DagsterRunStatus.QUEUED


# --- the monitor -------------------------------------------------------------------------------------------------


def watch(stage: Stage) -> str:
    """One tick of the monitor: what it says."""
    with DagsterInstance.ephemeral() as instance:
        result = batch_monitor_sensor(build_sensor_context(instance=instance, resources={"cj": stage.cj}))
    assert isinstance(result, SkipReason)
    return result.skip_message or ""


def silent_batch(stage: Stage, batch_id: str, *, waves: int, failing: bool = False) -> None:
    """A batch that was judged for some waves, then launched, and has been silent for longer than its timeout."""
    stage.submit_demo(batch_id, students=3, **STEADY, batch_timeout_hours=INSTANTLY)
    if waves:
        stage.judge(batch_id, failing=failing, waves_per_run=waves)
    launch(stage, batch_id)


def launch(stage: Stage, batch_id: str) -> None:
    with stage.ledger() as ledger:
        assert ledger.claim_launch(batch_id) is not None
    time.sleep(0.01)


def test_a_silent_batch_with_80_percent_of_its_budget_is_recovered(stage: Stage) -> None:
    silent_batch(stage, "most", waves=2)
    with stage.ledger() as ledger:
        state = ledger.state("most")
    assert (state.callbacks, state.total_budget) == (16, 20)
    said = watch(stage)
    batch = stage.batch("most")
    assert (batch.status, batch.stop_reason) == (BatchStatus.COMPLETE_FORCED_RECOVERY, "timeout_recovered")
    assert "most" in said
    assert batch.lease_owner is None
    assert batch.published_at is None  # which the next sensor sees to


def test_a_silent_batch_below_80_percent_fails_with_the_reason(stage: Stage) -> None:
    silent_batch(stage, "some", waves=1)
    watch(stage)
    batch = stage.batch("some")
    assert (batch.status, batch.stop_reason) == (BatchStatus.FAILED, "timeout_incomplete")


def test_a_silent_batch_below_the_success_guard_is_never_recovered(stage: Stage) -> None:
    silent_batch(stage, "poor", waves=2, failing=True)
    with stage.ledger() as ledger:
        assert ledger.state("poor").failed == 16
    watch(stage)
    batch = stage.batch("poor")
    assert (batch.status, batch.stop_reason) == (BatchStatus.FAILED, "timeout_low_success_rate")


def test_a_silent_batch_without_a_budget_counts_as_nothing_done_and_is_reported(stage: Stage) -> None:
    silent_batch(stage, "broke", waves=2)
    with stage.ledger() as ledger, ledger.engine.begin() as connection:
        connection.execute(t.batches.update().where(t.batches.c.batch_id == "broke").values(total_budget=None))
    said = watch(stage)
    batch = stage.batch("broke")
    assert (batch.status, batch.stop_reason) == (BatchStatus.FAILED, "missing_budget")
    assert batch.total_budget is None, "reported, not mended"
    assert "missing_budget" in said


def test_unsent_comparisons_of_a_silent_batch_are_withdrawn_and_open_calls_are_lost(stage: Stage) -> None:
    from cj_pipeline.core.models import ComparisonStatus, PairMode, PlannedPair
    from cj_pipeline.ledger.records import WavePlan
    from cj_pipeline_tests.builders import start

    silent_batch(stage, "torn", waves=1)
    with stage.ledger() as ledger:
        a, b, c = (essay.essay_id for essay in ledger.essays("torn") if not essay.is_anchor)
        pairs = tuple(PlannedPair(essay_a=x, essay_b=y, pair_mode=PairMode.RESAMPLING) for x, y in ((a, b), (b, c)))
        lease = Lease.acquire(ledger, "torn", owner="killed", seconds=0.2)
        lease.plan_wave(WavePlan(2, PairMode.RESAMPLING, False, pairs))
        lease.record([start("w00002-c00001")])
    assert watch(stage) == "no batch has been silent past its timeout"  # its holder may be alive

    time.sleep(0.3)
    launch(stage, "torn")
    watch(stage)
    with stage.ledger() as ledger:
        last = {c.comparison_id: c.status for c in ledger.comparisons("torn") if c.wave == 2}
        assert ledger.attempt_counts("torn")["lost"] == 1
    assert last == {"w00002-c00001": ComparisonStatus.FAILED, "w00002-c00002": ComparisonStatus.WITHDRAWN}
    assert stage.batch("torn").status is BatchStatus.FAILED


def test_a_batch_within_its_timeout_is_left_alone(stage: Stage) -> None:
    launch(stage, BATCH)  # its timeout is four hours
    assert watch(stage) == "no batch has been silent past its timeout"
    assert stage.batch(BATCH).status is BatchStatus.SUBMITTED


def test_a_batch_on_hold_is_left_alone_however_silent(stage: Stage) -> None:
    silent_batch(stage, "held", waves=2)
    with stage.ledger() as ledger:
        ledger.hold("held", "lunch")
        # the hold itself is activity: launched since, by the record
        later = datetime.now(UTC) + timedelta(milliseconds=5)
        with ledger.engine.begin() as connection:
            connection.execute(sa.update(t.batches).where(t.batches.c.batch_id == "held").values(launched_at=later))
    time.sleep(0.05)
    watch(stage)
    assert stage.batch("held").status is BatchStatus.JUDGING
    with stage.ledger() as ledger, ledger.engine.begin() as connection:
        connection.execute(sa.update(t.batches).where(t.batches.c.batch_id == "held").values(hold_reason=None))
    watch(stage)
    assert stage.batch("held").status is BatchStatus.COMPLETE_FORCED_RECOVERY, "only the hold kept it"


def test_a_batch_not_launched_since_its_last_activity_is_left_alone(stage: Stage) -> None:
    stage.submit_demo("patient", students=3, **STEADY, batch_timeout_hours=INSTANTLY)
    time.sleep(0.01)
    watch(stage)
    assert stage.batch("patient").status is BatchStatus.SUBMITTED

    launch(stage, "patient")
    stage.judge("patient", waves_per_run=1)
    time.sleep(0.01)
    watch(stage)
    assert stage.batch("patient").status is BatchStatus.JUDGING


# --- terminated runs ---------------------------------------------------------------------------------------------


def terminate(stage: Stage, instance: DagsterInstance, run: DagsterRun) -> SkipReason | None:
    """What Dagster does once a run is terminated: it records the event and evaluates the sensor for it."""
    event = instance.report_run_canceled(run)
    return after_termination(stage, instance, run, event)


def after_termination(stage: Stage, instance: DagsterInstance, run: DagsterRun, event: object) -> SkipReason | None:
    ended = instance.get_run_by_id(run.run_id)
    assert ended is not None
    context = build_run_status_sensor_context(
        sensor_name="terminated_run_sensor",
        dagster_event=event,  # type: ignore[arg-type]
        dagster_instance=instance,
        dagster_run=ended,
        resources={"cj": stage.cj},
    )
    return terminated_run_sensor(context)  # type: ignore[no-any-return]


@pytest.mark.parametrize("status", [DagsterRunStatus.QUEUED, DagsterRunStatus.STARTED])
def test_a_terminated_run_holds_its_batch_also_if_it_never_started(
    stage: Stage, instance: DagsterInstance, status: DagsterRunStatus
) -> None:
    run = leave_run(stage, instance, status)
    terminate(stage, instance, run)
    assert run.run_id in (stage.batch(BATCH).hold_reason or "")
    assert "cj resume b" in (stage.batch(BATCH).hold_reason or "")
    assert tick(stage, instance) == []


def test_a_termination_from_before_a_resume_is_old_news(stage: Stage, instance: DagsterInstance) -> None:
    run = leave_run(stage, instance, DagsterRunStatus.STARTED)
    event = instance.report_run_canceled(run)
    time.sleep(0.01)
    with stage.ledger() as ledger:
        ledger.hold(BATCH, "by the run itself")
        ledger.resume(BATCH)
    after_termination(stage, instance, run, event)
    assert stage.batch(BATCH).hold_reason is None


def test_a_resume_from_before_the_termination_does_not_prevent_the_hold(
    stage: Stage, instance: DagsterInstance
) -> None:
    with stage.ledger() as ledger:
        ledger.hold(BATCH, "lunch")
        ledger.resume(BATCH)
    time.sleep(0.01)
    terminate(stage, instance, leave_run(stage, instance, DagsterRunStatus.STARTED))
    assert stage.batch(BATCH).hold_reason is not None


def test_a_hold_that_is_there_already_keeps_its_reason(stage: Stage, instance: DagsterInstance) -> None:
    with stage.ledger() as ledger:
        ledger.hold(BATCH, "lunch")
    terminate(stage, instance, leave_run(stage, instance, DagsterRunStatus.STARTED))
    assert stage.batch(BATCH).hold_reason == "lunch"


def test_a_final_batch_is_not_held_by_the_termination_of_its_publication(
    stage: Stage, instance: DagsterInstance
) -> None:
    stage.judge(BATCH)
    terminate(stage, instance, leave_run(stage, instance, DagsterRunStatus.STARTED))
    assert stage.batch(BATCH).hold_reason is None


def test_a_terminated_run_of_no_or_an_unknown_batch_is_passed_over(stage: Stage, instance: DagsterInstance) -> None:
    unknown = leave_run(stage, instance, DagsterRunStatus.STARTED, batch="nobody")
    skipped = terminate(stage, instance, unknown)
    assert isinstance(skipped, SkipReason)
    assert "nobody" in (skipped.skip_message or "")
    without = stage.leave_run(instance, "continue_batch_job", DagsterRunStatus.STARTED, tags={})
    assert isinstance(terminate(stage, instance, without), SkipReason)
    assert instance.get_runs(RunsFilter(statuses=[DagsterRunStatus.STARTED])) == []
