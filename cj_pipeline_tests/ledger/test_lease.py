"""Who may write a batch, what becomes of one who no longer may, and every write of a holder; on both databases."""

import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from cj_pipeline.core.models import BatchStatus, ComparisonStatus, Winner
from cj_pipeline.ledger import (
    BatchBusyError,
    BatchEndedError,
    BudgetExceededError,
    Lease,
    LeaseLostError,
    UnknownBatchError,
)
from cj_pipeline.ledger import tables as t
from cj_pipeline.ledger.engine import read_transaction
from cj_pipeline.ledger.errors import PendingComparisonsError
from cj_pipeline.ledger.ledger import orphan_details
from cj_pipeline.ledger.records import TokenCounts
from cj_pipeline_tests.builders import (
    QUEUED_AT,
    acquire,
    all_pairs,
    at_once,
    failed,
    judged,
    new_student,
    rows,
    start,
    submit,
    update_batch,
    wave_end,
    wave_plan,
)

C1, C2, C3, C4 = (f"w00001-c{number:05d}" for number in range(1, 5))


def expire(ledger):
    """The holder showed no sign of life for longer than its lease."""
    update_batch(ledger, lease_expires_at=0.0)


def shift_clock(ledger, seconds):
    """Set the database's own clock forward; this process keeps its time."""
    engine = ledger.engine
    if engine.dialect.name == "sqlite":

        def shifted(_now):
            return (time.time() + seconds) / 86400 + 2440587.5

        sa.event.listen(engine, "connect", lambda raw, _record: raw.create_function("julianday", 1, shifted))
    else:
        with engine.begin() as connection:
            connection.execute(
                sa.text(
                    "CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS "
                    f"$$ SELECT pg_catalog.clock_timestamp() + interval '{seconds} seconds' $$"
                )
            )
            connection.execute(sa.text(f"ALTER DATABASE {engine.url.database} SET search_path TO public, pg_catalog"))
    engine.dispose()  # only new connections have it


def attempts(ledger, batch_id="b1"):
    query = sa.select(t.attempts).where(t.attempts.c.batch_id == batch_id).order_by(t.attempts.c.attempt_id)
    with read_transaction(ledger.engine) as connection:
        return connection.execute(query).all()


def expires_at(ledger):
    with read_transaction(ledger.engine) as connection:
        return connection.execute(sa.select(t.batches.c.lease_expires_at)).scalar_one()


def statuses(ledger):
    return [comparison.status.value for comparison in ledger.comparisons("b1")]


def events(ledger):
    return [event["event"] for event in ledger.events("b1")]


@pytest.fixture
def held(ledger):
    """A batch whose first wave of four comparisons is planned, under a lease."""
    submit(ledger)
    lease = acquire(ledger)
    lease.plan_wave(wave_plan(1, all_pairs(4)[:4]))
    return lease


# --- having it -------------------------------------------------------------------------------------------------------


def test_a_lease_is_live_from_its_acquisition_to_its_release(ledger):
    submit(ledger)
    assert not ledger.batch("b1").lease_live
    lease = acquire(ledger, owner="host:7")
    record = ledger.batch("b1")
    assert (record.lease_owner, record.lease_epoch, record.lease_live) == ("host:7", 1, True)
    lease.release()
    record = ledger.batch("b1")
    assert (record.lease_owner, record.lease_live, record.lease_abandoned) == (None, False, False)


def test_a_lease_of_an_unknown_batch_is_an_error(ledger):
    with pytest.raises(UnknownBatchError, match="no batch 'b1'"):
        acquire(ledger)


def test_a_second_process_is_told_who_writes_since_when_and_what_to_do(ledger):
    submit(ledger)
    acquire(ledger, owner="examroom:4711:run=abc")
    update_batch(ledger, lease_since=t.batches.c.lease_since - 90)
    with pytest.raises(
        BatchBusyError,
        match=r"batch b1 is being written by examroom:4711:run=abc since 9[0-9] s .*another (30|2[0-9]) s "
        r".*--wait.*`cj hold b1`",
    ):
        acquire(ledger, owner="host:2")
    assert ledger.batch("b1").lease_epoch == 1


