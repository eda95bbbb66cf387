"""A matrix and a real daemon: the backfill is taken up, every cell gets one run of it, and the leaderboard follows."""

import shutil
from pathlib import Path

import duckdb
import pytest
from dagster import DagsterRunStatus, RunsFilter
from dagster._core.execution.backfill import BulkActionStatus

from cj_pipeline_tests.defs.stage import ROOT, Stage, wait_until
from cj_pipeline_tests.eng5.folders import assets_in

pytestmark = pytest.mark.slow

PATIENCE = 600.0  # seconds
INPUTS = ROOT / "assets_data" / "inputs"
MATRIX = """
matrix: live
judges:
  - {label: fair, judge: cj-generic}
prompts:
  - {label: base, system: 001, rubric: 001}
  - {label: capped, system: 003, rubric: 003}
max_comparisons: 6
"""
CELLS = ["eng5-matrix-live-fair-base", "eng5-matrix-live-fair-capped"]


@pytest.mark.timeout(900)
def test_a_daemon_runs_every_cell_once_by_the_backfill_and_then_rebuilds_the_leaderboard(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    stage = Stage(tmp_path / "home")
    inputs = stage.data_dir / "inputs"
    shutil.copytree(INPUTS / "prompts", inputs / "prompts")
    shutil.copy(INPUTS / "prices.yaml", inputs)
    assets_in(inputs / "eng5_np" / "ROLE_MODELS_ENG5_NP_2016", ("F+", "E-", "C-", "A"))
    (stage.home / "live.yaml").write_text(MATRIX, encoding="utf-8")
    daemon = stage.start("dagster-daemon", "run", "-w", "workspace.yaml")
    try:
        with stage.instance() as instance:
            wait_until(
                lambda: "BACKFILL" in instance.get_daemon_heartbeats(),
                seconds=PATIENCE,
                what=lambda: stage.log("dagster-daemon")[-3000:],
            )
            done = stage.call("cj", "eng5", "matrix", "live.yaml", timeout=PATIENCE)
            assert done.returncode == 0, done.stderr + done.stdout
            assert "a daemon is alive and takes it up" in done.stdout and "2 of 2" in done.stdout

            (backfill,) = instance.get_backfills()
            wait_until(
                lambda: instance.get_backfill(backfill.backfill_id).status is BulkActionStatus.COMPLETED_SUCCESS,
                seconds=PATIENCE,
                what=lambda: str(instance.get_backfill(backfill.backfill_id)),
            )
            for cell in CELLS:
                (run,) = instance.get_runs(RunsFilter(tags={"dagster/partition": cell}))
                assert run.status is DagsterRunStatus.SUCCESS
                assert run.tags["dagster/backfill"] == backfill.backfill_id
                assert stage.batch(cell).status.has_grades
            rebuilt = RunsFilter(job_name="alignment_leaderboard_job", statuses=[DagsterRunStatus.SUCCESS])
            wait_until(
                lambda: instance.get_runs(rebuilt),
                seconds=PATIENCE,
                what=lambda: stage.log("dagster-daemon")[-3000:],
            )
        database = stage.data_dir / "outputs" / "alignment_leaderboard.duckdb"
        with duckdb.connect(str(database), read_only=True) as connection:
            rows = connection.execute("SELECT unnest(batches) AS b FROM alignment_leaderboard ORDER BY b").fetchall()
        assert rows == [(cell,) for cell in CELLS]
    finally:
        stage.kill_everything()
        daemon.wait()
