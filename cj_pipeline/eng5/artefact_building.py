"""From a batch to its run artefact, and to the batch's folder under `outputs/eng5/`.

Here: putting together what the ledger (`workflow.results`) and the inventory say, the files of the manifest, and
writing them. Not here: the artefact's form (`artefact`), scores and grades (`workflow.results`), the stubbed run of a
dry run (`dry_run`), and checking (`artefact_verification`).

The folder of a batch::

    requests/batch.json                         the request as submitted
    events/comparisons/<comparison id>.json     one per comparison with an outcome
    events/assessment_results/batch.json        scale and grades, once the batch has ended
    events/completions/batch.json               how it ended, once it has
    assessment_run.<mode>.json                  the artefact, whose manifest has all of the above

Every file is whole at any time, and the artefact is written last. No file holds an essay's text.
"""

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import polars as pl
from pydantic import ValidationError

from cj_pipeline.core.errors import CJError, InputError, RequestError
from cj_pipeline.core.models import AttemptOutcome, BatchKind, ComparisonStatus, check_batch_id
from cj_pipeline.eng5.artefact import (
    SCHEMA_VERSION,
    ComparisonOutcome,
    Diagnostics,
    EssayOutcome,
    FileDigest,
    GradeOutcome,
    InputAnchor,
    InputFile,
    InputStudent,
    InputText,
    JudgeFacts,
    JudgePrompts,
    ObservedCounts,
    PromptReference,
    QualityFlags,
    RunArtefact,
    RunCosts,
    RunEnvironment,
    RunInputs,
    RunMetadata,
    RunMode,
    RunnerStatus,
    RunResults,
    RunValidation,
    ScaleRow,
    TokenCount,
)
from cj_pipeline.eng5.inventory import Inventory, InventoryDocument
from cj_pipeline.judges.prompts import JudgeInstructions
from cj_pipeline.ledger import Ledger
from cj_pipeline.settings import BatchTunables
from cj_pipeline.whole_files import write_whole
from cj_pipeline.workflow import frames
from cj_pipeline.workflow.documents import text_sha256
from cj_pipeline.workflow.judging import batch_instructions
from cj_pipeline.workflow.registration import code_version
from cj_pipeline.workflow.results import BatchResults, collect_results, summary_by_scope

REQUEST_FILE: Final = "requests/batch.json"
RESULT_FILE: Final = "events/assessment_results/batch.json"
COMPLETION_FILE: Final = "events/completions/batch.json"
COMPARISON_EVENTS: Final = "events/comparisons"
REQUEST_FIELDS: Final = (
    *("batch_id", "kind", "correlation_id", "assignment_id", "assignment_revision", "created_at"),
    *("total_budget", "judge", "judge_overrides", "settings"),
)
COMPLETION_FIELDS: Final = ("status", "stop_reason", "completed_at")
MANIFEST_FOLDERS: Final = ("requests", COMPARISON_EVENTS, "events/assessment_results", "events/completions")

_KINDS: Final = {
    RunMode.EXECUTE: BatchKind.ASSESSMENT,
    RunMode.ANCHOR_ALIGN_TEST: BatchKind.ANCHOR_ALIGN,
}
_PACKAGES: Final = ("numpy", "scipy", "polars", "pydantic")


class ArtefactError(CJError):
    """A batch's record is not one that an artefact may hold."""


@dataclass(frozen=True)
class RecordedRun:
    """All that an artefact is made from.

    Attributes:
        mode: what the run was.
        results: the batch, with its tables as of one reading.
        instructions: what the judge was told besides the essays.
        inventory: the assets folder.
        grade_scale: name of the scale.
        grade_scale_definition: the scale, if it is not built in.
        generated_at: aware.
        timed_out: whether the runner stopped waiting for the batch.
    """

    mode: RunMode
    results: BatchResults
    instructions: JudgeInstructions = field(repr=False)
    inventory: Inventory
    grade_scale: str
    grade_scale_definition: dict[str, Any] | None
    generated_at: datetime
    timed_out: bool = False

    @property
    def partial_data(self) -> bool:
        """Whether the batch has not ended."""
        return not self.results.batch.status.is_final


