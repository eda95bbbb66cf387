"""What the judges that call a provider have in common: time limits, typed errors, costs, and how answers are read.

Here: `ProviderJudge`, the base of `judges.anthropic` and `judges.openai`; the rules by which a provider's refusal
becomes one of `judges.errors`; reading JSON that cannot be trusted. Not here: a provider's wire form, its SDK's calls
(the SDKs are imported where they are used), prices (`judges.pricing`), what models can do (`judges.models`) and the
parsing of a verdict (`judges.prompts`).

A provider's own words never leave this module: they may quote the essays or the key. They are searched for what tells
errors apart, and every error is raised outside the handler of the SDK's exception, so that none of those, with its
request and headers, hangs on the chain.
"""

import asyncio
import json
import logging
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from cj_pipeline.judges import pricing
from cj_pipeline.judges.errors import (
    AuthenticationFailedError,
    ConnectionFailedError,
    ContextTooLongError,
    InvalidRequestError,
    JudgeError,
    JudgeTimeoutError,
    MalformedAnswerError,
    ModelNotFoundError,
    OverloadedError,
    PermissionRefusedError,
    ProviderServerError,
    QuotaExhaustedError,
    RateLimitedError,
    RefusedError,
    SubmissionUnknownError,
)
from cj_pipeline.judges.models import JudgeOptions, call_shape, model_rules
from cj_pipeline.judges.pacing import EXPECTED_OUTPUT_TOKENS, Pacer
from cj_pipeline.judges.prompts import RESPONSE_SCHEMA, parse_response
from cj_pipeline.judges.protocol import ComparisonPrompt, JudgeAnswer, JudgeIdentity, JudgeRequest, Usage

if TYPE_CHECKING:
    import httpx2

Body = dict[str, Any]
"""A JSON object that came from, or goes to, a provider."""

T = TypeVar("T")

SDK_RETRIES: Final = 2
"""How often an SDK repeats a request that costs nothing (looking at jobs, reading results)."""

# What a provider adds to a prompt before it counts: roles, turns, and the response schema in words of its own.
_ADDED_TOKENS: Final = 1000 + len(json.dumps(RESPONSE_SCHEMA))

# No tokeniser packs more than this many bytes of text into a token on average: a longer prompt cannot fit.
_MOST_BYTES_PER_TOKEN: Final = 8

_TYPICAL_BYTES_PER_TOKEN: Final = 4

# A cache entry's least life with either provider, renewed by every use.
_CACHE_SECONDS: Final = 300.0

# For the pauses between an SDK's retries, which it makes as long as the provider asks for.
_RETRY_PAUSES_SECONDS: Final = 30.0

# How long a look at a provider may take that somebody waits for.
_LOOK_SECONDS: Final = 20.0

_SLOW_UPLOAD_BYTES_PER_SECOND: Final = 1_000_000

_FENCED: Final = re.compile(r"\s*```json[ \t]*\n(?P<inside>.*?)\n?[ \t]*```\s*", re.DOTALL)


# --- what a provider says ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """Why a provider gave no answer.

    Attributes:
        status: HTTP status; None where the provider speaks of an item of a job without one.
        type: the provider's kind of error.
        code: the provider's closer name of it.
        param: the field of the request it is about.
        message: the provider's words: to be searched, never to be repeated.
        request_id: of the call.
        retry_after_seconds: how long the provider asks us to wait.
    """

    status: int | None = None
    type: str | None = None
    code: str | None = None
    param: str | None = None
    message: str = field(default="", repr=False)
    request_id: str | None = None
    retry_after_seconds: float | None = None

    def is_any(self, names: frozenset[str]) -> bool:
        """Whether its code or type is one of these."""
        return self.code in names or self.type in names


_QUOTA: Final = frozenset(
    {
        "billing_error",
        "billing_hard_limit_reached",
        "billing_not_active",
        "contract_spend_limit_reached",
        "enforced_spend_limit_reached",
        "insufficient_quota",
    }
)
_ON_HOLD: Final = frozenset({"organization_on_hold"})
_UNSAFE: Final = frozenset(
    {"bio_policy", "content_filter", "content_policy_violation", "invalid_prompt", "misalignment_policy_violation"}
)
_TOO_LONG_PHRASES: Final = (
    "prompt is too long",
    "exceed context limit",
    "exceeds the context window",
    "maximum context length",
)
# Patterns of (tokens, maximum), in the words of either provider.
_TOO_LONG_NUMBERS: Final = (
    re.compile(r"(?P<tokens>\d{1,9}) tokens > (?P<maximum>\d{1,9})"),
    re.compile(r"maximum context length is (?P<maximum>\d{1,9}) tokens.*?(?P<tokens>\d{1,9}) tokens", re.DOTALL),
)
_SERVER_TROUBLE: Final = frozenset({"server_error", "api_error", "timeout_error"})
_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9_.\[\]-]{1,60}")


def problem_error(problem: Problem) -> JudgeError:
    """The typed error for a provider's refusal: the same rules for a call and for an item of a job."""
    kind, message = _kind_of(problem)
    where = "" if problem.status is None else f" (HTTP {problem.status})"
    return kind(
        f"{message}{where}",
        http_status=problem.status,
        request_id=problem.request_id,
        cost_usd=0.0,  # refused, so nothing was made that could be charged
        retry_after_seconds=problem.retry_after_seconds,
    )


