"""What an artefact says of a batch is what the ledger holds, and its folder is complete, whole and without texts."""

import hashlib
import json
import math
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from cj_pipeline.core.errors import InputError, RequestError
from cj_pipeline.core.models import BatchStatus
from cj_pipeline.eng5 import artefact_building
from cj_pipeline.eng5.artefact import SCHEMA_PATH, RunMode
from cj_pipeline.eng5.artefact_building import ArtefactError, git_sha, recorded_run, run_folder, write_run
from cj_pipeline.eng5.inventory import Inventory
from cj_pipeline.ledger import Ledger
from cj_pipeline.ledger import tables as t
from cj_pipeline.workflow.documents import text_sha256
from cj_pipeline.workflow.results import collect_results
from cj_pipeline_tests.eng5 import runs
from cj_pipeline_tests.eng5.folders import SCALE
from cj_pipeline_tests.workflow.scenes import advance, simulated

SCHEMA = json.loads((Path(__file__).parents[2] / SCHEMA_PATH).read_text(encoding="utf-8"))
NOW = datetime(2026, 3, 1, 3, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Inventory:
    return runs.inventory_in(tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="module")
def judged(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory, inventory: Inventory) -> Iterator[Ledger]:
    """A ledger with a batch of each kind, judged: `whole` (with failures), `align`."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    shutil.copyfile(sqlite_template, path)
    ledger = Ledger.open(f"sqlite:///{path}")
    judge = simulated(malformed_answer=0.15)
    runs.assessed(ledger, inventory, "whole", judge=judge, max_judgment_attempts=2, bt_standard_error_max=0.8)
    runs.aligned(ledger, inventory, "align")
    yield ledger
    ledger.close()


@pytest.fixture(scope="module")
def written(judged: Ledger, inventory: Inventory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artefact of `whole`."""
    run = recorded_run(judged, "whole", inventory, RunMode.EXECUTE, generated_at=NOW)
    return write_run(run, tmp_path_factory.mktemp("outputs"))


@pytest.fixture(scope="module")
def artefact(written: Path) -> dict[str, Any]:
    return read(written)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def problems(content: dict[str, Any]) -> list[str]:
    """What a validator that knows nothing of our models says."""
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(SCHEMA).iter_errors(content)]


def hashed(folder: Path) -> dict[str, dict[str, Any]]:
    """Every file under requests/ and events/, hashed here."""
    found = {}
    for part in ("requests", "events"):
        for path in (folder / part).rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                found[str(path.relative_to(folder))] = {
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "bytes": len(content),
                }
    return found


# --- a finished batch --------------------------------------------------------------------------------------------


def test_the_artefact_of_a_batch_is_valid_by_the_published_schema(artefact: dict[str, Any]) -> None:
    assert problems(artefact) == []


def test_the_manifest_lists_every_file_with_its_hash_and_size(written: Path, artefact: dict[str, Any]) -> None:
    assert artefact["validation"]["manifest"] == hashed(written.parent)
    folders = Counter(name.rpartition("/")[0] for name in artefact["validation"]["manifest"])
    counts = artefact["validation"]["runner_status"]["observed"]
    assert folders == {
        "requests": 1,
        "events/comparisons": counts["judged"] + counts["failed"],
        "events/assessment_results": 1,
        "events/completions": 1,
    }


def test_no_file_of_a_run_holds_a_text(written: Path, inventory: Inventory) -> None:
    assert all(runs.ESSAY_WORDS in anchor.document.text for anchor in inventory.anchors)
    for path in written.parent.rglob("*.json"):
        assert runs.ESSAY_WORDS not in path.read_text(encoding="utf-8"), path


