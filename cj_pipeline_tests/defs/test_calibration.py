"""Every night in Dagster: the tick that submits it, the rebuild after it, its checks, and what tells of missed ones."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest
from dagster import (
    AssetCheckSeverity,
    DagsterInstance,
    DefaultScheduleStatus,
    ExecuteInProcessResult,
    RunRequest,
    SkipReason,
    build_sensor_context,
)

from cj_pipeline.core.errors import CJError
from cj_pipeline.definitions import build_definitions
from cj_pipeline.defs.calibration import calibration_history_sensor, launch_night
from cj_pipeline.eng5.calibration_files import read_bank
from cj_pipeline.eng5.calibration_history import last_night_due
from cj_pipeline.judges.catalogue import provider_and_model
from cj_pipeline.judges.pricing import load_prices
from cj_pipeline.ledger import UnknownAssignmentError
from cj_pipeline.settings import load_settings, nightly_calibration_is_on
from cj_pipeline_tests.builders import update_batch
from cj_pipeline_tests.defs.stage import QUIET, ROOT, Stage

NIGHT = datetime(2026, 3, 20, 3, 0, tzinfo=UTC)
BATCH = "eng5-calibration-20260320"
MEASURES = {"anchor_drift", "tau_b", "position_bias", "cost", "latency"}


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage.alone(tmp_path / "home", monkeypatch)
    stage.register_demo()
    monkeypatch.setenv("CJ_CALIBRATION_ASSIGNMENT", "demo-eng5")
    monkeypatch.setenv("CJ_CALIBRATION_JUDGE", "cj-generic")
    monkeypatch.setenv("CJ_CALIBRATION_MAX_COMPARISONS", "40")
    return stage


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        yield instance


def tick(stage: Stage, instance: DagsterInstance, when: datetime = NIGHT) -> RunRequest | SkipReason:
    return launch_night(instance, stage.cj, when)


def rebuild(stage: Stage, instance: DagsterInstance, job: str = "calibration_history_job") -> ExecuteInProcessResult:
    return stage.job(job).execute_in_process(instance=instance, raise_on_error=False, run_config=QUIET)


def checks(result: ExecuteInProcessResult) -> dict:
    return {one.check_name: one for one in result.get_asset_check_evaluations()}


def judged_night(stage: Stage, instance: DagsterInstance, when: datetime = NIGHT) -> str:
    request = tick(stage, instance, when)
    assert isinstance(request, RunRequest)
    stage.judge(str(request.partition_key))
    return str(request.partition_key)


# --- the tick ------------------------------------------------------------------------------------------------------


def test_a_tick_submits_the_night_adds_its_partition_and_launches_its_job(
    stage: Stage, instance: DagsterInstance
) -> None:
    request = tick(stage, instance)
    assert isinstance(request, RunRequest)
    assert (request.job_name, request.partition_key, request.run_key) == ("assess_batch_job", BATCH, f"{BATCH}:1")
    assert instance.get_dynamic_partitions("cj_batch") == [BATCH]
    batch = stage.batch(BATCH)
    assert (batch.kind.value, batch.total_budget, batch.launch) == ("calibration", 40, 1)


def test_a_tick_that_is_evaluated_again_launches_nothing_more(stage: Stage, instance: DagsterInstance) -> None:
    tick(stage, instance)
    again = tick(stage, instance)
    assert isinstance(again, SkipReason)
    assert "under way" in str(again.skip_message)
    assert stage.batch(BATCH).launch == 1


def test_a_tick_beyond_the_months_ceiling_is_skipped_with_the_figures(
    stage: Stage, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CJ_CALIBRATION_JUDGE", "anthropic/claude-haiku-4-5")
    monkeypatch.setenv("CJ_CALIBRATION_MONTH_USD", "1.5")
    skipped = tick(stage, instance)
    assert isinstance(skipped, SkipReason)
    assert "tonight's could cost 2.00 (CJ_CALIBRATION_MAX_COST_USD): more than the month's 1.50" in str(
        skipped.skip_message
    )
    with stage.ledger() as ledger:
        assert ledger.batches() == []


@pytest.mark.parametrize(
    ("variable", "value", "error", "message"),
    [
        ("CJ_CALIBRATION_ASSIGNMENT", "nowhere", UnknownAssignmentError, "nowhere"),
        ("CJ_CALIBRATION_JUDGE", "nobody", CJError, "no judge is called"),
    ],
)
def test_a_tick_that_cannot_submit_says_why_and_spends_nothing(
    stage: Stage,
    instance: DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    error: type[CJError],
    message: str,
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(error, match=message):
        tick(stage, instance)
    with stage.ledger() as ledger:
        assert ledger.batches() == []
    assert instance.get_dynamic_partitions("cj_batch") == []


@pytest.mark.parametrize("on", [False, True])
def test_the_schedules_are_off_unless_switched_on(on: bool) -> None:
    expected = DefaultScheduleStatus.RUNNING if on else DefaultScheduleStatus.STOPPED
    schedules = build_definitions(nightly_calibration=on).schedules or []
    assert {one.name: (one.cron_schedule, one.default_status) for one in schedules} == {
        "eng5_nightly_calibration": ("0 3 * * *", expected),
        "eng5_calibration_watch": ("5 9 * * *", expected),
    }


def test_the_shipped_production_settings_are_settings_and_switch_the_schedules_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = (ROOT / "deploy" / "environment").read_text().splitlines()
    stated = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    fields = {f"CJ_{name}".upper() for name in type(load_settings()).model_fields}
    assert stated and set(stated) <= fields
    for name, value in stated.items():
        monkeypatch.setenv(name, value)
    assert nightly_calibration_is_on()
    provider, model = provider_and_model(load_settings().calibration_judge) or ("", "")
    prices = load_prices(ROOT / "assets_data" / "inputs" / "prices.yaml")
    assert prices.price_of(provider, model, NIGHT.date()), "without a price a ceiling can be no wall"


@pytest.mark.slow
@pytest.mark.parametrize(("value", "status"), [("on", "RUNNING"), ("off", "STOPPED"), ("perhaps", "STOPPED")])
def test_the_environment_switches_the_schedules_on(tmp_path: Path, value: str, status: str) -> None:
    code = (
        "from cj_pipeline.definitions import defs;"
        "print({one.default_status.value for one in defs.schedules})"
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "CJ_NIGHTLY_CALIBRATION": value, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == f"{{'{status}'}}"


# --- the rebuild -----------------------------------------------------------------------------------------------------


def test_the_sensor_rebuilds_once_for_each_night_that_has_ended(stage: Stage, instance: DagsterInstance) -> None:
    def look() -> RunRequest | SkipReason:
        return calibration_history_sensor(build_sensor_context(instance=instance, resources={"cj": stage.cj}))

    assert isinstance(look(), SkipReason)
    tick(stage, instance)
    assert isinstance(look(), SkipReason)
    stage.judge(BATCH)
    first, again = look(), look()
    assert isinstance(first, RunRequest)
    assert isinstance(again, RunRequest)
    assert first.run_key == again.run_key
    judged_night(stage, instance, NIGHT.replace(day=21))
    later = look()
    assert isinstance(later, RunRequest)
    assert later.run_key != first.run_key


def test_bank_and_history_are_rebuilt_from_the_ledger(stage: Stage, instance: DagsterInstance) -> None:
    nights = [judged_night(stage, instance, NIGHT.replace(day=day)) for day in (20, 21)]
    result = rebuild(stage, instance)
    assert result.success
    (bank,) = result.asset_materializations_for_node("anchor_bank")
    (history,) = result.asset_materializations_for_node("anchor_calibration_history")
    assert bank.metadata["nights"].value == history.metadata["nights"].value == 2
    folder = load_settings(data_dir=stage.data_dir).calibration_dir
    assert list(read_bank(folder / "anchor_bank.json").bank.nights) == nights
    with duckdb.connect(str(folder / "anchor_bank.duckdb"), read_only=True) as connection:
        rows = dict(connection.execute("SELECT anchor_ref, position FROM anchor_bank").fetchall())
    stored = read_bank(folder / "anchor_bank.json").bank
    assert rows == dict(zip(stored.anchors, stored.positions, strict=True))
    with duckdb.connect(str(folder / "anchor_calibration_history.duckdb"), read_only=True) as connection:
        told = connection.execute("SELECT night, used, judgments FROM calibration_nights ORDER BY night").fetchall()
        assert told == [("2026-03-20", True, 40), ("2026-03-21", True, 40)]
        charts = connection.execute("SELECT DISTINCT measure FROM calibration_charts").fetchall()
    assert {name for (name,) in charts} == MEASURES
    assert (folder / "anchor_calibration_history.md").read_text().startswith("# Calibration of demo-eng5")
    assert (folder / "anchor_calibration_history.png").read_bytes().startswith(b"\x89PNG")


def test_there_is_a_check_for_each_measure_which_first_says_that_nights_are_too_few(
    stage: Stage, instance: DagsterInstance
) -> None:
    judged_night(stage, instance)
    found = checks(rebuild(stage, instance))
    assert set(found) == {f"{measure}_in_control" for measure in MEASURES} | {"night_is_there"}
    assert found["tau_b_in_control"].passed
    assert "not enough nights yet: 1 of 6" in found["tau_b_in_control"].description
    assert found["anchor_drift_in_control"].severity is AssetCheckSeverity.ERROR
    assert found["cost_in_control"].severity is AssetCheckSeverity.WARN


def test_before_the_first_night_nothing_is_made_and_nothing_fails(stage: Stage, instance: DagsterInstance) -> None:
    result = rebuild(stage, instance)
    assert result.success
    assert not result.asset_materializations_for_node("anchor_bank")
    assert not result.asset_materializations_for_node("anchor_calibration_history")


def test_a_failed_night_is_told_by_the_watch_and_fails_no_run(stage: Stage, instance: DagsterInstance) -> None:
    judged_night(stage, instance)
    due = last_night_due(datetime.now(UTC))
    request = tick(stage, instance, datetime(due.year, due.month, due.day, 3, tzinfo=UTC))
    assert isinstance(request, RunRequest)
    with stage.ledger() as ledger:
        update_batch(ledger, str(request.partition_key), status="FAILED", stop_reason="provider_rejected")
    result = rebuild(stage, instance, "calibration_watch_job")
    assert result.success
    (found,) = checks(result).values()
    assert not found.passed
    assert found.severity is AssetCheckSeverity.ERROR
    assert "failed" in found.description
    assert "the last night that finished: 2026-03-20" in found.description


def test_a_missed_night_is_told_by_the_watch(stage: Stage, instance: DagsterInstance) -> None:
    judged_night(stage, instance)
    (found,) = checks(rebuild(stage, instance, "calibration_watch_job")).values()
    assert not found.passed
    assert "was missed" in found.description
    assert "is the schedule eng5_nightly_calibration on" in found.description
