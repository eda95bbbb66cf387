"""Tables as GitHub Markdown, escaped so that any frame reads as it is.

Which rows and columns a reader should see is the caller's choice, but for justifications, which no table shows.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl


def markdown_table(
    frame: pl.DataFrame, columns: Sequence[str] | None = None, *, limit: int = 30, float_digits: int = 2
) -> str:
    """A frame as a GitHub Markdown table whose cells show as they are written, whatever they contain.

    Args:
        frame: any frame.
        columns: the columns to show, in order; all but `justification` if None.
        limit: rows shown at most; a line under the table counts the others.
        float_digits: decimals of floating-point numbers.

    Returns:
        The table, numbers aligned right, nulls as "–", line breaks as spaces.

    Raises:
        ValueError: `justification` was asked for (it may quote essays, which must not reach metadata), a column
            does not exist, or `limit` or `float_digits` is negative.
    """
    if limit < 0 or float_digits < 0:
        raise ValueError(f"limit ({limit}) and float_digits ({float_digits}) must not be negative")
    shown = [name for name in frame.columns if name != "justification"] if columns is None else list(columns)
    if "justification" in shown:
        raise ValueError("justifications may quote essays and are never shown in a table: leave the column out")
    if missing := [name for name in shown if name not in frame.columns]:
        raise ValueError(f"no column {', '.join(map(repr, missing))} in a frame with {', '.join(frame.columns)}")
    if not shown:
        return "(no columns)"
    rules = ["---:" if frame.schema[name].is_numeric() else "---" for name in shown]
    rows = [
        [escape_markdown(cell_text(value, float_digits)) for value in row]
        for row in frame.select(shown).head(limit).iter_rows()
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in ([escape_markdown(name) for name in shown], rules, *rows)]
    if frame.is_empty():
        lines += ["", "(no rows)"]
    elif frame.height > limit:
        lines += ["", f"… and {frame.height - limit} more"]
    return "\n".join(lines)


def cell_text(value: Any, float_digits: int = 2) -> str:
    """A value as people read it. Lists are joined by commas, the fields of a struct by spaces."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        text = f"{value:.{float_digits}f}"
        return text.removeprefix("-") if text.startswith("-") and not text.strip("-0.") else text
    if isinstance(value, Mapping):
        return " ".join(cell_text(field, float_digits) for field in value.values())
    if isinstance(value, list | tuple):
        return ", ".join(cell_text(item, float_digits) for item in value)
    return str(value)


def escape_markdown(text: str) -> str:
    """`text` such that GitHub Markdown shows exactly it, on one line. Underscores inside words need no escape."""
    one_line = " ".join(text.splitlines())
    escaped = re.sub(r"([\\|`*~\[\]])", r"\\\1", one_line)
    escaped = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
