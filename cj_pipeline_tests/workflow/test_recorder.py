"""The recorder: many answers in one commit, none of them hostage to another, to a cancelled task or to a lost lease."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from cj_pipeline.core.models import Winner
from cj_pipeline.ledger import Lease, LeaseLostError
from cj_pipeline.workflow.recorder import Recorder
from cj_pipeline_tests import builders
from cj_pipeline_tests.workflow.scenes import attempts

SECRET = "He quotes: my quokka met a heron."


@pytest.fixture
def lease(ledger):
    """The lease of batch `b1`, whose one wave compares all 45 pairs of ten students."""
    ledger.submit_batch(builders.new_batch(students=10, total_budget=50))
    lease = Lease.acquire(ledger, "b1", owner="me", seconds=30)
    lease.plan_wave(builders.wave_plan(pairs=builders.all_pairs(10)))
    return lease


def ids(count: int) -> list[str]:
    return [f"w00001-c{number:05d}" for number in range(1, count + 1)]


@contextmanager
def counted_commits(ledger) -> Iterator[list[str]]:
    commits: list[str] = []

    def count(_connection: sa.Connection) -> None:
        commits.append("commit")

    sa.event.listen(ledger.engine, "commit", count)
    yield commits
    sa.event.remove(ledger.engine, "commit", count)


async def commit_together(ledger, lease, operations) -> list[int | BaseException]:
    """Commit what is waiting already when the recorder's thread begins."""
    recorder = Recorder(ledger, lease)
    tasks = [asyncio.create_task(recorder.commit(operation)) for operation in operations]
    await asyncio.sleep(0)
    with recorder:
        return await asyncio.gather(*tasks, return_exceptions=True)


def start_all(ledger, lease, count: int) -> list[int]:
    return asyncio.run(commit_together(ledger, lease, [builders.start(c) for c in ids(count)]))


def test_everything_that_waits_is_committed_in_one_transaction(ledger, lease):
    with counted_commits(ledger) as commits:
        numbers = start_all(ledger, lease, 45)
    assert len(commits) == 1
    assert [(a["attempt_id"], a["comparison_id"]) for a in attempts(ledger, "b1")] == list(
        zip(numbers, ids(45), strict=True)
    )


def test_answers_that_come_during_a_commit_share_the_next_one(ledger, lease):
    numbers = start_all(ledger, lease, 45)

    async def answer_as_they_come() -> None:
        with Recorder(ledger, lease) as recorder:
            ends = [builders.judged(n, c) for n, c in zip(numbers, ids(45), strict=True)]
            await asyncio.gather(*(recorder.commit(end) for end in ends))

    with counted_commits(ledger) as commits:
        asyncio.run(answer_as_they_come())
    assert 1 <= len(commits) <= 15
    assert ledger.attempt_counts("b1") == {"judged": 45}


def test_a_commit_is_in_the_ledger_when_its_wait_is_over(ledger, lease):
    async def commit_and_look() -> None:
        with Recorder(ledger, lease) as recorder:
            for comparison_id in ids(3):
                number = await recorder.commit(builders.start(comparison_id))
                assert attempts(ledger, "b1")[-1]["attempt_id"] == number
                assert await recorder.commit(builders.judged(number, comparison_id)) == number
                assert attempts(ledger, "b1")[-1]["outcome"] == "judged"

    asyncio.run(commit_and_look())


def test_an_operation_that_cannot_be_recorded_does_not_take_others_with_it(ledger, lease):
    numbers = start_all(ledger, lease, 5)
    ends = [builders.judged(n, c) for n, c in zip(numbers, ids(5), strict=True)]
    ends[2] = builders.judged(numbers[2], ids(5)[2], confidence=9, justification=SECRET)
    results = asyncio.run(commit_together(ledger, lease, ends))
    error = results.pop(2)
    assert isinstance(error, IntegrityError)
    assert "quokka" not in f"{error} {error!r}"
    assert results == [numbers[0], numbers[1], numbers[3], numbers[4]]
    assert ledger.attempt_counts("b1") == {"judged": 4, "open": 1}
    assert [row.status for row in ledger.comparison_records("b1")][:5] == [
        *["judged"] * 2,
        "planned",
        *["judged"] * 2,
    ]


