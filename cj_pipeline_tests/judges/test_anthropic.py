"""The judge that asks Anthropic, through the official SDK, against a server that speaks its protocol.

What the tests of all judges that ask a provider share is here too: `asked`, `leaks`, `EXPECTED_ERRORS`.
"""

import asyncio
import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from contextlib import closing
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest

from cj_pipeline.core.models import Winner
from cj_pipeline.judges import errors
from cj_pipeline.judges.anthropic import AnthropicJudge
from cj_pipeline.judges.errors import Fate, JudgeError
from cj_pipeline.judges.models import JudgeOptions, model_rules
from cj_pipeline.judges.pricing import Price, PriceList, Rates
from cj_pipeline.judges.prompts import JudgeInstructions, build_prompt
from cj_pipeline.judges.protocol import JobJudge, JudgeAnswer, JudgeRequest, Usage
from cj_pipeline_tests.providers.faults import FAULTS
from cj_pipeline_tests.providers.server import ProviderServer

T = TypeVar("T")

TODAY = date(2026, 11, 21)
MODEL = "claude-haiku-4-5"
ESSAY_A = "My grandmother's xylophone stood in the hall. Förälskad!"
ESSAY_B = "Penguins quarrel about the weather every Thursday."
PRIVATE = ("xylophone", "quarrel", "Förälskad", "develops its ideas")  # words of the essays and of a justification

INSTRUCTIONS = JudgeInstructions(language="English", student_prompt="Write about home.", rubric="Ideas. " * 900)

# What each fault of the server has to become; None: an answer all the same.
EXPECTED_ERRORS: dict[str, type[JudgeError] | None] = {
    "rate_limited": errors.RateLimitedError,
    "rate_limited_retry_after": errors.RateLimitedError,
    "overloaded": errors.OverloadedError,
    "server_error": errors.ProviderServerError,
    "bad_gateway": errors.ProviderServerError,
    "unavailable": errors.ProviderServerError,
    "hang": errors.JudgeTimeoutError,
    "drop": errors.ConnectionFailedError,
    "drop_mid_body": errors.ConnectionFailedError,
    "not_json_body": errors.ConnectionFailedError,
    "invalid_json": errors.MalformedAnswerError,
    "wrong_winner": errors.MalformedAnswerError,
    "missing_field": errors.MalformedAnswerError,
    "extra_field": errors.MalformedAnswerError,
    "confidence_out_of_range": errors.MalformedAnswerError,
    "confidence_string": errors.MalformedAnswerError,
    "empty_answer": errors.MalformedAnswerError,
    "long_justification": None,
    "truncated": errors.TruncatedAnswerError,
    "refusal": errors.RefusedError,
    "content_filter": errors.RefusedError,
    "context_too_long": errors.ContextTooLongError,
    "authentication": errors.AuthenticationFailedError,
    "permission": errors.PermissionRefusedError,
    "model_not_found": errors.ModelNotFoundError,
    "quota_exhausted": errors.QuotaExhaustedError,
    "billing": errors.QuotaExhaustedError,
    "spend_limit": errors.QuotaExhaustedError,
    "bad_request": errors.InvalidRequestError,
}
AFTER_AN_ANSWER = (errors.MalformedAnswerError, errors.TruncatedAnswerError, errors.RefusedError)
NOBODY_KNOWS = (errors.JudgeTimeoutError, errors.ConnectionFailedError)


def request_for(text_a: str = ESSAY_A, text_b: str = ESSAY_B, comparison_id: str = "batch-7-c000123") -> JudgeRequest:
    prompt = build_prompt(INSTRUCTIONS, text_a, text_b, fence_marker="0123456789abcdef0123456789abcdef")
    return JudgeRequest(comparison_id, prompt, repeat=0, attempt=1)


def asked(judge: JobJudge, do: Callable[[], Coroutine[Any, Any, T]]) -> T | JudgeError:
    """What a coroutine of the judge's brings, an error of ours included; the judge is closed."""

    async def run() -> T | JudgeError:
        try:
            return await do()
        except JudgeError as error:
            return error
        finally:
            await judge.aclose()

    return asyncio.run(run())


def judged(judge: JobJudge, request: JudgeRequest | None = None) -> JudgeAnswer | JudgeError:
    return asked(judge, lambda: judge.judge(request or request_for()))


def told(error: BaseException) -> str:
    """All that a log, a traceback or a debugger's line could show of an error and of what hangs on it."""
    shown = [str(error), repr(error), *traceback.format_exception(error), repr(vars(error))]
    return "\n".join(shown)