def test_the_holder_itself_cannot_take_it_twice(ledger):
    submit(ledger)
    acquire(ledger, owner="host:1")
    with pytest.raises(BatchBusyError):
        acquire(ledger, owner="host:1")


def test_leases_of_different_batches_do_not_concern_each_other(ledger):
    submit(ledger, "b1")
    submit(ledger, "b2")
    first, second = acquire(ledger, "b1"), acquire(ledger, "b2")
    assert second.epoch == 1
    for lease in (first, second):
        lease.plan_wave(wave_plan())
        lease.record([start(C1)])
    update_batch(ledger, "b2", lease_expires_at=0.0)
    first.renew()
    assert ledger.batch("b2").lease_abandoned
    before = (ledger.batch("b2"), ledger.state("b2"), attempts(ledger, "b2"))
    first.stop_wave(1)
    first.finalise(BatchStatus.CANCELLED, "cancelled")
    first.mark_published(0)
    first.release()
    assert (ledger.batch("b2"), ledger.state("b2"), attempts(ledger, "b2")) == before


def test_a_released_lease_is_free_at_once(ledger):
    submit(ledger)
    acquire(ledger).release()
    assert acquire(ledger, owner="host:2").epoch == 2
    assert "taken_over" not in events(ledger)


def test_one_who_waits_gets_the_lease_when_it_is_released(ledger):
    submit(ledger)
    lease = acquire(ledger)
    release = threading.Timer(0.3, lease.release)
    began = time.monotonic()
    release.start()
    waited = Lease.acquire(ledger, "b1", owner="host:2", seconds=1, wait=30)
    assert 0.25 < time.monotonic() - began < 20
    assert waited.epoch == 2
    release.join()


def test_waiting_ends_when_its_time_is_up(ledger):
    submit(ledger)
    acquire(ledger)
    began = time.monotonic()
    with pytest.raises(BatchBusyError):
        Lease.acquire(ledger, "b1", owner="host:2", seconds=1, wait=0.3)
    assert 0.3 <= time.monotonic() - began < 10


# --- expiry ----------------------------------------------------------------------------------------------------------


def test_expiry_goes_by_the_databases_clock_and_not_by_this_machines(ledger):
    submit(ledger)
    acquire(ledger, seconds=1000)
    shift_clock(ledger, 900)
    assert ledger.batch("b1").lease_live
    with pytest.raises(BatchBusyError, match=r"another (100|9[0-9]) s"):
        acquire(ledger, owner="host:2")


def test_a_lease_has_run_out_once_the_databases_clock_says_so(ledger):
    submit(ledger)
    acquire(ledger, seconds=1000)
    shift_clock(ledger, 1001)
    record = ledger.batch("b1")
    assert (record.lease_live, record.lease_abandoned, record.lease_owner) == (False, True, "host:1")
    assert ledger.claim_launch("b1") == 1
    second = acquire(ledger, owner="host:2", seconds=1000)
    assert second.epoch == 2
    assert ledger.batch("b1").lease_live


def test_renewing_extends_the_lease_by_its_length_from_now(ledger):
    submit(ledger)
    lease = acquire(ledger, seconds=1000)
    update_batch(ledger, lease_expires_at=t.batches.c.lease_expires_at - 990)
    lease.renew()
    with pytest.raises(BatchBusyError, match=r"another (1000|99[0-9]) s"):
        acquire(ledger, owner="host:2")


def test_a_lease_that_ran_out_but_was_not_taken_is_still_its_holders(ledger):
    submit(ledger)
    lease = acquire(ledger)
    expire(ledger)
    lease.plan_wave(wave_plan())
    lease.renew()
    assert ledger.batch("b1").lease_live


def test_a_lease_in_use_is_renewed_past_its_length(ledger):
    submit(ledger)
    with acquire(ledger, seconds=0.6) as lease:
        first = expires_at(ledger)
        deadline = time.monotonic() + 30
        while expires_at(ledger) <= first + lease.seconds and time.monotonic() < deadline:
            time.sleep(0.02)
        # so it was renewed after the moment at which it would have run out
        assert expires_at(ledger) > first + lease.seconds
        assert not lease.lost
    assert ledger.batch("b1").lease_owner is None


