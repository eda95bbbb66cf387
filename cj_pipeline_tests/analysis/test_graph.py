"""The graph is published whole, keeps every batch, and survives what analysts and kill signals do to it."""

import multiprocessing
import random
import shutil
import signal
import stat
import statistics
import time
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from filelock import FileLock

from cj_pipeline.analysis import graph
from cj_pipeline.analysis.graph import GraphBusyError, GraphError, GraphTableError, open_graph, publish_batch, views
from cj_pipeline.core.errors import CJError
from cj_pipeline.workflow.frames import GRADE_BOUNDARIES, GRAPH_TABLES

GRADES = ("F", "E", "D", "C", "B", "A")
START = datetime(2025, 3, 30, 1, 59, 59, 123456, tzinfo=UTC)  # an hour before clocks change in Sweden
Rows = list[dict[str, Any]]

# Children come from a server that has the imports done: 8 of them start in a moment, each a real process
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


def batch_tables(batch_id: str, as_of: int, *, seed: int = 0, essays: int = 9) -> dict[str, pl.DataFrame]:
    """Every table of a batch with `as_of` judged comparisons and some planned, failed and withdrawn ones."""
    rng = random.Random(f"{batch_id}/{as_of}/{seed}")
    ids = [f"ANCHOR_{i}" if i < essays // 3 else f"pupil {i}; DROP TABLE essays" for i in range(essays)]
    anchors = {essay: rng.choice(GRADES) for essay in ids[: essays // 3]}
    # the ids sort otherwise than they are listed, and some pairs meet twice, in both orders
    comparisons: Rows = []
    statuses = ["judged"] * as_of + ["failed"] * 3 + ["planned"] * 2 + ["withdrawn"] * 4
    rng.shuffle(statuses)
    for i, status in enumerate(statuses):
        first, second = rng.sample(ids, 2)
        judged, called = status == "judged", status in ("judged", "failed")
        winner = rng.choice("ab") if judged else None
        comparisons.append(
            {
                "batch_id": batch_id,
                "wave": 1 + i // 5,
                "comparison_id": f"{i:06d}",
                "essay_a": first,
                "essay_b": second,
                "winner": winner,
                "winner_id": {"a": first, "b": second}[winner] if winner else None,
                "loser_id": {"a": second, "b": first}[winner] if winner else None,
                "confidence": rng.randint(1, 5) if judged else None,
                "justification_over_cap": rng.random() < 0.5 if judged else None,
                "justification": rng.choice(['It\'s "clearer",\nand longer — häpp ✓', "", "'); --"])
                if judged
                else None,
                "status": status,
                "error_type": "JudgeTimeout" if status == "failed" else None,
                "provider": rng.choice(["openai", "anthropic"]) if judged else None,
                "model": rng.choice(["m-1", "m-2"]) if judged else None,
                "prompt_sha256": "0" * 64 if judged else None,
                "tokens_in": rng.randint(1, 2_000) if called else 0,
                "tokens_out": rng.randint(1, 90) if called else 0,
                "cost_usd": rng.choice([rng.random() / 3, 0.1 + 0.2, *[1e-9] * 9, None]) if called else None,
                "submitted_at": START + timedelta(microseconds=i) if called else None,
                "completed_at": START + timedelta(hours=1, microseconds=i) if called else None,
                "attempts": rng.randint(1, 3) if called else 0,
                "pair_mode": "coverage",
            }
        )
    wins = Counter(row["winner_id"] for row in comparisons if row["winner"])
    losses = Counter(row["loser_id"] for row in comparisons if row["winner"])
    order = sorted(ids, key=lambda essay: (-wins[essay], essay))
    essay_keys = [
        {"batch_id": batch_id, "essay_id": essay, "is_anchor": essay in anchors, "known_grade": anchors.get(essay)}
        for essay in order
    ]
    rows: dict[str, Rows] = {
        "batches": [
            {
                "batch_id": batch_id,
                "assignment_id": None,
                "kind": "assessment",
                "status": "COMPLETE_STABLE",
                "stop_reason": "stable",
                "grade_scale": "s",
                "total_budget": as_of + 50,
                "submitted": as_of + 5,
                "judged": as_of,
                "failed": 3,
                "attempts": sum(row["attempts"] for row in comparisons),
                "lost_attempts": 0,
                "judge_profile": "eng5-anchor",
                "provider": "simulated",
                "model": "cj-generic",
                "simulated": rng.random() < 0.5,
                "cost_usd": None,
                "max_cost_usd": rng.choice([None, 12.5]),
                "batching_mode": "serial_bundle",
                "orphan_results": 0,
                "injection_flagged": 1,
                "correlation_id": "c",
                "code_version": "0.1.0",
                "settings_json": '{"a": [1]}',
                "created_at": START,
                "completed_at": None,
                "as_of": as_of,
            }
        ],
        "essays": [
            {**key, "text_sha256": "f" * 64, "word_count": 200, "injection_signs": rng.choice([None, "", "a,b"])}
            for key in essay_keys
        ],
        "comparisons": comparisons,
        "attempts": [
            {
                "batch_id": batch_id,
                "attempt_id": 10 * i + number,
                "comparison_id": row["comparison_id"],
                "wave": row["wave"],
                "number": number + 1,
                "provider": "openai",
                "model": rng.choice(["m-1", "m-2"]),
                "prompt_sha256": "0" * 64,
                "outcome": rng.choice(["judged", "error", "lost", None]),
                "tokens_input": rng.choice([None, rng.randint(1, 2_000)]),
                "tokens_cache_read": rng.randint(0, 50),
                "cost_usd": rng.choice([None, rng.random()]),
                "queued_at": START,
                "sent_at": START + timedelta(seconds=rng.randint(0, 9)),
                "latency_seconds": rng.random(),
            }
            for i, row in enumerate(comparisons)
            for number in range(row["attempts"])
        ],
        "bt_scores": [
            {
                **key,
                "rank": rank,
                "score": rng.gauss(0, 1.7),
                "se": rng.random(),
                "se_uncapped": rng.random() * 1e300,
                "comparisons": wins[key["essay_id"]] + losses[key["essay_id"]],
                "wins": wins[key["essay_id"]],
                "losses": losses[key["essay_id"]],
                "component": 0,
                "prior_sd": 1.5,
                "simulated": True,
            }
            for rank, key in enumerate(essay_keys, start=1)
        ],
        "waves": [
            {
                "batch_id": batch_id,
                "wave": wave,
                "pair_mode": "coverage",
                "planned": sum(row["wave"] == wave and row["status"] != "withdrawn" for row in comparisons),
                "judged": sum(row["wave"] == wave and row["status"] == "judged" for row in comparisons),
                "failed": sum(row["wave"] == wave and row["status"] == "failed" for row in comparisons),
                "max_score_change": None if wave == 1 else rng.random(),
                "decision": "REQUEST_MORE_COMPARISONS",
                "reason": "coverage",
                "tokens_in": 0,
                "tokens_out": 0,
                "cost_usd": None,
                "started_at": START,
            }
            for wave in sorted({row["wave"] for row in comparisons}, reverse=True)
        ],
        "bt_se_summaries": [
            {
                "batch_id": batch_id,
                "scope": scope,
                "mean_se": None if scope == "anchors" else rng.random(),
                "item_count": essays,
                "comparison_count": as_of,
                "items_at_cap": 0,
                "isolated_items": 0,
            }
            for scope in ("all", "anchors", "students")
        ],
        "quality_flags": [
            {
                "batch_id": batch_id,
                "bt_se_inflated": True,
                "comparison_coverage_sparse": False,
                "has_isolated_items": False,
            }
        ],
        "grade_projections": [
            {
                **key,
                "available": i % 4 != 0,
                "reason": None if i % 4 else "too few anchors",
                "grade": rng.choice(GRADES) if i % 4 else None,
                "confidence": rng.random() if i % 4 else None,
                "label": rng.choice(["HIGH", "MID", "LOW"]) if i % 4 else None,
                "boundary_distance_se": rng.random() * 3 if i % 4 else None,
                "nearest_boundary": "D|C" if i % 4 else None,
                "probabilities": [{"grade": grade, "probability": rng.random()} for grade in GRADES] if i % 4 else [],
                "would_change": rng.random() if i % 4 else None,
                "grade_uniform": rng.choice(GRADES) if i % 4 else None,
                "confidence_uniform": rng.random() if i % 4 else None,
                "probabilities_uniform": [{"grade": grade, "probability": 0.2} for grade in GRADES] if i % 4 else [],
                "simulated": False,
            }
            for i, key in enumerate(essay_keys)
        ],
        "grade_boundaries": [
            {"batch_id": batch_id, "boundary": f"{low}|{high}", "number": number, "is_pass": number == 1}
            | {column.name: rng.random() for column in GRADE_BOUNDARIES.columns if column.dtype == pl.Float64}
            for number, (low, high) in enumerate(pairwise(GRADES), start=1)
        ],
        "anchor_report": [
            {
                "batch_id": batch_id,
                "essay_id": anchor,
                "known_grade": grade,
                "misfit": rng.gauss(0, 1),
                "probability": rng.random(),
                "leverage": rng.random(),
                "influence": rng.choice([None, rng.random()]),
                "inversions": rng.randint(0, 3),
                "replace_first": number == 0,
            }
            for number, (anchor, grade) in enumerate(anchors.items())
        ],
    }
    return {table.name: table.frame(rows[table.name]) for table in GRAPH_TABLES}


def publish(path: Path, batch_id: str, as_of: int, **options: Any) -> graph.Publication:
    return publish_batch(path, batch_id, batch_tables(batch_id, as_of, **options), as_of=as_of)


def rows_of(path: Path, table: str, batch_id: str) -> list[tuple[Any, ...]]:
    frame = next(spec for spec in GRAPH_TABLES if spec.name == table)
    columns = ", ".join(column.name for column in frame.columns)
    with open_graph(path) as connection:
        found = connection.execute(f"SELECT {columns} FROM {table} WHERE batch_id = ?", [batch_id]).fetchall()
    return [_in_utc(row) for row in found]


def assert_holds(path: Path, tables: dict[str, pl.DataFrame], batch_id: str) -> None:
    for name, frame in tables.items():
        assert sorted(rows_of(path, name, batch_id), key=repr) == sorted(_plain(frame), key=repr), name


def _plain(frame: pl.DataFrame) -> list[tuple[Any, ...]]:
    return [_in_utc(row) for row in frame.rows()]


def _in_utc(row: tuple[Any, ...]) -> tuple[Any, ...]:
    # DuckDB's times carry one UTC object, polars' another: equal, but not by repr, which rows with nulls sort by
    return tuple(value.astimezone(UTC) if isinstance(value, datetime) else value for value in row)


def assert_whole(path: Path) -> dict[str, int]:
    """Open the public file as an analyst does; every batch in it must be whole. Batches with their as_of."""
    connection = duckdb.connect(str(path), read_only=True)
    try:
        found = connection.execute(
            "SELECT batch_id, as_of, (SELECT count(*) FROM comparisons c WHERE c.batch_id = b.batch_id), "
            "(SELECT count(*) FROM comparisons c WHERE c.batch_id = b.batch_id AND status = 'judged'), "
            "(SELECT count(*) FROM essays e WHERE e.batch_id = b.batch_id), "
            "(SELECT count(*) FROM v_rankings r WHERE r.batch_id = b.batch_id) FROM batches b"
        ).fetchall()
    finally:
        connection.close()
    for _, as_of, comparisons, judged, essays, ranked in found:
        assert (comparisons, judged, essays, ranked) == (as_of + 9, as_of, 9, 9)
    return {row[0]: row[1] for row in found}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "comparison_graph.duckdb"


# Rows


def test_rows_arrive_exactly_with_nulls_probabilities_and_microseconds(path: Path) -> None:
    tables = batch_tables("b1", 40)
    done = publish_batch(
        path, "b1", {name: frame.select(reversed(frame.columns)) for name, frame in tables.items()}, as_of=40
    )
    assert done.published
    assert done.rows == sum(frame.height for frame in tables.values())
    assert done.public_bytes == path.stat().st_size
    assert_holds(path, tables, "b1")
    with open_graph(path) as connection:
        types = connection.execute("SELECT DISTINCT typeof(probabilities) FROM grade_projections").fetchall()
    assert types == [("STRUCT(grade VARCHAR, probability DOUBLE)[]",)]


def test_an_empty_batch_has_its_row_and_no_others(path: Path) -> None:
    tables = {name: frame.clear() if name != "batches" else frame for name, frame in batch_tables("b1", 0).items()}
    publish_batch(path, "b1", tables, as_of=0)
    assert_holds(path, tables, "b1")
    with open_graph(path) as connection:
        assert connection.execute("SELECT * FROM v_coverage").fetchall() == [("b1", 0, 0, 0, None, False)]
        for view in set(views()) - {"v_coverage"}:
            assert connection.execute(f"SELECT * FROM {view}").fetchall() == []


def test_a_second_publication_replaces_its_batch_and_leaves_the_others(path: Path) -> None:
    publish(path, "b1", 10)
    publish(path, "b2", 20)
    publish(path, "b1", 30, essays=12)
    assert_holds(path, batch_tables("b1", 30, essays=12), "b1")
    assert_holds(path, batch_tables("b2", 20), "b2")


def test_an_older_publication_is_dropped_and_one_as_old_replaces(path: Path) -> None:
    publish(path, "b1", 30)
    older = publish(path, "b1", 29)
    assert not older.published
    assert older.rows == 0
    assert older.reason is not None and "as of 30" in older.reason and "as of 29" in older.reason
    assert_holds(path, batch_tables("b1", 30), "b1")
    assert publish(path, "b1", 30, seed=1).published
    assert_holds(path, batch_tables("b1", 30, seed=1), "b1")


def test_ids_and_folders_with_quotes_and_stars_are_data_not_sql(tmp_path: Path) -> None:
    odd = tmp_path / "a'b [x]*" / "batch_id=z" / "it's.duckdb"
    for batch_id in ("a'b", "'; DROP TABLE batches; --", "b"):
        publish(odd, batch_id, 5)
    for batch_id in ("a'b", "'; DROP TABLE batches; --", "b"):
        assert_holds(odd, batch_tables(batch_id, 5), batch_id)


def test_a_path_that_duckdb_would_take_for_an_address_is_refused(tmp_path: Path) -> None:
    odd = tmp_path / "what?" / "graph.duckdb"
    for use in (lambda: publish(odd, "b1", 5), lambda: open_graph(odd)):
        with pytest.raises(GraphError, match=r"with a '\?'"):
            use()
    assert list(tmp_path.iterdir()) == []


def test_republishing_often_does_not_make_the_file_grow_without_end(path: Path) -> None:
    sizes = [publish(path, "b1", 60, seed=seed).public_bytes for seed in range(12)]
    assert max(sizes[5:]) <= 2 * sizes[4]


# Frames that do not fit


def _without(name: str, column: str) -> dict[str, pl.DataFrame]:
    tables = batch_tables("b1", 5)
    return {**tables, name: tables[name].drop(column)}


def _with(name: str, *columns: pl.Expr) -> dict[str, pl.DataFrame]:
    tables = batch_tables("b1", 5)
    return {**tables, name: tables[name].with_columns(*columns)}


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        (lambda: {**batch_tables("b1", 5), "texts": pl.DataFrame()}, ["texts"]),
        (lambda: {k: v for k, v in batch_tables("b1", 5).items() if k != "waves"}, ["waves", "missing"]),
        (lambda: _without("essays", "word_count"), ["essays", "word_count"]),
        (lambda: _with("essays", pl.lit("secret").alias("text")), ["essays", "text"]),
        (lambda: _with("bt_scores", pl.col("rank").cast(pl.Float64)), ["bt_scores", "rank", "Float64"]),
        (lambda: _with("batches", pl.col("created_at").dt.replace_time_zone(None)), ["batches", "created_at"]),
        (lambda: _with("bt_scores", pl.lit(None, pl.Float64).alias("se")), ["bt_scores", "se", "null"]),
        (lambda: _with("waves", pl.lit("b2").alias("batch_id")), ["waves", "batch_id", "another batch"]),
        (lambda: _with("essays", pl.lit("same").alias("essay_id")), ["essays", "essay_id", "twice"]),
        (lambda: _with("batches", pl.lit(6, pl.Int64).alias("as_of")), ["batches", "as_of", "5"]),
    ],
)
def test_a_table_that_does_not_fit_is_refused_by_name_before_anything_is_written(
    path: Path, tables: Any, told: list[str]
) -> None:
    with pytest.raises(GraphTableError) as caught:
        publish_batch(path, "b1", tables(), as_of=5)
    assert isinstance(caught.value, CJError)
    assert all(word in str(caught.value) for word in ["b1", *told])
    assert not path.parent.exists()


# What analysts see


def test_tables_columns_and_views_explain_themselves(path: Path) -> None:
    publish(path, "b1", 5)
    with open_graph(path) as connection:
        tables = dict(connection.execute("SELECT table_name, comment FROM duckdb_tables()").fetchall())
        columns = connection.execute(
            "SELECT table_name, column_name, comment FROM duckdb_columns() "
            "WHERE table_name IN (SELECT table_name FROM duckdb_tables())"
        ).fetchall()
        view_comments = dict(
            connection.execute("SELECT view_name, comment FROM duckdb_views() WHERE NOT internal").fetchall()
        )
    assert tables == {table.name: table.description for table in GRAPH_TABLES}
    assert sorted(columns) == sorted((t.name, c.name, c.description) for t in GRAPH_TABLES for c in t.columns)
    assert set(view_comments) == set(views())
    assert all("?" in comment for comment in view_comments.values())


def test_the_file_is_read_only_and_nothing_else_visible_lies_beside_it(path: Path) -> None:
    publish(path, "b1", 5)
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert [file.name for file in path.parent.iterdir() if not file.name.startswith(".")] == [path.name]
    with open_graph(path) as connection, pytest.raises(duckdb.Error, match="read-only"):
        connection.execute("DELETE FROM batches")


def test_the_file_stays_in_a_format_that_older_tools_read_and_in_small_blocks(path: Path) -> None:
    for as_of in range(3):
        publish(path, "b1", as_of)
    with duckdb.connect(str(path), read_only=True) as connection:
        (tags,) = connection.execute("SELECT tags FROM duckdb_databases() WHERE NOT internal").fetchall()[0]
        block_bytes = connection.execute("PRAGMA database_size").fetchall()[0][2]
    assert tags["storage_version"] == "v1.4.0+"
    assert block_bytes == 16_384


def test_a_process_that_keeps_a_connection_open_still_sees_the_new_file_when_it_opens_again(path: Path) -> None:
    publish(path, "b1", 5)
    with open_graph(path) as old:
        publish(path, "b1", 6)
        with open_graph(path) as new:
            assert new.execute("SELECT as_of FROM batches").fetchall() == [(6,)]
        assert old.execute("SELECT as_of FROM batches").fetchall() == [(5,)]


def test_opening_a_graph_that_is_not_there_or_not_readable_says_so(path: Path) -> None:
    with pytest.raises(GraphError, match="no graph here yet"):
        open_graph(path)
    path.parent.mkdir()
    path.write_bytes(b"junk" * 5_000)
    with pytest.raises(GraphError, match="cannot be opened"):
        open_graph(path)


# Views, against loops over the rows that went in


@pytest.fixture(scope="module")
def two_batches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Rows]]]:
    path = tmp_path_factory.mktemp("views") / "graph.duckdb"
    given = {}
    # 4 essays and 60 judgments cover every pair; 9 essays and 14 cannot
    for batch_id, as_of, essays in (("dense", 60, 4), ("sparse", 14, 9)):
        tables = batch_tables(batch_id, as_of, essays=essays)
        publish_batch(path, batch_id, tables, as_of=as_of)
        given[batch_id] = {name: frame.rows(named=True) for name, frame in tables.items()}
    return path, given


