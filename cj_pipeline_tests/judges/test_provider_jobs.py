"""Provider batch jobs and pace, with both judges: the official SDKs against a server that speaks both protocols."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import anthropic
import openai
import pytest

from cj_pipeline.core.models import Winner
from cj_pipeline.judges import errors
from cj_pipeline.judges.errors import JudgeError
from cj_pipeline.judges.protocol import (
    JobItem,
    JobJudge,
    JobPhase,
    JobResult,
    JobSearch,
    JobStatus,
    JudgeAnswer,
    SearchOutcome,
    SubmittedJob,
    custom_id_prefix,
)
from cj_pipeline.judges.transport import retry_after_seconds
from cj_pipeline_tests.judges.test_anthropic import (
    EXPECTED_ERRORS,
    PRIVATE,
    anthropic_judge,
    asked,
    assert_nothing_leaks,
    judged,
    price_of,
    request_for,
    trust_nobody,
)
from cj_pipeline_tests.judges.test_openai import compatible_judge, openai_judge
from cj_pipeline_tests.providers.faults import FAULTS, TRANSPORT_FAULTS
from cj_pipeline_tests.providers.server import ProviderServer

KEY = "0123456789abcdef0123456789abcdef"
JUDGES: dict[str, Callable[..., JobJudge]] = {"anthropic": anthropic_judge, "openai": openai_judge}


@pytest.fixture(autouse=True)
def no_authorities(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trust_nobody(monkeypatch, tmp_path)


@pytest.fixture
def server(provider_server: ProviderServer) -> ProviderServer:
    return provider_server


@pytest.fixture(params=sorted(JUDGES))
def provider(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make_judge(provider: str) -> Callable[..., JobJudge]:
    return JUDGES[provider]


def items_of(count: int, key: str = KEY) -> list[JobItem]:
    return [
        JobItem(f"{custom_id_prefix(key)}{number}", request_for(f"essay {number}", comparison_id=f"c{number}"))
        for number in range(count)
    ]


def submitted(judge: JobJudge, items: list[JobItem], key: str = KEY) -> SubmittedJob | JudgeError:
    return asked(judge, lambda: judge.submit_job(key, items))


def accepted(judge: JobJudge, items: list[JobItem], key: str = KEY) -> SubmittedJob:
    job = submitted(judge, items, key)
    assert isinstance(job, SubmittedJob)
    return job


def polled(judge: JobJudge, job: SubmittedJob) -> JobStatus | JudgeError:
    return asked(judge, lambda: judge.poll_job(job.provider_job_id))


def found(judge: JobJudge, items: int, key: str = KEY, since: datetime | None = None) -> JobSearch | JudgeError:
    return asked(judge, lambda: judge.find_job(key, items=items, since=since or datetime.now(UTC)))


def collected(judge: JobJudge, job: SubmittedJob, items: list[JobItem]) -> list[JobResult] | JudgeError:
    async def run() -> list[JobResult]:
        return [result async for result in judge.job_results(job.provider_job_id, items)]

    return asked(judge, run)


def ended(judge: JobJudge, items: list[JobItem]) -> list[JobResult]:
    """The results of a job with these items that has run to its end."""

    async def run() -> list[JobResult]:
        job = await judge.submit_job(KEY, items)
        status = await judge.poll_job(job.provider_job_id)
        assert status.phase.is_over
        return [result async for result in judge.job_results(job.provider_job_id, items)]

    results = asked(judge, run)
    assert isinstance(results, list)
    return results


# --- submitting, polling, collecting


def test_a_job_brings_an_answer_for_every_item(make_judge: Callable[..., JobJudge], server: ProviderServer):
    server.decide = lambda prompt, model: {
        "winner": "A" if "essay 1" in prompt else "B",
        "confidence": 2,
        "justification": "line\u2028separator",
    }
    items = items_of(4)

    results = ended(make_judge(), items)

    answers = {result.custom_id: result.answer for result in results}
    assert answers.keys() == {item.custom_id for item in items}
    assert all(isinstance(answer, JudgeAnswer) for answer in answers.values())
    winners = {custom_id for custom_id, answer in answers.items() if answer and answer.winner is Winner.A}
    assert winners == {items[1].custom_id}
    assert all(answer.justification == "line\u2028separator" for answer in answers.values() if answer)
    assert all(answer.request_id for answer in answers.values() if answer)


def test_an_item_asks_exactly_what_a_single_call_asks(make_judge: Callable[..., JobJudge], server: ProviderServer):
    [item] = items_of(1)
    judged(make_judge(), item.request)
    ended(make_judge(), [item])

    single, in_job = server.model_calls
    assert in_job.custom_id == item.custom_id
    assert single.body == in_job.body


def test_an_item_costs_half_of_what_a_call_costs(
    provider: str, make_judge: Callable[..., JobJudge], server: ProviderServer
):
    model = make_judge().identity.model
    [item] = items_of(1)
    server.cache_min_chars = 10**9  # no cache: the same tokens both times
    single = judged(make_judge(prices=price_of(provider, model)), item.request)
    [result] = ended(make_judge(prices=price_of(provider, model)), [item])

    assert isinstance(single, JudgeAnswer)
    assert isinstance(result.answer, JudgeAnswer)
    assert single.usage == result.answer.usage
    assert single.cost_usd is not None
    assert result.answer.cost_usd == pytest.approx(single.cost_usd / 2, rel=1e-9)


def test_a_job_runs_until_the_provider_says_that_it_is_over(
    make_judge: Callable[..., JobJudge], server: ProviderServer
):
    server.jobs.hold = 1
    job = accepted(make_judge(), items_of(2))
    assert job.expires_at is not None
    assert timedelta(hours=23) < job.expires_at - datetime.now(UTC) < timedelta(hours=25)

    running, over = polled(make_judge(), job), polled(make_judge(), job)

    assert isinstance(running, JobStatus)
    assert isinstance(over, JobStatus)
    assert (running.phase, running.ended_at) == (JobPhase.RUNNING, None)
    assert over.phase is JobPhase.COMPLETED
    assert over.ended_at is not None
    assert abs(over.ended_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert over.expires_at == running.expires_at == job.expires_at


def test_results_of_a_job_that_is_not_over_are_none_or_an_error(
    make_judge: Callable[..., JobJudge], server: ProviderServer
):
    server.jobs.hold = True
    items = items_of(2)

    outcome = collected(make_judge(), accepted(make_judge(), items), items)

    assert outcome == [] or isinstance(outcome, errors.InvalidRequestError)


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_every_fault_of_an_item_becomes_its_own_error_and_none_becomes_a_winner(
    make_judge: Callable[..., JobJudge], server: ProviderServer, fault: str
):
    server.faults.script([fault])

    [result] = ended(make_judge(), items_of(1))

    expected = errors.ProviderServerError if fault in TRANSPORT_FAULTS else EXPECTED_ERRORS[fault]
    if expected is None:
        assert isinstance(result.answer, JudgeAnswer)
        return
    assert result.answer is None
    assert type(result.error) is expected
    assert result.error is not None
    assert_nothing_leaks(result.error, server.api_key)


def test_items_that_the_provider_did_not_get_to_have_expired(
    make_judge: Callable[..., JobJudge], server: ProviderServer
):
    server.jobs.expire_items = 2
    items = items_of(3)
    job = accepted(make_judge(), items)

    status = polled(make_judge(), job)
    results = collected(make_judge(), job, items)

    assert isinstance(status, JobStatus)
    assert isinstance(results, list)
    assert status.phase is JobPhase.EXPIRED
    expired = {result.custom_id for result in results if isinstance(result.error, errors.ExpiredError)}
    assert expired == {item.custom_id for item in items[:2]}
    assert all(result.error is None or result.error.cost_usd == 0.0 for result in results)


def test_a_cancelled_job_delivers_what_was_judged_by_then(make_judge: Callable[..., JobJudge], server: ProviderServer):
    server.jobs.hold, server.jobs.finish_before_cancel, server.jobs.cancelled_lines = True, 1, True
    items = items_of(3)
    job = accepted(make_judge(), items)

    judge = make_judge()
    assert asked(judge, lambda: judge.cancel_job(job.provider_job_id)) is None
    status = polled(make_judge(), job)
    results = collected(make_judge(), job, items)

    assert isinstance(status, JobStatus)
    assert isinstance(results, list)
    assert status.phase is JobPhase.CANCELLED
    assert status.ended_at is not None
    assert [result.custom_id for result in results if result.answer] == [items[0].custom_id]
    assert sum(isinstance(result.error, errors.CancelledError) for result in results) == 2


def test_cancelling_a_job_that_is_over_is_no_error(make_judge: Callable[..., JobJudge], server: ProviderServer):
    job = accepted(make_judge(), items_of(1))
    polled(make_judge(), job)

    judge = make_judge()
    assert asked(judge, lambda: judge.cancel_job(job.provider_job_id)) is None


def test_duplicates_and_results_nobody_asked_for_are_passed_on(
    make_judge: Callable[..., JobJudge], server: ProviderServer
):
    server.jobs.extra_result = server.jobs.duplicate_result = True

    results = ended(make_judge(), items_of(2))

    assert len(results) == 4
    assert "unknown-item" in {result.custom_id for result in results}


def test_a_job_the_provider_does_not_know_is_not_a_missing_model(
    make_judge: Callable[..., JobJudge], server: ProviderServer
):
    error = polled(make_judge(), SubmittedJob("batch_unknown", None))

    assert type(error) is errors.InvalidRequestError
    assert "no such job" in str(error)


def test_openai_s_refusal_of_a_whole_job_names_only_codes(server: ProviderServer):
    server.jobs.fail_validation = True
    job = accepted(openai_judge(), items_of(1))

    status = polled(openai_judge(), job)

    assert isinstance(status, JobStatus)
    assert status.phase is JobPhase.FAILED
    assert status.detail == "the provider refused the job as a whole: invalid_json_line"
    assert status.ended_at is not None


def test_openai_s_job_carries_the_key_and_its_file_the_requests(server: ProviderServer):
    accepted(openai_judge(), items_of(2))

    [upload] = [call for call in server.calls if call.path == "/v1/files"]
    [create] = [call for call in server.calls if call.path == "/v1/batches"]
    assert upload.method == create.method == "POST"
    assert create.body["metadata"] == {"cj_job_key": KEY}
    assert (create.body["endpoint"], create.body["completion_window"]) == ("/v1/responses", "24h")


def test_a_compatible_server_s_job_asks_by_the_protocol_that_it_has(server: ProviderServer):
    server.responses_missing = True
    judge = compatible_judge(server.openai_url)
    items = items_of(2)

    async def run() -> list[JobResult]:
        await judge.judge(request_for())
        job = await judge.submit_job(KEY, items)
        await judge.poll_job(job.provider_job_id)
        return [result async for result in judge.job_results(job.provider_job_id, items)]

    results = asked(judge, run)

    assert isinstance(results, list)
    assert all(result.answer for result in results)


def test_limits_of_a_job_s_size_are_the_providers(provider: str, make_judge: Callable[..., JobJudge]):
    assert make_judge().max_job_items == {"anthropic": 100_000, "openai": 50_000}[provider]


def test_both_judges_take_jobs(make_judge: Callable[..., JobJudge]):
    assert isinstance(make_judge(), JobJudge)


# --- submissions that go wrong

CREATION_LEAVES_OPEN = ("hang", "drop", "drop_mid_body", "not_json_body", "bad_gateway", "server_error")


def create_fault(provider: str, fault: str) -> list[str | None]:
    """The script that lets the creating request fail; with OpenAI, the upload comes before it."""
    return [fault] if provider == "anthropic" else [None, fault]


@pytest.mark.parametrize("fault", CREATION_LEAVES_OPEN)
def test_a_submission_without_an_answer_may_have_been_accepted(
    provider: str, make_judge: Callable[..., JobJudge], server: ProviderServer, fault: str
):
    server.jobs.faults.script(create_fault(provider, fault))

    error = submitted(make_judge(timeout_seconds=0.5 if fault == "hang" else 10.0), items_of(1))

    assert type(error) is errors.SubmissionUnknownError
    assert_nothing_leaks(error, server.api_key)


@pytest.mark.parametrize(
    "fault",
    ["rate_limited", "overloaded", "unavailable", "authentication", "permission", "quota_exhausted", "bad_request"],
)
def test_a_submission_that_was_refused_was_not_accepted(
    provider: str, make_judge: Callable[..., JobJudge], server: ProviderServer, fault: str
):
    server.jobs.faults.script(create_fault(provider, fault))

    error = submitted(make_judge(), items_of(1))

    assert type(error) is EXPECTED_ERRORS[fault]
    assert_nothing_leaks(error, server.api_key)
    creations = [call for call in server.calls if call.path.endswith("/batches")]
    assert len(creations) == 1  # once, and no retry


@pytest.mark.parametrize("fault", ["hang", "drop", "server_error"])
def test_an_upload_that_fails_has_started_nothing(server: ProviderServer, fault: str):
    server.jobs.faults.script([fault])

    error = submitted(openai_judge(timeout_seconds=0.5 if fault == "hang" else 10.0), items_of(1))

    assert type(error) is EXPECTED_ERRORS[fault]
    assert isinstance(error, JudgeError)
    assert error.cost_usd == 0.0
    assert [call.path for call in server.calls] == ["/v1/files"]


def test_a_submission_that_found_nobody_to_connect_to_was_not_accepted(
    provider: str, make_judge: Callable[..., JobJudge], monkeypatch: pytest.MonkeyPatch
):
    for name in ("ANTHROPIC", "OPENAI"):
        monkeypatch.setenv(f"{name}_API_KEY", "k")
        monkeypatch.setenv(f"{name}_BASE_URL", "http://127.0.0.1:9")

    assert type(submitted(make_judge(), items_of(1))) is errors.ConnectionFailedError


# --- looking for a job


def end_all() -> None:
    """Let every job end, by somebody else's looks at them."""
    for batches in (anthropic.Anthropic().messages.batches, openai.OpenAI().batches):
        for batch in batches.list():
            batches.retrieve(batch.id)


