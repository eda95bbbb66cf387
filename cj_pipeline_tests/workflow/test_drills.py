"""Crash drills: real processes, killed, interrupted, stopped and continued at any moment, lose and repeat nothing."""

import contextlib
import multiprocessing
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from cj_pipeline.ledger import Ledger
from cj_pipeline_tests.workflow.advance_process import advance_in_process
from cj_pipeline_tests.workflow.scenes import (
    advance,
    attempts_by_comparison,
    history,
    record,
    submit,
    wait_for,
)

on_sqlite = pytest.mark.parametrize("database", ["sqlite"])
PATIENCE_SECONDS = 60.0
IMPORTED_ON_FIRST_USE = ("psycopg2", "scipy.linalg", "scipy.sparse.csgraph", "sqlalchemy.dialects.postgresql.psycopg2")
"""Half a second of imports, or moments of death would seldom hit a call."""


class Worker:
    """A process at work on the batch."""

    def __init__(self, url: str, *, mean_seconds: float, wait: float, **setting: float) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([advance_in_process.__module__, *IMPORTED_ON_FIRST_USE])
        self._told, telling = context.Pipe(duplex=False)
        arguments = {"mean_seconds": mean_seconds, "wait": wait, "setting": setting}
        self._process = context.Process(target=advance_in_process, args=(telling, url), kwargs=arguments)
        self._process.start()
        telling.close()
        assert self._hears() == "at work"

    def signal(self, number: signal.Signals) -> None:
        if self._process.exitcode is None:
            os.kill(self._process.pid, number)

    def end(self) -> str | None:
        """How the process ended; None if it was killed."""
        found = self._hears()
        self._process.join(PATIENCE_SECONDS)
        return found

    def kill(self) -> str | None:
        self.signal(signal.SIGKILL)
        return self.end()

    def _hears(self) -> str | None:
        if not self._told.poll(PATIENCE_SECONDS):
            raise TimeoutError("the process neither works nor ends")
        try:
            return self._told.recv()
        except EOFError:
            return None


StartWorker = Callable[..., Worker]


@pytest.fixture
def start_worker(ledger_url: str) -> Iterator[StartWorker]:
    """Starts processes on the ledger of the test; none outlives it."""
    workers: list[Worker] = []

    def start(*, mean_seconds: float = 0.05, wait: float = 20.0, lease_seconds: float = 0.4) -> Worker:
        workers.append(Worker(ledger_url, mean_seconds=mean_seconds, wait=wait, lease_seconds=lease_seconds))
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()


@pytest.fixture
def uninterrupted(tmp_path) -> Iterator[Callable[..., Ledger]]:
    """Runs the same batch on a ledger of its own, in one go and without latency."""
    with contextlib.ExitStack() as stack:

        def run(**batch: int) -> Ledger:
            ledger = Ledger.open(f"sqlite:///{tmp_path / 'uninterrupted.sqlite'}")
            stack.callback(ledger.close)
            submit(ledger, **batch)
            advance(ledger)
            return ledger

        yield run


def check_same_record_and_nothing_bought_twice(ledger: Ledger, undisturbed: Ledger, *, lost: int) -> None:
    assert record(ledger) == record(undisturbed)
    assert history(ledger) == history(undisturbed)
    assert ledger.batch("b").status is undisturbed.batch("b").status
    state = ledger.state("b")
    assert state.pending == 0
    assert state.submitted == state.judged <= state.total_budget
    outcomes = [[call["outcome"] for call in calls] for calls in attempts_by_comparison(ledger).values()]
    assert all(found == [*["lost"] * (len(found) - 1), "judged"] for found in outcomes)
    assert ledger.attempt_counts("b").get("lost", 0) == lost


def kill_and_resume(
    start: StartWorker, ledger: Ledger, *, kills: int, seed: int, concurrency: int, longest: float
) -> list[int]:
    """Kill -9 at `kills` random moments, each second one amid calls, then let a process finish; calls in flight."""
    moments, in_flight = random.Random(seed), []
    while len(in_flight) < kills:
        epoch = ledger.batch("b").lease_epoch
        worker = start()
        wait_for(lambda epoch=epoch: ledger.batch("b").lease_epoch > epoch)
        if len(in_flight) % 2:
            wait_for(lambda: ledger.attempt_counts("b").get("open", 0) > 1)  # not only between waves
            time.sleep(moments.uniform(0, 0.02))
        else:
            time.sleep(moments.uniform(0, longest))
        ended = worker.kill()
        assert ended is None, f"the batch was {ended} after {len(in_flight)} kills: make it longer"
        in_flight.append(ledger.attempt_counts("b").get("open", 0))
        assert in_flight[-1] <= concurrency
        assert ledger.state("b").submitted <= ledger.state("b").total_budget
    assert start().end() == "final"
    return in_flight