def view_rows(path: Path, view: str, batch_id: str) -> Rows:
    with open_graph(path) as connection:
        result = connection.execute(f"SELECT * FROM {view} WHERE batch_id = ?", [batch_id])
        names = [column[0] for column in result.description or []]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


@pytest.mark.parametrize("batch_id", ["dense", "sparse"])
class TestViews:
    def test_win_matrix_counts_wins_of_every_ordered_pair(
        self, two_batches: tuple[Path, dict[str, dict[str, Rows]]], batch_id: str
    ) -> None:
        path, given = two_batches
        wins: Counter[tuple[str, str]] = Counter()
        met: Counter[tuple[str, str]] = Counter()
        for row in given[batch_id]["comparisons"]:
            if row["status"] == "judged":
                wins[row["winner_id"], row["loser_id"]] += 1
                met[row["essay_a"], row["essay_b"]] += 1
                met[row["essay_b"], row["essay_a"]] += 1
        found = view_rows(path, "v_win_matrix", batch_id)
        assert {(r["winner_id"], r["loser_id"]): (r["wins"], r["comparisons"]) for r in found} == {
            pair: (wins[pair], met[pair]) for pair in met
        }
        assert len(found) == len(met)

    def test_position_balance_counts_what_was_not_withdrawn(
        self, two_batches: tuple[Path, dict[str, dict[str, Rows]]], batch_id: str
    ) -> None:
        path, given = two_batches
        kept = [row for row in given[batch_id]["comparisons"] if row["status"] != "withdrawn"]
        expected = []
        for essay in given[batch_id]["essays"]:
            a = sum(row["essay_a"] == essay["essay_id"] for row in kept)
            b = sum(row["essay_b"] == essay["essay_id"] for row in kept)
            expected.append((essay["essay_id"], essay["is_anchor"], a, b, a - b))
        found = view_rows(path, "v_position_balance", batch_id)
        assert [(r["essay_id"], r["is_anchor"], r["as_a"], r["as_b"], r["skew"]) for r in found] == sorted(expected)

    def test_coverage_counts_unordered_pairs_with_a_judgment(
        self, two_batches: tuple[Path, dict[str, dict[str, Rows]]], batch_id: str
    ) -> None:
        path, given = two_batches
        seen = {
            frozenset((r["essay_a"], r["essay_b"])) for r in given[batch_id]["comparisons"] if r["status"] == "judged"
        }
        n = len(given[batch_id]["essays"])
        possible = n * (n - 1) // 2
        (found,) = view_rows(path, "v_coverage", batch_id)
        assert (found["max_possible_pairs"], found["successful_pairs"]) == (possible, len(seen))
        assert found["share"] == pytest.approx(len(seen) / possible)
        assert found["complete"] is (batch_id == "dense") is (len(seen) == possible)

    def test_rankings_join_scores_with_grades_and_say_if_simulated(
        self, two_batches: tuple[Path, dict[str, dict[str, Rows]]], batch_id: str
    ) -> None:
        path, given = two_batches
        grades = {row["essay_id"]: row for row in given[batch_id]["grade_projections"]}
        simulated = given[batch_id]["batches"][0]["simulated"]
        of_score = ("rank", "essay_id", "is_anchor", "known_grade", "score", "se", "comparisons", "wins", "losses")
        of_grade = ("grade", "confidence", "label", "boundary_distance_se", "nearest_boundary", "reason")
        of_grade += ("would_change", "grade_uniform")
        expected = [
            (*(row[key] for key in of_score), *(grades[row["essay_id"]][key] for key in of_grade), simulated)
            for row in sorted(given[batch_id]["bt_scores"], key=lambda row: row["rank"])
        ]
        found = view_rows(path, "v_rankings", batch_id)
        assert [tuple(row[key] for key in (*of_score, *of_grade, "simulated")) for row in found] == expected

    def test_anchor_check_sets_expert_grades_beside_projected_ones(
        self, two_batches: tuple[Path, dict[str, dict[str, Rows]]], batch_id: str
    ) -> None:
        path, given = two_batches
        scores = {row["essay_id"]: row for row in given[batch_id]["bt_scores"]}
        reports = {row["essay_id"]: row for row in given[batch_id]["anchor_report"]}
        simulated = given[batch_id]["batches"][0]["simulated"]
        of_report = ("misfit", "leverage", "influence", "replace_first")
        expected = {}
        for row in given[batch_id]["grade_projections"]:
            if row["is_anchor"]:
                agrees = None if row["grade"] is None else row["grade"] == row["known_grade"]
                score = scores[row["essay_id"]]
                expected[row["essay_id"]] = (
                    row["known_grade"], row["grade"], agrees, score["score"], score["se"], simulated,
                    *(reports[row["essay_id"]][key] for key in of_report),
                )  # fmt: skip
        found = view_rows(path, "v_anchor_check", batch_id)
        keys = ("expert_grade", "leave_one_out_grade", "agrees", "score", "se", "simulated", *of_report)
        assert {row["essay_id"]: tuple(row[key] for key in keys) for row in found} == expected

    def test_costs_add_up_and_one_unknown_makes_the_sum_unknown(
        self, two_batches: tuple[Path, dict[str, dict[str, Rows]]], batch_id: str
    ) -> None:
        path, given = two_batches
        batch = given[batch_id]["batches"][0]
        groups: dict[tuple[str, str], Rows] = defaultdict(list)
        for row in given[batch_id]["comparisons"]:
            if row["attempts"]:
                groups[row["provider"] or batch["provider"], row["model"] or batch["model"]].append(row)
        found = {(row["provider"], row["model"]): row for row in view_rows(path, "v_costs", batch_id)}
        assert found.keys() == groups.keys()
        for key, rows in groups.items():
            costs = [row["cost_usd"] for row in rows]
            assert found[key]["comparisons"] == len(rows)
            for total in ("attempts", "tokens_in", "tokens_out"):
                assert found[key][total] == sum(row[total] for row in rows)
            assert found[key]["unpriced"] == costs.count(None)
            assert found[key]["cost_usd"] == (None if None in costs else pytest.approx(sum(costs)))
            assert found[key]["simulated"] is batch["simulated"]

    def test_calls_are_counted_and_summed_by_wave_model_and_outcome(
        self, two_batches: tuple[Path, dict[str, dict[str, Rows]]], batch_id: str
    ) -> None:
        path, given = two_batches
        groups: dict[tuple[Any, ...], Rows] = defaultdict(list)
        for row in given[batch_id]["attempts"]:
            groups[row["wave"], row["model"], row["outcome"]].append(row)
        found = {(r["wave"], r["model"], r["outcome"]): r for r in view_rows(path, "v_calls", batch_id)}
        assert found.keys() == groups.keys()
        for key, rows in groups.items():
            costs = [row["cost_usd"] for row in rows if row["cost_usd"] is not None]
            assert found[key]["calls"] == len(rows)
            assert found[key]["unpriced"] == len(rows) - len(costs)
            assert found[key]["tokens_input"] == sum(row["tokens_input"] or 0 for row in rows)
            assert found[key]["cost_usd"] == (pytest.approx(sum(costs)) if costs else None)
            assert found[key]["median_latency_seconds"] == pytest.approx(
                statistics.median(row["latency_seconds"] for row in rows)
            )

    def test_wave_history_accumulates_in_order_of_waves(
        self, two_batches: tuple[Path, dict[str, dict[str, Rows]]], batch_id: str
    ) -> None:
        path, given = two_batches
        planned = judged = 0
        expected = []
        for row in sorted(given[batch_id]["waves"], key=lambda row: row["wave"]):
            planned, judged = planned + row["planned"], judged + row["judged"]
            expected.append((row["wave"], row["decision"], row["max_score_change"], planned, judged))
        keys = ("wave", "decision", "max_score_change", "cumulative_comparisons", "cumulative_judged")
        assert [tuple(r[key] for key in keys) for r in view_rows(path, "v_wave_history", batch_id)] == expected
        assert judged == given[batch_id]["batches"][0]["judged"]