def lost(make_judge: Callable[..., JobJudge], server: ProviderServer, items: int, key: str = KEY) -> None:
    server.jobs.lose_create_response = 1
    assert isinstance(submitted(make_judge(), items_of(items, key), key), errors.SubmissionUnknownError)


def test_a_job_whose_creation_was_answered_to_nobody_is_found(
    provider: str, make_judge: Callable[..., JobJudge], server: ProviderServer
):
    accepted(make_judge(), items_of(3, "f" * 32), "f" * 32)
    lost(make_judge, server, 3)
    if provider == "anthropic":
        end_all()

    search = found(make_judge(), 3)

    assert isinstance(search, JobSearch)
    assert search.outcome is SearchOutcome.FOUND
    assert search.job is not None
    results = collected(make_judge(), search.job, items_of(3)) if provider == "anthropic" else None
    assert results is None or all(isinstance(result, JobResult) for result in results)


def test_a_job_that_was_never_created_is_absent(make_judge: Callable[..., JobJudge], server: ProviderServer):
    accepted(make_judge(), items_of(2, "f" * 32), "f" * 32)  # of another size, and with another key

    assert found(make_judge(), 3) == JobSearch(SearchOutcome.ABSENT)


def test_another_job_of_the_same_size_is_told_apart_once_it_has_ended(
    make_judge: Callable[..., JobJudge], server: ProviderServer
):
    accepted(make_judge(), items_of(3, "f" * 32), "f" * 32)
    end_all()

    assert found(make_judge(), 3) == JobSearch(SearchOutcome.ABSENT)


