"""The wave loop: how batches end, what holds after every wave, and that no way of running changes the record."""

import logging
import re
import threading
import time
from collections import Counter
from itertools import pairwise

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.stats import kendalltau
from structlog.testing import capture_logs

from cj_pipeline.core.errors import MissingBudgetError
from cj_pipeline.core.judgment_table import judgment_table_of
from cj_pipeline.core.models import BatchStatus, PairDesign, Winner
from cj_pipeline.core.posterior import draw_posterior
from cj_pipeline.core.reliability import expected_r_squared
from cj_pipeline.judges.errors import Fate, MalformedAnswerError, ProviderRejectedError, RefusedError
from cj_pipeline.judges.prompts import JudgeInstructions, build_prompt
from cj_pipeline.judges.protocol import JudgeAnswer, Usage
from cj_pipeline.ledger import BatchBusyError, Lease, LeaseLostError, Ledger, UnknownBatchError
from cj_pipeline.ledger import tables as t
from cj_pipeline.workflow.loop import Outcome, Progress, WaveReport, owner_run_id, process_owner
from cj_pipeline_tests.workflow.scenes import (
    SECRET_WORDS,
    Gate,
    Through,
    advance,
    advancing,
    anchor_text,
    attempts,
    attempts_by_comparison,
    history,
    record,
    settings,
    simulated,
    student_text,
    submit,
    submit_lower_five,
    submit_without_grades,
    tell_secrets,
    wait_for,
)

on_sqlite = pytest.mark.parametrize("database", ["sqlite"])


@pytest.fixture
def other_ledger(tmp_path):
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'other.sqlite'}")
    yield ledger
    ledger.close()


# --- how batches end -----------------------------------------------------------------------------------------------


def test_a_batch_of_twelve_anchors_and_twelve_students_runs_until_its_scores_are_stable(ledger):
    submit(ledger, max_comparisons=500, score_stability_threshold=0.3, min_comparisons_for_stability_check=48)
    done = advance(ledger)
    batch, state, waves = ledger.batch("b"), ledger.state("b"), ledger.waves("b")
    assert (done.outcome, done.status, done.stop_reason) == (Outcome.FINAL, BatchStatus.COMPLETE_STABLE, "stable")
    assert (done.waves, done.judged) == (len(waves), state.judged)
    assert batch.status is BatchStatus.COMPLETE_STABLE
    assert batch.completed_at is not None
    assert not batch.lease_live
    assert 48 <= state.judged == state.submitted < 500
    assert waves[-1].max_score_change <= 0.3
    assert all(wave.max_score_change > 0.3 for wave in waves[3:-1])
    quality = {essay.essay_id: essay.quality for essay in ledger.essays("b")}
    assert kendalltau([quality[e] for e in waves[-1].scores], list(waves[-1].scores.values())).statistic > 0.75


def test_a_batch_that_does_not_become_stable_spends_its_budget_and_no_more(ledger):
    submit(ledger, max_comparisons=40, score_stability_threshold=0.0)
    done = advance(ledger)
    assert (done.status, done.stop_reason) == (BatchStatus.COMPLETE_MAX_COMPARISONS, "budget_spent")
    assert Counter(row[3] for row in record(ledger)) == {1: 12, 2: 12, 3: 12, 4: 4}
    assert [wave.cut_by_budget for wave in ledger.waves("b")] == [False, False, False, True]


def test_five_essays_are_all_compared_and_then_judged_again_in_two_passes(ledger):
    submit_lower_five(ledger)
    done = advance(ledger, "lower5")
    assert (done.status, done.stop_reason) == (BatchStatus.COMPLETE_SMALL_NET, "small_net_cap")
    modes = [wave.pair_mode.value for wave in ledger.waves("lower5")]
    assert modes == [*["coverage"] * (len(modes) - 2), "resampling", "resampling"]
    pairs = Counter(frozenset(row[1:3]) for row in record(ledger, "lower5"))
    assert len(pairs) == 10
    assert max(pairs.values()) <= 1 + 2 + 1  # a coverage wave may re-judge a pair to repair a skew


@on_sqlite
def test_an_adaptive_batch_opens_with_balanced_rounds_and_then_judges_what_its_scores_leave_open(ledger):
    for batch_id, design in (("adaptive", "adaptive"), ("balanced", "balanced")):
        # the batch id decides chance, so that the two openings differ, but not in exposure
        submit(ledger, batch_id, max_comparisons=150, score_stability_threshold=0.0, pair_design=design)
        done = advance(ledger, batch_id)
        assert (done.status, done.judged) == (BatchStatus.COMPLETE_MAX_COMPARISONS, 150)
        check_invariants(ledger, batch_id, small_net=False, max_attempts=3)
        waves = ledger.waves(batch_id)
        assert [wave.callbacks for wave in waves] == [*range(12, 145, 12), 150]
        exposure = Counter(essay for row in record(ledger, batch_id) if row[3] <= 4 for essay in row[1:3])
        assert set(exposure.values()) == {4}
        assert max(Counter(row[1:3] for row in record(ledger, batch_id)).values()) == 1

    def mean_distance(batch_id, waves):
        scores = ledger.waves(batch_id)[-1].scores
        pairs = [row[1:3] for row in record(ledger, batch_id) if row[3] in waves]
        return sum(abs(scores[a] - scores[b]) for a, b in pairs) / len(pairs)

    opening, later = range(1, 5), range(5, 14)
    assert mean_distance("adaptive", later) < 0.75 * mean_distance("adaptive", opening)
    assert mean_distance("balanced", later) > 0.85 * mean_distance("balanced", opening)


