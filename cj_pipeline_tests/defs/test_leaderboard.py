"""The leaderboard as an asset, the sensor that keeps it up to date, and backfills that other sensors leave alone."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from dagster import DagsterInstance, DagsterRunStatus, RunRequest, SensorResult, SkipReason, build_sensor_context
from dagster._core.execution.backfill import BulkActionStatus

from cj_pipeline.core.errors import InputError
from cj_pipeline.defs.backfills import (
    backfill_failure,
    batches_awaiting_backfill,
    batches_underway,
    request_backfill,
)
from cj_pipeline.defs.sensors import alignment_leaderboard_sensor, continue_batch_sensor
from cj_pipeline.eng5.anchor_align import align_request
from cj_pipeline.eng5.batches import eng5_scale
from cj_pipeline.eng5.inventory import read_inventory
from cj_pipeline.ledger import Lease
from cj_pipeline.settings import load_settings
from cj_pipeline.workflow.registration import submit_batch
from cj_pipeline_tests.defs.stage import QUIET, Stage
from cj_pipeline_tests.eng5.folders import assets_in


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage.alone(tmp_path / "home", monkeypatch)
    assets_in(stage.home / "eng5", ("F+", "E-", "A"))
    return stage


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        yield instance


def submit_anchors(stage: Stage, batch_id: str, judge: str = "cj-generic") -> None:
    inventory = read_inventory(stage.home / "eng5", eng5_scale())
    request = align_request(
        inventory,
        eng5_scale(),
        batch_id=batch_id,
        judge=judge,
        system=None,
        rubric=None,
        overrides={"max_comparisons": 3},
    )
    with stage.ledger() as ledger:
        submit_batch(ledger, load_settings(data_dir=stage.data_dir), request)


def publish(stage: Stage, batch_id: str) -> None:
    with stage.ledger() as ledger, Lease.acquire(ledger, batch_id, owner="test", seconds=30) as lease:
        lease.mark_published(ledger.state(batch_id).judged)


def finished(stage: Stage, batch_id: str) -> None:
    submit_anchors(stage, batch_id)
    stage.judge(batch_id)
    publish(stage, batch_id)


def leaderboard_tick(stage: Stage, instance: DagsterInstance) -> RunRequest | SkipReason:
    context = build_sensor_context(instance=instance, resources={"cj": stage.cj})
    asked = alignment_leaderboard_sensor(context)
    assert isinstance(asked, RunRequest | SkipReason)
    return asked


def launched(stage: Stage, instance: DagsterInstance) -> list[str | None]:
    result = continue_batch_sensor(build_sensor_context(instance=instance, resources={"cj": stage.cj}))
    return [request.partition_key for request in result.run_requests or []] if isinstance(result, SensorResult) else []


def test_the_asset_needs_no_partition_and_shows_standings_and_picture(stage: Stage, instance: DagsterInstance) -> None:
    finished(stage, "one")
    done = stage.job("alignment_leaderboard_job").execute_in_process(instance=instance, run_config=QUIET)
    (made,) = done.asset_materializations_for_node("alignment_leaderboard")
    assert made.partition is None
    shown = {name: value.value for name, value in made.metadata.items()}
    assert shown["dagster/row_count"] == 1 and shown["leader"] == "cj-generic"
    assert "simulated" in shown["standings"] and "data:image/png" in shown["picture"]
    with duckdb.connect(str(stage.data_dir / "outputs" / "alignment_leaderboard.duckdb"), read_only=True) as connection:
        assert connection.execute("SELECT batches FROM alignment_leaderboard").fetchall() == [(["one"],)]


def test_without_any_finished_batch_the_asset_is_empty_and_does_not_fail(
    stage: Stage, instance: DagsterInstance
) -> None:
    submit_anchors(stage, "waiting")
    done = stage.job("alignment_leaderboard_job").execute_in_process(instance=instance, run_config=QUIET)
    (made,) = done.asset_materializations_for_node("alignment_leaderboard")
    assert made.metadata["dagster/row_count"].value == 0
    assert made.metadata["batches_left_out"].value == 1


def test_it_is_rebuilt_once_per_set_of_finished_batches(stage: Stage, instance: DagsterInstance) -> None:
    assert isinstance(leaderboard_tick(stage, instance), SkipReason)
    finished(stage, "one")
    first, again = leaderboard_tick(stage, instance), leaderboard_tick(stage, instance)
    assert isinstance(first, RunRequest) and isinstance(again, RunRequest)
    assert first.run_key == again.run_key, "a used key never fires again"
    finished(stage, "two")
    after = leaderboard_tick(stage, instance)
    assert isinstance(after, RunRequest) and after.run_key != first.run_key


def test_it_waits_for_batches_of_anchors_that_are_being_judged_but_not_for_held_ones(
    stage: Stage, instance: DagsterInstance
) -> None:
    finished(stage, "one")
    submit_anchors(stage, "two")
    waiting = leaderboard_tick(stage, instance)
    assert isinstance(waiting, SkipReason) and "two" in (waiting.skip_message or "")
    with stage.ledger() as ledger:
        ledger.hold("two", "lunch")
    assert isinstance(leaderboard_tick(stage, instance), RunRequest)


# --- backfills ---------------------------------------------------------------------------------------------------


def test_a_batch_that_waits_for_its_run_of_a_backfill_is_not_launched_besides(
    stage: Stage, instance: DagsterInstance
) -> None:
    for batch_id in ("one", "two", "three"):
        submit_anchors(stage, batch_id)
    backfill_id = request_backfill(instance, ["one", "two"], title="a matrix", tags={"cj/matrix": "m"})
    assert batches_awaiting_backfill(instance) == {"one", "two"}
    assert set(instance.get_dynamic_partitions("cj_batch")) >= {"one", "two"}
    assert launched(stage, instance) == ["three"]
    # once launched it is a batch like any other: here its run has failed, so somebody must go on with it
    stage.leave_run(
        instance,
        "assess_batch_job",
        DagsterRunStatus.FAILURE,
        tags={"dagster/partition": "one", "dagster/backfill": backfill_id},
    )
    assert batches_awaiting_backfill(instance) == {"two"}
    assert launched(stage, instance) == ["one"], "and the launch of three stands"


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        (BulkActionStatus.COMPLETED_SUCCESS, None),
        (BulkActionStatus.COMPLETED_FAILED, None),
        (BulkActionStatus.CANCELED, "cancelled"),
        (BulkActionStatus.FAILED, "failed"),
    ],
)
def test_a_backfill_that_is_over_keeps_no_batch_waiting(
    stage: Stage, instance: DagsterInstance, status: BulkActionStatus, failure: str | None
) -> None:
    submit_anchors(stage, "one")
    backfill_id = request_backfill(instance, ["one"], title="a matrix", tags={})
    assert backfill_failure(instance, backfill_id) is None
    backfill = instance.get_backfill(backfill_id)
    assert backfill is not None
    instance.update_backfill(backfill.with_status(status))
    assert batches_awaiting_backfill(instance) == set()
    assert launched(stage, instance) == ["one"]
    told = backfill_failure(instance, backfill_id)
    assert told is None if failure is None else told is not None and failure in told


def test_runs_that_are_not_over_are_known_by_their_batch(stage: Stage, instance: DagsterInstance) -> None:
    stage.leave_run(instance, "assess_batch_job", DagsterRunStatus.QUEUED, tags={"dagster/partition": "one"})
    stage.leave_run(instance, "assess_batch_job", DagsterRunStatus.SUCCESS, tags={"dagster/partition": "two"})
    assert batches_underway(instance, ["one", "two", "three"]) == {"one"}


def test_no_partition_is_made_of_a_name_that_may_not_name_a_batch(instance: DagsterInstance) -> None:
    with pytest.raises(InputError, match="batch id"):
        request_backfill(instance, ["../x"], title="a matrix", tags={})
    assert instance.get_backfills() == []
