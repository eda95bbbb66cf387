"""`cj eng5 verify` as a person calls it, and its exit codes."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from cj_pipeline.cli.eng5_verify import verify
from cj_pipeline.core.errors import InputError
from cj_pipeline.eng5.artefact import RunMode
from cj_pipeline.eng5.artefact_building import recorded_run, write_run
from cj_pipeline.eng5.dry_run import dry_run
from cj_pipeline.ledger import Ledger
from cj_pipeline.settings import BatchOverrides
from cj_pipeline_tests.eng5 import runs
from cj_pipeline_tests.workflow.scenes import settings

app = typer.Typer()
app.command()(verify)


@pytest.fixture
def artefact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The artefact of a small assessment whose ledger is the one that settings lead to."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CJ_LEDGER_URL", url)
    ledger = Ledger.open(url)
    inventory = runs.inventory_in(tmp_path / "assets", students=3)
    runs.assessed(ledger, inventory, "b", max_comparisons=15)
    path = write_run(recorded_run(ledger, "b", inventory, RunMode.EXECUTE), tmp_path / "outputs")
    ledger.close()
    return path


def cj_verify(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_an_artefact_that_agrees_exits_with_0(artefact: Path) -> None:
    for options in ((), ("--ledger",)):
        result = cj_verify(artefact, *options)
        assert result.exit_code == 0, result.output
        assert "agree with it" in result.output
    assert json.loads(cj_verify(artefact, "--json").output)["agrees"] is True


def test_an_artefact_that_differs_exits_with_1_and_says_where(artefact: Path) -> None:
    (artefact.parent / "requests" / "batch.json").write_text("{}")
    result = cj_verify(artefact)
    assert result.exit_code == 1
    assert "requests/batch.json: has changed" in result.output
    told = json.loads(cj_verify(artefact, "--json").output)
    assert told["agrees"] is False and len(told["differences"]) == 1


def test_of_a_dry_run_no_ledger_is_said_to_agree_and_none_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = tmp_path / "ledger.sqlite"
    monkeypatch.setenv("CJ_LEDGER_URL", f"sqlite:///{ledger}")
    inventory = runs.inventory_in(tmp_path / "assets", students=3)
    run = dry_run(inventory, runs.scale(), settings(), batch_id="dry", overrides=BatchOverrides(max_comparisons=15))
    result = cj_verify(write_run(run, tmp_path / "outputs"), "--ledger")
    assert result.exit_code == 0, result.output
    assert "in no ledger" in result.output and "ledger agree" not in result.output
    assert not ledger.exists()


def test_what_is_no_artefact_is_bad_input(tmp_path: Path) -> None:
    result = cj_verify(tmp_path / "nothing.json")
    assert isinstance(result.exception, InputError)
    assert result.exception.exit_code == 2
