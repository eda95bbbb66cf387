"""From the first schema to this one with data in every table; what an open does to an old, new or missing schema."""

import hashlib
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from filelock import FileLock

import cj_pipeline.ledger.migrations
from cj_pipeline.core.errors import CJError
from cj_pipeline.core.models import BatchStatus, EssayRole, Winner
from cj_pipeline.ledger import Lease, Ledger, LedgerSchemaError
from cj_pipeline.ledger import tables as t
from cj_pipeline.ledger.engine import (
    HEAD,
    VERSION_TABLE,
    current_revision,
    known_revisions,
    make_engine,
    upgrade,
    write_transaction,
)
from cj_pipeline_tests.builders import judged, new_batch, start, wave_plan

TABLES_OF_0001 = [
    "texts",
    "assignments",
    "anchor_essays",
    "batches",
    "batch_essays",
    "waves",
    "comparisons",
    "attempts",
]

AT = "2025-03-01 08:00:00.250000"
LATER = "2025-03-01 08:00:05.000000"
SHA = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("k1", "s1", "s2", "s3")}

# one finished batch with a judged, a failed and a lost call; one interrupted in its first wave; one not yet begun
ROWS = {
    "texts": [
        {"text_sha256": sha, "text": f"Dear {name}, \u00e5\u00e4\u00f6 “quoted”", "word_count": 3, "created_at": AT}
        for name, sha in SHA.items()
    ],
    "assignments": [
        {
            "assignment_id": "letters",
            "revision": revision,
            "title": "A letter",
            "language": "en",
            "grade_scale": "own",
            "grade_scale_definition": '{"grades": ["low", "high"]}' if revision == 2 else None,
            "instructions": "Judge it.",
            "student_prompt": "Write.",
            "judge_rubric": "Content.",
            "content_sha256": str(revision) * 64,
            "created_at": AT,
        }
        for revision in (1, 2)
    ],
    "anchor_essays": [
        {
            "assignment_id": "letters",
            "revision": revision,
            "anchor_ref": "k1",
            "grade": grade,
            "text_sha256": SHA["k1"],
            "created_at": AT,
        }
        for revision, grade in ((1, "low"), (2, "high"))
    ],
    "batches": [
        {
            "batch_id": batch_id,
            "kind": "assessment",
            "assignment_id": "letters",
            "assignment_revision": 1,
            "request_sha256": "r" * 64,
            "judge_profile": "cj-generic",
            "provider": "simulated",
            "model": "cj-generic",
            "simulated": True,
            "overrides": '{"max_judgment_attempts": 2}',
            "settings": '{"batch_timeout_hours": 4.0}',
            "total_budget": budget,
            "status": status,
            "stop_reason": reason,
            "code_version": "0.0.9",
            "processing_metadata": '{"prior_sd": 1.5}',
            "lease_owner": owner,
            "lease_epoch": epoch,
            "lease_since": since,
            "lease_expires_at": expires,
            "created_at": AT,
            "completed_at": completed,
        }
        for batch_id, budget, status, reason, owner, epoch, since, expires, completed in (
            ("done", 3, "COMPLETE_MAX_COMPARISONS", "budget_spent", None, 2, None, None, LATER),
            ("cut-off", 5, "JUDGING", None, "oldhost:77", 1, 1740816000.25, 1740816030.25, None),
            ("defective", None, "SUBMITTED", None, None, 0, None, None, None),
        )
    ],
    "batch_essays": [
        {"batch_id": batch_id, "essay_id": essay_id, "role": role, "known_grade": grade, "text_sha256": sha}
        for batch_id in ("done", "cut-off")
        for essay_id, role, grade, sha in (
            ("ANCHOR_k1", "anchor", "low", SHA["k1"]),
            ("s1", "student", None, SHA["s1"]),
            ("s2", "student", None, SHA["s2"]),
            ("s3", "student", None, SHA["s3"]),
        )
    ],
    "waves": [
        {
            "batch_id": "done",
            "wave": 1,
            "pair_mode": "coverage",
            "cut_by_budget": True,
            "started_at": AT,
            "ended_at": LATER,
            "callbacks": 3,
            "max_score_change": None,
            "mean_se": 0.5,
            "max_se": 0.75,
            "scores": '{"s1": 0.5, "s2": -0.5}',
            "ses": '{"s1": 0.7, "s2": 0.7}',
            "decision": "FINALIZE_SCORING",
            "reason": "budget_spent",
        },
        {
            "batch_id": "cut-off",
            "wave": 1,
            "pair_mode": "coverage",
            "cut_by_budget": False,
            "started_at": AT,
            "ended_at": None,
            "callbacks": None,
            "max_score_change": None,
            "mean_se": None,
            "max_se": None,
            "scores": None,
            "ses": None,
            "decision": None,
            "reason": None,
        },
    ],
    "comparisons": [
        {
            "batch_id": batch_id,
            "comparison_id": f"w00001-c{number:05d}",
            "wave": 1,
            "essay_a": a,
            "essay_b": b,
            "pair_mode": "coverage",
            "status": status,
            "winner": winner,
            "confidence": confidence,
            "justification": "It is clearer." if winner else None,
            "error_type": error,
            "completed_at": None if status == "planned" else LATER,
        }
        for batch_id, number, a, b, status, winner, confidence, error in (
            ("done", 1, "s1", "s2", "judged", "essay_a", 5, None),
            ("done", 2, "s3", "ANCHOR_k1", "judged", "essay_b", None, None),
            ("done", 3, "s2", "s3", "failed", None, None, "malformed"),
            ("cut-off", 1, "s1", "s2", "judged", "essay_b", 1, None),
            ("cut-off", 2, "s3", "ANCHOR_k1", "planned", None, None, None),
        )
    ],
    "attempts": [
        {
            "attempt_id": attempt_id,
            "batch_id": batch_id,
            "comparison_id": f"w00001-c{number:05d}",
            "number": attempt,
            "lease_epoch": 1,
            "provider": "simulated",
            "model": "cj-generic",
            "prompt_sha256": "p" * 64,
            "sent_at": AT,
            "finished_at": None if outcome is None else LATER,
            "outcome": outcome,
            "error_type": error,
            "http_status": 200 if outcome == "judged" else None,
            "request_id": f"req-{attempt_id}",
            "tokens_input": 100,
            "tokens_output": 10,
            "latency_seconds": 1.5,
            "cost_usd": None if outcome is None else 0.25,
        }
        for attempt_id, batch_id, number, attempt, outcome, error in (
            (1, "done", 1, 1, "lost", "lost"),
            (2, "done", 1, 1, "judged", None),
            (3, "done", 2, 1, "judged", None),
            (4, "done", 3, 1, "error", "malformed"),
            (5, "cut-off", 1, 1, "judged", None),
            (6, "cut-off", 2, 1, None, None),
        )
    ],
}


