"""Batches judged by the real providers' judges, against a server on loopback that speaks their protocols."""

import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import anthropic
import pytest

from cj_pipeline.core.models import BatchStatus
from cj_pipeline.judges.errors import Fate, JudgeError
from cj_pipeline.ledger import Ledger
from cj_pipeline.ledger.records import JobState
from cj_pipeline.workflow.judging import sent_prompt
from cj_pipeline.workflow.loop import Outcome
from cj_pipeline_tests.builders import update_batch
from cj_pipeline_tests.providers.essays import digest, strength
from cj_pipeline_tests.workflow import scenes

JUDGES = ("anthropic/claude-haiku-4-5", "openai/gpt-5.1", "compatible/some-model")
CLAUDE = JUDGES[0]
CALLS = {"llm_batching_mode": "per_request"}
BUNDLES = {"llm_batching_mode": "serial_bundle"}
JOB = {"llm_batching_mode": "provider_batch_api", "batch_api_mode": "opportunistic"}
NEVER_STABLE = {"min_comparisons_for_stability_check": 100_000}
PERMANENT = {
    "authentication": "authentication",
    "permission": "permission",
    "model_not_found": "model_not_found",
    "quota_exhausted": "quota_exhausted",
    "billing": "quota_exhausted",
    "spend_limit": "quota_exhausted",
}
TRANSIENT = (
    *("rate_limited", "rate_limited_retry_after", "overloaded", "server_error", "bad_gateway", "unavailable"),
    *("drop", "drop_mid_body", "not_json_body", "hang"),
    *("invalid_json", "wrong_winner", "missing_field", "extra_field", "confidence_out_of_range", "confidence_string"),
    *("long_justification", "truncated", "refusal", "content_filter", "empty_answer", "context_too_long"),
)


@pytest.fixture
def ledger(tmp_path):
    opened = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    yield opened
    opened.close()


def submit(ledger, batch_id="b", *, judge=CLAUDE, student_count=5, anchors=5, **overrides):
    fields = {"max_comparisons": 45, **NEVER_STABLE, **overrides}
    return scenes.submit(ledger, batch_id, student_count=student_count, anchors=anchors, judge=judge, **fields)


def to_the_end(ledger, batch_id="b", **settings):
    """Advance as the sensors would: again and again, until it is final."""
    for _ in range(50):
        done = scenes.advance(ledger, batch_id, **{"batch_api_poll_seconds": 1.0, **settings})
        if done.outcome is not Outcome.WAITING:
            return done
    raise AssertionError("it never ended")


def pair_winners(ledger, batch_id="b"):
    """Unordered pair of essays to the essay that won."""
    found = {}
    for record in ledger.comparison_records(batch_id):
        if record.winner is not None:
            winner = record.essay_a if record.winner == "a" else record.essay_b
            found[frozenset((record.essay_a, record.essay_b))] = winner
    return found


# --- the same answers in every mode ----------------------------------------------------------------------------------


@pytest.mark.parametrize("judge", JUDGES)
def test_each_mode_gets_the_same_scores_from_the_same_answers(tmp_path, provider_server, judge):
    modes = {"calls": CALLS, "bundles": BUNDLES} | ({} if judge.startswith("compatible") else {"job": JOB})
    scores, winners = {}, {}
    for name, mode in modes.items():
        # a ledger each, so that the batch has the same name and plan; one wave, as a job has
        opened = Ledger.open(f"sqlite:///{tmp_path / name}.sqlite")
        submit(opened, judge=judge, comparisons_per_stability_check_iteration=45, **mode)
        assert to_the_end(opened).status is BatchStatus.COMPLETE_MAX_COMPARISONS
        (wave,) = opened.waves("b")
        scores[name] = wave.scores
        winners[name] = {(r.essay_a, r.essay_b): r.winner for r in opened.comparison_records("b")}
        opened.close()
    for name in modes:
        assert len(winners[name]) == 45
        assert winners[name] == winners["calls"]
        assert scores[name] == pytest.approx(scores["calls"], abs=1e-9)
    assert provider_server.answered == 45 * len(modes)


