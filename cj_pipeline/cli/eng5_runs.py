"""A batch of the ENG5 programme from its submission to its artefact and report, and either of them again."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cj_pipeline.cli.context import dagster_instance, open_ledger, say
from cj_pipeline.cli.doctor import daemon_is_alive
from cj_pipeline.settings import load_settings

if TYPE_CHECKING:
    from cj_pipeline.cli.run import CompletionTimeoutError, JobFailedError
    from cj_pipeline.eng5.handlers import Desk, ModeHandler, ModeOptions, Outcome


def submit_and_see_through(
    handler: "ModeHandler[Any]",
    options: "ModeOptions",
    desk: "Desk",
    *,
    timeout: float | None,
    enforce_targets: bool,
    verbose: bool,
) -> None:
    """Submit a batch, and run it in this process until it has ended or the time is over.

    Args:
        handler: of a mode that submits.
        options: its options.
        desk: what it works with.
        timeout: seconds; None: only submit.
        enforce_targets: whether a missed alignment target is an error.
        verbose: whether to show Dagster's own log.

    Raises:
        CJError: nothing was submitted, or the batch ended without a scale.
        CompletionTimeoutError: the time was over; what is recorded stays, and is written with `partial_data`.
        TargetsMissedError: targets are enforced, and one was missed.
    """
    from cj_pipeline.defs.partitions import add_partitions

    # first, because without an instance nothing could run what is about to be stored
    with dagster_instance() as instance:
        done = handler.run(desk, options)
        add_partitions(instance, [done.batch_id])
        daemon = daemon_is_alive(instance)
    _submission_text(done)
    if timeout is None:
        say(
            "a daemon is alive and takes it up"
            if daemon
            else f"no daemon is alive here, so nothing happens until `make ui` or `cj run {done.batch_id}`"
        )
        say(f"when it has ended: cj eng5 {_what_to_see(done)} {done.batch_id}")
        return
    timed_out, failed = _run(done.batch_id, timeout=timeout, verbose=verbose)
    _conclude(done, timed_out=timed_out, failed=failed, enforce_targets=enforce_targets)


def _what_to_see(done: "Outcome") -> str:
    from cj_pipeline.eng5.artefact import RunMode

    return "report" if done.mode is RunMode.ANCHOR_ALIGN_TEST else "collect"


def _run(batch: str, *, timeout: float, verbose: bool) -> "tuple[CompletionTimeoutError | None, JobFailedError | None]":
    from cj_pipeline.cli.run import CompletionTimeoutError, JobFailedError, await_batch

    try:
        await_batch(batch, timeout=timeout, verbose=verbose)
    except CompletionTimeoutError as error:
        return error, None
    except JobFailedError as error:
        return None, error
    return None, None


def _conclude(
    done: "Outcome",
    *,
    timed_out: "CompletionTimeoutError | None",
    failed: "JobFailedError | None",
    enforce_targets: bool,
) -> None:
    from cj_pipeline.cli.eng5_text import run_summary_text
    from cj_pipeline.eng5.artefact import RunMode
    from cj_pipeline.eng5.handlers import finish_run

    batch, mode = done.batch_id, RunMode(done.mode)
    with open_ledger() as (settings, ledger):
        path = finish_run(ledger, settings, batch, done.inventory, mode, timed_out=timed_out is not None)
        status, judged = ledger.batch(batch).status, ledger.state(batch).judged
    run_summary_text(path)
    # where targets are enforced, the run of a finished batch fails by a missed one: the report says by which
    if failed is not None and not status.has_grades:
        raise failed
    if mode is RunMode.ANCHOR_ALIGN_TEST and judged:
        _report(batch, enforced=timed_out is None and (enforce_targets or settings.enforce_targets))
    for error in (timed_out, failed):
        if error is not None:
            raise error


def _submission_text(done: "Outcome") -> None:
    from cj_pipeline.eng5.artefact import RunMode

    submission = done.submission
    assert submission is not None
    state = "submitted" if submission.created else "was submitted before, with the same content"
    essays = (
        f"{submission.students} anchors as students"
        if done.mode is RunMode.ANCHOR_ALIGN_TEST
        else f"{submission.students} students, {submission.anchors} anchors of the assignment"
    )
    say(
        f"batch {done.batch_id} {state}: {essays}, budget {submission.total_budget} comparisons, judge "
        f"{submission.judge}{' (SIMULATED)' if submission.simulated else ''}"
    )
    for warning in submission.warnings:
        say(f"note: {warning}")


def register(
    assignment_id: Annotated[str, typer.Option(help="Id that the assignment is to have.")] = "eng5-np-2016",
    replace: Annotated[
        bool, typer.Option("--replace", help="Add a revision if the folder differs from what is registered.")
    ] = False,
    assets: Annotated[
        Path | None,
        typer.Option(help="Folder with the ENG5 material. [default: CJ_ENG5_ASSETS_DIR]", show_default=False),
    ] = None,
) -> None:
    """Register the folder's task and anchors, as `cj eng5 execute` does, and judge nothing. Calibration needs them."""
    from cj_pipeline.eng5.batches import eng5_scale
    from cj_pipeline.eng5.execute import folder_assignment
    from cj_pipeline.eng5.inventory import read_inventory
    from cj_pipeline.workflow.registration import register_assignment

    with open_ledger() as (settings, ledger):
        inventory = read_inventory(assets or settings.effective_eng5_assets_dir, eng5_scale())
        wanted = folder_assignment(inventory, eng5_scale(), assignment_id)
        done = register_assignment(ledger, wanted, replace=replace)
    what = f"registered as revision {done.revision}" if done.changed else f"unchanged (revision {done.revision})"
    say(f"assignment {done.assignment_id}: {what}, {done.anchors} anchors")