@pytest.fixture
def old_engine(empty_url):
    """A ledger of revision 0001 with rows in every table."""
    engine = make_engine(empty_url)
    upgrade(engine, "0001")
    insert_rows(engine)
    yield engine
    engine.dispose()


def insert_rows(engine):
    zone = "+00" if engine.dialect.name == "postgresql" else ""
    with write_transaction(engine) as connection:
        for table in TABLES_OF_0001:
            for row in ROWS[table]:
                values = {name: value + zone if value in (AT, LATER) else value for name, value in row.items()}
                columns = ", ".join(values)
                places = ", ".join(f":{name}" for name in values)
                connection.execute(sa.text(f"INSERT INTO {table} ({columns}) VALUES ({places})"), values)
        if engine.dialect.name == "postgresql":
            connection.execute(sa.text("SELECT setval(pg_get_serial_sequence('attempts', 'attempt_id'), 6)"))


def stored(engine):
    """The columns of 0001 of every table of 0001, as the database holds them."""
    found = {}
    with engine.connect() as connection:
        for table in TABLES_OF_0001:
            names = list(ROWS[table][0])
            rows = connection.execute(sa.text(f"SELECT {', '.join(names)} FROM {table}")).all()
            found[table] = sorted((dict(zip(names, row, strict=True)) for row in rows), key=repr)
    return found


