"""Our judges against a server that is not ours: `llmock serve` (PyPI, 0.2.2), in a process of its own on loopback.

What our own ProviderServer promises is checked here by someone else's idea of the two protocols. What llmock cannot
do, and is therefore not checked here:

- read an essay: it answers every call alike. By itself it gives OpenAI's Responses the smallest answer that the
  schema allows (winner A, confidence 1); Anthropic's `output_config` it ignores, so an answer for Anthropic has to be
  queued through its `/_llmock/scenario`.
- provider batch jobs to their end: its OpenAI batches know chat completions and no Responses, so that every item
  fails and the job with them; its Anthropic batches answer in prose, whatever was queued, and name a `results_url`
  that leads nowhere (its mount point is in it twice).
- drop a connection that is not a stream, cache a prompt, check a key, know a model: all keys and models will do.
- judge our retries: it takes equal bodies for one call, and each of our attempts has a random fence of its own. Its
  journal has the times, though, and the SDKs' own count of retries.
"""

import asyncio
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cj_pipeline.core.models import BatchStatus, Winner
from cj_pipeline.judges import errors
from cj_pipeline.judges.catalogue import JudgeSetup, open_judge
from cj_pipeline.judges.errors import Fate, JudgeError
from cj_pipeline.judges.pricing import load_prices
from cj_pipeline.judges.protocol import JobItem, JobJudge, JobPhase, JudgeAnswer, SearchOutcome, custom_id_prefix
from cj_pipeline.ledger import Ledger
from cj_pipeline.workflow.loop import Advance, Outcome
from cj_pipeline_tests.judges.test_anthropic import asked, request_for
from cj_pipeline_tests.workflow import scenes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CLAUDE, GPT, COMPATIBLE = "anthropic/claude-haiku-4-5", "openai/gpt-5.1", "compatible/some-model"
JUDGES = (CLAUDE, GPT, COMPATIBLE)
VERDICT = {"winner": "B", "confidence": 4, "justification": "The second is clearer."}
START_SECONDS = 60.0


# --- the server ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Llmock:
    """A running server."""

    url: str

    def environment(self) -> dict[str, str]:
        """The variables that lead the SDKs here."""
        return {
            "ANTHROPIC_BASE_URL": f"{self.url}/anthropic",
            "ANTHROPIC_API_KEY": "any-key",
            "OPENAI_BASE_URL": f"{self.url}/v1",
            "OPENAI_API_KEY": "any-key",
            "CJ_OPENAI_COMPATIBLE_BASE_URL": f"{self.url}/v1",
        }

    def queue(self, *behaviours: dict[str, Any]) -> None:
        """Let the next requests meet these; `times` None: all that are to come."""
        self._call("POST", "/_llmock/scenario", {"behaviors": list(behaviours)})

    def reset(self) -> None:
        self._call("POST", "/_llmock/reset", {})

    def requests(self) -> list[dict[str, Any]]:
        """What it was asked, oldest first."""
        return self._call("GET", "/_llmock/requests")["requests"]

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data, method=method), timeout=10) as reply:
            return json.loads(reply.read())


def executable() -> str:
    """Where llmock is."""
    found = shutil.which("llmock", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        reason = "llmock is not installed (pip install llmock==0.2.2): no server but ours has seen our judges"
        if os.environ.get("CJ_TESTS_NO_SKIPS"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Llmock]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    log = folder / f"llmock-{port}.log"
    command = [executable(), "serve", "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLMOCK_")}
    with log.open("w") as words, subprocess.Popen(command, stdout=words, stderr=words, env=environment) as process:
        server = Llmock(f"http://127.0.0.1:{port}")
        try:
            wait_until_healthy(server, process, log)
            yield server
        finally:
            process.kill()


def wait_until_healthy(server: Llmock, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            server._call("GET", "/health")
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llmock]:
    with serving(tmp_path_factory.mktemp("llmock")) as server:
        yield server


@pytest.fixture
def llmock(running: Llmock, monkeypatch: pytest.MonkeyPatch) -> Llmock:
    """The server with nothing queued, where the SDKs of this process will find it."""
    running.reset()
    lead_to(running, monkeypatch)
    return running