def test_anthropic_s_running_job_of_the_same_size_leaves_it_undecided(server: ProviderServer):
    lost(anthropic_judge, server, 3)

    assert found(anthropic_judge(), 3) == JobSearch(SearchOutcome.UNDECIDED)


def test_anthropic_s_job_is_found_beside_running_ones_of_the_same_size(server: ProviderServer):
    lost(anthropic_judge, server, 3)
    end_all()
    accepted(anthropic_judge(), items_of(3, "f" * 32), "f" * 32)  # still running

    search = found(anthropic_judge(), 3)

    assert isinstance(search, JobSearch)
    assert search.outcome is SearchOutcome.FOUND


def test_openai_s_job_is_found_while_it_runs(server: ProviderServer):
    lost(openai_judge, server, 3)

    search = found(openai_judge(), 3)

    assert isinstance(search, JobSearch)
    assert search.outcome is SearchOutcome.FOUND
    assert search.job is not None
    assert search.job.expires_at is not None


def test_jobs_from_long_before_are_not_looked_at(make_judge: Callable[..., JobJudge], server: ProviderServer):
    lost(make_judge, server, 3)
    end_all()

    search = found(make_judge(), 3, since=datetime.now(UTC) + timedelta(minutes=20))

    assert search == JobSearch(SearchOutcome.ABSENT)