def schema(engine):
    """Everything the database says about its schema, in comparable form."""
    inspector = sa.inspect(engine)
    found = {}
    for table in inspector.get_table_names():
        if table == VERSION_TABLE:
            continue
        found[table] = {
            "columns": {
                column["name"]: (str(column["type"]), column["nullable"], _default(column["default"]))
                for column in inspector.get_columns(table)
            },
            "primary key": inspector.get_pk_constraint(table),
            "foreign keys": sorted(
                (key["name"], key["constrained_columns"], key["referred_table"], key["referred_columns"])
                for key in inspector.get_foreign_keys(table)
            ),
            "checks": sorted((check["name"], check["sqltext"]) for check in inspector.get_check_constraints(table)),
            "indexes": sorted(
                (
                    index["name"],
                    index["column_names"],
                    index["unique"],
                    sorted((name, str(value)) for name, value in index.get("dialect_options", {}).items()),
                )
                for index in inspector.get_indexes(table)
            ),
        }
    return found


def _default(default):
    return default.strip("'") if isinstance(default, str) else default


# --- nothing is lost -------------------------------------------------------------------------------------------------


def test_an_upgrade_keeps_every_value_of_every_row_and_translates_the_winners(old_engine):
    before = stored(old_engine)
    assert {table: len(rows) for table, rows in before.items()} == {table: len(rows) for table, rows in ROWS.items()}
    for row in before["comparisons"]:
        row["winner"] = {"essay_a": "a", "essay_b": "b", None: None}[row["winner"]]
    upgrade(old_engine)
    after = stored(old_engine)
    for table in TABLES_OF_0001:
        assert after[table] == sorted(before[table], key=repr), table


def test_an_upgrade_gives_each_batch_a_correlation_id_of_its_own_that_is_the_same_every_time(old_engine):
    upgrade(old_engine)
    ledger = Ledger(old_engine)
    ids = {batch.batch_id: batch.correlation_id for batch in ledger.batches()}
    assert len(set(ids.values())) == 3
    assert ids == {name: str(uuid.uuid5(uuid.NAMESPACE_OID, name)) for name in ids}


def test_the_ledger_reads_what_the_first_schema_recorded(old_engine):
    upgrade(old_engine)
    ledger = Ledger(old_engine)
    done = ledger.batch("done")
    assert done.status is BatchStatus.COMPLETE_MAX_COMPARISONS
    assert done.overrides == {"max_judgment_attempts": 2}
    assert done.processing_metadata == {"prior_sd": 1.5}
    assert done.simulated is True
    assert done.created_at == datetime(2025, 3, 1, 8, 0, 0, 250_000, tzinfo=UTC)
    assert done.completed_at == datetime(2025, 3, 1, 8, 0, 5, tzinfo=UTC)
    assert (done.launch, done.idle_launches, done.hold_reason, done.published_at) == (0, 0, None, None)
    assert [(c.winner, c.confidence) for c in ledger.comparisons("done")] == [
        (Winner.A, 5),
        (Winner.B, None),
        (None, None),
    ]
    assert [c.winner_id for c in ledger.comparisons("done")] == ["s1", "ANCHOR_k1", None]
    anchor = ledger.essays("done")[0]
    assert (anchor.role, anchor.known_grade, anchor.quality) == (EssayRole.ANCHOR, "low", None)
    assert ledger.texts("done")["s1"] == "Dear s1, åäö “quoted”"
    state = ledger.state("done")
    assert (state.submitted, state.judged, state.failed, state.pending, state.successful_pairs) == (3, 2, 1, 0, 2)
    assert ledger.attempt_counts("done") == {"judged": 2, "error": 1, "lost": 1}
    assert ledger.cost_usd("done") == pytest.approx(1.0)
    first = ledger.comparison_records("done")[0]
    assert (first.attempts, first.lost_attempts, first.tokens_in, first.cost_usd) == (2, 1, 200, 0.5)
    (wave,) = ledger.waves("done")
    assert wave.scores == {"s1": 0.5, "s2": -0.5}
    assert wave.provider_rejected is False
    assert [record.revision for record in ledger.assignments()] == [2]
    assert ledger.assignment("letters").grade_scale_definition == {"grades": ["low", "high"]}
    assert [a.grade for a in ledger.anchors(ledger.assignment("letters", 1))] == ["low"]
    assert ledger.state("defective").total_budget is None


