"""The commands. Each reads its arguments, calls what does the work, and prints what came of it."""

import asyncio
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from cj_pipeline.cli.arguments import judge_name, name_and_value, prompt_file
from cj_pipeline.cli.context import dagster_instance, ensure_dagster_home, errors, open_ledger, print_json, say
from cj_pipeline.cli.diagnose import diagnose
from cj_pipeline.cli.doctor import doctor
from cj_pipeline.cli.eng5 import eng5_app
from cj_pipeline.cli.judge import judge_app
from cj_pipeline.cli.metrics import metrics_app
from cj_pipeline.cli.simulate import simulate
from cj_pipeline.core.errors import CJError, InputError
from cj_pipeline.core.models import BatchKind, BatchStatus

app = typer.Typer(
    name="cj",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Comparative judgement of student essays: from essays, anchors and a budget to grades with honest "
    "uncertainty. Start with `cj demo`, then `cj assignments register`, `cj submit`, `cj run`, `cj show`.",
)
assignments_app = typer.Typer(no_args_is_help=True, help="Register writing tasks with their anchors, and list them.")
ledger_app = typer.Typer(no_args_is_help=True, help="The ledger's database.")
app.add_typer(assignments_app, name="assignments")
app.add_typer(ledger_app, name="ledger")
app.add_typer(judge_app, name="judge")
app.add_typer(eng5_app, name="eng5")
app.add_typer(metrics_app, name="metrics")
app.command()(diagnose)
app.command()(doctor)
app.command()(simulate)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of text.")]
Batch = Annotated[str, typer.Argument(help="The batch id, as `cj status` lists it.", show_default=False)]


def main() -> None:
    """Run `cj`; a `CJError` becomes its message and exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except CJError as error:
        errors.print(f"error: {error}", markup=False, style="red")
        sys.exit(error.exit_code)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


# --- settings and ledger -----------------------------------------------------------------------------------------


@app.command("settings")
def show_settings(as_json: Json = False) -> None:
    """Every setting with its value, where it comes from, its unit and its reason."""
    from cj_pipeline.cli.render import settings_rows, settings_text
    from cj_pipeline.settings import load_settings

    settings = load_settings()
    if as_json:
        print_json(settings_rows(settings))
    else:
        settings_text(settings)


@ledger_app.command("upgrade")
def upgrade_ledger() -> None:
    """Bring the ledger's schema to the one this program needs. All or nothing; running it again changes nothing."""
    from cj_pipeline.ledger.engine import HEAD, current_revision, make_engine, upgrade
    from cj_pipeline.settings import load_settings

    engine = make_engine(load_settings().effective_ledger_url)
    before = current_revision(engine)
    if before == HEAD:
        say(f"the ledger is at revision {HEAD} already")
        return
    upgrade(engine)
    say(f"the ledger went from revision {before or 'nothing'} to {HEAD}")


# --- assignments -------------------------------------------------------------------------------------------------


@assignments_app.command("register")
def register(
    folder: Annotated[Path, typer.Argument(help="Folder with assignment.yaml and anchors/.", show_default=False)],
    replace: Annotated[
        bool, typer.Option("--replace", help="Add a revision if the content differs from what is registered.")
    ] = False,
) -> None:
    """Register an assignment and its anchors. The same content again changes nothing."""
    from cj_pipeline.workflow.intake import read_assignment
    from cj_pipeline.workflow.registration import register_assignment

    request = read_assignment(folder)
    with open_ledger() as (_settings, ledger):
        done = register_assignment(ledger, request, replace=replace)
    what = f"registered as revision {done.revision}" if done.changed else f"unchanged (revision {done.revision})"
    say(f"assignment {done.assignment_id}: {what}, {done.anchors} anchors")
    say(f"next: cj submit FOLDER --assignment {done.assignment_id}")


@assignments_app.command("list")
def list_assignments(
    anchors: Annotated[str | None, typer.Option("--anchors", help="Show this assignment's anchors instead.")] = None,
    as_json: Json = False,
) -> None:
    """The registered assignments, with commands to copy."""
    from cj_pipeline.cli.render import assignments_text

    with open_ledger() as (_settings, ledger):
        if anchors is not None:
            assignment = ledger.assignment(anchors)
            found = ledger.anchors(assignment)
            rows: list[dict[str, Any]] = [
                {"anchor_ref": a.anchor_ref, "grade": a.grade, "words": a.word_count, "text_sha256": a.text_sha256}
                for a in found
            ]
        else:
            rows = [
                {
                    "assignment_id": a.assignment_id,
                    "title": a.title,
                    "grade_scale": a.grade_scale,
                    "revision": a.revision,
                    "anchors": len(ledger.anchors(a)),
                }
                for a in ledger.assignments()
            ]
    if as_json:
        print_json(rows)
    else:
        assignments_text(rows, anchors)


