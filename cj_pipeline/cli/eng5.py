"""`cj eng5`: the arguments and the words of the ENG5 programme's modes. What they do is in `cj_pipeline.eng5`."""

import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cj_pipeline.cli.arguments import judge_name
from cj_pipeline.cli.context import console, dagster_instance, open_ledger, print_json, say
from cj_pipeline.cli.eng5_matrix import leaderboard, matrix
from cj_pipeline.cli.eng5_verify import verify

if TYPE_CHECKING:
    from cj_pipeline.eng5.alignment_report import AlignmentReport
    from cj_pipeline.eng5.inventory import Inventory
    from cj_pipeline.eng5.plan import Plan
    from cj_pipeline.settings import CJSettings

eng5_app = typer.Typer(no_args_is_help=True, help="The ENG5 programme: plan it, and hold judges against its experts.")

Assets = Annotated[
    Path | None,
    typer.Option(help="Folder with the ENG5 material. [default: CJ_ENG5_ASSETS_DIR]", show_default=False),
]
BatchId = Annotated[str | None, typer.Option(help="Id of the batch. [default: eng5-MODE-UTC time]", show_default=False)]
JudgeOption = Annotated[
    str | None,
    typer.Option(help="PROVIDER/MODEL, or a simulated judge. [default: eng5-anchor, simulated]", show_default=False),
]
Provider = Annotated[str | None, typer.Option(help="anthropic, openai or compatible; with --llm-model.")]
Model = Annotated[str | None, typer.Option(help="The provider's model; with --llm-provider.")]
Effort = Annotated[str | None, typer.Option(help="How much the model reasons: none, low, medium or high.")]
Verbosity = Annotated[str | None, typer.Option(help="How much the model writes: low, medium or high.")]
MaxComparisons = Annotated[int | None, typer.Option(help="The batch's budget, in comparisons.", min=1)]
Enforce = Annotated[
    bool, typer.Option("--enforce-targets", help="Exit 1 if an alignment target is missed, as CJ_ENFORCE_TARGETS does.")
]


@eng5_app.command()
def plan(
    batch_id: BatchId = None,
    assets: Assets = None,
    max_comparisons: MaxComparisons = None,
    judge: JudgeOption = None,
    llm_provider: Provider = None,
    llm_model: Model = None,
    reasoning_effort: Effort = None,
    output_verbosity: Verbosity = None,
    replications: Annotated[
        int, typer.Option(help="Simulated exams behind the expected accuracy; 0 leaves it out.", min=0)
    ] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of text.")] = False,
) -> None:
    """Check the material, and say what judging its students would bring and cost. Nothing is stored, judged or paid."""
    from cj_pipeline.cli.simulate import exam_progress
    from cj_pipeline.eng5.batches import DEFAULT_JUDGE, LookMode, eng5_batch_id, eng5_scale, log_validation_state
    from cj_pipeline.eng5.plan import make_plan, plan_json
    from cj_pipeline.logs import configure_logging
    from cj_pipeline.settings import load_settings

    now = datetime.now(UTC)
    batch = eng5_batch_id(batch_id, LookMode.PLAN, now)
    # no ledger is opened: opening one would make it
    settings = load_settings()
    configure_logging(settings.log_format)
    inventory = _read(settings, assets)
    correlation_id = str(uuid.uuid4())
    with exam_progress(replications) as advance:
        made = make_plan(
            settings,
            inventory,
            eng5_scale(),
            judge=judge_name(judge, llm_provider, llm_model, prefix="--llm-") or DEFAULT_JUDGE,
            overrides={
                "max_comparisons": max_comparisons,
                "reasoning_effort": reasoning_effort,
                "output_verbosity": output_verbosity,
            },
            replications=replications,
            today=now.date(),
            progress=advance,
        )
    log_validation_state(inventory, LookMode.PLAN, batch_id=batch, correlation_id=correlation_id)
    if as_json:
        print_json({"batch_id": batch, "correlation_id": correlation_id, "mode": LookMode.PLAN.value} | plan_json(made))
    else:
        _plan_text(made)


@eng5_app.command("dry-run")
def dry_run(
    batch_id: BatchId = None,
    assets: Assets = None,
    max_comparisons: MaxComparisons = None,
    seed: Annotated[int | None, typer.Option(help="Of the stubbed answers. [default: the pairing's]", min=0)] = None,
) -> None:
    """Write the complete run artefact with stubbed judgments. No judge is called, and the ledger stays as it is."""
    from cj_pipeline.eng5.artefact import RunMode
    from cj_pipeline.eng5.artefact_building import write_run
    from cj_pipeline.eng5.batches import eng5_batch_id, eng5_scale, log_validation_state
    from cj_pipeline.eng5.dry_run import dry_run as stubbed
    from cj_pipeline.logs import configure_logging
    from cj_pipeline.settings import BatchOverrides, load_settings

    batch = eng5_batch_id(batch_id, RunMode.DRY_RUN, datetime.now(UTC))
    settings = load_settings()
    configure_logging(settings.log_format)
    inventory = _read(settings, assets)
    run = stubbed(
        inventory,
        eng5_scale(),
        settings,
        batch_id=batch,
        overrides=BatchOverrides(max_comparisons=max_comparisons),
        seed=seed,
    )
    path = write_run(run, settings.outputs_dir)
    log_validation_state(
        inventory, RunMode.DRY_RUN, batch_id=batch, correlation_id=run.results.batch.correlation_id or ""
    )
    say(f"batch {batch}: STUBBED judgments, no judge was called; the numbers say nothing about any pupil")
    say(f"written: {path}")
    say(f"check it: cj eng5 verify {path}")


