"""Results are re-computed from the record: typed, complete, the same each time, and honest about what there is not."""

import math
from itertools import accumulate

import polars as pl
import pytest

from cj_pipeline.core.bradley_terry import fit_bradley_terry
from cj_pipeline.core.grade_scale import BUILTIN_SCALES
from cj_pipeline.core.grades import project_scored
from cj_pipeline.core.models import BatchKind, BatchStatus, EssayRole
from cj_pipeline.core.scoring import compute_bt_scores_and_se
from cj_pipeline.ledger import Lease, UnknownBatchError
from cj_pipeline.settings import BatchOverrides, BatchTunables
from cj_pipeline.workflow import frames
from cj_pipeline.workflow.registration import register_assignment, submit_batch
from cj_pipeline.workflow.results import (
    NO_ASSIGNMENT,
    NO_GRADES_BECAUSE,
    collect_results,
    comparisons_frame,
    essays_frame,
    flag,
    judgments_frame,
    pairs_frame,
    position_table,
    score,
    summarise,
    summary_by_scope,
)
from cj_pipeline_tests.workflow.scenes import (
    GRADES,
    Through,
    advance,
    assignment_request,
    attempts,
    batch_request,
    settings,
    simulated,
    submit,
    submit_lower_five,
    tell_secrets,
)

on_sqlite = pytest.mark.parametrize("database", ["sqlite"])


def stable(ledger):
    submit(ledger, max_comparisons=300, score_stability_threshold=0.4)
    advance(ledger)


def spent(ledger):
    submit(ledger, max_comparisons=60, score_stability_threshold=0.0, max_judgment_attempts=1)
    advance(ledger, judge=simulated(malformed_answer=0.1))


def small_net(ledger):
    submit_lower_five(ledger, "b")
    advance(ledger)


def recovered(ledger):
    submit(ledger)
    advance(ledger, waves_per_run=4)
    with Lease.acquire(ledger, "b", owner="the monitor", seconds=30) as lease:
        lease.finalise(BatchStatus.COMPLETE_FORCED_RECOVERY, "timeout_recovered")


def insufficient(ledger):
    submit(ledger, student_count=1)
    advance(ledger)


def empty(ledger):
    submit(ledger, student_count=0, anchors=0)
    advance(ledger)


def failing(ledger):
    submit(ledger, max_comparisons=24)
    advance(ledger, judge=simulated(malformed_answer=1.0))


def rejected(ledger):
    submit(ledger)
    advance(ledger, judge=simulated(provider_rejected=1.0))


def cancelled(ledger):
    submit(ledger)
    advance(ledger, waves_per_run=2)
    with Lease.acquire(ledger, "b", owner="cj", seconds=30) as lease:
        lease.finalise(BatchStatus.CANCELLED, "cancelled")


def untouched(ledger):
    submit(ledger)


def under_way(ledger):
    submit(ledger)
    advance(ledger, waves_per_run=2)


ENDINGS = {
    stable: BatchStatus.COMPLETE_STABLE,
    spent: BatchStatus.COMPLETE_MAX_COMPARISONS,
    small_net: BatchStatus.COMPLETE_SMALL_NET,
    recovered: BatchStatus.COMPLETE_FORCED_RECOVERY,
    insufficient: BatchStatus.COMPLETE_INSUFFICIENT_ESSAYS,
    empty: BatchStatus.COMPLETE_INSUFFICIENT_ESSAYS,
    failing: BatchStatus.FAILED,
    rejected: BatchStatus.FAILED,
    cancelled: BatchStatus.CANCELLED,
    untouched: BatchStatus.SUBMITTED,
    under_way: BatchStatus.JUDGING,
}
each_ending = pytest.mark.parametrize("ending", list(ENDINGS), ids=lambda ending: ending.__name__)


def check_table(table: frames.Table, frame: pl.DataFrame) -> None:
    assert dict(frame.schema) == table.schema, table.name
    required = [column.name for column in table.columns if not column.nullable]
    nulls = {name: frame[name].null_count() for name in required if frame[name].null_count()}
    assert not nulls, f"{table.name}: nulls in columns that promise none: {nulls}"