def lead_to(server: Llmock, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)


def reply(answer: object = VERDICT, **fields: Any) -> dict[str, Any]:
    return {"type": "reply", "text": answer if isinstance(answer, str) else json.dumps(answer), **fields}


# --- our judges ------------------------------------------------------------------------------------------------------


def judge(name: str, server: Llmock, *, timeout_seconds: float = 20.0) -> JobJudge:
    prices = load_prices(scenes.settings().prices_path)
    base_url = server.environment()["CJ_OPENAI_COMPATIBLE_BASE_URL"]
    opened = open_judge(name, JudgeSetup(prices=prices, timeout_seconds=timeout_seconds, base_url=base_url))
    assert isinstance(opened, JobJudge)
    return opened


def judged(name: str, server: Llmock, **setup: float) -> JudgeAnswer | JudgeError:
    opened = judge(name, server, **setup)
    return asked(opened, lambda: opened.judge(request_for()))


@pytest.mark.parametrize("name", JUDGES)
def test_a_verdict_becomes_a_judgment_with_its_usage_and_its_price(llmock, name):
    llmock.queue(reply())
    answer = judged(name, llmock)
    assert isinstance(answer, JudgeAnswer), answer
    assert (answer.winner, answer.confidence, answer.justification) == (Winner.B, 4, "The second is clearer.")
    (request,) = llmock.requests()
    assert request["status"] == 200
    prompt = request_for().prompt
    # it counts a token for every four characters
    size = sum(map(len, (prompt.system, prompt.stable, prompt.essays)))
    assert answer.usage.input == pytest.approx(size / 4, rel=0.02)
    assert answer.usage.output == len(json.dumps(VERDICT)) // 4
    assert (answer.usage.cache_read, answer.usage.cache_write) == (0, 0)
    if name == COMPATIBLE:
        assert answer.cost_usd is None  # nobody knows its price
        return
    price = load_prices(scenes.settings().prices_path).price_of(*name.split("/"), datetime.now(UTC).date())
    assert price is not None
    rates = price.usd_per_million
    expected = (answer.usage.input * rates.input + answer.usage.output * rates.output) / 1_000_000
    assert answer.cost_usd == pytest.approx(expected)


@pytest.mark.parametrize("name", [GPT, COMPATIBLE])
def test_what_a_foreign_reading_of_our_schema_answers_is_a_judgment(llmock, name):
    answer = judged(name, llmock)
    assert isinstance(answer, JudgeAnswer), answer
    assert (answer.winner, answer.confidence) == (Winner.A, 1)


@pytest.mark.parametrize("name", JUDGES)
@pytest.mark.parametrize(
    "answer",
    [
        "Essay B is better.",
        {"winner": "C", "confidence": 4, "justification": "x"},
        {"winner": "B", "confidence": 6, "justification": "x"},
        {"winner": "B", "confidence": 4},
    ],
    ids=["prose", "winner", "confidence", "missing"],
)
def test_an_answer_that_is_no_verdict_is_no_judgment(llmock, name, answer):
    llmock.queue(reply(answer))
    error = judged(name, llmock)
    assert isinstance(error, errors.MalformedAnswerError)
    assert error.fate is Fate.RETRY
    assert error.usage.input > 0
    assert error.cost_usd is None if name == COMPATIBLE else error.cost_usd > 0


@pytest.mark.parametrize(
    ("name", "reason", "expected"),
    [
        (CLAUDE, "length", errors.TruncatedAnswerError),
        (GPT, "length", errors.TruncatedAnswerError),
        # llmock's Responses know no content filter: the answer would come back as if it were whole
        (CLAUDE, "content_filter", errors.RefusedError),
    ],
)
def test_an_answer_that_was_cut_or_stopped_is_no_judgment(llmock, name, reason, expected):
    llmock.queue(reply(finish_reason=reason))
    error = judged(name, llmock)
    assert type(error) is expected
    assert error.cost_usd > 0


