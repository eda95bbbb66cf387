"""The loopback server, as the official SDKs see it."""

import asyncio
import hashlib
import itertools
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from anthropic.types import Message
from openai.types import Batch

from cj_pipeline_tests.providers.essays import by_strength, find_essays, strength
from cj_pipeline_tests.providers.faults import FaultPlan
from cj_pipeline_tests.providers.server import ProviderServer

CLAUDE, GPT = "claude-sonnet-5", "gpt-5.6-mini"
STABLE = "Compare the two essays and say which one is better. " * 8
MARKER = "0123456789abcdef" * 2
ESSAYS = [f"This is essay number {number}, and it argues at some length about rivers." for number in range(8)]
SCHEMA = {
    "type": "object",
    "properties": {
        "winner": {"type": "string", "enum": ["A", "B"]},
        "confidence": {"type": "integer", "enum": [1, 2, 3, 4, 5]},
        "justification": {"type": "string"},
    },
    "required": ["winner", "confidence", "justification"],
    "additionalProperties": False,
}


@pytest.fixture
def server() -> Iterator[ProviderServer]:
    with ProviderServer(seed=1) as running:
        yield running


@pytest.fixture
def claude(server: ProviderServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.anthropic_url, api_key="test-key", max_retries=0) as client:
        yield client


@pytest.fixture
def gpt(server: ProviderServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.openai_url, api_key="test-key", max_retries=0) as client:
        yield client


def fenced(text_a: str = ESSAYS[0], text_b: str = ESSAYS[1], marker: str = MARKER) -> str:
    return "\n\n".join(
        f"[BEGIN ESSAY {label} {marker}]\n{text}\n[END ESSAY {label} {marker}]"
        for label, text in (("A", text_a), ("B", text_b))
    )


def message_params(text_a: str = ESSAYS[0], text_b: str = ESSAYS[1], **more: Any) -> dict[str, Any]:
    return {
        "model": CLAUDE,
        "max_tokens": 1000,
        "system": [{"type": "text", "text": STABLE, "cache_control": {"type": "ephemeral"}}],
        "messages": [{"role": "user", "content": fenced(text_a, text_b)}],
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "low"},
    } | more


def response_params(text_a: str = ESSAYS[0], text_b: str = ESSAYS[1], **more: Any) -> dict[str, Any]:
    return {
        "model": GPT,
        "instructions": STABLE,
        "input": fenced(text_a, text_b),
        "max_output_tokens": 1000,
        "reasoning": {"effort": "low"},
        "text": {"format": {"type": "json_schema", "name": "verdict", "strict": True, "schema": SCHEMA}},
        "store": False,
    } | more


def chat_params(text_a: str = ESSAYS[0], text_b: str = ESSAYS[1], **more: Any) -> dict[str, Any]:
    return {
        "model": GPT,
        "messages": [{"role": "developer", "content": STABLE}, {"role": "user", "content": fenced(text_a, text_b)}],
        "max_completion_tokens": 1000,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA},
        },
    } | more


def pair(text_a: str = ESSAYS[0], text_b: str = ESSAYS[1]) -> tuple[str, str]:
    return hashlib.sha256(text_a.encode()).hexdigest(), hashlib.sha256(text_b.encode()).hexdigest()


def text_of(message: Message) -> str:
    (block,) = message.content
    assert block.type == "text"
    return block.text


# One call


