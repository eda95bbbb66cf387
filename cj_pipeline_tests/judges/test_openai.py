"""The judge that asks OpenAI and servers that speak its protocol, through the official SDK."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.models import Winner
from cj_pipeline.judges import errors
from cj_pipeline.judges.errors import Fate, JudgeError
from cj_pipeline.judges.models import JudgeOptions
from cj_pipeline.judges.openai import OpenAIJudge
from cj_pipeline.judges.prompts import JudgeInstructions, build_prompt
from cj_pipeline.judges.protocol import JudgeAnswer, JudgeRequest
from cj_pipeline_tests.judges.test_anthropic import (
    ESSAY_A,
    NO_PRICES,
    PRIVATE,
    TODAY,
    PlainServer,
    assert_is_what_the_fault_must_become,
    assert_nothing_leaks,
    judged,
    price_of,
    request_for,
    seconds_for,
    trust_nobody,
)
from cj_pipeline_tests.providers.faults import FAULTS
from cj_pipeline_tests.providers.server import ProviderServer

MODEL = "gpt-5.1"


def openai_judge(**changes: Any) -> OpenAIJudge:
    arguments: dict[str, Any] = {"prices": NO_PRICES, "timeout_seconds": 10.0, "on": TODAY, "provider": "openai"}
    arguments |= changes
    model = arguments.pop("model", MODEL)
    return OpenAIJudge(model, arguments.pop("options", JudgeOptions()), **arguments)


def compatible_judge(base_url: str, **changes: Any) -> OpenAIJudge:
    return openai_judge(**{"provider": "compatible", "base_url": base_url, "model": "llama3.1:8b"} | changes)


@pytest.fixture(autouse=True)
def no_authorities(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trust_nobody(monkeypatch, tmp_path)


@pytest.fixture
def server(provider_server: ProviderServer) -> ProviderServer:
    return provider_server


# --- answers and errors


def test_an_answer_has_the_winner_the_server_decided_for(server: ProviderServer):
    server.decide = lambda prompt, model: {"winner": "B", "confidence": 2, "justification": "B holds together."}

    answer = judged(openai_judge())

    assert isinstance(answer, JudgeAnswer)
    assert (answer.winner, answer.confidence, answer.justification) == (Winner.B, 2, "B holds together.")
    assert answer.request_id is not None
    assert answer.latency_seconds > 0
    assert [call.path for call in server.calls] == ["/v1/responses"]


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_every_fault_becomes_its_own_error_with_its_cost_and_none_becomes_a_winner(server: ProviderServer, fault: str):
    server.faults.script([fault])
    judge = openai_judge(prices=price_of("openai", MODEL), timeout_seconds=seconds_for(fault))

    outcome = judged(judge)

    assert_is_what_the_fault_must_become(outcome, fault, server)


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_with_chat_completions_every_fault_becomes_the_same(server: ProviderServer, fault: str):
    server.responses_missing = True
    # a request that is not accepted is tried in every format before that is believed
    calls = 3 if fault == "bad_request" else 1
    server.faults.script([fault] * calls)
    prices = price_of("compatible", "llama3.1:8b")
    judge = compatible_judge(server.openai_url, prices=prices, timeout_seconds=seconds_for(fault))

    outcome = judged(judge)

    assert_is_what_the_fault_must_become(outcome, fault, server, calls=calls + 1)


def test_a_request_that_is_not_accepted_is_told_by_its_identifiers(server: ProviderServer):
    server.faults.script(["bad_request"])

    error = judged(openai_judge())

    assert isinstance(error, errors.InvalidRequestError)
    assert "param verbositi, code unknown_parameter, type invalid_request_error (HTTP 400)" in str(error)


def test_without_a_key_the_first_call_says_which_variable_to_set(
    server: ProviderServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("OPENAI_API_KEY")

    error = judged(openai_judge())

    assert isinstance(error, errors.AuthenticationFailedError)
    assert error.fate is Fate.REJECT
    assert "set OPENAI_API_KEY in the environment of the process that judges" in str(error)


def test_a_wrong_key_is_named_nowhere(
    server: ProviderServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-4711")
    caplog.set_level(logging.DEBUG)

    error = judged(openai_judge())

    assert isinstance(error, errors.AuthenticationFailedError)
    assert_nothing_leaks(error, "sk-w", "4711")  # OpenAI's own message quotes its start
    assert "4711" not in caplog.text


def test_no_log_holds_an_essay_or_a_key_even_at_debug(server: ProviderServer, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    server.faults.script(["bad_request", "drop", "refusal", "wrong_winner"])

    for _ in range(5):
        judged(openai_judge())

    for secret in (*PRIVATE, server.api_key):
        assert secret not in caplog.text


# --- the wire


def test_the_shared_part_stands_before_the_essays(server: ProviderServer):
    request = request_for()
    judged(openai_judge(), request)

    body, prompt = server.model_calls[0].body, request.prompt
    assert body["instructions"] == prompt.system
    assert body["input"] == [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": prompt.stable},
                {"type": "input_text", "text": prompt.essays},
            ],
        }
    ]


def test_nothing_on_the_wire_tells_who_is_asked_about(server: ProviderServer):
    judged(openai_judge(), request_for(comparison_id="batch-7-c000123"))

    call = server.model_calls[0]
    sent = json.dumps(call.body) + json.dumps(call.headers)
    assert not call.body.keys() & {"metadata", "user", "safety_identifier"}
    assert "batch-7" not in sent
    assert "c000123" not in sent


def test_the_provider_is_asked_not_to_keep_the_essays(server: ProviderServer):
    judged(openai_judge())

    assert server.model_calls[0].body["store"] is False


def test_the_answer_s_form_is_forced_by_a_strict_schema(server: ProviderServer):
    judged(openai_judge())

    form = server.model_calls[0].body["text"]["format"]
    assert (form["type"], form["strict"]) == ("json_schema", True)
    assert form["schema"]["required"] == ["winner", "confidence", "justification"]
    assert form["schema"]["additionalProperties"] is False


def test_effort_and_verbosity_travel_where_the_protocol_has_them(server: ProviderServer):
    options = JudgeOptions(reasoning_effort="low", output_verbosity="low")
    judged(openai_judge(options=options))

    body = server.model_calls[0].body
    assert body["reasoning"] == {"effort": "low"}
    assert body["text"]["verbosity"] == "low"


def test_usage_and_cost_are_what_the_price_list_makes_of_the_provider_s_numbers(server: ProviderServer):
    judge = openai_judge(prices=price_of("openai", MODEL), options=JudgeOptions(reasoning_effort="low"))

    async def run() -> list[JudgeAnswer]:
        try:
            return [await judge.judge(request_for(essay)) for essay in ("first essay", "second essay")]
        finally:
            await judge.aclose()

    first, second = asyncio.run(run())

    prompt = request_for("first essay").prompt
    whole = len(prompt.system + prompt.stable + prompt.essays) // 4  # the server's tokens
    assert (first.usage.input, first.usage.cache_read) == (whole, 0)
    assert second.usage.cache_read >= (len(prompt.system) + len(prompt.stable)) // 4
    assert 0 < second.usage.input < 100
    assert 0 < second.usage.reasoning < second.usage.output
    # per million: 1 input, 0.1 read, 5 output; reasoning is within the output
    read = second.usage.cache_read
    assert second.cost_usd == pytest.approx((second.usage.input + read * 0.1 + second.usage.output * 5) / 1e6, rel=1e-9)


def test_the_cache_key_depends_on_the_shared_part_alone(server: ProviderServer):
    other_prompt = build_prompt(JudgeInstructions(rubric="Another rubric."), ESSAY_A, ESSAY_A)
    for request in (
        request_for("one", "two"),
        request_for("three", "four"),
        JudgeRequest("c", other_prompt, repeat=0, attempt=1),
    ):
        judged(openai_judge(), request)

    first, second, third = (call.body["prompt_cache_key"] for call in server.model_calls)
    assert first == second != third
    assert len(first) <= 64


def test_answers_over_one_connection_cost_a_few_milliseconds_each(server: ProviderServer):
    judge = openai_judge()

    async def run() -> float:
        try:
            answers = [await judge.judge(request_for()) for _ in range(20)]
        finally:
            await judge.aclose()
        return sorted(answer.latency_seconds for answer in answers)[10]

    assert asyncio.run(run()) < 0.1  # measured: 0.003


# --- compatible servers


def test_a_compatible_server_must_be_named():
    with pytest.raises(InputError, match="base_url"):
        openai_judge(provider="compatible", base_url=None)


def test_a_compatible_server_with_responses_is_asked_by_responses(server: ProviderServer):
    outcome = judged(compatible_judge(server.openai_url))

    assert isinstance(outcome, JudgeAnswer)
    assert [call.path for call in server.calls] == ["/v1/responses"]
    assert "prompt_cache_key" not in server.calls[0].body


def test_a_compatible_server_without_responses_is_asked_by_chat_completions_from_then_on(server: ProviderServer):
    server.responses_missing = True
    judge = compatible_judge(server.openai_url)

    async def run() -> list[JudgeAnswer]:
        try:
            return [await judge.judge(request_for(f"essay {n}")) for n in range(3)]
        finally:
            await judge.aclose()

    answers = asyncio.run(run())

    assert len(answers) == 3
    assert [call.path for call in server.calls] == ["/v1/responses", *["/v1/chat/completions"] * 3]
    body, prompt = server.calls[-1].body, request_for("essay 2").prompt
    assert body["messages"] == [
        {"role": "system", "content": prompt.system},
        {"role": "user", "content": f"{prompt.stable}\n\n{prompt.essays}"},
    ]
    assert body["response_format"]["type"] == "json_schema"
    assert answers[1].usage.cache_read > 1000


def test_a_model_that_a_compatible_server_lacks_is_not_taken_for_a_missing_path(server: ProviderServer):
    server.unknown_models = {"llama3.1:8b"}

    error = judged(compatible_judge(server.openai_url))

    assert type(error) is errors.ModelNotFoundError
    assert [call.path for call in server.calls] == ["/v1/responses"]


def test_a_compatible_server_with_neither_path_says_so(server: ProviderServer):
    error = judged(compatible_judge(f"{server.openai_url}/nowhere"))

    assert isinstance(error, errors.ModelNotFoundError)
    assert error.fate is Fate.REJECT
    assert "base_url" in str(error)


def test_a_compatible_server_s_key_comes_from_a_variable_of_its_own(
    server: ProviderServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "not-for-others")
    assert isinstance(judged(compatible_judge(server.openai_url)), JudgeAnswer)

    monkeypatch.delenv("CJ_OPENAI_COMPATIBLE_API_KEY")
    server.api_key = "unused"
    assert isinstance(judged(compatible_judge(server.openai_url)), JudgeAnswer)


def test_nothing_is_known_of_a_compatible_server_s_cache(server: ProviderServer):
    judge = compatible_judge(server.openai_url)

    assert judge.cache_seconds(request_for().prompt) is None
    assert judged(judge)


class ChatServer(PlainServer):
    """A server of the simpler sort, with Chat Completions only; it checks nothing but the format asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.refuses: set[str] = set()
        self.content: Any = '{"winner": "A", "confidence": 3, "justification": "clearer"}'
        self.usage: Any = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        self.missing_path_status = 404

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path != "/v1/chat/completions":
            return self.missing_path_status, {"detail": "Not Found"}
        form = body.get("response_format", {"type": "none"})["type"]
        self.asked.append(form)
        if form in self.refuses:
            return 400, {"error": {"message": f"'{form}' cannot be used with {ESSAY_A}", "type": "BadRequestError"}}
        choice = {"index": 0, "message": {"role": "assistant", "content": self.content}, "finish_reason": "stop"}
        return 200, {"id": "1", "object": "chat.completion", "model": "m", "choices": [choice], "usage": self.usage}