def test_a_holder_without_a_sign_of_life_for_its_lease_stops_by_itself(ledger):
    submit(ledger)
    lease = acquire(ledger, seconds=1)
    lease.check_fresh()
    time.sleep(1.05)
    with pytest.raises(LeaseLostError, match=r"batch b1: this process \(host:1\) no longer holds the lease"):
        lease.check_fresh()
    lease.renew()
    lease.check_fresh()


def test_the_renewing_thread_finds_out_that_the_lease_was_taken(ledger):
    submit(ledger)
    with acquire(ledger, seconds=0.3) as lease:
        # as if it had been stopped for a while
        update_batch(ledger, lease_owner="host:2", lease_epoch=2, lease_expires_at=4e9)
        deadline = time.monotonic() + 10
        while not lease.lost and time.monotonic() < deadline:
            time.sleep(0.02)
        assert lease.lost
        with pytest.raises(LeaseLostError):
            lease.check_fresh()
    assert ledger.batch("b1").lease_owner == "host:2"


def test_leaving_the_block_releases_the_lease_even_on_an_error(held, ledger):
    with pytest.raises(ZeroDivisionError), held:
        held.record([start(C1)])
        raise ZeroDivisionError
    assert ledger.batch("b1").lease_owner is None
    assert [(a.outcome, a.cost_usd) for a in attempts(ledger)] == [("lost", 0.5)]


# --- taking over -----------------------------------------------------------------------------------------------------


def test_taking_over_makes_open_calls_lost_at_their_upper_bound_and_touches_no_other(held, ledger):
    one, two, _three = held.record([start(C1), start(C2), start(C3, upper_bound_usd=None)])
    held.record([judged(one, C1), failed(two, C2, final=False)])
    expire(ledger)
    successor = acquire(ledger, owner="host:2")
    assert successor.epoch == held.epoch + 1
    found = [(a.comparison_id, a.outcome, a.error_type, a.cost_usd) for a in attempts(ledger)]
    assert found == [(C1, "judged", None, 0.25), (C2, "error", "malformed", 0.125), (C3, "lost", "lost", None)]
    assert all(a.finished_at is not None for a in attempts(ledger))
    assert statuses(ledger) == ["judged", "planned", "planned", "planned"]
    assert events(ledger)[-1] == "taken_over"
    assert "host:1" in ledger.events("b1")[-1]["detail"]


def test_a_lost_call_is_sent_again_and_counts_towards_no_limit(held, ledger):
    held.record([start(C1)])
    expire(ledger)
    successor = acquire(ledger, owner="host:2")
    (again,) = successor.record([start(C1, 1)])
    successor.record([judged(again, C1)])
    record = ledger.comparison_records("b1")[0]
    assert (record.status, record.attempts, record.lost_attempts, record.failed_attempts) == ("judged", 2, 1, 0)
    assert record.cost_usd == 0.75
    assert [a.lease_epoch for a in attempts(ledger)] == [1, 2]


WRITES = {
    "plan_wave": lambda lease: lease.plan_wave(wave_plan(2)),
    "record a call": lambda lease: lease.record([start(C2)]),
    "record an answer": lambda lease: lease.record([judged(1, C1)]),
    "record nothing": lambda lease: lease.record([]),
    "stop_wave": lambda lease: lease.stop_wave(1),
    "state": lambda lease: lease.state(),
    "end_wave": lambda lease: lease.end_wave(wave_end()),
    "finalise": lambda lease: lease.finalise(BatchStatus.CANCELLED, "cancelled"),
    "wait_until": lambda lease: lease.wait_until(datetime.now(UTC)),
    "mark_published": lambda lease: lease.mark_published(1),
    "renew": lambda lease: lease.renew(),
    "release": lambda lease: lease.release(),
}


@pytest.mark.parametrize(
    "successor", ["another process", "a process of the same name", "nobody any more", "nobody since its release"]
)
def test_one_who_lost_the_lease_writes_nothing_more(held, ledger, successor, subtests):
    held.record([start(C1)])
    if successor == "nobody since its release":
        held.release()
    else:
        expire(ledger)
        taken = acquire(ledger, owner="host:1" if successor == "a process of the same name" else "host:2")
        if successor == "nobody any more":
            taken.release()
    before = rows(ledger)
    for name, write in WRITES.items():
        with subtests.test(name):
            loser = Lease(ledger, "b1", held.owner, held.epoch, held.seconds)
            with pytest.raises(LeaseLostError, match=r"batch b1: this process \(host:1\) no longer holds the lease"):
                write(loser)
            assert loser.lost
            assert rows(ledger) == before


