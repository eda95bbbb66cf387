"""`cj eng5 matrix` and `cj eng5 leaderboard` as their users call them: a real ledger, a real Dagster instance."""

import json
import time

import duckdb
import pytest
from dagster import AssetKey, DagsterInstance
from dagster._core.execution.backfill import BulkActionStatus
from dagster._daemon.types import DaemonHeartbeat

from cj_pipeline.core.models import BatchStatus
from cj_pipeline_tests.cli.test_cli import open_ledger
from cj_pipeline_tests.cli.test_eng5 import home, run

__all__ = ["home", "run"]  # fixtures

MATRIX = """
matrix: trial
judges:
  - {label: fair, judge: cj-generic}
  - {label: sharp, judge: eng5-anchor}
prompts:
  - {label: base, system: 001, rubric: 001}
  - {label: capped, system: 003, rubric: 003}
  - {label: own}
max_comparisons: 5
"""
CELLS = [f"eng5-matrix-trial-{judge}-{prompts}" for judge in ("fair", "sharp") for prompts in ("base", "capped", "own")]


@pytest.fixture
def trial(home):
    path = home / "trial.yaml"
    path.write_text(MATRIX, encoding="utf-8")
    return path


def backfills():
    with DagsterInstance.get() as instance:
        return instance.get_backfills()


def live_daemon():
    with DagsterInstance.get() as instance:
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), "BACKFILL", "one", []))


def test_a_plan_shows_cells_and_costs_and_stores_nothing(run, home, trial):
    trial.write_text(MATRIX.replace("eng5-anchor", "anthropic/claude-haiku-4-5") + "max_cost_usd: 2\n")
    code, out, err = run("matrix", trial, "--plan")
    assert code == 0, err
    for words in (*CELLS, "6 cells (6 new)", "003_language_control", "never more than 2.00", "nothing was stored"):
        assert words in out
    code, out, err = run("matrix", trial, "--plan", "--json")
    told = json.loads(out)
    assert [cell["batch_id"] for cell in told["cells"]] == CELLS
    paid = [cell for cell in told["cells"] if not cell["simulated"]]
    assert sum(cell["wall_usd"] for cell in paid) <= 2.0 and told["expected_usd"] > 0
    assert told["expected_usd"] == pytest.approx(sum(cell["expected_usd"] for cell in paid))
    assert not (home / "assets_data" / "outputs").exists()
    assert backfills() == []


def test_one_bad_cell_and_none_is_submitted(run, home, trial):
    trial.write_text(MATRIX.replace("{label: own}", "{label: own, rubric: 77}").replace("eng5-anchor", "nobody"))
    code, _, err = run("matrix", trial)
    assert code == 2
    for words in ("judge sharp", "nobody", "prompts own", "77", "nothing was stored"):
        assert words in err
    assert "Traceback" not in err
    assert open_ledger(home).batches() == [] and backfills() == []