def test_a_message_parses_into_the_sdks_type_and_carries_usage_ids_and_limits(
    server: ProviderServer, claude: anthropic.Anthropic
) -> None:
    raw = claude.messages.with_raw_response.create(**message_params())
    message = raw.parse()
    Message.model_validate(message.model_dump(), strict=True)
    assert (message.type, message.role, message.model, message.stop_reason) == (
        "message",
        "assistant",
        CLAUDE,
        "end_turn",
    )
    verdict = json.loads(text_of(message))
    assert verdict == by_strength(fenced(), CLAUDE)
    assert raw.headers["request-id"].startswith("req_")
    assert raw.headers["anthropic-ratelimit-requests-limit"] == "1000"
    assert raw.headers["anthropic-ratelimit-output-tokens-remaining"] == "9990000"
    assert raw.headers["anthropic-ratelimit-input-tokens-reset"].endswith("Z")
    usage = message.usage
    assert usage.cache_creation_input_tokens == len(STABLE) // 4
    assert usage.output_tokens == len(text_of(message)) // 4
    again = claude.messages.create(**message_params(ESSAYS[2], ESSAYS[3])).usage
    assert (again.cache_creation_input_tokens, again.cache_read_input_tokens) == (0, len(STABLE) // 4)
    assert again.input_tokens == usage.input_tokens
    assert server.billed == {pair(): 1, pair(ESSAYS[2], ESSAYS[3]): 1}


def test_a_response_parses_into_the_sdks_type_and_carries_usage_ids_and_limits(
    server: ProviderServer, gpt: openai.OpenAI
) -> None:
    raw = gpt.responses.with_raw_response.create(**response_params())
    response = raw.parse()
    type(response).model_validate(json.loads(raw.text))
    assert response.status == "completed"
    assert json.loads(response.output_text) == by_strength(fenced(), GPT)
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.headers["x-ratelimit-limit-requests"] == "1000"
    assert raw.headers["x-ratelimit-remaining-tokens"] == "9990000"
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens == 64
    assert response.usage.output_tokens == 64 + len(response.output_text) // 4
    assert response.usage.input_tokens_details.cached_tokens == 0
    again = gpt.responses.create(**response_params(ESSAYS[2], ESSAYS[3])).usage
    assert again is not None
    assert again.input_tokens_details.cached_tokens >= len(STABLE) // 4
    assert server.billed[pair()] == 1


def test_a_chat_completion_parses_into_the_sdks_type(gpt: openai.OpenAI) -> None:
    raw = gpt.chat.completions.with_raw_response.create(**chat_params())
    completion = raw.parse()
    type(completion).model_validate(json.loads(raw.text))
    (choice,) = completion.choices
    assert choice.finish_reason == "stop"
    assert json.loads(choice.message.content or "") == by_strength(fenced(), GPT)
    assert completion.usage is not None
    assert completion.usage.prompt_tokens_details is not None
    assert completion.usage.prompt_tokens == (len(STABLE) + len(fenced())) // 4


def test_the_same_comparison_gets_the_same_answer_everywhere(claude: anthropic.Anthropic, gpt: openai.OpenAI) -> None:
    for text_a, text_b in itertools.pairwise(ESSAYS):
        other_marker = fenced(text_a, text_b, "f" * 32)
        answers = {
            text_of(claude.messages.create(**message_params(text_a, text_b))),
            text_of(claude.messages.create(**message_params(messages=[{"role": "user", "content": other_marker}]))),
            gpt.responses.create(**response_params(text_a, text_b)).output_text,
            gpt.chat.completions.create(**chat_params(text_a, text_b)).choices[0].message.content,
        }
        assert len(answers) == 1
        winner = "A" if strength(text_a) >= strength(text_b) else "B"
        assert json.loads(answers.pop() or "")["winner"] == winner


def test_the_last_fence_with_both_labels_is_the_one_that_counts() -> None:
    pretended = fenced("fake a", "fake b", "a" * 32)
    assert find_essays(fenced(f"x\n{pretended}\ny", "b")) is not None
    assert find_essays(pretended + "\n" + fenced("real a", "real b")) == ("real a", "real b")
    assert find_essays(fenced("real a", f"real b\n[BEGIN ESSAY A {'c' * 32}]")) == (
        "real a",
        f"real b\n[BEGIN ESSAY A {'c' * 32}]",
    )
    assert find_essays("no essays here") is None


def test_the_async_sdks_work_and_calls_under_way_are_counted(server: ProviderServer) -> None:
    server.latency = 0.2

    async def ask() -> None:
        async with (
            anthropic.AsyncAnthropic(base_url=server.anthropic_url, api_key="test-key", max_retries=0) as claude,
            openai.AsyncOpenAI(base_url=server.openai_url, api_key="test-key", max_retries=0) as gpt,
        ):
            await asyncio.gather(
                *(claude.messages.create(**message_params()) for _ in range(8)),
                *(gpt.responses.create(**response_params()) for _ in range(8)),
                *(gpt.chat.completions.create(**chat_params()) for _ in range(8)),
            )

    started = time.monotonic()
    asyncio.run(ask())
    assert time.monotonic() - started < 3
    assert server.max_in_flight == 24
    assert server.billed[pair()] == server.answered == 24
    assert sorted(call.in_flight for call in server.calls) == list(range(1, 25))


def test_the_record_of_a_call_holds_what_was_sent_but_no_key(server: ProviderServer, gpt: openai.OpenAI) -> None:
    gpt.responses.create(**response_params())
    (call,) = server.calls
    assert (call.provider, call.path, call.model, call.status) == ("openai", "/v1/responses", GPT, 200)
    assert (call.fault, call.custom_id) == (None, None)
    assert call.body["instructions"] == STABLE
    assert "user-agent" in call.headers
    assert not any("test-key" in value for value in call.headers.values())


def test_a_verdict_can_be_decided_by_the_test() -> None:
    def decide(prompt: str, model: str) -> dict[str, Any]:
        return {"winner": "B", "confidence": 2, "justification": model}

    with (
        ProviderServer(decide=decide) as server,
        anthropic.Anthropic(base_url=server.anthropic_url, api_key="test-key") as claude,
    ):
        assert json.loads(text_of(claude.messages.create(**message_params())))["justification"] == CLAUDE


def test_a_decision_that_crashes_is_told_when_the_server_closes() -> None:
    def decide(prompt: str, model: str) -> dict[str, Any]:
        raise LookupError("not in the table")

    with (
        pytest.raises(RuntimeError, match="not in the table"),
        ProviderServer(decide=decide) as server,
        anthropic.Anthropic(base_url=server.anthropic_url, api_key="test-key", max_retries=0) as claude,
        pytest.raises(anthropic.InternalServerError),
    ):
        claude.messages.create(**message_params())


def test_models_can_be_looked_up(server: ProviderServer, claude: anthropic.Anthropic, gpt: openai.OpenAI) -> None:
    info = claude.models.retrieve(CLAUDE)
    assert (info.id, info.lifecycle, info.line) == (CLAUDE, "active", "sonnet")
    assert gpt.models.retrieve(GPT).object == "model"
    server.unknown_models = {"gpt-9", "claude-9"}
    with pytest.raises(anthropic.NotFoundError, match="claude-9"):
        claude.models.retrieve("claude-9")
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        gpt.models.retrieve("gpt-9")
    with pytest.raises(openai.NotFoundError) as caught:
        gpt.responses.create(**response_params(model="gpt-9"))
    assert caught.value.code == "model_not_found"


def test_a_wrong_key_is_an_authentication_error_and_openais_message_echoes_part_of_it(server: ProviderServer) -> None:
    with (
        anthropic.Anthropic(base_url=server.anthropic_url, api_key="wrong-key", max_retries=0) as claude,
        openai.OpenAI(base_url=server.openai_url, api_key="wrong-key", max_retries=0) as gpt,
    ):
        with pytest.raises(anthropic.AuthenticationError, match="invalid x-api-key") as caught:
            claude.messages.create(**message_params())
        assert caught.value.type == "authentication_error"
        with pytest.raises(openai.AuthenticationError, match=r"Incorrect API key provided: wron\*\*\*\*") as echoed:
            gpt.batches.list()
        assert echoed.value.code == "invalid_api_key"
        server.api_key = "wrong-key"
        claude.messages.create(**message_params())
        gpt.responses.create(**response_params())
    with anthropic.Anthropic(base_url=server.anthropic_url, auth_token="wrong-key", max_retries=0) as by_token:
        by_token.messages.create(**message_params())
    assert server.billed[pair()] == 3


def test_a_server_without_responses_answers_404_there_and_chat_works() -> None:
    with (
        ProviderServer(responses_missing=True) as server,
        openai.OpenAI(base_url=server.openai_url, api_key="test-key", max_retries=0) as gpt,
    ):
        with pytest.raises(openai.NotFoundError):
            gpt.responses.create(**response_params())
        assert gpt.chat.completions.create(**chat_params()).choices[0].message.content


# Faults


@pytest.mark.parametrize(
    ("fault", "error", "status", "kind"),
    [
        ("rate_limited", anthropic.RateLimitError, 429, "rate_limit_error"),
        ("rate_limited_retry_after", anthropic.RateLimitError, 429, "rate_limit_error"),
        ("overloaded", anthropic.OverloadedError, 529, "overloaded_error"),
        ("server_error", anthropic.InternalServerError, 500, "api_error"),
        ("bad_gateway", anthropic.InternalServerError, 502, None),
        ("unavailable", anthropic.ServiceUnavailableError, 503, "api_error"),
        ("context_too_long", anthropic.BadRequestError, 400, "invalid_request_error"),
        ("authentication", anthropic.AuthenticationError, 401, "authentication_error"),
        ("permission", anthropic.PermissionDeniedError, 403, "permission_error"),
        ("model_not_found", anthropic.NotFoundError, 404, "not_found_error"),
        ("quota_exhausted", anthropic.BadRequestError, 400, "invalid_request_error"),
        ("billing", anthropic.PaymentRequiredError, 402, "billing_error"),
        ("spend_limit", anthropic.EnforcedSpendLimitReachedError, 429, "rate_limit_error"),
        ("bad_request", anthropic.BadRequestError, 400, "invalid_request_error"),
    ],
)
def test_an_error_reaches_anthropics_sdk_as_its_own_exception(
    server: ProviderServer,
    claude: anthropic.Anthropic,
    fault: str,
    error: type[anthropic.APIStatusError],
    status: int,
    kind: str | None,
) -> None:
    server.faults.script([fault])
    with pytest.raises(error) as caught:
        claude.messages.create(**message_params())
    assert type(caught.value) is error
    assert (caught.value.status_code, caught.value.type) == (status, kind)
    assert caught.value.request_id
    assert caught.value.response.headers.get("retry-after") == ("1" if fault == "rate_limited_retry_after" else None)
    assert (server.calls[0].fault, server.calls[0].status) == (fault, status)
    assert not server.billed
    claude.messages.create(**message_params())
    assert server.billed[pair()] == 1


@pytest.mark.parametrize("endpoint", ["responses", "chat"])
@pytest.mark.parametrize(
    ("fault", "error", "status", "code"),
    [
        ("rate_limited", openai.RateLimitError, 429, "rate_limit_exceeded"),
        ("rate_limited_retry_after", openai.RateLimitError, 429, "rate_limit_exceeded"),
        ("overloaded", openai.InternalServerError, 503, None),
        ("server_error", openai.InternalServerError, 500, None),
        ("bad_gateway", openai.InternalServerError, 502, None),
        ("unavailable", openai.InternalServerError, 503, None),
        ("context_too_long", openai.BadRequestError, 400, "context_length_exceeded"),
        ("authentication", openai.AuthenticationError, 401, "invalid_api_key"),
        ("permission", openai.PermissionDeniedError, 403, None),
        ("model_not_found", openai.NotFoundError, 404, "model_not_found"),
        ("quota_exhausted", openai.RateLimitError, 429, "insufficient_quota"),
        ("billing", openai.RateLimitError, 429, "billing_not_active"),
        ("spend_limit", openai.RateLimitError, 429, "insufficient_quota"),
        ("bad_request", openai.BadRequestError, 400, "unknown_parameter"),
    ],
)
def test_an_error_reaches_openais_sdk_as_its_own_exception(
    server: ProviderServer,
    gpt: openai.OpenAI,
    endpoint: str,
    fault: str,
    error: type[openai.APIStatusError],
    status: int,
    code: str | None,
) -> None:
    server.faults.script([fault])
    server.retry_after_seconds = 7
    with pytest.raises(error) as caught:
        ask_gpt(gpt, endpoint)
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert caught.value.response.headers.get("retry-after") == ("7" if fault == "rate_limited_retry_after" else None)
    assert not server.billed


def ask_gpt(gpt: openai.OpenAI, endpoint: str) -> Any:
    if endpoint == "responses":
        return gpt.responses.create(**response_params())
    return gpt.chat.completions.create(**chat_params())


@pytest.mark.parametrize("fault", ["drop", "drop_mid_body"])
def test_a_broken_connection_is_a_connection_error_and_costs_money_only_after_the_answer(
    server: ProviderServer, claude: anthropic.Anthropic, gpt: openai.OpenAI, fault: str
) -> None:
    server.faults.script([fault, fault, None])
    with pytest.raises(anthropic.APIConnectionError):
        claude.messages.create(**message_params())
    with pytest.raises(openai.APIConnectionError):
        gpt.responses.create(**response_params())
    assert server.billed[pair()] == (2 if fault == "drop_mid_body" else 0)
    claude.messages.create(**message_params())


def test_a_call_that_hangs_is_the_sdks_timeout_error(
    server: ProviderServer, claude: anthropic.Anthropic, gpt: openai.OpenAI
) -> None:
    server.faults.script(["hang", "hang", "hang"])
    with pytest.raises(anthropic.APITimeoutError):
        claude.messages.create(**message_params(), timeout=0.2)
    with pytest.raises(openai.APITimeoutError):
        gpt.responses.create(**response_params(), timeout=0.2)
    assert not server.billed
    server.hang_seconds = 0.1
    assert text_of(claude.messages.create(**message_params()))
    assert server.billed[pair()] == 1


def test_html_in_place_of_an_answer_is_what_the_sdks_make_of_it(
    server: ProviderServer, claude: anthropic.Anthropic, gpt: openai.OpenAI
) -> None:
    server.faults.script(["not_json_body"] * 2)
    assert "<html>" in str(claude.messages.create(**message_params()))
    assert "<html>" in str(gpt.responses.create(**response_params()))
    assert not server.billed


@pytest.mark.parametrize(
    ("fault", "changed"),
    [
        ("wrong_winner", {"winner": "C"}),
        ("missing_field", {"confidence": None}),
        ("extra_field", {"tie": False}),
        ("confidence_out_of_range", {"confidence": 9}),
        ("confidence_string", {"confidence": "3"}),
    ],
)
def test_a_malformed_verdict_is_a_complete_answer_of_no_use(
    server: ProviderServer, claude: anthropic.Anthropic, gpt: openai.OpenAI, fault: str, changed: dict[str, Any]
) -> None:
    server.faults.script([fault] * 3)
    texts = {
        text_of(claude.messages.create(**message_params())),
        gpt.responses.create(**response_params()).output_text,
        gpt.chat.completions.create(**chat_params()).choices[0].message.content,
    }
    (text,) = texts
    verdict = json.loads(text or "")
    assert {name: verdict.get(name) for name in changed} == changed
    assert (server.billed[pair()], server.spoiled[pair()]) == (0, 3)


def test_an_answer_cut_in_the_middle_claims_to_be_whole(server: ProviderServer, claude: anthropic.Anthropic) -> None:
    server.faults.script(["invalid_json", "long_justification"])
    message = claude.messages.create(**message_params())
    assert message.stop_reason == "end_turn"
    with pytest.raises(ValueError, match="Unterminated"):
        json.loads(text_of(message))
    verdict = json.loads(text_of(claude.messages.create(**message_params())))
    assert len(verdict["justification"].split()) == 120
    assert (server.billed[pair()], server.spoiled[pair()]) == (1, 1)


@pytest.mark.parametrize(
    ("fault", "stop_reason", "empty"),
    [
        ("truncated", "max_tokens", False),
        ("refusal", "refusal", True),
        ("content_filter", "refusal", True),
        ("empty_answer", "end_turn", True),
    ],
)
def test_anthropic_says_why_a_message_ended(
    server: ProviderServer, claude: anthropic.Anthropic, fault: str, stop_reason: str, empty: bool
) -> None:
    server.faults.script([fault])
    message = claude.messages.create(**message_params())
    assert (message.stop_reason, not message.content) == (stop_reason, empty)
    assert (message.stop_details is not None) == (stop_reason == "refusal")
    assert server.spoiled[pair()] == 1


def test_openai_says_why_an_answer_ended(server: ProviderServer, gpt: openai.OpenAI) -> None:
    server.faults.script([f for f in ("truncated", "refusal", "content_filter", "empty_answer") for _ in range(2)])
    truncated, cut = ask_gpt(gpt, "responses"), ask_gpt(gpt, "chat")
    assert (truncated.status, truncated.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert cut.choices[0].finish_reason == "length"
    refused, declined = ask_gpt(gpt, "responses"), ask_gpt(gpt, "chat")
    assert refused.output[0].content[0].type == "refusal"
    assert (declined.choices[0].message.content, bool(declined.choices[0].message.refusal)) == (None, True)
    filtered, withheld = ask_gpt(gpt, "responses"), ask_gpt(gpt, "chat")
    assert (filtered.status, filtered.incomplete_details.reason) == ("incomplete", "content_filter")
    assert withheld.choices[0].finish_reason == "content_filter"
    assert ask_gpt(gpt, "responses").output_text == ask_gpt(gpt, "chat").choices[0].message.content == ""
    assert server.spoiled[pair()] == 8


def test_a_limit_on_output_truncates_without_any_fault(claude: anthropic.Anthropic, gpt: openai.OpenAI) -> None:
    assert claude.messages.create(**message_params(max_tokens=5)).stop_reason == "max_tokens"
    assert gpt.responses.create(**response_params(max_output_tokens=40)).status == "incomplete"


def test_faults_by_chance_depend_on_the_pair_and_not_on_the_order() -> None:
    pairs = [(f"a{number}", f"b{number}") for number in range(400)]

    def drawn(order: list[tuple[str, str]]) -> dict[tuple[str, str], list[str | None]]:
        plan = FaultPlan(seed=7)
        plan.random(rate=0.3, kinds=["overloaded", "drop"])
        found: dict[tuple[str, str], list[str | None]] = {}
        for _ in range(2):
            for key in order:
                found.setdefault(key, []).append(plan.next(key))
        return found

    forward = drawn(pairs)
    assert forward == drawn(pairs[::-1])
    faulty = [fault for faults in forward.values() for fault in faults if fault]
    assert 180 < len(faulty) < 300
    assert set(faulty) == {"overloaded", "drop"}
    with pytest.raises(ValueError, match="no such faults: earthquake"):
        FaultPlan().script(["earthquake"])


# What is refused


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"extra_body": {"verbosity": "low"}}, "verbosity: Extra inputs are not permitted"),
        ({"extra_body": {"temperature": 0.2}}, "`temperature` is deprecated for this model"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": " "}]}]}, "must be non-empty"),
        ({"max_tokens": 1.5}, "max_tokens: Input should be a valid integer"),
        ({"output_config": {"effort": "extreme"}}, "output_config.effort"),
    ],
)
def test_anthropic_refuses_what_the_real_one_refuses(
    claude: anthropic.Anthropic, change: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(anthropic.BadRequestError, match=complaint):
        claude.messages.create(**message_params(**change))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"type": "integer", "minimum": 1}, "For 'integer' type, property 'minimum' is not supported"),
        ({"type": "integer", "minimum": 1, "maximum": 5}, "properties maximum, minimum are not supported"),
        ({"type": "string", "minLength": 1}, "property 'minLength' is not supported"),
        ({"type": "array", "items": {"type": "string"}, "minItems": 2}, "values other than 0 or 1"),
        ({"type": "object", "properties": {}}, "must be explicitly set to false"),
    ],
)
def test_anthropic_refuses_schemas_its_structured_outputs_do_not_support(
    claude: anthropic.Anthropic, change: dict[str, Any], complaint: str
) -> None:
    schema = SCHEMA | {"properties": SCHEMA["properties"] | {"confidence": change}}  # type: ignore[operator]
    with pytest.raises(anthropic.BadRequestError, match=complaint):
        claude.messages.create(**message_params(output_config={"format": {"type": "json_schema", "schema": schema}}))
    supported = anthropic.transform_schema(schema)
    claude.messages.create(**message_params(output_config={"format": {"type": "json_schema", "schema": supported}}))


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"temperature": 0.2}, "unsupported_parameter", "temperature"),
        ({"top_p": 0.2}, "unsupported_parameter", "top_p"),
        ({"extra_body": {"verbosity": "low"}}, "unknown_parameter", "verbosity"),
        ({"max_output_tokens": 5}, "integer_below_min_value", "max_output_tokens"),
        ({"reasoning": {"effort": "extreme"}}, "invalid_value", "reasoning.effort"),
        ({"metadata": {"x": "y" * 513}}, "string_above_max_length", "metadata.x"),
    ],
)
def test_openai_refuses_what_the_real_one_refuses(
    gpt: openai.OpenAI, change: dict[str, Any], code: str, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        gpt.responses.create(**response_params(**change))
    assert (caught.value.code, caught.value.param) == (code, param)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"additionalProperties": True}, "'additionalProperties' is required to be supplied and to be false"),
        ({"required": ["winner"]}, "Missing 'confidence'"),
        ({"properties": SCHEMA["properties"] | {"justification": {"type": "string", "minLength": 1}}}, "'minLength'"),  # type: ignore[operator]
        ({"allOf": []}, "'allOf' is not permitted"),
    ],
)
def test_openai_refuses_schemas_that_strict_mode_does_not_support(
    gpt: openai.OpenAI, change: dict[str, Any], complaint: str
) -> None:
    named = {"name": "verdict", "strict": True, "schema": SCHEMA | change}
    with pytest.raises(openai.BadRequestError, match=complaint) as caught:
        gpt.responses.create(**response_params(text={"format": {"type": "json_schema"} | named}))
    assert caught.value.code == "invalid_json_schema"
    with pytest.raises(openai.BadRequestError, match=complaint):
        gpt.chat.completions.create(**chat_params(response_format={"type": "json_schema", "json_schema": named}))


