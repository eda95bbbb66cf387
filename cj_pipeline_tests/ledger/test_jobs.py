"""Provider batch jobs and money in the ledger: what is recorded before sending, what survives, what is refused."""

import math

import pytest

from cj_pipeline.core.models import BatchStatus, Winner
from cj_pipeline.ledger import CostExceededError, Lease, LeaseLostError
from cj_pipeline.ledger.ledger import JOB_LIFETIME, utc_now
from cj_pipeline.ledger.records import JobState, NewJob, OrphanResult
from cj_pipeline.settings import BatchTunables
from cj_pipeline_tests.builders import acquire, all_pairs, failed, judged, start, submit, update_batch, wave_plan

IDS = [f"w00001-c{number:05d}" for number in range(1, 5)]


def job(key="job-1", ids=IDS, **changes):
    return NewJob(key, 1, "openai", "gpt-5.1", tuple(start(i, bundle_id=key, **changes) for i in ids))


@pytest.fixture
def held(ledger):
    submit(ledger)
    lease = acquire(ledger)
    lease.plan_wave(wave_plan(1, all_pairs(4)[:4]))
    return lease


def outcomes(ledger):
    return [attempt.outcome for attempt in ledger.attempts("b1")]


def test_a_job_and_all_its_calls_are_recorded_together_before_it_is_sent(ledger, held):
    ids = held.open_job(job())
    (record,) = ledger.jobs_out("b1")
    assert (record.status, record.items, record.provider_job_id) == (JobState.SUBMITTING, 4, None)
    assert [attempt.attempt_id for attempt in ledger.attempts("b1")] == ids
    assert {attempt.bundle_id for attempt in ledger.attempts("b1")} == {"job-1"}


def test_the_calls_of_a_job_that_is_out_outlive_the_process_that_sent_it(ledger, held):
    held.open_job(job())
    held.release()
    lease = acquire(ledger, owner="host:2")
    assert outcomes(ledger) == [None] * 4
    lease.job_accepted("job-1", "batch_abc", None)
    lease.release()
    acquire(ledger, owner="host:3")
    assert outcomes(ledger) == [None] * 4
    assert ledger.jobs_out("b1")[0].provider_job_id == "batch_abc"


def test_a_call_outside_of_the_job_is_lost_with_its_process_all_the_same(ledger, held):
    held.open_job(job(ids=IDS[:3]))
    held.record([start(IDS[3], bundle_id="w00001-b0001-e1")])
    held.release()
    assert outcomes(ledger) == [None, None, None, "lost"]


def test_results_are_taken_all_at_once_and_what_they_leave_open_is_lost(ledger, held):
    a, b, c, _ = held.open_job(job())
    held.job_accepted("job-1", "batch_abc", None)
    orphans = [OrphanResult("elsewhere", "unknown", winner="a", cost_usd=0.25), OrphanResult(IDS[0], "duplicate")]
    ends = [judged(a, IDS[0], Winner.B), failed(b, IDS[1], final=True), failed(c, IDS[2], final=False)]
    held.close_job("job-1", JobState.COMPLETED, ends, orphans, ended_at=utc_now())
    assert outcomes(ledger) == ["judged", "error", "error", "lost"]
    assert ledger.jobs_out("b1") == []
    assert [row["reason"] for row in ledger.orphan_results("b1")] == ["unknown", "duplicate"]
    assert {row["source"] for row in ledger.orphan_results("b1")} == {"provider_job"}
    state = ledger.state("b1")
    assert (state.judged, state.failed, state.pending) == (1, 1, 2)


def test_whoever_lost_the_lease_can_neither_open_nor_close_a_job(ledger, held):
    held.open_job(job())
    update_batch(ledger, lease_expires_at=0.0)
    acquire(ledger, owner="host:2")
    for write in (lambda: held.open_job(job("job-2")), lambda: held.close_job("job-1", JobState.COMPLETED, [])):
        with pytest.raises(LeaseLostError):
            write()
    assert [record.job_key for record in ledger.jobs_out("b1")] == ["job-1"]


def test_calls_of_a_job_that_was_not_accepted_count_as_neither_sent_nor_tried_nor_paid(ledger, held):
    ids = held.open_job(job())
    ends = [failed(a, i, final=False, made=False, cost_usd=0.0) for a, i in zip(ids, IDS, strict=True)]
    held.close_job("job-1", JobState.FAILED, ends, detail="the key is wrong")
    assert outcomes(ledger) == ["unsent"] * 4
    records = ledger.comparison_records("b1")
    assert {(r.attempts, r.failed_attempts, r.lost_attempts, r.cost_usd) for r in records} == {(0, 0, 0, 0.0)}
    assert held.stop_wave(1, provider_rejected=True) == 4
    state = ledger.state("b1")
    assert (state.submitted, state.failed, state.provider_rejected) == (0, 0, True)