def test_a_bundle_is_a_unit_of_queueing_and_its_first_call_goes_alone_to_warm_the_cache(ledger, provider_server):
    provider_server.latency = 0.05
    submit(
        ledger,
        student_count=20,
        anchors=10,
        max_comparisons=30,
        preferred_bundle_size=6,
        comparisons_per_stability_check_iteration=30,
        **BUNDLES,
    )
    to_the_end(ledger)
    bundles = Counter(attempt.bundle_id for attempt in ledger.attempts("b"))
    assert sorted(bundles.values()) == [6] * 5
    in_flight = [call.in_flight for call in provider_server.model_calls]
    assert in_flight[0] == 1
    assert max(in_flight[:2]) <= 16
    assert provider_server.max_in_flight > 4


def test_concurrency_is_bounded(ledger, provider_server):
    provider_server.latency = 0.05
    submit(ledger, judge_concurrency=3, **CALLS)
    to_the_end(ledger)
    assert provider_server.max_in_flight == 3


def test_a_hint_that_is_none_is_ignored_with_a_warning(ledger, provider_server, capsys):
    submit(ledger, preferred_bundle_size=65, **BUNDLES)
    to_the_end(ledger)
    sizes = Counter(attempt.bundle_id for attempt in ledger.attempts("b"))
    assert set(sizes.values()) <= {10, 5}
    assert "preferred_bundle_size ignored" in "".join(capsys.readouterr())


# --- a storm ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("judge", "mode"),
    [
        pytest.param(CLAUDE, BUNDLES, id="claude-bundles", marks=pytest.mark.slow),
        pytest.param("openai/gpt-5.1", JOB, id="gpt-job"),
        pytest.param("openai/gpt-5.1", BUNDLES, id="gpt-bundles", marks=pytest.mark.slow),
        pytest.param(CLAUDE, JOB, id="claude-job", marks=pytest.mark.slow),
    ],
)
def test_in_a_storm_every_comparison_ends_judged_or_honestly_failed(ledger, provider_server, judge, mode):
    provider_server.retry_after_seconds = 0.05
    provider_server.faults.random(rate=0.3, kinds=TRANSIENT)
    submit(
        ledger,
        judge=judge,
        breaker_failures=1000,
        judgment_timeout_seconds=0.5,
        judge_concurrency=32,
        min_success_rate_threshold=0.5,
        **mode,
    )
    to_the_end(ledger)
    state = ledger.state("b")
    assert (state.pending, state.judged + state.failed) == (0, 45)
    texts = ledger.texts("b")
    for record in ledger.comparison_records("b"):
        attempts = ledger.attempts("b", record.comparison_id)
        numbers = [attempt.number for attempt in attempts]
        assert numbers == list(range(1, len(attempts) + 1))
        assert len(attempts) <= 3
        if record.status == "judged":
            assert [attempt.outcome for attempt in attempts] == ["error"] * (len(attempts) - 1) + ["judged"]
            assert provider_server.billed[digest(texts[record.essay_a]), digest(texts[record.essay_b])] >= 1
        else:
            assert record.winner is None
            assert attempts[-1].error_type == record.error_type
            assert len(attempts) == 3 or record.error_type == "context_too_long"
        known = [attempt.cost_usd for attempt in attempts]
        assert record.cost_usd == pytest.approx(sum(known))
    assert ledger.cost_usd("b") == pytest.approx(sum(a.cost_usd for a in ledger.attempts("b")))
    # no wrong winner: what was recorded is what the server answers to this pair
    for pair, winner in pair_winners(ledger).items():
        assert winner == max(pair, key=lambda essay: strength(texts[essay]))


