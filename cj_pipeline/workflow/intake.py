"""From files to validated requests: assignment folders with their anchors, and batches of essays.

Here: reading text, Word, PDF, CSV, Parquet and YAML files that people wrote, the one normal form of an essay's text,
and every check that needs nothing but the files. All problems of a request are reported together in one
`RequestError`. Not here: whether the assignment is registered, whether the batch exists already, what the budget may
be; that is for those who speak to the ledger.

The files are untrusted. Nothing outside the given folder is read (a link that leads out is refused), sizes are
checked before reading, and no error message quotes an essay: problems name the file, the row and the remedy. A cell
of a table is quoted only if it looks like a word, because a table with shifted columns has essays anywhere.

Ids and file names are shown. Those of pupils must be pseudonyms.
"""

import csv
import hashlib
import io
import logging
import math
import re
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from cj_pipeline.core.errors import InputError, RequestError
from cj_pipeline.core.models import (
    BATCH_ID_PATTERN,
    ESSAY_ID_PATTERN,
    MAX_ESSAY_CHARACTERS,
    BatchKind,
    check_batch_id,
)
from cj_pipeline.settings import BatchOverrides, parse_overrides

if TYPE_CHECKING:
    from cj_pipeline.core.grades import GradeScale

DOCUMENT_SUFFIXES: Final = (".txt", ".md", ".docx", ".pdf")
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
BATCH_KEYS: Final = ("assignment", "batch_id", "judge", "kind", "max_comparisons", "overrides")
ANCHOR_NODE_PREFIX: Final = "ANCHOR_"
"""Node ids of anchors begin so; no student's essay id may."""
MAX_DOCUMENT_BYTES: Final = 10 * 1024 * 1024
MAX_TABLE_BYTES: Final = 100 * 1024 * 1024
MAX_YAML_BYTES: Final = 1024 * 1024
_MAX_YAML_DEPTH: Final = 20
_MAX_UNPACKED_BYTES: Final = 100 * 1024 * 1024
_OTHER_DOCUMENTS: Final = (".doc", ".docm", ".odt", ".rtf", ".pages")
"""Files that are essays in a format not read here: passing them over would lose a pupil in silence."""
_SAVE_AS: Final = "save it as .docx, .pdf, .txt or .md"


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
    """A student's essay as the batch's files have it. `text` is in normal form, `quality` in grade steps."""

    essay_id: str
    text: str = field(repr=False)
    quality: float | None
    source_name: str


@dataclass(frozen=True)
class BatchRequest:
    """A batch to submit. Students are in the order of their ids, whatever kind of file they came from."""

    batch_id: str
    assignment_id: str | None
    kind: BatchKind
    judge: str | None
    overrides: BatchOverrides
    students: tuple[EssaySubmission, ...]


# --- the normal form of a text -----------------------------------------------------------------------------------


def normalise_text(text: str) -> str:
    r"""The normal form of a text: what is stored, hashed, compared and judged.

    Line ends become ``\n``; byte order marks (U+FEFF) go, wherever they are; characters are composed (Unicode NFC);
    white space at the end of each line and blank lines at either end go. Applying it again changes nothing.
    """
    text = text.replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n")
    lines = unicodedata.normalize("NFC", text).split("\n")
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def text_sha256(text: str) -> str:
    """SHA-256, as 64 hex digits, of the UTF-8 bytes of the text's normal form."""
    return hashlib.sha256(normalise_text(text).encode("utf-8")).hexdigest()


