"""`cj` as a person or a script uses it: real files, a real ledger, a real Dagster instance."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import structlog

from cj_pipeline.cli import main
from cj_pipeline.cli.context import print_json
from cj_pipeline.core.models import BatchStatus
from cj_pipeline.ledger import Ledger
from cj_pipeline.settings import CJSettings, load_settings

PROJECT = Path(__file__).resolve().parents[2]
DEMO = PROJECT / "assets_data" / "inputs" / "demo"
CJ = Path(sys.executable).parent / "cj"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A project folder of its own, where `cj` finds dagster.yaml by itself."""
    shutil.copy(PROJECT / "dagster.yaml", tmp_path)
    shutil.copytree(DEMO, tmp_path / "assets_data" / "inputs" / "demo")
    for name in list(os.environ):
        if name.startswith("CJ_") and not name.startswith("CJ_TESTS"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    # set by `cj` itself in this process; forgotten again with the fixture
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    yield tmp_path
    structlog.reset_defaults()  # a command configures logging for its whole process, which here goes on


def cj(*arguments, capsys):
    """Run `cj` in this process; exit code, output, errors."""
    before = signal.getsignal(signal.SIGTERM)
    argv, sys.argv = sys.argv, ["cj", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, before)
    printed = capsys.readouterr()
    return ended.value.code or 0, printed.out, printed.err


@pytest.fixture
def run(home, capsys):
    return lambda *arguments: cj(*arguments, capsys=capsys)


@pytest.fixture
def registered(run):
    assert run("assignments", "register", DEMO / "assignment")[0] == 0
    return run


def open_ledger(home: Path) -> Ledger:
    return Ledger.open(f"sqlite:///{home / 'assets_data' / 'outputs' / 'ledger.sqlite'}")


def test_every_command_explains_itself(run):
    code, out, _ = run("--help")
    assert code == 0
    commands = [
        "settings",
        "submit",
        "run",
        "status",
        "hold",
        "resume",
        "reopen",
        "cancel",
        "show",
        "positions",
        "demo",
    ]
    for command in [*commands, "ui", "assignments", "ledger", "eng5"]:
        assert command in out
    for command in commands:
        code, out, _ = run(command, "--help")
        assert code == 0
        assert "Usage" in out


def test_settings_are_shown_with_value_source_unit_and_reason(run, monkeypatch):
    monkeypatch.setenv("CJ_SCORE_STABILITY_THRESHOLD", "0.07")
    code, out, _ = run("settings", "--json")
    rows = {row["variable"]: row for row in json.loads(out)}
    assert code == 0
    assert rows["CJ_SCORE_STABILITY_THRESHOLD"]["value"] == "0.07"
    assert rows["CJ_SCORE_STABILITY_THRESHOLD"]["source"] == "environment"
    assert rows["CJ_MAX_PAIRWISE_COMPARISONS"]["value"] == "1000"
    assert rows["CJ_MAX_PAIRWISE_COMPARISONS"]["source"] == "default"
    assert set(rows) == {f"CJ_{name.upper()}" for name in CJSettings.model_fields}
    assert all(len(row["description"]) > 20 for row in rows.values())


def test_the_password_of_the_ledger_is_not_shown(run, monkeypatch):
    monkeypatch.setenv("CJ_LEDGER_URL", "postgresql+psycopg2://cj:s3cret@db.example/cj")
    for arguments in (("settings",), ("settings", "--json")):
        _, out, err = run(*arguments)
        assert "s3cret" not in out + err
        assert "db.example" in out


def test_a_setting_that_does_not_validate_is_bad_input_and_names_the_variable(run, monkeypatch):
    monkeypatch.setenv("CJ_JUDGE_CONCURRENCY", "many")
    code, _, err = run("status")
    assert code == 2
    assert "CJ_JUDGE_CONCURRENCY" in err
    assert "Traceback" not in err


def test_registering_twice_changes_nothing_and_a_changed_grade_needs_replace(run, home):
    folder = home / "assignment"
    shutil.copytree(DEMO / "assignment", folder)
    assert "revision 1, 12 anchors" in run("assignments", "register", folder)[1]
    assert "unchanged (revision 1)" in run("assignments", "register", folder)[1]
    anchor = next((folder / "anchors").glob("anchor_02_*"))
    anchor.rename(anchor.with_name("anchor_02_D+.txt"))
    code, _, err = run("assignments", "register", folder)
    assert code == 2
    assert "anchor_02" in err
    assert "--replace" in err
    code, out, _ = run("assignments", "register", folder, "--replace")
    assert code == 0
    assert "revision 2" in out


def test_listed_assignments_come_with_commands_to_copy(registered):
    _, out, _ = registered("assignments", "list")
    assert "cj submit FOLDER --assignment demo-eng5" in out
    rows = json.loads(registered("assignments", "list", "--anchors", "demo-eng5", "--json")[1])
    assert len(rows) == 12
    assert {row["grade"] for row in rows} == {"F+", "E-", "E+", "D-", "D+", "C-", "C+", "B", "A"}


def test_a_bad_batch_lists_every_problem_and_stores_nothing(registered, home):
    folder = home / "bad"
    folder.mkdir()
    (folder / "one.txt").write_text("The same words in two files.")
    (folder / "two.txt").write_text("The same words in two files.")
    (folder / "empty.txt").write_text("  \n")
    code, _, err = registered("submit", folder, "--assignment", "demo-eng5", "--batch-id", "bad")
    assert code == 2
    assert "one" in err and "two" in err and "empty.txt" in err
    assert "The same words" not in err
    code, _, err = registered("submit", folder, "--assignment", "nowhere", "--max-comparisons", 5000, "--judge", "x")
    assert code == 2
    for problem in ("empty.txt", "one", "demo-eng5", "CJ_MAX_PAIRWISE_COMPARISONS", "cj-generic"):
        assert problem in err
    code, _, err = registered("submit", DEMO / "batch", "--assignment", "nowhere", "--max-comparisons", 5000)
    assert code == 2
    assert "demo-eng5" in err and "CJ_MAX_PAIRWISE_COMPARISONS" in err
    assert json.loads(registered("status", "--json")[1]) == []


def test_a_batch_goes_from_files_to_grades_and_can_be_shown_as_text_and_json(registered, home):
    code, out, _ = registered("submit", DEMO / "batch", "--batch-id", "b1", "--max-comparisons", 60)
    assert code == 0
    assert "12 students, 12 anchors, budget 60" in out
    assert "pseudonyms" in out
    assert registered("run", "b1")[0] == 0
    code, text, _ = registered("show", "b1")
    assert code == 0
    assert "SIMULATED" in text and "budget is spent" in text
    assert "grade boundaries" in text and "F+|E- (pass)" in text
    target = home / "b1.json"
    assert registered("show", "b1", "--format", "json", "--output", target)[0] == 0
    record = json.loads(target.read_text())
    assert set(record) >= {
        "batch_info", "batch_state", "comparisons", "bradley_terry_stats", "grade_projections", "wins_losses"
    }  # fmt: skip
    assert record["simulated"] is True
    judged = [row for row in record["comparisons"] if row["status"] == "judged"]
    assert len(judged) == 60
    for essay, count in record["wins_losses"].items():
        assert count["wins"] == sum(row["winner_id"] == essay for row in judged)
        assert count["losses"] == sum(row["loser_id"] == essay for row in judged)
    assert sum(row["score"] for row in record["bradley_terry_stats"]["scores"]) == pytest.approx(0, abs=1e-9)
    for row in record["grade_projections"]:
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-9)
        assert sum(row["probabilities_uniform"].values()) == pytest.approx(1, abs=1e-9)
    assert len(record["grade_boundaries"]) == 9
    assert len(record["anchor_report"]["anchors"]) == 12
    assert record["anchor_report"]["verdict"] in text
    code, out, _ = registered("run", "b1")
    assert code == 0
    assert "is done" in out


