"""Mode `anchor-align-test`: the anchors judged as if they were students, and what the experts would say to it.

Here: the batch's request, what is looked at before it is stored, and the alignment report as the ledger tells it. Not
here: how a batch is submitted and run (`workflow`, `cli`), the figures (`core.alignment`), the form of the report
(`alignment_report`).

The batch has no assignment, so no anchor of it is one to the program, no grade is projected, and nothing of it reaches
the calibration of other batches. Expert grades travel beside the essays, as `known_grade`, for the report alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cj_pipeline.core.alignment import Alignment, AlignmentTargets, TargetVerdict, measure_alignment
from cj_pipeline.core.errors import CJError, InputError
from cj_pipeline.core.grade_scale import GradeScale
from cj_pipeline.core.models import BatchKind, ComparisonStatus, Essay
from cj_pipeline.core.scoring import compute_bt_scores_and_se
from cj_pipeline.eng5.alignment_report import AlignmentReport, ReportedPrompt, report_html, report_markdown
from cj_pipeline.eng5.inventory import Inventory
from cj_pipeline.eng5.prompt_variants import PromptVariant, variant_overrides
from cj_pipeline.judges.simulated import grade_quality
from cj_pipeline.ledger import Ledger
from cj_pipeline.ledger.records import BatchRecord
from cj_pipeline.settings import BatchOverrides, BatchTunables, CJSettings, effective_tunables, parse_overrides
from cj_pipeline.whole_files import write_whole
from cj_pipeline.workflow.documents import text_sha256
from cj_pipeline.workflow.intake import BatchRequest, EssaySubmission
from cj_pipeline.workflow.judging import batch_instructions
from cj_pipeline.workflow.preflight import Finding, look_at_disk, look_at_judge, look_at_ledger

REPORT_NAME: Final = "alignment_report"

SYSTEM: Final = "System prompt"
TASK: Final = "What the students were asked"
RUBRIC: Final = "Rubric"
"""The roles of the prompts that a judge is given, as reports name them."""


class TargetsMissedError(CJError):
    """An alignment target was missed where targets are enforced."""


# --- the batch ---------------------------------------------------------------------------------------------------


def align_request(
    inventory: Inventory,
    scale: GradeScale,
    *,
    batch_id: str,
    judge: str,
    system: PromptVariant | None,
    rubric: PromptVariant | None,
    overrides: Mapping[str, Any],
) -> BatchRequest:
    """The batch that judges an inventory's anchors as students.

    Args:
        inventory: whose anchors are judged, and whose task and judge prompt the judge reads.
        scale: of the expert grades; it also places the anchors for a simulated judge.
        batch_id: of the batch.
        judge: a simulated profile, or PROVIDER/MODEL.
        system: who the judge is to be; the program's default if None.
        rubric: what makes one essay better; the assets' judge prompt if None.
        overrides: further settings the batch brings along, by field; None counts as not given.

    Raises:
        InputError: an override that may not be so.
    """
    prompts: dict[str, Any] = {
        "student_prompt": inventory.instructions.text,
        "judge_rubric": inventory.prompt.text,
        "judge_rubric_name": Path(inventory.prompt.path).name,
        **variant_overrides(system, rubric),
    }
    stated = {name: value for name, value in overrides.items() if value is not None}
    return BatchRequest(
        batch_id=batch_id,
        assignment_id=None,
        kind=BatchKind.ANCHOR_ALIGN,
        judge=judge,
        overrides=parse_overrides(stated | prompts, where="options"),
        students=tuple(
            sorted(
                (
                    EssaySubmission(
                        essay_id=anchor.anchor_id,
                        text=anchor.document.text,
                        quality=_quality(scale, anchor.grade),
                        source_name=anchor.document.path,
                        known_grade=anchor.grade,
                    )
                    for anchor in inventory.anchors
                ),
                key=lambda essay: essay.essay_id,
            )
        ),
    )


def look_before_aligning(settings: CJSettings, judge: str, overrides: BatchOverrides) -> list[Finding]:
    """Ledger, disk and judge, as they are. Nothing is created, stored, judged or paid.

    Args:
        settings: of the process.
        judge: who would judge.
        overrides: what the batch would bring along.
    """
    return [
        look_at_ledger(settings),
        look_at_disk(settings),
        *look_at_judge(settings, effective_tunables(settings, overrides), judge),
    ]


def _quality(scale: GradeScale, grade: str) -> float:
    # `grade_quality` counts from the lowest grade; the label below it is one step further down
    return -1.0 if grade == scale.below_lowest else grade_quality(scale.grades, grade)


# --- its report --------------------------------------------------------------------------------------------------


def can_be_reported(ledger: Ledger, batch: BatchRecord) -> bool:
    """Whether judge and experts can be compared: anchors judged as students, graded, and something judged."""
    return (
        batch.kind is BatchKind.ANCHOR_ALIGN
        and all(essay.known_grade is not None for essay in ledger.essays(batch.batch_id))
        and ledger.state(batch.batch_id).judged > 0
    )


def ledger_alignment(ledger: Ledger, batch_id: str, scale: GradeScale) -> Alignment:
    """How the judgments of a batch agree with the experts, from the ledger alone.

    Raises:
        UnknownBatchError: no such batch.
        InputError: it is of another kind, has no expert grades, or nothing of it was judged yet.
    """
    batch = ledger.batch(batch_id)
    if batch.kind is not BatchKind.ANCHOR_ALIGN:
        raise InputError(
            f"batch {batch_id} is of kind {batch.kind.value}: an alignment report is about a batch of kind "
            f"{BatchKind.ANCHOR_ALIGN.value}, which `cj eng5 anchor-align-test` makes"
        )
    grades = _expert_grades(batch_id, ledger.essays(batch_id))
    comparisons = ledger.comparisons(batch_id)
    if not any(comparison.status is ComparisonStatus.JUDGED for comparison in comparisons):
        raise InputError(f"batch {batch_id}: nothing of it has been judged yet: `cj run {batch_id}` first")
    tunables = BatchTunables.model_validate(batch.settings)
    fitted = compute_bt_scores_and_se(comparisons, list(grades), tunables)
    seed = tunables.pair_generation_seed
    return measure_alignment(comparisons, grades, fitted.scores, fitted.ses_uncapped, scale, seed=seed)


def ledger_report(ledger: Ledger, batch_id: str, scale: GradeScale, targets: AlignmentTargets) -> AlignmentReport:
    """The alignment report of a batch, from the ledger alone: the same judgments give the same report.

    Raises:
        UnknownBatchError, InputError: see `ledger_alignment`.
    """
    alignment = ledger_alignment(ledger, batch_id, scale)
    batch = ledger.batch(batch_id)
    tunables = BatchTunables.model_validate(batch.settings)
    return AlignmentReport(
        batch_id=batch_id,
        judge=f"SIMULATED ({batch.judge_profile})" if batch.simulated else f"{batch.provider}/{batch.model}",
        simulated=batch.simulated,
        alignment=alignment,
        targets=targets,
        facts=_facts(ledger, batch, tunables),
        prompts=reported_prompts(ledger, batch, tunables),
        justifications={
            record.comparison_id: record.justification
            for record in ledger.comparison_records(batch_id)
            if record.justification is not None
        },
    )


def _expert_grades(batch_id: str, essays: list[Essay]) -> dict[str, str]:
    grades = {essay.essay_id: essay.known_grade for essay in essays if essay.known_grade is not None}
    without = [essay.essay_id for essay in essays if essay.essay_id not in grades]
    if without:
        raise InputError(
            f"batch {batch_id}: no expert grade is recorded for {', '.join(without[:5])}"
            f"{' and more' if len(without) > 5 else ''}: submit the anchors with `cj eng5 anchor-align-test`"
        )
    return grades


def _facts(ledger: Ledger, batch: BatchRecord, tunables: BatchTunables) -> list[tuple[str, str]]:
    state = ledger.state(batch.batch_id)
    cost = ledger.cost_usd(batch.batch_id)
    records = ledger.comparison_records(batch.batch_id)
    ended = f"{batch.status.value} ({batch.stop_reason})"
    unfinished = f"no: {batch.status.value}, so this is about a part of the judgments"
    return [
        ("ended", ended if batch.status.is_final else unfinished),
        ("budget", f"{state.submitted} of {batch.total_budget} comparisons submitted, {state.failed} failed"),
        ("stop rule", tunables.stop_rule.value),
        ("reasoning effort", tunables.reasoning_effort or "the model's own"),
        ("output verbosity", tunables.output_verbosity or "the model's own"),
        ("tokens", f"{sum(r.tokens_in for r in records)} in, {sum(r.tokens_out for r in records)} out"),
        ("cost", "unknown: a price is missing" if cost is None else f"{cost:.4f} US dollars"),
        ("program version", batch.code_version),
        ("correlation id", batch.correlation_id),
    ]


def reported_prompts(ledger: Ledger, batch: BatchRecord, tunables: BatchTunables) -> list[ReportedPrompt]:
    """What the judge of a batch was given besides the essays: system prompt, task and rubric, those that are there."""
    given = batch_instructions(ledger, batch)
    default = "the batch's own" if tunables.system_prompt else "the program's default"
    parts = [
        (SYSTEM, tunables.system_prompt_name or default, given.system_prompt),
        (TASK, "the batch's own", given.student_prompt),
        (RUBRIC, tunables.judge_rubric_name or "the batch's own", given.rubric),
    ]
    return [ReportedPrompt(role, name, text, text_sha256(text)) for role, name, text in parts if text]


def write_report(report: AlignmentReport, folder: Path) -> list[Path]:
    """Write the report's Markdown, picture and HTML into a folder, which is made; the paths, Markdown first.

    Raises:
        InputError: the folder cannot be written.
    """
    picture = f"{REPORT_NAME}.png"
    contents = {
        f"{REPORT_NAME}.md": report_markdown(report, picture=picture).encode(),
        f"{REPORT_NAME}.html": report_html(report).encode(),
        picture: report.picture(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_whole(folder / name, lambda stream, content=content: stream.write(content))  # type: ignore[misc]
    except OSError as error:
        raise InputError(
            f"{folder}: the report cannot be written ({error.strerror}): make the folder writable, or set CJ_DATA_DIR"
        ) from None
    return [folder / name for name in contents]


def enforce(batch_id: str, verdicts: tuple[TargetVerdict, ...]) -> None:
    """Raise where a target was missed.

    Raises:
        TargetsMissedError: naming each.
    """
    missed = [verdict.text for verdict in verdicts if not verdict.met]
    if missed:
        lines = "\n".join(f"  - {text}" for text in missed)
        count = "1 target" if len(missed) == 1 else f"{len(missed)} targets"
        raise TargetsMissedError(f"batch {batch_id} missed {count}:\n{lines}")
