"""Checking a run artefact: its files by their hashes, its numbers by scoring again, its record against the ledger.

Here: reading an artefact, and what differs, in sentences. Not here: its form (`artefact`), how it is made
(`artefact_building`), and what a command does about differences. Nothing is written and no judge called. An artefact
is untrusted: the manifest's paths cannot leave its folder, and no sentence quotes a justification.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import polars as pl
from pydantic import ValidationError

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.grade_scale import GradeScale, get_grade_scale, parse_grade_scale
from cj_pipeline.core.models import ComparisonStatus, Value
from cj_pipeline.eng5.artefact import ComparisonOutcome, GradeOutcome, InputEssay, RunArtefact, RunMode, ScaleRow
from cj_pipeline.eng5.artefact_building import (
    COMPARISON_EVENTS,
    COMPLETION_FIELDS,
    COMPLETION_FILE,
    REQUEST_FIELDS,
    REQUEST_FILE,
    RESULT_FILE,
    comparison_outcomes,
    diagnostics_of,
    digest,
    grade_outcomes,
    manifest_files_in,
    outcome_counts,
    scale_rows,
    validation_problems,
)
from cj_pipeline.eng5.rescoring import scored_tables, unstored_batch
from cj_pipeline.ledger import Ledger, UnknownBatchError
from cj_pipeline.workflow import frames
from cj_pipeline.workflow.results import comparisons_frame, essays_frame

TOLERANCE: Final = 1e-6
"""Logits, or a probability; relative above 1. Processors round differently; a judgment more or less moves far more."""


_ROUNDING_USD: Final = 1e-9
"""US dollars. Sums in another order differ by less; the cheapest call costs far more."""


def read_artefact(path: Path) -> RunArtefact:
    """Read an artefact.

    Raises:
        InputError: the file is missing, is not JSON, or is not of the published form; the message names the fields and
            quotes none.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"artefact {path}: cannot be read ({error.strerror}): name an assessment_run.*.json") from None
    try:
        return RunArtefact.model_validate_json(content)
    except ValidationError as error:
        problems = validation_problems(error)
    # raised outside the handler: a chained ValidationError would carry the content into tracebacks
    raise InputError(f"artefact {path}: is not of the published form: {problems}")


def verify_artefact(path: Path, ledger: Ledger | None = None) -> list[str]:
    """What differs between an artefact, its files, its own judgments scored again, and the ledger.

    Args:
        path: the artefact, in its batch's folder.
        ledger: if given, its record of the batch is compared too. A dry run is in no ledger and is not looked up.

    Returns:
        One sentence per difference; none if all agrees.

    Raises:
        InputError: see `read_artefact`; or the settings or grade scale in it are unknown to this version.
    """
    artefact = read_artefact(path)
    differences = [
        *_file_differences(artefact, path.parent),
        *_count_differences(artefact),
        *_cost_differences(artefact),
        *_input_differences(artefact),
        *_score_differences(artefact),
    ]
    if ledger is not None and artefact.metadata.mode is not RunMode.DRY_RUN:
        differences += _ledger_differences(artefact, ledger)
    return differences


# --- files -------------------------------------------------------------------------------------------------------


def _file_differences(artefact: RunArtefact, folder: Path) -> list[str]:
    manifest, told = artefact.validation.manifest, _told(artefact)
    differences = [f"{name}: is not in the manifest" for name in manifest_files_in(folder) if name not in manifest]
    differences += [f"{name}: the manifest lacks it" for name in told if name not in manifest]
    for name, recorded in manifest.items():
        try:
            content = (folder / name).read_bytes()
        except OSError:
            differences.append(f"{name}: is in the manifest, but cannot be read")
            continue
        found = digest(content)
        if found != recorded:
            differences.append(
                f"{name}: has changed: {found.bytes} bytes with SHA-256 {found.sha256}, by the manifest "
                f"{recorded.bytes} bytes with SHA-256 {recorded.sha256}"
            )
        elif name not in told:
            differences.append(f"{name}: is of no comparison with an outcome, nor of the batch")
        elif not _holds(content, told[name]):
            differences.append(f"{name}: tells otherwise than the artefact, which was changed after it was written")
    return differences