def recorded_run(
    ledger: Ledger,
    batch_id: str,
    inventory: Inventory,
    mode: RunMode,
    *,
    timed_out: bool = False,
    generated_at: datetime | None = None,
) -> RecordedRun:
    """Read a batch, finished or not, from the ledger. Nothing is written, no judge called.

    Args:
        ledger: where the batch is.
        batch_id: the batch.
        inventory: the folder its essays came from.
        mode: `execute` for an assessment, `anchor-align-test` for an alignment.
        timed_out: whether the runner stopped waiting for the batch.
        generated_at: aware; by default now.

    Raises:
        UnknownBatchError: no such batch.
        InputError: the batch is of a kind that the mode does not run.
        RequestError: the batch holds essays that are not in the folder: every one is listed.
    """
    results = collect_results(ledger, batch_id)
    batch = results.batch
    if batch.kind is not _KINDS.get(mode):
        raise InputError(
            f"batch {batch_id} is of kind {batch.kind.value}, which mode {mode.value} does not run: write the artefact "
            "of an assessment with mode execute, that of an alignment with mode anchor-align-test"
        )
    _require_essays_of(inventory, batch_id, results[frames.ESSAYS.name])
    definition = None
    scale = inventory.grade_scale
    if batch.assignment_id is not None:
        assignment = ledger.assignment(batch.assignment_id, batch.assignment_revision)
        definition, scale = assignment.grade_scale_definition, assignment.grade_scale
    return RecordedRun(
        mode=mode,
        results=results,
        instructions=batch_instructions(ledger, batch),
        inventory=inventory,
        grade_scale=scale,
        grade_scale_definition=definition,
        generated_at=generated_at or datetime.now(UTC),
        timed_out=timed_out,
    )


def _require_essays_of(inventory: Inventory, batch_id: str, essays: pl.DataFrame) -> None:
    known = {anchor.document.text_sha256 for anchor in inventory.anchors}
    known |= {student.document.text_sha256 for student in inventory.students}
    problems = [
        f"essay {row['essay_id']}: no file of the folder has its text: name the folder the batch was submitted from"
        for row in essays.iter_rows(named=True)
        if row["text_sha256"] not in known
    ]
    if problems:
        raise RequestError(f"artefact of batch {batch_id} with assets folder {inventory.root}", problems)


# --- the artefact ------------------------------------------------------------------------------------------------


def build_artefact(run: RecordedRun) -> tuple[RunArtefact, dict[str, bytes]]:
    """The artefact of a run, and the files of its manifest: path from the batch's folder on → content.

    Equal runs give equal artefacts.

    Raises:
        ArtefactError: the record is not one that an artefact may hold.
    """
    try:
        return _built(run)
    except ValidationError as error:
        problems = validation_problems(error)
    # raised outside the handler: a chained ValidationError would carry justifications into tracebacks
    raise ArtefactError(
        f"batch {run.results.batch.batch_id}: its record cannot be told in an artefact: {problems}. See the calls "
        "concerned with `cj prompt`, mend what recorded them, and write the artefact again"
    )


def validation_problems(error: ValidationError) -> str:
    """What pydantic found, by field, without the values; at most five problems."""
    found = error.errors(include_input=False, include_url=False)
    # a field's name is the document's own text where the models do not know it
    told = [f"{'.'.join(str(part)[:40] for part in e['loc']) or 'the whole'}: {e['msg']}" for e in found[:5]]
    return "; ".join(told) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")


def _built(run: RecordedRun) -> tuple[RunArtefact, dict[str, bytes]]:
    metadata = _metadata(run)
    results = _results(run)
    scale = _scale_rows(run, results.essays)
    files = _manifest_files(run, metadata, results, scale)
    artefact = RunArtefact(
        schema_version=SCHEMA_VERSION,
        metadata=metadata,
        inputs=_inputs(run),
        results=results,
        bt_summary=scale,
        diagnostics=diagnostics_of(run.results.tables),
        costs=_costs(run),
        validation=RunValidation(
            manifest={path: digest(content) for path, content in sorted(files.items())},
            environment=run_environment(),
            runner_status=RunnerStatus(
                partial_data=run.partial_data, timeout=run.timed_out, observed=_observed(run, results)
            ),
        ),
    )
    return artefact, files