def test_our_clock_may_be_some_minutes_ahead(make_judge: Callable[..., JobJudge], server: ProviderServer):
    lost(make_judge, server, 3)
    end_all()

    search = found(make_judge(), 3, since=datetime.now(UTC) + timedelta(minutes=8))

    assert isinstance(search, JobSearch)
    assert search.outcome is SearchOutcome.FOUND


def test_a_job_is_found_on_a_later_page_of_the_list(server: ProviderServer, make_judge: Callable[..., JobJudge]):
    lost(make_judge, server, 2)
    end_all()
    judge = make_judge()

    async def submit_many() -> None:
        for number in range(105):
            key = f"{number:032d}"
            await judge.submit_job(key, items_of(1, key))

    assert asked(judge, submit_many) is None
    search = found(make_judge(), 2)

    assert isinstance(search, JobSearch)
    assert search.outcome is SearchOutcome.FOUND


# --- looking, when the provider is unwell


@pytest.mark.parametrize("fault", ["server_error", "drop", "overloaded"])
def test_a_look_at_a_job_is_repeated_when_it_fails(
    make_judge: Callable[..., JobJudge], server: ProviderServer, fault: str
):
    job = accepted(make_judge(), items_of(1))
    server.jobs.faults.script([fault])

    assert isinstance(polled(make_judge(), job), JobStatus)