@on_sqlite
def test_a_small_net_is_planned_by_coverage_whatever_its_design(ledger, other_ledger):
    submit_lower_five(ledger)
    submit_lower_five(other_ledger, pair_design="adaptive")
    for where in (ledger, other_ledger):
        assert advance(where, "lower5").stop_reason == "small_net_cap"
    assert record(ledger, "lower5") == record(other_ledger, "lower5")


@on_sqlite
def test_five_essays_whose_scores_stand_still_need_no_second_pass(ledger):
    submit_lower_five(ledger, score_stability_threshold=5.0)
    done = advance(ledger, "lower5")
    assert done.status is BatchStatus.COMPLETE_STABLE
    assert ledger.state("lower5").resampling_passes <= 1


@pytest.mark.parametrize("student_count", [0, 1])
def test_an_assessment_with_fewer_than_two_students_ends_without_a_call(ledger, student_count):
    submit(ledger, student_count=student_count)
    judge = Through()
    done = advance(ledger, judge=judge)
    assert (done.outcome, done.status) == (Outcome.FINAL, BatchStatus.COMPLETE_INSUFFICIENT_ESSAYS)
    assert done.stop_reason == "insufficient_essays"
    assert judge.requests == record(ledger) == ledger.waves("b") == []
    assert ledger.batch("b").completed_at is not None


def test_a_judge_whose_answers_are_never_usable_fails_the_batch(ledger):
    submit(ledger, max_comparisons=24, max_judgment_attempts=2)
    done = advance(ledger, judge=simulated(malformed_answer=1.0))
    assert (done.status, done.stop_reason) == (BatchStatus.FAILED, "low_success_rate")
    rows = ledger.comparison_records("b")
    assert len(rows) == 24
    assert {(r.status, r.winner, r.confidence, r.error_type, r.attempts) for r in rows} == {
        ("failed", None, None, "malformed_answer", 2)
    }
    assert ledger.waves("b")[-1].decision == "FINALIZE_FAILURE"


def test_a_judge_that_refuses_for_good_costs_one_comparison_and_a_better_one_finishes_after_reopening(ledger):
    # a design that is to see every one of the 55 pairs
    overrides = {"score_stability_threshold": 0.0, "pair_design": "coverage"}
    submit(ledger, student_count=6, anchors=5, max_comparisons=70, **overrides)
    judge = Through(simulated(provider_rejected=1.0))
    done = advance(ledger, judge=judge)
    assert (done.outcome, done.status, done.stop_reason) == (Outcome.FINAL, BatchStatus.FAILED, "provider_rejected")
    assert len(judge.requests) == 1
    rows = ledger.comparison_records("b")
    assert Counter(row.status for row in rows) == {"failed": 1, "withdrawn": 9}
    state = ledger.state("b")
    assert (state.submitted, state.failed, state.pending) == (1, 1, 0)

    ledger.reopen("b", "a new key")
    done = advance(ledger)
    assert (done.outcome, done.status) == (Outcome.FINAL, BatchStatus.COMPLETE_MAX_COMPARISONS)
    state = ledger.state("b")
    assert (state.submitted, state.judged, state.failed) == (70, 69, 1)
    refused = next(row for row in rows if row.status == "failed")
    again = [row for row in record(ledger) if {row[1], row[2]} == {refused.essay_a, refused.essay_b} and row[3] > 1]
    assert again, "the pair of the refused comparison was not planned again"


@on_sqlite
def test_a_refusal_in_the_middle_of_a_wave_keeps_the_answers_before_it(ledger):
    class OutOfQuota(Through):
        async def judge(self, request):
            answer = await super().judge(request)
            if len(self.requests) == 17:
                raise ProviderRejectedError("quota", http_status=429)
            return answer

    submit(ledger, max_comparisons=60, judge_concurrency=1)
    done = advance(ledger, judge=OutOfQuota())
    assert (done.status, done.stop_reason) == (BatchStatus.FAILED, "provider_rejected")
    state = ledger.state("b")
    assert (state.submitted, state.judged, state.failed, state.pending) == (17, 16, 1, 0)
    assert [wave.provider_rejected for wave in ledger.waves("b")] == [False, True]