def test_comparisons_are_those_of_the_ledger(judged: Ledger, artefact: dict[str, Any]) -> None:
    known = [record for record in judged.comparison_records("whole") if record.status != "withdrawn"]
    told = artefact["results"]["comparisons"]
    assert [row["sequence"] for row in told] == list(range(1, len(known) + 1))
    assert {record.status for record in known} == {"judged", "failed"}
    for row, record in zip(told, known, strict=True):
        essays = {"a": (record.essay_a, record.essay_b), "b": (record.essay_b, record.essay_a), None: (None, None)}
        assert (row["winner_id"], row["loser_id"]) == essays[record.winner]
        for name in ("comparison_id", "status", "confidence", "justification", "error_type", "provider", "model"):
            assert row[name] == getattr(record, name)
        for name in ("prompt_sha256", "tokens_in", "tokens_out", "cost_usd", "attempts"):
            assert row[name] == getattr(record, name)
        assert datetime.fromisoformat(row["started_at"]) == record.submitted_at
        assert datetime.fromisoformat(row["completed_at"]) == record.completed_at
        assert row["grade_scale"] == SCALE
    assert artefact["results"]["llm_comparisons"] == told


def test_the_scale_tells_the_true_standard_error_beside_the_capped_one(
    judged: Ledger, artefact: dict[str, Any]
) -> None:
    scores = {row["essay_id"]: row for row in collect_results(judged, "whole")["bt_scores"].iter_rows(named=True)}
    assert [row["rank"] for row in artefact["bt_summary"]] == list(range(1, len(scores) + 1))
    for row in artefact["bt_summary"]:
        known = scores[row["essay_id"]]
        assert (row["score"], row["se"], row["se_capped"]) == (known["score"], known["se_uncapped"], known["se"])
    assert max(row["se_capped"] for row in artefact["bt_summary"]) == 0.8
    assert max(row["se"] for row in artefact["bt_summary"]) > 0.8
    assert math.fsum(row["score"] for row in artefact["bt_summary"]) == pytest.approx(0.0, abs=1e-9)


def test_wins_and_losses_are_what_the_comparisons_say(artefact: dict[str, Any]) -> None:
    won = Counter(row["winner_id"] for row in artefact["results"]["comparisons"] if row["winner_id"])
    lost = Counter(row["loser_id"] for row in artefact["results"]["comparisons"] if row["loser_id"])
    for row in artefact["bt_summary"]:
        assert (row["wins"], row["losses"]) == (won[row["essay_id"]], lost[row["essay_id"]])
        assert row["comparisons"] == row["wins"] + row["losses"]


def test_anchors_bear_their_expert_grade_and_students_none(artefact: dict[str, Any], inventory: Inventory) -> None:
    anchors = [row for row in artefact["bt_summary"] if row["is_anchor"]]
    assert sorted(row["anchor_grade"] for row in anchors) == sorted(runs.ANCHOR_GRADES)
    assert {row["essay_id"] for row in artefact["bt_summary"] if row["anchor_grade"] is None} == {
        student.essay_id for student in inventory.students
    }


def test_every_essay_has_a_projection_and_the_hash_of_its_prompt(
    judged: Ledger, artefact: dict[str, Any], inventory: Inventory
) -> None:
    table = collect_results(judged, "whole")["grade_projections"]
    grades = dict(table.select("essay_id", "grade").iter_rows())
    prompt = hashlib.sha256(inventory.instructions.text.encode()).hexdigest()
    assert len(artefact["results"]["essays"]) == len(grades)
    for essay in artefact["results"]["essays"]:
        projection = essay["grade_projection"]
        assert essay["student_prompt_ref"]["storage_id"] == prompt
        assert projection["grade"] == grades[essay["essay_id"]]
        assert math.fsum(projection["probabilities"].values()) == pytest.approx(1.0)
        assert projection["confidence"] == projection["probabilities"][projection["grade"]]


def test_token_counts_add_up_to_the_calls_of_the_ledger(judged: Ledger, artefact: dict[str, Any]) -> None:
    calls = judged.attempts("whole")
    (counted,) = artefact["costs"]["token_counts"]
    assert (counted["provider"], counted["model"]) == ("simulated", "simulated/cj-generic")
    assert counted["calls"] == len(calls)
    assert counted["input"] == sum(call.tokens_input or 0 for call in calls)
    assert counted["output"] == sum(call.tokens_output or 0 for call in calls)
    assert artefact["costs"]["total_usd"] == 0.0