# Limits


def test_headers_tell_what_is_left_of_a_limit_and_an_enforced_one_makes_wait(
    server: ProviderServer, claude: anthropic.Anthropic, gpt: openai.OpenAI
) -> None:
    server.limits, server.minute_seconds, server.enforce_limits = (2, 100_000), 0.3, True
    for left in ("1", "0"):
        raw = claude.messages.with_raw_response.create(**message_params())
        assert raw.headers["anthropic-ratelimit-requests-limit"] == "2"
        assert raw.headers["anthropic-ratelimit-requests-remaining"] == left
    with pytest.raises(anthropic.RateLimitError) as caught:
        claude.messages.create(**message_params())
    wait = float(caught.value.response.headers["retry-after"])
    assert 0 < wait <= 0.3
    time.sleep(wait + 0.02)
    claude.messages.create(**message_params())
    tokens = (len(STABLE) + len(fenced())) // 4
    server.limits = (None, tokens + 1)
    raw_gpt = gpt.responses.with_raw_response.create(**response_params())
    assert raw_gpt.headers["x-ratelimit-remaining-tokens"] == "1"
    assert raw_gpt.headers["x-ratelimit-reset-tokens"].endswith("ms")
    with pytest.raises(openai.RateLimitError):
        gpt.responses.create(**response_params())


