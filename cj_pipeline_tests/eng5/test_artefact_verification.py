"""Verifying finds nothing where nothing was touched, and names what was, whatever was touched."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cj_pipeline.core.errors import InputError
from cj_pipeline.eng5.artefact import RunMode
from cj_pipeline.eng5.artefact_building import recorded_run, write_run
from cj_pipeline.eng5.artefact_verification import read_artefact, verify_artefact
from cj_pipeline.eng5.dry_run import dry_run
from cj_pipeline.eng5.inventory import Inventory
from cj_pipeline.ledger import Ledger
from cj_pipeline.ledger import tables as t
from cj_pipeline.settings import BatchOverrides
from cj_pipeline_tests.eng5 import runs
from cj_pipeline_tests.workflow.scenes import advance, settings, simulated

on_sqlite = pytest.mark.parametrize("database", ["sqlite"])


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Inventory:
    return runs.inventory_in(tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="module")
def judged(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory, inventory: Inventory) -> Iterator[Ledger]:
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    shutil.copyfile(sqlite_template, path)
    ledger = Ledger.open(f"sqlite:///{path}")
    runs.assessed(ledger, inventory, "whole", judge=simulated(malformed_answer=0.1), max_judgment_attempts=1)
    runs.aligned(ledger, inventory, "align")
    yield ledger
    ledger.close()


@pytest.fixture(scope="module")
def original(judged: Ledger, inventory: Inventory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(recorded_run(judged, "whole", inventory, RunMode.EXECUTE), tmp_path_factory.mktemp("outputs"))


@pytest.fixture
def artefact(original: Path, tmp_path: Path) -> Path:
    """The artefact of a finished batch, to be spoilt."""
    return Path(shutil.copytree(original.parent, tmp_path / "whole")) / original.name


def change(path: Path, alter: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    alter(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def event_of(path: Path) -> Path:
    return next((path.parent / "events" / "comparisons").glob("*.json"))


# --- untouched ---------------------------------------------------------------------------------------------------


def test_an_untouched_artefact_agrees_with_its_files_its_judgments_and_the_ledger(
    artefact: Path, judged: Ledger
) -> None:
    assert verify_artefact(artefact) == []
    assert verify_artefact(artefact, judged) == []


def test_alignments_and_dry_runs_agree_too(judged: Ledger, inventory: Inventory, tmp_path: Path) -> None:
    aligned = write_run(recorded_run(judged, "align", inventory, RunMode.ANCHOR_ALIGN_TEST), tmp_path)
    assert verify_artefact(aligned, judged) == []
    run = dry_run(inventory, runs.scale(), settings(), batch_id="dry", overrides=BatchOverrides(max_comparisons=30))
    assert verify_artefact(write_run(run, tmp_path), judged) == []


@on_sqlite
def test_an_unfinished_batch_agrees_until_it_goes_on(ledger: Ledger, inventory: Inventory, tmp_path: Path) -> None:
    runs.submit_assessment(ledger, inventory, "slow")
    advance(ledger, "slow", waves_per_run=1)
    path = write_run(recorded_run(ledger, "slow", inventory, RunMode.EXECUTE), tmp_path)
    assert verify_artefact(path, ledger) == []
    before = ledger.state("slow").judged
    advance(ledger, "slow")
    assert verify_artefact(path) == []
    (difference,) = verify_artefact(path, ledger)
    assert difference.startswith("the ledger: batch slow has gone on since")
    assert f"it has {ledger.state('slow').judged} judgments, the artefact {before}" in difference


# --- files -------------------------------------------------------------------------------------------------------


def test_a_changed_file_is_named_with_both_hashes(artefact: Path) -> None:
    event = event_of(artefact)
    event.write_text(event.read_text().replace('"attempts": 1', '"attempts": 2'))
    (difference,) = verify_artefact(artefact)
    assert difference.startswith(f"events/comparisons/{event.name}: has changed: ")
    manifest = read_artefact(artefact).validation.manifest
    assert manifest[f"events/comparisons/{event.name}"].sha256 in difference


def test_a_missing_file_is_named(artefact: Path) -> None:
    (artefact.parent / "requests" / "batch.json").unlink()
    assert verify_artefact(artefact) == ["requests/batch.json: is in the manifest, but cannot be read"]


def test_a_file_too_many_is_named(artefact: Path) -> None:
    (artefact.parent / "events" / "completions" / "again.json").write_text("{}")
    assert verify_artefact(artefact) == ["events/completions/again.json: is not in the manifest"]


def test_a_file_that_was_added_to_the_manifest_too_is_named(artefact: Path) -> None:
    name = "events/comparisons/w00099-c00001.json"
    (artefact.parent / name).write_text("{}")
    entry = {"sha256": hashlib.sha256(b"{}").hexdigest(), "bytes": 2}
    change(artefact, lambda content: content["validation"]["manifest"].update({name: entry}))
    assert verify_artefact(artefact) == [f"{name}: is of no comparison with an outcome, nor of the batch"]


def test_a_manifest_that_was_shortened_is_found(artefact: Path) -> None:
    name = f"events/comparisons/{event_of(artefact).name}"
    event_of(artefact).unlink()
    change(artefact, lambda content: content["validation"]["manifest"].pop(name))
    assert verify_artefact(artefact) == [f"{name}: the manifest lacks it"]


# --- numbers -----------------------------------------------------------------------------------------------------


def flip_first(content: dict[str, Any]) -> None:
    """Let the loser of the first judged comparison win, and tidily so."""
    for name in ("comparisons", "llm_comparisons"):
        judged = next(row for row in content["results"][name] if row["winner"])
        judged["winner"] = "b" if judged["winner"] == "a" else "a"
        judged["winner_id"], judged["loser_id"] = judged["loser_id"], judged["winner_id"]


def test_a_judgment_turned_round_is_found_in_files_scores_and_ledger(artefact: Path, judged: Ledger) -> None:
    change(artefact, flip_first)
    turned = next(row for row in read_artefact(artefact).results.comparisons if row.winner)
    differences = verify_artefact(artefact, judged)
    path = f"events/comparisons/{turned.comparison_id}.json"
    assert f"{path}: tells otherwise than the artefact, which was changed after it was written" in differences
    assert any(d.startswith(f"bt_summary: {turned.winner_id}: wins is ") for d in differences)
    assert any(d.startswith(f"bt_summary: {turned.loser_id}: score is ") for d in differences)
    ledger_says = f"the ledger: comparison {turned.comparison_id} differs in winner, winner_id, loser_id"
    assert ledger_says in differences


def test_a_score_that_the_judgments_do_not_give_is_found(artefact: Path) -> None:
    def alter(content: dict[str, Any]) -> None:
        content["bt_summary"][2]["score"] += 0.01

    change(artefact, alter)
    essay = read_artefact(artefact).bt_summary[2]
    differences = verify_artefact(artefact)
    again = essay.score - 0.01
    assert f"bt_summary: {essay.essay_id}: score is {essay.score:.6g}, scored again {again:.6g}" in differences
    assert [d for d in differences if d.startswith("bt_summary")] == differences[-1:]


def test_a_grade_that_the_scores_do_not_give_is_found(artefact: Path) -> None:
    def alter(content: dict[str, Any]) -> None:
        student = next(essay for essay in content["results"]["essays"] if not essay["is_anchor"])
        projection = student["grade_projection"]
        projection["grade"] = min(projection["probabilities"], key=projection["probabilities"].get)

    before = {essay.essay_id: essay.grade_projection.grade for essay in read_artefact(artefact).results.essays}
    change(artefact, alter)
    student = next(essay for essay in read_artefact(artefact).results.essays if not essay.is_anchor)
    assert verify_artefact(artefact) == [
        "events/assessment_results/batch.json: tells otherwise than the artefact, which was changed after it was "
        "written",
        f"results.essays: {student.essay_id}: grade is {student.grade_projection.grade}, scored again "
        f"{before[student.essay_id]}",
    ]


def test_settings_that_other_numbers_came_from_are_found(artefact: Path) -> None:
    change(artefact, lambda content: content["metadata"]["settings"].update(bt_standard_error_max=0.5))
    differences = verify_artefact(artefact)
    assert differences[0].startswith("requests/batch.json: tells otherwise than the artefact")
    assert any("se_capped is " in difference for difference in differences)


def test_gauges_that_the_judgments_do_not_give_are_found(artefact: Path) -> None:
    change(artefact, lambda content: content["diagnostics"]["bt_se_summary"]["students"].update(mean_se=0.1))
    assert verify_artefact(artefact) == ["diagnostics: are not those of the recorded comparisons"]


def test_counts_that_do_not_add_up_are_found(artefact: Path) -> None:
    def alter(content: dict[str, Any]) -> None:
        status = content["validation"]["runner_status"]
        status["observed"]["failed"] += 1
        status["partial_data"] = True

    change(artefact, alter)
    failed = sum(row.status == "failed" for row in read_artefact(artefact).results.comparisons)
    assert failed > 0
    status = read_artefact(artefact).metadata.status.value
    assert verify_artefact(artefact) == [
        f"validation.runner_status.observed.failed: is {failed + 1}, but the artefact holds {failed}",
        f"validation.runner_status.partial_data: is true, but the batch is {status}",
    ]


def test_costs_and_inputs_that_contradict_the_rest_are_found(artefact: Path) -> None:
    def alter(content: dict[str, Any]) -> None:
        content["costs"]["token_counts"][0]["calls"] += 2
        content["costs"]["token_counts"][0]["output"] = 1
        content["inputs"]["students"][0]["text_sha256"] = "0" * 64

    change(artefact, alter)
    recorded = read_artefact(artefact)
    calls = recorded.validation.runner_status.observed.attempts
    used = sum(comparison.tokens_out for comparison in recorded.results.comparisons)
    assert verify_artefact(artefact) == [
        f"costs.token_counts: have {calls + 2} calls, but {calls} were observed",
        f"costs.token_counts: have 1 output tokens, but the comparisons alone used {used}",
        "inputs: student_essays/s1.txt: has another text than essay s1 of the batch",
    ]


@pytest.mark.parametrize(
    ("total", "model", "named"),
    [
        (4.0, 0.0, "costs.total_usd: is 4, but the calls cost 0.000000"),
        (None, 0.0, "costs.total_usd: is none, but the calls cost 0.000000"),
        (0.0, 0.25, "costs.total_usd: is 0, but the calls cost 0.250000"),
    ],
)
def test_a_total_cost_that_is_not_that_of_the_calls_is_found(
    artefact: Path, total: float | None, model: float, named: str
) -> None:
    def alter(content: dict[str, Any]) -> None:
        content["costs"]["total_usd"] = total
        content["costs"]["token_counts"][0]["cost_usd"] = model

    change(artefact, alter)
    (difference,) = verify_artefact(artefact)
    assert difference.startswith(named)


# --- the ledger --------------------------------------------------------------------------------------------------


@on_sqlite
def test_a_ledger_without_the_batch_says_so(artefact: Path, ledger: Ledger) -> None:
    assert verify_artefact(artefact, ledger) == ["the ledger: has no batch whole"]


@on_sqlite
def test_another_batch_of_the_same_name_is_found(artefact: Path, ledger: Ledger, inventory: Inventory) -> None:
    runs.assessed(ledger, inventory, "whole", max_comparisons=20)
    differences = verify_artefact(artefact, ledger)
    assert any("differs in" in difference for difference in differences)
    assert all(difference.startswith("the ledger: ") for difference in differences)


@on_sqlite
def test_a_ledger_that_was_damaged_since_is_found(ledger: Ledger, inventory: Inventory, tmp_path: Path) -> None:
    runs.assessed(ledger, inventory, "b", max_comparisons=15)
    path = write_run(recorded_run(ledger, "b", inventory, RunMode.EXECUTE), tmp_path)
    with ledger.engine.begin() as connection:
        connection.execute(t.attempts.update().where(t.attempts.c.attempt_id == 3).values(prompt_sha256=""))
    (difference,) = verify_artefact(path, ledger)
    assert difference.startswith("the ledger: its record of batch b cannot be told: ")
    assert "missing prompt hash" in difference


# --- what is no artefact -----------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.json: cannot be read"):
        verify_artefact(tmp_path / "x.json")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"justification": "My quokka"}'])
def test_what_is_no_artefact_is_refused_without_being_quoted(content: str, tmp_path: Path) -> None:
    path = tmp_path / "assessment_run.execute.json"
    path.write_text(content)
    with pytest.raises(InputError, match="is not of the published form") as caught:
        verify_artefact(path)
    assert "quokka" not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_manifest_that_leads_out_of_the_folder_is_refused_unread(artefact: Path) -> None:
    entry = {"sha256": "0" * 64, "bytes": 1}
    change(artefact, lambda content: content["validation"]["manifest"].update({"../../secret.json": entry}))
    with pytest.raises(InputError, match=r"validation\.manifest"):
        verify_artefact(artefact)


def test_settings_of_another_version_are_an_input_error_that_names_them(artefact: Path) -> None:
    change(artefact, lambda content: content["metadata"]["settings"].update(phase_of_the_moon=3))
    with pytest.raises(InputError, match=r"cannot use its settings \(phase_of_the_moon: Extra"):
        verify_artefact(artefact)