def _told(artefact: RunArtefact) -> dict[str, dict[str, Any]]:
    """Every file that must be there → what the artefact itself says of its content."""
    metadata = artefact.metadata.model_dump(mode="json")
    told = {REQUEST_FILE: {field: metadata[field] for field in REQUEST_FIELDS}}
    for comparison in artefact.results.comparisons:
        if comparison.status is not ComparisonStatus.PLANNED:
            told[f"{COMPARISON_EVENTS}/{comparison.comparison_id}.json"] = comparison.model_dump(mode="json")
    if artefact.metadata.status.is_final:
        told[COMPLETION_FILE] = {field: metadata[field] for field in COMPLETION_FIELDS}
        told[RESULT_FILE] = {
            "bt_summary": [row.model_dump(mode="json") for row in artefact.bt_summary],
            "essays": [essay.model_dump(mode="json") for essay in artefact.results.essays],
        }
    return told


def _holds(content: bytes, told: Mapping[str, Any]) -> bool:
    try:
        document = json.loads(content)
    except ValueError:
        return False
    return isinstance(document, dict) and {name: document.get(name) for name in told} == told


# --- numbers -----------------------------------------------------------------------------------------------------


def _count_differences(artefact: RunArtefact) -> list[str]:
    status = artefact.validation.runner_status
    comparisons, essays = artefact.results.comparisons, artefact.results.essays
    anchors = sum(essay.is_anchor for essay in essays)
    ended = artefact.metadata.status.is_final
    counted = outcome_counts(comparisons) | {
        "students": len(essays) - anchors,
        "anchors": anchors,
        "attempts": sum(comparison.attempts for comparison in comparisons),
        "grade_projections": sum(essay.grade_projection.available for essay in essays),
        "completions": int(ended),
    }
    recorded = status.observed.model_dump()
    differences = [
        f"validation.runner_status.observed.{name}: is {recorded[name]}, but the artefact holds {count}"
        for name, count in counted.items()
        # calls of withdrawn comparisons are counted, and their comparisons not told
        if (recorded[name] < count if name == "attempts" else recorded[name] != count)
    ]
    if status.partial_data is ended:
        differences.append(
            f"validation.runner_status.partial_data: is {str(status.partial_data).lower()}, but the batch is "
            f"{artefact.metadata.status.value}"
        )
    return differences


def _cost_differences(artefact: RunArtefact) -> list[str]:
    counted, comparisons = artefact.costs.token_counts, artefact.results.comparisons
    calls, observed = sum(row.calls for row in counted), artefact.validation.runner_status.observed.attempts
    differences = [] if calls == observed else [f"costs.token_counts: have {calls} calls, but {observed} were observed"]
    for kind, used, told in (
        ("input", sum(comparison.tokens_in for comparison in comparisons), sum(row.input for row in counted)),
        ("output", sum(comparison.tokens_out for comparison in comparisons), sum(row.output for row in counted)),
    ):
        # withdrawn comparisons, which are not told, may have used some
        if told < used:
            differences.append(f"costs.token_counts: have {told} {kind} tokens, but the comparisons alone used {used}")
    return differences + _dollar_differences(artefact)


def _dollar_differences(artefact: RunArtefact) -> list[str]:
    """Dollars of the whole run against those of its models, and these against those of its comparisons."""
    total = artefact.costs.total_usd
    models = _known_sum(row.cost_usd for row in artefact.costs.token_counts)
    if models is None:
        return []  # a price is unknown, or a call was out
    differences = []
    # withdrawn comparisons, which are not told, may have cost some
    used = _known_sum(comparison.cost_usd for comparison in artefact.results.comparisons)
    if used is not None and used > models + _ROUNDING_USD:
        differences.append(
            f"costs.token_counts: have {models:.6f} US dollars, but the comparisons alone cost {used:.6f}"
        )
    # late answers, which have no call of the batch, cost some more
    late = artefact.validation.runner_status.observed.orphan_results > 0
    above = None if total is None else total - models
    if not (late if above is None else (late and above > 0) or abs(above) <= _ROUNDING_USD):
        differences.append(f"costs.total_usd: is {_shown(total)}, but the calls cost {models:.6f} US dollars")
    return differences