def test_an_unknown_cost_and_a_known_one_both_occur_in_the_view_tests(
    two_batches: tuple[Path, dict[str, dict[str, Rows]]],
) -> None:
    path, _ = two_batches
    costs = [row["cost_usd"] for batch in ("dense", "sparse") for row in view_rows(path, "v_costs", batch)]
    assert None in costs
    assert any(cost is not None for cost in costs)


# Masters that are old, lost or damaged


def private(path: Path) -> Path:
    return path.parent / f".{path.stem}"


def test_a_master_of_another_schema_is_brought_to_the_current_one_keeping_its_rows(path: Path) -> None:
    publish(path, "b1", 5)
    with duckdb.connect(str(private(path) / "master.duckdb")) as master:
        master.execute("DROP VIEW v_rankings")
        master.execute("CREATE VIEW v_bygone AS SELECT 1 AS one")
        master.execute("CREATE TABLE bygone AS SELECT 1 AS one")
        master.execute("DROP TABLE quality_flags")
        master.execute("ALTER TABLE essays DROP COLUMN word_count")
        master.execute("ALTER TABLE essays ADD COLUMN shoe_size INTEGER")
        master.execute("ALTER TABLE waves ALTER COLUMN planned TYPE INTEGER")
    publish(path, "b2", 7)
    tables = batch_tables("b1", 5)
    tables["essays"] = tables["essays"].with_columns(pl.lit(None, pl.Int64).alias("word_count"))
    tables["quality_flags"] = tables["quality_flags"].clear()
    assert_holds(path, tables, "b1")
    assert_holds(path, batch_tables("b2", 7), "b2")
    with open_graph(path) as connection:
        assert {row[0] for row in connection.execute("SHOW TABLES").fetchall()} == {
            *(table.name for table in GRAPH_TABLES),
            *views(),
        }
    publish(path, "b1", 5)
    assert_holds(path, batch_tables("b1", 5), "b1")