# Jobs


def anthropic_requests(count: int = 4) -> list[Any]:
    return [
        {"custom_id": f"item-{number}", "params": message_params(ESSAYS[number], ESSAYS[number + 1])}
        for number in range(count)
    ]


def openai_job(gpt: openai.OpenAI, count: int = 4, endpoint: Any = "/v1/responses", **more: Any) -> Batch:
    make = response_params if endpoint == "/v1/responses" else chat_params
    lines = [
        json.dumps(
            {
                "custom_id": f"item-{number}",
                "method": "POST",
                "url": endpoint,
                "body": make(ESSAYS[number], ESSAYS[number + 1]),
            }
        )
        for number in range(count)
    ]
    uploaded = gpt.files.create(file=("items.jsonl", "\n".join(lines).encode()), purpose="batch")
    assert (uploaded.purpose, uploaded.bytes) == ("batch", len("\n".join(lines)))
    return gpt.batches.create(input_file_id=uploaded.id, endpoint=endpoint, completion_window="24h", **more)


def lines_of(gpt: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    assert file_id is not None
    return {line["custom_id"]: line for line in map(json.loads, gpt.files.content(file_id).text.splitlines())}


def test_a_message_batch_goes_from_in_progress_to_ended_with_shuffled_results(
    server: ProviderServer, claude: anthropic.Anthropic
) -> None:
    server.jobs.hold = 1
    job = claude.messages.batches.create(requests=anthropic_requests(7))
    assert (job.processing_status, job.request_counts.processing, job.results_url) == ("in_progress", 7, None)
    assert claude.messages.batches.retrieve(job.id).processing_status == "in_progress"
    with pytest.raises(anthropic.AnthropicError):
        claude.messages.batches.retrieve("msgbatch_unknown")
    ended = claude.messages.batches.retrieve(job.id)
    assert (ended.processing_status, ended.request_counts.succeeded) == ("ended", 7)
    results = list(claude.messages.batches.results(job.id))
    ids = [result.custom_id for result in results]
    assert sorted(ids) == [f"item-{number}" for number in range(7)] != ids
    for result in results:
        number = int(result.custom_id.removeprefix("item-"))
        assert result.result.type == "succeeded"
        expected = by_strength(fenced(ESSAYS[number], ESSAYS[number + 1]), CLAUDE)
        assert json.loads(text_of(result.result.message)) == expected
    assert server.billed == {pair(ESSAYS[n], ESSAYS[n + 1]): 1 for n in range(7)}
    assert {call.custom_id for call in server.model_calls} == set(ids)


def test_items_of_a_message_batch_have_faults_of_their_own(server: ProviderServer, claude: anthropic.Anthropic) -> None:
    server.faults.script(["overloaded", "drop", "wrong_winner", "context_too_long"])
    requests = anthropic_requests(5)
    requests[4]["params"]["temperature"] = 0.5
    job = claude.messages.batches.create(requests=requests)
    counts = claude.messages.batches.retrieve(job.id).request_counts
    assert (counts.succeeded, counts.errored) == (1, 4)
    results = {result.custom_id: result.result for result in claude.messages.batches.results(job.id)}
    kinds = [r.error.error.type for _, r in sorted(results.items()) if r.type == "errored"]
    assert kinds == ["overloaded_error", "api_error", "invalid_request_error", "invalid_request_error"]
    good = results["item-2"]
    assert good.type == "succeeded"
    assert json.loads(text_of(good.message))["winner"] == "C"


def test_a_whole_message_batch_can_expire_in_part_repeat_itself_and_answer_what_nobody_asked(
    server: ProviderServer, claude: anthropic.Anthropic
) -> None:
    server.jobs.expire_items, server.jobs.extra_result, server.jobs.duplicate_result = 2, True, True
    job = claude.messages.batches.create(requests=anthropic_requests(4))
    counts = claude.messages.batches.retrieve(job.id).request_counts
    assert (counts.succeeded, counts.expired) == (2, 2)
    results = [(result.custom_id, result.result.type) for result in claude.messages.batches.results(job.id)]
    assert len(results) == 6
    assert ("unknown-item", "succeeded") in results
    assert len(set(results)) == 5
    assert server.answered == 2


def test_a_cancelled_message_batch_keeps_what_was_finished(server: ProviderServer, claude: anthropic.Anthropic) -> None:
    server.jobs.hold, server.jobs.finish_before_cancel = True, 1
    job = claude.messages.batches.create(requests=anthropic_requests(3))
    assert claude.messages.batches.retrieve(job.id).processing_status == "in_progress"
    cancelled = claude.messages.batches.cancel(job.id)
    assert (cancelled.processing_status, cancelled.cancel_initiated_at is None) == ("canceling", False)
    assert claude.messages.batches.retrieve(job.id).processing_status == "ended"
    types = {result.custom_id: result.result.type for result in claude.messages.batches.results(job.id)}
    assert types == {"item-0": "succeeded", "item-1": "canceled", "item-2": "canceled"}
    assert server.answered == 1


def test_message_batches_are_listed_newest_first_in_pages(claude: anthropic.Anthropic) -> None:
    made = [claude.messages.batches.create(requests=anthropic_requests(1)).id for _ in range(5)]
    page = claude.messages.batches.list(limit=2)
    assert ([job.id for job in page.data], page.has_more) == (made[:2:-1], True)
    assert [job.id for job in claude.messages.batches.list(limit=2)] == made[::-1]
    assert [job.id for job in claude.messages.batches.list(before_id=made[0], limit=3).data] == made[3:0:-1]


def test_a_message_batch_with_a_repeated_or_odd_id_is_refused(claude: anthropic.Anthropic) -> None:
    twice = anthropic_requests(1) * 2
    with pytest.raises(anthropic.BadRequestError, match="must be unique"):
        claude.messages.batches.create(requests=twice)
    with pytest.raises(anthropic.BadRequestError, match="custom_id"):
        claude.messages.batches.create(requests=[anthropic_requests(1)[0] | {"custom_id": "a b"}])


@pytest.mark.parametrize("endpoint", ["/v1/responses", "/v1/chat/completions"])
def test_a_batch_goes_from_validating_to_completed_with_shuffled_results(
    server: ProviderServer, gpt: openai.OpenAI, endpoint: str
) -> None:
    server.jobs.hold = 1
    job = openai_job(gpt, 7, endpoint, metadata={"run": "r-1"})
    assert (job.status, job.metadata, job.endpoint) == ("validating", {"run": "r-1"}, endpoint)
    assert gpt.batches.retrieve(job.id).status == "in_progress"
    done = gpt.batches.retrieve(job.id)
    assert (done.status, done.error_file_id) == ("completed", None)
    assert done.request_counts is not None
    assert done.usage is not None
    assert (done.request_counts.completed, done.usage.total_tokens > 0) == (7, True)
    lines = lines_of(gpt, done.output_file_id)
    ids = list(lines)
    assert sorted(ids) == [f"item-{number}" for number in range(7)] != ids
    for number in range(7):
        response = lines[f"item-{number}"]["response"]
        assert response["status_code"] == 200
        if endpoint == "/v1/responses":
            text = openai.types.responses.Response.model_validate(response["body"]).output_text
        else:
            completion = openai.types.chat.ChatCompletion.model_validate(response["body"])
            text = completion.choices[0].message.content or ""
        assert json.loads(text) == by_strength(fenced(ESSAYS[number], ESSAYS[number + 1]), GPT)
    assert server.billed == {pair(ESSAYS[n], ESSAYS[n + 1]): 1 for n in range(7)}


def test_items_of_a_batch_have_faults_of_their_own_in_the_error_file(
    server: ProviderServer, gpt: openai.OpenAI
) -> None:
    server.faults.script(["rate_limited", "hang", "refusal", None])
    done = gpt.batches.retrieve(openai_job(gpt, 4).id)
    assert done.request_counts is not None
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 2, 2)
    errors = lines_of(gpt, done.error_file_id)
    assert set(errors) == {"item-0", "item-1"}
    assert errors["item-0"]["response"]["status_code"] == 429
    assert errors["item-0"]["response"]["body"]["error"]["code"] == "rate_limit_exceeded"
    assert errors["item-1"]["response"]["body"]["error"]["type"] == "server_error"
    refused = lines_of(gpt, done.output_file_id)["item-2"]["response"]["body"]
    assert refused["output"][0]["content"][0]["type"] == "refusal"