@each_ending
def test_however_a_batch_stands_its_tables_have_exactly_their_schemas(ledger, ending):
    ending(ledger)
    results = collect_results(ledger, "b")
    assert results.batch.status is ENDINGS[ending]
    assert list(results.tables) == [table.name for table in frames.GRAPH_TABLES]
    for table in frames.GRAPH_TABLES:
        check_table(table, results[table.name])
    check_table(frames.PAIRS, pairs_frame(results["comparisons"]))
    check_table(frames.JUDGMENTS, judgments_frame(results["comparisons"]))

    essays, state = ledger.essays("b"), ledger.state("b")
    ids = [essay.essay_id for essay in essays]
    assert results["essays"]["essay_id"].to_list() == ids
    assert sorted(results["bt_scores"]["essay_id"]) == sorted(results["grade_projections"]["essay_id"]) == sorted(ids)
    assert results["bt_scores"]["score"].sum() == pytest.approx(0, abs=1e-9)
    assert results["comparisons"].height == len(ledger.comparisons("b"))
    assert results["waves"].height == len(ledger.waves("b"))
    assert results["bt_se_summaries"]["scope"].to_list() == ["all", "anchors", "students"]
    assert results["quality_flags"].height == 1

    [batch] = results["batches"].iter_rows(named=True)
    assert (batch["submitted"], batch["judged"], batch["failed"]) == (state.submitted, state.judged, state.failed)
    assert batch["attempts"] == len(attempts(ledger))
    assert (batch["as_of"], results.as_of) == (state.judged, state.judged)
    assert (batch["completed_at"] is not None) == results.batch.status.is_final
    assert results["waves"]["planned"].sum() == state.submitted


@each_ending
def test_only_comparisons_keep_justifications_and_no_table_keeps_a_text(ledger, ending):
    ending(ledger)
    results = collect_results(ledger, "b")
    everything = [frame.write_json() for frame in results.tables.values()]
    assert tell_secrets("".join(everything)) == []
    judgments = judgments_frame(results["comparisons"])
    assert "justification" in results["comparisons"].columns
    assert "justification" not in judgments.columns
    assert "Simulated judgment" not in judgments.write_json()
    if results.as_of:
        assert "Simulated judgment" in results["comparisons"].write_json()


@on_sqlite
@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (insufficient, NO_GRADES_BECAUSE["insufficient_essays"]),
        (failing, NO_GRADES_BECAUSE["low_success_rate"]),
        (rejected, NO_GRADES_BECAUSE["provider_rejected"]),
        (cancelled, NO_GRADES_BECAUSE["cancelled"]),
        (small_net, NO_ASSIGNMENT),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_where_there_are_no_grades_every_essay_has_the_reason(ledger, ending, reason):
    ending(ledger)
    results = collect_results(ledger, "b")
    projections = results["grade_projections"]
    assert results.projection is None
    assert projections.height == len(ledger.essays("b")) > 0
    assert projections["available"].any() is False
    assert projections["reason"].unique().to_list() == [reason]
    assert projections["grade"].null_count() == projections["confidence"].null_count() == projections.height
    assert projections["probabilities"].list.len().max() == 0


@each_ending
@on_sqlite
def test_a_batch_that_ended_without_grades_gives_none(ledger, ending):
    ending(ledger)
    results = collect_results(ledger, "b")
    if results.batch.status.is_final and not results.batch.status.has_grades:
        assert not results["grade_projections"]["available"].any()
    graded = [stable, spent, recovered]
    if ending in graded:
        assert results["grade_projections"]["available"].all()


@on_sqlite
def test_grades_are_a_distribution_over_the_scale_marked_as_simulated(ledger):
    stable(ledger)
    results = collect_results(ledger, "b")
    rows = list(results["grade_projections"].iter_rows(named=True))
    assert {row["simulated"] for row in rows} == {True}
    for row in rows:
        probabilities = {item["grade"]: item["probability"] for item in row["probabilities"]}
        assert set(GRADES) <= set(probabilities)
        assert math.fsum(probabilities.values()) == pytest.approx(1)
        assert row["confidence"] == probabilities[row["grade"]]
        # the grade is the median: not more than half lies on either side of it
        reached = list(accumulate(probabilities.values()))
        place = list(probabilities).index(row["grade"])
        assert reached[place] >= 0.5 >= reached[place] - row["confidence"]
        equal = {item["grade"]: item["probability"] for item in row["probabilities_uniform"]}
        assert math.fsum(equal.values()) == pytest.approx(1)
        assert row["confidence_uniform"] == equal[row["grade_uniform"]]
        assert 0 <= row["would_change"] <= 1
        assert row["is_anchor"] == (row["known_grade"] is not None)
    quality = {essay.essay_id: essay.quality for essay in ledger.essays("b")}
    off = [abs(GRADES.index(r["grade"]) - quality[r["essay_id"]]) for r in rows if r["grade"] in GRADES]
    assert sum(off) / len(off) < 1.5


