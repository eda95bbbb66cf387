"""The graph: how a batch's tables become rows of the DuckDB file that analysts open, and how that file is replaced.

Here live the private master database, its schema and views, and the replacement of the public file. What the rows
say is decided in `workflow`; the questions that the views answer are in `views/*.sql`, one file per view.

Three files matter, for a public file `comparison_graph.duckdb`:

- `.comparison_graph/master.duckdb`, the truth. Only a publication opens it, under `.comparison_graph/publish.lock`.
- `.comparison_graph.duckdb.new`, the next public file while it is being copied.
- `comparison_graph.duckdb`, a byte-copy of the master, mode 0444, replaced whole. A publication never opens it as a
  database, so that whatever an analyst does with it (even writing as root) can neither block nor spoil a publication.
"""

import glob
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

import duckdb
import polars as pl
from filelock import FileLock, Timeout

from cj_pipeline.analysis.duckdb_files import (
    NEW_FILE,
    delete_sidecars,
    duckdb_type,
    first_line,
    fsync,
    identifier,
    literal,
    put_in_place,
    sidecars,
)
from cj_pipeline.core.errors import CJError
from cj_pipeline.logs import get_logger
from cj_pipeline.workflow.frames import GRAPH_TABLES, Table

LOCK_SECONDS: Final = 120.0
"""How long a publication waits for others by default, in seconds; one takes well under a second."""

ROW_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "batches": ("batch_id",),
    "essays": ("batch_id", "essay_id"),
    "comparisons": ("batch_id", "comparison_id"),
    "attempts": ("batch_id", "attempt_id"),
    "bt_scores": ("batch_id", "essay_id"),
    "waves": ("batch_id", "wave"),
    "bt_se_summaries": ("batch_id", "scope"),
    "quality_flags": ("batch_id",),
    "grade_projections": ("batch_id", "essay_id"),
    "grade_boundaries": ("batch_id", "boundary"),
    "anchor_report": ("batch_id", "essay_id"),
}
"""What identifies a row of each table of the graph.

Checked on the frames before they are written, which suffices because a batch is replaced whole under a lock. As
PRIMARY KEY constraints they would double the file, and each checkpoint would rewrite a table's whole row group
(122,880 rows) instead of the batch's.
"""


class GraphError(CJError):
    """The graph could not be opened or published. A public file that was there is still whole."""


class GraphBusyError(GraphError):
    """Other publications held the lock for longer than this one would wait."""


class GraphTableError(GraphError):
    """A table given for publication does not fit its schema: the message names table and column."""


@dataclass(frozen=True)
class Publication:
    """What a publication did.

    Attributes:
        batch_id: the batch.
        as_of: judgments the publication is based on.
        published: whether the batch's rows were replaced.
        reason: why not, if they were not.
        rows: rows written, over all tables.
        public_bytes: size of the public file.
        rows_seconds: time to replace the batch's rows in the master; grows with the batch.
        copy_seconds: time to replace the public file; grows with the file.
    """

    batch_id: str
    as_of: int
    published: bool
    reason: str | None
    rows: int
    public_bytes: int
    rows_seconds: float
    copy_seconds: float


@dataclass(frozen=True)
class _Place:
    """Where a graph lives: the public file and the private files beside it."""

    public: Path

    @property
    def private(self) -> Path:
        return self.public.parent / f".{self.public.stem}"

    @property
    def master(self) -> Path:
        return self.private / "master.duckdb"

    @property
    def master_draft(self) -> Path:
        return self.private / "master.new.duckdb"

    @property
    def incoming(self) -> Path:
        return self.private / "incoming"

    @property
    def lock(self) -> Path:
        return self.private / "publish.lock"

    @property
    def public_draft(self) -> Path:
        return self.public.parent / f".{self.public.name}.new"


