"""The asset checks: each passes on good data and finds the defect it is there for, in the lake and in the ledger."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa
from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetCheckSeverity,
    AssetKey,
    AssetSelection,
    DagsterInstance,
    Definitions,
    define_asset_job,
)

from cj_pipeline.core.models import BatchStatus, ComparisonStatus, EssayRole
from cj_pipeline.definitions import build_definitions
from cj_pipeline.defs.checks.expectations import (
    ANCHORS_SUITE,
    ESSAYS_SUITE,
    JUDGED_SUITE,
    JUDGMENTS_SUITE,
    Expectation,
    check_result,
    run_suite,
)
from cj_pipeline.defs.io_managers import LakeIOManager, write_parquet_atomically
from cj_pipeline.ledger import Ledger
from cj_pipeline.ledger import tables as t
from cj_pipeline.workflow import frames, results
from cj_pipeline_tests.defs.stage import QUIET, Stage

BATCH = "b"
BUDGET = 20
ASSET_OF = {
    "budget_is_a_wall": "pair_waves",
    "positions_are_balanced": "pair_waves",
    "counters_match_the_ledger": "llm_judgments",
    "graph_is_connected": "bt_scores",
    "probabilities_sum_to_one": "grade_projections",
    "batch_succeeded": "comparison_graph",
    "essays_expectations": "essays",
    "anchors_expectations": "anchors",
    "judgments_expectations": "llm_judgments",
}
SECRET = "Anna-Andersson"
ERROR, WARN = AssetCheckSeverity.ERROR, AssetCheckSeverity.WARN


@dataclass(frozen=True)
class Judged:
    """A finished batch: its ledger's bytes, and its frames as the lake would hold them."""

    ledger: bytes
    frames: Mapping[str, pl.DataFrame]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    with pytest.MonkeyPatch.context() as monkeypatch:
        stage = Stage.alone(tmp_path_factory.mktemp("project"), monkeypatch)
        stage.submit_demo(BATCH, students=3, max_comparisons=BUDGET)
        stage.judge(BATCH)
        with stage.ledger() as ledger:
            told = results.collect_results(ledger, BATCH)
            essays = {role: results.essays_frame(ledger, BATCH, role) for role in EssayRole}
        return Judged(
            ledger=(stage.data_dir / "outputs" / "ledger.sqlite").read_bytes(),
            frames={
                "essays": essays[EssayRole.STUDENT],
                "anchors": essays[EssayRole.ANCHOR],
                "pair_waves": results.pairs_frame(told["comparisons"]),
                "llm_judgments": results.judgments_frame(told["comparisons"]),
                "bt_scores": told["bt_scores"],
                "grade_projections": told["grade_projections"],
            },
        )


