"""What an ENG5 assets folder holds: instructions, judge prompt, anchors with their expert grades, students.

Here: the folder's layout, the grade table, and the check of all of it together. Not here: how a document or a table is
read (`workflow`), where the folder is (`settings`), and what becomes of it (registration, submission).

The layout::

    eng5_np_vt_2017_essay_instruction.md            the task as a pupil reads it
    llm_prompt_cj_assessment_eng5.md                what the judge is asked to compare
    anchor_essays/*_GRADE.docx (.pdf, .txt, .md)    anchors, the expert grade last in the file name
    ANCHOR_ESSAYS_BAYESIAN_INFERENCE_DATA.csv       or .xlsx: id, file and expert grade of every anchor
    student_essays/*.docx (.pdf, .txt, .md)         students; quality.csv beside them for a simulated judge

Problems are gathered and raised together, each with its path and remedy; none of them quotes an essay.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cj_pipeline.core.errors import InputError, RequestError
from cj_pipeline.core.grade_scale import GradeScale
from cj_pipeline.core.models import ESSAY_ID_PATTERN
from cj_pipeline.core.words import quoted
from cj_pipeline.workflow.data_files import Columns, read_csv, read_xlsx
from cj_pipeline.workflow.documents import (
    DOCUMENT_SUFFIXES,
    documents_in,
    read_bytes,
    read_document,
    text_sha256,
    word_count,
)
from cj_pipeline.workflow.essays import (
    ANCHOR_NODE_PREFIX,
    Draft,
    check_drafts,
    document_draft,
    note_repeated_ids,
    with_quality_file,
)
from cj_pipeline.workflow.problems import listed, noted

INSTRUCTIONS_NAME: Final = "eng5_np_vt_2017_essay_instruction.md"
PROMPT_NAME: Final = "llm_prompt_cj_assessment_eng5.md"
ANCHORS_FOLDER: Final = "anchor_essays"
STUDENTS_FOLDER: Final = "student_essays"
TABLE_NAMES: Final = (
    "ANCHOR_ESSAYS_BAYESIAN_INFERENCE_DATA.csv",
    "ANCHOR_ESSAYS_BAYESIAN_INFERENCE_DATA.xlsx",
)
TABLE_COLUMNS: Final[Columns] = (("ANCHOR-ID", "anchor_id"), ("FILE-NAME", "file_name"), ("grade", "pred_mode_grade"))
"""The table's columns; where it has both names of one, the first counts."""


@dataclass(frozen=True)
class InventoryDocument:
    """A text of the folder.

    Attributes:
        path: from the folder on, with forward slashes.
        sha256: of the file's bytes.
        byte_count: of the file.
        text: in normal form; personal data if it is an essay.
    """

    path: str
    sha256: str
    byte_count: int
    text: str = field(repr=False)

    @property
    def text_sha256(self) -> str:
        """SHA-256 of the text, as the ledger knows it."""
        return text_sha256(self.text)

    @property
    def word_count(self) -> int:
        """Words of the text."""
        return word_count(self.text)


@dataclass(frozen=True)
class InventoryAnchor:
    """An anchor: its id by the grade table, its expert grade, its document.

    `anchor_id` lacks the prefix `ANCHOR_` that a table may give it: the program puts that before every anchor's id.
    """

    anchor_id: str
    grade: str
    document: InventoryDocument


@dataclass(frozen=True)
class InventoryStudent:
    """A student essay, its id being the file's name. `quality` is in grade steps, for a simulated judge only."""

    essay_id: str
    quality: float | None
    document: InventoryDocument


@dataclass(frozen=True)
class Inventory:
    """A sound assets folder. Made by `read_inventory`.

    Attributes:
        root: the folder.
        grade_scale: name of the scale that the grades are on.
        instructions, prompt: the task, and what the judge is asked to compare.
        table_path, table_sha256: the grade table's path from `root` on, and the hash of its bytes.
        anchors: by file name.
        students: by file name.
    """

    root: Path
    grade_scale: str
    instructions: InventoryDocument
    prompt: InventoryDocument
    table_path: str
    table_sha256: str
    anchors: tuple[InventoryAnchor, ...]
    students: tuple[InventoryStudent, ...]

    @property
    def checksums(self) -> dict[str, str]:
        """Path from `root` on → SHA-256 of the file's bytes, for every text and the grade table."""
        documents = [self.instructions, self.prompt, *(anchor.document for anchor in self.anchors)]
        documents += [student.document for student in self.students]
        return {self.table_path: self.table_sha256} | {document.path: document.sha256 for document in documents}


