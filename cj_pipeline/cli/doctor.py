"""`cj doctor`: whether everything that judging needs is there, before anything is spent."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cj_pipeline.cli.arguments import judge_name
from cj_pipeline.cli.context import dagster_instance, print_json, say
from cj_pipeline.core.errors import CJError

if TYPE_CHECKING:
    from cj_pipeline.settings import CJSettings
    from cj_pipeline.workflow.preflight import Finding

_ALIVE_SECONDS = 60
_MARKS = {"ok": "ok     ", "warning": "WARNING", "problem": "PROBLEM"}


def doctor(
    judge: Annotated[str | None, typer.Option(help="PROVIDER/MODEL, or a simulated judge.", show_default=False)] = None,
    llm_provider: Annotated[str | None, typer.Option(help="anthropic, openai or compatible; with --llm-model.")] = None,
    llm_model: Annotated[str | None, typer.Option(help="The provider's model; with --llm-provider.")] = None,
    eng5: Annotated[bool, typer.Option("--eng5", help="Look at the ENG5 folder and its assignment too.")] = False,
    assets: Annotated[
        Path | None,
        typer.Option(help="Folder with the ENG5 material, with --eng5. [default: CJ_ENG5_ASSETS_DIR]"),
    ] = None,
    assignment_id: Annotated[str, typer.Option(help="Assignment of the ENG5 anchors, with --eng5.")] = "eng5-np-2016",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of text.")] = False,
) -> None:
    """Look at the ledger, the disk, the Dagster instance and the judge, and say what to mend. Exit code 1 if anything.

    Nothing is created, stored, judged or paid: a provider is only asked to describe the model, which needs its key.
    """
    from cj_pipeline.eng5.batches import DEFAULT_JUDGE as ENG5_JUDGE
    from cj_pipeline.logs import configure_logging
    from cj_pipeline.settings import effective_tunables, load_settings, parse_overrides
    from cj_pipeline.workflow.preflight import State, look_at_disk, look_at_judge, look_at_ledger
    from cj_pipeline.workflow.registration import DEFAULT_JUDGE

    settings = load_settings()
    configure_logging(settings.log_format)
    name = judge_name(judge, llm_provider, llm_model, prefix="--llm-") or (ENG5_JUDGE if eng5 else DEFAULT_JUDGE)
    findings = [look_at_ledger(settings), look_at_disk(settings), look_at_dagster()]
    if eng5:
        findings += _look_at_eng5(settings, assets, assignment_id)
    findings += look_at_judge(settings, effective_tunables(settings, parse_overrides({}, where="cj doctor")), name)
    if as_json:
        print_json([{"what": one.what, "state": one.state.value, "text": one.text} for one in findings])
    else:
        findings_text(findings)
    if any(one.state is State.PROBLEM for one in findings):
        raise typer.Exit(1)


def findings_text(findings: "list[Finding]") -> None:
    """A line for each finding."""
    for finding in findings:
        say(f"{_MARKS[finding.state.value]} {finding.what}: {finding.text}")


def look_at_dagster() -> "Finding":
    """Whether the instance can be opened, and a daemon is alive on it."""
    from cj_pipeline.workflow.preflight import Finding, State

    try:
        with dagster_instance() as instance:
            alive = daemon_is_alive(instance)
            root = instance.root_directory
    except CJError as error:
        return Finding("dagster", State.PROBLEM, str(error))
    except Exception as error:  # noqa: BLE001
        # whatever its storage raises; a connection string may hold a password, so only the kind is told
        kind = type(error).__name__
        return Finding("dagster", State.PROBLEM, f"the instance cannot be opened ({kind}): check dagster.yaml")
    if alive:
        return Finding("dagster", State.OK, f"instance at {root}, daemon alive")
    told = f"instance at {root}; no daemon is alive: batches only go on by `cj run`, or after `make ui`"
    return Finding("dagster", State.WARNING, told)


def daemon_is_alive(instance: Any) -> bool:
    """Whether a sensor daemon on this instance showed life within the last minute."""
    heartbeat = instance.get_daemon_heartbeats().get("SENSOR")
    return heartbeat is not None and time.time() - heartbeat.timestamp < _ALIVE_SECONDS


def _look_at_eng5(settings: "CJSettings", assets: Path | None, assignment_id: str) -> "list[Finding]":
    from cj_pipeline.eng5.batches import eng5_scale
    from cj_pipeline.eng5.execute import folder_assignment
    from cj_pipeline.eng5.inventory import read_inventory
    from cj_pipeline.workflow.preflight import Finding, State, look_at_assignment

    try:
        inventory = read_inventory(assets or settings.effective_eng5_assets_dir, eng5_scale())
        wanted = folder_assignment(inventory, eng5_scale(), assignment_id)
    except CJError as error:
        return [Finding("material", State.PROBLEM, str(error))]
    told = f"{inventory.root}: {len(inventory.anchors)} anchors, {len(inventory.students)} students, sound"
    return [Finding("material", State.OK, told), *look_at_assignment(settings, wanted)]