@eng5_app.command("anchor-align-test")
def anchor_align_test(
    batch_id: BatchId = None,
    system_prompt: Annotated[
        str | None, typer.Option(help="Who the judge is to be: a variant's number or name, or a file.")
    ] = None,
    rubric: Annotated[
        str | None, typer.Option(help="What makes an essay better: a variant's number or name, or a file.")
    ] = None,
    judge: JudgeOption = None,
    llm_provider: Provider = None,
    llm_model: Model = None,
    reasoning_effort: Effort = None,
    output_verbosity: Verbosity = None,
    max_comparisons: MaxComparisons = None,
    await_completion: Annotated[
        bool, typer.Option("--await-completion/--no-await", help="Judge in this process, or only submit.")
    ] = True,
    completion_timeout: Annotated[
        float, typer.Option(help="Seconds after which this process stops; the batch goes on without it.", min=1)
    ] = 1800.0,
    enforce_targets: Enforce = False,
    assets: Assets = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show Dagster's own log.")] = False,
) -> None:
    """Judge the anchors as if they were students, and report how far the judge agrees with the experts.

    No assignment, no grades, no effect on other batches. The judge reads the task, the prompts and two essays; it never
    learns a grade, or that an essay is an anchor.
    """
    from cj_pipeline.cli.run import CompletionTimeoutError, JobFailedError, await_batch
    from cj_pipeline.defs.partitions import add_partitions
    from cj_pipeline.eng5.anchor_align import align_request
    from cj_pipeline.eng5.artefact import RunMode
    from cj_pipeline.eng5.artefact_building import recorded_run, write_run
    from cj_pipeline.eng5.batches import DEFAULT_JUDGE, eng5_batch_id, eng5_scale, log_validation_state
    from cj_pipeline.eng5.prompt_variants import select_variant
    from cj_pipeline.logs import get_logger
    from cj_pipeline.workflow.registration import submit_batch

    mode = RunMode.ANCHOR_ALIGN_TEST
    batch = eng5_batch_id(batch_id, mode, datetime.now(UTC))
    with open_ledger() as (settings, ledger), dagster_instance() as instance:
        inventory = _read(settings, assets)
        prompts = settings.prompt_variants_dir
        request = align_request(
            inventory,
            eng5_scale(),
            batch_id=batch,
            judge=judge_name(judge, llm_provider, llm_model, prefix="--llm-") or DEFAULT_JUDGE,
            system=None if system_prompt is None else select_variant(prompts, "system", system_prompt),
            rubric=None if rubric is None else select_variant(prompts, "rubric", rubric),
            overrides={
                "max_comparisons": max_comparisons,
                "reasoning_effort": reasoning_effort,
                "output_verbosity": output_verbosity,
            },
        )
        done = submit_batch(ledger, settings, request)
        correlation_id = ledger.batch(batch).correlation_id
        log_validation_state(inventory, mode, batch_id=batch, correlation_id=correlation_id)
        add_partitions(instance, [batch])
        daemon = _daemon_is_alive(instance)
    state = "submitted" if done.created else "was submitted before, with the same content"
    say(
        f"batch {batch} {state}: {done.students} anchors as students, budget {done.total_budget} comparisons, judge "
        f"{done.judge}{' (SIMULATED)' if done.simulated else ''}"
    )
    for warning in done.warnings:
        say(f"note: {warning}")
    if not await_completion:
        say(
            "a daemon is alive and takes it up"
            if daemon
            else f"no daemon is alive here, so nothing happens until `make ui` or `cj run {batch}`"
        )
        say(f"then: cj eng5 report {batch}")
        return
    timed_out: CompletionTimeoutError | None = None
    failed: JobFailedError | None = None
    try:
        await_batch(batch, timeout=completion_timeout, verbose=verbose)
    except CompletionTimeoutError as error:
        timed_out = error
    except JobFailedError as error:
        failed = error
    with open_ledger() as (settings, ledger):
        # where targets are enforced, the run of a finished batch fails by a missed one: the report says by which
        if failed is not None and not ledger.batch(batch).status.has_grades:
            raise failed
        counts = ledger.state(batch)
        log = get_logger(batch_id=batch, correlation_id=correlation_id, runner_mode=mode.value)
        event = "runner_execution_complete" if timed_out is None else "collector_timeout"
        log.info(event, judged=counts.judged, failed=counts.failed, total_budget=counts.total_budget)
        run = recorded_run(ledger, batch, inventory, mode, timed_out=timed_out is not None)
        say(f"written: {write_run(run, settings.outputs_dir)}")
    if timed_out is not None and not counts.judged:
        raise timed_out
    _report(batch, enforce_targets=enforce_targets and timed_out is None, partial=timed_out is not None)
    if timed_out is not None:
        raise timed_out
    if failed is not None:
        raise failed


