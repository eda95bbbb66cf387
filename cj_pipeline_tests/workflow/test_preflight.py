"""What is looked at before anything is spent: a real ledger, a real disk, and providers on loopback."""

import dataclasses
from pathlib import Path

import pytest

from cj_pipeline.ledger.engine import make_engine
from cj_pipeline.settings import CJSettings, effective_tunables, load_settings, parse_overrides
from cj_pipeline.workflow.intake import read_assignment
from cj_pipeline.workflow.preflight import (
    Finding,
    PreflightError,
    State,
    look_at_assignment,
    look_at_disk,
    look_at_judge,
    look_at_ledger,
    require_ready,
)
from cj_pipeline.workflow.registration import register_assignment
from cj_pipeline_tests.providers.server import ProviderServer

DEMO = Path(__file__).parents[2] / "assets_data" / "inputs" / "demo"
CLAUDE, GPT, LOCAL = "anthropic/claude-haiku-4-5", "openai/gpt-5.1", "compatible/llama3.1:8b"


@pytest.fixture
def settings(tmp_path: Path) -> CJSettings:
    return load_settings(data_dir=tmp_path / "data", ledger_url=None)


def judge_findings(settings: CJSettings, name: str, **overrides: object) -> list[Finding]:
    return look_at_judge(settings, effective_tunables(settings, parse_overrides(overrides, where="test")), name)


def states(findings: list[Finding]) -> list[State]:
    return [finding.state for finding in findings]


@pytest.mark.parametrize("name", [CLAUDE, GPT])
def test_a_provider_that_takes_the_key_and_knows_the_model_is_ready_and_was_asked_for_no_judgment(
    provider_server: ProviderServer, settings: CJSettings, name: str
):
    found = judge_findings(settings, name)
    assert found[-1].state is State.OK
    assert "knows the model" in found[-1].text
    assert {call.method for call in provider_server.calls} == {"GET"}


@pytest.mark.parametrize("name", [CLAUDE, GPT])
def test_a_model_that_the_provider_does_not_know_is_a_problem(
    provider_server: ProviderServer, settings: CJSettings, name: str
):
    provider_server.unknown_models.add(name.partition("/")[2])
    found = judge_findings(settings, name)
    assert found[-1].state is State.PROBLEM
    assert name in found[-1].text


@pytest.mark.parametrize("name", [CLAUDE, GPT])
def test_a_key_that_is_not_set_is_a_problem_that_names_the_variable(
    provider_server: ProviderServer, settings: CJSettings, name: str, monkeypatch: pytest.MonkeyPatch
):
    variable = "ANTHROPIC_API_KEY" if name == CLAUDE else "OPENAI_API_KEY"
    monkeypatch.delenv(variable)
    (found,) = [one for one in judge_findings(settings, name) if one.state is State.PROBLEM]
    assert variable in found.text


def test_a_provider_that_nobody_answers_for_is_a_problem(
    provider_server: ProviderServer, settings: CJSettings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")
    assert judge_findings(settings, CLAUDE)[-1].state is State.PROBLEM


def test_a_compatible_server_that_describes_no_model_is_only_warned_of(
    provider_server: ProviderServer, settings: CJSettings
):
    provider_server.unknown_models.add("llama3.1:8b")
    found = judge_findings(
        settings.model_copy(update={"openai_compatible_base_url": provider_server.openai_url}), LOCAL
    )
    assert State.PROBLEM not in states(found)
    assert "does not say" in found[-1].text


def test_what_stands_against_a_judge_is_told_without_asking_it(settings: CJSettings):
    found = judge_findings(settings, "anthropic/of-my-own", max_cost_usd=1.0)
    assert set(states(found)) == {State.PROBLEM}
    assert "price" in found[-1].text


def test_a_simulated_judge_is_ready_and_said_to_be_simulated(settings: CJSettings):
    (found,) = judge_findings(settings, "cj-generic")
    assert found.state is State.OK and "SIMULATED" in found.text


def test_looking_for_a_ledger_makes_none(settings: CJSettings):
    assert look_at_ledger(settings).state is State.OK
    assert look_at_disk(settings).state in (State.OK, State.WARNING)
    assert not settings.data_dir.exists()


def test_a_ledger_that_cannot_be_made_is_a_problem(settings: CJSettings, tmp_path: Path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    elsewhere = settings.model_copy(update={"ledger_url": f"sqlite:///{tmp_path / 'file' / 'ledger.sqlite'}"})
    found = look_at_ledger(elsewhere)
    assert found.state is State.PROBLEM
    assert str(tmp_path / "file") in found.text and "CJ_LEDGER_URL" in found.text


def test_a_ledger_of_another_schema_is_a_problem(settings: CJSettings, ledger_url: str):
    engine = make_engine(ledger_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE cj_alembic_version SET version_num = '0001'")
    engine.dispose()
    found = look_at_ledger(settings.model_copy(update={"ledger_url": ledger_url}))
    assert found.state is State.PROBLEM and "cj ledger upgrade" in found.text


def test_a_folder_that_cannot_be_made_is_a_problem_of_the_disk(settings: CJSettings, tmp_path: Path):
    (tmp_path / "a_file").write_text("")
    assert look_at_disk(settings.model_copy(update={"data_dir": tmp_path / "a_file"})).state is State.PROBLEM


def test_an_assignment_is_absent_then_the_same_then_different(settings: CJSettings, ledger_url: str, ledger):
    here = settings.model_copy(update={"ledger_url": ledger_url})
    wanted = read_assignment(DEMO / "assignment")
    (absent,) = look_at_assignment(here, wanted)
    assert absent.state is State.OK and "not registered yet" in absent.text
    register_assignment(ledger, wanted)
    (same,) = look_at_assignment(here, wanted)
    assert same.state is State.OK and str(len(wanted.anchors)) in same.text
    first, *others = wanted.anchors
    other = dataclasses.replace(
        wanted, anchors=(dataclasses.replace(first, text=first.text + " More."), *others), judge_rubric="Another."
    )
    found = look_at_assignment(here, other)
    assert states(found) == [State.PROBLEM] * 2
    assert any(f"anchor {first.anchor_ref} has another text" in one.text for one in found)
    assert all("use --replace" in one.text for one in found)
    warned = look_at_assignment(here, other, may_replace=True)
    assert states(warned) == [State.WARNING] * 2
    assert all("a revision is added" in one.text and "--replace" not in one.text for one in warned)


def test_every_problem_is_told_and_warnings_stop_nothing():
    fine = [Finding("a", State.OK, "one"), Finding("b", State.WARNING, "two")]
    require_ready(fine)
    with pytest.raises(PreflightError) as raised:
        require_ready([*fine, Finding("c", State.PROBLEM, "three"), Finding("d", State.PROBLEM, "four")])
    assert "c: three" in str(raised.value) and "d: four" in str(raised.value) and "two" not in str(raised.value)
