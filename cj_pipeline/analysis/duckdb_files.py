"""DuckDB files that are made anew from frames each time, and put in place by a rename.

Not here: the graph, which grows batch by batch (`graph`), and what any table says.
"""

import glob
import tempfile
from collections.abc import Sequence
from pathlib import Path

import duckdb
import polars as pl

from cj_pipeline.analysis.graph import (
    _NEW_FILE,
    _delete_sidecars,
    _first_line,
    _fsync,
    _identifier,
    _literal,
    duckdb_type,
)
from cj_pipeline.core.errors import CJError
from cj_pipeline.workflow.frames import Table


class TableFileError(CJError):
    """A file of tables could not be written. The public file that was there is still whole."""


def write_tables(public: Path, tables: Sequence[tuple[Table, pl.DataFrame]]) -> None:
    """Make a DuckDB file with exactly these tables and put it in the public file's place, mode 0444.

    Readers see the old file or the whole new one; a connection that is open keeps the file it opened.

    Args:
        public: the file; its folder is made if need be.
        tables: each table's schema and its rows, with the columns of the schema in any order.

    Raises:
        TableFileError: the file cannot be written.
    """
    try:
        public.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=public.parent, prefix=f".{public.name}.") as folder:
            draft = Path(folder) / "draft.duckdb"
            with duckdb.connect(str(draft), config=_NEW_FILE) as connection:
                for table, frame in tables:
                    _make_table(connection, table, frame, Path(folder) / f"{table.name}.parquet")
                connection.execute("CHECKPOINT")
            draft.chmod(0o444)
            _fsync(draft)
            # a log beside the public file is a stray, which would not fit the file that comes
            _delete_sidecars(public)
            draft.replace(public)
            _fsync(public.parent)
    except (OSError, duckdb.Error) as error:
        raise TableFileError(
            f"{public}: cannot be written ({type(error).__name__}: {_first_line(error)}). The file that was there is "
            "as it was: check free space and permissions of the folder, then try again"
        ) from error


def _make_table(connection: duckdb.DuckDBPyConnection, table: Table, frame: pl.DataFrame, rows: Path) -> None:
    # Parquet, because DuckDB reads a polars frame only with pyarrow at hand
    frame.select(list(table.schema)).write_parquet(rows, compression="lz4")
    name = _identifier(table.name)
    columns = ", ".join(f"{_identifier(column.name)} {duckdb_type(column.dtype)}" for column in table.columns)
    connection.execute(f"CREATE TABLE {name} ({columns})")
    connection.execute(
        f"INSERT INTO {name} SELECT * FROM read_parquet(?, hive_partitioning = false)", [glob.escape(str(rows))]
    )
    connection.execute(f"COMMENT ON TABLE {name} IS {_literal(table.description)}")
    for column in table.columns:
        connection.execute(f"COMMENT ON COLUMN {name}.{_identifier(column.name)} IS {_literal(column.description)}")