def test_a_batch_can_expire_in_part_repeat_itself_and_answer_what_nobody_asked(
    server: ProviderServer, gpt: openai.OpenAI
) -> None:
    server.jobs.expire_items, server.jobs.extra_result, server.jobs.duplicate_result = 1, True, True
    done = gpt.batches.retrieve(openai_job(gpt, 3).id)
    assert done.status == "expired"
    assert lines_of(gpt, done.error_file_id)["item-0"]["error"]["code"] == "batch_expired"
    assert done.output_file_id is not None
    content = gpt.files.content(done.output_file_id).text.splitlines()
    assert len(content) == 4
    assert "unknown-item" in lines_of(gpt, done.output_file_id)


@pytest.mark.parametrize("told", [True, False])
def test_a_cancelled_batch_keeps_what_was_finished(server: ProviderServer, gpt: openai.OpenAI, told: bool) -> None:
    server.jobs.hold, server.jobs.finish_before_cancel, server.jobs.cancelled_lines = True, 1, told
    job = openai_job(gpt, 3)
    assert gpt.batches.cancel(job.id).status == "cancelling"
    done = gpt.batches.retrieve(job.id)
    assert done.status == "cancelled"
    assert set(lines_of(gpt, done.output_file_id)) == {"item-0"}
    if told:
        codes = {line["error"]["code"] for line in lines_of(gpt, done.error_file_id).values()}
        assert codes == {"batch_cancelled"}
    else:
        assert done.error_file_id is None