# --- what ends a wave ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("judge", ["anthropic/claude-haiku-4-5", "openai/gpt-5.1"])
@pytest.mark.parametrize(("fault", "error_type"), PERMANENT.items())
def test_a_permanent_refusal_stops_the_wave_at_once_and_spends_no_more(
    ledger, provider_server, judge, fault, error_type
):
    provider_server.faults.random(rate=1.0, kinds=[fault])
    submit(ledger, judge=judge)
    done = to_the_end(ledger)
    assert (done.status, done.stop_reason) == (BatchStatus.FAILED, "provider_rejected")
    (attempt,) = ledger.attempts("b")
    assert (attempt.error_type, attempt.cost_usd) == (error_type, 0.0)
    assert len(provider_server.model_calls) == 1
    state = ledger.state("b")
    assert (state.submitted, state.failed) == (1, 1)


@pytest.mark.parametrize("mode", [BUNDLES, JOB], ids=["bundles", "job"])
def test_after_a_wrong_key_the_right_one_and_a_reopening_finish_the_batch(ledger, provider_server, mode, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-wrong-and-secret")
    submit(ledger, **mode)
    done = to_the_end(ledger)
    assert (done.status, done.stop_reason) == (BatchStatus.FAILED, "provider_rejected")
    assert ledger.state("b").judged == 0
    monkeypatch.setenv("ANTHROPIC_API_KEY", provider_server.api_key)
    ledger.reopen("b", "the key is right now")
    done = to_the_end(ledger)
    assert done.status is BatchStatus.COMPLETE_MAX_COMPARISONS
    state = ledger.state("b")
    assert state.submitted == 45
    assert state.judged >= 44  # the one that met the wrong key may have failed for good


def test_money_is_a_wall(ledger, provider_server):
    submit(ledger, "free", **BUNDLES)
    to_the_end(ledger, "free")
    cost = ledger.cost_usd("free")
    provider_server.reset()
    submit(ledger, "b", max_cost_usd=cost, **BUNDLES)
    done = to_the_end(ledger, "b")
    assert (done.status, done.stop_reason) == (BatchStatus.COMPLETE_MAX_COMPARISONS, "cost_spent")
    assert 0 < ledger.cost_usd("b") <= cost
    state = ledger.state("b")
    assert (state.pending, state.failed) == (0, 0)
    assert state.judged == provider_server.answered < 45


def test_where_money_is_short_fewer_calls_are_made_at_once_and_it_is_used_to_the_last_bound(ledger, provider_server):
    provider_server.latency = 0.02
    submit(ledger, "free", **BUNDLES)
    to_the_end(ledger, "free")
    bound = max(attempt.upper_bound_usd for attempt in ledger.attempts("free"))
    limit = 2.5 * bound
    assert limit < 45 * bound / 10
    submit(ledger, "b", max_cost_usd=limit, judge_concurrency=16, **BUNDLES)
    done = to_the_end(ledger, "b")
    assert done.stop_reason in ("cost_spent", "budget_spent")
    spent = ledger.cost_usd("b")
    assert spent <= limit
    # it stopped because not even one more call was sure to fit
    assert done.stop_reason == "budget_spent" or spent + bound > limit


def test_a_job_takes_what_the_money_left_can_pay_for_and_goes_on_with_what_is_saved(ledger, provider_server):
    submit(ledger, "free", **JOB)
    to_the_end(ledger, "free")
    limit = 2 * ledger.cost_usd("free")
    submit(ledger, "b", max_cost_usd=limit, **JOB)
    done = to_the_end(ledger, "b")
    assert done.stop_reason in ("budget_spent", "cost_spent")
    assert len(ledger.provider_jobs("b")) > 1
    assert ledger.cost_usd("b") <= limit


# --- a provider that keeps failing -----------------------------------------------------------------------------------


def test_a_provider_that_keeps_failing_is_left_alone_for_a_while_and_the_batch_goes_on_after_it(
    ledger, provider_server
):
    submit(ledger, breaker_failures=4, breaker_pause_seconds=30.0, **BUNDLES)
    provider_server.faults.script([None, None] + ["overloaded"] * 40)
    done = scenes.advance(ledger)
    assert done.outcome is Outcome.WAITING
    record = ledger.batch("b")
    assert 20 < (record.not_before - datetime.now(UTC)).total_seconds() <= 30
    assert "overloaded" in record.processing_metadata["waiting_for"]
    assert ledger.claim_launch("b") is None
    calls = len(provider_server.model_calls)
    assert calls < 30
    # still failing: one call finds out, and the next wait is twice as long
    done = scenes.advance(ledger)
    assert done.outcome is Outcome.WAITING
    assert len(provider_server.model_calls) == calls + 1
    assert 50 < (ledger.batch("b").not_before - datetime.now(UTC)).total_seconds() <= 60
    provider_server.faults.clear()
    assert to_the_end(ledger).status is BatchStatus.COMPLETE_MAX_COMPARISONS
    assert ledger.batch("b").processing_metadata["breaker_opened"] == 0


def test_a_stated_wait_is_waited_and_no_reason_to_give_up(ledger, provider_server):
    provider_server.retry_after_seconds = 0.2
    submit(ledger, breaker_failures=2, judge_concurrency=1, **CALLS)
    provider_server.faults.script(["rate_limited_retry_after"] * 2)
    started = time.monotonic()
    assert scenes.advance(ledger).status is BatchStatus.COMPLETE_MAX_COMPARISONS
    assert time.monotonic() - started > 0.4
    assert [attempt.error_type for attempt in ledger.attempts("b")][:2] == ["rate_limited"] * 2


def test_a_provider_that_names_a_long_wait_gets_it_between_runs(ledger, provider_server):
    provider_server.retry_after_seconds = 3600
    submit(ledger, **BUNDLES)
    provider_server.faults.script(["rate_limited_retry_after"])
    assert scenes.advance(ledger).outcome is Outcome.WAITING
    assert ledger.batch("b").not_before - datetime.now(UTC) > timedelta(minutes=50)


# --- provider batch jobs ---------------------------------------------------------------------------------------------


def job_batch(ledger, judge=CLAUDE, **overrides):
    submit(ledger, judge=judge, **{**JOB, **overrides})


@pytest.fixture(params=["anthropic/claude-haiku-4-5", "openai/gpt-5.1"])
def job_judge(request):
    return request.param


def test_a_job_that_is_out_ends_the_run_and_is_taken_in_by_a_later_one(ledger, provider_server, job_judge):
    provider_server.jobs.hold = True
    job_batch(ledger, job_judge)
    done = scenes.advance(ledger)
    assert done.outcome is Outcome.WAITING
    (job,) = ledger.jobs_out("b")
    assert (job.status, job.items) == (JobState.SUBMITTED, 45)
    assert ledger.claim_launch("b") is None
    assert scenes.advance(ledger).outcome is Outcome.WAITING
    provider_server.jobs.hold = False
    done = scenes.advance(ledger)
    assert done.status is BatchStatus.COMPLETE_MAX_COMPARISONS
    assert len(ledger.waves("b")) == 1
    assert provider_server.answered == 45
    assert ledger.provider_jobs("b")[0].status is JobState.COMPLETED


def test_a_job_whose_acceptance_got_lost_is_found_again_and_nothing_is_paid_twice(ledger, provider_server, job_judge):
    provider_server.jobs.lose_create_response = True
    job_batch(ledger, job_judge)
    done = scenes.advance(ledger)
    assert done.outcome is Outcome.WAITING
    assert ledger.jobs_out("b")[0].status is JobState.SUBMITTING
    provider_server.jobs.lose_create_response = False
    if job_judge.startswith("anthropic"):
        # nothing tells a running job of Anthropic's from another of the same size: it is waited for
        assert scenes.advance(ledger).outcome is Outcome.WAITING
        assert ledger.jobs_out("b")[0].status is JobState.SUBMITTING
        with anthropic.Anthropic() as client:
            for batch in client.messages.batches.list():
                client.messages.batches.retrieve(batch.id)  # the server ends jobs when they are looked at
    assert to_the_end(ledger).status is BatchStatus.COMPLETE_MAX_COMPARISONS
    assert set(provider_server.billed.values()) == {1}
    assert len(ledger.provider_jobs("b")) == 1


def test_items_that_the_provider_did_not_get_to_are_sent_again_within_their_attempts(
    ledger, provider_server, job_judge
):
    provider_server.jobs.expire_items = 7
    job_batch(ledger, job_judge)
    to_the_end(ledger)
    expired = [attempt for attempt in ledger.attempts("b") if attempt.error_type == "expired"]
    assert expired
    assert {attempt.cost_usd for attempt in expired} == {0.0}
    state = ledger.state("b")
    assert state.judged + state.failed == 45
    assert set(provider_server.billed.values()) == {1}


def test_results_that_belong_to_no_call_are_kept_apart_and_change_nothing(ledger, provider_server, job_judge):
    provider_server.jobs.extra_result = True
    provider_server.jobs.duplicate_result = True
    job_batch(ledger, job_judge)
    to_the_end(ledger)
    assert sorted(row["reason"] for row in ledger.orphan_results("b")) == ["duplicate", "unknown"]
    assert ledger.state("b").judged == 45


def test_a_job_that_the_provider_refuses_as_a_whole_stops_the_batch_and_pays_nothing(ledger, provider_server):
    provider_server.jobs.fail_validation = True
    job_batch(ledger, "openai/gpt-5.1")
    done = to_the_end(ledger)
    assert (done.status, done.stop_reason) == (BatchStatus.FAILED, "provider_rejected")
    assert ledger.state("b").submitted == 0
    assert ledger.cost_usd("b") == 0.0
    assert ledger.provider_jobs("b")[0].detail


def test_a_job_costs_half_of_separate_calls(ledger, provider_server):
    for name, mode in (("calls", CALLS), ("job", JOB)):
        submit(ledger, name, judge="openai/gpt-5.1", **mode)
        to_the_end(ledger, name)

    def fresh_price(batch_id):
        return sum(a.upper_bound_usd for a in ledger.attempts(batch_id))

    assert fresh_price("job") == pytest.approx(fresh_price("calls") / 2, rel=0.01)


def test_at_day_a_nightly_job_waits_for_its_window(ledger, provider_server):
    now = datetime.now(UTC)
    opens, closes = now + timedelta(hours=2), now + timedelta(hours=4)
    window = f"{opens:%H:%M}-{closes:%H:%M}"
    job_batch(ledger, batch_api_mode="nightly")
    done = scenes.advance(ledger, batch_api_night_window=window, batch_api_timezone="UTC")
    assert done.outcome is Outcome.WAITING
    assert abs(ledger.batch("b").not_before - opens) < timedelta(minutes=1, seconds=1)
    assert not provider_server.calls
    update_batch(ledger, "b", not_before=None)
    window = f"{now - timedelta(hours=1):%H:%M}-{closes:%H:%M}"
    done = scenes.advance(ledger, batch_api_night_window=window, batch_api_timezone="UTC")
    assert done.status is BatchStatus.COMPLETE_MAX_COMPARISONS


# --- what was sent ---------------------------------------------------------------------------------------------------


def test_what_was_sent_can_be_shown_to_the_letter(ledger, provider_server):
    submit(ledger, **CALLS)
    to_the_end(ledger)
    sent_texts = {call.body["messages"][0]["content"][1]["text"] for call in provider_server.model_calls}
    for record in ledger.comparison_records("b"):
        sent = sent_prompt(ledger, "b", record.comparison_id)
        assert sent.matches
        assert sent.prompt.essays in sent_texts


def test_no_error_type_is_without_a_fate():
    def descendants(kind):
        return [kind, *(d for child in kind.__subclasses__() for d in descendants(child))]

    kinds = [kind for kind in descendants(JudgeError) if kind.__module__ == JudgeError.__module__]
    assert len({kind.error_type for kind in kinds}) == len(kinds)
    assert {kind.fate for kind in kinds} == set(Fate)