def read_inventory(root: Path, scale: GradeScale) -> Inventory:
    """Read an assets folder and check all of it.

    Args:
        root: the folder.
        scale: the scale that expert grades must be on.

    Raises:
        RequestError: every item that is missing, unreadable, empty, there twice, or not what another says of it.
    """
    subject = f"ENG5 assets folder {root}"
    if not root.is_dir():
        raise RequestError(
            subject, ["is no folder: name the folder with --assets or CJ_ENG5_ASSETS_DIR, or correct its name"]
        )
    problems: list[str] = []
    reading = _Reading(root, problems)
    instructions = reading.document(root / INSTRUCTIONS_NAME)
    prompt = reading.document(root / PROMPT_NAME)
    table = reading.table()
    anchors = reading.essays(ANCHORS_FOLDER)
    students = with_quality_file(root / STUDENTS_FOLDER, reading.essays(STUDENTS_FOLDER), problems, root)
    graded = _graded_anchors(anchors, table.rows if table else None, scale, problems)
    check_drafts([*(anchor.draft for anchor in graded), *students], problems)
    if problems or instructions is None or prompt is None or table is None:
        raise RequestError(subject, problems)
    return Inventory(
        root=root,
        grade_scale=scale.name,
        instructions=instructions,
        prompt=prompt,
        table_path=table.path,
        table_sha256=table.sha256,
        anchors=tuple(
            InventoryAnchor(anchor.draft.essay_id, anchor.grade, reading.documents[anchor.draft.where])
            for anchor in graded
        ),
        students=tuple(
            InventoryStudent(draft.essay_id, draft.quality, reading.documents[draft.where]) for draft in students
        ),
    )


# --- files -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _TableRow:
    """A row of the grade table: its place, and its cells without white space at their ends."""

    where: str
    anchor_id: str
    file_name: str
    grade: str


@dataclass(frozen=True)
class _Table:
    path: str
    sha256: str
    rows: list[_TableRow]


class _Reading:
    """Reads the folder's files, and notes what is wrong with each."""

    def __init__(self, root: Path, problems: list[str]) -> None:
        self.root, self.problems = root, problems
        self.documents: dict[str, InventoryDocument] = {}

    def document(self, path: Path) -> InventoryDocument | None:
        """A single document; None, noted, if it cannot be read."""
        with noted(self.problems):
            return self._checksummed(path, read_document(path, self.root))
        return None

    def essays(self, folder_name: str) -> list[Draft]:
        """The documents of a subfolder; their checksums go to `documents`, by place."""
        folder = self.root / folder_name
        if not folder.is_dir():
            self.problems.append(f"{folder_name}: is missing: add the folder with its essays")
            return []
        paths: list[Path] = []
        with noted(self.problems):
            paths = documents_in(folder, self.root, self.problems)
            if not paths:
                self.problems.append(f"{folder_name}: holds no essay: add them as {', '.join(DOCUMENT_SUFFIXES)}")
        drafts = [document_draft(path, self.root, self.problems) for path in paths]
        for path, draft in zip(paths, drafts, strict=True):
            if draft.text is not None:
                self.documents[draft.where] = self._checksummed(path, draft.text)
        return drafts

    def table(self) -> _Table | None:
        """The grade table; None, noted, if it cannot be read."""
        found = [self.root / name for name in TABLE_NAMES if (self.root / name).exists()]
        if len(found) != 1:
            names = " or ".join(TABLE_NAMES)
            self.problems.append(
                f"{listed([path.name for path in found])}: are both there: keep the one whose grades count"
                if found
                else f"{names}: is missing: add the table of anchor ids, files and grades"
            )
            return None
        path = found[0]
        with noted(self.problems):
            read = read_xlsx if path.suffix == ".xlsx" else read_csv
            rows = read(path, self.root, TABLE_COLUMNS, self.problems)
            if not rows:
                raise InputError(f"{path.name}: has no rows: list every anchor with its id, file and grade")
            cells = [
                (where, [next(row[name] for name in names if name in row).strip() for names in TABLE_COLUMNS])
                for where, row in rows
            ]
            data = read_bytes(path, self.root)
            return _Table(path.name, hashlib.sha256(data).hexdigest(), [_TableRow(where, *row) for where, row in cells])
        return None

    def _checksummed(self, path: Path, text: str) -> InventoryDocument:
        data = read_bytes(path, self.root)
        return InventoryDocument(
            path=path.relative_to(self.root).as_posix(),
            sha256=hashlib.sha256(data).hexdigest(),
            byte_count=len(data),
            text=text,
        )