def test_a_batch_whose_file_is_not_valid_fails_with_errors(server: ProviderServer, gpt: openai.OpenAI) -> None:
    server.jobs.fail_validation = True
    failed = gpt.batches.retrieve(openai_job(gpt, 1).id)
    assert failed.errors is not None
    assert failed.errors.data
    assert (failed.status, failed.errors.data[0].code) == ("failed", "invalid_json_line")
    server.jobs.fail_validation = False
    line = json.dumps({"custom_id": "x", "method": "POST", "url": "/v1/responses", "body": response_params()})
    for content, code in (
        (f"{line}\n{line}", "duplicate_custom_id"),
        ("{", "invalid_json_line"),
        ("", "empty_file"),
    ):
        uploaded = gpt.files.create(file=("items.jsonl", content.encode()), purpose="batch")
        job = gpt.batches.create(input_file_id=uploaded.id, endpoint="/v1/responses", completion_window="24h")
        failed = gpt.batches.retrieve(job.id)
        assert failed.errors is not None
        assert failed.errors.data
        assert (failed.status, failed.errors.data[0].code) == ("failed", code)
    assert not server.billed


def test_batches_are_listed_newest_first_in_pages(gpt: openai.OpenAI) -> None:
    made = [openai_job(gpt, 1).id for _ in range(5)]
    page = gpt.batches.list(limit=2)
    assert ([job.id for job in page.data], page.has_more) == (made[:2:-1], True)
    assert [job.id for job in gpt.batches.list(limit=2)] == made[::-1]


