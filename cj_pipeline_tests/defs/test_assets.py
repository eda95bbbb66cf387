"""A whole batch in this process: what each asset materialises, says and keeps to itself, whatever its fate."""

import base64
import re
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from dagster import (
    AssetCheckSeverity,
    AssetKey,
    AssetMaterialization,
    AssetObservation,
    DagsterInstance,
    ExecuteInProcessResult,
)

from cj_pipeline.analysis.graph import open_graph
from cj_pipeline.core.models import BatchKind, BatchStatus
from cj_pipeline.defs.assets.publishing import StaleResultsError
from cj_pipeline.judges.simulated import JUSTIFICATION
from cj_pipeline.settings import load_settings
from cj_pipeline.workflow import frames
from cj_pipeline.workflow.intake import read_batch
from cj_pipeline.workflow.registration import submit_batch
from cj_pipeline.workflow.results import NO_GRADES_BECAUSE, collect_results
from cj_pipeline_tests.defs.stage import DEMO, QUIET, Stage, demo_folder

BUDGET = 60
TABLES = {
    "essays": frames.ESSAYS,
    "anchors": frames.ESSAYS,
    "pair_waves": frames.PAIRS,
    "llm_judgments": frames.JUDGMENTS,
    "bt_scores": frames.BT_SCORES,
    "bt_se_summary": frames.SE_SUMMARIES,
    "bt_quality_flags": frames.QUALITY_FLAGS,
    "batch_state": frames.BATCHES,
    "grade_projections": frames.GRADE_PROJECTIONS,
}
ASSETS = {*TABLES, "comparison_graph"}
CHECKS = {
    "essays_expectations",
    "anchors_expectations",
    "judgments_expectations",
    "budget_is_a_wall",
    "positions_are_balanced",
    "counters_match_the_ledger",
    "graph_is_connected",
    "probabilities_sum_to_one",
    "batch_succeeded",
}


@dataclass(frozen=True)
class Played:
    """A batch that was run, with the instance that recorded it."""

    stage: Stage
    instance: DagsterInstance
    batch_id: str
    result: ExecuteInProcessResult

    def metadata(self, asset: str) -> dict[str, Any]:
        return {name: value.value for name, value in self.materialisations()[asset].metadata.items()}

    def materialisations(self) -> dict[str, AssetMaterialization]:
        return {
            event.asset_key.to_user_string(): event.materialization
            for event in self.result.get_asset_materialization_events()
        }

    def checks(self) -> dict[str, Any]:
        return {one.check_name: one for one in self.result.get_asset_check_evaluations()}

    def observations(self) -> list[AssetObservation]:
        return [event.asset_observation_data.asset_observation for event in self.result.get_asset_observation_events()]

    def why_it_failed(self) -> str:
        return "\n".join(
            event.step_failure_data.error.to_string() if event.step_failure_data.error else ""
            for event in self.result.all_events
            if event.is_step_failure
        )


def play(stage: Stage, instance: DagsterInstance, batch_id: str, job: str = "assess_batch_job") -> Played:
    return Played(stage, instance, batch_id, stage.run(instance, job, batch_id))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Stage.alone(tmp_path_factory.mktemp("project"), monkeypatch)


@pytest.fixture(scope="module")
def recorded(stage: Stage) -> Iterator[DagsterInstance]:
    """The project's instance, which keeps its records on disk, where they can be searched."""
    with stage.instance() as instance:
        yield instance


@pytest.fixture(scope="module")
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture(scope="module")
def whole(stage: Stage, recorded: DagsterInstance) -> Played:
    """The demo's essays with a budget of 60, assessed once."""
    stage.submit_demo("whole", max_comparisons=BUDGET)
    return play(stage, recorded, "whole")


@pytest.fixture(scope="module")
def failed(stage: Stage, recorded: DagsterInstance) -> Played:
    """A batch whose judge never gave an answer that can be read."""
    stage.submit_demo("failed", students=3, max_comparisons=20)
    stage.judge("failed", failing=True)
    return play(stage, recorded, "failed")


