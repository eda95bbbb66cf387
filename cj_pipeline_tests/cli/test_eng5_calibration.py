"""`cj eng5 calibrate` and `calibration-history` as their users call them."""

import json
import os
import shutil
from contextlib import closing

import pytest
import structlog
from dagster import AssetCheckKey, AssetKey, DagsterInstance

from cj_pipeline.ledger import Ledger
from cj_pipeline.workflow.registration import register_assignment
from cj_pipeline_tests.cli.test_cli import PROJECT, cj, open_ledger
from cj_pipeline_tests.workflow.scenes import advance, assignment_request


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A project folder whose ledger has an assignment with six anchors."""
    shutil.copy(PROJECT / "dagster.yaml", tmp_path)
    (tmp_path / "assets_data" / "inputs").mkdir(parents=True)
    shutil.copy(PROJECT / "assets_data" / "inputs" / "prices.yaml", tmp_path / "assets_data" / "inputs")
    (tmp_path / "assets_data" / "outputs").mkdir()
    for name in list(os.environ):
        if name.startswith("CJ_") and not name.startswith("CJ_TESTS"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("CJ_CALIBRATION_ASSIGNMENT", "letters")
    monkeypatch.setenv("CJ_CALIBRATION_MAX_COMPARISONS", "30")
    monkeypatch.chdir(tmp_path)
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'assets_data' / 'outputs' / 'ledger.sqlite'}")
    register_assignment(ledger, assignment_request(anchors=6))
    ledger.close()
    yield tmp_path
    structlog.reset_defaults()


def test_a_night_is_submitted_once_and_its_history_is_told_and_written(home, capsys):
    code, out, err = cj("eng5", "calibrate", "--no-await", capsys=capsys)
    assert code == 0, err
    assert "submitted: 6 anchors of letters, budget 30 comparisons, judge eng5-anchor (SIMULATED)" in out
    code, out, err = cj("eng5", "calibrate", "--no-await", capsys=capsys)
    assert code == 0, err
    assert "was submitted before" in out
    with closing(open_ledger(home)) as ledger:
        (batch,) = ledger.batches()
        advance(ledger, batch.batch_id)
    code, out, err = cj("eng5", "calibration-history", "--json", capsys=capsys)
    assert code == 0, err
    said = json.loads(out)
    assert [night["judgments"] for night in said["nights"]] == [30]
    assert {verdict["measure"] for verdict in said["verdicts"]} == {
        *("anchor_drift", "tau_b", "position_bias", "cost", "latency")
    }
    folder = home / "assets_data" / "outputs" / "eng5" / "calibration" / "letters"
    assert {path.name for path in folder.iterdir()} == {
        *("anchor_bank.json", "anchor_bank.duckdb"),
        *(f"anchor_calibration_history.{suffix}" for suffix in ("md", "png", "duckdb")),
    }


@pytest.mark.slow
def test_a_night_judged_here_is_in_the_ui_at_once_with_its_checks(home, capsys):
    code, out, err = cj("eng5", "calibrate", capsys=capsys)
    assert code == 0, err
    assert "1 night" in out
    with DagsterInstance.from_config(str(home)) as instance:
        key = AssetKey("anchor_calibration_history")
        for asset in (key, AssetKey("anchor_bank")):
            event = instance.get_latest_materialization_event(asset)
            assert event is not None and event.asset_materialization.metadata["nights"].value == 1
        checks = instance.event_log_storage.get_latest_asset_check_execution_by_key(
            [AssetCheckKey(key, name) for name in ("anchor_drift_in_control", "night_is_there")]
        )
        assert len(checks) == 2


def test_the_months_ceiling_and_an_unknown_assignment_are_told_without_a_traceback(home, capsys, monkeypatch):
    monkeypatch.setenv("CJ_CALIBRATION_JUDGE", "anthropic/claude-haiku-4-5")
    monkeypatch.setenv("CJ_CALIBRATION_MONTH_USD", "1")
    code, _, err = cj("eng5", "calibrate", "--no-await", capsys=capsys)
    assert code == 2
    assert "CJ_CALIBRATION_MONTH_USD" in err
    monkeypatch.setenv("CJ_CALIBRATION_ASSIGNMENT", "nowhere")
    code, _, err = cj("eng5", "calibrate", "--no-await", capsys=capsys)
    assert code == 2
    assert "nowhere" in err and "cj eng5 register" in err


def test_a_night_is_not_used_up_by_a_judge_that_this_process_cannot_ask(home, capsys, monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.setenv("CJ_CALIBRATION_JUDGE", "anthropic/claude-haiku-4-5")
    code, _, err = cj("eng5", "calibrate", capsys=capsys)
    assert code == 1
    assert "ANTHROPIC_API_KEY" in err and "nothing was spent" in err
    with closing(open_ledger(home)) as ledger:
        assert ledger.batches() == []


def test_an_empty_id_of_a_night_is_an_error_that_suspects_the_shell(home, capsys):
    code, _, err = cj("eng5", "calibrate", "--batch-id", "", capsys=capsys)
    assert code == 2
    assert "--batch-id is empty" in err and "eng5-calibration-" in err