def _kind_of(problem: Problem) -> tuple[type[JudgeError], str]:
    words = problem.message.lower()
    status = problem.status
    # first what names itself, then what only the status tells: quota errors come as 400, 402 and 429
    if status == 402 or problem.is_any(_QUOTA) or "credit balance" in words:
        return QuotaExhaustedError, "the provider's account has no credit or quota left: add some, or raise its limit"
    if problem.is_any(_ON_HOLD):
        return PermissionRefusedError, "the provider has put the account on hold: ask the provider"
    if problem.is_any(_UNSAFE):
        return RefusedError, "the provider's safety rules refuse this prompt"
    if (
        status == 413
        or problem.is_any(frozenset({"context_length_exceeded", "request_too_large"}))
        or any(phrase in words for phrase in _TOO_LONG_PHRASES)
    ):
        return ContextTooLongError, f"the essays with their instructions do not fit the model{_sizes(words)}"
    if status == 404 or problem.code == "model_not_found":
        return ModelNotFoundError, "the provider has no such model for this account: check its name"
    if status == 401:
        return AuthenticationFailedError, "the provider does not accept the key: check it"
    if status == 403:
        return PermissionRefusedError, "the key may not do this: check the account's permissions"
    if status == 429 or problem.code == "rate_limit_exceeded":
        return RateLimitedError, "the provider asks for a slower pace"
    if problem.type == "overloaded_error" or status == 529 or (status == 503 and "overloaded" in words):
        return OverloadedError, "the provider has no capacity at the moment"
    if status in (408, 409) or (status or 0) >= 500 or problem.is_any(_SERVER_TROUBLE):
        return ProviderServerError, "the provider failed"
    return InvalidRequestError, f"the provider does not accept the request{_named(problem)}"


def _sizes(words: str) -> str:
    for pattern in _TOO_LONG_NUMBERS:
        if found := pattern.search(words):
            return f": {int(found['tokens'])} tokens, at most {int(found['maximum'])}"
    return ""


def _named(problem: Problem) -> str:
    names = [f"{what} {name}" for what in ("param", "code", "type") if (name := identifier(getattr(problem, what)))]
    return f": {', '.join(names)}" if names else ""


def identifier(value: object) -> str | None:
    """The value if it is a plain identifier, which can be shown; None if it may be free text."""
    return value if isinstance(value, str) and _IDENTIFIER.fullmatch(value) else None


def retry_after_seconds(headers: Mapping[str, str], now: datetime) -> float | None:
    """How long the provider asks us to wait: `retry-after-ms`, or `retry-after` in seconds or as an HTTP date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is not None and re.fullmatch(r"\d{1,12}(\.\d{1,9})?", value):
            return float(value) * unit
    try:
        at = parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, IndexError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - now).total_seconds())


# --- the SDKs' exceptions -------------------------------------------------------------------------------------------


def sdk_exceptions(base: type[Exception]) -> tuple[type[Exception], ...]:
    """What an SDK's call can raise, given the base of its own exceptions.

    ValueError, TypeError, AttributeError and KeyError are among them because the SDKs build their objects from JSON
    without a check: an answer of another form surfaces as one of these.
    """
    import httpx2

    transport = (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, TimeoutError)
    return (base, JudgeError, *transport, ValueError, TypeError, AttributeError, KeyError, RecursionError)


def anthropic_error(error: Exception) -> JudgeError:
    """The typed error for what a call of Anthropic's SDK raised."""
    import anthropic

    if isinstance(error, anthropic.APIStatusError):
        return problem_error(anthropic_problem(decoded(error.response), **_envelope(error, error.response)))
    return _unanswered(error, anthropic.APITimeoutError)