# --- again, from the ledger --------------------------------------------------------------------------------------

Batch = Annotated[str, typer.Argument(help="A batch that execute or anchor-align-test made.", show_default=False)]


def collect(
    batch: Batch,
    assets: Annotated[
        Path | None,
        typer.Option(help="Folder the batch was submitted from. [default: CJ_ENG5_ASSETS_DIR]", show_default=False),
    ] = None,
) -> None:
    """Write the run artefact of a batch as the ledger has it now, finished or not. No call is made."""
    from cj_pipeline.cli.eng5_text import run_summary_text
    from cj_pipeline.core.models import BatchKind
    from cj_pipeline.eng5.artefact import RunMode
    from cj_pipeline.eng5.batches import eng5_scale
    from cj_pipeline.eng5.handlers import finish_run
    from cj_pipeline.eng5.inventory import read_inventory

    with open_ledger() as (settings, ledger):
        kind = ledger.batch(batch).kind
        mode: RunMode = RunMode.ANCHOR_ALIGN_TEST if kind is BatchKind.ANCHOR_ALIGN else RunMode.EXECUTE
        inventory = read_inventory(assets or settings.effective_eng5_assets_dir, eng5_scale())
        path = finish_run(ledger, settings, batch, inventory, mode)
    run_summary_text(path)


def report(
    batch: Annotated[str, typer.Argument(help="A batch that anchor-align-test made.", show_default=False)],
    enforce_targets: Annotated[
        bool,
        typer.Option("--enforce-targets", help="Exit 1 if an alignment target is missed, as CJ_ENFORCE_TARGETS does."),
    ] = False,
) -> None:
    """Write the alignment report of a batch again, from the ledger. No call is made."""
    _report(batch, enforced=enforce_targets or load_settings().enforce_targets)


def _report(batch: str, *, enforced: bool) -> None:
    from cj_pipeline.cli.eng5_text import report_text
    from cj_pipeline.core.alignment import AlignmentTargets
    from cj_pipeline.eng5.anchor_align import enforce, ledger_report, write_report
    from cj_pipeline.eng5.batches import eng5_scale

    with open_ledger(quiet=True) as (settings, ledger):
        made = ledger_report(ledger, batch, eng5_scale(), AlignmentTargets())
        partial = not ledger.batch(batch).status.is_final
    written = write_report(made, settings.outputs_dir / "eng5" / batch)
    report_text(made, partial=partial)
    for path in written:
        say(f"written: {path}")
    if enforced:
        enforce(batch, made.verdicts)
