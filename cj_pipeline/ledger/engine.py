"""Opening the ledger's database: SQLite (WAL, full sync) or PostgreSQL, and its schema revisions.

Nothing here knows what the tables mean.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy.engine import Connection, Engine, ExceptionContext
from sqlalchemy.exc import DBAPIError

from cj_pipeline.core.errors import CJError, InputError
from cj_pipeline.ledger.errors import LedgerSchemaError

_WRITE: Final = "cj_write"
_MIGRATE: Final = "cj_migrate"
_LOCK_TIMEOUT_SECONDS: Final = 120
_BUSY_SECONDS: Final = 60
VERSION_TABLE: Final = "cj_alembic_version"
"""Not Alembic's default name: Dagster's storage, which may share the database, uses that."""
HEAD: Final = "0004"
"""The revision this program was built for (a test holds it to the newest migration)."""


def make_engine(url: str) -> Engine:
    """An engine for a SQLAlchemy URL of SQLite or PostgreSQL. Its errors quote no parameter and no row.

    Raises:
        InputError: any other database, or a URL that does not parse (the URL may hold a password, so it is not
            repeated).
        CJError: the folder of a SQLite file cannot be made.
    """
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            _make_folder(Path(parsed.database).parent)
        engine = sa.create_engine(
            parsed, hide_parameters=True, connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False}
        )
        sa.event.listen(engine, "connect", _sqlite_connect)
        sa.event.listen(engine, "begin", _sqlite_begin)
        return engine
    if parsed.get_backend_name() == "postgresql":
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg2")
        engine = sa.create_engine(parsed, hide_parameters=True, pool_pre_ping=True)
        sa.event.listen(engine, "handle_error", _postgresql_error)
        return engine
    raise InputError(f"CJ_LEDGER_URL names {parsed.get_backend_name()}: the ledger is SQLite or PostgreSQL")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CJError(
            f"the ledger's folder {folder} cannot be made ({error.strerror}): correct CJ_LEDGER_URL or CJ_DATA_DIR, or "
            "make the folder above it writable"
        ) from None


def _parsed(url: str) -> sa.URL:
    try:
        return sa.make_url(url)
    except sa.exc.ArgumentError:
        raise InputError("CJ_LEDGER_URL is not a SQLAlchemy URL, e.g. postgresql+psycopg2://user@host/db") from None


def _sqlite_connect(dbapi_connection: Any, _record: Any) -> None:
    # the driver must not begin transactions of its own: _sqlite_begin does
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {1000 * _BUSY_SECONDS}")
    _write_ahead(cursor)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _write_ahead(cursor: Any) -> None:
    """Set WAL mode. Where a fresh file is opened by several at once SQLite does not wait for the others here."""
    give_up = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(0.01)


def _sqlite_begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get(_MIGRATE):
        # recreating a table would trip over rows that reference it; the pragma has no effect inside a transaction
        connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get(_WRITE) else "BEGIN")


def _postgresql_error(context: ExceptionContext) -> None:
    # the server quotes the row that breaks a constraint, and a row may hold a text or a justification
    for error in (context.original_exception, context.sqlalchemy_exception):
        if error is not None:
            error.args = tuple(a.split("\nDETAIL:")[0] if isinstance(a, str) else a for a in error.args)


@contextmanager
def write_transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes: SQLite takes the write lock at once, so that what it reads stays true."""
    with engine.connect().execution_options(**{_WRITE: True}) as connection, connection.begin():
        yield connection


@contextmanager
def read_transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction that only reads, from one snapshot."""
    connection = engine.connect()
    if engine.dialect.name == "postgresql":
        connection = connection.execution_options(isolation_level="REPEATABLE READ")
    with connection, connection.begin():
        yield connection


def database_now(dialect_name: str) -> sa.ColumnElement[float]:
    """The database's clock, in seconds since 1970 UTC."""
    if dialect_name == "postgresql":
        return sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()), sa.Double)
    return (sa.func.julianday("now") - 2440587.5) * 86400.0