def test_an_upgrade_queues_old_calls_at_the_moment_they_were_sent(old_engine):
    upgrade(old_engine)
    with old_engine.connect() as connection:
        rows = connection.execute(sa.select(t.attempts.c.queued_at, t.attempts.c.sent_at)).all()
    assert len(rows) == len(ROWS["attempts"])
    assert all(row.queued_at == row.sent_at for row in rows)


def test_a_batch_interrupted_under_the_first_schema_goes_on_under_this_one(old_engine):
    upgrade(old_engine)
    ledger = Ledger(old_engine)
    assert ledger.batch("cut-off").lease_abandoned
    lease = Lease.acquire(ledger, "cut-off", owner="newhost:1", seconds=30)
    assert lease.epoch == 2
    assert ledger.attempt_counts("cut-off") == {"judged": 1, "lost": 1}
    (attempt,) = lease.record([start("w00001-c00002")])
    assert attempt > 6
    lease.record([judged(attempt, "w00001-c00002", Winner.B)])
    lease.plan_wave(wave_plan(2, [("s2", "s3")]))
    state = ledger.state("cut-off")
    assert (state.submitted, state.judged, state.pending) == (3, 2, 1)


# --- the schema ------------------------------------------------------------------------------------------------------


def test_the_migrated_schema_is_the_one_the_program_declares(old_engine):
    upgrade(old_engine)
    with old_engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "version_table": VERSION_TABLE})
        assert compare_metadata(context, t.metadata) == []


def test_the_migrated_schema_is_down_to_checks_and_defaults_the_one_created_directly(old_engine):
    upgrade(old_engine)
    migrated = schema(old_engine)
    with old_engine.begin() as connection:
        # the same database, so that both are described alike
        t.metadata.drop_all(connection)
        t.metadata.create_all(connection)
    assert migrated.keys() == t.metadata.tables.keys()
    assert schema(old_engine) == migrated


BAD_CHANGES = [
    ("winner = 'x'", "winner_known"),
    ("winner = NULL", "judged_has_winner"),
    ("status = 'planned'", "judged_has_winner"),
    ("status = 'odd', winner = NULL", "status_known"),
    ("confidence = 6", "confidence_range"),
    ("essay_b = essay_a", "two_essays"),
    ("essay_b = 'nobody'", "(?i)foreign key"),
    ("pair_mode = 'odd'", "pair_mode_known"),
]


def test_the_constraints_of_migrated_comparisons_refuse_bad_rows(old_engine, subtests):
    upgrade(old_engine)
    for change, constraint in BAD_CHANGES:
        update = f"UPDATE comparisons SET {change} WHERE batch_id = 'done' AND comparison_id = 'w00001-c00001'"
        refused = pytest.raises(sa.exc.IntegrityError, match=constraint)
        with subtests.test(change), refused, write_transaction(old_engine) as connection:
            connection.execute(sa.text(update))


def test_a_migrated_comparison_may_be_withdrawn(old_engine):
    upgrade(old_engine)
    with write_transaction(old_engine) as connection:
        connection.execute(sa.text("UPDATE comparisons SET status = 'withdrawn' WHERE status = 'planned'"))
    assert Ledger(old_engine).state("cut-off").submitted == 1


