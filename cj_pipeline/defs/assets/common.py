"""What all assets share: owners, kinds, column schemas, code version, and metadata in the UI's terms."""

import base64
from collections.abc import Mapping
from typing import Any, Final

import polars as pl
from dagster import MetadataValue, TableColumn, TableColumnConstraints, TableSchema

from cj_pipeline.ledger.records import BatchRecord
from cj_pipeline.reports.markdown import markdown_table
from cj_pipeline.workflow.frames import Table

OWNERS: Final = ["team:assessment"]
CODE_VERSION: Final = "4"
"""Raise it when an asset's numbers would differ for the same judgments: the UI then shows outputs as stale."""

_READABLE: Final = {
    pl.String: "string",
    pl.Int64: "int",
    pl.Float64: "float",
    pl.Boolean: "bool",
    pl.Datetime: "timestamp (UTC)",
    pl.List: "list of grade and probability",
}


def column_schema(table: Table) -> TableSchema:
    """A table's columns as the UI shows them."""
    return TableSchema(
        columns=[
            TableColumn(
                column.name,
                type=_READABLE.get(column.dtype.base_type(), str(column.dtype)),
                description=column.description,
                constraints=TableColumnConstraints(nullable=column.nullable),
            )
            for column in table.columns
        ]
    )


def asset_metadata(table: Table) -> dict[str, Any]:
    """The metadata every tabular asset is defined with."""
    return {"dagster/column_schema": column_schema(table)}


def batch_metadata(batch: BatchRecord) -> dict[str, Any]:
    """What every materialisation says about its batch: where it stands, who judged, and whether that was simulated."""
    judge = f"{batch.provider}/{batch.model}" if not batch.simulated else f"SIMULATED ({batch.judge_profile})"
    return {
        "status": batch.status.value,
        "stop_reason": batch.stop_reason or "",
        "judge": judge,
        "simulated": batch.simulated,
        "correlation_id": batch.correlation_id,
    }


def preview(frame: pl.DataFrame, columns: list[str] | None = None, *, limit: int = 30) -> Any:
    """The first rows as a Markdown table."""
    return MetadataValue.md(markdown_table(frame, columns, limit=limit))


def picture(png: bytes, alternative: str) -> Any:
    """A PNG inside Markdown, so that the UI shows it."""
    return MetadataValue.md(f"![{alternative}](data:image/png;base64,{base64.b64encode(png).decode()})")


def numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are known, as numbers the UI can plot."""
    return {name: value for name, value in values.items() if value is not None}