def test_inputs_are_the_files_of_the_folder_by_their_checksums(artefact: dict[str, Any], inventory: Inventory) -> None:
    inputs = artefact["inputs"]
    files = [inputs["instructions"], inputs["judge_prompt"], inputs["grade_table"]]
    files += [*inputs["anchors"], *inputs["students"]]
    assert {file["path"]: file["sha256"] for file in files} == {
        path.relative_to(inventory.root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in inventory.root.rglob("*")
        if path.is_file()
    }
    in_batch = {essay["essay_id"]: essay["text_sha256"] for essay in artefact["results"]["essays"]}
    assert {entry["essay_id"]: entry["text_sha256"] for entry in [*inputs["anchors"], *inputs["students"]]} == in_batch
    assert inputs["prompts"]["rubric"] == text_sha256(inventory.prompt.text)


def test_the_status_says_that_the_run_was_seen_to_its_end(judged: Ledger, artefact: dict[str, Any]) -> None:
    status = artefact["validation"]["runner_status"]
    state = judged.state("whole")
    assert (status["partial_data"], status["timeout"]) == (False, False)
    assert (status["observed"]["judged"], status["observed"]["failed"]) == (state.judged, state.failed)
    assert status["observed"]["submitted"] == state.submitted
    assert status["observed"]["attempts"] == len(judged.attempts("whole")) > state.submitted
    assert artefact["metadata"]["status"] == judged.batch("whole").status.value


# --- document 002's look at it -----------------------------------------------------------------------------------

JQ_COVERAGE = ".results.comparisons | group_by(.grade_scale) | map({scale: .[0].grade_scale, count: length})"
JQ_ESSAYS = ".results.essays[] | {essay_id, grade: .grade_projection.grade, prompt_ref: .student_prompt_ref.storage_id}"
JQ_MANIFEST = ".validation.manifest | to_entries[] | {path: .key, sha256: .value.sha256}"


def expected_of(query: str, ledger: Ledger, inventory: Inventory, folder: Path) -> list[Any]:
    """What a query must give, from the ledger and the files."""
    if query == JQ_COVERAGE:
        return [[{"scale": SCALE, "count": ledger.state("whole").submitted}]]
    if query == JQ_MANIFEST:
        return [{"path": name, "sha256": entry["sha256"]} for name, entry in sorted(hashed(folder).items())]
    prompt = text_sha256(inventory.instructions.text)
    projected = collect_results(ledger, "whole")["grade_projections"].sort("essay_id")
    return [
        {"essay_id": essay_id, "grade": grade, "prompt_ref": prompt}
        for essay_id, grade in projected.select("essay_id", "grade").iter_rows()
    ]


def evaluated(query: str, content: dict[str, Any]) -> list[Any]:
    """The same query, in Python."""
    if query == JQ_COVERAGE:
        counts = Counter(row["grade_scale"] for row in content["results"]["comparisons"])
        return [[{"scale": scale, "count": count} for scale, count in sorted(counts.items())]]
    if query == JQ_MANIFEST:
        return [{"path": name, "sha256": e["sha256"]} for name, e in content["validation"]["manifest"].items()]
    return [
        {
            "essay_id": essay["essay_id"],
            "grade": essay["grade_projection"]["grade"],
            "prompt_ref": essay["student_prompt_ref"]["storage_id"],
        }
        for essay in content["results"]["essays"]
    ]


each_query = pytest.mark.parametrize("query", [JQ_COVERAGE, JQ_ESSAYS, JQ_MANIFEST])


@each_query
def test_the_paths_of_document_002_lead_to_what_they_promise(
    query: str, judged: Ledger, inventory: Inventory, written: Path, artefact: dict[str, Any]
) -> None:
    assert evaluated(query, artefact) == expected_of(query, judged, inventory, written.parent)


@each_query
@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_the_jq_examples_of_document_002_work(query: str, judged: Ledger, inventory: Inventory, written: Path) -> None:
    done = subprocess.run(["jq", "--compact-output", query, str(written)], capture_output=True, text=True, check=True)
    given = [json.loads(line) for line in done.stdout.splitlines()]
    assert given == expected_of(query, judged, inventory, written.parent)


# --- other batches -----------------------------------------------------------------------------------------------


def test_an_alignment_has_expert_grades_and_neither_anchors_nor_projections(
    judged: Ledger, inventory: Inventory, tmp_path: Path
) -> None:
    content = read(write_run(recorded_run(judged, "align", inventory, RunMode.ANCHOR_ALIGN_TEST), tmp_path))
    assert problems(content) == []
    grades = {anchor.anchor_id: anchor.grade for anchor in inventory.anchors}
    assert {row["essay_id"]: row["anchor_grade"] for row in content["bt_summary"]} == grades
    for essay in content["results"]["essays"]:
        assert not essay["is_anchor"]
        assert essay["grade_projection"]["grade"] is None and essay["grade_projection"]["reason"]
        assert essay["student_prompt_ref"] is None
    assert [student["essay_id"] for student in content["inputs"]["students"]] == [None] * len(inventory.students)
    assert {row["grade_scale"] for row in content["results"]["comparisons"]} == {SCALE}


on_sqlite = pytest.mark.parametrize("database", ["sqlite"])


@on_sqlite
def test_an_unfinished_batch_says_so_and_is_brought_up_to_date_when_it_has_ended(
    ledger: Ledger, inventory: Inventory, tmp_path: Path
) -> None:
    runs.submit_assessment(ledger, inventory, "slow")
    advance(ledger, "slow", waves_per_run=2)
    path = write_run(recorded_run(ledger, "slow", inventory, RunMode.EXECUTE, timed_out=True), tmp_path)
    content = read(path)
    assert problems(content) == []
    status = content["validation"]["runner_status"]
    assert (status["partial_data"], status["timeout"], status["observed"]["completions"]) == (True, True, 0)
    assert 0 < status["observed"]["judged"] < 40
    assert content["validation"]["manifest"] == hashed(path.parent)
    assert not any(name.startswith(("events/a", "events/completions")) for name in hashed(path.parent))

    advance(ledger, "slow")
    assert write_run(recorded_run(ledger, "slow", inventory, RunMode.EXECUTE), tmp_path) == path
    content = read(path)
    status = content["validation"]["runner_status"]
    assert (status["partial_data"], status["timeout"], status["observed"]["judged"]) == (False, False, 40)
    assert content["validation"]["manifest"] == hashed(path.parent)
    assert "events/completions/batch.json" in hashed(path.parent)


@on_sqlite
def test_a_batch_that_nobody_judged_yet_has_an_artefact_too(
    ledger: Ledger, inventory: Inventory, tmp_path: Path
) -> None:
    runs.submit_assessment(ledger, inventory, "fresh")
    content = read(write_run(recorded_run(ledger, "fresh", inventory, RunMode.EXECUTE), tmp_path))
    assert problems(content) == []
    assert content["results"]["comparisons"] == [] and content["costs"]["token_counts"] == []
    assert [row["se_prior_free"] for row in content["bt_summary"]] == [None] * 12


@on_sqlite
def test_a_failed_batch_has_an_artefact_that_gives_the_reason_for_every_missing_grade(
    ledger: Ledger, inventory: Inventory, tmp_path: Path
) -> None:
    runs.assessed(ledger, inventory, "failing", judge=simulated(malformed_answer=1.0), max_judgment_attempts=1)
    content = read(write_run(recorded_run(ledger, "failing", inventory, RunMode.EXECUTE), tmp_path))
    assert problems(content) == []
    assert content["metadata"]["status"] == BatchStatus.FAILED.value
    assert content["validation"]["runner_status"]["partial_data"] is False
    assert {row["error_type"] for row in content["results"]["comparisons"]} == {"malformed_answer"}
    assert all(essay["grade_projection"]["reason"] for essay in content["results"]["essays"])


@on_sqlite
def test_withdrawn_comparisons_are_not_told(ledger: Ledger, inventory: Inventory, tmp_path: Path) -> None:
    runs.assessed(ledger, inventory, "refused", judge=simulated(provider_rejected=1.0))
    statuses = Counter(record.status for record in ledger.comparison_records("refused"))
    assert statuses["withdrawn"] > 0
    content = read(write_run(recorded_run(ledger, "refused", inventory, RunMode.EXECUTE), tmp_path))
    assert problems(content) == []
    assert len(content["results"]["comparisons"]) == statuses.total() - statuses["withdrawn"]


# --- the folder --------------------------------------------------------------------------------------------------


def test_files_that_are_not_of_the_run_go_and_the_same_run_gives_the_same_bytes(
    judged: Ledger, inventory: Inventory, tmp_path: Path
) -> None:
    run = recorded_run(judged, "whole", inventory, RunMode.EXECUTE, generated_at=NOW)
    path = write_run(run, tmp_path)
    before = path.read_bytes()
    stray = path.parent / "events" / "comparisons" / "w00099-c00001.json"
    stray.write_text("{}")
    again = recorded_run(judged, "whole", inventory, RunMode.EXECUTE, generated_at=NOW)
    assert write_run(again, tmp_path).read_bytes() == before
    assert not stray.exists()
    assert [file.name for file in path.parent.rglob("*") if file.name.startswith(".")] == []


def test_the_artefact_of_another_mode_is_not_written_over(judged: Ledger, inventory: Inventory, tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "whole")
    folder.mkdir(parents=True)
    (folder / "assessment_run.dry-run.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds assessment_run\.dry-run\.json.*choose another batch id"):
        write_run(recorded_run(judged, "whole", inventory, RunMode.EXECUTE), tmp_path)
    assert [file.name for file in folder.iterdir()] == ["assessment_run.dry-run.json"]


@pytest.mark.parametrize("batch_id", ["", "../x", "a/b", "x" * 65])
def test_no_batch_id_leads_out_of_the_outputs(batch_id: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not usable"):
        run_folder(tmp_path, batch_id)


# --- refusals ----------------------------------------------------------------------------------------------------


def test_every_essay_whose_text_is_not_in_the_folder_is_named(judged: Ledger, tmp_path: Path) -> None:
    other = runs.inventory_in(tmp_path / "other", students=4)
    with pytest.raises(RequestError) as caught:
        recorded_run(judged, "whole", other, RunMode.EXECUTE)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["essay s5", "essay s6"]


@pytest.mark.parametrize(
    ("batch_id", "mode"),
    [("whole", RunMode.ANCHOR_ALIGN_TEST), ("align", RunMode.EXECUTE), ("whole", RunMode.DRY_RUN)],
)
def test_a_mode_tells_only_of_batches_it_runs(
    judged: Ledger, inventory: Inventory, batch_id: str, mode: RunMode
) -> None:
    with pytest.raises(InputError, match=f"which mode {mode.value} does not run"):
        recorded_run(judged, batch_id, inventory, mode)


@on_sqlite
def test_a_judgment_without_its_prompt_hash_stops_the_artefact_and_is_named(
    ledger: Ledger, inventory: Inventory, tmp_path: Path
) -> None:
    runs.assessed(ledger, inventory, "hashless", max_comparisons=15)
    with ledger.engine.begin() as connection:
        connection.execute(t.attempts.update().where(t.attempts.c.attempt_id == 3).values(prompt_sha256=""))
    damaged = next(call.comparison_id for call in ledger.attempts("hashless") if call.attempt_id == 3)
    with pytest.raises(ArtefactError, match=f"comparison {damaged}: missing prompt hash") as caught:
        write_run(recorded_run(ledger, "hashless", inventory, RunMode.EXECUTE), tmp_path)
    assert caught.value.__context__ is None
    assert not run_folder(tmp_path, "hashless").exists()


def test_the_commit_is_that_of_the_working_tree() -> None:
    here = Path(artefact_building.__file__).parent
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        pytest.skip("not in a working tree")
    assert str(git_sha()).removesuffix("-dirty") == asked.stdout.strip()


def test_outside_a_working_tree_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(artefact_building, "__file__", str(tmp_path / "artefact_building.py"))
    assert git_sha() is None


def test_reading_a_batch_for_its_artefact_changes_nothing_in_the_ledger(
    judged: Ledger, inventory: Inventory, tmp_path: Path
) -> None:
    def content() -> list[Any]:
        comparisons = collect_results(judged, "whole")["comparisons"]
        return [judged.batch("whole"), judged.events("whole"), comparisons.rows()]

    before = content()
    write_run(recorded_run(judged, "whole", inventory, RunMode.EXECUTE), tmp_path)
    assert content() == before
