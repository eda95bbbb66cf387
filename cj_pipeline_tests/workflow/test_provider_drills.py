"""Crash drills against a provider: real processes, killed with answers and jobs on their way, pay for nothing twice.

What reached the server is matched with what the ledger holds by the fence marker, which is random for every call.
"""

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import anthropic
import pytest

from cj_pipeline.core.models import BatchStatus
from cj_pipeline.ledger import Ledger
from cj_pipeline.ledger import tables as t
from cj_pipeline.ledger.engine import write_transaction
from cj_pipeline.ledger.records import JobState
from cj_pipeline.workflow.judging import sent_prompt
from cj_pipeline_tests.builders import update_batch
from cj_pipeline_tests.conftest import provider_environment
from cj_pipeline_tests.providers.essays import PairKey, by_strength, digest
from cj_pipeline_tests.providers.records import Call
from cj_pipeline_tests.providers.server import ProviderServer
from cj_pipeline_tests.providers.wire import Reply, Request
from cj_pipeline_tests.workflow import provider_process, scenes
from cj_pipeline_tests.workflow.scenes import wait_for

CLAUDE, GPT = "anthropic/claude-haiku-4-5", "openai/gpt-5.1"
MODES: dict[str, dict[str, str]] = {
    "calls": {"llm_batching_mode": "per_request"},
    "bundles": {"llm_batching_mode": "serial_bundle"},
    "job": {"llm_batching_mode": "provider_batch_api", "batch_api_mode": "opportunistic"},
}
CREATING = {CLAUDE: "/v1/messages/batches", GPT: "/v1/batches"}
CALLS_BEFORE_CREATION = {CLAUDE: 0, GPT: 1}
"""OpenAI takes the items as a file before the job."""

CALLS_FROM_POLL_TO_RESULTS = {CLAUDE: 2, GPT: 2}
"""The poll that finds a job over, and the SDK's or our question where its results are."""

ITEMS = 45
CONCURRENCY = 4
PATIENCE_SECONDS = 60.0
_MARKER = re.compile(r"\[BEGIN ESSAY A ([0-9a-f]{32})\]")

on_sqlite = pytest.mark.parametrize("database", ["sqlite"])
both_judges = pytest.mark.parametrize("judge", [CLAUDE, GPT])


# --- the server, and what reached it ---------------------------------------------------------------------------------


class Provider(ProviderServer):
    """A provider whose answers to the creation of a job can be kept back: the job is there, and nobody knows of it."""

    keeps_creations_back = False

    async def _handle(self, request: Request) -> Reply | None:
        reply = await super()._handle(request)
        while self.keeps_creations_back and request.method == "POST" and request.path.endswith("/batches"):
            await asyncio.sleep(0.005)
        return reply


@pytest.fixture
def server() -> Iterator[Provider]:
    with Provider(seed=1, latency=0.05) as server:
        yield server


def settled(server: Provider) -> None:
    """Wait until the server has answered every call to a model, whoever is still there to hear it."""
    wait_for(lambda: all(call.status is not None for call in server.model_calls))


def creations(server: Provider, judge: str) -> list[Call]:
    """The requests that made a job."""
    return [c for c in server.calls if (c.method, c.path, c.status) == ("POST", CREATING[judge], 200)]


def marker(call: Call) -> str:
    found = _MARKER.search(json.dumps(call.body))
    assert found is not None
    return found[1]


def look_at_jobs(server: Provider, judge: str) -> int:
    """Look at each of Anthropic's jobs, upon which this server ends it as time would; how many there are."""
    if judge != CLAUDE:
        return len(creations(server, judge))
    with anthropic.Anthropic(base_url=server.anthropic_url, api_key=server.api_key) as client:
        found = [client.messages.batches.retrieve(batch.id) for batch in client.messages.batches.list()]
    return len(found)


# --- processes -------------------------------------------------------------------------------------------------------