def test_a_look_that_keeps_failing_is_a_typed_error(make_judge: Callable[..., JobJudge], server: ProviderServer):
    job = accepted(make_judge(), items_of(1))
    server.jobs.faults.script(["server_error"] * 3)

    assert type(polled(make_judge(), job)) is errors.ProviderServerError


@pytest.mark.parametrize("look", ["poll", "find", "results"])
def test_an_answer_that_is_no_json_is_a_broken_connection(
    make_judge: Callable[..., JobJudge], server: ProviderServer, look: str
):
    items = items_of(1)
    job = accepted(make_judge(), items)
    server.jobs.faults.script(["not_json_body"])

    error = {
        "poll": lambda: polled(make_judge(), job),
        "find": lambda: found(make_judge(), 1),
        "results": lambda: collected(make_judge(), job, items),
    }[look]()

    assert isinstance(error, errors.ConnectionFailedError)
    assert_nothing_leaks(error, server.api_key)


def test_a_stream_of_results_that_breaks_is_a_broken_connection(
    make_judge: Callable[..., JobJudge], server: ProviderServer
):
    items = items_of(4)
    job = accepted(make_judge(), items)
    polled(make_judge(), job)
    server.jobs.faults.script([None, "drop_mid_body"])  # the batch is looked at first
    judge, results = make_judge(), []

    async def run() -> None:
        async for result in judge.job_results(job.provider_job_id, items):
            results.append(result)

    error = asked(judge, run)

    assert isinstance(error, errors.ConnectionFailedError)
    assert_nothing_leaks(error, server.api_key)
    assert len(results) < 4


# --- pace


def test_calls_wait_as_long_as_the_provider_asked(make_judge: Callable[..., JobJudge], server: ProviderServer):
    server.retry_after_seconds = 1.0
    server.faults.script(["rate_limited_retry_after"])
    judge = make_judge()
    prompt = request_for().prompt

    async def run() -> tuple[float, float]:
        started = time.monotonic()
        await judge.pace(prompt)
        before = time.monotonic() - started
        with pytest.raises(errors.RateLimitedError) as caught:
            await judge.judge(request_for())
        assert caught.value.retry_after_seconds == 1.0
        await judge.pace(prompt)
        return before, time.monotonic() - started

    times = asked(judge, run)

    assert isinstance(times, tuple)
    assert times[0] < 0.5
    assert 0.95 <= times[1] < 3.0


def test_calls_wait_when_an_answer_tells_that_nothing_remains(
    make_judge: Callable[..., JobJudge], server: ProviderServer
):
    server.limits, server.minute_seconds = (2, 1_000_000), 1.5
    judge = make_judge()

    async def run() -> float:
        started = time.monotonic()
        for _ in range(3):
            await judge.pace(request_for().prompt)
            await judge.judge(request_for())
        return time.monotonic() - started

    elapsed = asked(judge, run)

    assert isinstance(elapsed, float)
    assert 1.0 < elapsed < 6.0


def test_calls_keep_to_our_own_limit(make_judge: Callable[..., JobJudge], server: ProviderServer):
    judge = make_judge(requests_per_minute=300)  # five at once, then five a second

    async def run() -> float:
        started = time.monotonic()
        for _ in range(7):
            await judge.pace(request_for().prompt)
        return time.monotonic() - started

    elapsed = asked(judge, run)

    assert isinstance(elapsed, float)
    assert 0.35 <= elapsed < 2.0


NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after": format_datetime(NOON + timedelta(seconds=90), usegmt=True)}, 90.0),
        ({"retry-after": format_datetime(NOON - timedelta(seconds=90), usegmt=True)}, 0.0),
        ({"retry-after": "later"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None):
    assert retry_after_seconds(headers, NOON) == seconds


def test_nothing_in_a_job_tells_who_is_asked_about(make_judge: Callable[..., JobJudge], server: ProviderServer):
    items = [JobItem(f"{custom_id_prefix(KEY)}0", request_for(comparison_id="batch-7-c000123"))]

    [result] = ended(make_judge(), items)

    sent = json.dumps([[call.body, call.headers] for call in server.calls])
    assert "batch-7" not in sent
    assert "c000123" not in sent
    for secret in PRIVATE:
        assert secret not in repr(result)