@on_sqlite
def test_a_comparison_that_failed_because_the_judge_declined_is_not_asked_again(ledger):
    class Declining(Through):
        async def judge(self, request):
            answer = await super().judge(request)
            if request.comparison_id == "w00001-c00003":
                raise DeclinedError("declined")
            return answer

    class DeclinedError(RefusedError):
        fate = Fate.FAIL

    submit(ledger, max_comparisons=24)
    advance(ledger, judge=Declining())
    rows = {row.comparison_id: row for row in ledger.comparison_records("b")}
    declined = rows.pop("w00001-c00003")
    assert (declined.status, declined.error_type, declined.attempts) == ("failed", "refused", 1)
    assert {row.status for row in rows.values()} == {"judged"}


@on_sqlite
def test_a_batch_without_a_budget_is_reported_and_judges_nothing(ledger):
    submit(ledger)
    with ledger.engine.connect().execution_options(cj_write=True) as connection, connection.begin():
        connection.execute(t.batches.update().values(total_budget=None))
    judge = Through()
    with pytest.raises(MissingBudgetError, match="submit the batch again"):
        advance(ledger, judge=judge)
    assert judge.requests == []
    assert not ledger.batch("b").lease_live


@on_sqlite
def test_a_minimum_above_the_budget_uses_the_whole_budget(ledger):
    submit(ledger, max_comparisons=40, score_stability_threshold=100.0, min_comparisons_for_stability_check=41)
    assert advance(ledger).status is BatchStatus.COMPLETE_MAX_COMPARISONS
    assert ledger.state("b").judged == 40


@on_sqlite
def test_a_wave_as_large_as_the_budget_makes_one_wave(ledger):
    submit(ledger, max_comparisons=40, comparisons_per_stability_check_iteration=40)
    done = advance(ledger)
    assert (done.status, done.waves) == (BatchStatus.COMPLETE_MAX_COMPARISONS, 1)
    assert ledger.state("b").judged == 40


@on_sqlite
def test_a_batch_that_is_final_is_left_alone(ledger):
    submit(ledger, max_comparisons=12)
    first = advance(ledger)
    before, epoch = record(ledger), ledger.batch("b").lease_epoch
    again = advance(ledger, judge=Through())
    assert (again.outcome, again.status, again.waves, again.judged) == (Outcome.FINAL, first.status, 0, 0)
    assert record(ledger) == before
    assert ledger.batch("b").lease_epoch == epoch


@on_sqlite
def test_an_unknown_batch_is_an_error(ledger):
    with pytest.raises(UnknownBatchError, match="'nowhere'"):
        advance(ledger, "nowhere")


# --- what always holds ---------------------------------------------------------------------------------------------


def check_invariants(ledger, batch_id, *, small_net, max_attempts):
    """What must hold after every wave, counted here from the rows themselves."""
    comparisons = ledger.comparison_records(batch_id)
    counted = Counter(row.status for row in comparisons)
    state = ledger.state(batch_id)
    assert (state.judged, state.failed, state.pending) == (counted["judged"], counted["failed"], counted["planned"])
    assert state.submitted == counted.total() - counted["withdrawn"] <= state.total_budget
    assert state.pending == 0

    skew = Counter()
    for row in comparisons:
        skew[row.essay_a] += 1
        skew[row.essay_b] -= 1
        assert max(map(abs, skew.values())) <= (2 if small_net else 1), row.comparison_id

    calls = attempts_by_comparison(ledger, batch_id)
    assert set(calls) == {row.comparison_id for row in comparisons}
    for row in comparisons:
        counting = [call for call in calls[row.comparison_id] if call["outcome"] != "lost"]
        assert [call["number"] for call in counting] == list(range(1, len(counting) + 1))
        assert len(counting) <= max_attempts
        assert [call["outcome"] for call in counting[:-1]] == ["error"] * (len(counting) - 1)
        assert counting[-1]["outcome"] == ("judged" if row.status == "judged" else "error")
        assert (row.winner is None) == (row.confidence is None) == (row.status == "failed")

    outcomes = 0
    for wave in ledger.waves(batch_id):
        outcomes += sum(row.wave == wave.wave for row in comparisons)
        assert wave.ended_at is not None
        assert wave.callbacks == outcomes
        assert sum(wave.scores.values()) == pytest.approx(0, abs=1e-9)