def test_a_current_master_is_not_rebuilt(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(path, "b1", 5)

    def refuse(*_: object) -> None:
        raise AssertionError("a table was rebuilt although its schema is current")

    monkeypatch.setattr(graph, "_rebuild_table", refuse)
    publish(path, "b1", 6)


def test_a_lost_master_is_recovered_from_the_public_file(path: Path) -> None:
    publish(path, "b1", 5)
    shutil.rmtree(private(path))
    publish(path, "b2", 7)
    assert_holds(path, batch_tables("b1", 5), "b1")
    assert_holds(path, batch_tables("b2", 7), "b2")


def test_a_lost_master_beside_an_unreadable_public_file_starts_empty(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"junk" * 5_000)
    publish(path, "b1", 5)
    assert assert_whole(path) == {"b1": 5}


@pytest.mark.parametrize("damage", [b"", b"junk" * 5_000])
def test_a_damaged_master_is_named_with_the_remedy_and_the_remedy_works(path: Path, damage: bytes) -> None:
    publish(path, "b1", 5)
    master = private(path) / "master.duckdb"
    master.write_bytes(damage)
    with pytest.raises(GraphError) as caught:
        publish(path, "b2", 7)
    assert str(master) in str(caught.value)
    assert "delete it" in str(caught.value)
    assert "re-materialise comparison_graph for each batch" in str(caught.value)
    assert assert_whole(path) == {"b1": 5}
    master.unlink()
    publish(path, "b2", 7)
    assert assert_whole(path) == {"b1": 5, "b2": 7}


def test_rows_committed_by_a_publication_that_died_before_its_copy_appear_with_the_next(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(path, "b1", 5)

    def no_space(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", no_space)
        with pytest.raises(GraphError, match="No space left on device"):
            publish(path, "b1", 9)
    assert assert_whole(path) == {"b1": 5}
    assert not publish(path, "b1", 8).published
    assert assert_whole(path) == {"b1": 9}


def test_what_a_killed_publication_left_is_swept(path: Path) -> None:
    publish(path, "b1", 5)
    leftovers = [
        path.parent / f".{path.name}.new",
        private(path) / "incoming" / "essays.parquet",
        private(path) / "master.new.duckdb",
        private(path) / "master.new.duckdb.wal",
    ]
    (private(path) / "incoming").mkdir()
    for leftover in leftovers:
        leftover.write_bytes(b"half")
        leftover.chmod(0o444)
    publish(path, "b2", 7)
    assert not any(leftover.exists() for leftover in leftovers)
    assert assert_whole(path) == {"b1": 5, "b2": 7}


def test_waiting_for_a_lock_ends_with_an_error_that_names_it(path: Path) -> None:
    publish(path, "b1", 5)
    lock = private(path) / "publish.lock"
    with FileLock(lock), pytest.raises(GraphBusyError, match="another publication") as caught:
        publish_batch(path, "b2", batch_tables("b2", 7), as_of=7, lock_seconds=0.1)
    assert str(lock) in str(caught.value)
    assert publish(path, "b2", 7).published


# Other processes


def start(target: Any, *arguments: Any) -> tuple[BaseProcess, Connection]:
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def told(connection: Connection) -> Any:
    assert connection.poll(60), "the other process says nothing"
    return connection.recv()


def analyst_who_writes(connection: Connection, path: Path) -> None:
    path.chmod(0o644)
    database = duckdb.connect(str(path))
    database.execute("CREATE TABLE mine AS SELECT range AS i FROM range(1000)")
    database.execute("DELETE FROM batches")
    connection.send("wrote")
    while True:
        connection.recv()
        database.execute("INSERT INTO mine SELECT range FROM range(1000)")
        connection.send("wrote")


def analyst_who_reads(connection: Connection, path: Path) -> None:
    database = duckdb.connect(str(path), read_only=True)
    while True:
        connection.send(database.execute("SELECT batch_id, as_of FROM batches ORDER BY ALL").fetchall())
        if connection.recv() == "reopen":
            database.close()
            database = duckdb.connect(str(path), read_only=True)


def reader_who_opens_again_and_again(connection: Connection, path: Path) -> None:
    opened = 0
    seen = set()
    while not connection.poll():
        seen.add(assert_whole(path)["b1"])
        opened += 1
    connection.send((opened, sorted(seen)))


def publisher(connection: Connection, path: Path, batch_id: str, as_of: int) -> None:
    tables = batch_tables(batch_id, as_of)
    connection.send("ready")
    connection.recv()
    connection.send(publish_batch(path, batch_id, tables, as_of=as_of).published)


def publisher_without_end(connection: Connection, path: Path, batch_id: str, as_of: int) -> None:
    connection.send("ready")
    while True:
        publish(path, batch_id, as_of)
        as_of += 1
        connection.send(as_of)


def kill(process: BaseProcess) -> None:
    process.kill()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL


def test_an_analyst_who_wrote_into_the_file_and_was_killed_breaks_nothing(path: Path) -> None:
    publish(path, "b1", 5)
    analyst, talk = start(analyst_who_writes, path)
    assert told(talk) == "wrote"
    kill(analyst)
    log = path.with_name(path.name + ".wal")
    assert log.exists(), "the drill needs the log that a killed writer leaves"
    assert publish(path, "b2", 7).published
    assert not log.exists()
    for _ in range(2):
        assert assert_whole(path) == {"b1": 5, "b2": 7}
    with open_graph(path) as connection:
        assert "mine" not in {row[0] for row in connection.execute("SHOW TABLES").fetchall()}
    assert publish(path, "b1", 6).published
    assert assert_whole(path) == {"b1": 6, "b2": 7}


def test_an_analyst_who_keeps_writing_into_the_old_file_breaks_nothing(path: Path) -> None:
    publish(path, "b1", 5)
    analyst, talk = start(analyst_who_writes, path)
    assert told(talk) == "wrote"
    for as_of in (6, 7):
        assert publish(path, "b1", as_of).published
        assert assert_whole(path) == {"b1": as_of}
        talk.send("again")
        assert told(talk) == "wrote"
        assert assert_whole(path) == {"b1": as_of}
    kill(analyst)
    assert assert_whole(path) == {"b1": 7}


def test_open_graph_reads_past_a_log_that_a_writer_left_beside_a_newer_file(path: Path) -> None:
    publish(path, "b1", 5)
    analyst, talk = start(analyst_who_writes, path)
    assert told(talk) == "wrote"
    kill(analyst)
    log = path.with_name(path.name + ".wal")
    stray = log.read_bytes()
    publish(path, "b1", 6)
    log.write_bytes(stray)
    with pytest.raises(duckdb.Error, match="WAL"):  # refused, not joined: what the file's format is chosen for
        duckdb.connect(str(path), read_only=True)
    with open_graph(path) as connection:
        assert connection.execute("SELECT as_of FROM batches").fetchall() == [(6,)]


def test_an_analyst_with_a_connection_keeps_the_old_file_until_reopening(path: Path) -> None:
    publish(path, "b1", 5)
    analyst, talk = start(analyst_who_reads, path)
    assert told(talk) == [("b1", 5)]
    publish(path, "b1", 6)
    publish(path, "b2", 7)
    talk.send("look again")
    assert told(talk) == [("b1", 5)]
    talk.send("reopen")
    assert told(talk) == [("b1", 6), ("b2", 7)]
    kill(analyst)


def test_a_reader_who_opens_during_publications_never_meets_a_broken_file(path: Path) -> None:
    publish(path, "b1", 1)
    reader, talk = start(reader_who_opens_again_and_again, path)
    for as_of in range(2, 12):
        publish(path, "b1", as_of)
    talk.send("stop")
    opened, seen = told(talk)
    reader.join(30)
    assert reader.exitcode == 0
    assert opened > 10
    assert len(seen) > 2
    assert all(a < b for a, b in pairwise(seen))


@pytest.mark.slow
def test_eight_publications_at_once_all_end_up_in_the_file(path: Path) -> None:
    running = [start(publisher, path, f"b{i}", 10 + i) for i in range(8)]
    for _, talk in running:
        assert told(talk) == "ready"
    for _, talk in running:
        talk.send("go")
    assert all(told(talk) for _, talk in running)
    for process, _ in running:
        process.join(30)
    assert assert_whole(path) == {f"b{i}": 10 + i for i in range(8)}
    for i in range(8):
        assert_holds(path, batch_tables(f"b{i}", 10 + i), f"b{i}")


def test_eight_publications_of_one_batch_at_once_end_with_the_latest_one_whole(path: Path) -> None:
    running = [start(publisher, path, "b1", 10 + i) for i in range(8)]
    for _, talk in running:
        assert told(talk) == "ready"
    for _, talk in running:
        talk.send("go")
    published = [told(talk) for _, talk in running]
    for process, _ in running:
        process.join(30)
    assert published[-1]
    assert_holds(path, batch_tables("b1", 17), "b1")


def drill_kills(path: Path, kills: int, *, fresh: bool) -> None:
    rng = random.Random(7)
    as_of = 1
    for turn in range(kills):
        if fresh:  # the very first publication is hit, too
            shutil.rmtree(path.parent, ignore_errors=True)
            as_of = 1
        process, talk = start(publisher_without_end, path, "b1", as_of)
        assert told(talk) == "ready"
        time.sleep(rng.random() * 0.25)
        kill(process)
        while talk.poll():
            try:
                as_of = talk.recv()
            except EOFError:
                break
        # what was told as done is there; at most the one in flight may be there as well
        if path.exists():
            assert assert_whole(path)["b1"] in (as_of - 1, as_of)
        else:
            assert as_of == 1
        assert publish(path, "b1", as_of + 1).published
        assert publish(path, f"other{turn}", 3).published
        assert assert_whole(path)["b1"] == as_of + 1
        as_of += 2
        assert not (private(path) / "incoming").exists()


@pytest.mark.slow
@pytest.mark.parametrize("fresh", [False, True])
def test_publications_killed_at_random_moments_leave_a_whole_file(path: Path, fresh: bool) -> None:
    drill_kills(path, 3, fresh=fresh)


@pytest.mark.slow
@pytest.mark.parametrize("fresh", [False, True])
def test_many_publications_killed_at_random_moments_leave_a_whole_file(path: Path, fresh: bool) -> None:
    drill_kills(path, 60, fresh=fresh)
