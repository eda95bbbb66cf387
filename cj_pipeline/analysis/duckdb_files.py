"""DuckDB files that analysts open: what all of them share, and one that is made anew from frames each time.

Here: types, quoting, logs beside a database, and putting a finished file in the place of the public one. Not here: the
graph, which grows batch by batch (`graph`), and what any table says.
"""

import glob
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import duckdb
import polars as pl

from cj_pipeline.core.errors import CJError
from cj_pipeline.workflow.frames import ColumnType, Table

_SCALAR_TYPES: Final[Mapping[ColumnType, str]] = {
    pl.String: "VARCHAR",
    pl.Int64: "BIGINT",
    pl.Float64: "DOUBLE",
    pl.Boolean: "BOOLEAN",
}
# A file keeps these from its making. The format is an old one, so that analysts' tools need not be as new as ours, but
# no older: in 1.2's, a stray log of another file is joined to the new one in silence instead of refused. The blocks are
# the smallest, because with the default of 256 KiB, small tables fill the file with air that every publication copies
NEW_FILE: Final[dict[str, str | bool | int | float | list[str]]] = {
    "storage_compatibility_version": "v1.4.0",
    "default_block_size": 16_384,
}
# DuckDB keeps what is not checkpointed beside a database under these names (`StorageManager`, DuckDB 2.0)
_SIDECARS: Final = (".wal", ".wal.checkpoint", ".wal.recovery")


class TableFileError(CJError):
    """A file of tables could not be written. The public file that was there is still whole."""


def write_tables(public: Path, tables: Sequence[tuple[Table, pl.DataFrame]]) -> None:
    """Make a DuckDB file with exactly these tables and put it in the public file's place, mode 0444.

    Readers see the old file or the new one, never half of it; a connection that is open keeps the file it opened.

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
            with duckdb.connect(str(draft), config=NEW_FILE) as connection:
                for table, frame in tables:
                    _make_table(connection, table, frame, Path(folder) / f"{table.name}.parquet")
                connection.execute("CHECKPOINT")
            put_in_place(draft, public)
    except (OSError, duckdb.Error) as error:
        raise TableFileError(
            f"{public}: cannot be written ({type(error).__name__}: {first_line(error)}). The file that was there is as "
            "it was: check free space and permissions of the folder, then try again"
        ) from error


def _make_table(connection: duckdb.DuckDBPyConnection, table: Table, frame: pl.DataFrame, rows: Path) -> None:
    # Parquet, because DuckDB reads a polars frame only with pyarrow at hand
    frame.select(list(table.schema)).write_parquet(rows, compression="lz4")
    name = identifier(table.name)
    columns = [f"{identifier(column.name)} {duckdb_type(column.dtype)}" for column in table.columns]
    connection.execute(f"CREATE TABLE {name} ({', '.join(columns)})")
    connection.execute(
        f"INSERT INTO {name} SELECT * FROM read_parquet(?, hive_partitioning = false)", [glob.escape(str(rows))]
    )
    connection.execute(f"COMMENT ON TABLE {name} IS {literal(table.description)}")
    for column in table.columns:
        connection.execute(f"COMMENT ON COLUMN {name}.{identifier(column.name)} IS {literal(column.description)}")


def put_in_place(draft: Path, public: Path) -> None:
    """Rename a closed database file over the public one, synced and mode 0444.

    A log (`.wal`) beside the public file is always a stray: an analyst opened the file for writing and died, or
    writes still. DuckDB pairs it with whatever file has the name, and then refuses to open that. So it goes before
    the new file comes (and durably so: no crash may bring it back beside the new file), and again afterwards, for a
    writer that was at work in between.
    """
    draft.chmod(0o444)
    fsync(draft)
    if delete_sidecars(public):
        fsync(public.parent)
    draft.replace(public)
    delete_sidecars(public)
    fsync(public.parent)


def sidecars(database: Path) -> list[Path]:
    """Where DuckDB keeps what is not yet in the database file."""
    return [database.with_name(database.name + suffix) for suffix in _SIDECARS]


def delete_sidecars(database: Path) -> bool:
    """Delete DuckDB's logs beside a database file; whether there was one."""
    found = False
    for sidecar in sidecars(database):
        if sidecar.exists():
            sidecar.unlink(missing_ok=True)
            found = True
    return found


def fsync(path: Path) -> None:
    """Have a file's content, or a folder's entries, on disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def duckdb_type(dtype: ColumnType) -> str:
    """The DuckDB type, as DuckDB spells it, that holds every value of a polars dtype of our schemas.

    Raises:
        TypeError: none of our tables uses such a dtype.
    """
    if isinstance(dtype, pl.List):
        return f"{duckdb_type(dtype.inner)}[]"
    if isinstance(dtype, pl.Struct):
        fields = ", ".join(f"{field.name} {duckdb_type(field.dtype)}" for field in dtype.fields)
        return f"STRUCT({fields})"
    if isinstance(dtype, pl.Datetime) and dtype == pl.Datetime("us", "UTC"):
        return "TIMESTAMP WITH TIME ZONE"
    for known, name in _SCALAR_TYPES.items():
        if dtype == known:
            return name
    raise TypeError(f"no DuckDB type is agreed for polars dtype {dtype}")


def identifier(name: str) -> str:
    """A name as SQL takes it."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL takes it where no value can be bound: COMMENT ON and ATTACH."""
    return "'" + text.replace("'", "''") + "'"


def first_line(error: Exception) -> str:
    """What an error of the database says, without the statement that follows."""
    return str(error).strip().partition("\n")[0]