@pytest.fixture(scope="module")
def lonely(stage: Stage, instance: DagsterInstance) -> Played:
    """A batch of one student."""
    stage.submit_demo("lonely", students=1)
    return play(stage, instance, "lonely")


# --- a good batch ------------------------------------------------------------------------------------------------


def test_every_asset_materialises_and_the_run_succeeds(whole: Played) -> None:
    assert whole.result.success, whole.why_it_failed()
    assert set(whole.materialisations()) == ASSETS
    assert {one.partition for one in whole.materialisations().values()} == {"whole"}
    assert whole.stage.batch("whole").status is BatchStatus.COMPLETE_MAX_COMPARISONS


def test_every_check_was_evaluated_and_passed(whole: Played) -> None:
    checks = whole.checks()
    assert set(checks) == CHECKS
    assert {name for name, check in checks.items() if not check.passed} == set()
    assert {check.partition for check in checks.values()} == {"whole"}


def test_the_lake_holds_exactly_the_frames_with_their_types(whole: Played) -> None:
    for asset, table in TABLES.items():
        frame = whole.stage.frame(asset, "whole")
        assert dict(frame.schema) == table.schema, asset
        assert set(frame["batch_id"]) == {"whole"}, asset
        required = [column.name for column in table.columns if not column.nullable]
        assert frame.select(required).null_count().sum_horizontal().item() == 0, asset
    assert not (whole.stage.lake / "comparison_graph").exists()


def test_what_is_stated_about_every_materialisation_names_batch_judge_and_simulation(whole: Played) -> None:
    batch = whole.stage.batch("whole")
    for asset in ASSETS:
        told = whole.metadata(asset)
        assert told["simulated"] is True, asset
        assert "SIMULATED" in told["judge"], asset
        assert told["correlation_id"] == batch.correlation_id, asset
    assert whole.metadata("batch_state")["status"] == "COMPLETE_MAX_COMPARISONS"
    assert whole.metadata("essays")["status"] == "SUBMITTED", "as it was when the essays were read"


def test_the_numbers_told_are_the_numbers_of_the_ledger(whole: Played) -> None:
    with whole.stage.ledger() as ledger:
        state = ledger.state("whole")
        waves = ledger.waves("whole")
        records = ledger.comparison_records("whole")
    assert whole.metadata("essays")["count"] == 12
    assert whole.metadata("anchors")["count"] == 12
    assert whole.metadata("essays")["words"] == whole.stage.frame("essays", "whole")["word_count"].sum()
    for asset in ("pair_waves", "llm_judgments"):
        told = whole.metadata(asset)
        counts = ("submitted", "judged", "failed", "pending", "total_budget", "waves_in_this_run", "judged_in_this_run")
        assert [told[name] for name in counts] == [BUDGET, BUDGET, 0, 0, BUDGET, len(waves), BUDGET], asset
        assert told["success_rate"] == 1.0
    told = whole.metadata("llm_judgments")
    assert told["tokens_in"] == sum(record.tokens_in for record in records) > 0
    assert (told["cost_usd"], told["cost_known"]) == (0.0, True)
    assert state.judged == whole.metadata("batch_state")["judged"] == whole.metadata("comparison_graph")["as_of"]
    scores = whole.stage.frame("bt_scores", "whole")
    assert whole.metadata("bt_scores")["mean_se"] == pytest.approx(scores["se"].mean())
    assert whole.metadata("bt_se_summary")["mean_se"] == pytest.approx(scores["se"].mean())
    graded = whole.stage.frame("grade_projections", "whole").filter(~pl.col("is_anchor") & pl.col("available"))
    assert whole.metadata("grade_projections")["graded"] == graded.height == 12


def test_the_processing_metadata_of_the_batch_holds_its_diagnostics(whole: Played) -> None:
    told = whole.metadata("batch_state")["processing_metadata"]
    assert set(told["bt_se_summary"]) == {"all", "anchors", "students"}
    assert told["bt_se_summary"]["all"]["comparison_count"] == BUDGET
    assert told["bt_quality_flags"] == {
        name: value
        for name, value in whole.stage.frame("bt_quality_flags", "whole").row(0, named=True).items()
        if name != "batch_id"
    }