def publish_batch(
    path: Path,
    batch_id: str,
    tables: Mapping[str, pl.DataFrame],
    *,
    as_of: int,
    lock_seconds: float = LOCK_SECONDS,
) -> Publication:
    """Replace one batch's rows in the graph, in one transaction, and put a new public file in place.

    Rows of other batches stay as they are. Readers of the public file see the old or the new one, never a mixture;
    a connection that is open keeps the file it opened. A publication that is killed leaves the previous public file,
    and the next one (of any batch) takes what it left away. The public file equals the master on return, also when
    this publication was dropped: so rows that a killed publication committed appear with the next one.

    Args:
        path: the public file; its folder is made if need be.
        batch_id: the batch; every row of every table must carry it.
        tables: each table of `frames.GRAPH_TABLES` by name, with the columns of its schema in any order.
        as_of: judgments the tables are based on. What is based on fewer than the batch's rows in the graph is
            dropped; an equal number replaces.
        lock_seconds: how long to wait for other publications, in seconds.

    Returns:
        What was done, with the time it took.

    Raises:
        GraphTableError: a table is unknown, missing or does not fit its schema. Nothing was written.
        GraphBusyError: other publications held the lock all the time. Nothing was written.
        GraphError: the master cannot be read or written, or the public file cannot be replaced.
    """
    _check_tables(batch_id, tables, as_of)
    place = _Place(_usable(path))
    with _lock(place, lock_seconds):
        started = time.perf_counter()
        with _failures_named(place.master, "written"):
            _sweep(place)
            _provide_master(place)
            try:
                _write_frames(place, tables)
                reason = _replace_rows(place, batch_id, as_of)
            finally:
                shutil.rmtree(place.incoming, ignore_errors=True)
        written = time.perf_counter()
        with _failures_named(place.public, "replaced"):
            _replace_public(place)
            public_bytes = place.public.stat().st_size
        copied = time.perf_counter()
    return Publication(
        batch_id=batch_id,
        as_of=as_of,
        published=reason is None,
        reason=reason,
        rows=0 if reason else sum(frame.height for frame in tables.values()),
        public_bytes=public_bytes,
        rows_seconds=written - started,
        copy_seconds=copied - written,
    )


def open_graph(path: Path) -> duckdb.DuckDBPyConnection:
    """Open the public file read-only, times shown in UTC. Close the connection to see later publications.

    The file is attached to a private in-memory database: within one process, connecting to it by name would give
    the file that is already open, however often it was replaced since. Temporary tables can be made.

    Raises:
        GraphError: there is no graph yet, or the file is not a readable DuckDB database.
    """
    public = _usable(path)
    if not public.is_file():
        raise GraphError(
            f"{public}: there is no graph here yet. It is written when comparison_graph is materialised for a batch; "
            "otherwise check the path"
        )
    with suppress(OSError):  # a reader may lack the right to delete; then the attempt below tells
        delete_sidecars(public)
    connection = duckdb.connect()
    try:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f'ATTACH {literal(str(public))} AS "graph" (READ_ONLY)')
        connection.execute('USE "graph"')
    except duckdb.Error as error:
        connection.close()
        raise GraphError(
            f"{public}: cannot be opened ({first_line(error)}). Close other programs that opened it for writing and "
            f"delete {public.name}.wal if there is one; if it stays, materialise comparison_graph for any batch, "
            "which replaces the file"
        ) from error
    return connection


def views() -> dict[str, str]:
    """The SQL of every view of the graph, by the view's name, in order of name."""
    folder = resources.files(__package__) / "views"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return {file.name.removesuffix(".sql"): file.read_text(encoding="utf-8") for file in files}


# What is given


def _usable(path: Path) -> Path:
    public = Path(path).absolute()
    if "?" in str(public):  # DuckDB 2.0 would look for the log of `a?b/c` at `a.wal?b/c`
        raise GraphError(f"{public}: DuckDB cannot keep a database under a path with a '?'. Choose another path")
    return public


def _check_tables(batch_id: str, tables: Mapping[str, pl.DataFrame], as_of: int) -> None:
    known = {table.name: table for table in GRAPH_TABLES}
    if unknown := sorted(set(tables) - set(known)):
        raise GraphTableError(
            f"batch {batch_id}: the graph has no table {', '.join(unknown)}; it has {', '.join(known)}"
        )
    if missing := [name for name in known if name not in tables]:
        raise GraphTableError(
            f"batch {batch_id}: table {', '.join(missing)} is missing. A publication replaces all tables of a batch: "
            "give an empty frame (`Table.frame([])`) for one without rows"
        )
    for name, table in known.items():
        _check_frame(batch_id, table, tables[name])
    told = tables["batches"]["as_of"].to_list()
    if told != [as_of]:
        raise GraphTableError(
            f"batch {batch_id}: table batches, column as_of holds {told}, expected one row with {as_of}, "
            "the as_of of this publication"
        )


def _check_frame(batch_id: str, table: Table, frame: pl.DataFrame) -> None:
    where = f"batch {batch_id}: table {table.name}"
    expected = table.schema
    if absent := [name for name in expected if name not in frame.schema]:
        raise GraphTableError(f"{where} lacks column {', '.join(absent)}")
    if extra := [name for name in frame.columns if name not in expected]:
        raise GraphTableError(f"{where} has a column {', '.join(extra)}, which its schema does not know")
    for column in table.columns:
        dtype = frame.schema[column.name]
        if dtype != column.dtype:
            raise GraphTableError(f"{where}, column {column.name} is {dtype}, expected {column.dtype}")
        if not column.nullable and frame[column.name].null_count():
            raise GraphTableError(f"{where}, column {column.name} holds null, which its schema does not allow")
    if (frame["batch_id"] != batch_id).any():
        raise GraphTableError(f"{where}, column batch_id holds rows of another batch")
    key = ROW_KEYS[table.name]
    if frame.select(key).is_duplicated().any():
        raise GraphTableError(f"{where}, column {', '.join(key)} does not identify its rows: some occur twice")