def _metadata(run: RecordedRun) -> RunMetadata:
    batch = run.results.batch
    return RunMetadata(
        mode=run.mode,
        batch_id=batch.batch_id,
        kind=batch.kind,
        correlation_id=batch.correlation_id,
        assignment_id=batch.assignment_id,
        assignment_revision=batch.assignment_revision,
        grade_scale=run.grade_scale,
        grade_scale_definition=run.grade_scale_definition,
        runner_version=code_version(),
        judged_by_version=batch.code_version,
        git_sha=git_sha(),
        generated_at=run.generated_at,
        created_at=batch.created_at,
        completed_at=batch.completed_at,
        status=batch.status,
        stop_reason=batch.stop_reason,
        total_budget=batch.total_budget,
        judge=JudgeFacts(
            profile=batch.judge_profile, provider=batch.provider, model=batch.model, simulated=batch.simulated
        ),
        judge_overrides=batch.overrides,
        settings=BatchTunables.model_validate(batch.settings).model_dump(mode="json"),
    )


def comparison_outcomes(comparisons: pl.DataFrame, grade_scale: str) -> tuple[ComparisonOutcome, ...]:
    """The comparisons of `frames.COMPARISONS` in the order of planning, without withdrawn ones."""
    counted = comparisons.filter(pl.col("status") != ComparisonStatus.WITHDRAWN.value)
    return tuple(
        ComparisonOutcome(
            **_fields(ComparisonOutcome, row)
            | {
                "sequence": sequence,
                "started_at": row["submitted_at"],
                "prompt_sha256": row["prompt_sha256"] or None,
                "grade_scale": grade_scale,
            }
        )
        for sequence, row in enumerate(counted.iter_rows(named=True), start=1)
    )


def _results(run: RecordedRun) -> RunResults:
    comparisons = comparison_outcomes(run.results[frames.COMPARISONS.name], run.grade_scale)
    return RunResults(comparisons=comparisons, llm_comparisons=comparisons, essays=_essay_outcomes(run))


def _essay_outcomes(run: RecordedRun) -> tuple[EssayOutcome, ...]:
    projections = grade_outcomes(run.results[frames.GRADE_PROJECTIONS.name])
    experts = {anchor.document.text_sha256: anchor.grade for anchor in run.inventory.anchors}
    prompt = run.instructions.student_prompt
    reference = PromptReference(storage_id=text_sha256(prompt)) if prompt.strip() else None
    return tuple(
        EssayOutcome(
            essay_id=row["essay_id"],
            is_anchor=row["is_anchor"],
            # in an alignment anchors are judged as students: their grade is the inventory's
            anchor_grade=row["known_grade"] or experts.get(row["text_sha256"]),
            text_sha256=row["text_sha256"],
            word_count=row["word_count"],
            grade_projection=projections[row["essay_id"]],
            student_prompt_ref=reference,
        )
        for row in run.results[frames.ESSAYS.name].sort("essay_id").iter_rows(named=True)
    )


def grade_outcomes(projections: pl.DataFrame) -> dict[str, GradeOutcome]:
    """Essay id to projected grade, out of `frames.GRADE_PROJECTIONS`."""
    return {
        row["essay_id"]: GradeOutcome(
            **_fields(GradeOutcome, row)
            | {"probabilities": {entry["grade"]: entry["probability"] for entry in row["probabilities"]}}
        )
        for row in projections.iter_rows(named=True)
    }


def _scale_rows(run: RecordedRun, essays: Iterable[EssayOutcome]) -> tuple[ScaleRow, ...]:
    return scale_rows(run.results[frames.BT_SCORES.name], {essay.essay_id: essay.anchor_grade for essay in essays})


def scale_rows(scores: pl.DataFrame, grades: Mapping[str, str | None]) -> tuple[ScaleRow, ...]:
    """The scale out of `frames.BT_SCORES`, best first.

    Args:
        scores: the table.
        grades: essay id → expert grade, None without.
    """
    return tuple(
        ScaleRow(
            **_fields(ScaleRow, row)
            | {"se": row["se_uncapped"], "se_capped": row["se"], "anchor_grade": grades[row["essay_id"]]}
        )
        for row in scores.sort("rank").iter_rows(named=True)
    )


def diagnostics_of(tables: Mapping[str, pl.DataFrame]) -> Diagnostics:
    """The gauges out of `frames.SE_SUMMARIES` and `frames.QUALITY_FLAGS`."""
    flags = tables[frames.QUALITY_FLAGS.name].row(0, named=True)
    return Diagnostics.model_validate(
        {
            "bt_se_summary": summary_by_scope(tables[frames.SE_SUMMARIES.name]),
            "bt_quality_flags": _fields(QualityFlags, flags),
        }
    )