def test_the_constraints_of_migrated_batches_and_attempts_refuse_bad_rows(old_engine):
    upgrade(old_engine)
    for statement, constraint in (
        ("UPDATE batches SET total_budget = 0", "budget_positive"),
        ("UPDATE batches SET correlation_id = NULL", "(?i)not.null"),
        ("UPDATE batches SET assignment_revision = 9", "(?i)foreign key"),
        ("UPDATE attempts SET outcome = 'odd'", "outcome_known"),
        ("UPDATE attempts SET queued_at = NULL", "(?i)not.null"),
        ("UPDATE attempts SET outcome = 'judged' WHERE attempt_id = 1", "(?i)unique"),
        ("UPDATE attempts SET outcome = NULL WHERE attempt_id IN (1, 2)", "(?i)unique"),
        ("UPDATE batch_essays SET known_grade = NULL", "anchor_has_grade"),
        ("DELETE FROM texts", "(?i)foreign key"),
    ):
        with pytest.raises(sa.exc.IntegrityError, match=constraint), write_transaction(old_engine) as connection:
            connection.execute(sa.text(statement))


def test_the_program_was_built_for_the_newest_revision_and_there_is_only_one():
    folder = Path(cj_pipeline.ledger.migrations.__file__).parent
    assert ScriptDirectory(str(folder)).get_heads() == [HEAD]
    assert known_revisions() == ["0004", "0003", "0002", "0001"]


def test_upgrading_twice_changes_nothing(old_engine):
    upgrade(old_engine)
    before, layout = stored(old_engine), schema(old_engine)
    upgrade(old_engine)
    assert (stored(old_engine), schema(old_engine)) == (before, layout)


# --- all or nothing --------------------------------------------------------------------------------------------------


def test_an_upgrade_that_fails_at_its_last_step_leaves_the_old_ledger_as_it_was(old_engine):
    with write_transaction(old_engine) as connection:
        # the last thing the newest revision does is to create this table and its index
        connection.execute(sa.text("CREATE TABLE provider_jobs (job_key INTEGER)"))
    before, layout = stored(old_engine), schema(old_engine)
    with pytest.raises(sa.exc.DBAPIError, match="provider_jobs"):
        upgrade(old_engine)
    assert current_revision(old_engine) == "0001"
    assert stored(old_engine) == before
    assert schema(old_engine) == layout
    with write_transaction(old_engine) as connection:
        connection.execute(sa.text("DROP TABLE provider_jobs"))
    upgrade(old_engine)
    assert Ledger(old_engine).state("done").judged == 2


