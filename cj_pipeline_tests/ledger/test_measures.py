"""Counts over the whole ledger against the same things counted row by row; on both databases."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from cj_pipeline.core.errors import CJError
from cj_pipeline.core.models import AttemptOutcome, BatchingMode, BatchStatus, Winner
from cj_pipeline.ledger import Ledger, measures
from cj_pipeline.ledger import tables as t
from cj_pipeline.ledger.engine import write_transaction
from cj_pipeline.ledger.measures import LATENCY_BOUNDS, WAIT_BOUNDS, BundleGroup, QueueDepth, measure
from cj_pipeline.ledger.records import JobState, NewJob, OrphanResult, TokenCounts
from cj_pipeline.settings import BatchTunables
from cj_pipeline_tests.builders import (
    acquire,
    all_pairs,
    failed,
    judged,
    new_student,
    start,
    submit,
    update_batch,
    wave_end,
    wave_plan,
)
from cj_pipeline_tests.conftest import TEMPLATE, _postgresql_database

BUSY = ["serial", "single", "job", "recovered", "failed", "old"]
HAIKU = {"provider": "anthropic", "model": "haiku"}
GPT = {"provider": "openai", "model": "gpt"}


def ids(count: int, wave: int = 1) -> list[str]:
    return [f"w{wave:05d}-c{number:05d}" for number in range(1, count + 1)]


def tunables(mode: BatchingMode) -> dict:
    return BatchTunables(llm_batching_mode=mode).model_dump()


def update_attempt(ledger: Ledger, attempt_id: int, **values) -> None:
    with write_transaction(ledger.engine) as connection:
        connection.execute(t.attempts.update().where(t.attempts.c.attempt_id == attempt_id).values(**values))


def just_now(seconds: float = 0.0) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


@contextmanager
def busy_ledger(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """A busy ledger on the database that the request's parameter names, for many tests that only read."""
    if request.param == "sqlite":
        ledger = Ledger.open(f"sqlite:///{tmp_path_factory.mktemp('busy') / 'ledger.sqlite'}")
        make_busy(ledger)
        yield ledger
        ledger.close()
        return
    with _postgresql_database(request.getfixturevalue("postgresql_server"), TEMPLATE) as url:
        ledger = Ledger.open(url)
        make_busy(ledger)
        yield ledger
        ledger.close()


def make_busy(ledger: Ledger) -> None:
    """Let everything happen that is counted, in the batches `BUSY`."""
    _serial_bundles(ledger)
    _one_by_one(ledger)
    _provider_job(ledger)
    _recovered_and_failed(ledger)


def _serial_bundles(ledger):
    """A wave of six in two bundles, with a retry; a second wave at work: two calls lost, one of them sent again."""
    submit(ledger, "serial", settings=tunables(BatchingMode.SERIAL_BUNDLE), **HAIKU)
    lease = acquire(ledger, "serial")
    lease.plan_wave(wave_plan(1, all_pairs(4)))
    c = ids(6)
    for number, comparison_id in enumerate(c):
        bundle = "w00001-b0001-e1" if number < 4 else "w00001-b0002-e1"
        queued = just_now(0.05 * 4**number)
        (attempt,) = lease.record([start(comparison_id, bundle_id=bundle, queued_at=queued, **HAIKU)])
        if number == 2:
            overloaded = {"error_type": "overloaded", "http_status": 529, "latency_seconds": 0.7, "cost_usd": 0.0}
            lease.record([failed(attempt, comparison_id, final=False, **overloaded)])
            (attempt,) = lease.record([start(comparison_id, 2, bundle_id=bundle, queued_at=just_now(), **HAIKU)])
        if number == 3:
            lease.record([failed(attempt, comparison_id, final=True, error_type="timeout", http_status=None)])
            continue
        tokens = TokenCounts(input=1000 + number, cache_read=900, cache_write=number, output=50, reasoning=7)
        latency = 0.1 * 3**number
        ends = {"tokens": tokens, "latency_seconds": latency, "cost_usd": None if number == 5 else 0.1}
        lease.record([judged(attempt, comparison_id, **ends)])
    lease.end_wave(wave_end(1))
    lease.plan_wave(wave_plan(2, [("s1", "s2"), ("s3", "s4"), ("s1", "s4")]))
    lease.record([start(i, bundle_id="w00002-b0001-e1", queued_at=just_now(3), **HAIKU) for i in ids(2, 2)])
    lease.release()
    ledger.record_orphan("serial", c[0], reason="late", source="lease_lost", cost_usd=0.1)
    lease = acquire(ledger, "serial", owner="host:2")
    lease.record([start(ids(1, 2)[0], bundle_id="w00002-b0001-e2", queued_at=just_now(1), **HAIKU)])