def openai_error(error: Exception) -> JudgeError:
    """The typed error for what a call of OpenAI's SDK raised."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return problem_error(openai_problem(decoded(error.response), **_envelope(error, error.response)))
    return _unanswered(error, openai.APITimeoutError)


def anthropic_problem(body: Body | None, **envelope: Any) -> Problem:
    """Anthropic's error body, of a call or of an item of a job; `envelope`: what is known besides."""
    error = part(body, "error")
    envelope.setdefault("request_id", text(body, "request_id"))
    code = text(part(error, "details"), "error_code")
    return Problem(type=text(error, "type"), code=code, message=text(error, "message") or "", **envelope)


def openai_problem(body: Body | None, **envelope: Any) -> Problem:
    """OpenAI's error body, of a call or of an item of a job; `envelope`: what is known besides."""
    # some compatible servers put the fields at the top, or have words only
    error = part(body, "error") or body
    return Problem(
        type=text(error, "type"),
        code=text(error, "code"),
        param=text(error, "param"),
        message=text(error, "message") or text(body, "error") or "",
        **envelope,
    )


def _envelope(error: Any, response: "httpx2.Response") -> dict[str, Any]:
    return {
        "status": response.status_code,
        "request_id": error.request_id,
        "retry_after_seconds": retry_after_seconds(response.headers, datetime.now(UTC)),
    }


def _unanswered(error: Exception, sdk_timeout: type[Exception]) -> JudgeError:
    """The typed error for a call that brought no answer of the provider's."""
    import httpx2

    if isinstance(error, JudgeError):
        return error
    # The SDKs wrap httpx2's exceptions. A call that found no connection was never sent; of any other, nobody here
    # knows whether it was answered, and charged.
    never_sent = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)
    cost = 0.0 if isinstance(error, never_sent) or isinstance(error.__cause__, never_sent) else None
    if isinstance(error, sdk_timeout | TimeoutError | httpx2.TimeoutException):
        return JudgeTimeoutError("the provider did not answer in time", cost_usd=cost)
    if isinstance(error, ValueError | TypeError | AttributeError | KeyError | RecursionError):
        return ConnectionFailedError("the provider's answer cannot be read: it is not what its API promises")
    return ConnectionFailedError(
        "no connection to the provider, or it broke before the answer was whole", cost_usd=cost
    )


async def attempt(
    call: Callable[[], Awaitable[T]],
    *,
    seconds: float,
    expected: tuple[type[Exception], ...],
    translate: Callable[[Exception], JudgeError],
) -> T:
    """Await a call of an SDK for at most so many seconds, with its exceptions translated."""
    try:
        async with asyncio.timeout(seconds):
            return await call()
    except expected as error:
        failure = translate(error)
    raise failure  # outside the handler: the SDK's exception holds the request and its key


def about_job(error: JudgeError) -> JudgeError:
    """The error of a call about a job or its files: no model is asked, so nothing is charged, or too long for one."""
    error.cost_usd = 0.0
    if isinstance(error, ModelNotFoundError):
        message = "the provider knows no such job, or offers no batch jobs at this address"
    elif isinstance(error, ContextTooLongError):
        message = "the provider finds the job too large: put fewer comparisons into one"
    else:
        return error
    status = error.http_status
    return InvalidRequestError(
        f"{message} (HTTP {status})", http_status=status, request_id=error.request_id, cost_usd=0.0
    )


def about_submission(error: JudgeError) -> JudgeError:
    """The error of the request that creates a job: whatever leaves open whether there is a job now says so."""
    # 5xx may come from something in front of a provider that has accepted the job; 503 and 529 come before any work
    if error.cost_usd is not None and error.http_status not in (408, 500, 502, 504):
        return about_job(error)
    return SubmissionUnknownError(
        "the job was sent and no answer came: it may have been accepted, and must be looked for",
        http_status=error.http_status,
        request_id=error.request_id,
        retry_after_seconds=error.retry_after_seconds,
    )


def quieten(logger_name: str) -> None:
    """Keep an SDK from logging whole requests, essays included, which it does at DEBUG."""
    logger = logging.getLogger(logger_name)
    logger.setLevel(max(logger.level, logging.INFO))