def test_a_batch_that_ends_abandons_its_job_and_costs_it_at_its_bound(ledger, held):
    held.open_job(job())
    held.finalise(BatchStatus.CANCELLED, "cancelled")
    assert ledger.provider_jobs("b1")[0].status is JobState.ABANDONED
    assert outcomes(ledger) == ["lost"] * 4
    assert ledger.cost_usd("b1") == pytest.approx(2.0)


def test_a_batch_with_a_job_out_is_not_silent_until_the_job_must_have_ended(ledger, held):
    held.open_job(job())
    held.release()
    later = utc_now() + JOB_LIFETIME / 2
    update_batch(ledger, launched_at=utc_now())
    assert ledger.silent_batches(later) == []
    assert [record.batch_id for record in ledger.silent_batches(later + JOB_LIFETIME)] == ["b1"]


def test_a_batch_that_waits_is_launched_early_only_when_its_job_is_over(ledger, held):
    held.wait_until(utc_now() + JOB_LIFETIME, {"waiting_for": "a job"})
    held.release()
    assert ledger.claim_launch("b1") is None
    assert ledger.claim_launch("b1", job_over=True) == 1
    assert ledger.batch("b1").not_before is None
    assert ledger.batch("b1").processing_metadata["waiting_for"] == "a job"


def test_launches_that_were_asked_for_by_a_wait_never_put_a_batch_on_hold(ledger):
    submit(ledger)
    for launch in range(1, 9):
        lease = acquire(ledger)
        lease.wait_until(utc_now())
        lease.release()
        assert ledger.claim_launch("b1") == launch
    assert ledger.batch("b1").hold_reason is None


# --- money -----------------------------------------------------------------------------------------------------------


def limited(ledger, limit):
    submit(ledger, settings=BatchTunables(max_cost_usd=limit).model_dump())
    lease = acquire(ledger)
    lease.plan_wave(wave_plan(1, all_pairs(4)[:4]))
    return lease


def test_a_call_that_could_exceed_the_limit_is_not_recorded(ledger):
    lease = limited(ledger, 1.2)  # each call costs at most 0.5, and 0.25 once it is judged
    first, second = lease.record([start(IDS[0]), start(IDS[1])])
    with pytest.raises(CostExceededError, match=r"max_cost_usd 1\.2000"):
        lease.record([start(IDS[2])])
    assert len(ledger.attempts("b1")) == 2
    lease.record([judged(first, IDS[0])])
    assert lease.money_left() == pytest.approx(1.2 - 0.25 - 0.5)
    with pytest.raises(CostExceededError):
        lease.record([start(IDS[2])])
    lease.record([judged(second, IDS[1])])
    lease.record([start(IDS[2])])
    assert lease.money_left() == pytest.approx(0.2)


def test_a_job_that_could_exceed_the_limit_is_refused_whole(ledger):
    lease = limited(ledger, 1.9)
    with pytest.raises(CostExceededError):
        lease.open_job(job())
    assert (ledger.attempts("b1"), ledger.provider_jobs("b1")) == ([], [])
    lease.open_job(job(ids=IDS[:3]))


def test_lost_calls_count_at_their_bound_and_late_answers_at_their_cost(ledger):
    lease = limited(ledger, 10.0)
    lease.record([start(IDS[0])])
    lease.release()
    lease = acquire(ledger, owner="host:2")
    ledger.record_orphan("b1", "elsewhere", reason="unknown", source="provider_job", cost_usd=0.125)
    assert lease.money_left() == pytest.approx(10.0 - 0.5 - 0.125)


def test_a_batch_without_a_limit_has_no_end_to_its_money(ledger, held):
    assert held.money_left() is None
    held.record([start(IDS[0], upper_bound_usd=math.inf)])


def test_a_wave_stopped_for_money_says_so_in_the_state(ledger, held):
    assert held.stop_wave(1, cost_stopped=True) == 4
    state = ledger.state("b1")
    assert (state.cost_spent, state.provider_rejected) == (True, False)


def test_a_lease_taken_over_keeps_the_job_key_of_its_calls(ledger, held):
    held.open_job(job())
    update_batch(ledger, lease_expires_at=0.0)
    lease = Lease.acquire(ledger, "b1", owner="host:9", seconds=30)
    lease.close_job("job-1", JobState.ABSENT, [])
    assert outcomes(ledger) == ["lost"] * 4