# --- batches -----------------------------------------------------------------------------------------------------


@app.command()
def submit(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of essays (txt, md, docx, pdf), or a CSV or Parquet file with essay_id and text.",
            show_default=False,
        ),
    ],
    assignment: Annotated[str | None, typer.Option(help="Registered assignment (see `cj assignments list`).")] = None,
    batch_id: Annotated[str | None, typer.Option(help="Id of the batch; by default the folder's name.")] = None,
    max_comparisons: Annotated[int | None, typer.Option(help="The batch's budget, in comparisons.", min=1)] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="PROVIDER/MODEL, e.g. anthropic/claude-haiku-4-5, or a simulated one (`cj judge list`)."),
    ] = None,
    provider: Annotated[str | None, typer.Option(help="anthropic, openai or compatible; with --model.")] = None,
    model: Annotated[str | None, typer.Option(help="The provider's model; with --provider.")] = None,
    system_prompt: Annotated[
        Path | None, typer.Option(help="File: who the judge is to be, in place of the assignment's.")
    ] = None,
    rubric: Annotated[
        Path | None, typer.Option(help="File: what makes an essay better, in place of the assignment's.")
    ] = None,
    max_cost_usd: Annotated[
        float | None, typer.Option(help="US dollars the batch may cost: a wall, like the budget.", min=0.0)
    ] = None,
    kind: Annotated[BatchKind | None, typer.Option(help="What the batch is for.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(help="A setting the batch brings along, as NAME=VALUE, e.g. judge_concurrency=8. Repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Submit a batch of essays. Essay ids are shown in results: use pseudonyms, never names."""
    from cj_pipeline.defs.partitions import add_partitions
    from cj_pipeline.workflow.registration import read_and_submit

    stated = {
        "max_comparisons": max_comparisons,
        "max_cost_usd": max_cost_usd,
        "system_prompt": None if system_prompt is None else prompt_file(system_prompt, "--system-prompt"),
        "judge_rubric": None if rubric is None else prompt_file(rubric, "--rubric"),
    }
    overrides: dict[str, Any] = {name: value for name, value in stated.items() if value is not None}
    overrides |= dict(name_and_value(text) for text in override or [])
    with open_ledger() as (settings, ledger), dagster_instance() as instance:
        done = read_and_submit(
            ledger,
            settings,
            source,
            assignment_id=assignment,
            batch_id=batch_id,
            overrides=overrides,
            judge=judge_name(judge, provider, model),
            kind=kind,
        )
        add_partitions(instance, [done.batch_id])
    if as_json:
        print_json(vars(done))
        return
    state = "submitted" if done.created else "was submitted before, with the same content; nothing changed"
    say(
        f"batch {done.batch_id} {state}: {done.students} students, {done.anchors} anchors, budget "
        f"{done.total_budget} comparisons, judge {done.judge}{' (SIMULATED)' if done.simulated else ''}"
    )
    for warning in done.warnings:
        say(f"note: {warning}")
    say("essay ids are shown in the UI, in logs and in results: they must be pseudonyms")
    say(f"next: cj run {done.batch_id}   (or leave it to the daemon: make ui)")


@app.command()
def run(
    batch: Batch,
    wait: Annotated[
        float, typer.Option(help="Seconds to wait for another process to finish with the batch.", min=0)
    ] = 0.0,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show Dagster's own log.")] = False,
) -> None:
    """Advance a batch to its final decision in this process, on the same Dagster instance that the UI shows."""
    from cj_pipeline.cli.run import run_batch

    run_batch(batch, wait=wait, verbose=verbose)


@app.command()
def status(
    batch: Annotated[str | None, typer.Argument(help="One batch; by default all.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Where the batches stand."""
    from cj_pipeline.cli.render import status_rows, status_text

    with open_ledger() as (_settings, ledger):
        records = [ledger.batch(batch)] if batch is not None else ledger.batches()
        rows = status_rows(ledger, records)
        events = ledger.events(batch) if batch is not None else []
    if as_json:
        print_json({"batches": rows, "events": events} if batch is not None else rows)
    else:
        status_text(rows, events)


@app.command()
def hold(batch: Batch, reason: Annotated[str, typer.Option(help="Why, for the record.")] = "held by a person") -> None:
    """Stop a batch once its running calls are in, until `cj resume` or a launch by hand."""
    with open_ledger() as (_settings, ledger):
        ledger.hold(batch, reason)
    say(f"batch {batch} is on hold; `cj resume {batch}` lets it go on")


@app.command()
def resume(batch: Batch) -> None:
    """Take a batch off hold: the daemon launches it again."""
    with open_ledger() as (_settings, ledger):
        was_held = ledger.resume(batch)
    say(f"batch {batch} goes on" if was_held else f"batch {batch} was not on hold")


@app.command()
def reopen(batch: Batch, reason: Annotated[str, typer.Option(help="Why, for the record.", show_default=False)]) -> None:
    """Return a failed, cancelled or held batch to work. What was judged stays; the budget stays a wall."""
    with open_ledger() as (_settings, ledger):
        ledger.reopen(batch, reason)
    say(f"batch {batch} is open again: `cj run {batch}`, or leave it to the daemon")


@app.command()
def cancel(
    batch: Batch,
    wait: Annotated[float, typer.Option(help="Seconds to wait for a running process to stop.", min=0)] = 60.0,
) -> None:
    """End a batch for good: running calls are collected, comparisons never sent are withdrawn."""
    from cj_pipeline.judges.errors import JudgeError
    from cj_pipeline.ledger import Lease
    from cj_pipeline.workflow.jobs import cancel_jobs
    from cj_pipeline.workflow.loop import process_owner

    with open_ledger() as (settings, ledger):
        record = ledger.batch(batch)
        if record.status.is_final:
            raise InputError(f"batch {batch} is {record.status.value} already")
        ledger.hold(batch, "being cancelled")
        with Lease.acquire(ledger, batch, owner=process_owner(), seconds=settings.lease_seconds, wait=wait) as lease:
            try:
                asyncio.run(cancel_jobs(ledger, lease, settings, wait=wait))
            except JudgeError as error:
                say(f"the provider could not be asked to cancel its batch job ({error}): what it judges is still paid")
            lease.finalise(BatchStatus.CANCELLED, "cancelled")
    say(f"batch {batch} is cancelled; `cj reopen {batch} --reason ...` brings it back")


@app.command()
def show(
    batch: Batch,
    output_format: Annotated[str, typer.Option("--format", help="text or json.")] = "text",
    output: Annotated[Path | None, typer.Option(help="Write to this file instead of the terminal.")] = None,
) -> None:
    """Everything about a batch: ranking with SE, grades with confidence, judgments, costs, why it stopped."""
    from cj_pipeline.cli.render import show_json, show_text
    from cj_pipeline.workflow.results import collect_results

    if output_format not in ("text", "json"):
        raise InputError(f"--format {output_format!r} is not known: text or json")
    with open_ledger() as (_settings, ledger):
        results = collect_results(ledger, batch)
    text = show_json(results) if output_format == "json" else show_text(results)
    if output is None:
        sys.stdout.write(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output {output}: {error.strerror}") from None
    say(f"written to {output}")


@app.command()
def positions(batch: Batch, as_json: Json = False) -> None:
    """How often each essay was read first (A) and second (B), anchors against students."""
    from cj_pipeline.cli.render import positions_text
    from cj_pipeline.workflow.results import position_table

    with open_ledger() as (_settings, ledger):
        ledger.batch(batch)
        table = position_table(ledger, batch)
    if as_json:
        print_json(table.to_dicts())
    else:
        positions_text(table)


@app.command("prompt")
def show_prompt(
    batch: Batch,
    comparison_id: Annotated[
        str, typer.Argument(help="As `cj show BATCH --format json` lists it.", show_default=False)
    ],
    attempt: Annotated[int | None, typer.Option(help="Which attempt; by default the last.", min=1)] = None,
) -> None:
    """Exactly what was sent to the judge for a comparison. It shows the essays: for your eyes only."""
    from cj_pipeline.cli.render import prompt_text
    from cj_pipeline.workflow.judging import sent_prompt

    with open_ledger() as (_settings, ledger):
        sent = sent_prompt(ledger, batch, comparison_id, number=attempt)
        sys.stdout.write(prompt_text(ledger.batch(batch), sent))
    if not sent.matches:
        raise CJError(
            f"the prompt rebuilt for {comparison_id} is not the one that was sent (its hash differs): this program's "
            "version, or a text, is not what it was then"
        )


# --- demo and UI -------------------------------------------------------------------------------------------------


@app.command()
def demo() -> None:
    """From essays to grades on the shipped material: no key, no server, about half a minute."""
    from cj_pipeline.cli.demo import run_demo

    started = time.monotonic()
    run_demo()
    say(f"({time.monotonic() - started:.0f} s)")


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port on loopback.", min=1, max=65535)] = 3000,
    read_only: Annotated[bool, typer.Option("--read-only", help="Nobody can launch anything from the UI.")] = False,
) -> None:
    """Webserver and daemon on loopback; one that dies is started again. Ctrl-C ends both."""
    from cj_pipeline.cli.ui import serve

    serve(ensure_dagster_home(), port=port, read_only=read_only)
