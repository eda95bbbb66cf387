"""The form of an artefact: its published schema, and what cannot enter one."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from cj_pipeline.core.grade_scale import get_grade_scale
from cj_pipeline.eng5.artefact import SCHEMA_PATH, RunArtefact, schema_text
from cj_pipeline.eng5.artefact_building import build_artefact
from cj_pipeline.eng5.dry_run import dry_run
from cj_pipeline.eng5.inventory import read_inventory
from cj_pipeline.settings import BatchOverrides
from cj_pipeline_tests.eng5.folders import SCALE, assets_in
from cj_pipeline_tests.workflow.scenes import settings

PUBLISHED = Path(__file__).parents[2] / SCHEMA_PATH


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> str:
    scale = get_grade_scale(SCALE)
    inventory = read_inventory(assets_in(tmp_path_factory.mktemp("assets")), scale)
    run = dry_run(inventory, scale, settings(), batch_id="b", overrides=BatchOverrides(max_comparisons=12))
    return build_artefact(run)[0].model_dump_json()


@pytest.fixture
def content(document: str) -> dict[str, Any]:
    """An artefact to spoil."""
    return json.loads(document)


def refusal(content: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        RunArtefact.model_validate_json(json.dumps(content))
    return str(caught.value)


def test_the_published_schema_is_what_the_models_give() -> None:
    remedy = f"""python -c "from cj_pipeline.eng5.artefact import *; print(schema_text(), end='')" > {SCHEMA_PATH}"""
    assert PUBLISHED.read_text(encoding="utf-8") == schema_text(), f"write it again: {remedy}"


def test_the_published_schema_is_a_sound_json_schema() -> None:
    Draft202012Validator.check_schema(json.loads(PUBLISHED.read_text(encoding="utf-8")))


def test_the_published_schema_refuses_what_it_does_not_know_and_misses_what_it_asks_for(
    content: dict[str, Any],
) -> None:
    validator = Draft202012Validator(json.loads(PUBLISHED.read_text(encoding="utf-8")))
    assert [error.message for error in validator.iter_errors(content)] == []
    content["results"]["essays"][0]["text"] = "An essay."
    del content["costs"]["token_counts"]
    content["bt_summary"][0]["se"] = "small"
    places = {".".join(map(str, error.absolute_path)) for error in validator.iter_errors(content)}
    assert places == {"results.essays.0", "costs", "bt_summary.0.se"}


def test_an_artefact_survives_being_written_and_read(document: str) -> None:
    assert RunArtefact.model_validate_json(document).model_dump_json() == document


def test_a_repeated_comparison_id_cannot_enter(content: dict[str, Any]) -> None:
    for name in ("comparisons", "llm_comparisons"):
        content["results"][name][3]["comparison_id"] = content["results"][name][1]["comparison_id"]
    assert "comparison w00001-c00002 is there more than once" in refusal(content)


def test_the_two_names_of_the_comparisons_cannot_tell_different_stories(content: dict[str, Any]) -> None:
    altered = content["results"]["llm_comparisons"][1]
    altered["justification"] = "because"
    told = refusal(content)
    assert "llm_comparisons is not the same list" in told and "because" not in told
    assert f"in justification of comparison {altered['comparison_id']}" in told
    content["results"]["llm_comparisons"].pop()
    content["results"]["llm_comparisons"][1] = content["results"]["comparisons"][1]
    count = len(content["results"]["comparisons"])
    assert f"they have {count} and {count - 1} comparisons" in refusal(content)


def test_a_winner_that_is_not_the_winner_cannot_enter(content: dict[str, Any]) -> None:
    judged = content["results"]["comparisons"][0]
    judged["winner_id"], judged["loser_id"] = judged["loser_id"], judged["winner_id"]
    assert "contradict each other" in refusal(content)


def test_a_comparison_of_unknown_essays_cannot_enter(content: dict[str, Any]) -> None:
    for name in ("comparisons", "llm_comparisons"):
        judged = content["results"][name][0]
        side = "essay_a" if judged["winner"] == "a" else "essay_b"
        judged[side] = judged["winner_id"] = "stranger"
    assert "names an essay that is not among the essays" in refusal(content)


def test_scale_and_results_must_be_about_the_same_essays(content: dict[str, Any]) -> None:
    content["bt_summary"].pop()
    assert "bt_summary and results.essays name different essays" in refusal(content)


@pytest.mark.parametrize(
    "path", ["../ledger.sqlite", "/etc/passwd", "requests/../../x.json", "events/x.json", "requests/a/b.json", ""]
)
def test_no_path_of_a_manifest_leads_out_of_its_folders(content: dict[str, Any], path: str) -> None:
    content["validation"]["manifest"][path] = {"sha256": "0" * 64, "bytes": 1}
    assert "String should match pattern" in refusal(content)
    assert list(Draft202012Validator(json.loads(schema_text())).iter_errors(content)) != []