def _inputs(run: RecordedRun) -> RunInputs:
    inventory, told = run.inventory, run.instructions
    in_batch = dict(run.results[frames.ESSAYS.name].select("text_sha256", "essay_id").iter_rows())

    def part(text: str) -> str | None:
        return text_sha256(text) if text.strip() else None

    def essay_id(document: InventoryDocument) -> str | None:
        return in_batch.get(document.text_sha256)

    return RunInputs(
        instructions=InputText(**_document(inventory.instructions)),
        judge_prompt=InputText(**_document(inventory.prompt)),
        grade_table=InputFile(path=inventory.table_path, sha256=inventory.table_sha256),
        anchors=tuple(
            InputAnchor(
                **_document(anchor.document),
                anchor_id=anchor.anchor_id,
                grade=anchor.grade,
                essay_id=essay_id(anchor.document),
            )
            for anchor in inventory.anchors
        ),
        students=tuple(
            InputStudent(
                **_document(student.document), student_id=student.essay_id, essay_id=essay_id(student.document)
            )
            for student in inventory.students
        ),
        prompts=JudgePrompts(
            system_prompt=text_sha256(told.system_prompt),
            instructions=part(told.instructions),
            student_prompt=part(told.student_prompt),
            rubric=part(told.rubric),
        ),
        anchor_bank=run.results.batch.anchor_bank,
    )


def _document(document: InventoryDocument) -> dict[str, Any]:
    return {
        "path": document.path,
        "sha256": document.sha256,
        "bytes": document.byte_count,
        "text_sha256": document.text_sha256,
        "word_count": document.word_count,
    }


def _costs(run: RecordedRun) -> RunCosts:
    batch = run.results[frames.BATCHES.name].row(0, named=True)
    tokens = ("input", "cache_read", "cache_write", "output", "reasoning")
    counted = (
        _calls(run)
        .group_by("provider", "model")
        .agg(
            pl.len().alias("calls"),
            *(pl.col(f"tokens_{kind}").sum().alias(kind) for kind in tokens),
            pl.when(pl.col("cost_usd").is_null().any())
            .then(None)
            .otherwise(pl.col("cost_usd").sum())
            .alias("cost_usd"),
        )
    )
    return RunCosts(
        total_usd=batch["cost_usd"],
        max_cost_usd=batch["max_cost_usd"],
        token_counts=tuple(TokenCount(**row) for row in counted.sort("provider", "model").iter_rows(named=True)),
    )


def _calls(run: RecordedRun) -> pl.DataFrame:
    """The calls that reached the judge, or may have."""
    return run.results[frames.ATTEMPTS.name].filter(pl.col("outcome").ne_missing(AttemptOutcome.UNSENT.value))


def _observed(run: RecordedRun, results: RunResults) -> ObservedCounts:
    calls = _calls(run)
    anchors = sum(essay.is_anchor for essay in results.essays)
    return ObservedCounts(
        students=len(results.essays) - anchors,
        anchors=anchors,
        **outcome_counts(results.comparisons),
        attempts=calls.height,
        lost_attempts=calls.filter(pl.col("outcome") == AttemptOutcome.LOST.value).height,
        orphan_results=run.results[frames.BATCHES.name]["orphan_results"].item(),
        grade_projections=sum(essay.grade_projection.available for essay in results.essays),
        completions=int(not run.partial_data),
    )


def outcome_counts(comparisons: Iterable[ComparisonOutcome]) -> dict[str, int]:
    """How many comparisons are submitted, judged, failed and pending."""
    statuses = [comparison.status for comparison in comparisons]
    return {
        "submitted": len(statuses),
        "judged": statuses.count(ComparisonStatus.JUDGED),
        "failed": statuses.count(ComparisonStatus.FAILED),
        "pending": statuses.count(ComparisonStatus.PLANNED),
    }


def _fields(model: type[Any], row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name in model.model_fields}


# --- where and with what -----------------------------------------------------------------------------------------


def run_environment() -> RunEnvironment:
    """This Python and the packages that numbers depend on; nothing about the machine's name or folders."""
    return RunEnvironment(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        packages={name: version(name) for name in _PACKAGES},
    )


def git_sha() -> str | None:
    """The commit of the working tree this program runs from, with `-dirty` if files differ from it; None outside."""
    here = Path(__file__)

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "--no-optional-locks", *arguments],
                cwd=here.parent,
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # installed into a folder of somebody else's repository, this file is not one of its files
    if git("ls-files", "--error-unmatch", here.name) is None:
        return None
    return git("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")