@pytest.mark.parametrize(
    ("asset", "name"),
    [("batch_state", "wave_history"), ("grade_projections", "scores"), ("grade_projections", "graph")],
)
def test_a_picture_is_an_image_inside_markdown(whole: Played, asset: str, name: str) -> None:
    found = re.fullmatch(r"!\[[^\]]+\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)", whole.metadata(asset)[name])
    assert found is not None
    png = base64.b64decode(found[1], validate=True)
    width, height = _png_size(png)
    assert width == 1200
    assert 200 < height < 4000


def test_the_tables_told_are_markdown_with_the_rows_of_the_frames(whole: Played) -> None:
    for asset, name, rows in (
        ("essays", "preview", 12),
        ("anchors", "preview", 12),
        ("bt_scores", "ranking", 24),
        ("grade_projections", "grades", 12),
        ("grade_projections", "anchor_check", 12),
        ("comparison_graph", "rankings", 12),
        ("bt_se_summary", "table", 3),
    ):
        lines = whole.metadata(asset)[name].splitlines()
        assert set(lines[1]) <= set("|-: "), (asset, name)
        assert sum(line.startswith("|") for line in lines) == rows + 2, (asset, name)


def test_each_wave_is_one_observation_with_numbers_to_plot(whole: Played) -> None:
    with whole.stage.ledger() as ledger:
        waves = ledger.waves("whole")
    observed = whole.observations()
    assert len(observed) == len(waves) > 3
    for wave, observation in zip(waves, observed, strict=True):
        assert observation.asset_key == AssetKey("llm_judgments")
        assert observation.partition == "whole"
        told = {name: value.value for name, value in observation.metadata.items()}
        assert told["wave"] == wave.wave
        assert told["judged"] == wave.callbacks
        assert told["mean_se"] == pytest.approx(wave.mean_se)
        assert told.get("max_score_change") == pytest.approx(wave.max_score_change)
        assert told["decision"] == wave.decision
        assert isinstance(told["mean_se"], float)
        assert isinstance(told["judged"], int)
    assert observed[-1].metadata["reason"].value == "budget_spent"


def test_the_graph_tells_what_the_ledger_tells(whole: Played) -> None:
    with whole.stage.ledger() as ledger:
        expected = collect_results(ledger, "whole")
    connection = open_graph(whole.stage.data_dir / "outputs" / "comparison_graph.duckdb")
    try:
        for table in frames.GRAPH_TABLES:
            columns = ", ".join(f'"{name}"' for name in table.schema)
            rows = connection.execute(f'SELECT {columns} FROM "{table.name}" WHERE batch_id = ?', ["whole"]).fetchall()
            assert sorted(rows, key=_row_key) == sorted(expected[table.name].rows(), key=_row_key), table.name
            assert rows, table.name
    finally:
        connection.close()
    assert whole.metadata("comparison_graph")["published"] is True
    assert Path(whole.metadata("comparison_graph")["path"]).is_file()


def test_the_batch_is_marked_published_and_its_lease_is_given_back(whole: Played) -> None:
    batch = whole.stage.batch("whole")
    assert batch.published_at is not None
    assert batch.published_as_of == BUDGET
    assert batch.lease_owner is None


# --- what is kept in ---------------------------------------------------------------------------------------------


def test_no_essay_and_no_justification_reaches_dagster_or_the_lake(whole: Played, failed: Played) -> None:
    sentences = _sentences()
    assert len(sentences) > 150
    ledger = "\n".join(_cells(whole.stage.data_dir / "outputs" / "ledger.sqlite"))
    assert all(sentence in ledger for sentence in sentences), "the search itself finds what is there"

    recorded = "\n".join(_everything_dagster_keeps(whole.stage.home))
    assert whole.result.run_id in recorded
    assert "wave_history" in recorded
    lake = "\n".join(
        str(value)
        for path in whole.stage.lake.rglob("*.parquet")
        for row in pl.read_parquet(path).iter_rows()
        for value in row
    )
    assert whole.stage.batch("whole").correlation_id in lake
    for place in (recorded, lake):
        assert [sentence for sentence in sentences if sentence in place] == []
        assert JUSTIFICATION not in place