@pytest.mark.slow
def test_a_diagnosis_says_what_a_perfect_judge_would_show_as_text_and_as_json(registered):
    registered("submit", DEMO / "batch", "--batch-id", "b1", "--max-comparisons", 60)
    registered("run", "b1")
    code, out, _ = registered("diagnose", "b1", "--json", "--replications", 20)
    assert code == 0
    found = json.loads(out)
    assert len(found["essays"]) == 24
    for row in [*found["essays"], *found["judges"]]:
        for name in ("infit", "outfit"):
            # of twenty perfect judges the limits leave out the first and the last
            inside = row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
            assert row[f"{name}_p"] > 0.15 if inside else row[f"{name}_p"] < 0.2
    summary = found["summary"]
    assert 0.0 <= summary["transitivity_low"] <= summary["transitivity_expected"] <= summary["transitivity_high"] <= 1.0
    code, text, _ = registered("diagnose", "b1", "--replications", 20)
    assert code == 0
    assert f"transitive triads: {summary['transitivity']:.3f} (a perfect judge: " in text
    assert "A perfect judge's infit of the typical essay lies between" in text
    group = next(group for group in found["groups"] if len(group) > 1)
    assert f"  {group[0]} to {group[-1]} ({len(group)} essays)" in text
    (judge,) = found["judges"]
    assert f"{judge['judgments']} judgments, infit {judge['infit']:.2f} (a perfect judge: " in text