def test_a_late_answer_is_kept_as_an_orphan_and_changes_nothing_else(held, ledger):
    (attempt,) = held.record([start(C1)])
    expire(ledger)
    acquire(ledger, owner="host:2")
    late = judged(attempt, C1, Winner.B)
    with pytest.raises(LeaseLostError):
        held.record([late])
    before = rows(ledger)
    ledger.record_orphan("b1", C1, reason="late", source="lease_lost", **orphan_details(late, held.epoch))
    after = rows(ledger)
    assert len(after.pop("orphan_results")) == 1
    before.pop("orphan_results")
    assert after == before
    (orphan,) = ledger.orphan_results("b1")
    assert (orphan["attempt_id"], orphan["lease_epoch"], orphan["winner"], orphan["cost_usd"]) == (
        attempt,
        1,
        "b",
        0.25,
    )


def test_leaving_a_block_whose_lease_was_taken_neither_fails_nor_frees_it(ledger):
    submit(ledger)
    with acquire(ledger):
        expire(ledger)
        successor = acquire(ledger, owner="host:2")
        successor.plan_wave(wave_plan())
    assert ledger.batch("b1").lease_owner == "host:2"
    successor.renew()


RACER = """
import sys
from cj_pipeline.ledger import BatchBusyError, Lease, Ledger
ledger = Ledger.open(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    batch_id = line.strip()
    try:
        print(Lease.acquire(ledger, batch_id, owner=sys.argv[2], seconds=60).epoch, flush=True)
    except BatchBusyError as error:
        print(f"busy: {error}", flush=True)
ledger.close()
"""


def test_of_processes_that_race_for_a_lease_exactly_one_wins(ledger, ledger_url):
    names = [f"b{number}" for number in range(10)]
    for name in names:
        submit(ledger, name)
        # half of them were abandoned by a process that died
        acquire(ledger, name, owner="dead:1") if int(name[1:]) % 2 else None
        update_batch(ledger, name, lease_expires_at=0.0)
    owners = ["racer:1", "racer:2"]
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, ledger_url, owner],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for owner in owners
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for name in names:
        for racer in racers:
            racer.stdin.write(f"{name}\n")
            racer.stdin.flush()
        answers = [racer.stdout.readline().strip() for racer in racers]
        won = [owner for owner, answer in zip(owners, answers, strict=True) if answer.isdigit()]
        assert len(won) == 1, answers
        record = ledger.batch(name)
        assert [record.lease_owner] == won
        assert record.lease_epoch == (2 if int(name[1:]) % 2 else 1)
        assert any(answer.startswith(f"busy: batch {name} is being written by {won[0]}") for answer in answers)
    assert [(*racer.communicate(timeout=30), racer.returncode) for racer in racers] == [("", "", 0)] * 2


# --- planning: the budget is a wall ----------------------------------------------------------------------------------


def test_a_planned_wave_is_in_the_ledger_before_anything_is_sent(held, ledger):
    assert ledger.batch("b1").status is BatchStatus.JUDGING
    found = ledger.comparisons("b1")
    assert [(c.comparison_id, c.essay_a, c.essay_b) for c in found] == [
        (C1, "s1", "s2"),
        (C2, "s1", "s3"),
        (C3, "s1", "s4"),
        (C4, "s2", "s3"),
    ]
    assert all(c.status is ComparisonStatus.PLANNED and c.wave == 1 for c in found)
    assert (ledger.state("b1").submitted, ledger.state("b1").pending) == (4, 4)
    (wave,) = ledger.waves("b1")
    assert (wave.wave, wave.cut_by_budget, wave.ended_at, wave.scores) == (1, False, None, None)


def test_a_plan_may_spend_the_budget_and_not_one_comparison_more(ledger):
    submit(ledger, total_budget=5)
    lease = acquire(ledger)
    lease.plan_wave(wave_plan(1, all_pairs(4)[:3]))
    before = rows(ledger)
    with pytest.raises(BudgetExceededError, match="b1: 3 more comparisons after 3 would exceed the budget of 5"):
        lease.plan_wave(wave_plan(2, all_pairs(4)[:3]))
    assert rows(ledger) == before
    lease.plan_wave(wave_plan(2, all_pairs(4)[:2]))
    with pytest.raises(BudgetExceededError):
        lease.plan_wave(wave_plan(3, all_pairs(4)[:1]))
    assert ledger.state("b1").submitted == 5