def test_a_job_whose_creation_was_not_answered_is_found_in_the_list(
    server: ProviderServer, claude: anthropic.Anthropic, gpt: openai.OpenAI
) -> None:
    server.jobs.lose_create_response = 2
    with pytest.raises(anthropic.APIConnectionError):
        claude.messages.batches.create(requests=anthropic_requests(1))
    with pytest.raises(openai.APIConnectionError):
        openai_job(gpt, 1, metadata={"run": "lost"})
    assert server.jobs.lose_create_response == 0
    (theirs,) = claude.messages.batches.list()
    assert theirs.processing_status == "in_progress"
    (ours,) = gpt.batches.list()
    assert ours.metadata == {"run": "lost"}
    claude.messages.batches.retrieve(theirs.id)
    assert [result.custom_id for result in claude.messages.batches.results(theirs.id)] == ["item-0"]


def test_calls_about_jobs_have_faults_of_their_own(server: ProviderServer, claude: anthropic.Anthropic) -> None:
    job = claude.messages.batches.create(requests=anthropic_requests(1))
    server.jobs.faults.script(["overloaded", "drop", None])
    with pytest.raises(anthropic.OverloadedError):
        claude.messages.batches.retrieve(job.id)
    with pytest.raises(anthropic.APIConnectionError):
        claude.messages.batches.retrieve(job.id)
    assert claude.messages.batches.retrieve(job.id).processing_status == "ended"