def judged_often(judge: OpenAIJudge, times: int) -> list[JudgeAnswer]:
    async def run() -> list[JudgeAnswer]:
        try:
            return [await judge.judge(request_for()) for _ in range(times)]
        finally:
            await judge.aclose()

    return asyncio.run(run())


@pytest.mark.parametrize("status", [404, 405, 501])
def test_each_way_of_not_having_a_path_leads_to_chat_completions(status: int):
    with ChatServer() as plain:
        plain.missing_path_status = status

        assert len(judged_often(compatible_judge(f"{plain.url}/v1"), 2)) == 2


@pytest.mark.parametrize(
    ("refused", "tried"),
    [
        ({"json_schema"}, ["json_schema", "json_object", "json_object"]),
        ({"json_schema", "json_object"}, ["json_schema", "json_object", "none", "none"]),
    ],
)
def test_a_format_that_a_server_refuses_is_not_asked_for_again(refused: set[str], tried: list[str]):
    with ChatServer() as plain:
        plain.refuses = refused

        answers = judged_often(compatible_judge(f"{plain.url}/v1"), 2)

        assert len(answers) == 2
        assert plain.asked == tried


def test_a_request_refused_in_every_format_is_an_error_and_changes_nothing():
    with ChatServer() as plain:
        plain.refuses = {"json_schema", "json_object", "none"}
        error = judged(compatible_judge(f"{plain.url}/v1"))

        assert isinstance(error, errors.InvalidRequestError)
        assert_nothing_leaks(error)
        assert plain.asked == ["json_schema", "json_object", "none"]


