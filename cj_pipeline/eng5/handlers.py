"""The modes of the ENG5 programme, each a handler behind one protocol: `cj eng5` and the Dagster jobs both call these.

Here: what a mode is told (its options), what it does up to a stored batch or a finished file, and how a run begins and
ends. Not here: running a batch (`cli`, `defs`), and what stands behind each mode (`plan`, `dry_run`,
`execute`, `anchor_align`).
"""

import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from pydantic import Field

from cj_pipeline.core.models import Value
from cj_pipeline.eng5.anchor_align import align_request, look_before_aligning
from cj_pipeline.eng5.artefact import RunMode
from cj_pipeline.eng5.artefact_building import recorded_run, require_own_folder, write_run
from cj_pipeline.eng5.batches import (
    DEFAULT_JUDGE,
    LookMode,
    Mode,
    eng5_batch_id,
    eng5_scale,
    log_validation_state,
)
from cj_pipeline.eng5.dry_run import dry_run
from cj_pipeline.eng5.execute import (
    DEFAULT_ASSIGNMENT,
    execute_request,
    folder_assignment,
    look_before_executing,
)
from cj_pipeline.eng5.inventory import Inventory, read_inventory
from cj_pipeline.eng5.plan import Plan, make_plan
from cj_pipeline.eng5.prompt_variants import PromptVariant, VariantKind, select_variant
from cj_pipeline.ledger import Ledger
from cj_pipeline.logs import get_logger
from cj_pipeline.settings import BatchOverrides, CJSettings
from cj_pipeline.workflow.intake import BatchRequest
from cj_pipeline.workflow.preflight import Finding, require_ready
from cj_pipeline.workflow.registration import Submission, register_assignment, require_sound, submit_batch

# --- what a mode is told -----------------------------------------------------------------------------------------


class ModeOptions(Value):
    """What every mode can be told. None: the default."""

    batch_id: str | None = Field(None, description="Id of the batch; by default eng5-MODE-UTC time.")
    assets: str | None = Field(None, description="Folder with the ENG5 material; by default CJ_ENG5_ASSETS_DIR.")
    max_comparisons: int | None = Field(None, ge=1, description="The batch's budget, in comparisons.")


class JudgedOptions(ModeOptions):
    """What a mode is told of the judge."""

    judge: str | None = Field(None, description="PROVIDER/MODEL, or a simulated judge; by default eng5-anchor.")
    reasoning_effort: str | None = Field(None, description="How much the model reasons: none, low, medium or high.")
    output_verbosity: str | None = Field(None, description="How much the model writes: low, medium or high.")

    @property
    def judge_or_default(self) -> str:
        """The judge's name."""
        return self.judge or DEFAULT_JUDGE

    @property
    def overrides(self) -> dict[str, Any]:
        """What the batch brings along, prompts aside; None where nothing was said."""
        return {
            "max_comparisons": self.max_comparisons,
            "reasoning_effort": self.reasoning_effort,
            "output_verbosity": self.output_verbosity,
        }


class PlanOptions(JudgedOptions):
    """Options of `plan`."""

    replications: int = Field(3, ge=0, description="Simulated exams behind the expected accuracy; 0 leaves it out.")


class DryRunOptions(ModeOptions):
    """Options of `dry-run`."""

    seed: int | None = Field(None, ge=0, description="Of the stubbed answers; by default the pairing's.")


class AlignOptions(JudgedOptions):
    """Options of `anchor-align-test`."""

    system_prompt: str | None = Field(None, description="Who the judge is to be: a variant's number, name or a file.")
    rubric: str | None = Field(None, description="What makes an essay better: a variant's number, name or a file.")


class ExecuteOptions(AlignOptions):
    """Options of `execute`."""

    assignment_id: str = Field(DEFAULT_ASSIGNMENT, description="Assignment whose anchors carry the grades.")
    replace: bool = Field(
        False, description="Register a new revision if the folder's task, prompt or anchors differ from the registered."
    )


# --- what a mode does --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Desk:
    """What a handler works with.

    Attributes:
        settings: of the process.
        open_ledger: opens the ledger; a mode that needs none leaves it alone, for opening one makes it.
        now: aware.
        progress: told how many simulated exams were played.
        told: shown what was looked at, as it is found.
    """

    settings: CJSettings
    open_ledger: Callable[[], AbstractContextManager[Ledger]]
    now: datetime
    progress: Callable[[int], None] = lambda _done: None
    told: Callable[[list[Finding]], None] = lambda _findings: None