@on_sqlite
def test_published_grades_are_those_the_stop_rule_reads(ledger):
    stable(ledger)
    results = collect_results(ledger, "b")
    essays = ledger.essays("b")
    scored = compute_bt_scores_and_se(ledger.comparisons("b"), [e.essay_id for e in essays], BatchTunables())
    known = {e.essay_id: e.known_grade for e in essays if e.is_anchor}
    expected = project_scored(BUILTIN_SCALES[results["batches"]["grade_scale"].item()], scored, known)
    for projection in expected.projections:
        row = results["grade_projections"].row(by_predicate=pl.col("essay_id") == projection.essay_id, named=True)
        assert row["grade"] == projection.grade
        found = {item["grade"]: item["probability"] for item in row["probabilities"]}
        assert found == pytest.approx(projection.probabilities, abs=1e-6)
    assert results["grade_boundaries"]["score"].to_list() == pytest.approx([b.score for b in expected.boundaries])
    assert results["anchor_report"].height == len(known)


# --- the record, scored again --------------------------------------------------------------------------------------


def test_scoring_the_judgments_of_the_lake_gives_the_scores_stored_with_the_last_wave_exactly(ledger):
    spent(ledger)
    tunables = BatchTunables.model_validate(ledger.batch("b").settings)
    judgments = judgments_frame(comparisons_frame(ledger, "b"))
    scores = score(ledger.batch("b"), judgments, essays_frame(ledger, "b"))
    last = ledger.waves("b")[-1]
    assert dict(zip(scores["essay_id"], scores["score"], strict=True)) == last.scores
    assert dict(zip(scores["essay_id"], scores["se_uncapped"], strict=True)) == last.ses
    summary = summary_by_scope(summarise("b", scores, judgments, tunables))
    stored = ledger.batch("b").processing_metadata
    assert summary == stored["bt_se_summary"]
    flags = flag("b", summarise("b", scores, judgments, tunables), tunables).drop("batch_id")
    assert flags.row(0, named=True) == stored["bt_quality_flags"]
    assert (summary["all"]["mean_se"], summary["all"]["max_se"]) == (last.mean_se, last.max_se)


@on_sqlite
def test_scoring_again_gives_the_same_numbers_whatever_the_order_of_the_rows(ledger):
    spent(ledger)
    judgments = judgments_frame(comparisons_frame(ledger, "b"))
    essays = essays_frame(ledger, "b")
    first = score(ledger.batch("b"), judgments, essays)
    assert first.equals(score(ledger.batch("b"), judgments, essays))
    assert first.equals(score(ledger.batch("b"), judgments.sample(fraction=1.0, shuffle=True, seed=3), essays))
    assert first.equals(score(ledger.batch("b"), judgments.reverse(), essays))


@on_sqlite
def test_scores_are_those_of_the_fit_and_wins_those_of_the_rows(ledger):
    spent(ledger)
    results = collect_results(ledger, "b")
    scores = results["bt_scores"]
    judged = results["comparisons"].filter(pl.col("status") == "judged").sort("comparison_id")
    ids = sorted(scores["essay_id"])
    place = {essay_id: index for index, essay_id in enumerate(ids)}
    prior_sd = ledger.batch("b").processing_metadata["prior_sd"]
    fit = fit_bradley_terry(
        [place[winner] for winner in judged["winner_id"]],
        [place[loser] for loser in judged["loser_id"]],
        len(ids),
        winner_first=(judged["winner"] == "a").to_numpy(),
    )
    by_id = {row["essay_id"]: row for row in scores.iter_rows(named=True)}
    assert [by_id[essay_id]["score"] for essay_id in ids] == pytest.approx(list(fit.scores), abs=1e-9)
    assert fit.prior_sd == pytest.approx(prior_sd)
    assert fit.order_effect == pytest.approx(ledger.batch("b").processing_metadata["order_effect"])
    for essay_id, row in by_id.items():
        assert row["wins"] == (judged["winner_id"] == essay_id).sum()
        assert row["losses"] == (judged["loser_id"] == essay_id).sum()
        assert row["comparisons"] == row["wins"] + row["losses"]
        assert row["se"] == min(row["se_uncapped"], 2.0)
        assert row["score_low"] < row["score"] < row["score_high"]
    assert scores["rank"].to_list() == list(range(1, 25))
    assert scores["score"].to_list() == sorted(scores["score"], reverse=True)