def word_count(text: str) -> int:
    """How many runs of characters between white space hold a letter or a digit."""
    return sum(any(character.isalnum() for character in run) for run in text.split())


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
    subject = f"assignment folder {_shown(str(folder))}"
    if not folder.is_dir():
        raise RequestError(subject, ["is not a folder: name the folder that holds assignment.yaml"])
    raw = _read_mapping(folder, "assignment.yaml", ASSIGNMENT_KEYS, problems)
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
        with _noted(problems):
            texts[key] = _checked_text(_required_text(raw, key, "assignment.yaml"), f"assignment.yaml: {key}")
    if "id" in texts and not re.fullmatch(BATCH_ID_PATTERN, texts["id"]):
        problems.append(
            f"assignment.yaml: id {_quoted(texts['id'])} is not usable: 1 to 64 letters, digits, '_' or '-', "
            "starting with a letter or digit"
        )
    return texts


def _assignment_documents(folder: Path, raw: Mapping[str, Any], problems: list[str]) -> dict[str, str]:
    documents: dict[str, str] = {}
    for key in ("student_prompt", "judge_rubric", "system_prompt"):
        if key == "system_prompt" and raw.get(key) is None:
            continue
        with _noted(problems):
            path = folder / _required_text(raw, key, "assignment.yaml")
            if path.suffix.lower() not in DOCUMENT_SUFFIXES:
                kinds = ", ".join(DOCUMENT_SUFFIXES)
                raise InputError(f"assignment.yaml: {key} must name a file ({kinds}) in the assignment's folder")
            documents[key] = _read_document(path, folder)
    return documents