def key_from_environment(name: str) -> str:
    """The key that this environment variable holds.

    Raises:
        AuthenticationFailedError: if it is not set.
    """
    key = os.environ.get(name, "").strip()
    if not key:
        raise AuthenticationFailedError(
            f"there is no key: set {name} in the environment of the process that judges", cost_usd=0.0
        )
    return key


# --- JSON that cannot be trusted ----------------------------------------------------------------------------------


def decoded(response: "httpx2.Response") -> Body | None:
    """The JSON object a response holds; None if it holds something else."""
    try:
        body = json.loads(response.content)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def part(body: Body | None, name: str) -> Body:
    """The object of this name; empty where there is none."""
    value = (body or {}).get(name)
    return value if isinstance(value, dict) else {}


def parts(body: Body | None, name: str) -> list[Body]:
    """The objects in the list of this name; anything else in it is left out."""
    value = (body or {}).get(name)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def text(body: Body | None, name: str) -> str | None:
    """The text of this name."""
    value = (body or {}).get(name)
    return value if isinstance(value, str) else None


def count(body: Body | None, name: str) -> int:
    """The count of this name; 0 where there is none."""
    value = (body or {}).get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def moment(body: Body | None, name: str) -> datetime | None:
    """The time of this name (aware, UTC): RFC 3339, or seconds since 1970."""
    value = (body or {}).get(name)
    try:
        if isinstance(value, str):
            at = datetime.fromisoformat(value)
            return None if at.tzinfo is None else at.astimezone(UTC)
        return datetime.fromtimestamp(value, UTC) if isinstance(value, int | float) else None
    except (ValueError, OverflowError, OSError):
        return None


async def json_lines(chunks: AsyncIterator[bytes]) -> AsyncGenerator[Body, None]:
    """The objects in a stream of JSON lines.

    Raises:
        ValueError: a line is no JSON object.
    """
    rest = b""
    async for chunk in chunks:
        # by bytes: what splits text also splits at U+2028, which may stand unescaped in a justification
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield _json_object(line)
    if rest.strip():
        yield _json_object(rest)


def _json_object(line: bytes) -> Body:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("a line that is no JSON object")
    return value


# --- the judge ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """What a call brought: the answer's body, with what its headers say."""

    body: Body = field(repr=False)
    request_id: str | None
    headers: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class Reading:
    """What an answer's body comes to: the verdict's text, or why there is none; and the tokens, where reported."""

    text: str = field(repr=False)
    usage: Usage | None
    failure: JudgeError | None = None


class RawResponse(Protocol):
    """What both SDKs' `with_raw_response` give."""

    @property
    def http_response(self) -> "httpx2.Response":
        """As it came."""
        ...

    @property
    def request_id(self) -> str | None:
        """The provider's id of the call."""
        ...


def reply_of(raw: RawResponse) -> Reply:
    """The reply in a response.

    Raises:
        ConnectionFailedError: if its body is no JSON object: something in between answered, or the answer is broken.
    """
    response = raw.http_response
    body = decoded(response)
    if body is None:
        raise ConnectionFailedError(
            "the answer is not JSON: something between here and the provider broke it",
            http_status=response.status_code,
            request_id=raw.request_id,
        )
    return Reply(body, raw.request_id, response.headers)


def job_id(reply: Reply) -> str:
    """The id of the job that an answer is about.

    Raises:
        ConnectionFailedError: if it has none.
    """
    found = text(reply.body, "id")
    if not found:
        raise ConnectionFailedError("the provider's answer about the job names no job", request_id=reply.request_id)
    return found


class SDKClient(Protocol):
    """What is needed of both SDKs' clients."""

    async def close(self) -> None:
        """Close the connections."""
        ...

    def with_options(self, *, max_retries: int) -> Any:
        """The same client with other options, on the same connections."""
        ...


Client = TypeVar("Client", bound=SDKClient)


