"""Real processes: `cj ui` with webserver and daemon; what is killed, stopped or cut off, and what goes on by itself."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterRunStatus, RunsFilter

from cj_pipeline.analysis.graph import open_graph
from cj_pipeline.core.models import BatchStatus
from cj_pipeline_tests.defs.stage import Stage, Webserver, demo_folder, wait_until

pytestmark = pytest.mark.slow

CONCURRENCY = 4
BUDGET = 80  # comparisons: some 25 seconds of judging
MID_BATCH = 15  # judgments after which the drills begin
PATIENCE = 240.0  # seconds
SETTINGS = {
    "CJ_SIMULATED_LATENCY": "true",
    "CJ_JUDGE_CONCURRENCY": str(CONCURRENCY),
    "CJ_LEASE_SECONDS": "4",
    "CJ_INBOX_SETTLE_SECONDS": "1",
}
Answers = list[tuple[str, str, str, int, str | None, int | None]]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("live"), SETTINGS)


@pytest.fixture(scope="module")
def ui(stage: Stage) -> Iterator[Webserver]:
    """One `cj ui` for all drills below but the power cut: that it outlives them is what they are about."""
    stage.register_demo()
    with stage.ui() as webserver:
        yield webserver


def submit(stage: Stage, batch_id: str, budget: int = BUDGET) -> None:
    stage.submit_demo(batch_id, max_comparisons=budget, judge_concurrency=CONCURRENCY)


def judged(stage: Stage, batch_id: str) -> int:
    with stage.ledger() as ledger:
        return ledger.state(batch_id).judged


def attempts(stage: Stage, batch_id: str) -> dict[str, int]:
    with stage.ledger() as ledger:
        return ledger.attempt_counts(batch_id)


def answers(stage: Stage, batch_id: str) -> Answers:
    with stage.ledger() as ledger:
        return [
            (c.comparison_id, c.essay_a, c.essay_b, c.wave, c.winner and c.winner.value, c.confidence)
            for c in ledger.comparisons(batch_id)
        ]


def events(stage: Stage, batch_id: str) -> list[str]:
    with stage.ledger() as ledger:
        return [event["event"] for event in ledger.events(batch_id)]


def runs(stage: Stage, batch_id: str) -> list[Any]:
    with stage.instance() as instance:
        return list(instance.get_runs(RunsFilter(tags={"dagster/partition": batch_id})))


def wait_until_midway(stage: Stage, batch_id: str) -> None:
    wait_until(
        lambda: judged(stage, batch_id) >= MID_BATCH, seconds=PATIENCE, what=lambda: stage.log("cj")[-3000:], every=0.05
    )
    assert judged(stage, batch_id) < BUDGET - CONCURRENCY, "the drill came too late to show anything"


def wait_until_published(stage: Stage, batch_id: str) -> None:
    def published() -> bool:
        batch = stage.batch(batch_id)
        assert batch.hold_reason is None, batch.hold_reason
        return batch.published_at is not None

    wait_until(published, seconds=PATIENCE, what=lambda: f"{stage.batch(batch_id)}\n{stage.log('cj')[-3000:]}")


def assert_judged_as_if_nothing_had_happened(stage: Stage, batch_id: str, tmp_path: Path, lost: int) -> None:
    """The batch is complete, bought nothing twice but `lost` calls at most, and says what an undisturbed one says."""
    calls = attempts(stage, batch_id)
    assert calls["judged"] == BUDGET
    assert set(calls) <= {"judged", "lost"}
    assert calls.get("lost", 0) <= lost
    undisturbed = Stage(tmp_path / "undisturbed")
    submit(undisturbed, batch_id)
    undisturbed.judge(batch_id)
    assert answers(stage, batch_id) == answers(undisturbed, batch_id)
    assert stage.batch(batch_id).status is BatchStatus.COMPLETE_MAX_COMPARISONS


def owner_of(stage: Stage, batch_id: str) -> tuple[int, str]:
    """The process and the run that hold the batch's lease."""
    owner = wait_until(lambda: stage.batch(batch_id).lease_owner, seconds=30, what="nobody holds the lease")
    found = re.fullmatch(r"[^:]+:(\d+):run=(\S+)", owner)
    assert found is not None, owner
    return int(found[1]), found[2]


@pytest.mark.timeout(600)
def test_a_dropped_folder_ends_as_published_grades_and_a_bad_one_is_rejected_beside_the_reason(
    stage: Stage, ui: Webserver
) -> None:
    demo_folder(stage.home / "good", batch_id="dropped", max_comparisons=40).rename(stage.inbox / "good")
    demo_folder(stage.home / "bad", assignment="nowhere", batch_id="bad").rename(stage.inbox / "bad")

    error = stage.inbox / "rejected" / "bad" / "error.txt"
    accepted = stage.inbox / "accepted" / "good"
    wait_until(lambda: error.is_file() and accepted.is_dir(), seconds=PATIENCE, what=lambda: stage.log("cj")[-3000:])
    assert "nowhere" in error.read_text(encoding="utf-8")
    wait_until_published(stage, "dropped")

    connection = open_graph(stage.data_dir / "outputs" / "comparison_graph.duckdb")
    graded = "SELECT count(*) FROM grade_projections WHERE batch_id = 'dropped' AND NOT is_anchor AND grade IS NOT NULL"
    try:
        assert connection.sql(graded).fetchall() == [(12,)]
    finally:
        connection.close()
    with stage.ledger() as ledger:
        assert "bad" not in {batch.batch_id for batch in ledger.batches()}