def _one_by_one(ledger):
    """Two comparisons, one judged twice over; the batch stops with inflated errors."""
    submit(ledger, "single", settings=tunables(BatchingMode.PER_REQUEST), **GPT)
    lease = acquire(ledger, "single")
    lease.plan_wave(wave_plan(1))
    c = ids(2)
    one, two = lease.record([start(i, queued_at=just_now(7000), **GPT) for i in c])
    lease.record([judged(one, c[0]), judged(one, c[0], Winner.B), failed(two, c[1], final=True, http_status=None)])
    flags = {"bt_se_inflated": True, "comparison_coverage_sparse": False, "has_isolated_items": False}
    lease.end_wave(wave_end(1, status=BatchStatus.COMPLETE_STABLE, metadata={"bt_quality_flags": flags}))
    lease.release()


def _provider_job(ledger):
    """Three jobs: one refused, one taken in with an expired item, one out."""
    submit(ledger, "job", settings=tunables(BatchingMode.PROVIDER_BATCH_API), **GPT)
    lease = acquire(ledger, "job")
    lease.plan_wave(wave_plan(1, all_pairs(4)))
    c = ids(6)

    def open_job(key, comparison_ids, number):
        starts = [start(i, number, bundle_id=key, queued_at=just_now(), **GPT) for i in comparison_ids]
        return lease.open_job(NewJob(key, 1, "openai", "gpt", tuple(starts)))

    refused = open_job("refused", c, 1)
    ends = [failed(a, i, final=False, made=False, cost_usd=0.0) for a, i in zip(refused, c, strict=True)]
    lease.close_job("refused", JobState.FAILED, ends, detail="over the limit")
    one, two, three, *_ = open_job("taken", c[:4], 1)
    lease.job_accepted("taken", "batch_1", None)
    ends = [
        judged(one, c[0], latency_seconds=None, cost_usd=0.05),
        failed(two, c[1], final=False, error_type="expired", http_status=None, latency_seconds=None, cost_usd=0.0),
        failed(three, c[2], final=True, error_type="expired", http_status=None, latency_seconds=None, cost_usd=0.0),
    ]
    orphans = [OrphanResult("elsewhere", "unknown"), OrphanResult(c[0], "duplicate")]
    lease.close_job("taken", JobState.EXPIRED, ends, orphans, ended_at=datetime.now(UTC) + timedelta(hours=3))
    open_job("out", [c[1], c[3]], 2)
    lease.job_accepted("out", "batch_2", None)
    lease.release()


def _recovered_and_failed(ledger):
    """Batches that were silent too long, one reopened since; and one of the time before batching modes."""
    sparse = {"bt_quality_flags": {"bt_se_inflated": True, "comparison_coverage_sparse": True}}
    for batch_id, status, reason, metadata in (
        ("recovered", BatchStatus.COMPLETE_FORCED_RECOVERY, "timeout_recovered", sparse),
        ("failed", BatchStatus.FAILED, "timeout_incomplete", sparse),
        ("old", BatchStatus.CANCELLED, "cancelled", {}),
    ):
        settings = tunables(BatchingMode.PER_REQUEST)
        if batch_id == "old":
            del settings["llm_batching_mode"]
        submit(ledger, batch_id, settings=settings)
        lease = acquire(ledger, batch_id)
        lease.plan_wave(wave_plan())
        (attempt,) = lease.record([start(ids(1)[0], queued_at=just_now(0.2))])
        if batch_id == "old":
            lease.record([judged(attempt, ids(1)[0])])
        lease.finalise(status, reason, metadata)
        lease.release()
    ledger.reopen("failed", "the daemon is back")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def record(request, tmp_path_factory):
    """A busy ledger, only to be read."""
    with busy_ledger(request, tmp_path_factory) as ledger:
        yield ledger