def digest(content: bytes) -> FileDigest:
    """A file's digest by its content."""
    return FileDigest(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


# --- the batch's folder ------------------------------------------------------------------------------------------


def _manifest_files(
    run: RecordedRun, metadata: RunMetadata, results: RunResults, scale: tuple[ScaleRow, ...]
) -> dict[str, bytes]:
    files = {REQUEST_FILE: _json(_request(run, metadata))}
    for comparison in results.comparisons:
        if comparison.status is not ComparisonStatus.PLANNED:
            path = f"{COMPARISON_EVENTS}/{comparison.comparison_id}.json"
            files[path] = _json(comparison.model_dump(mode="json"))
    if not run.partial_data:
        head = {"batch_id": metadata.batch_id, "correlation_id": metadata.correlation_id}
        files[RESULT_FILE] = _json(
            head
            | {
                "bt_summary": [row.model_dump(mode="json") for row in scale],
                "essays": [essay.model_dump(mode="json") for essay in results.essays],
            }
        )
        ended = metadata.model_dump(mode="json", include=set(COMPLETION_FIELDS))
        files[COMPLETION_FILE] = _json(head | ended | outcome_counts(results.comparisons))
    return files


def _request(run: RecordedRun, metadata: RunMetadata) -> dict[str, Any]:
    """What was submitted: never a text, always its hash."""
    essays = run.results[frames.ESSAYS.name].sort("essay_id")
    wanted = ["essay_id", "is_anchor", "known_grade", "text_sha256", "word_count"]
    return metadata.model_dump(mode="json", include=set(REQUEST_FIELDS)) | {"essays": essays.select(wanted).to_dicts()}


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def run_folder(outputs_dir: Path, batch_id: str) -> Path:
    """The folder of a batch's artefact.

    Raises:
        InputError: the id may not name a folder.
    """
    return outputs_dir / "eng5" / check_batch_id(batch_id)


def artefact_path(folder: Path, mode: RunMode) -> Path:
    """The artefact in a batch's folder."""
    return folder / f"assessment_run.{mode.value}.json"


def started_mode(outputs_dir: Path, batch_id: str) -> RunMode | None:
    """The mode whose artefact a batch's folder holds; None if it holds none.

    Raises:
        InputError: the id may not name a folder.
    """
    folder = run_folder(outputs_dir, batch_id)
    return next((mode for mode in RunMode if artefact_path(folder, mode).is_file()), None)


def require_own_folder(outputs_dir: Path, batch_id: str, mode: RunMode) -> Path:
    """The artefact's path in the batch's folder, which no other mode uses. To be asked before anything is submitted.

    Raises:
        InputError: the folder holds the artefact of another mode, whose files would be lost.
    """
    folder = run_folder(outputs_dir, batch_id)
    path = artefact_path(folder, mode)
    others = sorted(other.name for other in folder.glob("assessment_run.*.json") if other != path)
    if others:
        raise InputError(f"{folder}: holds {others[0]}, the artefact of another mode: choose another batch id")
    return path


def write_run(run: RecordedRun, outputs_dir: Path) -> Path:
    """Write the batch's folder; the artefact's path.

    Writing again brings the folder up to date: files that the run does not have any more go.

    Raises:
        InputError: the folder holds the artefact of another mode, whose files would be lost; or a file cannot be
            written.
        ArtefactError: see `build_artefact`; nothing is written.
    """
    path = require_own_folder(outputs_dir, run.results.batch.batch_id, run.mode)
    folder = path.parent
    artefact, files = build_artefact(run)
    try:
        for name in MANIFEST_FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            _write(folder / name, content)
        for stray in set(manifest_files_in(folder)) - files.keys():
            (folder / stray).unlink()
        _write(path, (artefact.model_dump_json(indent=2) + "\n").encode())
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}): mend that, then write again") from None
    return path


def manifest_files_in(folder: Path) -> list[str]:
    """What a manifest of this folder must list, by path from the folder on."""
    return sorted(
        path.relative_to(folder).as_posix() for name in MANIFEST_FOLDERS for path in (folder / name).glob("*.json")
    )


def _write(path: Path, content: bytes) -> None:
    # most files of a batch that went on are as they were, and each write is synced to disk
    if path.is_file() and path.read_bytes() == content:
        return
    write_whole(path, lambda stream: stream.write(content))
