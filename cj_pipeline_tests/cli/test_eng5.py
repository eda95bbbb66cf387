"""`cj eng5` as its users call it: a project folder of its own, a real ledger, a real Dagster instance."""

import json
import os
import re
import shutil
from contextlib import closing
from pathlib import Path

import pytest
import structlog

from cj_pipeline.core.models import BatchKind, BatchStatus
from cj_pipeline_tests.cli.test_cli import PROJECT, cj, open_ledger
from cj_pipeline_tests.eng5.folders import anchor_name, assets_in
from cj_pipeline_tests.workflow.scenes import advance

INPUTS = Path("assets_data") / "inputs"
GRADES = ("F+", "E-", "D-", "C-", "B", "A")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A project folder with the shipped prompt variants and a small assets folder where the default one is."""
    shutil.copy(PROJECT / "dagster.yaml", tmp_path)
    shutil.copytree(PROJECT / INPUTS / "prompts", tmp_path / INPUTS / "prompts")
    shutil.copy(PROJECT / INPUTS / "prices.yaml", tmp_path / INPUTS)
    assets = assets_in(tmp_path / INPUTS / "eng5_np" / "ROLE_MODELS_ENG5_NP_2016", GRADES)
    (assets / "student_essays" / "quality.csv").write_text("essay_id,quality\ns1,2\ns2,5\n")
    for name in list(os.environ):
        if name.startswith("CJ_") and not name.startswith("CJ_TESTS"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CJ_LOG_FORMAT", "json")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    structlog.reset_defaults()


@pytest.fixture
def run(home, capsys):
    return lambda *arguments: cj("eng5", *arguments, capsys=capsys)


def logged(err: str, event: str) -> dict:
    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    found = [line for line in lines if line["event"] == event]
    assert len(found) == 1, err
    return found[0]


def reports(home: Path, batch_id: str) -> dict[str, bytes]:
    folder = home / "assets_data" / "outputs" / "eng5" / batch_id
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith("alignment_report")}


def test_a_plan_is_told_with_its_budget_accuracy_and_cost_and_stores_nothing(run, home):
    judge = ("--llm-provider", "anthropic", "--llm-model", "claude-haiku-4-5")
    code, out, err = run("plan", "--max-comparisons", 20, "--replications", 2, *judge)
    assert code == 0, err
    for words in ("6 anchors, 2 students: 28 pairs", "budget 20", "at most 60 calls", "τ-b", "US dollars", "a6", "s2"):
        assert words in out
    line = logged(err, "runner_validation_state")
    assert line["runner_mode"] == "plan" and line["manifest_length"] == 2 + 1 + 6 + 2
    assert "partial_data" not in line, "a plan writes no artefact"
    assert re.fullmatch(r"eng5-plan-\d{8}-\d{6}", line["batch_id"])
    code, out, err = run("plan", "--replications", 0, "--json", "--batch-id", "mine")
    told = json.loads(out)
    assert (code, told["batch_id"], told["simulated"], told["expected_accuracy"]) == (0, "mine", True, None)
    assert told["checksum"] == logged(err, "runner_validation_state")["checksum"] == line["checksum"]
    assert told["correlation_id"] == logged(err, "runner_validation_state")["correlation_id"]
    assert not (home / "assets_data" / "outputs").exists()


@pytest.mark.slow
def test_anchors_are_judged_and_reported_and_the_report_is_rebuilt_from_the_ledger(run, home):
    code, out, err = run(
        "anchor-align-test", "--batch-id", "a1", "--system-prompt", 3, "--rubric", "language_control",
        "--judge", "cj-generic", "--max-comparisons", 5,
    )  # fmt: skip
    assert code == 0, err
    assert "6 anchors as students, budget 5" in out and "τ-b" in out and "SIMULATED" in out
    assert "MISSED" in out, "told, and no failure where targets are not enforced"
    batch = open_ledger(home).batch("a1")
    assert batch.kind is BatchKind.ANCHOR_ALIGN and batch.assignment_id is None
    done = logged(err, "runner_execution_complete")
    assert done["correlation_id"] == logged(err, "runner_validation_state")["correlation_id"] == batch.correlation_id
    assert done["runner_mode"] == "anchor-align-test" and done["judged"] == open_ledger(home).state("a1").judged
    first = reports(home, "a1")
    assert set(first) == {"alignment_report.md", "alignment_report.html", "alignment_report.png"}
    markdown = first["alignment_report.md"].decode()
    assert "003\\_language\\_control" in markdown or "003_language_control" in markdown
    assert (PROJECT / INPUTS / "prompts" / "rubric" / "003_language_control.txt").read_text().strip() in markdown

    artefact = home / "assets_data" / "outputs" / "eng5" / "a1" / "assessment_run.anchor-align-test.json"
    assert len(json.loads(artefact.read_text())["results"]["comparisons"]) == done["judged"]
    assert run("verify", artefact, "--ledger")[0] == 0

    calls = open_ledger(home).attempt_counts("a1")
    shutil.rmtree(home / "assets_data" / "outputs" / "eng5")
    shutil.rmtree(home / INPUTS)
    # five judgments cannot give six anchors a win each, so a target is missed for certain
    code, _, err = run("report", "a1", "--enforce-targets")
    assert code == 1 and "anchors without a win" in err and "at most 0 wanted" in err
    assert reports(home, "a1") == first
    assert open_ledger(home).attempt_counts("a1") == calls


@pytest.mark.slow
def test_where_targets_are_enforced_the_run_fails_by_the_missed_ones_with_the_report_written(run, home, monkeypatch):
    monkeypatch.setenv("CJ_ENFORCE_TARGETS", "true")
    code, out, err = run("anchor-align-test", "--batch-id", "a1", "--judge", "cj-generic", "--max-comparisons", 5)
    assert code == 1
    assert "MISSED" in out and "batch a1 missed" in err and "anchors without a win" in err
    assert "alignment_report.html" in reports(home, "a1")
    assert open_ledger(home).batch("a1").status.has_grades
    assert run("report", "a1")[0] == 1


def test_without_waiting_it_submits_and_says_that_no_daemon_takes_it_up(run, home):
    code, out, err = run("anchor-align-test", "--batch-id", "later", "--no-await")
    assert code == 0, err
    assert "no daemon is alive" in out and "cj run later" in out and "cj eng5 report later" in out
    assert open_ledger(home).batch("later").status is BatchStatus.SUBMITTED
    code, _, err = run("report", "later")
    assert code == 2 and "cj run later" in err


def test_a_batch_on_hold_is_not_taken_off_it_by_asking_for_it_again(run, home):
    assert run("execute", "--batch-id", "held", "--no-await")[0] == 0
    with closing(open_ledger(home)) as ledger:
        ledger.hold("held", "the school called")
    code, _, err = run("execute", "--batch-id", "held")
    assert code == 1
    assert "on hold (the school called)" in err and "cj resume held" in err
    with closing(open_ledger(home)) as ledger:
        assert ledger.batch("held").hold_reason == "the school called"
        assert ledger.state("held").submitted == 0


def test_a_report_of_an_unfinished_batch_is_told_as_one_so_far(run, home):
    assert run("anchor-align-test", "--batch-id", "begun", "--no-await")[0] == 0
    with closing(open_ledger(home)) as ledger:
        advance(ledger, "begun", waves_per_run=1)
        judged = ledger.state("begun").judged
        assert judged and not ledger.batch("begun").status.is_final
    code, out, err = run("report", "begun")
    assert code == 0, err
    assert f"{judged} judgments so far" in out


def test_a_living_daemon_is_told_of(run, home):
    import time

    from dagster import DagsterInstance
    from dagster._daemon.types import DaemonHeartbeat

    with DagsterInstance.get() as instance:
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), "SENSOR", "one", []))
    assert "a daemon is alive" in run("anchor-align-test", "--batch-id", "later", "--no-await")[1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("anchor-align-test", "--batch-id", ""), ("--batch-id is empty", "shell variable")),
        (("plan", "--batch-id", " "), ("--batch-id is empty",)),
        (("plan", "--assets", "nowhere"), ("nowhere", "CJ_ENG5_ASSETS_DIR")),
        (("anchor-align-test", "--rubric", "77"), ("77", "003_language_control")),
        (("anchor-align-test", "--system-prompt", "./mine.txt"), ("mine.txt", "no such file")),
        (("anchor-align-test", "--reasoning-effort", "lots"), ("reasoning_effort", "'low'")),
        (("anchor-align-test", "--judge", "x", "--max-comparisons", "5000"), ("cj-generic", "CJ_MAX_PAIRWISE")),
        (("anchor-align-test", "--llm-model", "gpt-5.1"), ("--llm-provider and --llm-model",)),
        (("report", "nowhere"), ("nowhere", "cj status")),
    ],
)
def test_bad_input_is_refused_with_what_where_and_the_remedy_before_anything_is_stored(run, home, arguments, named):
    code, _, err = run(*arguments)
    assert code == 2
    assert all(words in err for words in named), err
    assert "Traceback" not in err
    assert not (home / "assets_data" / "outputs" / "ledger.sqlite").exists() or open_ledger(home).batches() == []


def test_every_problem_of_the_assets_is_listed_at_once(run, home):
    assets = home / INPUTS / "eng5_np" / "ROLE_MODELS_ENG5_NP_2016"
    (assets / "anchor_essays" / anchor_name(1, "F+")).unlink()
    (assets / "llm_prompt_cj_assessment_eng5.md").unlink()
    for mode in ("plan", "anchor-align-test"):
        code, _, err = run(mode)
        assert code == 2
        assert anchor_name(1, "F+") in err and "llm_prompt_cj_assessment_eng5.md" in err


@pytest.mark.slow
def test_execute_registers_the_anchors_grades_the_students_and_leaves_an_artefact_that_verifies(run, home):
    code, out, err = run("execute", "--batch-id", "e1", "--max-comparisons", 10)
    assert code == 0, err
    assert "2 students, 6 anchors of the assignment, budget 10" in out and "SIMULATED" in out
    assert "COMPLETE_MAX_COMPARISONS (budget_spent)" in out and "LLM batching diagnostics" in out
    begun = logged(err, "runner_validation_state")
    assert (begun["runner_mode"], begun["partial_data"]) == ("execute", True)
    told = logged(err, "runner_execution_complete")
    assert (told["judged"], told["partial_data"], told["stop_reason"]) == (10, False, "budget_spent")
    ledger = open_ledger(home)
    batch = ledger.batch("e1")
    assert (batch.kind, batch.assignment_id, batch.total_budget) == (BatchKind.ASSESSMENT, "eng5-np-2016", 10)
    assert {anchor.grade for anchor in ledger.anchors(ledger.assignment("eng5-np-2016"))} == set(GRADES)
    path = home / "assets_data" / "outputs" / "eng5" / "e1" / "assessment_run.execute.json"
    artefact = json.loads(path.read_text())
    assert artefact["validation"]["runner_status"]["partial_data"] is False
    assert {row["essay_id"] for row in artefact["bt_summary"] if not row["is_anchor"]} == {"s1", "s2"}
    path.unlink()
    code, out, err = run("collect", "e1")
    assert code == 0, err
    assert run("verify", path, "--ledger")[0] == 0


def test_a_batch_id_that_another_mode_has_used_is_refused_before_a_batch_is_stored(run, home):
    assert run("dry-run", "--batch-id", "taken", "--max-comparisons", 30)[0] == 0
    for mode in ("execute", "anchor-align-test"):
        code, _, err = run(mode, "--batch-id", "taken", "--no-await")
        assert code == 2
        assert "assessment_run.dry-run.json" in err and "choose another batch id" in err
    assert not (home / "assets_data" / "outputs" / "ledger.sqlite").exists()


def test_anchors_that_differ_from_the_registered_end_execute_unless_a_revision_is_asked_for(run, home):
    assert run("execute", "--batch-id", "e1", "--no-await")[0] == 0
    assets = home / INPUTS / "eng5_np" / "ROLE_MODELS_ENG5_NP_2016"
    table = assets / "ANCHOR_ESSAYS_BAYESIAN_INFERENCE_DATA.csv"
    (assets / "anchor_essays" / anchor_name(5, "B")).rename(assets / "anchor_essays" / anchor_name(5, "C-"))
    table.write_text(table.read_text().replace(f"{anchor_name(5, 'B')},B", f"{anchor_name(5, 'C-')},C-"))
    ledger = open_ledger(home)
    code, _, err = run("execute", "--batch-id", "e2")
    assert code == 1
    assert "anchor a5 has grade B, the folder says C-" in err and "--replace" in err and "nothing was spent" in err
    assert [batch.batch_id for batch in ledger.batches()] == ["e1"]
    code, out, err = run("execute", "--batch-id", "e2", "--replace", "--no-await")
    assert code == 0, err
    assert "cj run e2" in out and "cj eng5 collect e2" in out
    assert ledger.batch("e2").assignment_revision == 2
    folder = home / "assets_data" / "outputs" / "eng5" / "e2"
    begun = json.loads((folder / "assessment_run.execute.json").read_text())
    assert begun["validation"]["runner_status"]["partial_data"] is True
    assert list(begun["validation"]["manifest"]) == ["requests/batch.json"]
    code, out, err = run("collect", "e2")
    assert code == 0 and "PARTIAL DATA" in out
    assert "runner_execution_complete" not in err, "nothing of it has been judged"


@pytest.mark.parametrize("mode", ["execute", "anchor-align-test"])
def test_a_judge_that_cannot_be_asked_ends_the_mode_before_anything_is_stored(run, home, monkeypatch, mode):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    code, _, err = run(mode, "--llm-provider", "anthropic", "--llm-model", "claude-haiku-4-5")
    assert code == 1
    assert "ANTHROPIC_API_KEY" in err and "nothing was spent" in err
    assert not (home / "assets_data" / "outputs").exists()


def test_a_batch_that_cannot_be_stored_registers_no_assignment_either(run, home):
    (home / INPUTS / "eng5_np" / "ROLE_MODELS_ENG5_NP_2016" / "student_essays" / "quality.csv").unlink()
    code, _, err = run("execute", "--max-comparisons", 5000)
    assert code == 2
    assert "2 problems, nothing was stored" in err and "CJ_MAX_PAIRWISE" in err and "quality.csv" in err
    assert not (home / "assets_data" / "outputs").exists()


@pytest.mark.parametrize("stated", ["elsewhere", "/nowhere/at/all"])
def test_a_dagster_home_that_is_no_full_path_of_a_folder_is_named(run, home, monkeypatch, stated):
    (home / "elsewhere").mkdir()
    monkeypatch.setenv("DAGSTER_HOME", stated)
    code, _, err = run("anchor-align-test")
    assert code == 2
    assert f"DAGSTER_HOME {stated}" in err and "Traceback" not in err


def test_an_anchor_below_the_scale_is_refused_with_its_file(run, home):
    assets_in(home / "other", ("F", "C-", "A"))
    code, _, err = run("execute", "--assets", "other")
    assert code == 2
    assert anchor_name(1, "F") in err and "F+" in err


def test_the_doctor_tells_what_to_mend_and_fails_by_it(home, capsys, monkeypatch):
    code, out, _ = cj("doctor", "--eng5", "--json", capsys=capsys)
    assert code == 0
    states = {one["what"]: one["state"] for one in json.loads(out)}
    assert states == {
        "ledger": "ok", "disk": "ok", "dagster": "warning", "material": "ok", "assignment": "ok", "judge": "ok"
    }  # fmt: skip
    assert not (home / "assets_data" / "outputs").exists()
    (home / "dagster.yaml").unlink()
    monkeypatch.delenv("DAGSTER_HOME")
    monkeypatch.setenv("CJ_LEDGER_URL", "mysql://somebody:secret@host/db")
    code, out, _ = cj("doctor", "--eng5", "--assets", "nowhere", "--judge", "nobody", capsys=capsys)
    assert code == 1
    for words in ("PROBLEM dagster", "PROBLEM ledger", "PROBLEM material", "PROBLEM judge", "nowhere", "nobody"):
        assert words in out
    assert "secret" not in out


@pytest.mark.slow
def test_when_the_time_is_over_it_stops_sending_keeps_what_it_has_and_leaves_the_batch_open(run, home, monkeypatch):
    monkeypatch.setenv("CJ_SIMULATED_LATENCY", "true")
    code, _, err = run("anchor-align-test", "--batch-id", "t1", "--completion-timeout", 1)
    assert code == 1
    assert "--completion-timeout" in err
    told = logged(err, "collector_timeout")
    assert (told["batch_id"], told["partial_data"], told["timeout"], told["status"]) == ("t1", True, True, "JUDGING")
    ledger = open_ledger(home)
    batch = ledger.batch("t1")
    assert batch.status is BatchStatus.JUDGING
    assert batch.hold_reason is None and not batch.lease_live
    assert ledger.attempt_counts("t1").get("lost", 0) == 0
    assert ("alignment_report.md" in reports(home, "t1")) == (ledger.state("t1").judged > 0)
    monkeypatch.delenv("CJ_SIMULATED_LATENCY")
    monkeypatch.setenv("CJ_LOG_FORMAT", "console")
    code, out, err = run("anchor-align-test", "--batch-id", "t1")
    assert code == 0, err
    assert "was submitted before" in out
    assert open_ledger(home).batch("t1").status.has_grades


def test_a_dry_run_writes_a_whole_artefact_that_verifies_and_leaves_no_ledger(run, home):
    code, out, err = run("dry-run", "--batch-id", "rehearsal", "--max-comparisons", 30)
    assert code == 0, err
    assert "STUBBED" in out
    path = home / "assets_data" / "outputs" / "eng5" / "rehearsal" / "assessment_run.dry-run.json"
    artefact = json.loads(path.read_text())
    assert artefact["metadata"]["mode"] == "dry-run"
    assert len(artefact["results"]["comparisons"]) == 30
    rehearsed = logged(err, "runner_validation_state")
    assert (rehearsed["runner_mode"], rehearsed["partial_data"]) == ("dry-run", False)
    assert not (home / "assets_data" / "outputs" / "ledger.sqlite").exists()
    code, out, err = run("verify", path)
    assert code == 0, err
    assert "agree" in out