def assert_nothing_leaks(error: BaseException, *secrets: str) -> None:
    assert error.__cause__ is None
    assert error.__context__ is None
    for secret in (*PRIVATE, *secrets, "****"):  # stars: how OpenAI echoes a key
        assert secret not in told(error)


def trust_nobody(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """On loopback nothing is encrypted, and reading all certificate authorities takes 20 ms for every client."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("SSL_CERT_DIR", str(folder))


def seconds_for(fault: str) -> float:
    return 0.4 if fault == "hang" else 10.0


def assert_is_what_the_fault_must_become(
    outcome: JudgeAnswer | JudgeError, fault: str, server: ProviderServer, calls: int = 1
) -> None:
    """The error's class, what it says of its call and its cost, and that nothing was asked behind the ledger's back."""
    assert type(outcome) is (EXPECTED_ERRORS[fault] or JudgeAnswer)
    assert len(server.model_calls) == calls
    if isinstance(outcome, JudgeAnswer):
        return
    assert_nothing_leaks(outcome, server.api_key)
    assert outcome.latency_seconds is not None
    if isinstance(outcome, NOBODY_KNOWS):
        assert outcome.cost_usd is None  # it may have been answered, and charged
    elif isinstance(outcome, AFTER_AN_ANSWER):
        assert outcome.http_status == 200
        assert outcome.usage.input + outcome.usage.cache_write > 1000
        assert outcome.cost_usd is not None
        assert outcome.cost_usd > 0.001
        assert outcome.request_id is not None
    else:
        assert outcome.http_status is not None
        assert outcome.cost_usd == 0.0
        assert outcome.request_id is not None


NO_PRICES = PriceList(())


def price_of(provider: str, model: str) -> PriceList:
    rates = Rates(input=1.0, cache_read=0.1, cache_write=1.25, output=5.0)
    price = Price(
        provider=provider,
        model=model,
        effective_from=TODAY,
        usd_per_million=rates,
        batch_discount=0.5,
        source="made for this test",
        retrieved=TODAY,
    )
    return PriceList((price,))


def anthropic_judge(**changes: Any) -> AnthropicJudge:
    arguments: dict[str, Any] = {"prices": NO_PRICES, "timeout_seconds": 10.0, "on": TODAY} | changes
    model = arguments.pop("model", MODEL)
    return AnthropicJudge(model, arguments.pop("options", JudgeOptions()), **arguments)


class PlainServer:
    """A server that answers every POST with `answers`: a status, and what is to be JSON."""

    def __init__(self, answers: tuple[int, Any] = (200, {})) -> None:
        self.answers = answers
        plain = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, answer = plain.answer(self.path, body)
                encoded = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(encoded)))
                self.end_headers()
                self.wfile.write(encoded)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        return self.answers

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(autouse=True)
def no_authorities(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trust_nobody(monkeypatch, tmp_path)


@pytest.fixture
def server(provider_server: ProviderServer) -> ProviderServer:
    return provider_server


# --- answers and errors


def test_an_answer_has_the_winner_the_server_decided_for(server: ProviderServer):
    server.decide = lambda prompt, model: {"winner": "B", "confidence": 4, "justification": "B is livelier."}

    answer = judged(anthropic_judge())

    assert isinstance(answer, JudgeAnswer)
    assert (answer.winner, answer.confidence, answer.justification) == (Winner.B, 4, "B is livelier.")
    assert answer.request_id is not None
    assert answer.request_id.startswith("req_")
    assert 0 < answer.latency_seconds < 10


def test_the_table_of_expected_errors_names_every_fault():
    assert EXPECTED_ERRORS.keys() == FAULTS


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_every_fault_becomes_its_own_error_with_its_cost_and_none_becomes_a_winner(server: ProviderServer, fault: str):
    server.faults.script([fault])
    judge = anthropic_judge(prices=price_of("anthropic", MODEL), timeout_seconds=seconds_for(fault))

    outcome = judged(judge)

    assert_is_what_the_fault_must_become(outcome, fault, server)


def test_a_call_that_found_nobody_to_connect_to_cost_nothing(server: ProviderServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")

    error = judged(anthropic_judge())

    assert isinstance(error, errors.ConnectionFailedError)
    assert error.cost_usd == 0.0
    assert_nothing_leaks(error, server.api_key)


def test_a_justification_longer_than_asked_for_is_kept_whole(server: ProviderServer):
    server.faults.script(["long_justification"])

    answer = judged(anthropic_judge())

    assert isinstance(answer, JudgeAnswer)
    assert len(answer.justification.split()) == 120


def test_a_hanging_call_ends_within_the_time_allowed(server: ProviderServer):
    server.faults.script(["hang"])
    judge = anthropic_judge(timeout_seconds=0.4)

    error = judged(judge)

    assert isinstance(error, errors.JudgeTimeoutError)
    assert error.latency_seconds is not None
    assert 0.35 < error.latency_seconds < 1.5


def test_an_answer_that_drips_in_is_bounded_by_the_whole_time_allowed(monkeypatch: pytest.MonkeyPatch):
    """Each byte comes before the SDK's own timeout, which counts from byte to byte."""
    import socket

    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with closing(connection):
                for byte in b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + b"x" * 1000:
                    time.sleep(0.05)
                    try:
                        connection.sendall(bytes([byte]))
                    except OSError:
                        return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        monkeypatch.setenv("ANTHROPIC_BASE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        error = judged(anthropic_judge(timeout_seconds=0.5))
        thread.join(5)

    assert isinstance(error, errors.JudgeTimeoutError)
    assert error.latency_seconds is not None
    assert error.latency_seconds < 1.5


def test_cancellation_passes_through(server: ProviderServer):
    server.faults.script(["hang"])
    judge = anthropic_judge()

    async def run() -> None:
        call = asyncio.create_task(judge.judge(request_for()))
        while not server.model_calls:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await judge.aclose()

    asyncio.run(run())


def test_many_calls_at_once_share_one_judge(server: ProviderServer):
    server.latency = 0.1
    judge = anthropic_judge()

    async def run() -> list[JudgeAnswer]:
        try:
            return await asyncio.gather(*(judge.judge(request_for(f"essay {n}")) for n in range(40)))
        finally:
            await judge.aclose()

    assert len(asyncio.run(run())) == 40
    assert server.max_in_flight > 20


# --- messages


def test_a_context_error_carries_the_provider_s_numbers_and_not_its_words(server: ProviderServer):
    server.faults.script(["context_too_long"])

    error = judged(anthropic_judge())

    assert isinstance(error, errors.ContextTooLongError)
    assert "250000 tokens, at most 200000" in str(error)
    assert "prompt is too long" not in str(error)


def test_a_prompt_that_cannot_fit_is_not_sent(server: ProviderServer):
    window = model_rules("anthropic", MODEL).context_window
    assert window is not None

    error = judged(anthropic_judge(), request_for("long " * (window * 8 // 5 + 1)))

    assert isinstance(error, errors.ContextTooLongError)
    assert error.cost_usd == 0.0
    assert server.calls == []


def test_half_a_surrogate_pair_is_not_sent(server: ProviderServer):
    error = judged(anthropic_judge(), request_for("xylophone \ud800"))

    assert isinstance(error, errors.InvalidRequestError)
    assert_nothing_leaks(error)
    assert server.calls == []


def test_without_a_key_the_first_call_says_which_variable_to_set(
    server: ProviderServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("ANTHROPIC_API_KEY")

    error = judged(anthropic_judge())

    assert isinstance(error, errors.AuthenticationFailedError)
    assert error.fate is Fate.REJECT
    assert "set ANTHROPIC_API_KEY in the environment of the process that judges" in str(error)
    assert server.calls == []


def test_a_wrong_key_is_named_nowhere(
    server: ProviderServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-wrong-4711")
    caplog.set_level(logging.DEBUG)

    error = judged(anthropic_judge())

    assert isinstance(error, errors.AuthenticationFailedError)
    assert_nothing_leaks(error, "sk-ant", "4711")
    assert "4711" not in caplog.text


def test_no_log_holds_an_essay_or_a_key_even_at_debug(server: ProviderServer, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    server.faults.script(["bad_request", "drop", "refusal", "wrong_winner"])

    for _ in range(5):
        judged(anthropic_judge())

    for secret in (*PRIVATE, server.api_key):
        assert secret not in caplog.text


def test_no_repr_holds_an_essay_or_a_justification(server: ProviderServer):
    answer = judged(anthropic_judge())

    assert isinstance(answer, JudgeAnswer)
    for secret in PRIVATE:
        assert secret not in repr(answer)
        assert secret not in repr(request_for())


# --- the wire


def test_the_shared_part_stands_before_the_essays_and_is_marked_for_the_cache(server: ProviderServer):
    request = request_for()
    judged(anthropic_judge(), request)

    body = server.model_calls[0].body
    prompt = request.prompt
    assert body["system"] == [{"type": "text", "text": prompt.system}]
    assert body["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": prompt.stable, "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": prompt.essays},
            ],
        }
    ]


def test_nothing_on_the_wire_tells_who_is_asked_about(server: ProviderServer):
    judged(anthropic_judge(), request_for(comparison_id="batch-7-c000123"))

    call = server.model_calls[0]
    sent = json.dumps(call.body) + json.dumps(call.headers)
    assert call.body.keys() <= {"model", "max_tokens", "messages", "output_config", "system", "thinking"}
    assert "batch-7" not in sent
    assert "c000123" not in sent


def test_the_answer_s_form_is_forced_by_a_schema_that_the_provider_takes(server: ProviderServer):
    judged(anthropic_judge())

    form = server.model_calls[0].body["output_config"]["format"]
    assert form["type"] == "json_schema"
    assert form["schema"]["required"] == ["winner", "confidence", "justification"]
    assert form["schema"]["properties"]["winner"]["enum"] == ["A", "B"]


def test_effort_travels_as_adaptive_thinking_where_the_model_has_it(server: ProviderServer):
    judged(anthropic_judge(model="claude-sonnet-5", options=JudgeOptions(reasoning_effort="low")))

    body = server.model_calls[0].body
    assert body["thinking"] == {"type": "adaptive"}
    assert body["output_config"]["effort"] == "low"


def test_effort_travels_as_a_thinking_budget_where_the_model_takes_one(server: ProviderServer):
    judged(anthropic_judge(options=JudgeOptions(thinking_budget_tokens=2000)))

    body = server.model_calls[0].body
    assert body["thinking"] == {"type": "enabled", "budget_tokens": 2000}
    assert body["max_tokens"] > 2000
    assert "effort" not in body["output_config"]


def test_where_nothing_is_asked_for_nothing_is_sent(server: ProviderServer):
    judged(anthropic_judge())

    body = server.model_calls[0].body
    assert "thinking" not in body
    assert body["output_config"].keys() == {"format"}


def test_an_empty_system_prompt_is_left_out(server: ProviderServer):
    prompt = build_prompt(JudgeInstructions(system_prompt=""), ESSAY_A, ESSAY_B)

    outcome = judged(anthropic_judge(), JudgeRequest("c1", prompt, repeat=0, attempt=1))

    assert isinstance(outcome, JudgeAnswer)
    assert "system" not in server.model_calls[0].body


# --- what it costs


def test_usage_and_cost_are_what_the_price_list_makes_of_the_provider_s_numbers(server: ProviderServer):
    judge = anthropic_judge(prices=price_of("anthropic", MODEL))

    async def run() -> list[JudgeAnswer]:
        try:
            return [await judge.judge(request_for(essay)) for essay in ("first essay", "second essay")]
        finally:
            await judge.aclose()

    written, read = asyncio.run(run())

    prompt = request_for("first essay").prompt
    shared = (len(prompt.system) + len(prompt.stable)) // 4  # the server's tokens: a quarter of the characters
    assert (written.usage.cache_write, written.usage.cache_read) == (shared, 0)
    assert (read.usage.cache_write, read.usage.cache_read) == (0, shared)
    assert written.usage.input == (len(prompt.system + prompt.stable + prompt.essays)) // 4 - shared
    # per million: 1 input, 0.1 read, 1.25 written, 5 output
    assert written.cost_usd == pytest.approx(
        (written.usage.input * 1 + shared * 1.25 + written.usage.output * 5) / 1e6, rel=1e-9
    )
    assert read.cost_usd == pytest.approx((read.usage.input * 1 + shared * 0.1 + read.usage.output * 5) / 1e6, rel=1e-9)


def message(stop_reason: str = "end_turn", **usage: Any) -> dict[str, Any]:
    """An answer of Anthropic's that is whole, whatever the reason it ended for."""
    texts = ('{"winner":"A",', '"confidence":1,"justification":"-"}')
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    content = [thought, *({"type": "text", "text": text} for text in texts)]
    return {"id": "msg_1", "type": "message", "content": content, "stop_reason": stop_reason, "usage": usage}


def judged_by(server: PlainServer, monkeypatch: pytest.MonkeyPatch) -> JudgeAnswer | JudgeError:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    return judged(anthropic_judge())


def test_thinking_is_not_read_and_is_counted_within_the_output(monkeypatch: pytest.MonkeyPatch):
    usage = {"input_tokens": 7, "cache_read_input_tokens": None, "output_tokens": 90}
    with PlainServer((200, message(**usage, output_tokens_details={"thinking_tokens": 60}))) as plain:
        answer = judged_by(plain, monkeypatch)

    assert isinstance(answer, JudgeAnswer)
    assert (answer.winner, answer.confidence) == (Winner.A, 1)
    assert answer.usage == Usage(input=7, output=90, reasoning=60)


def test_without_a_price_the_cost_is_unknown(server: ProviderServer):
    judge = anthropic_judge(prices=NO_PRICES)
    answer = judged(judge)

    assert isinstance(answer, JudgeAnswer)
    assert answer.cost_usd is None
    assert judge.upper_bound_usd(request_for().prompt) is None


@pytest.mark.parametrize("in_job", [False, True])
def test_no_call_costs_more_than_its_upper_bound(server: ProviderServer, in_job: bool):
    """Every byte a token, every token written to the cache, and the whole output limit used."""
    judge = anthropic_judge(prices=price_of("anthropic", MODEL))
    prompt = request_for().prompt
    bound = judge.upper_bound_usd(prompt, in_job=in_job)
    judged(judge)
    size = len((prompt.system + prompt.stable + prompt.essays).encode())
    limit = server.model_calls[0].body["max_tokens"]

    discount = 0.5 if in_job else 1.0
    assert bound is not None
    assert (size * 1.25 + limit * 5) / 1e6 * discount <= bound
    assert bound <= ((size + 2000) * 1.25 + limit * 5) / 1e6 * discount


def test_the_cache_stays_warm_where_the_shared_part_is_long_enough_for_it():
    least = model_rules("anthropic", MODEL).cache_min_tokens
    assert least is not None
    judge = anthropic_judge()

    def seconds(rubric_tokens: int) -> float | None:
        return judge.cache_seconds(build_prompt(JudgeInstructions(rubric="abcd" * rubric_tokens), "a", "b"))

    assert seconds(least) == 300.0
    assert seconds(least - 1000) is None


@pytest.mark.parametrize(
    ("stop_reason", "expected"),
    [
        ("max_tokens", errors.TruncatedAnswerError),
        ("refusal", errors.RefusedError),
        ("model_context_window_exceeded", errors.ContextTooLongError),
    ],
)
def test_each_way_of_not_ending_is_an_error_even_if_the_answer_is_whole(
    stop_reason: str, expected: type[JudgeError], monkeypatch: pytest.MonkeyPatch
):
    with PlainServer((200, message(stop_reason, input_tokens=7, output_tokens=9))) as plain:
        error = judged_by(plain, monkeypatch)

    assert type(error) is expected
    assert isinstance(error, JudgeError)
    assert error.usage == Usage(input=7, output=9)


@pytest.mark.parametrize(
    ("status", "kind", "code", "expected"),
    [
        (400, "invalid_request_error", "organization_on_hold", errors.PermissionRefusedError),
        (402, "billing_error", "linked_organization_spend_limit_reached", errors.QuotaExhaustedError),
        (408, "timeout_error", None, errors.ProviderServerError),
        (409, "conflict_error", None, errors.ProviderServerError),
        (413, "request_too_large", None, errors.ContextTooLongError),
        (422, "invalid_request_error", None, errors.InvalidRequestError),
        (429, "rate_limit_error", "contract_spend_limit_reached", errors.QuotaExhaustedError),
        (429, "rate_limit_error", "ramp_limit_exceeded", errors.RateLimitedError),
        (500, "overloaded_error", None, errors.OverloadedError),
        (504, "timeout_error", None, errors.ProviderServerError),
    ],
)
def test_statuses_and_codes_beyond_the_server_s_faults(
    status: int, kind: str, code: str | None, expected: type[JudgeError], monkeypatch: pytest.MonkeyPatch
):
    error_body = {"type": kind, "message": ESSAY_A, "details": {"error_code": code}}
    with PlainServer((status, {"type": "error", "error": error_body})) as plain:
        error = judged_by(plain, monkeypatch)

    assert type(error) is expected
    assert isinstance(error, JudgeError)
    assert error.http_status == status
    assert_nothing_leaks(error)


@pytest.mark.parametrize("answer", [{}, [], "text", {"content": "A"}, {"content": [None]}, {"usage": [1]}])
def test_an_answer_of_another_form_is_never_a_winner(answer: Any, monkeypatch: pytest.MonkeyPatch):
    with PlainServer((200, answer)) as plain:
        error = judged_by(plain, monkeypatch)

    kind = errors.MalformedAnswerError if isinstance(answer, dict) else errors.ConnectionFailedError
    assert isinstance(error, kind)