def test_overrides_travel_with_the_batch_and_win_over_the_environment(registered, home, monkeypatch):
    monkeypatch.setenv("CJ_JUDGE_CONCURRENCY", "3")
    monkeypatch.setenv("CJ_MAX_JUDGMENT_ATTEMPTS", "7")
    stated = ("--override", "judge_concurrency=5", "--override", "score_stability_threshold=0.2")
    assert registered("submit", DEMO / "batch", "--batch-id", "b1", *stated)[0] == 0
    monkeypatch.setenv("CJ_MAX_JUDGMENT_ATTEMPTS", "9")
    settings = open_ledger(home).batch("b1").settings
    assert settings["judge_concurrency"] == 5
    assert settings["score_stability_threshold"] == 0.2
    assert settings["max_judgment_attempts"] == 7
    for bad, named in (
        ("judge_concurrency=none", "judge_concurrency"),
        ("nonsense=1", "nonsense"),
        ("x", "NAME=VALUE"),
    ):
        code, _, err = registered("submit", DEMO / "batch", "--batch-id", "b2", "--override", bad)
        assert code == 2
        assert named in err


@pytest.mark.slow
def test_positions_add_up_to_the_planned_comparisons(registered):
    registered("submit", DEMO / "batch", "--batch-id", "b1", "--max-comparisons", 36)
    registered("run", "b1")
    rows = json.loads(registered("positions", "b1", "--json")[1])
    assert sum(row["as_a"] for row in rows) == sum(row["as_b"] for row in rows) == 36
    assert all(abs(row["as_a"] - row["as_b"]) <= 1 for row in rows)
    assert "anchors:" in registered("positions", "b1")[1]


@pytest.mark.slow
def test_a_batch_with_too_few_essays_fails_with_exit_code_1_and_says_why(registered, home):
    folder = home / "single"
    folder.mkdir()
    (folder / "only.txt").write_text("A lonely essay of a few words.")
    (folder / "quality.csv").write_text("essay_id,quality\nonly,3\n")
    assert registered("submit", folder, "--assignment", "demo-eng5")[0] == 0
    code, _, err = registered("run", "single")
    assert code == 1
    assert "COMPLETE_INSUFFICIENT_ESSAYS" in err
    assert "fewer than two" in registered("show", "single")[1]


@pytest.mark.slow
def test_hold_resume_cancel_and_reopen_are_recorded(registered, home):
    registered("submit", DEMO / "batch", "--batch-id", "b1", "--max-comparisons", 24)
    assert registered("hold", "b1", "--reason", "waiting for the teacher")[0] == 0
    assert "waiting for the teacher" in registered("status", "b1")[1]
    assert registered("resume", "b1")[0] == 0
    assert registered("cancel", "b1")[0] == 0
    ledger = open_ledger(home)
    assert ledger.batch("b1").status is BatchStatus.CANCELLED
    assert registered("cancel", "b1")[0] == 2
    assert registered("reopen", "b1", "--reason", "by mistake")[0] == 0
    assert ledger.batch("b1").status is BatchStatus.JUDGING
    assert registered("run", "b1")[0] == 0
    assert ledger.batch("b1").status is BatchStatus.COMPLETE_MAX_COMPARISONS
    assert registered("reopen", "b1", "--reason", "again")[0] == 2
    events = [event["event"] for event in json.loads(registered("status", "b1", "--json")[1])["events"]]
    assert [e for e in events if e in ("held", "resumed", "reopened")] == ["held", "resumed", "held", "reopened"]