def take_over(ledger, lease) -> None:
    lease.release()
    Lease.acquire(ledger, "b1", owner="another", seconds=30)


def test_after_a_take_over_answers_become_orphans_with_their_cost_and_starts_become_nothing(ledger, lease):
    numbers = start_all(ledger, lease, 3)
    take_over(ledger, lease)
    operations = [
        builders.judged(numbers[0], ids(3)[0], Winner.B, request_id="req-7"),
        builders.failed(numbers[1], ids(3)[1], final=False),
        builders.start("w00001-c00009"),
    ]
    results = asyncio.run(commit_together(ledger, lease, operations))
    assert [type(result) for result in results] == [LeaseLostError] * 3
    kept = ("attempt_id", "comparison_id", "reason", "source", "lease_epoch", "winner", "error_type", "cost_usd")
    assert [tuple(orphan[name] for name in kept) for orphan in ledger.orphan_results("b1")] == [
        (numbers[0], "w00001-c00001", "late", "lease_lost", 1, "b", None, 0.25),
        (numbers[1], "w00001-c00002", "late", "lease_lost", 1, None, "malformed", 0.125),
    ]
    assert ledger.orphan_results("b1")[0]["request_id"] == "req-7"
    assert ledger.attempt_counts("b1") == {"lost": 3}
    assert {row.status for row in ledger.comparison_records("b1")} == {"planned"}


@pytest.mark.parametrize("database", ["sqlite"])
def test_slots_learn_of_a_lost_lease_even_if_their_answers_cannot_be_kept(ledger, lease):
    numbers = start_all(ledger, lease, 2)
    take_over(ledger, lease)
    with ledger.engine.connect().execution_options(cj_write=True) as connection, connection.begin():
        connection.exec_driver_sql("DROP TABLE orphan_results")
    ends = [builders.judged(n, c, justification=SECRET) for n, c in zip(numbers, ids(2), strict=True)]

    async def one_after_the_other() -> list[BaseException]:
        with Recorder(ledger, lease) as recorder:
            waits = [asyncio.wait_for(recorder.commit(end), timeout=10) for end in ends]
            return [(await asyncio.gather(wait, return_exceptions=True))[0] for wait in waits]

    errors = asyncio.run(one_after_the_other())
    assert [type(error) for error in errors] == [LeaseLostError] * 2
    assert "late answers could not be kept" in errors[0].__notes__[0]
    assert "quokka" not in errors[0].__notes__[0]


def test_an_answer_is_recorded_though_the_task_that_waits_for_it_is_cancelled(ledger, lease):
    [number] = start_all(ledger, lease, 1)

    async def commit_and_cancel() -> None:
        recorder = Recorder(ledger, lease)
        task = asyncio.create_task(recorder.commit(builders.judged(number, "w00001-c00001")))
        await asyncio.sleep(0)
        task.cancel()
        with recorder:
            pass
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(commit_and_cancel())
    assert ledger.attempt_counts("b1") == {"judged": 1}


def test_leaving_the_recorder_waits_for_what_is_still_to_be_written(ledger, lease):
    numbers = start_all(ledger, lease, 45)

    async def commit_without_waiting() -> None:
        with Recorder(ledger, lease) as recorder:
            ends = [builders.judged(n, c) for n, c in zip(numbers, ids(45), strict=True)]
            tasks = [asyncio.create_task(recorder.commit(end)) for end in ends]
            await asyncio.sleep(0)
        assert ledger.attempt_counts("b1") == {"judged": 45}
        await asyncio.gather(*tasks)

    asyncio.run(commit_without_waiting())