def _known_sum(costs: Iterable[float | None]) -> float | None:
    known = list(costs)
    return None if None in known else sum(cost for cost in known if cost is not None)


def _input_differences(artefact: RunArtefact) -> list[str]:
    judged = {essay.essay_id: essay.text_sha256 for essay in artefact.results.essays}
    entries: tuple[InputEssay, ...] = (*artefact.inputs.anchors, *artefact.inputs.students)
    return [
        f"inputs: {entry.path}: has another text than essay {entry.essay_id} of the batch"
        for entry in entries
        if entry.essay_id is not None and judged.get(entry.essay_id) != entry.text_sha256
    ]


def _score_differences(artefact: RunArtefact) -> list[str]:
    tables = _rescored(artefact)
    grades = {essay.essay_id: essay.anchor_grade for essay in artefact.results.essays}
    again = {row.essay_id: row for row in scale_rows(tables[frames.BT_SCORES.name], grades)}
    projections = grade_outcomes(tables[frames.GRADE_PROJECTIONS.name])
    differences = []
    for row in artefact.bt_summary:
        differences += _differing("bt_summary", row.essay_id, row, again[row.essay_id], ScaleRow)
    for essay in artefact.results.essays:
        differences += _differing(
            "results.essays", essay.essay_id, essay.grade_projection, projections[essay.essay_id], GradeOutcome
        )
    if not _same(artefact.diagnostics.model_dump(), diagnostics_of(tables).model_dump()):
        differences.append("diagnostics: are not those of the recorded comparisons")
    return differences


def _rescored(artefact: RunArtefact) -> dict[str, pl.DataFrame]:
    """Scores and grades from the recorded comparisons alone."""
    metadata, bank = artefact.metadata, artefact.inputs.anchor_bank
    batch = unstored_batch(
        metadata.batch_id,
        kind=metadata.kind,
        assignment_id=metadata.assignment_id,
        judge_profile=metadata.judge.profile,
        provider=metadata.judge.provider,
        model=metadata.judge.model,
        simulated=metadata.judge.simulated,
        overrides=dict(metadata.judge_overrides),
        settings=dict(metadata.settings),
        total_budget=metadata.total_budget,
        status=metadata.status,
        stop_reason=metadata.stop_reason,
        code_version=metadata.judged_by_version,
        correlation_id=metadata.correlation_id,
        created_at=metadata.created_at,
        completed_at=metadata.completed_at,
        anchor_bank=None if bank is None else bank.model_dump(mode="json"),
    )
    essays = frames.ESSAYS.frame(
        [
            essay.model_dump(include={"essay_id", "is_anchor", "text_sha256", "word_count"})
            | {"batch_id": metadata.batch_id, "known_grade": essay.anchor_grade if essay.is_anchor else None}
            for essay in artefact.results.essays
        ]
    )
    comparisons = frames.COMPARISONS.frame(
        [
            {name: value for name, value in row.items() if name in frames.COMPARISONS.schema}
            | {"batch_id": metadata.batch_id, "submitted_at": comparison.started_at}
            for comparison in artefact.results.comparisons
            for row in [comparison.model_dump()]
        ]
    )
    try:
        return scored_tables(batch, _scale(artefact), essays, comparisons)
    except ValidationError as error:
        raise InputError(
            f"artefact of batch {metadata.batch_id}: this version cannot use its settings "
            f"({validation_problems(error)}): verify it with version {metadata.runner_version}"
        ) from None


