"""Opening a ledger: which databases, which guarantees a connection gives, whose clock, and what errors say."""

import threading
import time

import pytest
import sqlalchemy as sa

from cj_pipeline.core.errors import CJError, InputError
from cj_pipeline.ledger import Ledger
from cj_pipeline.ledger.engine import (
    current_revision,
    database_now,
    make_engine,
    read_transaction,
    upgrade,
    without_password,
    write_transaction,
)
from cj_pipeline_tests.builders import new_batch


def sqlite_url(path):
    return f"sqlite:///{path}"


def pragma(connection, name):
    return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


def count_batches(connection):
    return connection.execute(sa.text("SELECT count(*) FROM batches")).scalar()


# --- which databases -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["mysql+pymysql://u:secret@h/d", "duckdb:///x", "oracle://u:secret@h/d"])
def test_any_other_database_is_refused_by_name(url):
    with pytest.raises(
        InputError, match=r"CJ_LEDGER_URL names (mysql|duckdb|oracle): .* SQLite or PostgreSQL"
    ) as caught:
        make_engine(url)
    assert "secret" not in str(caught.value)


def test_a_url_that_does_not_parse_is_refused_without_repeating_it():
    with pytest.raises(InputError, match="CJ_LEDGER_URL is not a SQLAlchemy URL") as caught:
        make_engine("postgresql//user:secret@host")
    assert "secret" not in str(caught.value)


def test_a_plain_postgresql_url_means_the_driver_that_is_installed():
    assert make_engine("postgresql://u@h/d").url.drivername == "postgresql+psycopg2"


def test_the_folder_of_a_sqlite_ledger_is_made(tmp_path):
    path = tmp_path / "new" / "deep" / "ledger.sqlite"
    Ledger.open(sqlite_url(path)).close()
    assert path.is_file()


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it_and_the_setting(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CJError, match=rf"{tmp_path / 'file'}.*cannot be made.*CJ_LEDGER_URL or CJ_DATA_DIR"):
        Ledger.open(sqlite_url(tmp_path / "file" / "ledger.sqlite"))


def test_a_url_is_shown_without_its_password():
    assert without_password("postgresql://u:secret@h/d") == "postgresql://u:***@h/d"


def test_a_server_that_is_not_there_is_an_error_that_says_what_to_check(tmp_path):
    with pytest.raises(CJError, match="check CJ_LEDGER_URL and that its database is running") as caught:
        Ledger.open(f"postgresql://u:secret@/d?host={tmp_path}")
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_an_error_that_says_what_to_check(tmp_path):
    path = tmp_path / "ledger.sqlite"
    path.write_text("Dear diary, this is not a database. " * 100)
    with pytest.raises(CJError, match="check CJ_LEDGER_URL"):
        Ledger.open(sqlite_url(path))
    assert path.read_text().startswith("Dear diary")


# --- what a connection guarantees ------------------------------------------------------------------------------------


def test_every_sqlite_connection_writes_ahead_syncs_fully_and_enforces_foreign_keys(tmp_path):
    ledger = Ledger.open(sqlite_url(tmp_path / "ledger.sqlite"))
    with ledger.engine.connect() as first, ledger.engine.connect() as second:
        for connection in (first, second):
            assert pragma(connection, "journal_mode") == "wal"
            assert pragma(connection, "synchronous") == 2  # FULL
            assert pragma(connection, "foreign_keys") == 1
            assert pragma(connection, "busy_timeout") == 60_000
    ledger.close()


def test_foreign_keys_are_enforced_again_after_an_upgrade_that_failed(tmp_path):
    engine = make_engine(sqlite_url(tmp_path / "ledger.sqlite"))
    upgrade(engine, "0001")
    with write_transaction(engine) as connection:
        connection.execute(sa.text("CREATE TABLE batch_events (event_id INTEGER)"))
    with pytest.raises(sa.exc.OperationalError, match="batch_events"):
        upgrade(engine)
    with engine.connect() as connection:
        assert pragma(connection, "foreign_keys") == 1
    engine.dispose()


def test_foreign_keys_are_enforced_again_after_an_upgrade_that_went_well(tmp_path):
    engine = make_engine(sqlite_url(tmp_path / "ledger.sqlite"))
    upgrade(engine)
    with engine.connect() as connection:
        assert pragma(connection, "foreign_keys") == 1
    engine.dispose()


def test_a_failed_write_leaves_nothing(ledger):
    with pytest.raises(ZeroDivisionError), write_transaction(ledger.engine) as connection:
        connection.execute(
            sa.text("INSERT INTO texts (text_sha256, text, word_count, created_at) VALUES ('x', 'y', 1, :now)"),
            {"now": "2026-01-01 00:00:00.000000"},
        )
        raise ZeroDivisionError
    with read_transaction(ledger.engine) as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM texts")).scalar() == 0


def test_a_reader_sees_one_snapshot_however_much_is_written_meanwhile(open_ledger):
    reader, writer = open_ledger(), open_ledger()
    writer.submit_batch(new_batch("before"))
    with read_transaction(reader.engine) as connection:
        assert count_batches(connection) == 1
        writer.submit_batch(new_batch("meanwhile"))  # and a reader does not hold up a writer
        assert count_batches(connection) == 1
    with read_transaction(reader.engine) as connection:
        assert count_batches(connection) == 2


def test_a_sqlite_writer_has_the_write_lock_before_it_reads(tmp_path):
    url = sqlite_url(tmp_path / "ledger.sqlite")
    first, second = Ledger.open(url), Ledger.open(url)
    second_began = threading.Event()

    def write_second():
        with write_transaction(second.engine):
            second_began.set()

    thread = threading.Thread(target=write_second)
    with write_transaction(first.engine) as connection:
        count_batches(connection)  # so far the first has only read
        thread.start()
        assert not second_began.wait(0.3)
    thread.join(10)
    assert second_began.is_set()
    first.close()
    second.close()


# --- the clock -------------------------------------------------------------------------------------------------------


def test_the_databases_clock_counts_seconds_since_1970_utc(ledger):
    with ledger.engine.connect() as connection:
        before = time.time()
        now = connection.execute(sa.select(database_now(connection.dialect.name))).scalar_one()
        after = time.time()
    assert before - 0.01 <= now <= after + 0.01


def test_the_databases_clock_goes_on_within_a_transaction(ledger):
    query = sa.select(database_now(ledger.engine.dialect.name))
    with write_transaction(ledger.engine) as connection:
        first = connection.execute(query).scalar_one()
        time.sleep(0.05)
        assert connection.execute(query).scalar_one() - first > 0.04


# --- revisions -------------------------------------------------------------------------------------------------------


def test_a_database_without_a_ledger_has_no_revision(empty_url):
    engine = make_engine(empty_url)
    assert current_revision(engine) is None
    engine.dispose()


def test_a_sqlite_database_of_another_program_is_left_alone(tmp_path):
    path = tmp_path / "other.sqlite"
    other = sa.create_engine(f"sqlite:///{path}")
    with other.begin() as connection:
        connection.execute(sa.text("CREATE TABLE runs (id INTEGER)"))
    before = path.read_bytes()
    with pytest.raises(CJError, match="1 tables that are not a ledger's: point CJ_LEDGER_URL at a new file"):
        Ledger.open(f"sqlite:///{path}")
    with other.connect() as connection:
        assert sa.inspect(connection).get_table_names() == ["runs"]
    assert len(before) == path.stat().st_size