class ProviderJudge(ABC, Generic[Client]):
    """A judge that asks a provider: one call for each comparison. Subclasses know the wire form and the SDK.

    Args:
        provider: as in prices, model rules and records.
        model: as the provider names it.
        options: how the model is to be asked.
        prices: for costs and their upper bounds.
        timeout_seconds: the most one call may take, in all.
        requests_per_minute: our own limit; None for none.
        tokens_per_minute: our own limit; None for none.
        on: the day whose prices count.
    """

    def __init__(
        self,
        *,
        provider: str,
        model: str,
        options: JudgeOptions,
        prices: pricing.PriceList,
        timeout_seconds: float,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        on: date,
    ) -> None:
        self._model = model
        self._shape = call_shape(provider, model, options)
        self._rules = model_rules(provider, model)
        self._price = prices.price_of(provider, model, on)
        self._timeout = timeout_seconds
        self._pacer = Pacer(requests_per_minute, tokens_per_minute)
        self._identity = JudgeIdentity(profile=f"{provider}/{model}", provider=provider, model=model, simulated=False)
        self._opened: Client | None = None
        self._opened_without_retries: Client | None = None

    @property
    def identity(self) -> JudgeIdentity:
        """Who this is."""
        return self._identity

    def upper_bound_usd(self, prompt: ComparisonPrompt, *, in_job: bool = False) -> float | None:
        """The most one call can cost: no token is shorter than a byte, so the prompt has no more tokens than bytes."""
        return pricing.upper_bound_usd(
            self._price,
            input_tokens=prompt_size(prompt) + _ADDED_TOKENS,
            max_output_tokens=self._shape.max_tokens,
            batch=in_job,
        )

    def cache_seconds(self, prompt: ComparisonPrompt) -> float | None:
        """Five minutes where the part that all comparisons share is long enough for the model's cache."""
        least = self._rules.cache_min_tokens
        if least is None or _bytes(prompt.system, prompt.stable) / _TYPICAL_BYTES_PER_TOKEN < least:
            return None
        return _CACHE_SECONDS

    async def pace(self, prompt: ComparisonPrompt) -> None:
        """Wait until our limits and the provider's allow one more call."""
        await self._pacer.wait(self._expected_tokens(prompt))

    def may_send(self, prompt: ComparisonPrompt) -> bool:
        """Whether our limits and the provider's allow one more call at once; if so, it is admitted."""
        return self._pacer.admit_at_once(self._expected_tokens(prompt))

    def _expected_tokens(self, prompt: ComparisonPrompt) -> int:
        usage = expected_usage(prompt)
        return usage.input + usage.output

    async def judge(self, request: JudgeRequest) -> JudgeAnswer:
        """Ask once. Nothing is retried here: every call that may cost is an attempt that the ledger knows of.

        Raises:
            JudgeError: typed, with its fate. Cancellation propagates.
        """
        try:
            self._check(request.prompt)
            self._client_without_retries()  # before the clock starts: loading an SDK takes seconds
            started, sent_at = time.perf_counter(), self._pacer.now()
            try:
                reply = await self._ask(request.prompt)
                self._pacer.learn(reply.headers, sent_at=sent_at)
                return self._conclude(
                    self._read(reply.body), reply.request_id, latency_seconds=time.perf_counter() - started
                )
            except JudgeError as error:
                error.latency_seconds = time.perf_counter() - started
                self._slow_down(error)
                raise
        finally:
            self._pacer.answered()

    async def check_access(self) -> None:
        """Ask the provider to describe the model: it costs nothing, and needs the key and the name that judging needs.

        Raises:
            JudgeError: typed; a `ModelNotFoundError` of a compatible server may only mean that it describes no models.
        """
        client = self._client()
        await attempt(
            lambda: self._describe_model(client),
            seconds=min(_LOOK_SECONDS, self._timeout),
            expected=self._expected(),
            translate=self._error,
        )

    async def aclose(self) -> None:
        """Close the client's connections, if it was ever used."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = self._opened_without_retries = None

    # what a subclass knows of its provider

    @abstractmethod
    def _open(self) -> Client:
        """A client of the SDK, with `SDK_RETRIES`; its connections belong to the event loop that runs now.

        Raises:
            AuthenticationFailedError: if there is no key.
        """

    @abstractmethod
    def _expected(self) -> tuple[type[Exception], ...]:
        """What calls of the SDK can raise."""

    @abstractmethod
    def _error(self, error: Exception) -> JudgeError:
        """The typed error for one of them."""

    @abstractmethod
    async def _describe_model(self, client: Client) -> object:
        """What the provider says of the model."""

    @abstractmethod
    async def _ask(self, prompt: ComparisonPrompt) -> Reply:
        """Send one call.

        Raises:
            JudgeError: no answer came.
        """

    @abstractmethod
    def _read(self, body: Body) -> Reading:
        """What the body of an answer comes to. Raises nothing, whatever the body is."""

    # what subclasses call

    def _client(self) -> Client:
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def _client_without_retries(self) -> Client:
        """The same client for what may cost. Each call is an attempt that the ledger records before it is sent: a
        retry by the SDK, after a connection broke, could be paid twice and leave no trace.
        """
        if self._opened_without_retries is None:
            self._opened_without_retries = self._client().with_options(max_retries=0)
        return self._opened_without_retries

    def _call_error(self, error: Exception) -> JudgeError:
        response = getattr(error, "response", None)  # the SDKs' status errors have one
        if response is not None:
            self._pacer.learn(response.headers)
        return self._error(error)

    def _job_error(self, error: Exception) -> JudgeError:
        return about_job(self._error(error))

    def _submission_error(self, error: Exception) -> JudgeError:
        return about_submission(self._error(error))

    async def _asked(
        self, call: Callable[[], Awaitable[T]], translate: Callable[[Exception], JudgeError] | None = None
    ) -> T:
        """What a call about jobs brings. It costs nothing, so the SDK may repeat it; a Retry-After of hours must not
        stop the program for hours.
        """
        seconds = (SDK_RETRIES + 1) * self._timeout + _RETRY_PAUSES_SECONDS
        return await attempt(call, seconds=seconds, expected=self._expected(), translate=translate or self._job_error)

    async def _stream(self, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """The items of an SDK's stream, with its exceptions translated; closes the stream."""
        failure = None
        async with aclosing(items) as stream:
            try:
                async for item in stream:
                    yield item
            except self._expected() as error:
                failure = self._job_error(error)
        if failure is not None:
            raise failure

    def _check(self, prompt: ComparisonPrompt) -> None:
        """Refuse what the model could not read, without a call."""
        check_text(prompt)
        window = self._rules.context_window
        if window is not None and prompt_size(prompt) / _MOST_BYTES_PER_TOKEN > window:
            raise ContextTooLongError(
                f"the essays with their instructions are {prompt_size(prompt)} bytes, which cannot fit the model's "
                f"{window} tokens: not sent",
                cost_usd=0.0,
            )

    def _slow_down(self, error: JudgeError) -> None:
        if isinstance(error, RateLimitedError) and error.retry_after_seconds is not None:
            self._pacer.hold(error.retry_after_seconds)

    def _conclude(
        self, reading: Reading, request_id: str | None, *, latency_seconds: float = 0.0, in_job: bool = False
    ) -> JudgeAnswer:
        """The answer in a reading.

        Raises:
            JudgeError: there is none, or it does not follow the schema; with the tokens it used and what it cost.
        """
        cost = None if reading.usage is None else pricing.cost_usd(self._price, reading.usage, batch=in_job)
        failure = reading.failure
        if failure is None:
            try:
                response = parse_response(_unfenced(reading.text))
            except MalformedAnswerError as error:
                failure = error
        if failure is not None:
            failure.http_status, failure.request_id = 200, request_id
            if reading.usage is not None:
                failure.usage, failure.cost_usd = reading.usage, cost
            raise failure
        return JudgeAnswer(
            winner=response.winning_position,
            confidence=response.confidence,
            justification=response.justification,
            usage=reading.usage or Usage(),
            cost_usd=cost,
            request_id=request_id,
            latency_seconds=latency_seconds,
        )

    def _patience(self, size: int) -> float:
        """Seconds for a request with so many bytes to send."""
        return self._timeout + size / _SLOW_UPLOAD_BYTES_PER_SECOND


def _unfenced(answer: str) -> str:
    fenced = _FENCED.fullmatch(answer)
    return fenced["inside"] if fenced else answer


def check_text(prompt: ComparisonPrompt) -> None:
    """Refuse a prompt that cannot be sent as UTF-8.

    Raises:
        InvalidRequestError: it holds half of a surrogate pair.
    """
    if not all(map(_is_unicode, (prompt.system, prompt.stable, prompt.essays))):
        raise InvalidRequestError("the prompt holds half of a surrogate pair, which is no text: not sent", cost_usd=0.0)


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def prompt_size(prompt: ComparisonPrompt) -> int:
    """Its length in bytes of UTF-8."""
    return _bytes(prompt.system, prompt.stable, prompt.essays)


def expected_usage(prompt: ComparisonPrompt) -> Usage:
    """About how many tokens a call takes, none of them from a cache and none of them of long reasoning."""
    return Usage(input=prompt_size(prompt) // _TYPICAL_BYTES_PER_TOKEN, output=EXPECTED_OUTPUT_TOKENS)


def _bytes(*texts: str) -> int:
    return sum(len(value.encode("utf-8", "surrogatepass")) for value in texts)
