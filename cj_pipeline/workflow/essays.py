"""The essays in a folder or a table, as found, and the checks of them as a set.

Here: one draft per essay with its id, text and, if stated, quality; which ids are usable; which ids and texts occur
twice, among students or among anchors. Not here: how a text or a row is read (`documents`, `data_files`), and what else
a request needs (`intake`).
"""

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.models import ESSAY_ID_PATTERN
from cj_pipeline.core.words import quoted
from cj_pipeline.workflow.data_files import read_csv, read_parquet
from cj_pipeline.workflow.documents import checked_text, documents_in, read_document, text_sha256
from cj_pipeline.workflow.problems import listed, name_in, noted

ANCHOR_NODE_PREFIX: Final = "ANCHOR_"
"""Node ids of anchors begin so; no student's essay id may."""


def anchor_node_id(batch_id: str, anchor_ref: str) -> str:
    """The id an anchor goes by in a batch: stable, distinct between batches, and no hint of the grade."""
    digest = hashlib.sha256(f"{batch_id}\n{anchor_ref}".encode()).hexdigest()
    return f"{ANCHOR_NODE_PREFIX}{anchor_ref}_{digest[:8]}"


@dataclass(frozen=True)
class Draft:
    """An essay as found, before anything is known to be right. `text` is None if it could not be read."""

    essay_id: str
    text: str | None = field(repr=False)
    quality: float | None
    where: str


def folder_drafts(folder: Path, problems: list[str]) -> list[Draft]:
    """The essays in a folder: its documents, or its essays.csv or essays.parquet, with the qualities of quality.csv."""
    paths = documents_in(folder, folder, problems)
    tables = [path for path in (folder / "essays.csv", folder / "essays.parquet") if path.is_file()]
    if len(tables) + bool(paths) > 1:
        found = [path.name for path in tables] + ([f"{len(paths)} essay files"] if paths else [])
        problems.append(f"has {' and '.join(found)}: keep the essays in one place only")
    drafts = [draft for table in tables for draft in _table_drafts(table, folder, problems)]
    drafts += [document_draft(path, folder, problems) for path in paths]
    return with_quality_file(folder, drafts, problems, folder)


def file_drafts(source: Path, problems: list[str]) -> list[Draft]:
    """The essays in a table that was named itself."""
    if source.suffix.lower() not in (".csv", ".parquet"):
        problems.append("is neither a folder nor a .csv or .parquet file: put essay files into a folder and name that")
        return []
    # whoever names a file means it, link or not; the rule about links is for what lies in a folder
    path = source.resolve()
    return _table_drafts(path, path.parent, problems)


def document_draft(path: Path, folder: Path, problems: list[str]) -> Draft:
    """The essay in a document, named after the file."""
    text = None
    with noted(problems):
        text = read_document(path, folder)
    return Draft(path.stem, text, None, name_in(path, folder))


def _table_drafts(path: Path, folder: Path, problems: list[str]) -> list[Draft]:
    read = read_parquet if path.suffix.lower() == ".parquet" else read_csv
    drafts: list[Draft] = []
    with noted(problems):
        for where, cells in read(path, folder, (("essay_id",), ("text",)), problems):
            text = quality = None
            with noted(problems):
                text = checked_text(cells["text"], where)
            with noted(problems):
                quality = _quality(cells.get("quality", ""), where)
            drafts.append(Draft(cells["essay_id"].strip(), text, quality, where))
    return drafts


def with_quality_file(folder: Path, drafts: list[Draft], problems: list[str], root: Path) -> list[Draft]:
    """The essays of a folder with the qualities of its quality.csv, if it has one; it must lie in `root`."""
    path = folder / "quality.csv"
    if not path.exists() and not path.is_symlink():
        return drafts
    if any(draft.quality is not None for draft in drafts):
        problems.append(f"{name_in(path, root)}: the table of essays has a column quality too: keep one")
    known = {draft.essay_id for draft in drafts}
    qualities: dict[str, float | None] = {}
    with noted(problems):
        for where, cells in read_csv(path, root, (("essay_id",), ("quality",)), problems):
            essay_id = cells["essay_id"].strip()
            if essay_id in qualities:
                problems.append(f"{where}: names the essay {quoted(essay_id)} again: keep one row")
            elif known and essay_id not in known:
                problems.append(f"{where}: there is no essay {quoted(essay_id)}: correct the id, or remove the row")
            qualities.setdefault(essay_id, None)
            with noted(problems):
                qualities[essay_id] = _quality(cells["quality"], where)
    return [Draft(d.essay_id, d.text, qualities.get(d.essay_id, d.quality), d.where) for d in drafts]


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


def check_drafts(drafts: Sequence[Draft], problems: list[str]) -> None:
    """Note ids of students that are not usable, and ids and texts that occur twice."""
    for draft in drafts:
        with noted(problems):
            _check_essay_id(draft.essay_id, draft.where)
    usable = [(d.essay_id, d.where) for d in drafts if re.fullmatch(ESSAY_ID_PATTERN, d.essay_id)]
    note_repeated_ids("essay id", usable, problems, "give each essay its own id")
    note_repeated_texts(((draft.text, draft.where) for draft in drafts if draft.text is not None), problems)


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


def note_repeated_ids(noun: str, found: Iterable[tuple[str, str]], problems: list[str], remedy: str) -> None:
    """Note ids that occur more than once, or differ only by case: not every file system tells those apart."""
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for identifier, where in found:
        groups[identifier.lower()].append((identifier, where))
    for group in groups.values():
        spellings = sorted({identifier for identifier, _ in group})
        if len(group) < 2:
            continue
        places = listed([where for _, where in group])
        if len(spellings) == 1:
            problems.append(f"{noun} {spellings[0]!r} is used by {places}: {remedy}")
        else:
            spelled = listed([repr(spelling) for spelling in spellings])
            problems.append(f"{noun}s {spelled} ({places}) differ only by case: {remedy}")


def note_repeated_texts(found: Iterable[tuple[str, str]], problems: list[str]) -> None:
    """Note texts that occur more than once, by where they were found."""
    groups: dict[str, list[str]] = defaultdict(list)
    for text, where in found:
        groups[text_sha256(text)].append(where)
    problems.extend(
        f"{listed(places)} have the same text: keep one, or correct the file that was copied by mistake"
        for places in groups.values()
        if len(places) > 1
    )
