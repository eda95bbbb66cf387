"""A dry run gives the whole artefact without asking anyone, and says of every judgment that nobody gave it."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from cj_pipeline.core.errors import InputError
from cj_pipeline.eng5.artefact import SCHEMA_PATH
from cj_pipeline.eng5.artefact_building import build_artefact, write_run
from cj_pipeline.eng5.dry_run import STUB_JUSTIFICATION, dry_run
from cj_pipeline.eng5.inventory import Inventory
from cj_pipeline.judges import catalogue
from cj_pipeline.judges.prompts import DEFAULT_SYSTEM_PROMPT, JudgeInstructions, build_prompt
from cj_pipeline.judges.simulated import SimulatedJudge
from cj_pipeline.ledger import Ledger
from cj_pipeline.settings import BatchOverrides
from cj_pipeline_tests.eng5 import runs
from cj_pipeline_tests.workflow.scenes import settings

SCHEMA = json.loads((Path(__file__).parents[2] / SCHEMA_PATH).read_text(encoding="utf-8"))
NOW = datetime(2026, 3, 1, 3, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Inventory:
    return runs.inventory_in(tmp_path_factory.mktemp("assets"))


def stubbed(
    inventory: Inventory, *, comparisons: int = 30, seed: int | None = None, **overrides: Any
) -> dict[str, Any]:
    """A dry run's artefact as its readers get it."""
    stated = BatchOverrides(max_comparisons=comparisons, **overrides)
    run = dry_run(inventory, runs.scale(), settings(), batch_id="dry", overrides=stated, seed=seed, generated_at=NOW)
    return json.loads(build_artefact(run)[0].model_dump_json())


def test_a_dry_run_is_complete_valid_and_marked(inventory: Inventory) -> None:
    content = stubbed(inventory)
    assert [error.message for error in Draft202012Validator(SCHEMA).iter_errors(content)] == []
    assert content["metadata"]["mode"] == "dry-run"
    assert content["metadata"]["judge"]["simulated"] is True
    comparisons = content["results"]["comparisons"]
    assert len(comparisons) == 30
    assert {(row["provider"], row["model"], row["justification"]) for row in comparisons} == {
        ("stub", "stub", STUB_JUSTIFICATION)
    }
    assert content["validation"]["runner_status"]["partial_data"] is False
    assert (content["costs"]["total_usd"], content["costs"]["token_counts"]) == (0.0, [])
    assert len(content["results"]["essays"]) == 12
    assert all(essay["grade_projection"]["grade"] for essay in content["results"]["essays"])


def test_no_judge_is_opened_or_asked_and_no_ledger_opened(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a dry run asked for it")

    monkeypatch.setattr(SimulatedJudge, "__init__", forbidden)
    monkeypatch.setattr(catalogue, "open_judge", forbidden)
    monkeypatch.setattr(Ledger, "__init__", forbidden)
    run = dry_run(inventory, runs.scale(), settings(), batch_id="dry", overrides=BatchOverrides(max_comparisons=20))
    path = write_run(run, tmp_path)
    assert path.name == "assessment_run.dry-run.json"
    assert {file.relative_to(tmp_path).parts[0] for file in tmp_path.rglob("*")} == {"eng5"}
    for file in tmp_path.rglob("*.json"):
        assert runs.ESSAY_WORDS not in file.read_text(encoding="utf-8")


def test_the_seed_decides_the_answers_and_nothing_else_does(inventory: Inventory) -> None:
    def winners(content: dict[str, Any]) -> list[str]:
        return [row["winner"] for row in content["results"]["comparisons"]]

    first, again, other = stubbed(inventory), stubbed(inventory), stubbed(inventory, seed=7)
    assert first == again
    assert winners(other) != winners(first)
    pairs = [[(row["essay_a"], row["essay_b"]) for row in c["results"]["comparisons"]] for c in (first, other)]
    assert pairs[0] == pairs[1]


def test_prompt_hashes_are_those_of_the_prompts_a_judge_would_get(inventory: Inventory) -> None:
    told = JudgeInstructions(
        system_prompt=DEFAULT_SYSTEM_PROMPT,
        student_prompt=inventory.instructions.text,
        rubric="Language counts twice.",
    )
    content = stubbed(inventory, judge_rubric="Language counts twice.")
    documents = [item.document for item in (*inventory.anchors, *inventory.students)]
    texts = {document.text_sha256: document.text for document in documents}
    by_id = {essay["essay_id"]: texts[essay["text_sha256"]] for essay in content["results"]["essays"]}
    for row in content["results"]["comparisons"]:
        assert row["prompt_sha256"] == build_prompt(told, by_id[row["essay_a"]], by_id[row["essay_b"]]).sha256


def test_the_plan_keeps_to_the_budget_and_to_fair_positions(inventory: Inventory) -> None:
    content = stubbed(inventory, comparisons=45)
    rows = content["results"]["comparisons"]
    assert len(rows) == content["metadata"]["total_budget"] == 45
    for essay in content["results"]["essays"]:
        first = sum(row["essay_a"] == essay["essay_id"] for row in rows)
        second = sum(row["essay_b"] == essay["essay_id"] for row in rows)
        assert abs(first - second) <= 1


def test_better_anchors_win_more_often_so_that_grades_can_be_shown(inventory: Inventory) -> None:
    content = stubbed(inventory, comparisons=300)
    scores = {row["anchor_grade"]: row["score"] for row in content["bt_summary"] if row["is_anchor"]}
    assert scores["F+"] < scores["D+"] < scores["A"]


@pytest.mark.parametrize("batch_id", ["", "../up"])
def test_a_dry_run_needs_a_usable_batch_id(inventory: Inventory, batch_id: str) -> None:
    with pytest.raises(InputError, match="is not usable"):
        dry_run(inventory, runs.scale(), settings(), batch_id=batch_id)