# The master


@contextmanager
def _lock(place: _Place, seconds: float) -> Iterator[None]:
    with _failures_named(place.lock, "made"):
        place.private.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place.lock)
        try:
            lock.acquire(timeout=seconds)
        except Timeout:
            raise GraphBusyError(
                f"{place.lock}: another publication has held this lock for {seconds:g} s. The lock goes with the "
                "process that holds it: wait for that one or end it, then materialise comparison_graph again. "
                "Deleting the file does not help"
            ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _failures_named(file: Path, verb: str) -> Iterator[None]:
    """Tell failures of disk and database as failures of the publication, naming the file."""
    try:
        yield
    except (OSError, duckdb.Error) as error:
        raise GraphError(
            f"{file}: cannot be {verb} ({type(error).__name__}: {first_line(error)}). "
            "The public file is as it was. Check free space and permissions of the folder, then materialise "
            "comparison_graph for the batch again"
        ) from error


def _sweep(place: _Place) -> None:
    """Take away what a killed publication left."""
    shutil.rmtree(place.incoming, ignore_errors=True)
    for draft in (place.public_draft, place.master_draft):
        draft.unlink(missing_ok=True)
    delete_sidecars(place.master_draft)


def _provide_master(place: _Place) -> None:
    """Make a master if there is none: from the public file if that can be read, else empty.

    It is made under another name first: a process killed while DuckDB writes its first header would leave a file
    that no later publication could open.
    """
    if place.master.exists():
        return
    delete_sidecars(place.master)
    if place.public.exists():
        shutil.copyfile(place.public, place.master_draft)
        if not _is_graph(place.master_draft):
            place.master_draft.unlink()
            get_logger(room="analysis").warning(
                "graph unreadable and without master; starting an empty one", public=str(place.public)
            )
    if not place.master_draft.exists():
        duckdb.connect(str(place.master_draft), config=NEW_FILE).close()
    fsync(place.master_draft)
    place.master_draft.replace(place.master)
    fsync(place.private)


def _is_graph(file: Path) -> bool:
    try:
        with duckdb.connect(str(file), read_only=True) as connection:
            connection.execute("SELECT count(batch_id) FROM batches")
    except duckdb.Error:
        return False
    return True


def _write_frames(place: _Place, tables: Mapping[str, pl.DataFrame]) -> None:
    # Parquet, because DuckDB reads a polars frame only with pyarrow at hand
    place.incoming.mkdir()
    for name, frame in tables.items():
        frame.write_parquet(place.incoming / f"{name}.parquet", compression="lz4")


def _replace_rows(place: _Place, batch_id: str, as_of: int) -> str | None:
    """Replace the batch's rows in the master, or return why they were left as they are."""
    try:
        with duckdb.connect(str(place.master)) as connection:
            connection.execute("BEGIN")
            _shape(connection)
            _create_views(connection)
            reason = _reason_to_drop(connection, batch_id, as_of)
            if reason is None:
                for table in GRAPH_TABLES:
                    _replace_batch(connection, table, batch_id, place.incoming / f"{table.name}.parquet")
            connection.execute("COMMIT")
            connection.execute("CHECKPOINT")
    except duckdb.Error as error:
        raise GraphError(
            f"{place.master}: batch {batch_id} could not be written ({type(error).__name__}: {first_line(error)}). "
            "The public file is as it was. If another program has opened this private file, close it. If the file is "
            "damaged, delete it: the next publication takes the other batches over from the public file if that is "
            "readable; re-materialise comparison_graph for each batch to be sure that all are there"
        ) from error
    if any(sidecar.exists() for sidecar in sidecars(place.master)):
        raise GraphError(
            f"{place.master}: DuckDB did not fold its log into the file, so a copy of it would lack rows. "
            "The public file is as it was. Materialise comparison_graph for the batch again"
        )
    return reason


def _reason_to_drop(connection: duckdb.DuckDBPyConnection, batch_id: str, as_of: int) -> str | None:
    there = connection.execute("SELECT as_of FROM batches WHERE batch_id = ?", [batch_id]).fetchone()
    if there is None or there[0] is None or there[0] <= as_of:
        return None
    return f"batch {batch_id} is in the graph as of {there[0]} judgments; this publication is older, as of {as_of}"


def _replace_batch(connection: duckdb.DuckDBPyConnection, table: Table, batch_id: str, rows: Path) -> None:
    name = identifier(table.name)
    columns = ", ".join(identifier(column.name) for column in table.columns)
    connection.execute(f"DELETE FROM {name} WHERE batch_id = ?", [batch_id])
    connection.execute(
        f"INSERT INTO {name} ({columns}) SELECT {columns} FROM read_parquet(?, hive_partitioning = false)",
        [glob.escape(str(rows))],
    )


# The schema


def _shape(connection: duckdb.DuckDBPyConnection) -> None:
    """Bring the master to the current schema: tables, columns, comments; nothing besides.

    A column that the master lacks is null for the batches that are there, until they are published again.
    """
    present: dict[str, dict[str, str]] = {}
    for table_name, column_name, data_type in connection.execute(
        "SELECT table_name, column_name, data_type FROM duckdb_columns() JOIN duckdb_tables() "
        "USING (database_name, schema_name, table_name) "
        "WHERE database_name = current_database() AND schema_name = 'main' ORDER BY table_name, column_index"
    ).fetchall():
        present.setdefault(table_name, {})[column_name] = data_type
    expected = {
        table.name: {column.name: duckdb_type(column.dtype) for column in table.columns} for table in GRAPH_TABLES
    }
    for stranger in present.keys() - expected.keys():
        connection.execute(f"DROP TABLE {identifier(stranger)}")
    for table in GRAPH_TABLES:
        there = present.get(table.name)
        if there is None:
            _create_table(connection, table)
        elif list(there.items()) != list(expected[table.name].items()):
            _rebuild_table(connection, table, there)
    _comment(connection)


def _create_table(connection: duckdb.DuckDBPyConnection, table: Table) -> None:
    columns = [f"{identifier(column.name)} {duckdb_type(column.dtype)}" for column in table.columns]
    connection.execute(f"CREATE TABLE {identifier(table.name)} ({', '.join(columns)})")


def _rebuild_table(connection: duckdb.DuckDBPyConnection, table: Table, there: Mapping[str, str]) -> None:
    name = identifier(table.name)
    kept = [column for column in table.columns if column.name in there]
    connection.execute(f"CREATE TEMP TABLE kept_rows AS SELECT * FROM {name}")
    connection.execute(f"DROP TABLE {name}")
    _create_table(connection, table)
    targets = ", ".join(identifier(column.name) for column in kept)
    values = ", ".join(f"TRY_CAST({identifier(column.name)} AS {duckdb_type(column.dtype)})" for column in kept)
    if {column.name for column in kept} >= set(ROW_KEYS[table.name]):
        connection.execute(f"INSERT INTO {name} ({targets}) SELECT {values} FROM kept_rows")
    connection.execute("DROP TABLE kept_rows")


def _comment(connection: duckdb.DuckDBPyConnection) -> None:
    """Put the meaning of tables and columns where analysts see it; only what differs is written."""
    here = "WHERE database_name = current_database() AND schema_name = 'main'"
    on_tables = dict(connection.execute(f"SELECT table_name, comment FROM duckdb_tables() {here}").fetchall())
    on_columns = {
        (table, column): comment
        for table, column, comment in connection.execute(
            f"SELECT table_name, column_name, comment FROM duckdb_columns() {here}"
        ).fetchall()
    }
    for table in GRAPH_TABLES:
        name = identifier(table.name)
        if on_tables[table.name] != table.description:
            connection.execute(f"COMMENT ON TABLE {name} IS {literal(table.description)}")
        for column in table.columns:
            if on_columns[table.name, column.name] != column.description:
                target = f"{name}.{identifier(column.name)}"
                connection.execute(f"COMMENT ON COLUMN {target} IS {literal(column.description)}")


def _create_views(connection: duckdb.DuckDBPyConnection) -> None:
    current = views()
    for (name,) in connection.execute(
        "SELECT view_name FROM duckdb_views() "
        "WHERE database_name = current_database() AND schema_name = 'main' AND NOT internal"
    ).fetchall():
        if name not in current:
            connection.execute(f"DROP VIEW {identifier(name)}")
    for name, sql in current.items():
        connection.execute(sql)
        connection.execute(f"COMMENT ON VIEW {identifier(name)} IS {literal(_question(sql))}")


def _question(sql: str) -> str:
    """The comment that opens a view's file."""
    lines = []
    for line in sql.splitlines():
        if not line.startswith("--"):
            break
        lines.append(line.removeprefix("--").strip())
    return " ".join(lines)


# The public file


def _replace_public(place: _Place) -> None:
    """Put a byte-copy of the closed master in the public file's place."""
    shutil.copyfile(place.master, place.public_draft)
    put_in_place(place.public_draft, place.public)