def test_a_batch_that_another_process_writes_is_refused_naming_who(registered, home):
    from cj_pipeline.ledger import Lease

    registered("submit", DEMO / "batch", "--batch-id", "b1", "--max-comparisons", 24)
    with Lease.acquire(open_ledger(home), "b1", owner="elsewhere:42", seconds=30):
        code, _, err = registered("run", "b1")
    assert code == 1
    assert "elsewhere:42" in err
    assert "--wait" in err


@pytest.mark.parametrize("command", ["run", "show", "diagnose", "positions", "hold", "resume", "status"])
def test_an_unknown_batch_is_bad_input_with_a_hint(registered, command):
    code, _, err = registered(command, "nowhere")
    assert code == 2
    assert "cj status" in err


def test_an_old_ledger_is_refused_until_it_is_upgraded(run, home):
    from cj_pipeline.ledger.engine import make_engine, upgrade

    path = home / "assets_data" / "outputs" / "ledger.sqlite"
    engine = make_engine(f"sqlite:///{path}")
    upgrade(engine, "0001")
    engine.dispose()
    code, _, err = run("status")
    assert code == 1
    assert "cj ledger upgrade" in err
    assert run("ledger", "upgrade")[0] == 0
    assert run("status")[0] == 0
    assert "already" in run("ledger", "upgrade")[1]


@pytest.mark.slow
def test_the_demo_runs_once_and_then_says_that_it_is_done(home):
    environment = {**os.environ, "DAGSTER_HOME": str(home)}
    first = subprocess.run([CJ, "demo"], cwd=home, env=environment, capture_output=True, text=True, timeout=240)
    assert first.returncode == 0, first.stderr
    assert "SIMULATED" in first.stdout and "where to look next" in first.stdout
    ledger = open_ledger(home)
    calls = ledger.attempt_counts("demo")
    again = subprocess.run([CJ, "demo"], cwd=home, env=environment, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0
    assert "is done" in again.stdout
    assert ledger.attempt_counts("demo") == calls


@pytest.mark.slow
def test_an_interrupted_run_loses_nothing_and_the_same_command_goes_on(registered, home):
    registered("submit", DEMO / "batch", "--batch-id", "b1", "--max-comparisons", 60)
    environment = {**os.environ, "CJ_SIMULATED_LATENCY": "true", "CJ_LOG_FORMAT": "json"}
    process = subprocess.Popen(
        [CJ, "run", "b1"], cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    ledger = open_ledger(home)
    deadline = time.monotonic() + 120
    while ledger.state("b1").judged < 5:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted: everything recorded is kept" in err
    counts = ledger.attempt_counts("b1")
    assert set(counts) == {"judged"}
    batch = ledger.batch("b1")
    assert not batch.status.is_final
    assert batch.lease_owner is None
    assert registered("run", "b1")[0] == 0
    assert ledger.attempt_counts("b1") == {"judged": 60}


def test_numbers_that_json_does_not_have_are_printed_as_null(capsys):
    def refused(constant):
        raise AssertionError(constant)

    print_json({"a": float("nan"), "b": [float("inf"), 1.5, None], "c": ({"d": float("-inf")}, "nan")})
    printed = json.loads(capsys.readouterr().out, parse_constant=refused)
    assert printed == {"a": None, "b": [None, 1.5, None], "c": [{"d": None}, "nan"]}


def test_settings_are_read_when_asked_for_and_not_at_import(monkeypatch):
    monkeypatch.setenv("CJ_MAX_PAIRWISE_COMPARISONS", "77")
    assert load_settings().max_pairwise_comparisons == 77
    monkeypatch.setenv("CJ_MAX_PAIRWISE_COMPARISONS", "78")
    assert load_settings().max_pairwise_comparisons == 78
