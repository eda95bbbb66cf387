"""`cj eng5 matrix` and `cj eng5 leaderboard`: many judges and prompts against the experts, and what came of it."""

import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cj_pipeline.cli.context import console, dagster_instance, open_ledger, print_json, say
from cj_pipeline.core.errors import CJError
from cj_pipeline.core.words import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dagster import DagsterInstance

    from cj_pipeline.eng5.matrix import Cell, Matrix
    from cj_pipeline.ledger import Ledger
    from cj_pipeline.settings import CJSettings

_LOOK_SECONDS: Final = 1.0
_DAEMON_SILENCE_SECONDS: Final = 120.0
"""Without a sign of life for so long, the daemon that was to run the cells is taken for gone."""


class MatrixUnfinishedError(CJError):
    """Cells of a matrix did not come to a scale, or not in time."""


def matrix(
    file: Annotated[Path, typer.Argument(help="The matrix, a YAML file.", show_default=False)],
    plan: Annotated[bool, typer.Option("--plan", help="Only say which cells there are and what they cost.")] = False,
    await_completion: Annotated[
        bool, typer.Option("--await-completion/--no-await", help="Wait for all cells, or only submit.")
    ] = True,
    completion_timeout: Annotated[
        float, typer.Option(help="Seconds for all cells together; they go on without this process.", min=1)
    ] = 7200.0,
    assets: Annotated[
        Path | None,
        typer.Option(help="Folder with the ENG5 material. [default: CJ_ENG5_ASSETS_DIR]", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --plan: print JSON for machines.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show Dagster's own log.")] = False,
) -> None:
    """Hold every judge of a file, with every prompt of it, against the experts: a batch each, and one leaderboard.

    Cells that are over are not judged again. With a daemon the others run as a Dagster backfill, without one here.
    """
    from cj_pipeline.eng5.matrix import submit_matrix

    if plan:
        with _ledger_if_there_is_one() as (settings, ledger):
            made = _planned(settings, ledger, file, assets)
        if as_json:
            print_json(_plan_json(made))
        else:
            _plan_text(made)
            say("nothing was stored; without --plan the new cells are submitted")
        return
    with open_ledger() as (settings, ledger), dagster_instance() as instance:
        made = _planned(settings, ledger, file, assets)
        _plan_text(made)
        if await_completion and not _backfill_daemon_is_alive(instance):
            _require_judges(settings, made)
        submit_matrix(ledger, settings, made)
        on_hold = _on_hold(ledger, made)
        batch_ids = [cell.batch_id for cell in made.to_run if cell.batch_id not in on_hold]
        if batch_ids:
            handed = _hand_over(instance, made, batch_ids, wait=await_completion)
        else:
            say(
                "every cell is over or on hold: nothing to judge" if on_hold else "every cell is over: nothing to judge"
            )
    failures = list(on_hold.values())
    if batch_ids and not await_completion:
        say("then: cj eng5 leaderboard")
        return
    if batch_ids and handed.to_daemon:
        _await_daemon(batch_ids, handed.backfill_id, completion_timeout)
    elif batch_ids:
        failures += _run_here(batch_ids, completion_timeout, verbose=verbose)
    _leaderboard()
    failures += _without_scale(made)
    if failures:
        lines = "\n".join(f"  - {failure}" for failure in dict.fromkeys(failures))
        raise MatrixUnfinishedError(f"matrix {made.name}: not every cell came to its end:\n{lines}")


def leaderboard(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of text.")] = False,
) -> None:
    """Rebuild the leaderboard of judges and prompts from the ledger, and print it. No call is made."""
    _leaderboard(as_json=as_json)


# --- before anything is submitted --------------------------------------------------------------------------------


@contextmanager
def _ledger_if_there_is_one() -> "Iterator[tuple[CJSettings, Ledger | None]]":
    """The ledger, but for a SQLite file that opening would make."""
    from cj_pipeline.settings import load_settings

    url = load_settings().effective_ledger_url
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        yield load_settings(), None
        return
    with open_ledger(quiet=True) as (settings, ledger):
        yield settings, ledger


def _planned(settings: "CJSettings", ledger: "Ledger | None", file: Path, assets: Path | None) -> "Matrix":
    from cj_pipeline.eng5.batches import eng5_scale
    from cj_pipeline.eng5.inventory import read_inventory
    from cj_pipeline.eng5.matrix import plan_matrix
    from cj_pipeline.eng5.matrix_file import read_matrix

    described = read_matrix(file)
    inventory = read_inventory(assets or settings.effective_eng5_assets_dir, eng5_scale())
    return plan_matrix(settings, ledger, inventory, eng5_scale(), described, today=datetime.now(UTC).date())


def _plan_text(made: "Matrix") -> None:
    from cj_pipeline.cli.render import plain_table

    console.print(plain_table([_cell_row(cell) for cell in made.cells]))
    states = [cell.state.value for cell in made.cells]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("new", "open", "over") if state in states)
    simulated = all(cell.simulated for cell in made.cells)
    say(
        f"matrix {made.name}: {len(made.cells)} cells ({counts}), each of {made.budget} comparisons"
        f"{', all judges SIMULATED' if simulated else ''}"
    )
    for warning in made.warnings:
        say(f"note: {warning}")
    if simulated:
        say("expected cost: none, nothing is called; prompts make no difference to simulated judges")
        return
    expected, most = made.expected_usd, made.never_more_than_usd
    say(
        "expected cost of the new cells in US dollars, without cache and long reasoning: "
        f"{'unknown, without a price' if expected is None else f'{expected:.2f}'}; every comparison called as often as "
        f"allowed, at its upper bound: {'unknown' if most is None else f'{most:.2f}'}"
    )
    if made.ceiling_usd is not None:
        say(
            f"never more than {made.ceiling_usd:.2f} for all cells together (max_cost_usd): each new cell has its "
            f"share as a wall; cells that are over cost {made.spent_usd:.2f}"
        )


def _cell_row(cell: "Cell") -> dict[str, Any]:
    overrides = cell.request.overrides
    return {
        "cell": cell.batch_id,
        "judge": cell.judge.judge + (" (SIMULATED)" if cell.simulated else ""),
        "asked": ", ".join(filter(None, [cell.judge.reasoning_effort, cell.judge.output_verbosity])),
        "system prompt": overrides.system_prompt_name or "the program's default",
        "rubric": overrides.judge_rubric_name,
        "state": cell.state.value,
        "expected $": None if cell.cost is None else round(cell.cost.at_budget, 4),
        "wall $": cell.wall_usd,
    }


def _require_judges(settings: "CJSettings", made: "Matrix") -> None:
    """Look at every judge that this process is to ask: a cell whose judge refuses is over, and its label used up.

    Raises:
        PreflightError: a judge cannot be asked now; nothing was stored or spent.
    """
    from cj_pipeline.settings import effective_tunables
    from cj_pipeline.workflow.preflight import look_at_judge, require_ready

    one_of_each = {cell.judge.label: cell for cell in made.to_run}
    require_ready(
        [
            finding
            for cell in one_of_each.values()
            for finding in look_at_judge(
                settings, effective_tunables(settings, cell.request.overrides), cell.judge.judge
            )
        ]
    )


def _plan_json(made: "Matrix") -> dict[str, Any]:
    return {
        "matrix": made.name,
        "max_comparisons": made.budget,
        "max_cost_usd": made.ceiling_usd,
        "spent_usd": made.spent_usd,
        "expected_usd": made.expected_usd,
        "never_more_than_usd": made.never_more_than_usd,
        "warnings": list(made.warnings),
        "cells": [
            {
                "batch_id": cell.batch_id,
                "judge": cell.judge.judge,
                "simulated": cell.simulated,
                "reasoning_effort": cell.judge.reasoning_effort,
                "output_verbosity": cell.judge.output_verbosity,
                "system_prompt": cell.request.overrides.system_prompt_name,
                "rubric": cell.request.overrides.judge_rubric_name,
                "state": cell.state.value,
                "expected_usd": None if cell.cost is None else cell.cost.at_budget,
                "wall_usd": cell.wall_usd,
            }
            for cell in made.cells
        ],
    }


# --- running -----------------------------------------------------------------------------------------------------


def _on_hold(ledger: "Ledger", made: "Matrix") -> dict[str, str]:
    """Cells that somebody put on hold, which a run would take off it, with what to tell."""
    held: dict[str, str] = {}
    for cell in made.to_run:
        reason = ledger.batch(cell.batch_id).hold_reason
        if reason is not None:
            held[cell.batch_id] = (
                f"batch {cell.batch_id} is on hold ({reason}) and left out: `cj resume {cell.batch_id}`, then the same "
                "command again"
            )
            say(held[cell.batch_id])
    return held


@dataclass(frozen=True)
class _HandOver:
    """Who runs the cells: the daemon, by a backfill where one had to be asked for, or this process."""

    to_daemon: bool
    backfill_id: str | None = None


def _hand_over(instance: "DagsterInstance", made: "Matrix", batch_ids: Sequence[str], *, wait: bool) -> _HandOver:
    from cj_pipeline.defs.backfills import batches_awaiting_backfill, batches_underway, request_backfill

    alive = _backfill_daemon_is_alive(instance)
    if wait and not alive:
        say("no daemon is alive here (make ui starts one): the cells are judged in this process, one after the other")
        return _HandOver(to_daemon=False)
    underway = batches_awaiting_backfill(instance) | batches_underway(instance, batch_ids)
    wanted = [batch_id for batch_id in batch_ids if batch_id not in underway]
    if not wanted:
        say(f"{counted(len(batch_ids), 'cell')} under way already")
        return _HandOver(to_daemon=True)
    backfill_id = request_backfill(instance, wanted, title=f"ENG5 matrix {made.name}", tags={"cj/matrix": made.name})
    taken_up = "a daemon is alive and takes it up" if alive else "no daemon is alive here: it waits for one (make ui)"
    say(f"backfill {backfill_id} of {counted(len(wanted), 'cell')}: {taken_up}")
    return _HandOver(to_daemon=True, backfill_id=backfill_id)


def _await_daemon(batch_ids: Sequence[str], backfill_id: str | None, timeout: float) -> None:
    """Follow the cells in the ledger until all are over.

    Raises:
        MatrixUnfinishedError: the time is over, a cell is on hold, the backfill failed, or the daemon is gone.
    """
    from cj_pipeline.defs.backfills import backfill_failure
    from cj_pipeline.eng5.matrix import CellState, cell_state

    deadline = time.monotonic() + timeout
    told: set[str] = set()
    with open_ledger(quiet=True) as (_settings, ledger), dagster_instance() as instance:
        while True:
            batches = [ledger.batch(batch_id) for batch_id in batch_ids]
            over = [batch for batch in batches if cell_state(batch) is CellState.OVER]
            for batch in over:
                if batch.batch_id not in told:
                    told.add(batch.batch_id)
                    say(
                        f"{len(told)} of {len(batch_ids)}: {batch.batch_id}: {batch.status.value} ({batch.stop_reason})"
                    )
            held = [batch for batch in batches if batch.hold_reason is not None]
            if len(over) == len(batches):
                return
            if len(over) + len(held) == len(batches):
                lines = "; ".join(f"{batch.batch_id} ({batch.hold_reason})" for batch in held)
                raise MatrixUnfinishedError(f"on hold: {lines}. `cj resume BATCH`, then the same command again")
            failure = None if backfill_id is None else backfill_failure(instance, backfill_id)
            if failure is not None:
                raise MatrixUnfinishedError(
                    f"backfill {backfill_id}: {failure}. The cells stay submitted; the same command asks again"
                )
            if not _backfill_daemon_is_alive(instance, within=_DAEMON_SILENCE_SECONDS):
                raise MatrixUnfinishedError(
                    "the daemon that ran the cells is gone: start it (make ui), and it goes on; or run the same "
                    "command again, which then judges in its own process"
                )
            if time.monotonic() >= deadline:
                raise MatrixUnfinishedError(
                    f"{len(over)} of {len(batch_ids)} cells were over after {timeout:g} s: the daemon goes on. The "
                    "same command follows them again; --completion-timeout allows more"
                )
            time.sleep(_LOOK_SECONDS)


def _run_here(batch_ids: Sequence[str], timeout: float, *, verbose: bool) -> list[str]:
    """Judge the cells one after the other in this process; what went wrong with which, while the others went on."""
    from cj_pipeline.cli.run import CompletionTimeoutError, JobFailedError, await_batch

    deadline = time.monotonic() + timeout
    failures = []
    for number, batch_id in enumerate(batch_ids, start=1):
        left = deadline - time.monotonic()
        if left <= 0:
            failures.append(f"batch {batch_id}: the time was over before its turn (--completion-timeout {timeout:g})")
            continue
        say(f"cell {number} of {len(batch_ids)}: {batch_id}")
        try:
            await_batch(batch_id, timeout=left, verbose=verbose, hints=False)
        except (CompletionTimeoutError, JobFailedError) as error:
            failures.append(str(error))
            say(str(error))
    return failures


def _without_scale(made: "Matrix") -> list[str]:
    with open_ledger(quiet=True) as (_settings, ledger):
        batches = [ledger.batch(cell.batch_id) for cell in made.cells]
    return [
        f"batch {batch.batch_id} ended as {batch.status.value} ({batch.stop_reason}): `cj show {batch.batch_id}`, "
        f"`cj reopen {batch.batch_id} --reason ...`"
        for batch in batches
        if batch.status.is_final and not batch.status.has_grades
    ]


def _backfill_daemon_is_alive(instance: "DagsterInstance", *, within: float = 60.0) -> bool:
    heartbeat = instance.get_daemon_heartbeats().get("BACKFILL")
    return heartbeat is not None and time.time() - heartbeat.timestamp < within


# --- the leaderboard ---------------------------------------------------------------------------------------------


def _leaderboard(*, as_json: bool = False) -> None:
    from dagster import AssetMaterialization

    from cj_pipeline.cli.render import plain_table
    from cj_pipeline.core.alignment import AlignmentTargets
    from cj_pipeline.defs.assets.leaderboard import alignment_leaderboard, leaderboard_metadata
    from cj_pipeline.eng5.batches import eng5_scale
    from cj_pipeline.eng5.leaderboard import leaderboard_frame
    from cj_pipeline.eng5.leaderboard_report import (
        group_heading,
        group_notes,
        rebuild_leaderboard,
        standings_table,
    )

    with open_ledger(quiet=True) as (settings, ledger), dagster_instance() as instance:
        made, files = rebuild_leaderboard(ledger, eng5_scale(), AlignmentTargets(), settings.outputs_dir)
        # no run, but the UI shows it
        instance.report_runless_asset_event(
            AssetMaterialization(alignment_leaderboard.key, metadata=leaderboard_metadata(made, files))
        )
    if as_json:
        rows = leaderboard_frame(made).to_dicts()
        print_json({"rows": rows, "left_out": [{"batch_id": one, "reason": why} for one, why in made.left_out]})
        return
    if not made.groups:
        say("no finished batch holds a judge against experts yet: `cj eng5 matrix FILE` makes some")
    for group in made.groups:
        say(f"{group_heading(group)}{', all judges SIMULATED' if group.simulated else ''}:")
        console.print(plain_table(standings_table(group).to_dicts()))
        for note in group_notes(group):
            say(note)
    if made.left_out:
        say(f"{len(made.left_out)} batches are left out, with reasons in the Markdown")
    for path in (files.markdown, files.picture, files.database):
        say(f"written: {path}")