def test_a_batch_without_a_budget_plans_nothing(ledger):
    submit(ledger)
    update_batch(ledger, total_budget=None)
    with pytest.raises(BudgetExceededError, match="budget of None"):
        acquire(ledger).plan_wave(wave_plan())
    assert ledger.comparisons("b1") == []


def test_failed_comparisons_stay_submitted_and_withdrawn_ones_leave_their_place(ledger):
    submit(ledger, total_budget=4)
    lease = acquire(ledger)
    lease.plan_wave(wave_plan(1, all_pairs(4)[:4]))
    (attempt,) = lease.record([start(C1)])
    lease.record([failed(attempt, C1, final=True)])
    assert lease.stop_wave(1) == 3
    assert (ledger.state("b1").submitted, ledger.state("b1").failed) == (1, 1)
    with pytest.raises(BudgetExceededError):
        lease.plan_wave(wave_plan(2, all_pairs(4)[:4]))
    lease.plan_wave(wave_plan(2, all_pairs(4)[:3]))
    assert ledger.state("b1").submitted == 4


def test_a_wave_is_planned_whole_or_not_at_all(held, ledger):
    before = rows(ledger)
    with pytest.raises(sa.exc.IntegrityError):
        held.plan_wave(wave_plan(2, [("s1", "s2"), ("s3", "nobody")]))
    with pytest.raises(sa.exc.IntegrityError):
        held.plan_wave(wave_plan(1, [("s1", "s2")]))
    assert rows(ledger) == before


def test_planning_lifts_a_wait(ledger):
    submit(ledger)
    lease = acquire(ledger)
    lease.wait_until(datetime.now(UTC) + timedelta(hours=1))
    assert ledger.batch("b1").not_before is not None
    lease.plan_wave(wave_plan())
    assert ledger.batch("b1").not_before is None


def test_of_two_plans_made_at_once_that_fit_only_alone_one_is_refused(open_ledger):
    ledgers = [open_ledger() for _ in range(2)]
    for name in (f"b{number}" for number in range(8)):
        submit(ledgers[0], name, total_budget=10)
        lease = acquire(ledgers[0], name)
        # the same holder, at work in two places
        leases = [lease, Lease(ledgers[1], name, lease.owner, lease.epoch, lease.seconds)]
        plans = [wave_plan(number, all_pairs(4)) for number in (1, 2)]
        done = at_once([lambda h=holder, p=plan: h.plan_wave(p) for holder, plan in zip(leases, plans, strict=True)])
        assert sorted(type(result).__name__ for result in done) == ["BudgetExceededError", "NoneType"]
        assert ledgers[0].state(name).submitted == 6


def test_the_budget_holds_when_the_lease_changes_hands_while_both_plan(open_ledger):
    old, new, reader = open_ledger(), open_ledger(), open_ledger()
    submit(old, total_budget=40)
    first = acquire(old)
    planned = {"old": 0, "new": 0}
    stopped_by = {}

    def plan_on(name, ledger, lease):
        number = len(ledger.waves("b1"))
        try:
            while True:
                number += 1
                lease.plan_wave(wave_plan(number, all_pairs(4)[:2]))
                planned[name] += 1
        except (LeaseLostError, BudgetExceededError) as error:
            stopped_by[name] = type(error)

    thread = threading.Thread(target=plan_on, args=("old", old, first))
    thread.start()
    while planned["old"] < 3 and thread.is_alive():
        time.sleep(0.001)
    expire(new)
    second = acquire(new, owner="host:2")
    plan_on("new", new, second)
    thread.join(30)
    assert reader.state("b1").submitted == 40 == 2 * (planned["old"] + planned["new"])
    assert stopped_by["new"] is BudgetExceededError
    assert stopped_by["old"] in (LeaseLostError, BudgetExceededError)
    with pytest.raises(LeaseLostError):
        first.plan_wave(wave_plan(99))


