"""`cj eng5`: the arguments of the ENG5 programme's modes. What they do is in `cj_pipeline.eng5.handlers`."""

from dataclasses import replace as replace_fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cj_pipeline.cli.arguments import judge_name
from cj_pipeline.cli.context import print_json, say
from cj_pipeline.cli.eng5_calibration import add_calibration_commands
from cj_pipeline.cli.eng5_matrix import leaderboard, matrix
from cj_pipeline.cli.eng5_runs import collect, register, report, submit_and_see_through
from cj_pipeline.cli.eng5_verify import verify

if TYPE_CHECKING:
    from cj_pipeline.eng5.handlers import Desk

eng5_app = typer.Typer(
    no_args_is_help=True,
    help="The ENG5 programme: plan it, judge and grade its students, and hold judges against its experts.",
)

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
SystemPrompt = Annotated[
    str | None, typer.Option(help="Who the judge is to be: a variant's number or name, or a file.")
]
Rubric = Annotated[str | None, typer.Option(help="What makes an essay better: a variant's number or name, or a file.")]
MaxComparisons = Annotated[int | None, typer.Option(help="The batch's budget, in comparisons.", min=1)]
Await = Annotated[bool, typer.Option("--await-completion/--no-await", help="Judge in this process, or only submit.")]
Timeout = Annotated[
    float, typer.Option(help="Seconds after which this process stops; the batch goes on without it.", min=1)
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show Dagster's own log.")]
AssignmentId = Annotated[str, typer.Option(help="Assignment whose anchors carry the grades.")]


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
    from cj_pipeline.cli.eng5_text import plan_text
    from cj_pipeline.cli.simulate import exam_progress
    from cj_pipeline.eng5.handlers import PlanHandler, PlanOptions
    from cj_pipeline.eng5.plan import plan_json

    options = PlanOptions(
        batch_id=batch_id,
        assets=_folder(assets),
        max_comparisons=max_comparisons,
        judge=judge_name(judge, llm_provider, llm_model, prefix="--llm-"),
        reasoning_effort=reasoning_effort,
        output_verbosity=output_verbosity,
        replications=replications,
    )
    with exam_progress(replications) as advance:
        done = PlanHandler().run(replace_fields(_desk(), progress=advance), options)
    assert done.plan is not None
    if as_json:
        said = {"batch_id": done.batch_id, "correlation_id": done.correlation_id, "mode": done.mode.value}
        print_json(said | plan_json(done.plan))
    else:
        plan_text(done.plan)


@eng5_app.command("dry-run")
def dry_run(
    batch_id: BatchId = None,
    assets: Assets = None,
    max_comparisons: MaxComparisons = None,
    seed: Annotated[int | None, typer.Option(help="Of the stubbed answers. [default: the pairing's]", min=0)] = None,
) -> None:
    """Write the complete run artefact with stubbed judgments. No judge is called, and the ledger stays as it is."""
    from cj_pipeline.eng5.handlers import DryRunHandler, DryRunOptions

    options = DryRunOptions(batch_id=batch_id, assets=_folder(assets), max_comparisons=max_comparisons, seed=seed)
    done = DryRunHandler().run(_desk(), options)
    say(f"batch {done.batch_id}: STUBBED judgments, no judge was called; the numbers say nothing about any pupil")
    say(f"written: {done.path}")
    say(f"check it: cj eng5 verify {done.path}")


@eng5_app.command()
def execute(
    batch_id: BatchId = None,
    assignment_id: AssignmentId = "eng5-np-2016",
    system_prompt: SystemPrompt = None,
    rubric: Rubric = None,
    judge: JudgeOption = None,
    llm_provider: Provider = None,
    llm_model: Model = None,
    reasoning_effort: Effort = None,
    output_verbosity: Verbosity = None,
    max_comparisons: MaxComparisons = None,
    await_completion: Await = True,
    completion_timeout: Timeout = 1800.0,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Add a revision if the folder differs from the registered assignment."),
    ] = False,
    assets: Assets = None,
    verbose: Verbose = False,
) -> None:
    """Judge and grade the students against the assignment's anchors, and write the run artefact.

    Everything needed is looked at first, as `cj doctor` does. The folder's anchors are registered, or held against the
    registered ones; any difference ends it before anything is spent. All students take part: --max-comparisons is the
    batch's budget.
    """
    from cj_pipeline.eng5.handlers import ExecuteHandler, ExecuteOptions

    options = ExecuteOptions(
        batch_id=batch_id,
        assets=_folder(assets),
        assignment_id=assignment_id,
        system_prompt=system_prompt,
        rubric=rubric,
        judge=judge_name(judge, llm_provider, llm_model, prefix="--llm-"),
        reasoning_effort=reasoning_effort,
        output_verbosity=output_verbosity,
        max_comparisons=max_comparisons,
        replace=replace,
    )
    submit_and_see_through(
        ExecuteHandler(),
        options,
        _desk(),
        timeout=completion_timeout if await_completion else None,
        enforce_targets=False,
        verbose=verbose,
    )


@eng5_app.command("anchor-align-test")
def anchor_align_test(
    batch_id: BatchId = None,
    system_prompt: SystemPrompt = None,
    rubric: Rubric = None,
    judge: JudgeOption = None,
    llm_provider: Provider = None,
    llm_model: Model = None,
    reasoning_effort: Effort = None,
    output_verbosity: Verbosity = None,
    max_comparisons: MaxComparisons = None,
    await_completion: Await = True,
    completion_timeout: Timeout = 1800.0,
    enforce_targets: Annotated[
        bool,
        typer.Option("--enforce-targets", help="Exit 1 if an alignment target is missed, as CJ_ENFORCE_TARGETS does."),
    ] = False,
    assets: Assets = None,
    verbose: Verbose = False,
) -> None:
    """Judge the anchors as if they were students, and report how far the judge agrees with the experts.

    No assignment, no grades, no effect on other batches. The judge reads the task, the prompts and two essays; it never
    learns a grade, or that an essay is an anchor.
    """
    from cj_pipeline.eng5.handlers import AlignHandler, AlignOptions

    options = AlignOptions(
        batch_id=batch_id,
        assets=_folder(assets),
        system_prompt=system_prompt,
        rubric=rubric,
        judge=judge_name(judge, llm_provider, llm_model, prefix="--llm-"),
        reasoning_effort=reasoning_effort,
        output_verbosity=output_verbosity,
        max_comparisons=max_comparisons,
    )
    submit_and_see_through(
        AlignHandler(),
        options,
        _desk(),
        timeout=completion_timeout if await_completion else None,
        enforce_targets=enforce_targets,
        verbose=verbose,
    )


eng5_app.command()(register)
eng5_app.command()(report)
eng5_app.command()(collect)
eng5_app.command()(verify)
add_calibration_commands(eng5_app)
for _command in (matrix, leaderboard):
    eng5_app.command()(_command)


def _folder(assets: Path | None) -> str | None:
    return None if assets is None else str(assets)


def _desk() -> "Desk":
    """The settings and the clock of this command. No ledger is opened: opening one would make it."""
    from contextlib import closing

    from cj_pipeline.cli.doctor import findings_text
    from cj_pipeline.eng5.handlers import Desk
    from cj_pipeline.ledger import Ledger
    from cj_pipeline.logs import configure_logging
    from cj_pipeline.settings import load_settings

    settings = load_settings()
    configure_logging(settings.log_format)
    return Desk(
        settings=settings,
        open_ledger=lambda: closing(Ledger.open(settings.effective_ledger_url)),
        now=datetime.now(UTC),
        told=findings_text,
    )