def test_justifications_stay_in_the_ledger_and_the_graph(whole: Played) -> None:
    connection = open_graph(whole.stage.data_dir / "outputs" / "comparison_graph.duckdb")
    try:
        kept = connection.sql("SELECT DISTINCT justification FROM comparisons WHERE batch_id = 'whole'").fetchall()
    finally:
        connection.close()
    assert kept == [(JUSTIFICATION,)]


# --- the same again ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("job", ["rescore_batch_job", "assess_batch_job"])
def test_running_a_finished_batch_again_gives_the_same_numbers_and_makes_no_call(whole: Played, job: str) -> None:
    with whole.stage.ledger() as ledger:
        calls = ledger.attempt_counts("whole")
        published = ledger.batch("whole")
    before = {asset: whole.stage.frame(asset, "whole") for asset in TABLES}

    again = play(whole.stage, whole.instance, "whole", job)

    assert again.result.success, again.why_it_failed()
    selected = set(again.materialisations())
    assert ("llm_judgments" in selected) == (job == "assess_batch_job")
    assert "comparison_graph" in selected
    for asset, frame in before.items():
        assert whole.stage.frame(asset, "whole").equals(frame), asset
    assert again.observations() == []
    with whole.stage.ledger() as ledger:
        assert ledger.attempt_counts("whole") == calls
        assert ledger.batch("whole").status is published.status
        assert ledger.batch("whole").completed_at == published.completed_at


# --- batches without a scale -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "status", "reason"),
    [
        ("failed", "FAILED", "low_success_rate"),
        ("lonely", "COMPLETE_INSUFFICIENT_ESSAYS", "insufficient_essays"),
    ],
)
def test_a_batch_without_a_scale_is_published_with_the_reason_and_its_run_fails(
    request: pytest.FixtureRequest, which: str, status: str, reason: str
) -> None:
    played: Played = request.getfixturevalue(which)
    assert not played.result.success
    assert set(played.materialisations()) == ASSETS
    for asset, table in TABLES.items():
        assert dict(played.stage.frame(asset, which).schema) == table.schema, asset
    state = played.stage.frame("batch_state", which).row(0, named=True)
    assert (state["status"], state["stop_reason"], state["judged"]) == (status, reason, 0)
    assert played.metadata("batch_state")["stop_reason"] == reason

    grades = played.stage.frame("grade_projections", which)
    assert grades.height == (15 if which == "failed" else 13)
    assert set(grades["available"]) == {False}
    assert set(grades["grade"]) == {None}
    assert set(grades["reason"]) == {NO_GRADES_BECAUSE[reason]}

    checks = played.checks()
    assert set(checks) == CHECKS
    blocking = checks["batch_succeeded"]
    assert (blocking.passed, blocking.blocking, blocking.severity) == (False, True, AssetCheckSeverity.ERROR)
    assert status in (blocking.description or "")
    assert NO_GRADES_BECAUSE[reason] in (blocking.description or "")
    warned = {"graph_is_connected"} | ({"essays_expectations"} if which == "lonely" else set())
    assert {name for name, check in checks.items() if not check.passed} == {"batch_succeeded", *warned}
    assert {checks[name].severity for name in warned} == {AssetCheckSeverity.WARN}
    assert played.stage.batch(which).published_at is not None

    connection = open_graph(played.stage.data_dir / "outputs" / "comparison_graph.duckdb")
    try:
        query = f"SELECT status, stop_reason FROM batches WHERE batch_id = '{which}'"
        assert connection.sql(query).fetchall() == [(status, reason)]
    finally:
        connection.close()


def test_what_a_failed_batch_tried_is_on_record(failed: Played) -> None:
    judgments = failed.stage.frame("llm_judgments", "failed")
    assert judgments.height == 20
    assert set(judgments["status"]) == {"failed"}
    assert set(judgments["error_type"]) == {"malformed_answer"}
    assert set(judgments["attempts"]) == {3}
    assert failed.metadata("llm_judgments")["success_rate"] == 0.0


