"""Data in files that people wrote: the rows of CSV, Excel and Parquet tables, and the keys of YAML
files.

Here: reading such a file within its folder and size limit, and every check of its form: columns, row lengths, types,
repeated, unknown and missing keys. Not here: what the cells and values mean; that is for `essays` and `intake`.

The files are untrusted: what would cost more memory or time than its size says (aliases, deep nesting) is refused.
"""

import csv
import io
import posixpath
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import yaml

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.words import quoted
from cj_pipeline.strict_yaml import UniqueKeyLoader, load_yaml
from cj_pipeline.workflow.documents import decoded, read_bytes
from cj_pipeline.workflow.problems import listed, name_in, noted, shown

MAX_TABLE_BYTES: Final = 100 * 1024 * 1024
MAX_YAML_BYTES: Final = 1024 * 1024
_MAX_YAML_DEPTH: Final = 20
_MAX_WORKBOOK_BYTES: Final = 10 * 1024 * 1024
_MAX_UNPACKED_WORKBOOK_BYTES: Final = 50 * 1024 * 1024


# --- tables ------------------------------------------------------------------------------------------------------

Columns = Sequence[tuple[str, ...]]
"""The columns a table must have, each with its accepted names."""
Rows = list[tuple[str, dict[str, str]]]
"""Where each row is, as `file row N`, and its cells by column."""


def _check_columns(name: str, found: Sequence[str], columns: Columns) -> None:
    repeated = sorted({column for column in found if found.count(column) > 1 and column})
    if repeated:
        raise InputError(f"{name}: has the column {listed([quoted(c) for c in repeated])} more than once: keep one")
    missing = [" or ".join(names) for names in columns if not set(names) & set(found)]
    if not missing:
        return
    hint = ""
    if len(found) == 1 and (";" in found[0] or "\t" in found[0]):
        hint = "; its columns seem to be separated by semicolons or tabs: save it with commas"
    raise InputError(
        f"{name}: has no column {listed(missing)}; found {', '.join(map(quoted, found)) or 'no columns'}: name the "
        f"columns {', '.join(names[0] for names in columns)} in its first line{hint}"
    )


def read_csv(path: Path, root: Path, columns: Columns, problems: list[str]) -> Rows:
    """The rows of a comma-separated UTF-8 file, the header being row 1. Notes rows of the wrong length."""
    name = name_in(path, root)
    text = decoded(read_bytes(path, root, MAX_TABLE_BYTES), name)
    # the module's limit is one for the process; raised so that an over-long essay is found by its row
    csv.field_size_limit(max(csv.field_size_limit(), MAX_TABLE_BYTES))
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise InputError(f"{name}: is not well-formed CSV ({error}): quote cells that hold quotes or commas") from None
    header = [cell.strip() for cell in lines[0]] if lines else []
    _check_columns(name, header, columns)
    rows: Rows = []
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


def read_xlsx(path: Path, root: Path, columns: Columns, problems: list[str]) -> Rows:
    """The rows of the first sheet of an Excel workbook, its first row that is not empty being the header.

    Cells are text as stored (ECMA-376, part 1, 18.3.1.4): whole numbers without a decimal point, formulas as their last
    computed value. Notes cells that stand under no column name in a row that has others.
    """
    name = name_in(path, root)
    data = read_bytes(path, root, _MAX_WORKBOOK_BYTES)
    try:
        rows = _sheet_rows(data)
    except _TooLargeError:
        raise InputError(
            f"{name}: unpacks to more than {_MAX_UNPACKED_WORKBOOK_BYTES // 1024**2} MB: keep only the table"
        ) from None
    except Exception:  # noqa: BLE001 - a damaged file can raise anything, and its words may be in the message
        raise InputError(f"{name}: cannot be read as an Excel workbook: save it again as .xlsx, or as .csv") from None
    header = {column: cell.strip() for column, cell in rows[0][1].items() if cell.strip()} if rows else {}
    _check_columns(name, list(header.values()), columns)
    found: Rows = []
    for number, cells in rows[1:]:
        if set(cells) - set(header):
            problems.append(f"{name} row {number}: has a cell under no column name: name its column, or empty the cell")
        found.append((f"{name} row {number}", {title: cells.get(column, "") for column, title in header.items()}))
    return found


class _TooLargeError(Exception):
    """A workbook that unpacks to more than is read."""


def _sheet_rows(data: bytes) -> list[tuple[int, dict[int, str]]]:
    """Row number and cells by column (from 0) of the first sheet; empty cells and rows are left out."""
    with zipfile.ZipFile(io.BytesIO(data)) as package:
        if sum(entry.file_size for entry in package.infolist()) > _MAX_UNPACKED_WORKBOOK_BYTES:
            raise _TooLargeError
        parts = set(package.namelist())
        sheet = _parsed_xml(package.read(_first_sheet(package)))
        strings = _parsed_xml(package.read("xl/sharedStrings.xml")) if "xl/sharedStrings.xml" in parts else None
    shared = [] if strings is None else [_rich_text(item) for item in strings.iterfind("{*}si")]
    rows, number = [], 0
    for row in sheet.iterfind("{*}sheetData/{*}row"):
        number = int(row.get("r") or number + 1)
        cells, column = {}, -1
        for cell in row.iterfind("{*}c"):
            column = _column_of(cell.get("r"), column + 1)
            text = _cell_text(cell, shared)
            if text.strip():
                cells[column] = text
        if cells:
            rows.append((number, cells))
    return rows