# --- recording: plan before pay, pay once ----------------------------------------------------------------------------


def test_a_call_is_recorded_before_it_is_made(held, ledger):
    (attempt,) = held.record([start(C1, bundle_id="bundle-1")])
    (found,) = attempts(ledger)
    assert (found.attempt_id, found.comparison_id, found.number, found.lease_epoch) == (attempt, C1, 1, 1)
    assert (found.bundle_id, found.fence_marker, found.queued_at) == ("bundle-1", "fence", QUEUED_AT)
    assert (found.outcome, found.finished_at, found.upper_bound_usd, found.cost_usd) == (None, None, 0.5, None)
    assert ledger.attempt_counts("b1") == {"open": 1}
    assert statuses(ledger)[0] == "planned"


def test_an_answer_is_recorded_with_all_it_brought(held, ledger):
    (attempt,) = held.record([start(C1)])
    tokens = TokenCounts(input=1000, cache_read=800, cache_write=50, output=40, reasoning=30)
    held.record([judged(attempt, C1, Winner.B, tokens=tokens, http_status=200)])
    comparison = ledger.comparisons("b1")[0]
    assert (comparison.winner, comparison.winner_id, comparison.confidence) == (Winner.B, "s2", 4)
    (found,) = attempts(ledger)
    assert (found.outcome, found.error_type, found.http_status, found.request_id) == ("judged", None, 200, "req-1")
    counted = (found.tokens_input, found.tokens_cache_read, found.tokens_cache_write)
    assert counted == (1000, 800, 50)
    assert (found.tokens_output, found.tokens_reasoning) == (40, 30)
    assert (found.latency_seconds, found.cost_usd) == (0.1, 0.25)
    record = ledger.comparison_records("b1")[0]
    assert (record.justification, record.provider, record.model) == ("It is clearer.", "simulated", "cj-generic")
    assert record.submitted_at <= record.completed_at


def test_a_failed_call_fails_its_comparison_only_if_it_was_the_last(held, ledger):
    one, two = held.record([start(C1), start(C2)])
    held.record([failed(one, C1, final=False), failed(two, C2, final=True)])
    first, second, *_ = ledger.comparison_records("b1")
    assert (first.status, first.error_type, first.completed_at) == ("planned", None, None)
    assert (second.status, second.error_type) == ("failed", "malformed")
    assert second.completed_at is not None
    assert [comparison.winner for comparison in ledger.comparisons("b1")] == [None] * 4


def test_many_operations_are_committed_together_and_answered_in_order(held, ledger):
    one, two = held.record([start(C1), start(C2)])
    ids = held.record([judged(two, C2), start(C3), judged(one, C1)])
    assert ids[0] == two
    assert ids[2] == one
    assert [a.comparison_id for a in attempts(ledger) if a.attempt_id == ids[1]] == [C3]
    assert statuses(ledger) == ["judged", "judged", "planned", "planned"]


@pytest.mark.parametrize(
    "bad",
    [
        lambda _open: start(C2),
        lambda _open: start("unknown"),
        lambda attempt: judged(attempt, C2, confidence=6),
        lambda _open: start(C3, number=0),
    ],
    ids=["a second open call", "an unknown comparison", "an impossible confidence", "an impossible number"],
)
def test_a_group_with_one_bad_operation_is_not_committed_at_all(held, ledger, bad):
    one, two = held.record([start(C1), start(C2)])
    before = rows(ledger)
    for group in ([judged(one, C1), start(C4), bad(two)], [bad(two), judged(one, C1), start(C4)]):
        with pytest.raises(sa.exc.IntegrityError):
            held.record(group)
        assert rows(ledger) == before
    held.record([judged(one, C1), start(C4)])
    assert statuses(ledger)[0] == "judged"


def but_orphans(ledger):
    """Every row of every table but the orphan results; and those, in short."""
    found = rows(ledger)
    del found["orphan_results"]
    short = [(o["comparison_id"], o["attempt_id"], o["reason"], o["winner"]) for o in ledger.orphan_results("b1")]
    return found, short