def test_a_batch_of_one_student_has_empty_tables_of_the_right_types(lonely: Played) -> None:
    for asset in ("pair_waves", "llm_judgments"):
        assert lonely.stage.frame(asset, "lonely").is_empty(), asset
    assert lonely.stage.frame("bt_scores", "lonely").height == 13
    assert lonely.observations() == []


def test_a_batch_without_an_assignment_gets_a_scale_and_the_reason_there_are_no_grades(
    stage: Stage, instance: DagsterInstance
) -> None:
    folder = demo_folder(stage.home / "dropped" / "align", assignment=None, kind="anchor_align", max_comparisons=20)
    with stage.ledger() as ledger:
        submit_batch(ledger, load_settings(data_dir=stage.data_dir), read_batch(folder))
    played = play(stage, instance, "align")
    assert played.result.success, played.why_it_failed()
    assert stage.batch("align").kind is BatchKind.ANCHOR_ALIGN
    assert stage.frame("anchors", "align").is_empty()
    assert dict(stage.frame("anchors", "align").schema) == frames.ESSAYS.schema
    assert stage.frame("bt_scores", "align").height == 12
    (reason,) = set(stage.frame("grade_projections", "align")["reason"])
    assert "no assignment" in reason


# --- a run that cannot do its work -------------------------------------------------------------------------------


def test_a_partition_that_the_ledger_does_not_know_fails_with_what_to_do(
    stage: Stage, instance: DagsterInstance
) -> None:
    played = play(stage, instance, "nobody")
    assert not played.result.success
    assert played.materialisations() == {}
    told = _failure_descriptions(played)
    assert any("no batch 'nobody' in the ledger" in one and "cj submit" in one for one in told)


def test_a_partition_key_that_may_not_name_a_batch_is_refused(stage: Stage, instance: DagsterInstance) -> None:
    before = sorted(stage.data_dir.rglob("*"))
    played = play(stage, instance, "../whole")
    assert not played.result.success
    assert any("batch id" in one for one in _failure_descriptions(played))
    assert sorted(stage.data_dir.rglob("*")) == before


def test_a_busy_batch_fails_the_run_and_names_who_is_at_work(stage: Stage, instance: DagsterInstance) -> None:
    from cj_pipeline.ledger import Lease

    stage.submit_demo("busy", students=3)
    with stage.ledger() as ledger, Lease.acquire(ledger, "busy", owner="somebody:1", seconds=30):
        played = play(stage, instance, "busy", "continue_batch_job")
    assert not played.result.success
    assert any("somebody:1" in one for one in _failure_descriptions(played))
    assert played.materialisations() == {}