@dataclass(frozen=True)
class Outcome:
    """What a handler did.

    Attributes:
        mode, batch_id, correlation_id: as in the log.
        inventory: the material.
        plan: of mode `plan`.
        submission: of the modes that submit a batch, which still has to be run.
        path: of the artefact; of a submitted batch it says so far only what was asked.
    """

    mode: Mode
    batch_id: str
    correlation_id: str
    inventory: Inventory
    plan: Plan | None = None
    submission: Submission | None = None
    path: Path | None = None


Options = TypeVar("Options", bound=ModeOptions, contravariant=True)


class ModeHandler(Protocol[Options]):
    """A mode of the programme."""

    @property
    def mode(self) -> Mode:
        """Its name."""
        ...

    @property
    def options(self) -> type[ModeOptions]:
        """What `run` can be told."""
        ...

    def run(self, desk: Desk, options: Options) -> Outcome:
        """Do it, up to a stored batch or a finished file.

        Raises:
            CJError: everything that stands against it; nothing was spent.
        """
        ...


class PlanHandler:
    """`plan`: inventory, validation, budget, expected accuracy and cost. Nothing is stored."""

    mode: Final = LookMode.PLAN
    options: Final = PlanOptions

    def run(self, desk: Desk, options: PlanOptions) -> Outcome:
        """See `plan.make_plan`."""
        batch_id, inventory = _batch_and_inventory(desk, self.mode, options)
        correlation_id = str(uuid.uuid4())
        made = make_plan(
            desk.settings,
            inventory,
            eng5_scale(),
            judge=options.judge_or_default,
            overrides=options.overrides,
            replications=options.replications,
            today=desk.now.date(),
            progress=desk.progress,
        )
        log_validation_state(inventory, self.mode, batch_id=batch_id, correlation_id=correlation_id)
        return Outcome(self.mode, batch_id, correlation_id, inventory, plan=made)


class DryRunHandler:
    """`dry-run`: the complete artefact with stubbed judgments. No judge is called, and the ledger stays as it is."""

    mode: Final = RunMode.DRY_RUN
    options: Final = DryRunOptions

    def run(self, desk: Desk, options: DryRunOptions) -> Outcome:
        """See `dry_run.dry_run`."""
        batch_id, inventory = _batch_and_inventory(desk, self.mode, options)
        run = dry_run(
            inventory,
            eng5_scale(),
            desk.settings,
            batch_id=batch_id,
            overrides=BatchOverrides(max_comparisons=options.max_comparisons),
            seed=options.seed,
        )
        path = write_run(run, desk.settings.outputs_dir)
        correlation_id = run.results.batch.correlation_id
        log_validation_state(
            inventory,
            self.mode,
            batch_id=batch_id,
            correlation_id=correlation_id,
            partial_data=run.partial_data,
        )
        return Outcome(self.mode, batch_id, correlation_id, inventory, path=path)


class AlignHandler:
    """`anchor-align-test`: everything looked at, the anchors submitted as if they were students."""

    mode: Final = RunMode.ANCHOR_ALIGN_TEST
    options: Final = AlignOptions

    def run(self, desk: Desk, options: AlignOptions) -> Outcome:
        """See `anchor_align`. A judge that cannot be asked ends it before the batch id is used up."""
        batch_id, inventory = _batch_and_inventory(desk, self.mode, options)
        request = align_request(
            inventory,
            eng5_scale(),
            batch_id=batch_id,
            judge=options.judge_or_default,
            system=_variant(desk, "system", options.system_prompt),
            rubric=_variant(desk, "rubric", options.rubric),
            overrides=options.overrides,
        )
        require_sound(desk.settings, request)
        _look(desk, look_before_aligning(desk.settings, options.judge_or_default, request.overrides))
        with desk.open_ledger() as ledger:
            return submit_run(ledger, desk.settings, self.mode, request, inventory, generated_at=desk.now)