def test_an_answer_counts_once_and_what_comes_again_is_kept_as_an_orphan(held, ledger):
    (attempt,) = held.record([start(C1)])
    held.record([judged(attempt, C1, Winner.A)])
    before, _ = but_orphans(ledger)
    assert held.record([judged(attempt, C1, Winner.B), failed(attempt, C1, final=True)]) == [attempt, attempt]
    after, orphans = but_orphans(ledger)
    assert after == before
    assert orphans == [(C1, attempt, "duplicate", "b"), (C1, attempt, "duplicate", None)]
    assert ledger.cost_usd("b1") == 0.25


def test_a_second_answer_to_a_call_that_failed_judges_nothing(held, ledger):
    (attempt,) = held.record([start(C1)])
    held.record([failed(attempt, C1, final=False)])
    before, _ = but_orphans(ledger)
    held.record([judged(attempt, C1)])
    held.record([failed(attempt, C1, final=True)])
    after, orphans = but_orphans(ledger)
    assert after == before
    assert len(orphans) == 2


def test_an_answer_to_another_comparison_than_the_calls_judges_nothing(held, ledger):
    (attempt,) = held.record([start(C1)])
    before, _ = but_orphans(ledger)
    held.record([judged(attempt, C2)])
    after, orphans = but_orphans(ledger)
    assert after == before
    assert [comparison_id for comparison_id, *_ in orphans] == [C2]


# --- ending a wave ---------------------------------------------------------------------------------------------------


def test_a_refused_wave_withdraws_what_was_never_sent_and_fails_what_was(held, ledger):
    one, two = held.record([start(C1), start(C2)])
    held.record([judged(one, C1), failed(two, C2, final=False, error_type="provider_rejected")])
    assert held.stop_wave(1, provider_rejected=True) == 2
    assert statuses(ledger) == ["judged", "failed", "withdrawn", "withdrawn"]
    assert ledger.comparison_records("b1")[1].error_type == "provider_rejected"
    state = ledger.state("b1")
    assert (state.submitted, state.judged, state.failed, state.pending) == (2, 1, 1, 0)
    assert state.provider_rejected
    assert ledger.waves("b1")[0].provider_rejected


def test_a_wave_does_not_end_while_a_comparison_is_pending(held, ledger):
    calls = held.record([start(C1), start(C2), start(C3)])
    held.record([judged(call, name) for call, name in zip(calls, (C1, C2, C3), strict=True)])
    before = rows(ledger)
    for end in (wave_end(), wave_end(status=BatchStatus.COMPLETE_STABLE)):
        with pytest.raises(PendingComparisonsError, match="batch b1: 1 comparisons still wait for an answer"):
            held.end_wave(end)
    assert rows(ledger) == before


def test_a_wave_that_ends_keeps_what_was_known_and_decided_and_leaves_the_batch_open(held, ledger):
    held.stop_wave(1)
    held.end_wave(wave_end())
    (wave,) = ledger.waves("b1")
    assert (wave.callbacks, wave.max_score_change, wave.mean_se, wave.max_se) == (2, 0.25, 0.5, 0.75)
    assert (wave.scores, wave.ses) == ({"s1": 0.5, "s2": -0.5}, {"s1": 0.7, "s2": 0.7})
    assert (wave.decision, wave.reason) == ("REQUEST_MORE_COMPARISONS", "coverage")
    assert wave.started_at < wave.ended_at
    record = ledger.batch("b1")
    assert (record.status, record.completed_at, record.stop_reason) == (BatchStatus.JUDGING, None, None)
    assert record.processing_metadata == {"prior_sd": 1.5}


def test_scores_come_back_to_the_last_bit(held, ledger):
    scores = {"s1": 0.1 + 0.2, "s2": -1e-17, "s3": 1 / 3, "s4": -123.456}
    held.stop_wave(1)
    held.end_wave(wave_end(scores=scores, max_score_change=1 / 3))
    assert ledger.waves("b1")[0].scores == scores
    assert ledger.state("b1").max_score_change == 1 / 3


def test_a_final_decision_ends_the_batch_with_its_wave(held, ledger):
    held.stop_wave(1)
    ledger.hold("b1", "a moment")
    held.end_wave(wave_end(status=BatchStatus.COMPLETE_STABLE, metadata={"flags": {"x": True}}))
    record = ledger.batch("b1")
    assert (record.status, record.stop_reason) == (BatchStatus.COMPLETE_STABLE, "stable")
    assert abs(record.completed_at - datetime.now(UTC)) < timedelta(seconds=10)
    assert record.hold_reason is None
    assert ledger.events("b1")[-1]["detail"] == "COMPLETE_STABLE: stable"
    assert ledger.waves("b1")[0].decision == "FINALIZE_SCORING"