@pytest.mark.timeout(600)
def test_a_killed_run_worker_is_replaced_and_nothing_recorded_is_bought_again(
    stage: Stage, ui: Webserver, tmp_path: Path
) -> None:
    submit(stage, "worker")
    wait_until_midway(stage, "worker")
    pid, run_id = owner_of(stage, "worker")
    assert pid in stage.processes()

    stage.kill([pid])
    wait_until_published(stage, "worker")

    assert_judged_as_if_nothing_had_happened(stage, "worker", tmp_path, lost=CONCURRENCY)
    assert "taken_over" in events(stage, "worker")
    killed = {run.run_id: run.status for run in runs(stage, "worker")}.pop(run_id)
    assert killed is DagsterRunStatus.FAILURE


@pytest.mark.timeout(600)
def test_a_killed_daemon_is_started_again_and_the_batch_goes_on(stage: Stage, ui: Webserver, tmp_path: Path) -> None:
    submit(stage, "daemon")
    wait_until_midway(stage, "daemon")
    before = list(stage.processes("dagster-daemon"))
    assert len(before) == 1

    stage.kill(before)
    submit(stage, "after-it", budget=10)  # only a living daemon launches it
    wait_until_published(stage, "daemon")
    wait_until_published(stage, "after-it")

    assert_judged_as_if_nothing_had_happened(stage, "daemon", tmp_path, lost=CONCURRENCY)
    after = list(stage.processes("dagster-daemon"))
    assert len(after) == 1
    assert after != before
    assert "the daemon ended with -9; starting it again" in stage.log("cj")


@pytest.mark.timeout(600)
def test_terminate_in_the_ui_loses_no_answer_and_holds_the_batch_until_it_is_resumed(
    stage: Stage, ui: Webserver, tmp_path: Path
) -> None:
    submit(stage, "terminated")
    wait_until_midway(stage, "terminated")
    _, run_id = owner_of(stage, "terminated")

    terminate = "mutation T($run: String!) { terminateRun(runId: $run) { __typename } }"
    assert ui.ask(terminate, run=run_id)["terminateRun"]["__typename"] == "TerminateRunSuccess"
    wait_until(
        lambda: (batch := stage.batch("terminated")).hold_reason is not None and batch.lease_owner is None,
        seconds=60,
        what=lambda: str(stage.batch("terminated")),
    )

    assert run_id in (stage.batch("terminated").hold_reason or "")
    kept = judged(stage, "terminated")
    assert attempts(stage, "terminated") == {"judged": kept}, "an answer in flight was lost"
    time.sleep(20)
    assert judged(stage, "terminated") == kept
    assert {run.run_id: run.status for run in runs(stage, "terminated")} == {run_id: DagsterRunStatus.CANCELED}

    assert stage.call("cj", "resume", "terminated").returncode == 0
    wait_until_published(stage, "terminated")
    assert_judged_as_if_nothing_had_happened(stage, "terminated", tmp_path, lost=0)


@pytest.mark.timeout(600)
def test_a_held_batch_stops_in_its_run_without_losing_an_answer(stage: Stage, ui: Webserver, tmp_path: Path) -> None:
    submit(stage, "held")
    wait_until_midway(stage, "held")

    assert stage.call("cj", "hold", "held", "--reason", "lunch").returncode == 0
    wait_until(lambda: stage.batch("held").lease_owner is None, seconds=60, what="the run did not stop")
    assert set(attempts(stage, "held")) == {"judged"}
    assert judged(stage, "held") < BUDGET

    assert stage.call("cj", "resume", "held").returncode == 0
    wait_until_published(stage, "held")
    assert_judged_as_if_nothing_had_happened(stage, "held", tmp_path, lost=0)


@pytest.mark.timeout(600)
def test_after_a_power_cut_the_batch_goes_on_as_soon_as_the_ui_is_started_again(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    stage = Stage(tmp_path / "home", SETTINGS)
    submit(stage, "power")
    with stage.ui():
        wait_until_midway(stage, "power")
        stage.kill_everything()
    assert stage.processes() == {}

    with stage.ui():
        wait_until_published(stage, "power")

    assert_judged_as_if_nothing_had_happened(stage, "power", tmp_path, lost=CONCURRENCY)


@pytest.mark.timeout(600)
def test_ending_the_ui_mid_batch_loses_no_answer_and_leaves_no_process_behind(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    stage = Stage(tmp_path / "home", SETTINGS)
    submit(stage, "evening")
    with stage.ui() as ui:
        wait_until_midway(stage, "evening")
        ui.process.terminate()
        ui.process.wait(timeout=60)
        wait_until(lambda: not stage.processes(), seconds=90, what=lambda: str(stage.processes()))
    assert set(attempts(stage, "evening")) == {"judged"}
    assert stage.batch("evening").hold_reason is None