def _grade_scale(raw: Mapping[str, Any], name: str | None, problems: list[str]) -> "GradeScale | None":
    from cj_pipeline.core.grades import get_grade_scale, parse_grade_scale

    definition = raw.get("grade_scale_definition")
    with _noted(problems):
        if definition is not None:
            scale = parse_grade_scale(definition, "assignment.yaml: grade_scale_definition")
            if name is not None and scale.name != name:
                raise InputError(
                    f"assignment.yaml: grade_scale is {_quoted(name)} but grade_scale_definition defines "
                    f"{_quoted(scale.name)}: give both the same name"
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
        with _noted(problems):
            _inside(anchors_folder, folder)
            paths = _documents(anchors_folder, folder, problems)
            if not paths:
                kinds = ", ".join(DOCUMENT_SUFFIXES)
                problems.append(f"anchors/: has no anchors: put files ({kinds}) there, named like anchor_01_F+.docx")
    texts = {path: _document_draft(path, folder, problems).text for path in paths}
    found: list[tuple[str, str]] = []
    anchors: list[AnchorSubmission] = []
    # an unreadable anchors.csv is one problem, not one for each anchor that it would have listed
    with _noted(problems):
        entries = _anchor_entries(folder, paths, problems)
        for path, text in texts.items():
            name = _name(path, folder)
            with _noted(problems):
                anchor_ref, grade = _ref_and_grade(path, name, entries, scale)
                found.append((anchor_ref, name))
                _check_anchor(anchor_ref, grade, name, scale, problems)
                anchors.append(AnchorSubmission(anchor_ref, grade, text or "", name))
    _note_repeated_ids("anchor ref", found, problems, "rename a file, or give anchor_ref in anchors.csv")
    _note_repeated_texts(((text, _name(path, folder)) for path, text in texts.items() if text), problems)
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
            f"{name}: its anchor ref {_quoted(anchor_ref)} is not usable: 1 to 64 letters, digits, '_' or '-', "
            "starting with a letter or digit; rename the file, or give anchor_ref in anchors.csv"
        )
    if scale is not None and grade not in scale.labels:
        problems.append(
            f"{name}: grade {_quoted(grade)} is not one of the scale {scale.name}: use {', '.join(scale.labels)}"
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
    for where, cells in _read_csv(candidates[0], folder, (("file_name", "file"), ("grade",)), problems):
        file_name = (cells.get("file_name") or cells.get("file") or "").strip()
        key = _file_key(file_name)
        if key in entries:
            problems.append(f"{where}: lists {_quoted(file_name)} again, after {entries[key].where}: keep one row")
        elif key not in files:
            problems.append(f"{where}: the file {_quoted(file_name)} is not in anchors/: write the name as it is there")
        entries.setdefault(
            key, _AnchorEntry(where, cells["grade"].strip(), cells.get("anchor_ref", "").strip() or None)
        )
    return entries


def _file_key(name: str) -> str:
    # macOS stores decomposed names, spreadsheets composed ones
    return unicodedata.normalize("NFC", name)


# --- batches -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Draft:
    """An essay as found, before anything is known to be right. `text` is None if it could not be read."""

    essay_id: str
    text: str | None = field(repr=False)
    quality: float | None
    where: str


def read_batch(
    source: Path,
    *,
    batch_yaml: bool = True,
    assignment_id: str | None = None,
    batch_id: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    judge: str | None = None,
    kind: BatchKind | str | None = None,
) -> BatchRequest:
    """Read a batch: a folder of essay files, a folder with one essays.csv or essays.parquet, or such a table itself.

    Args:
        source: the folder (essay id = file name without its ending; subfolders are not read) or the table
            (columns essay_id and text, quality if known). A folder may hold quality.csv (essay_id, quality).
        batch_yaml: whether a folder's batch.yaml is read; the arguments below win over it, one by one.
        assignment_id: the assignment that the batch belongs to.
        batch_id: its id; unless given, the name of the folder or table.
        overrides: settings the batch brings along, by field of `BatchOverrides`; None counts as not given.
        judge: the judge's profile.
        kind: what the batch is for. Only a `calibration` may come without essays: it judges anchors.

    Raises:
        RequestError: with every problem found.
    """
    problems: list[str] = []
    if not source.exists():
        raise RequestError(f"batch {_shown(str(source))}", ["does not exist: name a folder, or a CSV or Parquet file"])
    is_folder = source.is_dir()
    raw: Mapping[str, Any] = {}
    if is_folder and batch_yaml:
        raw = _read_mapping(source, "batch.yaml", BATCH_KEYS, problems) or {}
    drafts: list[_Draft] = []
    stated_kind = _batch_kind(kind if kind is not None else raw.get("kind"), problems)
    stated_batch_id = _batch_id(source, batch_id, raw, problems)
    stated_assignment = _assignment_id(assignment_id, raw, problems)
    stated_judge = _judge(judge, raw, problems)
    stated_overrides = _overrides(raw, overrides or {}, problems)
    reading: list[str] = []
    with _noted(reading):
        drafts = _folder_drafts(source, reading) if is_folder else _file_drafts(source, reading)
        if not drafts and not reading and stated_kind is not BatchKind.CALIBRATION:
            raise InputError(_no_essays(is_folder))
    problems += reading
    _check_drafts(drafts, problems)
    if problems:
        raise RequestError(f"batch {'folder' if is_folder else 'file'} {_shown(str(source))}", problems)
    students = (EssaySubmission(d.essay_id, d.text or "", d.quality, d.where) for d in drafts)
    return BatchRequest(
        batch_id=stated_batch_id,
        assignment_id=stated_assignment,
        kind=stated_kind or BatchKind.ASSESSMENT,
        judge=stated_judge,
        overrides=stated_overrides,
        students=tuple(sorted(students, key=lambda essay: essay.essay_id)),
    )


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
        problems.append(f"kind {_quoted(str(stated))} is not known: choose one of {', '.join(BatchKind)}")
        return None


def _batch_id(source: Path, argument: str | None, raw: Mapping[str, Any], problems: list[str]) -> str:
    with _noted(problems):
        if argument is not None:
            return check_batch_id(argument)
        if raw.get("batch_id") is not None:
            return check_batch_id(_required_text(raw, "batch_id", "batch.yaml"))
        folder_name = source.name if source.name not in ("", "..") else source.resolve().name
        default = folder_name if source.is_dir() else source.stem
        if not re.fullmatch(BATCH_ID_PATTERN, default):
            raise InputError(
                f"its name {_shown(default)!r} cannot be the batch id (1 to 64 letters, digits, '_' or '-', starting "
                "with a letter or digit): give one with --batch-id"
            )
        return default
    return ""


def _assignment_id(argument: str | None, raw: Mapping[str, Any], problems: list[str]) -> str | None:
    stated = argument
    with _noted(problems):
        if argument is None and raw.get("assignment") is not None:
            stated = _required_text(raw, "assignment", "batch.yaml")
    if stated is not None and not re.fullmatch(BATCH_ID_PATTERN, stated):
        problems.append(
            f"assignment {_quoted(stated)} is not the id of an assignment: `cj assignments list` prints the ids"
        )
    return stated


def _judge(argument: str | None, raw: Mapping[str, Any], problems: list[str]) -> str | None:
    if argument is not None or raw.get("judge") is None:
        return argument
    with _noted(problems):
        return _required_text(raw, "judge", "batch.yaml")
    return None


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
        with _noted(problems):
            merged |= parse_overrides(stated, where=where).model_dump(exclude_none=True)
    return BatchOverrides(**merged)


def _folder_drafts(folder: Path, problems: list[str]) -> list[_Draft]:
    paths = _documents(folder, folder, problems)
    tables = [path for path in (folder / "essays.csv", folder / "essays.parquet") if path.is_file()]
    if len(tables) + bool(paths) > 1:
        found = [path.name for path in tables] + ([f"{len(paths)} essay files"] if paths else [])
        problems.append(f"has {' and '.join(found)}: keep the essays in one place only")
    drafts = [draft for table in tables for draft in _table_drafts(table, folder, problems)]
    drafts += [_document_draft(path, folder, problems) for path in paths]
    return _with_quality_file(folder, drafts, problems)


def _file_drafts(source: Path, problems: list[str]) -> list[_Draft]:
    if source.suffix.lower() not in (".csv", ".parquet"):
        problems.append("is neither a folder nor a .csv or .parquet file: put essay files into a folder and name that")
        return []
    # whoever names a file means it, link or not; the rule about links is for what lies in a folder
    path = source.resolve()
    return _table_drafts(path, path.parent, problems)


def _document_draft(path: Path, folder: Path, problems: list[str]) -> _Draft:
    text = None
    with _noted(problems):
        text = _read_document(path, folder)
    return _Draft(path.stem, text, None, _name(path, folder))


def _table_drafts(path: Path, folder: Path, problems: list[str]) -> list[_Draft]:
    read = _read_parquet if path.suffix.lower() == ".parquet" else _read_csv
    drafts: list[_Draft] = []
    with _noted(problems):
        for where, cells in read(path, folder, (("essay_id",), ("text",)), problems):
            text = quality = None
            with _noted(problems):
                text = _checked_text(cells["text"], where)
            with _noted(problems):
                quality = _quality(cells.get("quality", ""), where)
            drafts.append(_Draft(cells["essay_id"].strip(), text, quality, where))
    return drafts


def _with_quality_file(folder: Path, drafts: list[_Draft], problems: list[str]) -> list[_Draft]:
    path = folder / "quality.csv"
    if not path.exists() and not path.is_symlink():
        return drafts
    if any(draft.quality is not None for draft in drafts):
        problems.append("quality.csv: the table of essays has a column quality too: keep one")
    known = {draft.essay_id for draft in drafts}
    qualities: dict[str, float | None] = {}
    with _noted(problems):
        for where, cells in _read_csv(path, folder, (("essay_id",), ("quality",)), problems):
            essay_id = cells["essay_id"].strip()
            if essay_id in qualities:
                problems.append(f"{where}: names the essay {_quoted(essay_id)} again: keep one row")
            elif known and essay_id not in known:
                problems.append(f"{where}: there is no essay {_quoted(essay_id)}: correct the id, or remove the row")
            qualities.setdefault(essay_id, None)
            with _noted(problems):
                qualities[essay_id] = _quality(cells["quality"], where)
    return [_Draft(d.essay_id, d.text, qualities.get(d.essay_id, d.quality), d.where) for d in drafts]


def _quality(cell: str, where: str) -> float | None:
    if not cell.strip():
        return None
    try:
        value = float(cell)
    except ValueError:
        raise InputError(f"{where}: quality is not a number: write it like 3.5, with a point") from None
    if not math.isfinite(value):
        raise InputError(f"{where}: quality is not finite: write a number like 3.5, or leave it empty")
    return value


def _check_drafts(drafts: Sequence[_Draft], problems: list[str]) -> None:
    for draft in drafts:
        with _noted(problems):
            _check_essay_id(draft.essay_id, draft.where)
    usable = [(d.essay_id, d.where) for d in drafts if re.fullmatch(ESSAY_ID_PATTERN, d.essay_id)]
    _note_repeated_ids("essay id", usable, problems, "give each essay its own id")
    _note_repeated_texts(((draft.text, draft.where) for draft in drafts if draft.text is not None), problems)


def _check_essay_id(essay_id: str, where: str) -> None:
    # the id itself is not quoted: in a table with swapped columns it is an essay
    if not essay_id:
        raise InputError(f"{where}: has no essay_id: give every essay one")
    if not re.fullmatch(ESSAY_ID_PATTERN, essay_id):
        raise InputError(
            f"{where}: its essay id is not usable: 1 to 128 letters (A to Z), digits, '.', '_', '+' or '-', starting "
            "with a letter or digit"
        )
    if essay_id.startswith(ANCHOR_NODE_PREFIX):
        raise InputError(f"{where}: its essay id starts with {ANCHOR_NODE_PREFIX}, which is kept for anchors: rename")


# --- checks that anchors and students share -----------------------------------------------------------------------


def _note_repeated_ids(noun: str, found: Iterable[tuple[str, str]], problems: list[str], remedy: str) -> None:
    """Note ids that occur more than once, or differ only by case: not every file system tells those apart."""
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for identifier, where in found:
        groups[identifier.lower()].append((identifier, where))
    for group in groups.values():
        spellings = sorted({identifier for identifier, _ in group})
        if len(group) < 2:
            continue
        places = _listed([where for _, where in group])
        if len(spellings) == 1:
            problems.append(f"{noun} {spellings[0]!r} is used by {places}: {remedy}")
        else:
            quoted = _listed([repr(spelling) for spelling in spellings])
            problems.append(f"{noun}s {quoted} ({places}) differ only by case: {remedy}")


def _note_repeated_texts(found: Iterable[tuple[str, str]], problems: list[str]) -> None:
    groups: dict[str, list[str]] = defaultdict(list)
    for text, where in found:
        groups[text_sha256(text)].append(where)
    problems.extend(
        f"{_listed(places)} have the same text: keep one, or correct the file that was copied by mistake"
        for places in groups.values()
        if len(places) > 1
    )


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """Turn an `InputError` into a noted problem and go on after the block."""
    try:
        yield
    except InputError as error:
        problems.append(str(error))


# --- words of messages -------------------------------------------------------------------------------------------


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _shown(name: str) -> str:
    """A file name as a message may show it: no control characters, no bytes that are not text."""
    return name if name.isprintable() else ascii(name)[1:-1]


def _quoted(value: str) -> str:
    """The value in quotes if it looks like a word, else only its size: it might be a piece of an essay."""
    if len(value) <= 64 and value.isprintable() and not any(character.isspace() for character in value):
        return repr(value)
    return f"({len(value)} characters, not shown)"


def _name(path: Path, root: Path) -> str:
    return _shown(path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name)


# --- files -------------------------------------------------------------------------------------------------------


def _documents(folder: Path, root: Path, problems: list[str]) -> list[Path]:
    """The documents directly in a folder, by name; notes those in a format that is not read.

    Hidden files, Office lock files (`~$x.docx`), README files and files of other kinds are passed over.
    """
    documents = []
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{_name(folder, root)}: cannot be listed ({error.strerror})") from None
    for path in entries:
        if path.name.startswith((".", "~$")) or path.stem.lower() == "readme" or path.is_dir():
            continue
        suffix = path.suffix.lower()
        if suffix in DOCUMENT_SUFFIXES:
            documents.append(path)
        elif suffix in _OTHER_DOCUMENTS:
            problems.append(f"{_name(path, root)}: {suffix} files are not read: {_SAVE_AS}")
    return documents


def _inside(path: Path, root: Path) -> Path:
    """The path with every link followed, if that stays inside `root`."""
    try:
        resolved = path.resolve()
        if resolved.is_relative_to(root.resolve()):
            return resolved
    except (OSError, RuntimeError, ValueError):
        raise InputError(f"{_name(path, root)}: leads nowhere (a circle of links, or no file name)") from None
    raise InputError(f"{_name(path, root)}: leads out of the folder: put a copy of the file inside")


def _read_bytes(path: Path, root: Path, limit: int = MAX_DOCUMENT_BYTES) -> bytes:
    resolved, name = _inside(path, root), _name(path, root)
    if not resolved.exists():
        raise InputError(f"{name}: is missing: add it, or correct the name")
    # a pipe would never end
    if not resolved.is_file():
        raise InputError(f"{name}: is not a file")
    try:
        with resolved.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from None
    if len(data) > limit:
        raise InputError(f"{name}: is larger than {limit // 1024**2} MB: remove what is not text, or split it")
    return data


def _decoded(data: bytes, name: str) -> str:
    try:
        # not utf-8-sig: its offsets do not count the byte order mark
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: is not UTF-8 text (byte offset {error.start}): save it as UTF-8") from None


def _read_document(path: Path, root: Path) -> str:
    """A document's text in normal form."""
    name = _name(path, root)
    readers: dict[str, Callable[[bytes, str], str]] = {".docx": _docx_text, ".pdf": _pdf_text}
    read = readers.get(path.suffix.lower(), _decoded)
    return _checked_text(read(_read_bytes(path, root), name), name)


def _checked_text(raw: str, where: str) -> str:
    """The text in normal form, if it may be judged."""
    if "\0" in raw:
        raise InputError(f"{where}: contains NUL characters: save it again as plain UTF-8 text")
    try:
        raw.encode("utf-8")
    except UnicodeEncodeError:
        # a PDF may claim half of a surrogate pair
        raise InputError(f"{where}: contains characters that are no text: save it as plain UTF-8 text") from None
    text = normalise_text(raw)
    if not text.strip():
        raise InputError(f"{where}: has no text: add the text, or remove it")
    if len(text) > MAX_ESSAY_CHARACTERS:
        raise InputError(f"{where}: has {len(text)} characters, at most {MAX_ESSAY_CHARACTERS} are read: shorten it")
    return text


# --- Word --------------------------------------------------------------------------------------------------------

_OLE_MAGIC: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_W: Final = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK: Final = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_GONE: Final = (f"{_W}del", f"{_W}moveFrom", _FALLBACK)
_NOT_INLINE: Final = (*_GONE, f"{_W}pPr", f"{_W}rPr", f"{_W}txbxContent")
_SIGNS: Final = {f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-"}


def _docx_text(data: bytes, name: str) -> str:
    """The body's paragraphs in document order, those in tables, content controls and text boxes included.

    Tracked changes count as accepted. Headers, footers, footnotes and comments are not the essay.
    """
    import docx

    if data.startswith(_OLE_MAGIC):
        raise InputError(f"{name}: is protected by a password, or an old .doc file: {_SAVE_AS}, without a password")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as package:
            unpacked = sum(entry.file_size for entry in package.infolist())
        if unpacked <= _MAX_UNPACKED_BYTES:
            body = docx.Document(io.BytesIO(data)).element.body
            paragraphs = [p for p in body.iter(f"{_W}p") if next(p.iterancestors(*_GONE), None) is None]
            return "\n".join("".join(_inline_text(paragraph)) for paragraph in paragraphs)
    except Exception:  # noqa: BLE001 - a damaged file can raise anything, and its words may be in the message
        raise InputError(f"{name}: cannot be opened as a Word document: open it in Word and {_SAVE_AS}") from None
    raise InputError(f"{name}: unpacks to more than {_MAX_UNPACKED_BYTES // 1024**2} MB: remove pictures")


def _inline_text(element: Any) -> Iterator[str]:
    for child in element:
        if child.tag in _NOT_INLINE:
            continue
        if child.tag == f"{_W}t":
            yield child.text or ""
        elif child.tag in _SIGNS:
            yield _SIGNS[child.tag]
        else:
            yield from _inline_text(child)


# --- PDF ---------------------------------------------------------------------------------------------------------


def _pdf_text(data: bytes, name: str) -> str:
    """The text of each page, in order."""
    import pypdf

    # its warnings quote the file's bytes
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    locked = False
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        # an empty password opens what is only locked against printing
        locked = reader.is_encrypted and reader.decrypt("") == pypdf.PasswordType.NOT_DECRYPTED
        pages = [] if locked else [page.extract_text() for page in reader.pages]
    except Exception:  # noqa: BLE001 - a damaged file can raise anything, and its words may be in the message
        raise InputError(f"{name}: cannot be read as a PDF: export it again, or {_SAVE_AS}") from None
    if locked:
        raise InputError(f"{name}: is protected by a password: save it without one")
    if not "".join(pages).strip():
        raise InputError(f"{name}: is a PDF without text, perhaps a scan: run text recognition (OCR), or type it")
    return "\n".join(pages)


# --- tables ------------------------------------------------------------------------------------------------------

_Columns = Sequence[tuple[str, ...]]
"""The columns a table must have, each with its accepted names."""
_Rows = list[tuple[str, dict[str, str]]]
"""Where each row is, as `file row N`, and its cells by column."""


def _check_columns(name: str, found: Sequence[str], columns: _Columns) -> None:
    repeated = sorted({column for column in found if found.count(column) > 1 and column})
    if repeated:
        raise InputError(f"{name}: has the column {_listed([_quoted(c) for c in repeated])} more than once: keep one")
    missing = [" or ".join(names) for names in columns if not set(names) & set(found)]
    if not missing:
        return
    hint = ""
    if len(found) == 1 and (";" in found[0] or "\t" in found[0]):
        hint = "; its columns seem to be separated by semicolons or tabs: save it with commas"
    raise InputError(
        f"{name}: has no column {_listed(missing)}; found {', '.join(map(_quoted, found)) or 'no columns'}: name the "
        f"columns {', '.join(names[0] for names in columns)} in its first line{hint}"
    )


def _read_csv(path: Path, root: Path, columns: _Columns, problems: list[str]) -> _Rows:
    """The rows of a comma-separated UTF-8 file, the header being row 1. Notes rows of the wrong length."""
    name = _name(path, root)
    text = _decoded(_read_bytes(path, root, MAX_TABLE_BYTES), name)
    # the module's limit is one for the process; raised so that an over-long essay is found by its row
    csv.field_size_limit(max(csv.field_size_limit(), MAX_TABLE_BYTES))
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise InputError(f"{name}: is not well-formed CSV ({error}): quote cells that hold quotes or commas") from None
    header = [cell.strip() for cell in lines[0]] if lines else []
    _check_columns(name, header, columns)
    rows: _Rows = []
    for number, cells in enumerate(lines[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            problems.append(
                f"{name} row {number}: has {len(cells)} cells, the header {len(header)}: quote cells that hold commas"
            )
            continue
        rows.append((f"{name} row {number}", dict(zip(header, cells, strict=True))))
    return rows


def _read_parquet(path: Path, root: Path, columns: _Columns, problems: list[str]) -> _Rows:
    """The rows of a Parquet file, from row 1; empty cells for nulls."""
    import polars as pl

    name = _name(path, root)
    data = _read_bytes(path, root, MAX_TABLE_BYTES)
    try:
        schema = pl.read_parquet_schema(io.BytesIO(data))
        wanted: list[str] = [column for column in ("essay_id", "text", "quality") if column in schema]
        frame = pl.read_parquet(io.BytesIO(data), columns=wanted) if wanted else pl.DataFrame()
    except (Exception, pl.exceptions.PanicException):  # noqa: BLE001 - a damaged file can raise anything
        raise InputError(f"{name}: cannot be read as Parquet: write it again") from None
    _check_columns(name, list(schema), columns)
    fitting = {
        "essay_id": frame["essay_id"].dtype == pl.String or frame["essay_id"].dtype.is_integer(),
        "text": frame["text"].dtype == pl.String,
    }
    unfit = [column for column, fits in fitting.items() if not fits]
    if unfit:
        raise InputError(f"{name}: the column {_listed(unfit)} is not text: write it as a string column")
    return [
        (f"{name} row {number}", {column: "" if cell is None else str(cell) for column, cell in row.items()})
        for number, row in enumerate(frame.iter_rows(named=True), start=1)
    ]


# --- YAML --------------------------------------------------------------------------------------------------------


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key stated twice, where YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                message = f"key {_quoted(key.value)} is stated twice"
                raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _read_mapping(folder: Path, file_name: str, known: Sequence[str], problems: list[str]) -> dict[str, Any] | None:
    """A YAML file's mapping; None if there is no such file or, noted, it cannot be read. Notes unknown keys."""
    path = folder / file_name
    if not path.exists() and not path.is_symlink():
        other = path.with_suffix(".yml")
        if other.exists():
            problems.append(f"{other.name}: is not read: rename it to {file_name}")
        return None
    with _noted(problems):
        raw = _parsed_yaml(_decoded(_read_bytes(path, folder, MAX_YAML_BYTES), file_name), file_name)
        if raw is None:
            raw = {}
        if not isinstance(raw, dict):
            raise InputError(f"{file_name}: must be a mapping of the keys {', '.join(known)}")
        problems.extend(
            f"{file_name}: unknown key {str(key)[:64]!r} (known: {', '.join(known)})" for key in raw if key not in known
        )
        return raw
    return None


def _parsed_yaml(text: str, name: str) -> Any:
    try:
        _refuse_costly_yaml(text, name)
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{name}{line}: is not well-formed YAML ({error.problem}): correct it there") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(
            f"{name}: is not well-formed YAML: look for control characters, or a date out of range"
        ) from None


def _refuse_costly_yaml(text: str, name: str) -> None:
    # with aliases a short file can stand for more data than memory holds; parsing is quadratic in the depth
    depth = 0
    for event in yaml.parse(text):
        if isinstance(event, yaml.AliasEvent):
            raise InputError(f"{name}: uses aliases (*name), which are not read: write the values out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_YAML_DEPTH:
            raise InputError(f"{name}: is nested deeper than {_MAX_YAML_DEPTH} levels: look for a stray bracket")


def _required_text(raw: Mapping[str, Any], key: str, file_name: str) -> str:
    value = raw.get(key)
    if value is None:
        raise InputError(f"{file_name}: {key} is missing: state it")
    if not isinstance(value, str):
        raise InputError(f"{file_name}: {key} must be text, YAML reads it as {type(value).__name__}: put it in quotes")
    if not value.strip():
        raise InputError(f"{file_name}: {key} is empty: state it")
    return value.strip()