def test_metadata_of_later_waves_is_laid_over_that_of_earlier_ones(held, ledger):
    held.stop_wave(1)
    held.end_wave(wave_end(metadata={"old": 1, "both": 1}))
    held.plan_wave(wave_plan(2))
    held.stop_wave(2)
    held.end_wave(wave_end(2, metadata={"both": 2, "new": 2}))
    assert ledger.batch("b1").processing_metadata == {"old": 1, "both": 2, "new": 2}


# --- ending a batch --------------------------------------------------------------------------------------------------


def test_finalising_settles_what_is_pending_first(held, ledger):
    one, two, _three = held.record([start(C1), start(C2), start(C3)])
    held.record([judged(one, C1), failed(two, C2, final=False, error_type="timeout")])
    held.finalise(BatchStatus.CANCELLED, "cancelled", {"by": "a person"})
    found = [(c.status, c.error_type) for c in ledger.comparison_records("b1")]
    assert found == [("judged", None), ("failed", "timeout"), ("failed", "lost"), ("withdrawn", None)]
    assert [(a.outcome, a.cost_usd) for a in attempts(ledger)] == [("judged", 0.25), ("error", 0.125), ("lost", 0.5)]
    state = ledger.state("b1")
    assert (state.submitted, state.pending) == (3, 0)
    record = ledger.batch("b1")
    assert (record.status, record.stop_reason) == (BatchStatus.CANCELLED, "cancelled")
    assert record.processing_metadata == {"by": "a person"}
    assert record.completed_at is not None
    assert events(ledger)[-1] == "finalised"


@pytest.mark.parametrize("status", [status for status in BatchStatus if status.is_final])
def test_a_final_batch_is_neither_planned_nor_decided_again(ledger, status):
    submit(ledger, essays=(new_student("s1"), new_student("s2")))
    lease = acquire(ledger)
    lease.plan_wave(wave_plan(1, [("s1", "s2")]))
    lease.finalise(status, "the first reason")
    lease.release()
    # one that waited for the lease, and looked at the batch before it was final
    late = acquire(ledger, owner="host:2")
    before = rows(ledger)
    for write in (
        lambda: late.plan_wave(wave_plan(2, [("s1", "s2")])),
        lambda: late.end_wave(wave_end(status=BatchStatus.COMPLETE_SMALL_NET)),
        lambda: late.finalise(BatchStatus.COMPLETE_FORCED_RECOVERY, "timeout_recovered"),
    ):
        with pytest.raises(BatchEndedError, match=f"batch b1 is {status.value} already"):
            write()
    assert rows(ledger) == before


# --- publishing, waiting, holding ------------------------------------------------------------------------------------


def test_publishing_an_unfinished_batch_notes_what_it_was_based_on_and_leaves_it_open(held, ledger):
    held.mark_published(3)
    record = ledger.batch("b1")
    assert (record.published_as_of, record.published_at) == (3, None)
    assert [batch.batch_id for batch in ledger.open_batches()] == ["b1"]


def test_publishing_a_final_batch_ends_its_work(held, ledger):
    held.finalise(BatchStatus.COMPLETE_STABLE, "stable")
    held.mark_published(4)
    record = ledger.batch("b1")
    assert record.published_as_of == 4
    assert abs(record.published_at - datetime.now(UTC)) < timedelta(seconds=10)
    assert ledger.open_batches() == []
    assert ledger.events("b1")[-1]["detail"] == "based on 4 judgments"


def test_a_holder_sees_a_hold_and_its_end_at_its_next_look(held, ledger):
    ledger.hold("b1", "pause")
    assert not held.held_back
    held.renew()
    assert held.held_back
    ledger.resume("b1")
    held.renew()
    assert not held.held_back


def test_the_state_under_the_lease_is_the_ledgers(held, ledger):
    (attempt,) = held.record([start(C1)])
    held.record([judged(attempt, C1)])
    assert held.state() == ledger.state("b1")
    assert held.state().judged == 1