@pytest.mark.slow
def test_scores_that_are_older_than_the_ledger_are_not_published(stage: Stage, instance: DagsterInstance) -> None:
    stage.submit_demo("stale", students=3, max_comparisons=30)
    stage.judge("stale", waves_per_run=1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("CJ_WAVES_PER_RUN", "1")
        assert play(stage, instance, "stale", "continue_batch_job").result.success
    stage.judge("stale")
    played = play(stage, instance, "stale", "rescore_batch_job")
    assert not played.result.success
    assert any("continue_batch_job" in one for one in _failure_descriptions(played))
    assert StaleResultsError.__name__ in played.why_it_failed()
    assert stage.batch("stale").published_at is None


# --- parts of a batch --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_wave_a_run_publishes_what_there_is_and_the_next_run_goes_on(
    stage: Stage, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.submit_demo("steps", students=3, max_comparisons=20)
    monkeypatch.setenv("CJ_WAVES_PER_RUN", "1")

    first = play(stage, instance, "steps", "continue_batch_job")
    assert first.result.success, first.why_it_failed()
    assert len(first.observations()) == 1
    assert stage.frame("batch_state", "steps")["status"].item() == "JUDGING"
    assert first.checks()["batch_succeeded"].passed
    batch = stage.batch("steps")
    assert (batch.published_as_of, batch.published_at) == (10, None)

    second = play(stage, instance, "steps", "continue_batch_job")
    assert second.result.success, second.why_it_failed()
    assert len(second.observations()) == 1
    assert stage.frame("batch_state", "steps")["status"].item() == "COMPLETE_MAX_COMPARISONS"
    assert stage.batch("steps").published_as_of == 20


@pytest.mark.parametrize(("by_hand", "judged"), [(True, 20), (False, 0)])
def test_a_launch_by_hand_takes_a_batch_off_hold_and_one_by_a_sensor_does_not(
    stage: Stage, instance: DagsterInstance, by_hand: bool, judged: int
) -> None:
    batch_id = f"held-{judged}"
    stage.submit_demo(batch_id, students=3, max_comparisons=20)
    with stage.ledger() as ledger:
        ledger.hold(batch_id, "lunch")
    instance.add_dynamic_partitions("cj_batch", [batch_id])
    result = stage.job("continue_batch_job").execute_in_process(
        instance=instance,
        partition_key=batch_id,
        raise_on_error=False,
        run_config=QUIET,
        tags={} if by_hand else {"dagster/sensor_name": "continue_batch_sensor"},
    )
    assert result.success
    with stage.ledger() as ledger:
        assert ledger.state(batch_id).judged == judged
        assert (ledger.batch(batch_id).hold_reason is None) == by_hand


# --- the command line of CI --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("batch_id", "code"), [("good", 0), ("bad", 1)])
def test_materialising_everything_from_the_command_line_exits_with_the_fate_of_the_batch(
    tmp_path: Path, batch_id: str, code: int
) -> None:
    stage = Stage(tmp_path / "home")
    stage.submit_demo(batch_id, students=3, max_comparisons=20)
    if batch_id == "bad":
        stage.judge(batch_id, failing=True)
    with stage.instance() as instance:
        instance.add_dynamic_partitions("cj_batch", [batch_id])
    command = ["dagster", "asset", "materialize", "-m", "cj_pipeline.definitions", "--select", "*"]
    done = stage.call(*command, "--partition", batch_id)
    assert done.returncode == code, done.stderr[-3000:]
    assert stage.batch(batch_id).published_at is not None
    connection = duckdb.connect(stage.data_dir / "outputs" / "comparison_graph.duckdb", read_only=True)
    assert connection.sql("SELECT batch_id FROM batches").fetchall() == [(batch_id,)]
    connection.close()


# --- looking -----------------------------------------------------------------------------------------------------


def _failure_descriptions(played: Played) -> list[str]:
    """What the UI shows of each failed step: the description of its Failure."""
    failures = [event.step_failure_data for event in played.result.all_events if event.is_step_failure]
    return [one.user_failure_data.description or "" for one in failures if one.user_failure_data]


def _row_key(row: tuple[Any, ...]) -> str:
    return repr(row[:3])


def _png_size(png: bytes) -> tuple[int, int]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert png[-8:-4] == b"IEND"
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def _sentences() -> list[str]:
    """Pieces of the demo's essays and anchors that nothing else would say, in characters no encoding changes."""
    texts = [path.read_text(encoding="utf-8") for path in (DEMO / "batch").glob("*.txt")]
    texts += [path.read_text(encoding="utf-8") for path in (DEMO / "assignment" / "anchors").glob("*.txt")]
    return [piece for text in texts for piece in re.findall(r"[A-Za-z ,.]{25,}", text)]


def _cells(database: Path) -> Iterator[str]:
    """Every cell of every table of a SQLite file as text, unpacked where it was packed."""
    with sqlite3.connect(database) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                for cell in row:
                    yield _unpacked(cell) if isinstance(cell, bytes) else str(cell)
    connection.close()


def _unpacked(blob: bytes) -> str:
    with suppress(zlib.error):
        blob = zlib.decompress(blob)
    return blob.decode("utf-8", errors="replace")


def _everything_dagster_keeps(home: Path) -> Iterator[str]:
    """Everything in the instance's storages: events, runs, schedules, logs of the steps."""
    kept = [path for folder in ("history", "storage", "schedules") for path in (home / folder).rglob("*")]
    for path in kept:
        if path.suffix == ".db":
            yield from _cells(path)
        elif path.is_file():
            yield path.read_text(encoding="utf-8", errors="replace")