batches = st.fixed_dictionaries(
    {
        "student_count": st.integers(2, 9),
        "anchors": st.integers(0, 5),
        "max_comparisons": st.integers(1, 60),
        "comparisons_per_stability_check_iteration": st.integers(1, 20),
        "score_stability_threshold": st.sampled_from([0.0, 0.2, 0.5]),
        "max_judgment_attempts": st.integers(1, 3),
        "judge_concurrency": st.sampled_from([1, 3, 16]),
        "pair_generation_seed": st.integers(0, 99),
        "pair_design": st.sampled_from([design for design in PairDesign if not design.needs_bank]),
    }
)
quick = hypothesis_settings(
    max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
errors = st.sampled_from([{}, {"malformed_answer": 0.3}, {"rate_limited": 0.3, "refused": 0.3}])


@on_sqlite
@quick
@given(batch=batches, error_rates=errors)
def test_after_every_wave_of_any_batch_counts_budget_positions_and_attempts_are_as_promised(ledger, batch, error_rates):
    batch_id = f"b{len(ledger.batches())}"
    submit(ledger, batch_id, **batch)
    small_net = batch["student_count"] + batch["anchors"] < 10
    for run in range(1, 61):
        done = advance(ledger, batch_id, judge=simulated(**error_rates), waves_per_run=1)
        check_invariants(ledger, batch_id, small_net=small_net, max_attempts=batch["max_judgment_attempts"])
        if done.outcome is Outcome.FINAL:
            break
        assert (done.outcome, done.waves) == (Outcome.PAUSED, 1)
        assert len(ledger.waves(batch_id)) == run
    assert ledger.batch(batch_id).status.is_final


@pytest.mark.slow
@on_sqlite
@quick
@given(batch=batches, error_rates=errors, cuts=st.lists(st.integers(1, 9), max_size=3))
def test_however_a_batch_is_cut_into_runs_its_record_is_the_same(ledger, other_ledger, batch, error_rates, cuts):
    class StopsAt(Through):
        """Asks for a stop with its `last` call and then never answers."""

        def __init__(self, last, stop):
            super().__init__(simulated(**error_rates))
            self.last, self.stop = last, stop

        async def judge(self, request):
            if len(self.requests) >= self.last:
                self.stop.set()
                await Gate(0).judge(request)
            return await super().judge(request)

    batch_id = f"b{len(ledger.batches())}"
    for where in (ledger, other_ledger):
        submit(where, batch_id, **batch)
    advance(other_ledger, batch_id, judge=simulated(**error_rates))
    for last in cuts:
        stop = threading.Event()
        advance(ledger, batch_id, judge=StopsAt(last, stop), stop=stop, interrupt_grace_seconds=0)
    advance(ledger, batch_id, judge=simulated(**error_rates))
    assert record(ledger, batch_id) == record(other_ledger, batch_id)
    assert history(ledger, batch_id) == history(other_ledger, batch_id)
    assert ledger.batch(batch_id).status is other_ledger.batch(batch_id).status
    small_net = batch["student_count"] + batch["anchors"] < 10
    check_invariants(ledger, batch_id, small_net=small_net, max_attempts=batch["max_judgment_attempts"])


# --- the stop rule `precision` -------------------------------------------------------------------------------------


def test_by_the_rule_precision_a_batch_ends_when_its_grades_are_known_and_remembers_how_well(ledger):
    submit(ledger, max_comparisons=900, stop_rule="precision", score_stability_threshold=0.0)
    first = advance(ledger, waves_per_run=3)
    assert first.outcome is Outcome.PAUSED
    remembered = ledger.batch("b").processing_metadata["precision"]
    assert [measured["wave"] for measured in remembered] == [1, 2, 3]
    done = advance(ledger)
    batch = ledger.batch("b")
    assert (done.status, batch.stop_reason in ("precise", "precision_flat")) == (BatchStatus.COMPLETE_STABLE, True)
    state = ledger.state("b")
    assert state.submitted < 900
    last = batch.processing_metadata["precision"]
    assert [measured["wave"] for measured in last] == [wave.wave for wave in ledger.waves("b")][-5:]
    judged = [row for row in ledger.comparison_records("b") if row.winner is not None]
    counts = Counter(essay for row in judged for essay in (row.essay_a, row.essay_b))
    assert last[-1]["least_judgments"] == min(counts.values()) >= 6


def test_without_grades_the_rule_precision_reads_the_reliability_that_gibbs_draws_show(ledger):
    submit_without_grades(ledger, 16, max_comparisons=64, stop_rule="precision", score_stability_threshold=0.0)
    advance(ledger)
    measured = ledger.batch("b").processing_metadata["precision"][-1]
    assert measured["mean_rps"] is None
    table = judgment_table_of(ledger.comparisons("b"), sorted(essay.essay_id for essay in ledger.essays("b")))
    drawn = expected_r_squared(draw_posterior(table, seed=1, n_draws=2000, order_effect=True))
    assert measured["reliability_low"] == pytest.approx(drawn.low, abs=0.06)


# --- attempts ------------------------------------------------------------------------------------------------------


class FailsTwice(Through):
    """Answers the third call of each comparison."""

    async def judge(self, request):
        answer = await super().judge(request)
        if request.attempt < 3:
            raise MalformedAnswerError("no JSON", http_status=200, cost_usd=0.25)
        return answer


def test_a_retry_asks_the_same_question_in_the_same_order_under_the_next_number(ledger):
    submit(ledger, max_comparisons=24, max_judgment_attempts=3)
    judge = FailsTwice()
    assert advance(ledger, judge=judge).status is BatchStatus.COMPLETE_MAX_COMPARISONS
    asked = {}
    for request in judge.requests:
        asked.setdefault(request.comparison_id, []).append(request)
    calls = attempts_by_comparison(ledger)
    assert len(asked) == 24
    for comparison_id, requests in asked.items():
        assert [request.attempt for request in requests] == [1, 2, 3]
        assert len({request.prompt.sha256 for request in requests}) == 1
        assert len({request.prompt.fence_marker for request in requests}) == 3
        found = calls[comparison_id]
        assert [(c["number"], c["outcome"], c["cost_usd"]) for c in found] == [
            (1, "error", 0.25),
            (2, "error", 0.25),
            (3, "judged", 0.0),
        ]
        assert [c["prompt_sha256"] for c in found] == [request.prompt.sha256 for request in requests]
        assert [c["fence_marker"] for c in found] == [request.prompt.fence_marker for request in requests]


@on_sqlite
def test_a_judge_is_told_how_often_it_has_met_the_pair_in_this_order(ledger):
    submit_lower_five(ledger, max_comparisons=100, max_resampling_passes_for_small_net=9)
    judge = Through()
    advance(ledger, "lower5", judge=judge)
    earlier = Counter()
    told = {request.comparison_id: request.repeat for request in judge.requests}
    for row in ledger.comparison_records("lower5"):
        assert told[row.comparison_id] == earlier[row.essay_a, row.essay_b]
        earlier[row.essay_a, row.essay_b] += 1
    assert max(told.values()) >= 3


@on_sqlite
def test_a_pair_whose_comparison_failed_is_planned_again(ledger):
    class FailsInWaveOne(Through):
        async def judge(self, request):
            answer = await super().judge(request)
            if request.comparison_id in ("w00001-c00002", "w00001-c00007"):
                raise MalformedAnswerError("no JSON")
            return answer

    submit(ledger, student_count=6, anchors=6, max_comparisons=80, score_stability_threshold=0.0)
    advance(ledger, judge=FailsInWaveOne())
    rows = ledger.comparison_records("b")
    failed = [frozenset((row.essay_a, row.essay_b)) for row in rows if row.status == "failed"]
    assert len(failed) == 2
    for pair in failed:
        [again, *_] = [row for row in rows if {row.essay_a, row.essay_b} == pair and row.status == "judged"]
        assert again.pair_mode == "coverage"


@on_sqlite
def test_lost_calls_are_shown_at_their_upper_bound_and_do_not_count_as_attempts(ledger):
    """Calls 1 fail; calls 2 are lost with their process, thrice; the next call is number 2 again, and the last."""

    class FailsFirst(Gate):
        async def judge(self, request):
            if request.attempt == 1:
                await Through.judge(self, request)
                raise MalformedAnswerError("no JSON")
            return await super().judge(request)

    submit(ledger, student_count=2, anchors=0, max_comparisons=1, max_judgment_attempts=2)
    for _ in range(3):
        stop, judge = threading.Event(), FailsFirst(first=0)
        with advancing(ledger, judge=judge, stop=stop, interrupt_grace_seconds=0) as run:
            wait_for(lambda judge=judge: judge.waiting == 1)
            stop.set()
            assert run.result().outcome is Outcome.INTERRUPTED
    assert ledger.cost_usd("b") == 3 * 0.5
    advance(ledger)
    assert [(call["number"], call["outcome"]) for call in attempts(ledger)] == [
        (1, "error"),
        (2, "lost"),
        (2, "lost"),
        (2, "lost"),
        (2, "judged"),
    ]
    assert [call["cost_usd"] for call in attempts(ledger)] == [0.0, 0.5, 0.5, 0.5, 0.0]
    [row] = ledger.comparison_records("b")
    assert (row.status, row.attempts, row.lost_attempts, row.failed_attempts) == ("judged", 5, 3, 1)


# --- the same record, however it is run ----------------------------------------------------------------------------

DIFFICULT = {"malformed_answer": 0.1, "timeout": 0.1}


def test_database_and_concurrency_change_nothing(ledger, other_ledger):
    batch = {"max_comparisons": 90, "score_stability_threshold": 0.2}
    submit(ledger, judge_concurrency=16, **batch)
    submit(other_ledger, judge_concurrency=1, **batch)
    advance(ledger, judge=simulated(mean_seconds=0.002, **DIFFICULT))
    advance(other_ledger, judge=simulated(**DIFFICULT))
    assert record(ledger) == record(other_ledger)
    assert history(ledger) == history(other_ledger)
    assert ledger.state("b") == other_ledger.state("b")
    assert ledger.state("b").failed > 0 or ledger.attempt_counts("b")["error"] > 0


@on_sqlite
def test_one_wave_a_run_gives_what_one_long_run_gives(ledger, other_ledger):
    submit(ledger, max_comparisons=80)
    submit(other_ledger, max_comparisons=80)
    whole = advance(other_ledger)
    runs = [advance(ledger, waves_per_run=1)]
    while runs[-1].outcome is not Outcome.FINAL:
        runs.append(advance(ledger, waves_per_run=1))
    assert [run.waves for run in runs] == [1] * whole.waves
    assert {run.outcome for run in runs[:-1]} == {Outcome.PAUSED}
    assert (record(ledger), history(ledger)) == (record(other_ledger), history(other_ledger))


@on_sqlite
def test_a_run_starts_no_wave_after_its_seconds(ledger):
    submit(ledger, max_comparisons=500, judge_concurrency=12)
    started = time.monotonic()
    done = advance(ledger, judge=simulated(mean_seconds=0.03), seconds_per_run=0.2)
    assert done.outcome is Outcome.PAUSED
    assert 0.2 <= time.monotonic() - started < 5
    assert 1 <= done.waves == len(ledger.waves("b"))
    assert ledger.state("b").pending == 0
    assert not ledger.batch("b").status.is_final


def test_a_hold_ends_the_run_with_every_answer_in_flight_kept(ledger, other_ledger):
    submit(ledger, judge_concurrency=5)
    submit(other_ledger)
    advance(other_ledger)
    judge = Gate(first=15)
    with advancing(ledger, judge=judge) as run:
        wait_for(lambda: judge.waiting == 5)
        ledger.hold("b", "the school called")
        sent = len(attempts(ledger))
        judge.opened.set()
        assert run.result().outcome is Outcome.HELD
    assert ledger.attempt_counts("b") == {"judged": 20} and sent == 20
    assert advance(ledger).outcome is Outcome.HELD
    assert len(attempts(ledger)) == 20
    ledger.resume("b")
    assert advance(ledger).outcome is Outcome.FINAL
    assert (record(ledger), history(ledger)) == (record(other_ledger), history(other_ledger))


def test_a_stop_sends_nothing_more_and_collects_what_is_in_flight(ledger, other_ledger):
    submit(ledger, judge_concurrency=5)
    submit(other_ledger)
    advance(other_ledger)
    judge, stop = Gate(first=15), threading.Event()
    with advancing(ledger, judge=judge, stop=stop) as run:
        wait_for(lambda: judge.waiting == 5)
        stop.set()
        time.sleep(0.2)
        assert not run.done()
        judge.opened.set()
        assert run.result().outcome is Outcome.INTERRUPTED
    assert ledger.attempt_counts("b") == {"judged": 20}
    assert not ledger.batch("b").lease_live
    assert advance(ledger).outcome is Outcome.FINAL
    assert (record(ledger), history(ledger)) == (record(other_ledger), history(other_ledger))
    assert ledger.attempt_counts("b") == {"judged": 60}


def test_what_outlives_the_grace_period_is_lost_and_bought_again_with_the_same_result(ledger, other_ledger):
    submit(ledger, judge_concurrency=5)
    submit(other_ledger)
    advance(other_ledger)
    judge, stop = Gate(first=15), threading.Event()
    with advancing(ledger, judge=judge, stop=stop, interrupt_grace_seconds=0) as run:
        wait_for(lambda: judge.waiting == 5)
        stop.set()
        assert run.result().outcome is Outcome.INTERRUPTED
    assert ledger.attempt_counts("b") == {"judged": 15, "lost": 5}
    assert ledger.state("b").submitted == 24
    assert advance(ledger).outcome is Outcome.FINAL
    assert (record(ledger), history(ledger)) == (record(other_ledger), history(other_ledger))
    assert ledger.attempt_counts("b") == {"judged": 60, "lost": 5}


@on_sqlite
def test_an_interrupt_of_the_caller_goes_on_its_way_after_everything_in_flight_is_kept(ledger):
    submit(ledger, judge_concurrency=5)

    def interrupt(event):
        if isinstance(event, Progress) and event.judged >= 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        advance(ledger, judge=simulated(mean_seconds=0.02), on_event=interrupt)
    assert set(ledger.attempt_counts("b")) == {"judged"}
    assert 15 <= ledger.state("b").judged < 60
    assert not ledger.batch("b").lease_live


@on_sqlite
def test_a_defect_of_the_judge_ends_the_run_and_the_others_answers_are_kept(ledger, other_ledger):
    class Defective(Gate):
        async def judge(self, request):
            if request.comparison_id == "w00002-c00004":
                self.opened.set()
                raise ZeroDivisionError("a defect")
            return await super().judge(request)

    submit(ledger, judge_concurrency=5)
    submit(other_ledger)
    advance(other_ledger)
    stop = threading.Event()
    with pytest.raises(ZeroDivisionError, match="a defect"):
        advance(ledger, judge=Defective(first=13), stop=stop)
    calls = ledger.attempt_counts("b")
    assert calls["lost"] == 1
    assert calls["judged"] >= 12 + 2  # the two in flight beside the defect, before it
    assert calls.keys() == {"judged", "lost"}
    assert not stop.is_set(), "a stop that nobody asked for"
    assert not ledger.batch("b").lease_live
    advance(ledger)
    assert (record(ledger), history(ledger)) == (record(other_ledger), history(other_ledger))


@on_sqlite
def test_whoever_opened_a_judge_closes_it(ledger):
    submit(ledger, max_comparisons=24)
    judge = Through()
    advance(ledger, judge=judge, waves_per_run=1)
    assert not judge.closed


# --- one writer ----------------------------------------------------------------------------------------------------


def test_a_second_advance_is_refused_and_told_who_is_at_work(ledger):
    submit(ledger)
    judge = Gate(first=5)
    with advancing(ledger, judge=judge) as run:
        wait_for(lambda: judge.waiting > 0)
        with pytest.raises(BatchBusyError, match=re.escape(process_owner())):
            advance(ledger)
        judge.opened.set()
        assert run.result().outcome is Outcome.FINAL
    assert ledger.attempt_counts("b") == {"judged": 60}


def test_a_call_may_take_longer_than_the_lease(ledger):
    submit(ledger)
    judge = Gate(first=5)
    with advancing(ledger, judge=judge, lease_seconds=0.5) as run:
        wait_for(lambda: judge.waiting > 0)
        time.sleep(1.0)
        with pytest.raises(BatchBusyError):
            advance(ledger)
        judge.opened.set()
        assert run.result().outcome is Outcome.FINAL
    assert ledger.attempt_counts("b") == {"judged": 60}


def test_who_waits_for_another_to_finish_finds_the_batch_final(ledger):
    submit(ledger)
    first, second = Gate(first=5), Through()
    with advancing(ledger, judge=first) as run:
        wait_for(lambda: first.waiting > 0)
        with advancing(ledger, judge=second, wait=20.0) as waiting:
            time.sleep(0.1)
            assert not waiting.done()
            first.opened.set()
            assert (run.result().outcome, run.result().judged) == (Outcome.FINAL, 60)
            assert (waiting.result().outcome, waiting.result().judged) == (Outcome.FINAL, 0)
    assert second.requests == []
    assert ledger.attempt_counts("b") == {"judged": 60}


def test_a_holder_that_was_taken_over_ends_and_its_late_answers_change_nothing(ledger, other_ledger):
    submit(ledger, judge_concurrency=5)
    submit(other_ledger)
    advance(other_ledger)
    judge = Gate(first=15)
    with advancing(ledger, judge=judge) as run:
        wait_for(lambda: judge.waiting == 5)
        expire_lease(ledger)
        with Lease.acquire(ledger, "b", owner="another", seconds=30):
            judge.opened.set()
            with pytest.raises(LeaseLostError, match="no longer holds the lease"):
                run.result()
            assert ledger.attempt_counts("b") == {"judged": 15, "lost": 5}
    orphans = ledger.orphan_results("b")
    assert len(orphans) == 5
    assert {(o["reason"], o["source"], o["cost_usd"]) for o in orphans} == {("late", "lease_lost", 0.0)}
    assert advance(ledger).outcome is Outcome.FINAL
    assert (record(ledger), history(ledger)) == (record(other_ledger), history(other_ledger))


def expire_lease(ledger):
    with ledger.engine.connect().execution_options(cj_write=True) as connection, connection.begin():
        connection.execute(sa.update(t.batches).values(lease_expires_at=0.0))


def test_an_owner_says_which_run_it_belongs_to():
    assert owner_run_id(process_owner("1234-abcd")) == "1234-abcd"
    assert owner_run_id(process_owner()) is None
    assert owner_run_id(None) is None


# --- gauges are not steering wheels --------------------------------------------------------------------------------

ALARMED = {
    "bt_mean_se_warn_threshold": 1e-9,
    "bt_max_se_warn_threshold": 1e-9,
    "bt_min_mean_comparisons_per_item": 1e9,
    "bt_max_isolated_items_tolerated": 0,
    "bt_standard_error_max": 0.01,
}
CALM = {
    "bt_mean_se_warn_threshold": 1e9,
    "bt_max_se_warn_threshold": 1e9,
    "bt_min_mean_comparisons_per_item": 0.0,
    "bt_max_isolated_items_tolerated": 10**6,
    "bt_standard_error_max": 100.0,
}


@pytest.mark.slow
@on_sqlite
def test_diagnostics_change_no_decision(ledger, other_ledger):
    # a call in ten fails for good, so that the first wave leaves essays isolated
    batch = {"max_comparisons": 300, "score_stability_threshold": 0.3, "max_judgment_attempts": 1}
    flags = {}
    for name, where, thresholds in (("alarmed", ledger, ALARMED), ("calm", other_ledger, CALM)):
        reports = []
        submit(where, **batch, **thresholds)
        advance(where, judge=simulated(malformed_answer=0.1), on_event=reports.append)
        flags[name] = [report.flags for report in reports if isinstance(report, WaveReport)]
    assert set(flags["alarmed"][0].values()) == {True}
    assert all(wave["bt_se_inflated"] and wave["comparison_coverage_sparse"] for wave in flags["alarmed"])
    assert not any(any(wave.values()) for wave in flags["calm"])
    assert record(ledger) == record(other_ledger)
    assert history(ledger) == history(other_ledger)
    assert ledger.batch("b").status is other_ledger.batch("b").status is BatchStatus.COMPLETE_STABLE


# --- the judge is blind, the log is mute ---------------------------------------------------------------------------


@on_sqlite
def test_the_judge_reads_two_texts_and_nothing_that_tells_whose_they_are(ledger):
    submit(ledger, max_comparisons=96, score_stability_threshold=0.0)
    judge = Through(simulated(malformed_answer=0.2))
    advance(ledger, judge=judge)
    texts, essays = ledger.texts("b"), {essay.essay_id: essay for essay in ledger.essays("b")}
    comparisons = {c.comparison_id: c for c in ledger.comparisons("b")}
    instructions = JudgeInstructions(
        language="en",
        instructions="Judge the letter as a whole.",
        student_prompt="Write a letter to a friend.",
        rubric="Content before language.",
    )
    mixed = 0
    assert len(judge.requests) > 96
    for request in judge.requests:
        comparison = comparisons[request.comparison_id]
        text_a, text_b = texts[comparison.essay_a], texts[comparison.essay_b]
        mixed += essays[comparison.essay_a].is_anchor != essays[comparison.essay_b].is_anchor
        prompt = request.prompt
        assert prompt == build_prompt(instructions, text_a, text_b, fence_marker=prompt.fence_marker)
        read = "\n".join([prompt.system, prompt.stable, prompt.essays])
        assert read.index(text_a) < read.index(text_b)
        around = read.replace(prompt.fence_marker, "").replace(text_a, "").replace(text_b, "").lower()
        assert "anchor" not in around
        assert "grade" not in around
        assert not re.search(r"(^|\W)([c-f][+-]|k\d\d|pupil|w\d{5}|c\d{5})", around)
        assert not any(essay_id.lower() in around for essay_id in essays)
    assert mixed > 20
    hashes = {}
    for request in judge.requests:
        hashes.setdefault(request.comparison_id, set()).add(request.prompt.sha256)
    assert {len(found) for found in hashes.values()} == {1}
    assert len({request.prompt.stable for request in judge.requests}) == 1


class Quoting(Through):
    """Justifies by quoting the essays, and in the end runs out of quota."""

    async def judge(self, request):
        await self.inner.judge(request)
        self.requests.append(request)
        if len(self.requests) == 100:
            raise ProviderRejectedError("quota", http_status=429)
        return JudgeAnswer(Winner.A, 3, f"Quoting {request.prompt.essays}", Usage(input=1), 0.0, None, 0.0)


@on_sqlite
def test_neither_essays_nor_justifications_reach_logs_events_or_reprs(ledger, caplog, capfd):
    submit(ledger, max_comparisons=200, score_stability_threshold=0.0)
    judge, told = Quoting(simulated(malformed_answer=0.1)), []
    with capture_logs() as logs, caplog.at_level(logging.DEBUG):
        done = advance(ledger, judge=judge, on_event=told.append)
    assert done.stop_reason == "provider_rejected"
    rows = ledger.comparison_records("b")
    assert all(tell_secrets(row.justification) for row in rows if row.status == "judged")
    assert [line["event"] for line in logs[-3:]] == [
        "judge refused for good; wave stopped",
        "wave complete; evaluated stability",
        "advance ended",
    ]
    shown = [logs, caplog.text, capfd.readouterr(), told, done, judge.requests, rows, ledger.batch("b")]
    shown += [ledger.waves("b"), ledger.events("b"), ledger.batch("b").processing_metadata]
    assert tell_secrets(repr(shown)) == []
    assert "quokka" in SECRET_WORDS and "quokka" in student_text(0) and "quokka" in anchor_text(0)


@on_sqlite
def test_each_wave_is_one_log_line_and_one_event_that_say_what_the_ledger_says(ledger):
    submit(ledger, max_comparisons=30)
    told, main = [], threading.get_ident()
    threads = set()

    def listen(event):
        told.append(event)
        threads.add(threading.get_ident())

    with capture_logs() as logs:
        advance(ledger, on_event=listen)
    lines = [line for line in logs if line["event"] == "wave complete; evaluated stability"]
    reports = [event for event in told if isinstance(event, WaveReport)]
    waves, batch = ledger.waves("b"), ledger.batch("b")
    assert len(lines) == len(reports) == len(waves) == 3
    for line, report, wave in zip(lines, reports, waves, strict=True):
        assert line["correlation_id"] == batch.correlation_id
        assert line["batch_id"] == "b"
        assert line["submitted"] == line["judged"] == report.judged == wave.callbacks
        assert (line["decision"], line["reason"]) == (report.decision, report.reason) == (wave.decision, wave.reason)
        assert report.max_score_change == wave.max_score_change
        assert {name: line[name] for name in report.flags} == report.flags
        assert set(report.flags) == {"bt_se_inflated", "comparison_coverage_sparse", "has_isolated_items"}
    assert lines[0]["max_score_change"] is None
    assert lines[1]["max_score_change"] == pytest.approx(waves[1].max_score_change, abs=1e-6)
    progress = [event for event in told if isinstance(event, Progress)]
    assert [event.judged for event in progress] == list(range(1, 31))
    assert {event.total_budget for event in progress} == {30}
    assert all(earlier.wave <= later.wave for earlier, later in pairwise(progress))
    assert threads == {main}
    assert settings().waves_per_run is None