@pytest.fixture
def stage(judged: Judged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A stage with a copy of the finished batch, to tamper with."""
    stage = Stage.alone(tmp_path / "home", monkeypatch)
    (stage.data_dir / "outputs").mkdir()
    (stage.data_dir / "outputs" / "ledger.sqlite").write_bytes(judged.ledger)
    for asset, frame in judged.frames.items():
        put(stage, asset, frame)
    return stage


@pytest.fixture
def ledger(stage: Stage) -> Iterator[Ledger]:
    with stage.ledger() as ledger:
        yield ledger


def put(stage: Stage, asset: str, frame: pl.DataFrame) -> None:
    (stage.lake / asset).mkdir(parents=True, exist_ok=True)
    write_parquet_atomically(frame, stage.lake / asset / f"{BATCH}.parquet")


def evaluate(stage: Stage, check: str) -> AssetCheckEvaluation:
    """Run one check as Dagster runs it, on what is in the lake and the ledger now."""
    key = AssetCheckKey(AssetKey(ASSET_OF[check]), check)
    defs = Definitions.merge(
        build_definitions({"cj": stage.cj, "io_manager": LakeIOManager(base_url=str(stage.lake))}),
        Definitions(jobs=[define_asset_job("one_check", selection=AssetSelection.checks(key))]),
    )
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("cj_batch", [BATCH])
        result = defs.resolve_job_def("one_check").execute_in_process(
            # a job of checks alone takes no partition_key
            instance=instance,
            tags={"dagster/partition": BATCH},
            raise_on_error=False,
            run_config=QUIET,
        )
    (evaluation,) = result.get_asset_check_evaluations()
    assert evaluation.asset_check_key == key
    return evaluation


def told(evaluation: AssetCheckEvaluation) -> dict[str, Any]:
    return {name: value.value for name, value in evaluation.metadata.items()}


def execute(ledger: Ledger, statement: sa.Executable) -> None:
    with ledger.engine.begin() as connection:
        connection.execute(statement)


def change(frame: pl.DataFrame, column: str, value: Any, *, row: int = 0) -> pl.DataFrame:
    """The frame with one cell changed."""
    values = frame[column].to_list()
    values[row] = value
    return frame.with_columns(pl.Series(column, values, dtype=frame.schema[column]))


# --- native checks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [check for check in ASSET_OF if "expectations" not in check])
def test_a_native_check_passes_on_a_good_batch(stage: Stage, check: str) -> None:
    assert evaluate(stage, check).passed


def test_the_budget_check_finds_more_comparisons_than_the_budget(stage: Stage, judged: Judged) -> None:
    pairs = judged.frames["pair_waves"]
    put(stage, "pair_waves", pl.concat([pairs, pairs.head(1)]))
    evaluation = evaluate(stage, "budget_is_a_wall")
    assert (evaluation.passed, evaluation.severity) == (False, ERROR)
    assert told(evaluation) == {"submitted": BUDGET + 1, "total_budget": BUDGET}


def test_withdrawn_comparisons_do_not_count_against_the_budget(stage: Stage, judged: Judged) -> None:
    pairs = judged.frames["pair_waves"]
    withdrawn = pairs.head(3).with_columns(status=pl.lit(ComparisonStatus.WITHDRAWN.value))
    put(stage, "pair_waves", pl.concat([pairs, withdrawn]))
    assert evaluate(stage, "budget_is_a_wall").passed


def test_the_budget_check_finds_a_batch_without_a_budget(stage: Stage, ledger: Ledger) -> None:
    execute(ledger, t.batches.update().values(total_budget=None))
    evaluation = evaluate(stage, "budget_is_a_wall")
    assert not evaluation.passed
    assert "no budget" in (evaluation.description or "")


def skew_once_swapped(pairs: list[tuple[str, str]], swapped: int) -> int:
    """The largest |A − B| over all essays if one comparison had been the other way round, counted anew."""
    turned = [pair[::-1] if index == swapped else pair for index, pair in enumerate(pairs)]
    essays = {essay for pair in pairs for essay in pair}
    return max(abs(sum((a == essay) - (b == essay) for a, b in turned)) for essay in essays)


@pytest.mark.parametrize(
    ("skew", "settings", "passed"),
    [
        (2, {}, False),
        (2, {"min_resampling_net_size": 30}, True),
        (3, {"min_resampling_net_size": 30}, False),
        (3, {"enable_comparison_position_balancing": False}, True),
    ],
    ids=["large net", "small net", "small net too far", "balancing off"],
)
def test_the_position_check_allows_one_or_two_in_a_small_net(
    stage: Stage, ledger: Ledger, skew: int, settings: dict[str, Any], passed: bool
) -> None:
    comparisons = ledger.comparisons(BATCH)
    pairs = [(comparison.essay_a, comparison.essay_b) for comparison in comparisons]
    assert skew_once_swapped(pairs, -1) <= 1
    swapped = next(index for index in range(len(pairs)) if skew_once_swapped(pairs, index) == skew)
    a, b = pairs[swapped]
    execute(
        ledger,
        t.comparisons.update()
        .where(t.comparisons.c.comparison_id == comparisons[swapped].comparison_id)
        .values(essay_a=b, essay_b=a),
    )
    execute(ledger, t.batches.update().values(settings={**ledger.batch(BATCH).settings, **settings}))
    evaluation = evaluate(stage, "positions_are_balanced")
    assert (evaluation.passed, evaluation.severity) == (passed, ERROR)
    assert told(evaluation)["largest_skew"] == skew


@pytest.mark.parametrize(("status", "named"), [("failed", {"judged", "failed"}), ("planned", {"judged", "planned"})])
def test_the_counter_check_finds_a_frame_that_tells_another_story_than_the_ledger(
    stage: Stage, judged: Judged, status: str, named: set[str]
) -> None:
    put(stage, "llm_judgments", change(judged.frames["llm_judgments"], "status", status, row=7))
    evaluation = evaluate(stage, "counters_match_the_ledger")
    assert (evaluation.passed, evaluation.severity) == (False, ERROR)
    assert {word.strip() for word in (evaluation.description or "").split(":")[1].split(",")} == named


def test_the_counter_check_finds_a_judgment_that_is_missing_in_the_lake(stage: Stage, judged: Judged) -> None:
    put(stage, "llm_judgments", judged.frames["llm_judgments"].head(BUDGET - 1))
    evaluation = evaluate(stage, "counters_match_the_ledger")
    assert not evaluation.passed
    assert told(evaluation)["ledger_judged"] == BUDGET


def test_the_counter_check_finds_progress_above_100_percent(stage: Stage, ledger: Ledger) -> None:
    execute(ledger, t.batches.update().values(total_budget=BUDGET - 1))
    evaluation = evaluate(stage, "counters_match_the_ledger")
    assert not evaluation.passed
    assert told(evaluation)["progress"] > 1.0


def test_the_connection_check_warns_of_a_graph_in_parts(stage: Stage, judged: Judged) -> None:
    put(stage, "bt_scores", change(judged.frames["bt_scores"], "component", 1, row=3))
    evaluation = evaluate(stage, "graph_is_connected")
    assert (evaluation.passed, evaluation.severity) == (False, WARN)
    assert told(evaluation) == {"components": 2, "essays": 15}


@pytest.mark.parametrize("off", [1e-6, -1e-6, float("nan"), 1.0], ids=str)
@pytest.mark.parametrize("row", [0, 5])
def test_the_probability_check_finds_probabilities_that_do_not_sum_to_one(
    stage: Stage, judged: Judged, off: float, row: int
) -> None:
    grades = judged.frames["grade_projections"]
    tampered = grades["probabilities"].to_list()[row]
    tampered[4]["probability"] += off
    assert grades["available"][row]
    put(stage, "grade_projections", change(grades, "probabilities", tampered, row=row))
    evaluation = evaluate(stage, "probabilities_sum_to_one")
    assert (evaluation.passed, evaluation.severity) == (False, ERROR)


def test_the_probability_check_finds_a_grade_without_probabilities_and_passes_over_essays_without_a_grade(
    stage: Stage, judged: Judged
) -> None:
    without = change(judged.frames["grade_projections"], "probabilities", [], row=2)
    put(stage, "grade_projections", without)
    assert not evaluate(stage, "probabilities_sum_to_one").passed
    put(stage, "grade_projections", change(without, "available", False, row=2))
    evaluation = evaluate(stage, "probabilities_sum_to_one")
    assert evaluation.passed
    assert told(evaluation)["graded"] == 14


@pytest.mark.parametrize("status", list(BatchStatus))
def test_the_last_check_fails_exactly_the_batches_that_ended_without_a_scale(
    stage: Stage, ledger: Ledger, status: BatchStatus
) -> None:
    execute(ledger, t.batches.update().values(status=status.value, stop_reason="low_success_rate"))
    evaluation = evaluate(stage, "batch_succeeded")
    without_scale = {BatchStatus.FAILED, BatchStatus.CANCELLED, BatchStatus.COMPLETE_INSUFFICIENT_ESSAYS}
    assert evaluation.passed == (status not in without_scale)
    assert (evaluation.severity, evaluation.blocking) == (ERROR, True)
    assert told(evaluation) == {"status": status.value, "stop_reason": "low_success_rate"}
    if not evaluation.passed:
        assert results.NO_GRADES_BECAUSE["low_success_rate"] in (evaluation.description or "")


# --- Great Expectations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [check for check in ASSET_OF if "expectations" in check])
def test_a_suite_passes_on_a_good_batch(stage: Stage, check: str) -> None:
    evaluation = evaluate(stage, check)
    assert evaluation.passed, evaluation.description
    assert told(evaluation)["expectations"] >= 10
    assert told(evaluation)["failed"] == 0


@pytest.mark.parametrize(
    ("check", "column", "value"),
    [
        ("essays_expectations", "text_sha256", "not-a-hash"),
        ("anchors_expectations", "known_grade", None),
        ("judgments_expectations", "confidence", 6),
        ("judgments_expectations", "prompt_sha256", None),
    ],
)
def test_a_check_finds_a_planted_defect_in_the_lake(
    stage: Stage, judged: Judged, check: str, column: str, value: Any
) -> None:
    asset = ASSET_OF[check]
    put(stage, asset, change(judged.frames[asset], column, value))
    evaluation = evaluate(stage, check)
    assert (evaluation.passed, evaluation.severity) == (False, ERROR)
    assert column in (evaluation.description or "")


def planted(suite: tuple[Expectation, ...], frame: pl.DataFrame) -> tuple[set[str], AssetCheckSeverity]:
    """What a suite finds in a frame: the columns or rules that failed, and how bad that is together."""
    findings = run_suite(frame, suite)
    result = check_result(findings)
    assert result.passed == all(finding.passed for finding in findings)
    return {finding.rule for finding in findings if not finding.passed}, result.severity


@pytest.mark.parametrize(
    ("column", "value", "rule", "severity"),
    [
        ("essay_id", "s02", "ExpectColumnValuesToBeUnique(column=essay_id)", ERROR),
        ("essay_id", "Anna Andersson", "ExpectColumnValuesToMatchRegex(column=essay_id", ERROR),
        ("essay_id", None, "ExpectColumnValuesToNotBeNull(column=essay_id)", ERROR),
        ("text_sha256", "f" * 63, "ExpectColumnValuesToMatchRegex(column=text_sha256", ERROR),
        ("text_sha256", None, "ExpectColumnValuesToNotBeNull(column=text_sha256)", ERROR),
        ("word_count", 49, "ExpectColumnValuesToBeBetween(column=word_count, min_value=50", WARN),
        ("word_count", None, "ExpectColumnValuesToNotBeNull(column=word_count)", ERROR),
        ("is_anchor", True, "ExpectColumnValuesToBeInSet(column=is_anchor)", ERROR),
    ],
)
def test_the_essay_suite_finds_exactly_what_was_planted(
    judged: Judged, column: str, value: Any, rule: str, severity: AssetCheckSeverity
) -> None:
    failed, found = planted(ESSAYS_SUITE, change(judged.frames["essays"], column, value))
    assert len(failed) == 1
    assert failed.pop().startswith(rule)
    assert found is severity


def test_an_empty_essay_is_an_error_though_a_short_one_is_a_warning(judged: Judged) -> None:
    failed, severity = planted(ESSAYS_SUITE, change(judged.frames["essays"], "word_count", 0))
    assert len(failed) == 2
    assert severity is ERROR


def test_a_batch_of_one_student_is_a_warning(judged: Judged) -> None:
    failed, severity = planted(ESSAYS_SUITE, judged.frames["essays"].head(1))
    assert [rule.split("(")[0] for rule in failed] == ["ExpectTableRowCountToBeBetween"]
    assert severity is WARN


def test_twins_among_the_essays_are_found_by_their_text(judged: Judged) -> None:
    essays = judged.frames["essays"]
    failed, severity = planted(ESSAYS_SUITE, change(essays, "text_sha256", essays["text_sha256"][1]))
    assert failed == {"ExpectColumnValuesToBeUnique(column=text_sha256)"}
    assert severity is ERROR


def test_the_anchor_suite_finds_missing_grades_and_warns_of_a_single_one(judged: Judged) -> None:
    anchors = judged.frames["anchors"]
    failed, severity = planted(ANCHORS_SUITE, change(anchors, "known_grade", None, row=4))
    assert failed == {"ExpectColumnValuesToNotBeNull(column=known_grade)"}
    assert severity is ERROR
    failed, severity = planted(ANCHORS_SUITE, anchors.with_columns(known_grade=pl.lit("B")))
    assert len(failed) == 1
    assert severity is WARN
    failed, _ = planted(ANCHORS_SUITE, change(anchors, "is_anchor", False))
    assert failed == {"ExpectColumnValuesToBeInSet(column=is_anchor)"}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("comparison_id", "w00001-c00002"),
        ("comparison_id", None),
        ("status", "pending"),
        ("status", None),
        ("pair_mode", "random"),
        ("winner", "A"),
        ("confidence", 6),
        ("confidence", 0),
        ("attempts", -1),
        ("tokens_in", -1),
        ("cost_usd", -0.01),
    ],
)
def test_the_judgment_suite_finds_exactly_what_was_planted(judged: Judged, column: str, value: Any) -> None:
    failed, severity = planted(JUDGMENTS_SUITE, change(judged.frames["llm_judgments"], column, value))
    assert len(failed) == 1
    assert f"column={column}" in failed.pop()
    assert severity is ERROR


@pytest.mark.parametrize("column", ["winner", "confidence", "completed_at", "prompt_sha256"])
def test_a_judgment_must_have_what_makes_it_one(judged: Judged, column: str) -> None:
    failed, severity = planted(JUDGED_SUITE, change(judged.frames["llm_judgments"], column, None))
    assert failed == {f"ExpectColumnValuesToNotBeNull(column={column})"}
    assert severity is ERROR


def test_a_failed_comparison_needs_no_winner(stage: Stage, judged: Judged) -> None:
    judgments = judged.frames["llm_judgments"]
    for column, value in (
        ("status", "failed"),
        ("winner", None),
        ("confidence", None),
        ("error_type", "refused"),
        ("prompt_sha256", None),
    ):
        judgments = change(judgments, column, value)
    put(stage, "llm_judgments", judgments)
    assert evaluate(stage, "judgments_expectations").passed


def test_judgments_of_a_batch_that_goes_on_are_not_looked_at_yet(stage: Stage, ledger: Ledger, judged: Judged) -> None:
    put(stage, "llm_judgments", change(judged.frames["llm_judgments"], "confidence", 6))
    execute(ledger, t.batches.update().values(status=BatchStatus.JUDGING.value))
    evaluation = evaluate(stage, "judgments_expectations")
    assert evaluation.passed
    assert "not final" in (evaluation.description or "")


@pytest.mark.parametrize(
    ("check", "table"), [("anchors_expectations", frames.ESSAYS), ("judgments_expectations", frames.JUDGMENTS)]
)
def test_a_batch_with_nothing_to_look_at_passes_and_says_so(stage: Stage, check: str, table: frames.Table) -> None:
    put(stage, ASSET_OF[check], table.frame([]))
    evaluation = evaluate(stage, check)
    assert evaluation.passed
    assert evaluation.description


def test_no_value_of_a_cell_is_told(stage: Stage, judged: Judged) -> None:
    essays = change(change(judged.frames["essays"], "essay_id", SECRET), "essay_id", SECRET, row=1)
    put(stage, "essays", change(essays, "text_sha256", SECRET))
    evaluation = evaluate(stage, "essays_expectations")
    assert not evaluation.passed
    assert told(evaluation)["failed"] == 2
    assert "2 values" in (evaluation.description or "")
    assert SECRET not in repr(evaluation)
    assert SECRET not in str(told(evaluation))


def test_a_rule_that_cannot_be_evaluated_is_an_error_and_not_a_pass(judged: Judged) -> None:
    broken = Expectation("ExpectColumnValuesToNotBeNull", {"column": "no_such_column"})
    with pytest.raises(RuntimeError, match="no_such_column"):
        run_suite(judged.frames["essays"], [broken])