class Worker:
    """A process at work on the batch."""

    def __init__(self, told: Connection) -> None:
        self._told = told
        self._pid: int | None = None
        self._pid = self._hears()
        assert self._pid is not None, "the process died before it began: its last words are on standard error"

    def signal(self, number: signal.Signals) -> None:
        # the dead stay there until the fork server ends, so this hits no other process
        os.kill(self._pid, number)

    def end(self) -> str | None:
        """How the process ended; None if it was killed."""
        found = self._hears()
        if found is not None:
            assert self._hears() is None
        return found

    def kill(self) -> str | None:
        self.signal(signal.SIGKILL)
        return self.end()

    def kill_and_let_its_lease_run_out(self, ledger: Ledger) -> None:
        """Kill it at work, and set its lease back behind the ledger's back instead of waiting for its end."""
        assert self.kill() is None, "it ended before it was killed"
        update_batch(ledger, "b", lease_expires_at=0.0)

    def _hears(self) -> Any:
        if not self._told.poll(PATIENCE_SECONDS):
            raise TimeoutError("the process neither works nor ends")
        try:
            return self._told.recv()
        except EOFError:
            return None


@dataclass(frozen=True)
class ForkServer:
    process: "subprocess.Popen[str]"
    listener: Listener

    def fork(self, **arguments: Any) -> Worker:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()
        return Worker(self.listener.accept())


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    """A process with the SDKs loaded, from which others come in milliseconds."""
    with Listener(family="AF_UNIX") as listener:
        process = subprocess.Popen(
            [sys.executable, "-m", provider_process.__name__, str(listener.address)],
            stdin=subprocess.PIPE,
            text=True,
            cwd=Path(provider_process.__file__).parents[2],
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        try:
            yield ForkServer(process, listener)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(PATIENCE_SECONDS) == 0


StartWorker = Callable[..., Worker]


@pytest.fixture
def start_worker(fork_server: ForkServer, ledger_url: str, server: Provider) -> Iterator[StartWorker]:
    """Starts processes on the ledger of the test and its server; none outlives it."""
    workers: list[Worker] = []

    def start(
        *,
        url: str = ledger_url,
        wait: float = 20.0,
        lease_seconds: float = 30.0,
        key: str | None = None,
        base_url: str | None = None,
    ) -> Worker:
        environment = provider_environment(server)
        if key is not None:
            environment |= {"ANTHROPIC_API_KEY": key, "OPENAI_API_KEY": key}
        if base_url is not None:
            environment |= {"ANTHROPIC_BASE_URL": base_url, "OPENAI_BASE_URL": f"{base_url}/v1"}
        setting = {"lease_seconds": lease_seconds, "batch_api_poll_seconds": 1.0}
        workers.append(fork_server.fork(url=url, environment=environment, wait=wait, setting=setting))
        return workers[-1]

    yield start
    server.keeps_creations_back = False
    for worker in workers:
        worker.signal(signal.SIGKILL)


def to_the_end(start: StartWorker) -> None:
    """Processes one after the other, as the sensors would start them, until one finds the batch final."""
    for _ in range(20):
        ended = start().end()
        if ended != "waiting":
            assert ended == "final"
            return
    raise AssertionError("it never ended")


# --- batches, and what must be true of them --------------------------------------------------------------------------


def submit(ledger: Ledger, judge: str, mode: str, **overrides: Any) -> None:
    """A batch whose budget is every pair once, so that a pair of texts tells a comparison."""
    fields: dict[str, Any] = {
        **{"student_count": 5, "anchors": 5, "max_comparisons": ITEMS, "judge_concurrency": CONCURRENCY},
        "min_comparisons_for_stability_check": 100_000,
        "pair_design": "coverage",
    }
    scenes.submit(ledger, "b", judge=judge, **{**fields, **MODES[mode], **overrides})


def pairs(ledger: Ledger) -> dict[str, PairKey]:
    """Comparison id to what its texts are for the server."""
    texts = ledger.texts("b")
    return {
        record.comparison_id: (digest(texts[record.essay_a]), digest(texts[record.essay_b]))
        for record in ledger.comparison_records("b")
    }


def check_finished(ledger: Ledger, *, count: int = ITEMS) -> None:
    """Every comparison has the server's own answer, within the budget."""
    assert ledger.batch("b").status is BatchStatus.COMPLETE_MAX_COMPARISONS
    state = ledger.state("b")
    assert (state.submitted, state.judged, state.pending, state.failed) == (count, count, 0, 0)
    assert state.submitted <= state.total_budget
    assert len(set(pairs(ledger).values())) == count
    for comparison in ledger.comparison_records("b"):
        sent = sent_prompt(ledger, "b", comparison.comparison_id)
        answer = by_strength(sent.prompt.essays, "")
        assert (comparison.winner, comparison.confidence) == (answer["winner"].lower(), answer["confidence"])


def check_calls(ledger: Ledger, server: Provider) -> None:
    """Each call was planned, made once, and is the last of its comparison if it was judged; the lost are costed."""
    asked = Counter(marker(call) for call in server.model_calls)
    attempts = ledger.attempts("b")
    assert set(asked) <= {attempt.fence_marker for attempt in attempts}, "a call was made that nobody had recorded"
    assert set(asked.values()) == {1}, "a call was made twice under one attempt"
    billed = server.billed
    assert set(billed) <= set(pairs(ledger).values())
    for comparison_id, calls in scenes.attempts_by_comparison(ledger).items():
        assert [call["outcome"] for call in calls] == [*["lost"] * (len(calls) - 1), "judged"]
        assert [call["number"] for call in calls] == [1] * len(calls)  # a lost call does not count
        assert asked[calls[-1]["fence_marker"]] == 1
        reached = sum(asked[call["fence_marker"]] for call in calls)
        assert billed[pairs(ledger)[comparison_id]] == reached <= len(calls)
        for lost in calls[:-1]:
            assert lost["cost_usd"] == lost["upper_bound_usd"] > 0
            assert lost["error_type"] == "lost"
        assert 0 < calls[-1]["cost_usd"] < calls[-1]["upper_bound_usd"]


def check_same_as_undisturbed(ledger: Ledger, start: StartWorker, server: Provider, folder: Path, **batch: Any) -> None:
    """The same batch in another ledger, in one go and at once, has the same record and the same scores."""
    server.latency = 0.0
    url = f"sqlite:///{folder / 'undisturbed.sqlite'}"
    undisturbed = Ledger.open(url)
    with contextlib.closing(undisturbed):
        submit(undisturbed, **batch)
        assert start(url=url).end() == "final"
        assert undisturbed.attempt_counts("b") == {"judged": undisturbed.state("b").judged}
        assert scenes.record(ledger) == scenes.record(undisturbed)
        assert scenes.history(ledger) == scenes.history(undisturbed)


# --- bundles ---------------------------------------------------------------------------------------------------------


def kill_and_resume(
    start: StartWorker, ledger: Ledger, server: Provider, *, kills: int, seed: int, lease_seconds: float | None
) -> list[int]:
    """Kill -9 at random moments of the calls, then let a process finish; how many calls were in flight."""
    moments, in_flight = random.Random(seed), []
    bought: dict[str, int] = {}

    def check_nothing_recorded_was_bought_again() -> None:
        billed, pair_of = server.billed, pairs(ledger)
        for comparison_id, times in bought.items():
            assert billed[pair_of[comparison_id]] == times, f"{comparison_id} was paid for after it was recorded"

    for number in range(kills):
        worker = start() if lease_seconds is None else start(lease_seconds=lease_seconds)
        # every second one falls upon calls surely, the others anywhere, the first call alone and the lease included
        if number % 2:
            wait_for(lambda: ledger.attempt_counts("b").get("open", 0) > 1)
        else:
            epoch = ledger.batch("b").lease_epoch
            wait_for(lambda epoch=epoch: ledger.batch("b").lease_epoch > epoch)
        time.sleep(moments.uniform(0.0, 2.5 * server.latency))
        ended = worker.kill()
        assert ended is None, f"the batch was {ended} after {number} kills: make it longer"
        if lease_seconds is None:
            update_batch(ledger, "b", lease_expires_at=0.0)
        in_flight.append(ledger.attempt_counts("b").get("open", 0))
        assert in_flight[-1] <= CONCURRENCY
        state = ledger.state("b")
        assert state.submitted <= state.total_budget
        settled(server)
        check_nothing_recorded_was_bought_again()
        billed, pair_of = server.billed, pairs(ledger)
        for record in ledger.comparison_records("b"):
            if record.status == "judged":
                assert billed[pair_of[record.comparison_id]] >= 1, "recorded, and never answered by the server"
                bought.setdefault(record.comparison_id, billed[pair_of[record.comparison_id]])
    assert start().end() == "final"
    settled(server)
    check_nothing_recorded_was_bought_again()
    return in_flight


def drill_bundles(
    ledger: Ledger,
    start: StartWorker,
    server: Provider,
    folder: Path,
    *,
    kills: int,
    seed: int,
    lease_seconds: float | None,
    **batch: Any,
) -> None:
    """Without `lease_seconds` nobody waits until the lease of the dead runs out."""
    submit(ledger, **batch)
    in_flight = kill_and_resume(start, ledger, server, kills=kills, seed=seed, lease_seconds=lease_seconds)
    assert sum(in_flight) > 0, "no kill hit a call: choose other moments"
    count = batch.get("max_comparisons", ITEMS)
    check_finished(ledger, count=count)
    check_calls(ledger, server)
    lost = ledger.attempt_counts("b").get("lost", 0)
    assert lost == sum(in_flight)
    assert count <= server.answered <= count + lost
    print(f"\n{kills} kills, {in_flight} in flight, {lost} lost, {server.answered} billed for {count} judgments")
    check_same_as_undisturbed(ledger, start, server, folder, **batch)


@pytest.mark.slow
@on_sqlite
def test_a_bundle_killed_at_three_random_moments_is_finished_and_no_recorded_judgment_is_bought_again(
    ledger, start_worker, server, tmp_path
):
    drill_bundles(
        ledger, start_worker, server, tmp_path, kills=3, seed=3, lease_seconds=None, judge=CLAUDE, mode="bundles"
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("judge", "mode", "seed"), [(CLAUDE, "bundles", 1), (GPT, "bundles", 2), (GPT, "calls", 3)])
def test_calls_killed_at_twelve_random_moments_are_finished_and_no_recorded_judgment_is_bought_again(
    ledger, start_worker, server, tmp_path, judge, mode, seed
):
    server.latency = 0.1
    batch = {"judge": judge, "mode": mode, "student_count": 12, "anchors": 10, "max_comparisons": 231}
    drill_bundles(ledger, start_worker, server, tmp_path, kills=12, seed=seed, lease_seconds=1.0, **batch)


@on_sqlite
@pytest.mark.parametrize(
    ("judge", "number"),
    [
        pytest.param(GPT, signal.SIGTERM, id="gpt-term", marks=pytest.mark.slow),
        pytest.param(CLAUDE, signal.SIGINT, id="claude-int", marks=pytest.mark.slow),
        pytest.param(CLAUDE, signal.SIGTERM, id="claude-term", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_bundle_collects_the_answers_on_their_way_and_loses_nothing(
    ledger, start_worker, server, judge, number
):
    submit(ledger, judge, "bundles")
    for _ in range(2):
        worker = start_worker()
        wait_for(lambda: ledger.attempt_counts("b").get("open", 0) > 1)
        worker.signal(number)
        assert worker.end() == "KeyboardInterrupt"
        settled(server)
        assert set(ledger.attempt_counts("b")) == {"judged"}
        assert server.answered == ledger.state("b").judged
    assert 0 < ledger.state("b").judged < ITEMS
    assert start_worker().end() == "final"
    check_finished(ledger)
    check_calls(ledger, server)
    assert set(server.billed.values()) == {1}
    assert ledger.orphan_results("b") == []


# --- jobs ------------------------------------------------------------------------------------------------------------


def check_one_job_paid_once(ledger: Ledger, server: Provider, judge: str) -> None:
    check_finished(ledger)
    assert set(server.billed.values()) == {1}
    assert server.answered == ITEMS
    assert len(creations(server, judge)) == look_at_jobs(server, judge) == 1
    (job,) = ledger.provider_jobs("b")
    assert (job.status, job.items) == (JobState.COMPLETED, ITEMS)
    assert ledger.attempt_counts("b") == {"judged": ITEMS}
    assert ledger.orphan_results("b") == []
    check_calls(ledger, server)


def administrative(server: Provider) -> list[Call]:
    """The calls about jobs and files."""
    model_calls = {id(call) for call in server.model_calls}
    return [call for call in server.calls if id(call) not in model_calls]


def hangs(server: Provider) -> bool:
    return any(call.fault == "hang" for call in administrative(server))


@pytest.mark.slow
@pytest.mark.parametrize("judge", [CLAUDE, pytest.param(GPT, marks=pytest.mark.slow)])
def test_a_job_that_arrived_as_its_process_was_killed_is_found_again_and_not_sent_twice(
    ledger, start_worker, server, judge
):
    submit(ledger, judge, "job")
    server.keeps_creations_back = True
    worker = start_worker()
    wait_for(lambda: creations(server, judge))
    worker.kill_and_let_its_lease_run_out(ledger)
    server.keeps_creations_back = False
    (job,) = ledger.jobs_out("b")
    assert (job.status, job.provider_job_id) == (JobState.SUBMITTING, None)
    assert ledger.attempt_counts("b") == {"open": ITEMS}
    if judge == CLAUDE:
        # nothing tells a running job of Anthropic's from another of the same size
        assert start_worker().end() == "waiting"
        assert ledger.jobs_out("b")[0].status is JobState.SUBMITTING
    assert look_at_jobs(server, judge) == 1
    to_the_end(start_worker)
    check_one_job_paid_once(ledger, server, judge)


@pytest.mark.parametrize("judge", [pytest.param(CLAUDE, marks=pytest.mark.slow), GPT])
def test_a_process_killed_between_the_submission_of_a_job_and_its_first_poll_leaves_a_job_to_be_polled(
    ledger, start_worker, server, judge
):
    submit(ledger, judge, "job")
    server.jobs.faults.script([None] * CALLS_BEFORE_CREATION[judge] + [None, "hang"])
    worker = start_worker()
    wait_for(lambda: hangs(server))
    worker.kill_and_let_its_lease_run_out(ledger)
    (job,) = ledger.jobs_out("b")
    assert job.status is JobState.SUBMITTED
    assert job.provider_job_id is not None
    assert ledger.attempt_counts("b") == {"open": ITEMS}
    to_the_end(start_worker)
    check_one_job_paid_once(ledger, server, judge)


@pytest.mark.slow
@both_judges
def test_a_process_killed_as_it_fetches_the_results_of_a_job_leaves_them_to_be_fetched_again(
    ledger, start_worker, server, judge
):
    submit(ledger, judge, "job")
    before = CALLS_BEFORE_CREATION[judge] + 1 + CALLS_FROM_POLL_TO_RESULTS[judge]
    server.jobs.faults.script([None] * before + ["hang"])
    worker = start_worker()
    wait_for(lambda: hangs(server))
    assert re.search(r"/(results|content)$", administrative(server)[-1].path)
    worker.kill_and_let_its_lease_run_out(ledger)
    assert ledger.state("b").judged == 0
    assert ledger.jobs_out("b")[0].status is JobState.SUBMITTED
    to_the_end(start_worker)
    check_one_job_paid_once(ledger, server, judge)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("judge", [CLAUDE, pytest.param(GPT, marks=pytest.mark.slow)])
def test_results_of_a_job_are_taken_in_all_or_not_at_all_whenever_the_process_dies(
    ledger, start_worker, server, judge, seed
):
    submit(ledger, judge, "job")
    moments = random.Random(seed)
    taken = []
    for _ in range(4):
        fetched = sum(call.path.endswith(("/results", "/content")) for call in server.calls)
        worker = start_worker()
        wait_for(
            lambda fetched=fetched: (
                sum(call.path.endswith(("/results", "/content")) and call.status == 200 for call in server.calls)
                > fetched
                or ledger.state("b").judged > 0
            )
        )
        time.sleep(moments.uniform(0.0, 0.04))
        worker.kill()
        update_batch(ledger, "b", lease_expires_at=0.0)
        taken.append(ledger.state("b").judged)
        assert taken[-1] in (0, ITEMS)
        assert ledger.provider_jobs("b")[0].status is (JobState.COMPLETED if taken[-1] else JobState.SUBMITTED)
        if taken[-1]:
            break
    print(f"\njudgments after each kill: {taken}")
    to_the_end(start_worker)
    check_one_job_paid_once(ledger, server, judge)


@pytest.mark.slow
@both_judges
def test_a_job_whose_processes_are_killed_at_twelve_random_moments_is_paid_once(ledger, start_worker, server, judge):
    submit(ledger, judge, "job")
    moments = random.Random(7)
    found: list[str] = []
    for kill in range(12):
        server.jobs.hold = kill < 9  # the last three processes find the results and may die as they take them in
        epoch = ledger.batch("b").lease_epoch
        worker = start_worker()
        wait_for(lambda epoch=epoch: ledger.batch("b").lease_epoch > epoch)
        time.sleep(moments.uniform(0.0, 0.15 if kill < 4 else 1.5))  # the first four before or at the submission
        ended = worker.kill()
        update_batch(ledger, "b", lease_expires_at=0.0)
        job = next(iter(ledger.jobs_out("b")), None)
        found.append(ended or ("no job" if job is None else job.status.value))
        assert len(creations(server, judge)) <= 1
        if ended is None and not creations(server, judge):
            # it died between the record of the job and its creation: it counts as absent only after a while
            set_back(ledger, seconds=61)
        look_at_jobs(server, judge)
        if ledger.batch("b").status.is_final:  # nothing is left to kill
            break
    print(f"\nafter each kill: {found}; {len(ledger.provider_jobs('b'))} jobs in the ledger")
    assert len(found) > 9
    assert {"no job", "submitting"} & set(found[:4]), "no kill hit a submission: choose other moments"
    to_the_end(start_worker)
    check_finished(ledger)
    check_calls(ledger, server)
    assert set(server.billed.values()) == {1}
    assert len(creations(server, judge)) == 1


# --- a job that never arrived ----------------------------------------------------------------------------------------


def set_back(ledger: Ledger, *, seconds: float) -> None:
    """Make the jobs that are out older, behind the ledger's back."""
    with write_transaction(ledger.engine) as connection:
        for job in ledger.jobs_out("b"):
            connection.execute(
                t.provider_jobs.update()
                .where(t.provider_jobs.c.job_key == job.job_key)
                .values(created_at=job.created_at - timedelta(seconds=seconds))
            )


@pytest.mark.parametrize(
    ("judge", "killed"),
    [
        pytest.param(CLAUDE, False, id="claude-dropped", marks=pytest.mark.slow),
        pytest.param(GPT, True, id="gpt-killed"),
        pytest.param(CLAUDE, True, id="claude-killed", marks=pytest.mark.slow),
        pytest.param(GPT, False, id="gpt-dropped", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_a_job_that_never_arrived_is_sent_again_once_but_not_before_it_could_have_shown_up(
    ledger, start_worker, server, judge, killed
):
    submit(ledger, judge, "job")
    # a hang ends without a job when the client leaves
    server.jobs.faults.script([None] * CALLS_BEFORE_CREATION[judge] + ["hang" if killed else "drop"])
    worker = start_worker()
    if killed:
        wait_for(lambda: hangs(server))
        worker.kill_and_let_its_lease_run_out(ledger)
    else:
        assert worker.end() == "waiting"
    assert creations(server, judge) == []
    for age in (0, 50):  # as old as it is, then almost as old as it must be
        set_back(ledger, seconds=age)
        assert start_worker().end() == "waiting"
        (job,) = ledger.jobs_out("b")
        assert job.status is JobState.SUBMITTING
        assert ledger.attempt_counts("b") == {"open": ITEMS}
        assert creations(server, judge) == []
    set_back(ledger, seconds=11)
    to_the_end(start_worker)
    absent, completed = sorted(ledger.provider_jobs("b"), key=lambda job: job.created_at)
    assert (absent.status, completed.status) == (JobState.ABSENT, JobState.COMPLETED)
    assert len(creations(server, judge)) == look_at_jobs(server, judge) == 1
    check_finished(ledger)
    assert set(server.billed.values()) == {1}
    assert ledger.attempt_counts("b") == {"lost": ITEMS, "judged": ITEMS}
    check_calls(ledger, server)


@on_sqlite
@pytest.mark.parametrize("judge", [GPT, pytest.param(CLAUDE, marks=pytest.mark.slow)])
def test_a_job_that_met_a_refused_connection_surely_never_arrived_and_needs_no_looking_for(
    ledger, start_worker, server, judge
):
    submit(ledger, judge, "job")
    with Listener(("127.0.0.1", 0)) as taken:
        nobody = f"http://127.0.0.1:{taken.address[1]}"
    assert start_worker(base_url=nobody).end() == "waiting"
    (job,) = ledger.provider_jobs("b") or (None,)
    assert job is not None
    assert job.status is JobState.FAILED
    assert ledger.attempt_counts("b") == {"unsent": ITEMS}
    assert ledger.cost_usd("b") == 0.0
    assert server.calls == []
    to_the_end(start_worker)
    check_finished(ledger)
    assert set(server.billed.values()) == {1}
    assert len(creations(server, judge)) == 1


# --- two at once, and a wrong key ------------------------------------------------------------------------------------


@pytest.mark.parametrize("judge", [CLAUDE, pytest.param(GPT, marks=pytest.mark.slow)])
def test_of_two_processes_at_once_one_submits_the_job_and_the_other_is_refused(ledger, start_worker, server, judge):
    submit(ledger, judge, "job")
    server.keeps_creations_back = True
    workers = [start_worker(wait=0.0) for _ in range(2)]
    wait_for(lambda: creations(server, judge))
    time.sleep(0.2)  # whoever came second has found the lease taken by now, or never will
    server.keeps_creations_back = False
    assert sorted(str(worker.end()) for worker in workers) == ["BatchBusyError", "final"]
    check_one_job_paid_once(ledger, server, judge)


@pytest.mark.parametrize(
    ("judge", "mode"),
    [
        pytest.param(judge, mode, marks=() if (judge, mode) == (GPT, "job") else pytest.mark.slow)
        for judge in (CLAUDE, GPT)
        for mode in MODES
    ],
)
def test_after_a_wrong_key_the_right_one_and_a_reopening_finish_the_batch(ledger, start_worker, server, judge, mode):
    submit(ledger, judge, mode)
    assert start_worker(key="sk-wrong-and-secret").end() == "final"
    batch = ledger.batch("b")
    assert (batch.status, batch.stop_reason) == (BatchStatus.FAILED, "provider_rejected")
    assert (server.answered, ledger.state("b").judged, ledger.cost_usd("b")) == (0, 0, 0.0)
    ledger.reopen("b", "the key is right now")
    to_the_end(start_worker)
    assert ledger.batch("b").status is BatchStatus.COMPLETE_MAX_COMPARISONS
    state = ledger.state("b")
    # the one call that met the wrong key failed for good; of a job nothing was sent
    failed = 0 if mode == "job" else 1
    assert (state.submitted, state.judged, state.failed) == (ITEMS, ITEMS - failed, failed)
    assert set(server.billed.values()) == {1}
    assert server.answered == state.judged
    assert "sk-wrong-and-secret" not in repr([dict(a) for a in scenes.attempts(ledger)])