def mode_of(ledger: Ledger, batch_id: str) -> str:
    return str(ledger.batch(batch_id).settings.get("llm_batching_mode", "serial_bundle"))


def class_of(value: float, bounds: tuple[float, ...]) -> int:
    return sum(value > bound for bound in bounds)


# --- calls -----------------------------------------------------------------------------------------------------------


def test_calls_are_grouped_and_summed_as_they_would_be_one_by_one(record):
    expected: dict[tuple, Counter] = {}
    for batch_id in BUSY:
        out = {job.job_key for job in record.jobs_out(batch_id)}
        for a in record.attempts(batch_id):
            if a.outcome == "unsent":
                continue
            wait = a.sent_at - a.queued_at
            key = (
                mode_of(record, batch_id),
                a.provider,
                a.model,
                a.outcome,
                a.error_type,
                a.http_status,
                a.outcome is None and a.bundle_id in out,
                class_of(wait.total_seconds(), WAIT_BOUNDS),
                None if a.latency_seconds is None else class_of(a.latency_seconds, LATENCY_BOUNDS),
            )
            expected.setdefault(key, Counter()).update(
                calls=1,
                wait_us=wait // timedelta(microseconds=1),
                latency_us=round((a.latency_seconds or 0) * 1e6),
                tokens_input=a.tokens_input or 0,
                tokens_cache_read=a.tokens_cache_read or 0,
                tokens_cache_write=a.tokens_cache_write or 0,
                tokens_output=a.tokens_output or 0,
                tokens_reasoning=a.tokens_reasoning or 0,
                cost_nano_usd=round((a.cost_usd or 0) * 1e9),
                priced=a.cost_usd is not None,
            )
    found = {}
    for group in measure(record).calls:
        values = vars(group).copy()
        sums = Counter({name: values.pop(name) for name in next(iter(expected.values()))})
        found[tuple(values.values())] = sums
    assert found == expected
    assert len(found) > 15


def test_the_time_in_the_queue_is_exact_to_the_microsecond_and_never_below_zero(ledger):
    submit(ledger)
    lease = acquire(ledger)
    lease.plan_wave(wave_plan(1, all_pairs(4)[:3]))
    attempts = lease.record([start(i) for i in ids(3)])
    sent = datetime(2026, 3, 1, 0, 0, 0, 7, tzinfo=UTC)
    update_attempt(ledger, attempts[0], outcome="judged", sent_at=sent, queued_at=sent - timedelta(seconds=2.5))
    # across the end of a month, and just too long for the class before
    late = timedelta(seconds=2.5, microseconds=1)
    update_attempt(ledger, attempts[1], outcome="judged", sent_at=sent, queued_at=sent - late)
    # a clock that was set back
    update_attempt(ledger, attempts[2], outcome="judged", sent_at=sent, queued_at=sent + timedelta(hours=1))
    found = sorted((group.wait_class, group.wait_us) for group in measure(ledger).calls)
    index = WAIT_BOUNDS.index(2.5)
    assert found == [(0, 0), (index, 2_500_000), (index + 1, 2_500_001)]


def test_a_latency_on_a_bound_belongs_to_its_class(ledger):
    submit(ledger)
    lease = acquire(ledger)
    lease.plan_wave(wave_plan(1, all_pairs(4)))
    attempts = lease.record([start(i) for i in ids(6)])
    latencies = (0.1, 0.25, 1.0, 120.0, 120.5, None)
    for attempt, comparison_id, latency in zip(attempts, ids(6), latencies, strict=True):
        lease.record([judged(attempt, comparison_id, latency_seconds=latency)])
    classes = {group.latency_class for group in measure(ledger).calls}
    assert classes == {0, 1, LATENCY_BOUNDS.index(1.0), len(LATENCY_BOUNDS) - 1, len(LATENCY_BOUNDS), None}


