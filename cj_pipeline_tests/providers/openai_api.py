"""OpenAI's dialects: Responses and Chat Completions, errors, models."""

import re
import time
from typing import Any

from cj_pipeline_tests.providers.dialects import (
    Answer,
    Body,
    Problem,
    Prompt,
    PromptCache,
    RejectedError,
    Usage,
    masked,
)
from cj_pipeline_tests.providers.schemas import openai_complaint

_SHARED = frozenset(
    {
        *("model", "metadata", "moderation", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_options"),
        *("prompt_cache_retention", "safety_identifier", "service_tier", "store", "stream", "stream_options"),
        *("temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user"),
    }
)
_RESPONSES_FIELDS = _SHARED | {
    *("access_programs", "background", "context_management", "conversation", "image", "include", "input"),
    *("instructions", "max_output_tokens", "max_tool_calls", "previous_response_id", "prompt", "reasoning", "text"),
    *("truncation",),
}
_CHAT_FIELDS = _SHARED | {
    *("messages", "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs", "modalities"),
    *("max_completion_tokens", "max_tokens", "n", "prediction", "presence_penalty", "reasoning_effort"),
    *("response_format", "seed", "stop", "verbosity", "web_search_options"),
}
_EFFORTS = (None, "none", "minimal", "low", "medium", "high", "xhigh", "max")
_REASONING_MODEL = re.compile(r"gpt-[5-9]|o\d")
_REASONING_TOKENS = 64
_REFUSAL = "I'm sorry, but I can't assist with that request."


def rejected(message: str, code: str | None = None, param: str | None = None, status: int = 400) -> RejectedError:
    """Rejects a request in OpenAI's way."""
    return RejectedError(Problem(status, "invalid_request_error", message, code, param))


def error_body(problem: Problem, request_id: str) -> Body:
    """The body of an error; the request's id is in a header only."""
    error = {"message": problem.message, "type": problem.type, "param": problem.param, "code": problem.code}
    return {"error": error}


def wrong_key(given: str) -> Problem:
    """What a wrong or missing key is answered with."""
    advice = "You can find your API key at https://platform.openai.com/account/api-keys."
    if not given:
        message = f"You didn't provide an API key. {advice}"
        return Problem(401, "invalid_request_error", message)
    message = f"Incorrect API key provided: {masked(given)}. {advice}"
    return Problem(401, "invalid_request_error", message, "invalid_api_key")


def model_info(model: str) -> Body:
    """What GET /v1/models/{id} says."""
    return {"id": model, "object": "model", "created": 1_767_225_600, "owned_by": "openai"}


def check_metadata(metadata: Any) -> None:
    """Raise `RejectedError` unless metadata are at most 16 short pairs of strings."""
    if metadata is None:
        return
    if not isinstance(metadata, dict) or len(metadata) > 16:
        raise rejected("Invalid 'metadata': expected an object with at most 16 properties.", param="metadata")
    for name, value in metadata.items():
        if len(name) > 64 or not isinstance(value, str) or len(value) > 512:
            message = f"Invalid 'metadata.{name}': expected a string with maximum length 512 under a key of at most 64."
            raise rejected(message, "string_above_max_length", f"metadata.{name}")


class _OpenAI:
    provider = "openai"
    input_param = "input"

    def usage(self, cache: PromptCache, body: Body, prompt: Prompt, output: int, min_chars: int) -> Usage:
        """What the answer costs."""
        reasoning = self.reasoning_tokens(body)
        read = cache.automatic(body["model"], prompt, min_chars)
        return Usage(prompt.tokens, output + reasoning, 0, read, reasoning)

    def reasoning_tokens(self, body: Body) -> int:
        """Tokens the model thinks before it writes."""
        raise NotImplementedError

    def problem(self, fault: str, body: Body, key: str) -> Problem:
        """The provider's form of a fault of `ERROR_FAULTS`."""
        model = body.get("model")
        match fault:
            case "rate_limited" | "rate_limited_retry_after":
                message = (
                    f"Rate limit reached for {model} in organization org-loopback on requests per min (RPM): "
                    "Limit 1000, Used 1000, Requested 1. Please try again in 60ms."
                )
                return Problem(429, "requests", message, "rate_limit_exceeded")
            case "overloaded":
                message = "The engine is currently overloaded, please try again later."
                return Problem(503, "service_unavailable_error", message)
            case "unavailable":
                return Problem(503, "server_error", "Service temporarily unavailable.")
            case "context_too_long":
                message = "Your input exceeds the context window of this model. Please adjust your input and try again."
                return Problem(400, "invalid_request_error", message, "context_length_exceeded", param=self.input_param)
            case "authentication":
                return wrong_key(key)
            case "permission":
                message = "You have insufficient permissions for this operation. Missing scopes: model.request."
                return Problem(403, "invalid_request_error", message)
            case "model_not_found":
                message = f"The model `{model}` does not exist or you do not have access to it."
                return Problem(404, "invalid_request_error", message, "model_not_found")
            case "quota_exhausted" | "spend_limit":
                message = "You exceeded your current quota, please check your plan and billing details."
                return Problem(429, "insufficient_quota", message, "insufficient_quota")
            case "billing":
                message = "Your account is not active, please check your billing details on our website."
                return Problem(429, "billing_not_active", message, "billing_not_active")
            case "bad_request":
                message = "Unknown parameter: 'verbositi'."
                return Problem(400, "invalid_request_error", message, "unknown_parameter", "verbositi")
            case _:
                message = "The server had an error while processing your request. Sorry about that!"
                return Problem(500, "server_error", message)

    def error(self, problem: Problem, request_id: str) -> Body:
        """The provider's error body."""
        return error_body(problem, request_id)


class OpenAIResponses(_OpenAI):
    """POST /v1/responses, and batch items for it."""

    path = "/v1/responses"

    def check(self, body: Body) -> None:
        """Raise `RejectedError` for a request the provider would not accept."""
        _check_common(body, _RESPONSES_FIELDS)
        if "input" not in body:
            raise rejected("Missing required parameter: 'input'.", "missing_required_parameter", "input")
        _check_limit(body, "max_output_tokens", minimum=16)
        _check_effort(_part(body, "reasoning").get("effort"), "reasoning.effort")
        for number, item in enumerate(_input_items(body["input"])):
            _check_item(item, f"input[{number}]", "input_text")
        form = _part(body, "text").get("format") or {}
        _check_format(form, form, "text.format")

    def prompt(self, body: Body) -> Prompt:
        """What the model reads: the instructions, then the input."""
        parts = [body["instructions"]] if body.get("instructions") else []
        for item in _input_items(body["input"]):
            parts += _texts(item["content"])
        return Prompt(tuple(parts))

    def output_limit(self, body: Body) -> int | None:
        """Tokens the model may write, what it thinks included."""
        return body.get("max_output_tokens")

    def reasoning_tokens(self, body: Body) -> int:
        """Tokens the model thinks before it writes."""
        return 0 if _part(body, "reasoning").get("effort") in (None, "none") else _REASONING_TOKENS

    def success(self, body: Body, answer: Answer, number: str) -> Body:
        """A Response."""
        incomplete = {"truncated": "max_output_tokens", "content_filter": "content_filter"}.get(answer.ending or "")
        content: Body = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": []}
        if answer.ending == "refusal":
            content = {"type": "refusal", "refusal": _REFUSAL}
        status = "incomplete" if incomplete else "completed"
        message: Body = {
            "id": f"msg_{number}",
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [content],
        }
        usage = answer.usage
        now = int(time.time())
        return {
            "id": f"resp_{number}",
            "object": "response",
            "created_at": now,
            "completed_at": None if incomplete else now,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": incomplete} if incomplete else None,
            "instructions": body.get("instructions"),
            "max_output_tokens": body.get("max_output_tokens"),
            "metadata": body.get("metadata") or {},
            "model": body["model"],
            "output": [message],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": _part(body, "reasoning").get("effort"), "summary": None},
            "service_tier": "default",
            "store": body.get("store", True),
            "temperature": body.get("temperature", 1.0),
            "text": body.get("text") or {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": body.get("top_p", 1.0),
            "truncation": "disabled",
            "usage": {
                "input_tokens": usage.input,
                "input_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": 0},
                "output_tokens": usage.output,
                "output_tokens_details": {"reasoning_tokens": usage.reasoning},
                "total_tokens": usage.input + usage.output,
            },
            "user": body.get("user"),
        }


class OpenAIChat(_OpenAI):
    """POST /v1/chat/completions, and batch items for it."""

    path = "/v1/chat/completions"
    input_param = "messages"

    def check(self, body: Body) -> None:
        """Raise `RejectedError` for a request the provider would not accept."""
        _check_common(body, _CHAT_FIELDS)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise rejected("Missing required parameter: 'messages'.", "missing_required_parameter", "messages")
        if "max_tokens" in body and _REASONING_MODEL.match(body["model"]):
            message = (
                "Unsupported parameter: 'max_tokens' is not supported with this model. "
                "Use 'max_completion_tokens' instead."
            )
            raise rejected(message, "unsupported_parameter", "max_tokens")
        for name in ("max_tokens", "max_completion_tokens"):
            _check_limit(body, name, minimum=1)
        _check_effort(body.get("reasoning_effort"), "reasoning_effort")
        for number, item in enumerate(messages):
            _check_item(item, f"messages[{number}]", "text")
        form = _part(body, "response_format")
        _check_format(form, _part(form, "json_schema"), "response_format")

    def prompt(self, body: Body) -> Prompt:
        """What the model reads: the messages."""
        return Prompt(tuple(text for message in body["messages"] for text in _texts(message["content"])))

    def output_limit(self, body: Body) -> int | None:
        """Tokens the model may write, what it thinks included."""
        return body.get("max_completion_tokens", body.get("max_tokens"))

    def reasoning_tokens(self, body: Body) -> int:
        """Tokens the model thinks before it writes."""
        return 0 if body.get("reasoning_effort") in (None, "none") else _REASONING_TOKENS

    def success(self, body: Body, answer: Answer, number: str) -> Body:
        """A ChatCompletion."""
        refused = answer.ending == "refusal"
        reason = {"truncated": "length", "content_filter": "content_filter"}.get(answer.ending or "", "stop")
        message: Body = {
            "role": "assistant",
            "content": None if refused else answer.text,
            "refusal": _REFUSAL if refused else None,
            "annotations": [],
        }
        usage = answer.usage
        return {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
            "service_tier": "default",
            "system_fingerprint": None,
            "usage": {
                "prompt_tokens": usage.input,
                "completion_tokens": usage.output,
                "total_tokens": usage.input + usage.output,
                "prompt_tokens_details": {"cached_tokens": usage.cache_read, "audio_tokens": 0},
                "completion_tokens_details": {
                    "reasoning_tokens": usage.reasoning,
                    "audio_tokens": 0,
                    "accepted_prediction_tokens": 0,
                    "rejected_prediction_tokens": 0,
                },
            },
        }


def _part(body: Body, name: str) -> Body:
    value = body.get(name)
    return value if isinstance(value, dict) else {}


def _input_items(given: Any) -> list[Any]:
    return [{"role": "user", "content": given}] if isinstance(given, str) else list(given)


def _texts(content: Any) -> list[str]:
    return [content] if isinstance(content, str) else [part["text"] for part in content]


def _check_common(body: Body, fields: frozenset[str]) -> None:
    if extra := sorted(body.keys() - fields):
        raise rejected(f"Unknown parameter: '{extra[0]}'.", "unknown_parameter", extra[0])
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise rejected("Missing required parameter: 'model'.", "missing_required_parameter", "model")
    if body.get("stream"):
        raise rejected("This server does not stream.", "unsupported_value", "stream")
    for name in ("temperature", "top_p"):
        if body.get(name) is not None and _REASONING_MODEL.match(model):
            message = f"Unsupported parameter: '{name}' is not supported with this model."
            raise rejected(message, "unsupported_parameter", name)
    check_metadata(body.get("metadata"))


def _check_limit(body: Body, name: str, minimum: int) -> None:
    limit = body.get(name)
    if limit is None:
        return
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise rejected(f"Invalid type for '{name}': expected an integer.", "invalid_type", name)
    if limit < minimum:
        message = f"Invalid '{name}': integer below minimum value. Expected a value >= {minimum}, but got {limit}."
        raise rejected(f"{message}", "integer_below_min_value", name)


def _check_effort(effort: Any, param: str) -> None:
    if effort not in _EFFORTS:
        message = f"Invalid value: '{effort}'. Supported values are: {', '.join(repr(e) for e in _EFFORTS[1:])}."
        raise rejected(message, "invalid_value", param)


def _check_item(item: Any, where: str, text_type: str) -> None:
    if not isinstance(item, dict) or item.get("role") not in ("user", "assistant", "system", "developer"):
        raise rejected(f"Invalid value for '{where}.role'.", "invalid_value", f"{where}.role")
    content = item.get("content")
    if isinstance(content, str):
        return
    if not isinstance(content, list) or not content:
        raise rejected(f"Missing required parameter: '{where}.content'.", "missing_required_parameter", where)
    for number, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != text_type or not isinstance(part.get("text"), str):
            param = f"{where}.content[{number}]"
            raise rejected(
                f"Invalid value for '{param}': expected a part of type '{text_type}'.", "invalid_value", param
            )


def _check_format(form: Body, schema_part: Body, param: str) -> None:
    """Check what asks for structured output: its kind is in `form`, name, schema and strictness in `schema_part`."""
    if not form:
        return
    if form.get("type") not in ("text", "json_object", "json_schema"):
        raise rejected(f"Invalid value for '{param}.type'.", "invalid_value", f"{param}.type")
    if form["type"] != "json_schema":
        return
    if extra := sorted(schema_part.keys() - {"type", "name", "schema", "strict", "description"}):
        raise rejected(f"Unknown parameter: '{param}.{extra[0]}'.", "unknown_parameter", f"{param}.{extra[0]}")
    for name in ("name", "schema"):
        if name not in schema_part:
            place = f"{param}.{name}"
            raise rejected(f"Missing required parameter: '{place}'.", "missing_required_parameter", place)
    if schema_part.get("strict") and (complaint := openai_complaint(schema_part["name"], schema_part["schema"])):
        raise rejected(complaint, "invalid_json_schema", f"{param}.schema" if param == "text.format" else param)