def _alembic_config() -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def current_revision(engine: Engine) -> str | None:
    """The revision of the database; None if it holds no ledger."""
    try:
        with read_transaction(engine) as connection:
            if not sa.inspect(connection).has_table(VERSION_TABLE):
                return None
            return connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar_one_or_none()
    except DBAPIError as error:
        raise CJError(
            f"the ledger cannot be read ({type(error.orig).__name__}): check CJ_LEDGER_URL and that its "
            "database is running"
        ) from None


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the schema to `revision`, all or nothing; under a file lock for SQLite, an advisory lock for PostgreSQL.

    Raises:
        LedgerSchemaError: the schema is newer than this program.
        CJError: another process kept the lock too long.
    """
    from alembic import command

    _refuse_newer(current_revision(engine))
    config = _alembic_config()
    with _migration_lock(engine), engine.connect() as plain:
        connection = plain.execution_options(**{_WRITE: True, _MIGRATE: True})
        try:
            with connection.begin():
                if engine.dialect.name == "postgresql":
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(724150)"))
                config.attributes["connection"] = connection
                command.upgrade(config, revision)
                if engine.dialect.name == "sqlite":
                    _refuse_broken_references(connection)
        finally:
            # on SQLite its foreign keys are off: nobody may get it from the pool
            plain.invalidate()


def _refuse_broken_references(connection: Connection) -> None:
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
    if broken:
        raise CJError(f"the upgrade would leave {len(broken)} rows without what they refer to: not done")


@contextmanager
def _migration_lock(engine: Engine) -> Iterator[None]:
    database = engine.url.database
    if engine.dialect.name != "sqlite" or not database or database == ":memory:":
        yield
        return
    lock = FileLock(f"{database}.migrate.lock")
    try:
        with lock.acquire(timeout=_LOCK_TIMEOUT_SECONDS):
            yield
    except Timeout:
        raise CJError(
            f"another process has been migrating {database} for {_LOCK_TIMEOUT_SECONDS} s: wait, or end it"
        ) from None


def prepare(engine: Engine) -> None:
    """Make sure that the schema is the one this program was built for.

    A SQLite database without a ledger is given one (its first use). Everything else is left alone.

    Raises:
        LedgerSchemaError: the schema is older or newer than this program, a PostgreSQL database has none, or a SQLite
            database has other tables.
    """
    revision = current_revision(engine)
    if revision == HEAD:
        return
    if revision is None and engine.dialect.name == "sqlite":
        _refuse_foreign(engine)
        upgrade(engine)
        return
    if revision is None:
        raise LedgerSchemaError("the database holds no ledger yet: run `cj ledger upgrade` once")
    _refuse_newer(revision)
    raise LedgerSchemaError(
        f"the ledger's schema is {revision}, this program needs {HEAD}: make a copy, then run `cj ledger upgrade`"
    )


def _refuse_foreign(engine: Engine) -> None:
    with read_transaction(engine) as connection:
        tables = sa.inspect(connection).get_table_names()
    if tables:
        raise LedgerSchemaError(
            f"{engine.url.database} holds {len(tables)} tables that are not a ledger's: point CJ_LEDGER_URL at a new "
            "file"
        )


def _refuse_newer(revision: str | None) -> None:
    if revision is not None and revision not in known_revisions():
        raise LedgerSchemaError(
            f"the ledger's schema {revision} is newer than this program ({HEAD}): update cj_pipeline"
        )


def known_revisions() -> list[str]:
    """All revisions this program knows."""
    from alembic.script import ScriptDirectory

    return [script.revision for script in ScriptDirectory.from_config(_alembic_config()).walk_revisions()]


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite URL, there or not; None for any other database, and for one in memory.

    Raises:
        InputError: see `make_engine`.
    """
    parsed = _parsed(url)
    in_file = parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:")
    return Path(str(parsed.database)) if in_file else None


def without_password(url: str) -> str:
    """A URL that may be shown."""
    return sa.make_url(url).render_as_string(hide_password=True)