def test_money_adds_up_exactly_whatever_the_order(ledger):
    submit(ledger, essays=tuple(new_student(f"s{n}") for n in range(1, 6)))
    lease = acquire(ledger)
    lease.plan_wave(wave_plan(1, all_pairs(5)))
    attempts = lease.record([start(i) for i in ids(10)])
    lease.record([judged(a, i, cost_usd=0.1) for a, i in zip(attempts, ids(10), strict=True)])
    (group,) = measure(ledger).calls
    assert group.cost_nano_usd == 1_000_000_000  # in floating point, ten times 0.1 is not 1
    assert sum([0.1] * 10) != 1.0


def test_a_call_of_a_job_that_is_out_may_still_turn_out_as_never_sent(ledger):
    submit(ledger, settings=tunables(BatchingMode.PROVIDER_BATCH_API))
    lease = acquire(ledger)
    lease.plan_wave(wave_plan())
    lease.open_job(NewJob("k", 1, "openai", "gpt", tuple(start(i, bundle_id="k") for i in ids(2))))
    assert [(g.outcome, g.in_open_job, g.calls) for g in measure(ledger).calls] == [(None, True, 2)]
    ends = [failed(a.attempt_id, a.comparison_id, final=False, made=False) for a in ledger.attempts("b1")]
    lease.close_job("k", JobState.FAILED, ends)
    assert measure(ledger).calls == ()


# --- bundles, jobs ---------------------------------------------------------------------------------------------------


def test_a_bundle_is_as_large_as_its_comparisons_are_many_and_retries_do_not_count(record):
    bundles: dict[tuple[str, str], set[str]] = {}
    for batch_id in BUSY:
        for a in record.attempts(batch_id):
            if mode_of(record, batch_id) == "serial_bundle" and a.bundle_id is not None:
                bundles.setdefault((batch_id, a.bundle_id), set()).add(a.comparison_id)
    expected = Counter(len(comparisons) for comparisons in bundles.values())
    found = Counter[int]()
    for group in measure(record).bundles:
        assert (group.provider, group.model) == ("anthropic", "haiku")
        found[group.items] += group.bundles
    assert found == expected == {4: 1, 2: 2, 1: 1}


def test_a_bundle_is_whole_once_every_comparison_of_its_wave_has_its_outcome(ledger):
    submit(ledger)
    lease = acquire(ledger)
    lease.plan_wave(wave_plan())
    c = ids(2)
    (one,) = lease.record([start(c[0], bundle_id="b")])
    lease.record([judged(one, c[0])])
    assert measure(ledger).bundles == (BundleGroup("simulated", "cj-generic", 1, False, 1),)
    (two,) = lease.record([start(c[1], bundle_id="b")])
    assert measure(ledger).bundles == (BundleGroup("simulated", "cj-generic", 2, False, 1),)
    lease.record([judged(two, c[1])])
    assert measure(ledger).bundles == (BundleGroup("simulated", "cj-generic", 2, True, 1),)


def test_bundles_of_the_same_name_in_two_batches_are_two(ledger):
    for batch_id in ("b1", "b2"):
        submit(ledger, batch_id)
        lease = acquire(ledger, batch_id)
        lease.plan_wave(wave_plan())
        lease.record([start(i, bundle_id="b") for i in ids(2)])
    assert measure(ledger).bundles == (BundleGroup("simulated", "cj-generic", 2, False, 2),)


def test_jobs_are_timed_from_their_acceptance_to_their_end_at_the_provider(record):
    found = {job.items: job for job in measure(record).jobs}
    assert {items: (job.status.value, job.accepted) for items, job in found.items()} == {
        6: ("failed", False),
        4: ("expired", True),
        2: ("submitted", True),
    }
    (taken,) = (job for job in record.provider_jobs("job") if job.job_key == "taken")
    assert found[4].duration_us == (taken.ended_at - taken.submitted_at) // timedelta(microseconds=1)
    assert found[6].duration_us is None
    assert found[2].duration_us is None


# --- comparisons, waves, batches -------------------------------------------------------------------------------------