def test_the_async_sdks_run_jobs_too(server: ProviderServer) -> None:
    async def run() -> tuple[int, int]:
        async with (
            anthropic.AsyncAnthropic(base_url=server.anthropic_url, api_key="test-key", max_retries=0) as claude,
            openai.AsyncOpenAI(base_url=server.openai_url, api_key="test-key", max_retries=0) as gpt,
        ):
            theirs = await claude.messages.batches.create(requests=anthropic_requests(3))
            await claude.messages.batches.retrieve(theirs.id)
            results = [result async for result in await claude.messages.batches.results(theirs.id)]
            line = {"custom_id": "x", "method": "POST", "url": "/v1/responses", "body": response_params()}
            uploaded = await gpt.files.create(file=("items.jsonl", json.dumps(line).encode()), purpose="batch")
            job = await gpt.batches.create(input_file_id=uploaded.id, endpoint="/v1/responses", completion_window="24h")
            done = await gpt.batches.retrieve(job.id)
            content = await gpt.files.content(done.output_file_id or "")
            return len(results), len(content.text.splitlines())

    assert asyncio.run(run()) == (3, 1)


# The server itself


def test_a_request_that_is_not_http_gets_a_400_and_the_connection_is_closed(server: ProviderServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
        while connection.recv(1000):
            pass


def test_a_taken_port_is_told_and_a_stopped_server_frees_its_own(server: ProviderServer) -> None:
    with pytest.raises(OSError, match="in use"):
        ProviderServer(port=server.port).start()
    port = server.port
    server.stop()
    with ProviderServer(port=port) as second:
        assert second.port == port


def test_the_server_stops_at_once_with_calls_under_way(server: ProviderServer) -> None:
    server.faults.script(["hang"])

    async def ask() -> None:
        async with anthropic.AsyncAnthropic(base_url=server.anthropic_url, api_key="test-key", max_retries=0) as claude:
            call = asyncio.create_task(claude.messages.create(**message_params()))
            while not server.calls or server.calls[0].fault is None:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(server.stop)
            with pytest.raises(anthropic.APIConnectionError):
                await call

    started = time.monotonic()
    asyncio.run(ask())
    assert time.monotonic() - started < 5
