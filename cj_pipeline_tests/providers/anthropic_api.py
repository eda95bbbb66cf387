"""Anthropic's dialect: Messages, Message Batches' items, errors, models."""

import re
from datetime import UTC, datetime
from typing import Any

from cj_pipeline_tests.providers.dialects import Answer, Body, Problem, Prompt, PromptCache, RejectedError, Usage
from cj_pipeline_tests.providers.schemas import anthropic_complaint

_FIELDS = frozenset(
    {
        *("max_tokens", "messages", "model", "cache_control", "container", "diagnostics", "inference_geo", "metadata"),
        *("output_config", "service_tier", "speed", "stop_sequences", "stream", "system", "thinking", "tool_choice"),
        *("tools", "temperature", "top_p", "top_k"),
    }
)
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_FIFTH_GENERATION = re.compile(r"claude-(opus|sonnet|haiku)-5")
_TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error"}


def rejected(message: str, status: int = 400) -> RejectedError:
    """Rejects a request in Anthropic's way."""
    return RejectedError(Problem(status, _TYPES[status], message))


def timestamp(seconds: float) -> str:
    """RFC 3339, as in every time of this API."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def error_body(problem: Problem, request_id: str) -> Body:
    """The body of an error."""
    error: Body = {"type": problem.type, "message": problem.message}
    if problem.code is not None:
        error["details"] = {"error_code": problem.code}
    return {"type": "error", "error": error, "request_id": request_id}


def model_info(model: str) -> Body:
    """What GET /v1/models/{id} says."""
    return {
        "id": model,
        "type": "model",
        "display_name": model.replace("-", " ").title(),
        "created_at": "2026-01-01T00:00:00Z",
        "lifecycle": "active",
        "line": next((line for line in ("haiku", "sonnet", "opus") if line in model), None),
        "max_input_tokens": 200_000,
        "max_tokens": 64_000,
        "capabilities": None,
        "deprecated_at": None,
        "retires_at": None,
    }


class AnthropicMessages:
    """POST /v1/messages, and the items of a Message Batch."""

    provider = "anthropic"
    path = "/v1/messages"

    def check(self, body: Body) -> None:
        """Raise `RejectedError` for a request the provider would not accept."""
        for name in ("model", "messages", "max_tokens"):
            if name not in body:
                raise rejected(f"{name}: Field required")
        if extra := sorted(body.keys() - _FIELDS):
            raise rejected(f"{extra[0]}: Extra inputs are not permitted")
        if not isinstance(body["model"], str) or not body["model"]:
            raise rejected("model: Input should be a valid string")
        if isinstance(body["max_tokens"], bool) or not isinstance(body["max_tokens"], int):
            raise rejected("max_tokens: Input should be a valid integer")
        if body["max_tokens"] < 0:
            raise rejected("max_tokens: Input should be greater than or equal to 0")
        if body.get("stream"):
            raise rejected("stream: this server does not stream")
        _check_messages(body)
        if _FIFTH_GENERATION.match(body["model"]):
            for name in ("temperature", "top_p", "top_k"):
                if name in body:
                    raise rejected(f"`{name}` is deprecated for this model.")
        _check_thinking(body)
        _check_output_config(body.get("output_config"))

    def prompt(self, body: Body) -> Prompt:
        """What the model reads: the system prompt, then the messages."""
        blocks = _blocks(body.get("system") or [])
        for message in body["messages"]:
            blocks += _blocks(message["content"])
        breakpoints, length = [], 0
        for block in blocks:
            length += len(block["text"])
            if block.get("cache_control"):
                breakpoints.append(length)
        if body.get("cache_control"):
            breakpoints.append(length)
        return Prompt(tuple(block["text"] for block in blocks), tuple(breakpoints))

    def output_limit(self, body: Body) -> int | None:
        """Tokens the model may write."""
        return body["max_tokens"]

    def reasoning_tokens(self, body: Body) -> int:
        """This server's Claude does not think."""
        return 0

    def usage(self, cache: PromptCache, body: Body, prompt: Prompt, output: int, min_chars: int) -> Usage:
        """What the answer costs."""
        created, read = cache.marked(body["model"], prompt, min_chars)
        return Usage(prompt.tokens, output, created, read)

    def success(self, body: Body, answer: Answer, number: str) -> Body:
        """A Message."""
        stop_reason = {"truncated": "max_tokens", "refusal": "refusal", "content_filter": "refusal"}
        refused = answer.ending in ("refusal", "content_filter")
        usage = answer.usage
        message: Body = {
            "id": f"msg_{number}",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [{"type": "text", "text": answer.text, "citations": None}] if answer.text else [],
            "stop_reason": stop_reason.get(answer.ending or "", "end_turn"),
            "stop_sequence": None,
            "usage": {
                "input_tokens": max(0, usage.input - usage.cache_created - usage.cache_read),
                "cache_creation_input_tokens": usage.cache_created,
                "cache_read_input_tokens": usage.cache_read,
                "cache_creation": {
                    "ephemeral_5m_input_tokens": usage.cache_created,
                    "ephemeral_1h_input_tokens": 0,
                },
                "output_tokens": usage.output,
                "service_tier": "standard",
            },
        }
        if refused:
            message["stop_details"] = {"type": "refusal", "category": None, "explanation": None}
        return message

    def problem(self, fault: str, body: Body, key: str) -> Problem:
        """The provider's form of a fault of `ERROR_FAULTS`."""
        match fault:
            case "rate_limited" | "rate_limited_retry_after":
                message = "This request would exceed your account's rate limit. Please try again later."
                return Problem(429, "rate_limit_error", message)
            case "overloaded":
                return Problem(529, "overloaded_error", "Overloaded")
            case "unavailable":
                return Problem(503, "api_error", "Service unavailable")
            case "context_too_long":
                return Problem(400, "invalid_request_error", "prompt is too long: 250000 tokens > 200000 maximum")
            case "authentication":
                return Problem(401, "authentication_error", "invalid x-api-key")
            case "permission":
                message = "Your API key does not have permission to use the specified resource."
                return Problem(403, "permission_error", message)
            case "model_not_found":
                return Problem(404, "not_found_error", f"model: {body.get('model')}")
            case "quota_exhausted":
                message = (
                    "Your credit balance is too low to access the Anthropic API. "
                    "Please go to Plans & Billing to upgrade or purchase credits."
                )
                return Problem(400, "invalid_request_error", message)
            case "billing":
                message = "There is an issue with your organization's billing or payment information."
                return Problem(402, "billing_error", message)
            case "spend_limit":
                message = "This organization has reached the spend limit it set."
                return Problem(429, "rate_limit_error", message, code="enforced_spend_limit_reached")
            case "bad_request":
                return Problem(400, "invalid_request_error", "verbosity: Extra inputs are not permitted")
            case _:
                return Problem(500, "api_error", "Internal server error")

    def error(self, problem: Problem, request_id: str) -> Body:
        """The provider's error body."""
        return error_body(problem, request_id)