@pytest.mark.parametrize("name", JUDGES)
@pytest.mark.parametrize(
    ("status", "expected", "fate"),
    [
        (400, errors.InvalidRequestError, Fate.FAIL),
        (401, errors.AuthenticationFailedError, Fate.REJECT),
        (402, errors.QuotaExhaustedError, Fate.REJECT),
        (403, errors.PermissionRefusedError, Fate.REJECT),
        (404, errors.ModelNotFoundError, Fate.REJECT),
        (408, errors.ProviderServerError, Fate.RETRY),
        (409, errors.ProviderServerError, Fate.RETRY),
        (413, errors.ContextTooLongError, Fate.FAIL),
        (429, errors.RateLimitedError, Fate.RETRY),
        (500, errors.ProviderServerError, Fate.RETRY),
        (502, errors.ProviderServerError, Fate.RETRY),
        (503, errors.ProviderServerError, Fate.RETRY),
        (504, errors.ProviderServerError, Fate.RETRY),
        (529, errors.OverloadedError, Fate.RETRY),
    ],
)
def test_each_refusal_becomes_one_of_our_errors_after_a_single_request(llmock, name, status, expected, fate):
    # a compatible server may be asked in other ways first: it refuses all of them
    llmock.queue({"type": "fail", "status": status, "times": None})
    error = judged(name, llmock)
    if (name, status) == (CLAUDE, 503):
        expected = errors.OverloadedError  # llmock lets Anthropic's 503 say overloaded_error
    assert isinstance(error, expected)
    assert (error.fate, error.http_status, error.cost_usd) == (fate, status, 0.0)
    requests = llmock.requests()
    assert {request["status"] for request in requests} == {status}
    assert len(requests) == 1 or name == COMPATIBLE
    assert {request["sdk_retry_count"] for request in requests} == {0}


@pytest.mark.parametrize("name", JUDGES)
@pytest.mark.parametrize("seconds", [0.25, 7.0, 4000.0])
def test_a_stated_wait_is_reported_to_the_millisecond(llmock, name, seconds):
    llmock.queue({"type": "fail", "status": 429, "retry_after": seconds, "times": None})
    error = judged(name, llmock)
    assert isinstance(error, errors.RateLimitedError)
    assert error.retry_after_seconds == seconds


@pytest.mark.parametrize("name", JUDGES)
def test_an_answer_that_does_not_come_in_time_may_have_been_paid_for(llmock, name):
    judged(name, llmock)  # so that loading an SDK does not count
    llmock.reset()
    llmock.queue({"type": "delay", "seconds": 3.0, "times": None})
    started = time.monotonic()
    error = judged(name, llmock, timeout_seconds=0.3)
    assert isinstance(error, errors.JudgeTimeoutError)
    assert (error.fate, error.cost_usd) == (Fate.RETRY, None)
    assert time.monotonic() - started < 2.0