@on_sqlite
def test_winner_and_loser_follow_from_the_position_and_failures_have_neither(ledger):
    spent(ledger)
    rows = list(collect_results(ledger, "b")["comparisons"].iter_rows(named=True))
    assert {row["status"] for row in rows} == {"judged", "failed"}
    assert {row["winner"] for row in rows} == {"a", "b", None}
    for row in rows:
        pair = (row["essay_a"], row["essay_b"])
        expected = {"a": pair, "b": pair[::-1], None: (None, None)}[row["winner"]]
        assert (row["winner_id"], row["loser_id"]) == expected
        assert (row["error_type"] is None) == (row["status"] == "judged")
    assert [row["comparison_id"] for row in rows] == sorted(row["comparison_id"] for row in rows)


@on_sqlite
def test_results_taken_on_the_way_say_how_far_they_go(ledger):
    submit(ledger)
    found = []
    for _run in range(3):
        advance(ledger, waves_per_run=1)
        results = collect_results(ledger, "b")
        found.append((results.as_of, results["batches"]["as_of"].item(), results["bt_scores"]["comparisons"].sum()))
    assert found == [(12, 12, 24), (24, 24, 48), (36, 36, 72)]


@on_sqlite
def test_results_taken_in_the_middle_of_a_run_tell_one_story(ledger):
    """The tables are read while answers come in; all must stand on the same comparisons."""

    class Reading(Through):
        async def judge(self, request):
            answer = await super().judge(request)
            if request.comparison_id.endswith("c00010"):
                found.append(collect_results(ledger, "b"))
            return answer

    found = []
    submit(ledger)
    advance(ledger, judge=Reading())
    assert len(found) == 5
    for results in found:
        [batch] = results["batches"].iter_rows(named=True)
        counted = dict(results["comparisons"]["status"].value_counts().iter_rows())
        assert batch["judged"] == batch["as_of"] == results.as_of == counted["judged"]
        assert batch["submitted"] == results["comparisons"].height
        assert results["waves"]["judged"].sum() == results.as_of


@on_sqlite
def test_the_history_of_waves_counts_what_was_withdrawn_as_never_planned(ledger):
    rejected(ledger)
    [wave] = collect_results(ledger, "b")["waves"].iter_rows(named=True)
    assert (wave["planned"], wave["judged"], wave["failed"], wave["callbacks"]) == (1, 0, 1, 1)
    assert (wave["decision"], wave["reason"]) == ("FINALIZE_FAILURE", "provider_rejected")


@on_sqlite
def test_positions_are_counted_per_essay_and_balanced(ledger):
    spent(ledger)
    table = position_table(ledger, "b")
    comparisons = comparisons_frame(ledger, "b")
    assert table["as_a"].sum() == table["as_b"].sum() == comparisons.height
    for row in table.iter_rows(named=True):
        assert row["as_a"] == (comparisons["essay_a"] == row["essay_id"]).sum()
        assert row["as_b"] == (comparisons["essay_b"] == row["essay_id"]).sum()
        assert row["skew"] == row["as_a"] - row["as_b"]
        assert abs(row["skew"]) <= 1
    assert table["is_anchor"].sum() == 12


@on_sqlite
def test_essays_can_be_listed_by_role(ledger):
    submit(ledger, student_count=3)
    assert essays_frame(ledger, "b", EssayRole.STUDENT)["essay_id"].to_list() == ["pupil-01", "pupil-02", "pupil-03"]
    assert essays_frame(ledger, "b", EssayRole.ANCHOR)["known_grade"].to_list() == [
        GRADES[i * 9 // 12] for i in range(12)
    ]


@on_sqlite
def test_a_batch_keeps_the_grade_scale_it_was_submitted_with(ledger):
    register_assignment(ledger, assignment_request())
    submit_batch(ledger, settings(), batch_request(overrides=BatchOverrides(max_comparisons=48)))
    national = assignment_request(grade_scale="eng5_np_national_9_step", anchors=0)
    register_assignment(ledger, national, replace=True)
    advance(ledger)
    results = collect_results(ledger, "b")
    assert results["batches"]["grade_scale"].item() == "eng5_np_legacy_9_step"
    assert set(results["grade_projections"]["grade"]) <= {*GRADES, "F"}


@on_sqlite
def test_anchors_judged_alone_are_projected_each_without_itself(ledger):
    register_assignment(ledger, assignment_request())
    request = batch_request(kind=BatchKind.CALIBRATION, students=(), overrides=BatchOverrides(max_comparisons=66))
    submit_batch(ledger, settings(), request)
    advance(ledger)
    projections = collect_results(ledger, "b")["grade_projections"]
    assert projections.height == 12
    assert projections["is_anchor"].all() and projections["available"].all()


@on_sqlite
def test_results_of_an_unknown_batch_are_an_error(ledger):
    with pytest.raises(UnknownBatchError):
        collect_results(ledger, "nowhere")