def _scale(artefact: RunArtefact) -> GradeScale | None:
    metadata = artefact.metadata
    if metadata.assignment_id is None and metadata.mode is not RunMode.DRY_RUN:
        return None
    if metadata.grade_scale_definition is not None:
        return parse_grade_scale(metadata.grade_scale_definition, f"artefact of batch {metadata.batch_id}")
    return get_grade_scale(metadata.grade_scale)


def _differing(where: str, essay_id: str, recorded: Value, again: Value, model: type[Value]) -> list[str]:
    return [
        f"{where}: {essay_id}: {name} is {_shown(before)}, scored again {_shown(after)}"
        for name in model.model_fields
        if not _same(before := getattr(recorded, name), after := getattr(again, name))
    ]


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, float) and isinstance(after, float):
        return abs(before - after) <= TOLERANCE * max(1.0, abs(before))
    if isinstance(before, dict) and isinstance(after, dict):
        return before.keys() == after.keys() and all(_same(before[key], after[key]) for key in before)
    return bool(before == after)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items()) or "empty"
    if value is None:
        return "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# --- the ledger --------------------------------------------------------------------------------------------------


def _ledger_differences(artefact: RunArtefact, ledger: Ledger) -> list[str]:
    batch_id = artefact.metadata.batch_id
    try:
        batch = ledger.batch(batch_id)
    except UnknownBatchError:
        return [f"the ledger: has no batch {batch_id}"]
    try:
        found = comparison_outcomes(comparisons_frame(ledger, batch_id), artefact.metadata.grade_scale)
    except ValidationError as error:
        return [f"the ledger: its record of batch {batch_id} cannot be told: {validation_problems(error)}"]
    differences = _text_differences(artefact, essays_frame(ledger, batch_id))
    recorded, known = outcome_counts(artefact.results.comparisons), outcome_counts(found)
    if artefact.validation.runner_status.partial_data and known != recorded:
        differences.append(
            f"the ledger: batch {batch_id} has gone on since: it has {known['judged']} judgments, the artefact "
            f"{recorded['judged']}: write the artefact again"
        )
    elif batch.status is not artefact.metadata.status:
        differences.append(
            f"the ledger: batch {batch_id} is {batch.status.value}, by the artefact {artefact.metadata.status.value}"
        )
    return differences + _comparison_differences(artefact, {outcome.comparison_id: outcome for outcome in found})


def _text_differences(artefact: RunArtefact, essays: pl.DataFrame) -> list[str]:
    known = dict(essays.select("essay_id", "text_sha256").iter_rows())
    recorded = {essay.essay_id: essay.text_sha256 for essay in artefact.results.essays}
    return [
        f"the ledger: essay {essay_id} has another text, or is on one side only"
        for essay_id in sorted(known.keys() | recorded.keys())
        if known.get(essay_id) != recorded.get(essay_id)
    ]


def _comparison_differences(artefact: RunArtefact, known: Mapping[str, ComparisonOutcome]) -> list[str]:
    partial = artefact.validation.runner_status.partial_data
    recorded = {outcome.comparison_id: outcome for outcome in artefact.results.comparisons}
    differences = []
    if not partial and (missing := sorted(known.keys() - recorded.keys())):
        differences.append(f"the ledger: has {len(missing)} comparisons that the artefact lacks, from {missing[0]} on")
    for comparison_id, outcome in recorded.items():
        # what was open then may have been judged, tried or withdrawn since
        if partial and outcome.status is ComparisonStatus.PLANNED:
            continue
        if comparison_id not in known:
            differences.append(f"the ledger: has no comparison {comparison_id}")
            continue
        names = _differing_fields(outcome, known[comparison_id])
        if names:
            differences.append(f"the ledger: comparison {comparison_id} differs in {', '.join(names)}")
    return differences


def _differing_fields(outcome: ComparisonOutcome, other: ComparisonOutcome) -> list[str]:
    # a withdrawn comparison shifts the places of those after it
    fields = [name for name in ComparisonOutcome.model_fields if name != "sequence"]
    return [name for name in fields if getattr(outcome, name) != getattr(other, name)]