@pytest.mark.parametrize("name", JUDGES)
def test_a_server_that_is_not_there_was_not_paid(llmock, name, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = Llmock(f"http://127.0.0.1:{taken.getsockname()[1]}")
    lead_to(nobody, monkeypatch)
    error = judged(name, nobody)
    assert isinstance(error, errors.ConnectionFailedError)
    assert error.cost_usd == 0.0


@pytest.mark.parametrize("name", [CLAUDE, GPT])
def test_a_prompt_that_its_context_window_does_not_hold_is_told_with_both_sizes(tmp_path, monkeypatch, name):
    with serving(tmp_path, "--context-window", "100") as narrow:
        lead_to(narrow, monkeypatch)
        error = judged(name, narrow)
    assert isinstance(error, errors.ContextTooLongError)
    assert re.search(r": \d{3,} tokens, at most 100", str(error))


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    yield opened
    opened.close()


def submit(ledger: Ledger, name: str, **overrides: Any) -> None:
    """Five essays, every pair once."""
    fields = {"student_count": 5, "anchors": 0, "max_comparisons": 10, "min_comparisons_for_stability_check": 1000}
    scenes.submit(ledger, judge=name, **{**fields, "llm_batching_mode": "serial_bundle", **overrides})


def advance(ledger: Ledger, server: Llmock) -> Advance:
    base_url = server.environment()["CJ_OPENAI_COMPATIBLE_BASE_URL"]
    return scenes.advance(ledger, openai_compatible_base_url=base_url, batch_api_poll_seconds=1.0)


@pytest.fixture(params=JUDGES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_batch_of_five_essays_is_judged_to_its_end(llmock, ledger, name):
    llmock.queue(reply(times=None))
    submit(ledger, name)
    done = advance(ledger, llmock)
    assert (done.outcome, done.status) == (Outcome.FINAL, BatchStatus.COMPLETE_MAX_COMPARISONS)
    records = ledger.comparison_records("b")
    assert len(records) == 10
    assert {(record.status, record.winner, record.confidence) for record in records} == {("judged", "b", 4)}
    requests = llmock.requests()
    assert len(requests) == 10
    assert {request["sdk_retry_count"] for request in requests} == {0}
    attempts = ledger.attempts("b")
    assert len(attempts) == 10
    assert all(attempt.tokens_input > 0 and attempt.tokens_output > 0 for attempt in attempts)
    if name != COMPATIBLE:
        assert all(0 < attempt.cost_usd < attempt.upper_bound_usd for attempt in attempts)


def test_by_chance_every_second_call_fails_and_every_comparison_ends_judged_or_honestly_failed(
    tmp_path, monkeypatch, ledger, name
):
    faults = [f"--error-rate={status}=0.1" for status in (429, 500, 502, 503, 529)]
    with serving(tmp_path, *faults) as unwell:
        lead_to(unwell, monkeypatch)
        unwell.queue(reply(times=None))
        submit(ledger, name, breaker_failures=1000, min_success_rate_threshold=0.1)
        advance(ledger, unwell)
        requests = unwell.requests()
    state = ledger.state("b")
    assert (state.pending, state.judged + state.failed) == (0, 10)
    assert state.judged > 0
    attempts = ledger.attempts("b")
    # every request is an attempt, and every attempt one request, with the status that was recorded
    assert len(attempts) == len(requests)
    assert {request["sdk_retry_count"] for request in requests} == {0}
    statuses = Counter(request["status"] for request in requests)
    assert Counter(attempt.http_status or 200 for attempt in attempts) == statuses
    assert len(statuses) > 1, "nothing failed: the draw was too lucky"
    assert statuses[200] == state.judged
    for record in ledger.comparison_records("b"):
        outcomes = [attempt.outcome for attempt in ledger.attempts("b", record.comparison_id)]
        expected = ["error"] * (len(outcomes) - 1) + ["judged" if record.status == "judged" else "error"]
        assert outcomes == expected
        assert len(outcomes) == 3 or record.status == "judged"


def test_a_stated_wait_is_kept_by_the_servers_own_clock(llmock, ledger, name):
    llmock.queue({"type": "fail", "status": 429, "retry_after": 1.25, "times": 2}, reply(times=None))
    submit(ledger, name, judge_concurrency=1)
    assert advance(ledger, llmock).status is BatchStatus.COMPLETE_MAX_COMPARISONS
    requests = llmock.requests()
    assert [request["status"] for request in requests] == [429, 429] + [200] * 10
    for before, after in itertools.pairwise(requests[:3]):
        assert after["started_at"] - before["ended_at"] >= 1.25
    assert [attempt.error_type for attempt in ledger.attempts("b")][:2] == ["rate_limited"] * 2


@pytest.mark.parametrize("name", [CLAUDE, GPT])
def test_when_its_headers_say_that_nothing_is_left_nothing_is_sent(tmp_path, monkeypatch, name):
    # a bucket of two requests, with one more in half a minute
    with serving(tmp_path, "--rpm", "2") as slow:
        lead_to(slow, monkeypatch)
        slow.queue(reply(times=None))
        opened = judge(name, slow)

        async def run() -> tuple[bool, bool]:
            prompt = request_for().prompt
            await opened.pace(prompt)
            await opened.judge(request_for())
            after_one = opened.may_send(prompt)
            await opened.judge(request_for())
            return after_one, opened.may_send(prompt)

        assert asked(opened, run) == (True, False)
        refused = judged(name, slow)  # by a judge that has not heard
        statuses = [request["status"] for request in slow.requests()]
    assert statuses == [200, 200, 429]
    assert isinstance(refused, errors.RateLimitedError)
    assert refused.retry_after_seconds is not None
    assert 20 < refused.retry_after_seconds <= 30


def test_a_batch_keeps_the_pace_that_the_servers_headers_tell(tmp_path, monkeypatch, ledger):
    # a bucket of 30 requests that is full again after a minute
    with serving(tmp_path, "--rpm", "30") as slow:
        lead_to(slow, monkeypatch)
        slow.queue(reply(times=None))
        submit(ledger, CLAUDE, student_count=9, max_comparisons=36, judge_concurrency=4)
        assert advance(ledger, slow).status is BatchStatus.COMPLETE_MAX_COMPARISONS
        statuses = Counter(request["status"] for request in slow.requests())
    assert statuses == {200: 36}


# --- jobs, as far as llmock goes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [CLAUDE, GPT])
def test_a_job_is_accepted_found_again_and_polled_until_it_is_over(llmock, name):
    opened = judge(name, llmock)
    job_key = "0123456789abcdef0123456789abcdef"
    items = [JobItem(f"{custom_id_prefix(job_key)}c{number}-a1", request_for()) for number in range(3)]
    since = datetime.now(UTC)

    async def run() -> None:
        submitted = await opened.submit_job(job_key, items)
        assert submitted.expires_at is not None
        assert 23 < (submitted.expires_at - since).total_seconds() / 3600 < 25
        status = await opened.poll_job(submitted.provider_job_id)
        assert status.phase is JobPhase.RUNNING
        search = await opened.find_job(job_key, items=3, since=since)
        other = await opened.find_job("f" * 32, items=3, since=since)
        if name == GPT:
            assert search.outcome is SearchOutcome.FOUND
            assert search.job is not None
            assert search.job.provider_job_id == submitted.provider_job_id
            assert other.outcome is SearchOutcome.ABSENT
        else:
            # of Anthropic's running jobs, one of this size may be it
            assert search.outcome is other.outcome is SearchOutcome.UNDECIDED
            assert (await opened.find_job(job_key, items=4, since=since)).outcome is SearchOutcome.ABSENT
        deadline = time.monotonic() + 20
        while not status.phase.is_over:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.5)
            status = await opened.poll_job(submitted.provider_job_id)
        # its OpenAI jobs do not know Responses and fail as a whole
        assert status.phase is (JobPhase.COMPLETED if name == CLAUDE else JobPhase.FAILED)

    assert asked(opened, run) is None


def test_results_that_are_not_where_the_job_says_are_an_error_of_ours_and_no_judgment(llmock):
    opened = judge(CLAUDE, llmock)
    job_key = "0123456789abcdef0123456789abcdef"
    items = [JobItem(f"{custom_id_prefix(job_key)}c1-a1", request_for())]

    async def run() -> None:
        submitted = await opened.submit_job(job_key, items)
        while not (await opened.poll_job(submitted.provider_job_id)).phase.is_over:
            await asyncio.sleep(0.5)
        async for _ in opened.job_results(submitted.provider_job_id, items):
            pytest.fail("llmock has mended its results_url: this module can check more")

    error = asked(opened, run)
    assert isinstance(error, errors.InvalidRequestError)
    assert error.cost_usd == 0.0


def test_a_batch_as_a_job_that_its_provider_refuses_item_by_item_stops_and_pays_nothing(llmock, ledger):
    submit(ledger, GPT, llm_batching_mode="provider_batch_api", batch_api_mode="opportunistic")
    deadline = time.monotonic() + 30
    while (done := advance(ledger, llmock)).outcome is Outcome.WAITING:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert (done.status, done.stop_reason) == (BatchStatus.FAILED, "provider_rejected")
    assert ledger.state("b").judged == 0
    assert ledger.cost_usd("b") == 0.0