def test_comparisons_and_waves_are_grouped_as_they_would_be_one_by_one(record):
    comparisons, waves = Counter(), Counter()
    for batch_id in BUSY:
        mode = mode_of(record, batch_id)
        comparisons.update((mode, c.status, c.error_type) for c in record.comparison_records(batch_id))
        waves.update((mode, wave.decision) for wave in record.waves(batch_id))
    found = measure(record)
    assert {(g.batching_mode, g.status.value, g.error_type): g.comparisons for g in found.comparisons} == comparisons
    assert {(g.batching_mode, g.decision): g.waves for g in found.waves} == waves
    assert len(comparisons) > 6
    assert waves["serial_bundle", "REQUEST_MORE_COMPARISONS"] == 1


def test_a_batch_without_a_mode_was_judged_in_serial_bundles(record):
    assert "llm_batching_mode" not in record.batch("old").settings
    (group,) = (g for g in measure(record).calls if g.provider == "simulated" and g.outcome is AttemptOutcome.JUDGED)
    assert group.batching_mode == "serial_bundle"


def test_the_queue_is_what_unfinished_batches_have_without_an_outcome(record):
    waiting = in_flight = 0
    for batch_id in BUSY:
        called = {a.comparison_id for a in record.attempts(batch_id) if a.outcome is None}
        for c in record.comparison_records(batch_id):
            if c.status == "planned" and not record.batch(batch_id).status.is_final:
                in_flight += c.comparison_id in called
                waiting += c.comparison_id not in called
    assert measure(record).depth == QueueDepth(waiting, in_flight)
    assert (waiting, in_flight) == (4, 3)


def test_batches_that_were_stuck_are_counted_from_what_happened_to_them(ledger):
    make_busy(ledger)
    assert measure(ledger).timeouts == {"timeout_recovered": 1, "timeout_incomplete": 1}
    # again, after it was reopened
    with acquire(ledger, "failed") as lease:
        lease.finalise(BatchStatus.FAILED, "timeout_low_success_rate")
    assert measure(ledger).timeouts == {
        "timeout_recovered": 1,
        "timeout_incomplete": 1,
        "timeout_low_success_rate": 1,
    }


def test_flags_count_for_batches_that_are_final(ledger):
    make_busy(ledger)
    found = measure(ledger)
    assert (found.se_inflated, found.sparse_coverage) == (2, 1)  # "failed" was reopened
    update_batch(ledger, "failed", status="FAILED")
    found = measure(ledger)
    assert (found.se_inflated, found.sparse_coverage) == (3, 2)


def test_results_that_changed_nothing_are_counted_by_their_source(record):
    expected = Counter(row["source"] for batch_id in BUSY for row in record.orphan_results(batch_id))
    assert measure(record).orphans == expected == {"lease_lost": 1, "lease": 1, "provider_job": 2}


# --- the whole -------------------------------------------------------------------------------------------------------


def test_an_empty_ledger_has_nothing_to_count(ledger):
    found = measure(ledger)
    assert not any((found.calls, found.comparisons, found.waves, found.bundles, found.jobs, found.orphans))
    assert (found.depth, found.timeouts, found.se_inflated, found.sparse_coverage) == (QueueDepth(0, 0), {}, 0, 0)


def test_everything_is_counted_at_one_moment(open_ledger, monkeypatch):
    ledger, other = open_ledger(), open_ledger()
    submit(ledger)
    lease = acquire(other)
    lease.plan_wave(wave_plan())
    counted = measures._comparisons

    def while_another_writes(connection):
        attempts = lease.record([start(i) for i in ids(2)])
        lease.record([judged(a, i) for a, i in zip(attempts, ids(2), strict=True)])
        return counted(connection)

    with monkeypatch.context() as patch:
        patch.setattr(measures, "_comparisons", while_another_writes)
        found = measure(ledger)
    assert found.calls == ()
    assert [(g.status.value, g.comparisons) for g in found.comparisons] == [("planned", 2)]
    assert [g.calls for g in measure(ledger).calls] == [2]


def test_a_ledger_that_cannot_be_read_is_said_without_a_word_of_sql(ledger):
    with ledger.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE attempts"))
    with pytest.raises(
        CJError, match=r"^the ledger cannot be read \((Operational|UndefinedTable)\w*\): check"
    ) as error:
        measure(ledger)
    assert "SELECT" not in str(error.value)