@pytest.mark.parametrize("fence", ["```json\n{}\n```", "\n```json\n{}```\n", "```json  \n{}\n```"])
def test_a_json_fence_around_the_answer_is_taken_off(fence: str):
    with ChatServer() as plain:
        plain.content = fence.replace("{}", plain.content)

        assert judged_often(compatible_judge(f"{plain.url}/v1"), 1)[0].winner is Winner.A


@pytest.mark.parametrize(
    "content",
    [
        "```\n{}\n```",
        "Sure! Here you are:\n```json\n{}\n```",
        "```json\n{}\n```\nI hope this helps.",
        "{},",
        "The winner is A.",
        "",
        None,
        [{"type": "text", "text": "{}"}],
        {"winner": "A"},
    ],
)
def test_nothing_else_is_mended(content: Any):
    with ChatServer() as plain:
        plain.content = content.replace("{}", plain.content) if isinstance(content, str) else content

        error = judged(compatible_judge(f"{plain.url}/v1"))

    assert isinstance(error, errors.MalformedAnswerError)


@pytest.mark.parametrize("usage", [None, "many", {}])
def test_a_server_that_tells_no_tokens_has_no_known_cost(usage: Any):
    with ChatServer() as plain:
        plain.usage = usage
        judge = compatible_judge(f"{plain.url}/v1", prices=price_of("compatible", "llama3.1:8b"))

        answer = judged_often(judge, 1)[0]

    assert answer.cost_usd is None


