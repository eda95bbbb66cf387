"""From files to validated requests: assignment folders with their anchors, and batches of essays.

Here: what an assignment or a batch must state, what its anchors must be called, and every check that needs nothing but
the files. All problems of a request are reported together in one `RequestError`. Not here: how files are read
(`documents`, `data_files`, `essays`); whether the assignment is registered, whether the batch exists already, what the
budget may be: that is for those who speak to the ledger.

Ids and file names are shown. Those of pupils must be pseudonyms.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cj_pipeline.core.errors import InputError, RequestError
from cj_pipeline.core.models import BATCH_ID_PATTERN, BatchKind, check_batch_id
from cj_pipeline.core.words import quoted
from cj_pipeline.settings import BatchOverrides, parse_overrides
from cj_pipeline.workflow.data_files import read_csv, read_mapping, required_text
from cj_pipeline.workflow.documents import DOCUMENT_SUFFIXES, checked_text, documents_in, inside, read_document
from cj_pipeline.workflow.essays import (
    Draft,
    check_drafts,
    document_draft,
    file_drafts,
    folder_drafts,
    note_repeated_ids,
    note_repeated_texts,
)
from cj_pipeline.workflow.problems import name_in, noted, shown

if TYPE_CHECKING:
    from cj_pipeline.core.grade_scale import GradeScale

ASSIGNMENT_KEYS: Final = (
    "id",
    "title",
    "language",
    "grade_scale",
    "student_prompt",
    "judge_rubric",
    "instructions",
    "system_prompt",
    "grade_scale_definition",
)
BATCH_KEYS: Final = (
    "assignment",
    "batch_id",
    "judge",
    "kind",
    "max_comparisons",
    "model",
    "overrides",
    "provider",
    "rubric",
    "system_prompt",
)
# key of batch.yaml that names a file → the override its text becomes
_PROMPT_FILES: Final = {"system_prompt": "system_prompt", "rubric": "judge_rubric"}


@dataclass(frozen=True)
class AnchorSubmission:
    """An anchor as its assignment's folder has it. `text` is in normal form."""

    anchor_ref: str
    grade: str
    text: str = field(repr=False)
    source_name: str


@dataclass(frozen=True)
class AssignmentRequest:
    """An assignment to register. Texts are in normal form; anchors are in the order of their refs."""

    assignment_id: str
    title: str
    language: str
    grade_scale: str
    grade_scale_definition: dict[str, Any] | None
    instructions: str = field(repr=False)
    student_prompt: str = field(repr=False)
    judge_rubric: str = field(repr=False)
    system_prompt: str | None = field(repr=False)
    anchors: tuple[AnchorSubmission, ...]


@dataclass(frozen=True)
class EssaySubmission:
    """A student's essay as the batch's files have it. `text` is in normal form, `quality` in grade steps.

    `known_grade` is the expert grade of an anchor that is judged as a student. Reports read it, nothing else does.
    """

    essay_id: str
    text: str = field(repr=False)
    quality: float | None
    source_name: str
    known_grade: str | None = None


@dataclass(frozen=True)
class BatchRequest:
    """A batch to submit. Students are in the order of their ids, whatever kind of file they came from."""

    batch_id: str
    assignment_id: str | None
    kind: BatchKind
    judge: str | None
    overrides: BatchOverrides
    students: tuple[EssaySubmission, ...]


# --- assignments -------------------------------------------------------------------------------------------------