@pytest.mark.slow
@on_sqlite
def test_a_batch_killed_at_four_random_moments_has_the_record_of_an_undisturbed_one(
    ledger, start_worker, uninterrupted
):
    batch = {"max_comparisons": 96, "judge_concurrency": 4}
    submit(ledger, **batch)
    in_flight = kill_and_resume(start_worker, ledger, kills=4, seed=4, concurrency=4, longest=0.25)
    assert sum(in_flight) > 0, "no kill hit a call: choose other moments"
    check_same_record_and_nothing_bought_twice(ledger, uninterrupted(**batch), lost=sum(in_flight))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_batch_killed_at_twenty_random_moments_has_the_record_of_an_undisturbed_one(
    ledger, start_worker, uninterrupted, seed
):
    batch = {"max_comparisons": 400, "judge_concurrency": 4, "score_stability_threshold": 0}
    submit(ledger, **batch)
    in_flight = kill_and_resume(start_worker, ledger, kills=20, seed=seed, concurrency=4, longest=0.4)
    assert sum(map(bool, in_flight)) >= 5, "too few kills hit a call: choose other moments"
    print(f"\n{in_flight} in flight at the kills, {ledger.attempt_counts('b')}")
    check_same_record_and_nothing_bought_twice(ledger, uninterrupted(**batch), lost=sum(in_flight))


@pytest.mark.slow
@on_sqlite
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_an_interrupted_process_collects_what_is_in_flight_and_loses_nothing(
    ledger, start_worker, uninterrupted, number
):
    batch = {"max_comparisons": 96, "judge_concurrency": 4}
    submit(ledger, **batch)
    moments = random.Random(int(number))
    ended = []
    for _ in range(2):
        worker = start_worker()
        time.sleep(moments.uniform(0.05, 0.3))
        worker.signal(number)
        ended.append(worker.end())
        assert set(ledger.attempt_counts("b")) <= {"judged"}
    assert ended == ["KeyboardInterrupt"] * 2
    assert 0 < ledger.state("b").judged < 96
    assert start_worker().end() == "final"
    check_same_record_and_nothing_bought_twice(ledger, uninterrupted(**batch), lost=0)


@on_sqlite
def test_of_two_processes_at_once_one_is_refused_and_the_other_finishes(ledger, start_worker, uninterrupted):
    batch = {"max_comparisons": 96, "judge_concurrency": 4}
    submit(ledger, **batch)
    workers = [start_worker(wait=0.0, lease_seconds=5.0) for _ in range(2)]
    assert sorted(worker.end() for worker in workers) == ["BatchBusyError", "final"]
    check_same_record_and_nothing_bought_twice(ledger, uninterrupted(**batch), lost=0)


@pytest.mark.slow
def test_a_holder_stopped_past_its_lease_is_taken_over_and_changes_nothing_when_it_goes_on(
    ledger, start_worker, uninterrupted
):
    batch = {"max_comparisons": 96, "judge_concurrency": 4}
    submit(ledger, **batch)
    first = start_worker(lease_seconds=1.0)
    wait_for(lambda: ledger.state("b").judged >= 30)
    in_flight = stop_outside_transactions(first, ledger)

    second = start_worker(lease_seconds=1.0)
    wait_for(lambda: ledger.batch("b").lease_epoch == 2)
    taken_over_at = ledger.state("b").judged
    wait_for(lambda: ledger.state("b").judged >= taken_over_at + 4)
    first.signal(signal.SIGCONT)  # in the middle of the other's work
    assert first.end() == "LeaseLostError"
    assert second.end() == "final"

    check_same_record_and_nothing_bought_twice(ledger, uninterrupted(**batch), lost=in_flight)
    orphans = ledger.orphan_results("b")
    assert 1 <= len(orphans) <= in_flight
    lost = {call["attempt_id"] for calls in attempts_by_comparison(ledger).values() for call in calls[:-1]}
    assert {orphan["attempt_id"] for orphan in orphans} <= lost
    assert {(o["reason"], o["source"], o["lease_epoch"]) for o in orphans} == {("late", "lease_lost", 1)}
    assert [event["event"] for event in ledger.events("b")] == ["submitted", "taken_over", "finalised"]


def stop_outside_transactions(worker: Worker, ledger: Ledger) -> int:
    """SIGSTOP the worker while calls are in flight and it keeps no lock in the database; how many are in flight."""
    for _ in range(200):
        worker.signal(signal.SIGSTOP)
        time.sleep(0.01)
        open_calls = ledger.attempt_counts("b").get("open", 0)
        if open_calls and not locked(ledger):
            return open_calls
        worker.signal(signal.SIGCONT)
        time.sleep(0.02)
    raise TimeoutError("the worker was never stopped with calls in flight and without a lock")


def locked(ledger: Ledger) -> bool:
    try:
        if ledger.engine.dialect.name == "sqlite":
            with contextlib.closing(sqlite3.connect(ledger.engine.url.database, timeout=0)) as connection:
                connection.execute("BEGIN IMMEDIATE")
        else:
            with ledger.engine.connect() as connection:
                connection.execute(sa.text("SELECT 1 FROM batches FOR UPDATE NOWAIT"))
    except (sqlite3.OperationalError, OperationalError):
        return True
    return False