def _blocks(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _check_messages(body: Body) -> None:
    messages = body["messages"]
    if not isinstance(messages, list):
        raise rejected("messages: Input should be a valid list")
    if not messages:
        raise rejected("messages: at least one message is required")
    cached = _check_content("system", body.get("system") or []) + bool(body.get("cache_control"))
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant", "system"):
            raise rejected(f"messages.{number}.role: Input should be 'user', 'assistant' or 'system'")
        if not message.get("content"):
            raise rejected(f"messages.{number}: user messages must have non-empty content")
        if extra := sorted(message.keys() - {"role", "content"}):
            raise rejected(f"messages.{number}.{extra[0]}: Extra inputs are not permitted")
        cached += _check_content(f"messages.{number}.content", message["content"])
    if cached > 4:
        raise rejected(f"A maximum of 4 blocks with cache_control may be provided. Found {cached}.")
    if messages[-1]["role"] == "assistant" and _FIFTH_GENERATION.match(body["model"]):
        raise rejected(
            "This model does not support assistant message prefill. The conversation must end with a user message."
        )


def _check_content(where: str, content: Any) -> int:
    """Check text or blocks of text; how many blocks are marked for the cache."""
    if not isinstance(content, str | list):
        raise rejected(f"{where}: Input should be a valid string or list")
    cached = 0
    for number, block in enumerate(_blocks(content)):
        here = f"{where}.{number}"
        if not isinstance(block, dict) or block.get("type") != "text":
            raise rejected(f"{here}: this server reads blocks of type 'text' only")
        if not isinstance(block.get("text"), str):
            raise rejected(f"{here}.text.text: Input should be a valid string")
        if not block["text"].strip():
            raise rejected(f"{here}: text content blocks must be non-empty")
        if extra := sorted(block.keys() - {"type", "text", "cache_control", "citations"}):
            raise rejected(f"{here}.text.{extra[0]}: Extra inputs are not permitted")
        mark = block.get("cache_control")
        if mark is not None:
            cached += 1
            if mark.get("type") != "ephemeral" or mark.get("ttl", "5m") not in ("5m", "1h"):
                raise rejected(f"{here}.text.cache_control: Input should be of type 'ephemeral' with ttl '5m' or '1h'")
    return cached


def _check_thinking(body: Body) -> None:
    thinking = body.get("thinking")
    if thinking is None:
        return
    kind = thinking.get("type") if isinstance(thinking, dict) else None
    if kind not in ("enabled", "disabled", "adaptive", "between_tools"):
        raise rejected("thinking.type: Input should be 'enabled', 'disabled', 'adaptive' or 'between_tools'")
    if kind == "enabled":
        budget = thinking.get("budget_tokens", 0)
        if budget < 1024:
            raise rejected("thinking.enabled.budget_tokens: Input should be greater than or equal to 1024")
        if budget >= body["max_tokens"]:
            raise rejected("`max_tokens` must be greater than `thinking.budget_tokens`.")


def _check_output_config(config: Any) -> None:
    if config is None:
        return
    if not isinstance(config, dict):
        raise rejected("output_config: Input should be a valid dictionary")
    if extra := sorted(config.keys() - {"effort", "format"}):
        raise rejected(f"output_config.{extra[0]}: Extra inputs are not permitted")
    if config.get("effort") is not None and config["effort"] not in _EFFORTS:
        raise rejected("output_config.effort: Input should be 'low', 'medium', 'high', 'xhigh' or 'max'")
    form = config.get("format")
    if form is None:
        return
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        raise rejected("output_config.format.type: Input should be 'json_schema'")
    if extra := sorted(form.keys() - {"type", "schema"}):
        raise rejected(f"output_config.format.{extra[0]}: Extra inputs are not permitted")
    if complaint := anthropic_complaint(form.get("schema")):
        raise rejected(f"output_config.format.schema: {complaint}")