# --- anchors against their table ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _GradedDraft:
    draft: Draft
    grade: str


def _graded_anchors(
    drafts: Sequence[Draft], rows: Sequence[_TableRow] | None, scale: GradeScale, problems: list[str]
) -> list[_GradedDraft]:
    """The anchors with id and grade by the table (by the file name where that says nothing); notes disagreements."""
    file_grades = {draft.where: _grade_in_name(draft, scale, problems) for draft in drafts}
    if rows is None:
        return [_GradedDraft(draft, file_grades[draft.where] or "") for draft in drafts]
    _note_incomplete_rows(rows, scale, problems)
    by_file = _rows_by_file(rows, drafts, problems)
    ids = Counter(_anchor_id(row).lower() for row in rows if re.fullmatch(ESSAY_ID_PATTERN, _anchor_id(row)))
    graded = []
    for draft in drafts:
        row = by_file.get(draft.where)
        if row is None:
            problems.append(f"{draft.where}: has no row in the grade table: add one, or take the file away")
            graded.append(_GradedDraft(draft, file_grades[draft.where] or ""))
            continue
        grade = file_grades[draft.where]
        if grade and row.grade in scale.labels and grade != row.grade:
            problems.append(
                f"{draft.where}: is graded {quoted(grade)} by its name but {quoted(row.grade)} by {row.where}: correct "
                "the one that is wrong"
            )
        # an id that is not usable or given twice was noted with its row; the file's name keeps the anchors apart
        known = _anchor_id(row) if ids[_anchor_id(row).lower()] == 1 else draft.essay_id
        graded.append(_GradedDraft(Draft(known, draft.text, None, draft.where), row.grade))
    return graded


def _anchor_id(row: _TableRow) -> str:
    return row.anchor_id.removeprefix(ANCHOR_NODE_PREFIX)


def _grade_in_name(draft: Draft, scale: GradeScale, problems: list[str]) -> str | None:
    grade = draft.essay_id.rpartition("_")[2]
    if grade in scale.labels:
        return grade
    problems.append(
        f"{draft.where}: its name does not end in a grade of the scale {scale.name} ({', '.join(scale.labels)}): "
        f"rename it like anchor_essay_eng_5_17_vt_001_{scale.grades[0]}{Path(draft.where).suffix}"
    )
    return None


def _note_incomplete_rows(rows: Sequence[_TableRow], scale: GradeScale, problems: list[str]) -> None:
    for row in rows:
        for cell, (name, _) in zip((_anchor_id(row), row.file_name, row.grade), TABLE_COLUMNS, strict=True):
            if not cell:
                problems.append(f"{row.where}: {name} is empty: state it")
        if _anchor_id(row) and not re.fullmatch(ESSAY_ID_PATTERN, _anchor_id(row)):
            problems.append(
                f"{row.where}: ANCHOR-ID is not usable: up to 128 letters (A to Z), digits, '.', '_', '+' or '-', "
                "starting with a letter or digit"
            )
        if row.grade and row.grade not in scale.labels:
            problems.append(
                f"{row.where}: grade {quoted(row.grade)} is not one of the scale {scale.name}: use "
                f"{', '.join(scale.labels)}"
            )
    stated = [(_anchor_id(row), row.where) for row in rows if _anchor_id(row)]
    note_repeated_ids("anchor id", stated, problems, "give each anchor its own id")


def _rows_by_file(rows: Sequence[_TableRow], drafts: Sequence[Draft], problems: list[str]) -> dict[str, _TableRow]:
    """Each file's row, by the file's place; notes rows without a file and files with several rows."""
    files: dict[str, list[Draft]] = {}
    for draft in drafts:
        name = Path(draft.where).name
        for key in {_file_key(name), _file_key(draft.essay_id)}:
            files.setdefault(key, []).append(draft)
    found: dict[str, _TableRow] = {}
    for row in rows:
        named = files.get(_file_key(row.file_name), [])
        if row.file_name and not named:
            problems.append(f"{row.where}: there is no file {quoted(row.file_name)} in {ANCHORS_FOLDER}: add it")
        if len(named) > 1:
            places = listed([draft.where for draft in named])
            problems.append(f"{row.where}: its file may be {places}: write the name with its ending")
        for draft in named[:1]:
            if draft.where in found:
                problems.append(f"{draft.where}: has two rows ({found[draft.where].where} and {row.where}): keep one")
            found.setdefault(draft.where, row)
    return found


def _file_key(name: str) -> str:
    """A file's name as tables are matched by: with or without its ending, in any case and composition."""
    return unicodedata.normalize("NFC", name).casefold()