def test_a_sqlite_upgrade_that_would_keep_dangling_rows_is_not_done(tmp_path):
    engine = make_engine(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    upgrade(engine, "0001")
    insert_rows(engine)
    with engine.connect() as connection:
        connection.connection.driver_connection.execute("PRAGMA foreign_keys = OFF")
        connection.exec_driver_sql("DELETE FROM texts WHERE text LIKE 'Dear s3%'")
        connection.commit()
        connection.invalidate()
    before, layout = stored(engine), schema(engine)
    with pytest.raises(CJError, match="would leave 2 rows without what they refer to: not done"):
        upgrade(engine)
    assert (current_revision(engine), stored(engine), schema(engine)) == ("0001", before, layout)
    engine.dispose()


# --- what an open does -----------------------------------------------------------------------------------------------


def test_an_old_schema_is_refused_with_the_command_that_mends_it_and_left_untouched(old_engine, empty_url):
    before, layout = stored(old_engine), schema(old_engine)
    with pytest.raises(LedgerSchemaError, match=r"schema is 0001, this program needs 0004: .*`cj ledger upgrade`"):
        Ledger.open(empty_url)
    assert (current_revision(old_engine), stored(old_engine), schema(old_engine)) == ("0001", before, layout)


def test_a_refused_open_changes_no_byte_of_an_old_sqlite_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "ledger.sqlite"
    engine = make_engine(f"sqlite:///{path}")
    upgrade(engine, "0001")
    insert_rows(engine)
    engine.dispose()
    (tmp_path / "ledger.sqlite.migrate.lock").unlink(missing_ok=True)
    before = path.read_bytes()
    with pytest.raises(LedgerSchemaError):
        Ledger.open(f"sqlite:///{path}")
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["ledger.sqlite"]


def test_a_schema_newer_than_the_program_is_refused_and_not_upgraded(ledger, ledger_url):
    with write_transaction(ledger.engine) as connection:
        connection.execute(sa.text("UPDATE cj_alembic_version SET version_num = '9999'"))
    newer = r"schema 9999 is newer than this program \(0004\): update cj_pipeline"
    with pytest.raises(LedgerSchemaError, match=newer):
        Ledger.open(ledger_url)
    with pytest.raises(LedgerSchemaError, match=newer):
        upgrade(ledger.engine)
    assert current_revision(ledger.engine) == "9999"


def test_a_fresh_sqlite_ledger_is_made_at_its_first_use(tmp_path):
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    first = Ledger.open(url)
    assert first.batches() == []
    assert first.submit_batch(new_batch())
    first.close()
    second = Ledger.open(url)
    assert [batch.batch_id for batch in second.batches()] == ["b1"]
    second.close()


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_fresh_postgresql_database_is_refused_until_it_is_upgraded(empty_url):
    with pytest.raises(LedgerSchemaError, match="holds no ledger yet: run `cj ledger upgrade` once"):
        Ledger.open(empty_url)
    engine = make_engine(empty_url)
    assert sa.inspect(engine).get_table_names() == []
    upgrade(engine)
    engine.dispose()
    ledger = Ledger.open(empty_url)
    assert ledger.batches() == []
    ledger.close()


def test_a_ledger_may_share_its_database_with_another_program_that_alembic_migrates(empty_url):
    engine = make_engine(empty_url)
    with write_transaction(engine) as connection:
        connection.execute(sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
        connection.execute(sa.text("INSERT INTO alembic_version VALUES ('theirs')"))
    upgrade(engine)
    ledger = Ledger.open(empty_url)
    assert ledger.submit_batch(new_batch())
    ledger.close()
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).all() == [("theirs",)]
    engine.dispose()


def test_upgrades_at_the_same_time_wait_for_each_other(empty_url):
    engines = [make_engine(empty_url) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        assert [done.result() for done in [pool.submit(upgrade, engine) for engine in engines]] == [None] * 3
    assert {current_revision(engine) for engine in engines} == {HEAD}
    for engine in engines:
        engine.dispose()


def test_a_sqlite_upgrade_waits_for_another_process_that_migrates(tmp_path):
    path = tmp_path / "ledger.sqlite"
    engine = make_engine(f"sqlite:///{path}")
    with ThreadPoolExecutor(1) as pool:
        with FileLock(f"{path}.migrate.lock"):
            done = pool.submit(upgrade, engine)
            with pytest.raises(TimeoutError):
                done.result(timeout=0.3)
            assert current_revision(engine) is None
        done.result(timeout=60)
    assert current_revision(engine) == HEAD
    engine.dispose()


OPEN_IN_SIX_PROCESSES = """
import os, sys
from cj_pipeline.ledger import Ledger
from cj_pipeline.ledger.engine import known_revisions

known_revisions()  # the slow imports, once
failed = 0
for url in sys.argv[1:]:
    wait, go = os.pipe()
    children = []
    for _ in range(6):
        child = os.fork()
        if child == 0:
            os.close(go)
            os.read(wait, 1)  # until every end is closed
            ledger = Ledger.open(url)
            ledger.batches()
            ledger.close()
            os._exit(0)
        children.append(child)
    os.close(go)
    os.close(wait)
    failed += sum(os.waitpid(child, 0)[1] != 0 for child in children)
print(failed)
"""


# switching a fresh file to WAL, SQLite does not always wait for others that do the same: about once in forty times
@pytest.mark.parametrize("times", [1, pytest.param(150, marks=pytest.mark.slow)])
def test_six_processes_may_use_a_fresh_sqlite_ledger_first(tmp_path, times):
    urls = [f"sqlite:///{tmp_path / f'new-{k}' / 'ledger.sqlite'}" for k in range(times)]
    command = [sys.executable, "-c", OPEN_IN_SIX_PROCESSES, *urls]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert (done.stdout, done.stderr) == ("0\n", "")
    engine = make_engine(urls[-1])
    assert current_revision(engine) == HEAD
    engine.dispose()