def read_assignment(folder: Path) -> AssignmentRequest:
    """Read an assignment's folder: `assignment.yaml`, the files it names, and `anchors/`.

    An anchor's grade is the last `_GRADE` part of its file name, the rest of the name is its ref; or `anchors.csv`
    (in the folder or in `anchors/`) lists every anchor with the columns `file_name` (or `file`), `grade` and, if
    wanted, `anchor_ref`, and then its grades count.

    Raises:
        RequestError: with every problem found in the folder.
    """
    problems: list[str] = []
    subject = f"assignment folder {shown(str(folder))}"
    if not folder.is_dir():
        raise RequestError(subject, ["is not a folder: name the folder that holds assignment.yaml"])
    raw = read_mapping(folder, "assignment.yaml", ASSIGNMENT_KEYS, problems)
    texts: dict[str, str] = {}
    documents: dict[str, str] = {}
    scale: GradeScale | None = None
    if raw is None:
        if not problems:
            problems.append("assignment.yaml: is missing: write one with the keys " + ", ".join(ASSIGNMENT_KEYS))
    else:
        texts = _assignment_texts(raw, problems)
        documents = _assignment_documents(folder, raw, problems)
        scale = _grade_scale(raw, texts.get("grade_scale"), problems)
    anchors = _read_anchors(folder, scale, problems)
    if problems or raw is None:
        raise RequestError(subject, problems)
    return AssignmentRequest(
        assignment_id=texts["id"],
        title=texts["title"],
        language=texts["language"],
        grade_scale=texts["grade_scale"],
        grade_scale_definition=raw.get("grade_scale_definition"),
        instructions=texts["instructions"],
        student_prompt=documents["student_prompt"],
        judge_rubric=documents["judge_rubric"],
        system_prompt=documents.get("system_prompt"),
        anchors=tuple(anchors),
    )