@pytest.mark.parametrize(
    "answer",
    [{}, [], "text", {"choices": []}, {"choices": [None]}, {"choices": "A"}, {"output": [1]}, {"choices": [{}]}],
)
def test_an_answer_of_another_form_is_never_a_winner(answer: Any, monkeypatch: pytest.MonkeyPatch):
    with PlainServer() as plain:
        plain.answers = (200, answer)

        error = judged(compatible_judge(f"{plain.url}/v1"))

    kind = errors.MalformedAnswerError if isinstance(answer, dict) else errors.ConnectionFailedError
    assert isinstance(error, kind)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "content_filter", errors.RefusedError),
        (400, "invalid_prompt", errors.RefusedError),
        (403, "model_not_found", errors.ModelNotFoundError),
        (408, None, errors.ProviderServerError),
        (409, None, errors.ProviderServerError),
        (413, None, errors.ContextTooLongError),
        (422, None, errors.InvalidRequestError),
        (429, "billing_hard_limit_reached", errors.QuotaExhaustedError),
        (504, None, errors.ProviderServerError),
        (529, None, errors.OverloadedError),
    ],
)
def test_statuses_and_codes_beyond_the_server_s_faults(
    status: int, code: str | None, expected: type[JudgeError], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with PlainServer() as plain:
        body = {"error": {"message": ESSAY_A, "type": ESSAY_A, "param": ESSAY_A, "code": code}}
        plain.answers = (status, body)

        error = judged(openai_judge(base_url=f"{plain.url}/v1"))

    assert type(error) is expected
    assert isinstance(error, JudgeError)
    assert error.http_status == status
    assert_nothing_leaks(error)


def test_the_numbers_of_a_context_error_are_told_in_our_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    words = (
        "This model's maximum context length is 128000 tokens. However, your messages resulted in 130512 tokens. "
        f"Please reduce the length of {ESSAY_A}."
    )
    with PlainServer() as plain:
        plain.answers = (400, {"error": {"message": words, "code": "context_length_exceeded"}})

        error = judged(openai_judge(base_url=f"{plain.url}/v1"))

    assert isinstance(error, errors.ContextTooLongError)
    assert "130512 tokens, at most 128000" in str(error)
    assert_nothing_leaks(error)