def test_judges_that_this_process_cannot_ask_are_told_before_any_cell_is_submitted(run, home, trial, monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    trial.write_text(MATRIX.replace("eng5-anchor", "anthropic/claude-haiku-4-5") + "max_cost_usd: 2\n")
    code, _, err = run("matrix", trial)
    assert code == 1
    assert "ANTHROPIC_API_KEY" in err and "nothing was spent" in err
    assert open_ledger(home).batches() == [] and backfills() == []
    # the daemon's environment may have the key that this one lacks
    assert run("matrix", trial, "--no-await")[0] == 0
    assert len(backfills()) == 1


def test_without_waiting_a_backfill_is_asked_for_once_and_waits_for_a_daemon(run, home, trial):
    code, out, err = run("matrix", trial, "--no-await")
    assert code == 0, err
    assert "no daemon is alive here" in out and "make ui" in out and "cj eng5 leaderboard" in out
    (backfill,) = backfills()
    assert backfill.status is BulkActionStatus.REQUESTED and backfill.partition_names == CELLS
    assert backfill.title == "ENG5 matrix trial" and backfill.tags == {"cj/matrix": "trial"}
    assert [batch.batch_id for batch in open_ledger(home).batches()] == CELLS
    code, out, err = run("matrix", trial, "--no-await")
    assert code == 0, err
    assert "6 cells under way already" in out and len(backfills()) == 1


def test_with_a_daemon_it_follows_the_cells_until_the_time_is_over(run, home, trial):
    live_daemon()
    code, out, err = run("matrix", trial, "--completion-timeout", 1)
    assert code == 1
    assert "a daemon is alive and takes it up" in out
    assert "0 of 6 cells were over after 1 s" in err and "--completion-timeout" in err
    assert {batch.status for batch in open_ledger(home).batches()} == {BatchStatus.SUBMITTED}, "left to the daemon"


@pytest.mark.slow
def test_cells_on_hold_are_left_out_and_what_a_cancelled_backfill_left_is_asked_for_again(run, home, trial):
    assert run("matrix", trial, "--no-await")[0] == 0
    with DagsterInstance.get() as instance:
        (asked,) = instance.get_backfills()
        instance.update_backfill(asked.with_status(BulkActionStatus.CANCELED))
    live_daemon()
    ledger = open_ledger(home)
    for batch_id in CELLS[1:]:
        ledger.hold(batch_id, "lunch")
    code, out, err = run("matrix", trial, "--completion-timeout", 1)
    assert code == 1 and "0 of 1 cells" in err
    assert all(f"batch {batch_id} is on hold (lunch)" in out for batch_id in CELLS[1:]) and "cj resume" in out
    assert sorted(backfill.partition_names for backfill in backfills()) == [CELLS[:1], CELLS]
    assert ledger.batch(CELLS[1]).hold_reason == "lunch"


def test_a_leaderboard_of_nothing_says_how_to_get_one(run, home):
    code, out, err = run("leaderboard")
    assert code == 0, err
    assert "cj eng5 matrix FILE" in out and "alignment_leaderboard.md" in out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_judges_and_three_prompts_are_judged_here_and_end_in_a_leaderboard(run, home, trial):
    code, out, err = run("matrix", trial)
    assert code == 0, err
    assert "no daemon is alive here" in out and "cell 6 of 6" in out
    ledger = open_ledger(home)
    assert all(ledger.batch(cell).status.has_grades and ledger.batch(cell).published_at for cell in CELLS)
    outputs = home / "assets_data" / "outputs" / "eng5"
    for cell in CELLS:
        artefact = outputs / cell / "assessment_run.anchor-align-test.json"
        assert json.loads(artefact.read_text())["validation"]["runner_status"]["partial_data"] is False
        assert run("verify", artefact, "--ledger")[0] == 0
    assert backfills() == [], "nothing is left for a later daemon to repeat"
    for words in ("leads", "all judges SIMULATED", "by 0.2 among five essays", "chance alone"):
        assert words in out
    database = home / "assets_data" / "outputs" / "alignment_leaderboard.duckdb"
    with duckdb.connect(str(database), read_only=True) as connection:
        found = connection.execute(
            "SELECT unnest(batches) AS batch, judgments FROM alignment_leaderboard ORDER BY batch"
        ).fetchall()
    assert found == [(cell, 5) for cell in CELLS]
    with DagsterInstance.get() as instance:
        event = instance.get_latest_materialization_event(AssetKey("alignment_leaderboard"))
        assert event is not None and event.asset_materialization is not None
        assert event.asset_materialization.metadata["dagster/row_count"].value == 6

    calls = {cell: ledger.attempt_counts(cell) for cell in CELLS}
    code, out, err = run("matrix", trial)
    assert code == 0, err
    assert "every cell is over: nothing to judge" in out and "6 over" in out
    assert {cell: ledger.attempt_counts(cell) for cell in CELLS} == calls
    code, out, err = run("leaderboard", "--json")
    assert code == 0, err
    assert {batch for row in json.loads(out)["rows"] for batch in row["batches"]} == set(CELLS)