eng5_app.command()(verify)
for _command in (matrix, leaderboard):
    eng5_app.command()(_command)


@eng5_app.command()
def report(
    batch: Annotated[str, typer.Argument(help="A batch that anchor-align-test made.", show_default=False)],
    enforce_targets: Enforce = False,
) -> None:
    """Write the alignment report of a batch again, from the ledger. No call is made."""
    _report(batch, enforce_targets=enforce_targets, partial=False)


def _read(settings: "CJSettings", assets: Path | None) -> "Inventory":
    from cj_pipeline.eng5.batches import eng5_scale
    from cj_pipeline.eng5.inventory import read_inventory

    return read_inventory(assets or settings.effective_eng5_assets_dir, eng5_scale())


def _report(batch: str, *, enforce_targets: bool, partial: bool) -> None:
    from cj_pipeline.core.alignment import AlignmentTargets
    from cj_pipeline.eng5.anchor_align import enforce, ledger_report, write_report
    from cj_pipeline.eng5.batches import eng5_scale

    with open_ledger(quiet=True) as (settings, ledger):
        made = ledger_report(ledger, batch, eng5_scale(), AlignmentTargets())
    written = write_report(made, settings.outputs_dir / "eng5" / batch)
    _report_text(made, partial=partial)
    for path in written:
        say(f"written: {path}")
    if not partial and (enforce_targets or settings.enforce_targets):
        enforce(batch, made.verdicts)


def _report_text(made: "AlignmentReport", *, partial: bool) -> None:
    say(f"judge {made.judge}, {made.alignment.judgments} judgments{' so far' if partial else ''}, against experts:")
    for verdict in made.verdicts:
        say(f"  {'met   ' if verdict.met else 'MISSED'}  {verdict.text}")


def _daemon_is_alive(instance: Any) -> bool:
    """Whether a sensor daemon on this instance showed life within the last minute."""
    heartbeat = instance.get_daemon_heartbeats().get("SENSOR")
    return heartbeat is not None and time.time() - heartbeat.timestamp < 60


def _plan_text(made: "Plan") -> None:
    from cj_pipeline.cli.render import plain_table
    from cj_pipeline.cli.simulate import budget_rows_text, measures_text
    from cj_pipeline.eng5.batches import manifest_checksum

    inventory, checksums = made.inventory, made.inventory.checksums
    say(f"assets {inventory.root}: sound, {len(checksums)} files, checksum {manifest_checksum(checksums)}")
    anchors = [
        {"anchor": one.anchor_id, "grade": one.grade, "words": one.document.word_count, "file": one.document.path}
        for one in inventory.anchors
    ]
    students = [
        {"student": one.essay_id, "words": one.document.word_count, "file": one.document.path}
        for one in inventory.students
    ]
    console.print(plain_table(anchors))
    console.print(plain_table(students))
    essays = len(anchors) + len(students)
    say(
        f"{len(anchors)} anchors, {len(students)} students: {essays * (essays - 1) // 2} pairs; budget {made.budget} "
        f"comparisons, at most {made.worst_case_calls} calls; judge {made.judge}"
        f"{' (SIMULATED)' if made.simulated else ''}; stop rule {made.stop_rule}"
    )
    for warning in made.warnings:
        say(f"note: {warning}")
    cost = made.cost
    if made.accuracy is not None:
        accuracy = made.accuracy
        low, middle, high = accuracy.stopped
        say(
            f"expected accuracy, from {accuracy.replications} simulated exams ({accuracy.exam.step:g} logits a grade; "
            "`cj simulate` does more):"
        )
        budget_rows_text(accuracy.rows, None if cost is None else cost.per_judgment)
        why = ", ".join(f"{reason} ({count})" for reason, count in accuracy.reasons.items())
        say(f"judging ends after {middle:.0f} judgments (median; 10-90 %: {low:.0f} to {high:.0f}), because {why}")
        say(f"at that point: {measures_text(accuracy.at_stop)}")
    if cost is None:
        say("expected cost: none, nothing is called" if made.simulated else "expected cost: unknown, without a price")
        return
    at_stop = "" if cost.at_stop is None else f", {cost.at_stop:.2f} when the stop rule ends it (median)"
    bound = "" if cost.never_more_than is None else f"; never more than {cost.never_more_than:.2f}"
    say(
        f"expected cost in US dollars, without cache and long reasoning: {cost.per_judgment:.5f} a judgment{at_stop}, "
        f"{cost.at_budget:.2f} for the whole budget{bound}"
    )