def _first_sheet(package: zipfile.ZipFile) -> str:
    """The part that holds the first sheet of the workbook."""
    first = next(_parsed_xml(package.read("xl/workbook.xml")).iterfind("{*}sheets/{*}sheet"))
    wanted = next(value for key, value in first.attrib.items() if key.endswith("}id"))
    relations = _parsed_xml(package.read("xl/_rels/workbook.xml.rels"))
    target = next(relation.attrib["Target"] for relation in relations if relation.get("Id") == wanted)
    return posixpath.normpath(posixpath.join("/xl", target)).lstrip("/")


def _parsed_xml(data: bytes) -> ElementTree.Element:
    # no workbook has a document type; one could define entities that expand without end
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise ValueError
    return ElementTree.fromstring(data)


def _column_of(reference: str | None, default: int) -> int:
    """The column of a cell reference such as AB12, from 0; `default` for a cell without one."""
    letters = re.match("[A-Z]+", reference or "")
    if letters is None:
        return default
    column = 0
    for letter in letters[0]:
        column = 26 * column + ord(letter) - ord("A") + 1
    return column - 1


def _cell_text(cell: ElementTree.Element, shared: Sequence[str]) -> str:
    kind = cell.get("t", "n")
    if kind == "inlineStr":
        inline = cell.find("{*}is")
        return "" if inline is None else _rich_text(inline)
    value = cell.findtext("{*}v") or ""
    if kind == "s":
        return shared[int(value)]
    if kind == "n" and value and float(value).is_integer():
        return str(int(float(value)))
    return value


def _rich_text(item: ElementTree.Element) -> str:
    """The text of a string item, its runs joined; phonetic guides are not part of it."""
    plain = item.iterfind("{*}t")
    runs = item.iterfind("{*}r/{*}t")
    return "".join(part.text or "" for part in (*plain, *runs))


def read_parquet(path: Path, root: Path, columns: Columns, problems: list[str]) -> Rows:
    """The rows of a Parquet file of essays, from row 1; empty cells for nulls."""
    import polars as pl

    name = name_in(path, root)
    data = read_bytes(path, root, MAX_TABLE_BYTES)
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
        raise InputError(f"{name}: the column {listed(unfit)} is not text: write it as a string column")
    return [
        (f"{name} row {number}", {column: "" if cell is None else str(cell) for column, cell in row.items()})
        for number, row in enumerate(frame.iter_rows(named=True), start=1)
    ]


# --- YAML --------------------------------------------------------------------------------------------------------


class _TextLoader(UniqueKeyLoader):
    """Takes every scalar for the text it is written as: `010` is neither 10 nor, as YAML 1.1 has it, 8."""


_TextLoader.yaml_implicit_resolvers = {}


def read_text_yaml(path: Path) -> Any:
    """What a YAML file holds, every scalar as text; mappings and lists as they are.

    Raises:
        InputError: the file is missing, too large, not UTF-8 or not well-formed YAML, or states a key twice.
    """
    name = shown(path.name)
    return _parsed_yaml(decoded(read_bytes(path, path.parent, MAX_YAML_BYTES), name), name, _TextLoader)


def read_mapping(folder: Path, file_name: str, known: Sequence[str], problems: list[str]) -> dict[str, Any] | None:
    """A YAML file's mapping; None if there is no such file or, noted, it cannot be read. Notes unknown keys."""
    path = folder / file_name
    if not path.exists() and not path.is_symlink():
        other = path.with_suffix(".yml")
        if other.exists():
            problems.append(f"{other.name}: is not read: rename it to {file_name}")
        return None
    with noted(problems):
        raw = _parsed_yaml(decoded(read_bytes(path, folder, MAX_YAML_BYTES), file_name), file_name)
        if raw is None:
            raw = {}
        if not isinstance(raw, dict):
            raise InputError(f"{file_name}: must be a mapping of the keys {', '.join(known)}")
        problems.extend(
            f"{file_name}: unknown key {str(key)[:64]!r} (known: {', '.join(known)})" for key in raw if key not in known
        )
        return raw
    return None


def _parsed_yaml(text: str, name: str, loader: type[UniqueKeyLoader] = UniqueKeyLoader) -> Any:
    try:
        _refuse_costly_yaml(text, name)
        return load_yaml(text, loader)
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
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise InputError(f"{name}: uses aliases (*name), which are not read: write the values out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_YAML_DEPTH:
            raise InputError(f"{name}: is nested deeper than {_MAX_YAML_DEPTH} levels: look for a stray bracket")


def required_text(raw: Mapping[str, Any], key: str, file_name: str) -> str:
    """The value of a key that must be there, be text and not be blank, without white space at its ends."""
    value = raw.get(key)
    if value is None:
        raise InputError(f"{file_name}: {key} is missing: state it")
    if not isinstance(value, str):
        raise InputError(f"{file_name}: {key} must be text, YAML reads it as {type(value).__name__}: put it in quotes")
    if not value.strip():
        raise InputError(f"{file_name}: {key} is empty: state it")
    return value.strip()