class ExecuteHandler:
    """`execute`: everything looked at, anchors registered or verified, students submitted."""

    mode: Final = RunMode.EXECUTE
    options: Final = ExecuteOptions

    def run(self, desk: Desk, options: ExecuteOptions) -> Outcome:
        """See `execute`. Any problem with an anchor, the judge or the ledger ends it before anything is spent."""
        batch_id, inventory = _batch_and_inventory(desk, self.mode, options)
        assignment = folder_assignment(inventory, eng5_scale(), options.assignment_id)
        system, rubric = _variant(desk, "system", options.system_prompt), _variant(desk, "rubric", options.rubric)
        request = execute_request(
            inventory,
            batch_id=batch_id,
            assignment_id=options.assignment_id,
            judge=options.judge_or_default,
            system=system,
            rubric=rubric,
            overrides=options.overrides,
        )
        require_sound(desk.settings, request)
        findings = look_before_executing(
            desk.settings, assignment, options.judge_or_default, request.overrides, may_replace=options.replace
        )
        _look(desk, findings)
        with desk.open_ledger() as ledger:
            register_assignment(ledger, assignment, replace=options.replace)
            return submit_run(ledger, desk.settings, self.mode, request, inventory, generated_at=desk.now)


HANDLERS: Final[tuple[ModeHandler[Any], ...]] = (PlanHandler(), DryRunHandler(), ExecuteHandler(), AlignHandler())


# --- the beginning and the end of a run ------------------------------------------------------------------------------


def submit_run(
    ledger: Ledger,
    settings: CJSettings,
    mode: RunMode,
    request: BatchRequest,
    inventory: Inventory,
    *,
    generated_at: datetime | None = None,
) -> Outcome:
    """Submit a batch, log what it stands on, and write its artefact, which says so far only what was asked.

    Raises:
        CJError: see `submit_batch`, `recorded_run` and `write_run`.
    """
    done = submit_batch(ledger, settings, request)
    run = recorded_run(ledger, request.batch_id, inventory, mode, generated_at=generated_at)
    correlation_id = run.results.batch.correlation_id
    log_validation_state(
        inventory,
        mode,
        batch_id=request.batch_id,
        correlation_id=correlation_id,
        partial_data=run.partial_data,
    )
    path = write_run(run, settings.outputs_dir)
    return Outcome(mode, request.batch_id, correlation_id, inventory, submission=done, path=path)


def finish_run(
    ledger: Ledger, settings: CJSettings, batch_id: str, inventory: Inventory, mode: RunMode, *, timed_out: bool = False
) -> Path:
    """Write the artefact of a batch that was run, and log how its run ended; the artefact's path.

    A batch that goes on has not completed: unless it timed out, nothing is logged of it.

    Raises:
        CJError: see `recorded_run` and `write_run`.
    """
    run = recorded_run(ledger, batch_id, inventory, mode, timed_out=timed_out)
    path = write_run(run, settings.outputs_dir)
    if timed_out or not run.partial_data:
        counts, batch = ledger.state(batch_id), run.results.batch
        log = get_logger(batch_id=batch_id, correlation_id=batch.correlation_id, runner_mode=mode.value)
        log.info(
            "collector_timeout" if timed_out else "runner_execution_complete",
            judged=counts.judged,
            failed=counts.failed,
            total_budget=counts.total_budget,
            status=batch.status.value,
            stop_reason=batch.stop_reason,
            partial_data=run.partial_data,
            timeout=timed_out,
        )
    return path


# --- what they share ---------------------------------------------------------------------------------------------


def _batch_and_inventory(desk: Desk, mode: Mode, options: ModeOptions) -> tuple[str, Inventory]:
    batch_id = eng5_batch_id(options.batch_id, mode, desk.now)
    if isinstance(mode, RunMode):
        require_own_folder(desk.settings.outputs_dir, batch_id, mode)
    folder = Path(options.assets) if options.assets else desk.settings.effective_eng5_assets_dir
    return batch_id, read_inventory(folder, eng5_scale())


def _variant(desk: Desk, kind: VariantKind, choice: str | None) -> PromptVariant | None:
    return None if choice is None else select_variant(desk.settings.prompt_variants_dir, kind, choice)


def _look(desk: Desk, findings: list[Finding]) -> None:
    desk.told(findings)
    require_ready(findings)