def _assignment_texts(raw: Mapping[str, Any], problems: list[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for key in ("id", "title", "language", "grade_scale", "instructions"):
        with noted(problems):
            texts[key] = checked_text(required_text(raw, key, "assignment.yaml"), f"assignment.yaml: {key}")
    if "id" in texts and not re.fullmatch(BATCH_ID_PATTERN, texts["id"]):
        problems.append(
            f"assignment.yaml: id {quoted(texts['id'])} is not usable: 1 to 64 letters, digits, '_' or '-', "
            "starting with a letter or digit"
        )
    return texts


def _assignment_documents(folder: Path, raw: Mapping[str, Any], problems: list[str]) -> dict[str, str]:
    documents: dict[str, str] = {}
    for key in ("student_prompt", "judge_rubric", "system_prompt"):
        if key == "system_prompt" and raw.get(key) is None:
            continue
        with noted(problems):
            path = folder / required_text(raw, key, "assignment.yaml")
            if path.suffix.lower() not in DOCUMENT_SUFFIXES:
                kinds = ", ".join(DOCUMENT_SUFFIXES)
                raise InputError(f"assignment.yaml: {key} must name a file ({kinds}) in the assignment's folder")
            documents[key] = read_document(path, folder)
    return documents


def _grade_scale(raw: Mapping[str, Any], name: str | None, problems: list[str]) -> "GradeScale | None":
    from cj_pipeline.core.grade_scale import get_grade_scale, parse_grade_scale

    definition = raw.get("grade_scale_definition")
    with noted(problems):
        if definition is not None:
            scale = parse_grade_scale(definition, "assignment.yaml: grade_scale_definition")
            if name is not None and scale.name != name:
                raise InputError(
                    f"assignment.yaml: grade_scale is {quoted(name)} but grade_scale_definition defines "
                    f"{quoted(scale.name)}: give both the same name"
                )
            return get_grade_scale(scale.name, {scale.name: scale})
        if name is not None:
            return get_grade_scale(name)
    return None


# --- anchors -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _AnchorEntry:
    """What `anchors.csv` says of a file."""

    where: str
    grade: str
    anchor_ref: str | None


def _read_anchors(folder: Path, scale: "GradeScale | None", problems: list[str]) -> list[AnchorSubmission]:
    anchors_folder = folder / "anchors"
    paths: list[Path] = []
    if not anchors_folder.is_dir():
        problems.append("anchors/: is missing: put the anchors there, named like anchor_01_F+.docx")
    else:
        with noted(problems):
            inside(anchors_folder, folder)
            paths = documents_in(anchors_folder, folder, problems)
            if not paths:
                kinds = ", ".join(DOCUMENT_SUFFIXES)
                problems.append(f"anchors/: has no anchors: put files ({kinds}) there, named like anchor_01_F+.docx")
    texts = {path: document_draft(path, folder, problems).text for path in paths}
    found: list[tuple[str, str]] = []
    anchors: list[AnchorSubmission] = []
    # an unreadable anchors.csv is one problem, not one for each anchor that it would have listed
    with noted(problems):
        entries = _anchor_entries(folder, paths, problems)
        for path, text in texts.items():
            name = name_in(path, folder)
            with noted(problems):
                anchor_ref, grade = _ref_and_grade(path, name, entries, scale)
                found.append((anchor_ref, name))
                _check_anchor(anchor_ref, grade, name, scale, problems)
                anchors.append(AnchorSubmission(anchor_ref, grade, text or "", name))
    note_repeated_ids("anchor ref", found, problems, "rename a file, or give anchor_ref in anchors.csv")
    note_repeated_texts(((text, name_in(path, folder)) for path, text in texts.items() if text), problems)
    return sorted(anchors, key=lambda anchor: anchor.anchor_ref)


def _ref_and_grade(
    path: Path, name: str, entries: Mapping[str, _AnchorEntry] | None, scale: "GradeScale | None"
) -> tuple[str, str]:
    """The anchor's ref and grade, from `entries` (what anchors.csv says) if there is one, else from the file name."""
    ref, _, grade = path.stem.rpartition("_")
    if entries is None:
        if not ref:
            raise InputError(
                f"{name}: has no grade in its name: rename it like anchor_01_F+{path.suffix}, or list it in anchors.csv"
            )
        return ref, grade
    entry = entries.get(_file_key(path.name))
    if entry is None:
        raise InputError(f"{name}: is not listed in anchors.csv: list it there, or remove it")
    if entry.anchor_ref is not None:
        return entry.anchor_ref, entry.grade
    named_after_grade = ref and (grade == entry.grade or (scale is not None and grade in scale.labels))
    return (ref if named_after_grade else path.stem), entry.grade


def _check_anchor(anchor_ref: str, grade: str, name: str, scale: "GradeScale | None", problems: list[str]) -> None:
    if not re.fullmatch(BATCH_ID_PATTERN, anchor_ref):
        problems.append(
            f"{name}: its anchor ref {quoted(anchor_ref)} is not usable: 1 to 64 letters, digits, '_' or '-', "
            "starting with a letter or digit; rename the file, or give anchor_ref in anchors.csv"
        )
    if scale is not None and grade not in scale.labels:
        problems.append(
            f"{name}: grade {quoted(grade)} is not one of the scale {scale.name}: use {', '.join(scale.labels)}"
        )


def _anchor_entries(folder: Path, paths: Sequence[Path], problems: list[str]) -> dict[str, _AnchorEntry] | None:
    """What anchors.csv says, by file; None if there is no anchors.csv. Notes listed files that are missing.

    Raises:
        InputError: if anchors.csv cannot be read.
    """
    candidates = [path for path in (folder / "anchors.csv", folder / "anchors" / "anchors.csv") if path.is_file()]
    if not candidates:
        return None
    if len(candidates) > 1:
        problems.append("anchors.csv and anchors/anchors.csv: there are two lists of anchors: keep one")
    entries: dict[str, _AnchorEntry] = {}
    files = {_file_key(path.name) for path in paths}
    for where, cells in read_csv(candidates[0], folder, (("file_name", "file"), ("grade",)), problems):
        file_name = (cells.get("file_name") or cells.get("file") or "").strip()
        key = _file_key(file_name)
        if key in entries:
            problems.append(f"{where}: lists {quoted(file_name)} again, after {entries[key].where}: keep one row")
        elif key not in files:
            problems.append(f"{where}: the file {quoted(file_name)} is not in anchors/: write the name as it is there")
        entries.setdefault(
            key, _AnchorEntry(where, cells["grade"].strip(), cells.get("anchor_ref", "").strip() or None)
        )
    return entries


def _file_key(name: str) -> str:
    # macOS stores decomposed names, spreadsheets composed ones
    return unicodedata.normalize("NFC", name)


# --- batches -----------------------------------------------------------------------------------------------------


def read_batch(
    source: Path,
    *,
    batch_yaml: bool = True,
    assignment_id: str | None = None,
    batch_id: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    judge: str | None = None,
    kind: BatchKind | str | None = None,
    further_problems: Callable[[BatchRequest], list[str]] = lambda _request: [],
) -> BatchRequest:
    """Read a batch: a folder of essay files, a folder with one essays.csv or essays.parquet, or such a table itself.

    Args:
        source: the folder (essay id = file name without its ending; subfolders are not read) or the table
            (columns essay_id and text, quality if known). A folder may hold quality.csv (essay_id, quality).
        batch_yaml: whether a folder's batch.yaml is read; the arguments below win over it, one by one.
        assignment_id: the assignment that the batch belongs to.
        batch_id: its id; unless given, the name of the folder or table.
        overrides: settings the batch brings along, by field of `BatchOverrides`; None counts as not given.
        judge: a simulated judge, or PROVIDER/MODEL; batch.yaml may say `judge`, or `provider` and `model`.
        kind: what the batch is for. Only a `calibration` may come without essays: it judges anchors.
        further_problems: asked with what could be read, so that what it finds is listed together with the files'
            own problems.

    Raises:
        RequestError: with every problem found.
    """
    problems: list[str] = []
    if not source.exists():
        raise RequestError(f"batch {shown(str(source))}", ["does not exist: name a folder, or a CSV or Parquet file"])
    is_folder = source.is_dir()
    raw: Mapping[str, Any] = {}
    if is_folder and batch_yaml:
        raw = read_mapping(source, "batch.yaml", BATCH_KEYS, problems) or {}
    drafts: list[Draft] = []
    stated_kind = _batch_kind(kind if kind is not None else raw.get("kind"), problems)
    stated_batch_id = _batch_id(source, batch_id, raw, problems)
    stated_assignment = _assignment_id(assignment_id, raw, problems)
    stated_judge = _judge(judge, raw, problems)
    stated_overrides = _overrides({**raw, **_prompt_overrides(source, raw, problems)}, overrides or {}, problems)
    reading: list[str] = []
    with noted(reading):
        drafts = folder_drafts(source, reading) if is_folder else file_drafts(source, reading)
        if not drafts and not reading and stated_kind is not BatchKind.CALIBRATION:
            raise InputError(_no_essays(is_folder))
    problems += reading
    check_drafts(drafts, problems)
    students = (EssaySubmission(d.essay_id, d.text, d.quality, d.where) for d in drafts if d.text)
    request = BatchRequest(
        batch_id=stated_batch_id,
        assignment_id=stated_assignment,
        kind=stated_kind or BatchKind.ASSESSMENT,
        judge=stated_judge,
        overrides=stated_overrides,
        students=tuple(sorted(students, key=lambda essay: essay.essay_id)),
    )
    problems += further_problems(request)
    if problems:
        raise RequestError(f"batch {'folder' if is_folder else 'file'} {shown(str(source))}", problems)
    return request


def _no_essays(is_folder: bool) -> str:
    if not is_folder:
        return "has no essays: every row is empty"
    return (
        f"has no essays: put files ({', '.join(DOCUMENT_SUFFIXES)}), an essays.csv or an essays.parquet "
        "directly into it (subfolders are not read)"
    )


def _batch_kind(stated: Any, problems: list[str]) -> BatchKind | None:
    if stated is None:
        return BatchKind.ASSESSMENT
    try:
        return BatchKind(stated)
    except ValueError:
        problems.append(f"kind {quoted(str(stated))} is not known: choose one of {', '.join(BatchKind)}")
        return None


def _batch_id(source: Path, argument: str | None, raw: Mapping[str, Any], problems: list[str]) -> str:
    with noted(problems):
        if argument is not None:
            return check_batch_id(argument)
        if raw.get("batch_id") is not None:
            return check_batch_id(required_text(raw, "batch_id", "batch.yaml"))
        folder_name = source.name if source.name not in ("", "..") else source.resolve().name
        default = folder_name if source.is_dir() else source.stem
        if not re.fullmatch(BATCH_ID_PATTERN, default):
            raise InputError(
                f"its name {shown(default)!r} cannot be the batch id (1 to 64 letters, digits, '_' or '-', starting "
                "with a letter or digit): give one with --batch-id"
            )
        return default
    return ""


def _assignment_id(argument: str | None, raw: Mapping[str, Any], problems: list[str]) -> str | None:
    stated = argument
    with noted(problems):
        if argument is None and raw.get("assignment") is not None:
            stated = required_text(raw, "assignment", "batch.yaml")
    if stated is not None and not re.fullmatch(BATCH_ID_PATTERN, stated):
        problems.append(
            f"assignment {quoted(stated)} is not the id of an assignment: `cj assignments list` prints the ids"
        )
    return stated


def _judge(argument: str | None, raw: Mapping[str, Any], problems: list[str]) -> str | None:
    if argument is not None:
        return argument
    with noted(problems):
        named = required_text(raw, "judge", "batch.yaml") if raw.get("judge") is not None else None
        if raw.get("provider") is None and raw.get("model") is None:
            return named
        spelt = f"{required_text(raw, 'provider', 'batch.yaml')}/{required_text(raw, 'model', 'batch.yaml')}"
        if named is not None and named != spelt:
            raise InputError("batch.yaml: judge and provider/model are both stated, differently: keep one")
        return spelt
    return None


def _prompt_overrides(source: Path, raw: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """`overrides` of batch.yaml with the texts of the prompt files it names, which lie in subfolders."""
    texts: dict[str, Any] = {}
    for key, override in _PROMPT_FILES.items():
        if raw.get(key) is None:
            continue
        with noted(problems):
            path = source / required_text(raw, key, "batch.yaml")
            inside(path, source)
            if path.parent.resolve() == source.resolve():
                raise InputError(
                    f"batch.yaml: {key} names a file among the essays: put it into a subfolder, e.g. prompts/{key}.txt"
                )
            if not path.is_file():
                raise InputError(f"batch.yaml: {key}: there is no file {quoted(str(raw[key]))} in the batch's folder")
            texts[override] = read_document(path, source)
    filed = raw.get("overrides")
    if not texts or not isinstance(filed, Mapping | None):
        return {}
    return {"overrides": {**(filed or {}), **texts}}


def _overrides(raw: Mapping[str, Any], arguments: Mapping[str, Any], problems: list[str]) -> BatchOverrides:
    """The overrides of batch.yaml with those of the arguments laid over them, each checked where it came from."""
    given = {name: value for name, value in arguments.items() if value is not None}
    filed = raw.get("overrides")
    if filed is None:
        filed = {}
    if not isinstance(filed, Mapping):
        problems.append("batch.yaml: overrides must be a mapping of setting to value")
        filed = {}
    filed = dict(filed)
    budget = raw.get("max_comparisons")
    if budget is not None:
        if filed.get("max_comparisons", budget) != budget:
            problems.append("batch.yaml: max_comparisons is stated twice, differently: keep one")
        filed["max_comparisons"] = budget
    filed = {name: value for name, value in filed.items() if name not in given}
    merged: dict[str, Any] = {}
    for stated, where in ((filed, "batch.yaml"), (given, "options")):
        with noted(problems):
            merged |= parse_overrides(stated, where=where).model_dump(exclude_none=True)
    return BatchOverrides(**merged)
