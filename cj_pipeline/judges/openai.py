"""A judge that asks OpenAI, or a server that speaks its protocol, through the official SDK.

OpenAI is asked by Responses, and by Batch for jobs. A compatible server (vLLM, Ollama, llama.cpp, ...) is asked by
Responses too, until it shows that it has no such path, then by Chat Completions; and for JSON by schema, until it shows
that it cannot, then for any JSON, then by the prompt alone.

Here: the wire forms, and what answers, results and states mean. Not here: error rules, time limits and costs
(`judges.transport`), pace (`judges.pacing`), prices, and what each model can do (`judges.models`).
"""

import hashlib
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from cj_pipeline.core.errors import InputError
from cj_pipeline.judges.errors import (
    CancelledError,
    ExpiredError,
    InvalidRequestError,
    JudgeError,
    ModelNotFoundError,
    RefusedError,
    TruncatedAnswerError,
)
from cj_pipeline.judges.models import JudgeOptions
from cj_pipeline.judges.pricing import PriceList
from cj_pipeline.judges.prompts import RESPONSE_SCHEMA
from cj_pipeline.judges.protocol import (
    ComparisonPrompt,
    JobItem,
    JobPhase,
    JobResult,
    JobSearch,
    JobStatus,
    JudgeAnswer,
    SearchOutcome,
    SubmittedJob,
    Usage,
)
from cj_pipeline.judges.transport import (
    SDK_RETRIES,
    Body,
    ProviderJudge,
    Reading,
    Reply,
    attempt,
    check_text,
    count,
    decoded,
    identifier,
    job_id,
    json_lines,
    key_from_environment,
    moment,
    openai_error,
    openai_problem,
    part,
    parts,
    problem_error,
    quieten,
    reply_of,
    sdk_exceptions,
    text,
)

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Form = Literal["responses", "chat"]
"""Which of OpenAI's two protocols for asking a model."""

Format = Literal["json_schema", "json_object", "none"]
"""How the form of the answer is asked for, beside the prompt's own words. From strict to nothing."""

KEY_VARIABLE: Final = "OPENAI_API_KEY"
COMPATIBLE_KEY_VARIABLE: Final = "CJ_OPENAI_COMPATIBLE_API_KEY"

_ENDPOINTS: Final[dict[Form, Literal["/v1/responses", "/v1/chat/completions"]]] = {
    "responses": "/v1/responses",
    "chat": "/v1/chat/completions",
}
_FORMATS: Final[tuple[Format, ...]] = ("json_schema", "json_object", "none")
_SCHEMA: Final = {"name": "judgment", "schema": RESPONSE_SCHEMA, "strict": True}  # valid in strict mode as it is
_NO_SUCH_PATH: Final = frozenset({404, 405, 501})
_UNACCEPTABLE: Final = frozenset({400, 422})

_MAX_JOB_ITEMS: Final = 50_000
_JOB_KEY: Final = "cj_job_key"
_PAGE: Final = 100
_CLOCKS_DIFFER_BY: Final = timedelta(minutes=10)
_MOST_CODES: Final = 5

_PHASES: Final = {
    "completed": JobPhase.COMPLETED,
    "expired": JobPhase.EXPIRED,
    "cancelled": JobPhase.CANCELLED,
    "failed": JobPhase.FAILED,
}


class OpenAIJudge(ProviderJudge["AsyncOpenAI"]):
    """A `JobJudge` that asks OpenAI or a compatible server. The key is read from the environment at the first call.

    Args:
        model: as the provider names it.
        options: how the model is to be asked.
        provider: `openai` (key in OPENAI_API_KEY), or `compatible` (key in CJ_OPENAI_COMPATIBLE_API_KEY, if it needs
            one).
        base_url: where a compatible server is; for OpenAI None, unless it is reached another way.
        prices: for costs and their upper bounds.
        timeout_seconds: the most one call may take, in all.
        requests_per_minute: our own limit; None for none.
        tokens_per_minute: our own limit; None for none.
        on: the day whose prices count.

    Raises:
        InputError: if a compatible server has no `base_url`.
    """

    def __init__(
        self,
        model: str,
        options: JudgeOptions,
        *,
        provider: Literal["openai", "compatible"],
        base_url: str | None = None,
        prices: PriceList,
        timeout_seconds: float,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        on: date,
    ) -> None:
        if provider == "compatible" and not base_url:
            # the SDK would send the essays to OpenAI
            raise InputError("a compatible server needs a base_url, e.g. http://localhost:8000/v1")
        super().__init__(
            provider=provider,
            model=model,
            options=options,
            prices=prices,
            timeout_seconds=timeout_seconds,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            on=on,
        )
        self._compatible = provider == "compatible"
        self._base_url = base_url
        self._form: Form = "responses"
        # a compatible server shows what it can; of OpenAI's models it is known
        by_schema = self._compatible or self._rules.structured_output
        self._format: Format = "json_schema" if by_schema else "json_object"

    @property
    def max_job_items(self) -> int:
        """What OpenAI allows in one batch."""
        return _MAX_JOB_ITEMS

    @property
    def max_job_bytes(self) -> int:
        """What OpenAI allows in the file of one batch: 200 MB."""
        return 200_000_000

    def cache_seconds(self, prompt: ComparisonPrompt) -> float | None:
        """Five minutes where the shared part is long enough for OpenAI's cache; nothing is known of other servers."""
        return None if self._compatible else super().cache_seconds(prompt)

    # --- single calls

    async def _ask(self, prompt: ComparisonPrompt) -> Reply:
        if not self._compatible:
            return await self._send(prompt, self._form, self._format)
        if self._form == "responses":
            try:
                return await self._ask_for_json(prompt, "responses")
            except _NoSuchPathError:
                pass
            reply = await self._ask_for_json(prompt, "chat")
            self._form = "chat"
            return reply
        return await self._ask_for_json(prompt, self._form)

    async def _ask_for_json(self, prompt: ComparisonPrompt, form: Form) -> Reply:
        """Ask in the strictest format that the server is not known to refuse. What it refuses was not paid for, so
        one attempt may go down the whole ladder; what it refuses in every format was not refused for its format.
        """
        refusal: JudgeError | None = None
        for format_ in _FORMATS[_FORMATS.index(self._format) :]:
            try:
                reply = await self._send(prompt, form, format_)
            except InvalidRequestError as error:
                if error.http_status not in _UNACCEPTABLE:
                    raise
                refusal = refusal or error
            else:
                self._format = format_
                return reply
        assert refusal is not None
        raise refusal

    async def _send(self, prompt: ComparisonPrompt, form: Form, format_: Format) -> Reply:
        client = self._client_without_retries()
        create: Any = (
            client.responses.with_raw_response.create
            if form == "responses"
            else client.chat.completions.with_raw_response.create
        )
        body = self._body(prompt, form, format_)

        async def send() -> Reply:
            return reply_of(await create(**body))

        return await attempt(send, seconds=self._timeout, expected=self._expected(), translate=self._call_error)

    def _body(self, prompt: ComparisonPrompt, form: Form, format_: Format) -> Body:
        """The request for one comparison, alone or as an item of a job. Nothing in it tells who is asked about."""
        return self._responses_body(prompt, format_) if form == "responses" else self._chat_body(prompt, format_)

    def _responses_body(self, prompt: ComparisonPrompt, format_: Format) -> Body:
        shape = self._shape
        output: Body = {}
        if format_ == "json_schema":
            output["format"] = {"type": "json_schema", **_SCHEMA}
        if format_ == "json_object":
            output["format"] = {"type": "json_object"}
        if shape.verbosity is not None:
            output["verbosity"] = shape.verbosity
        body: Body = {
            "model": self._model,
            # what all comparisons of the batch share comes first: the provider caches by prefix
            "instructions": prompt.system,
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": prompt.stable},
                        {"type": "input_text", "text": prompt.essays},
                    ],
                }
            ],
            "max_output_tokens": shape.max_tokens,
            "store": False,  # the essays are not to be kept
        }
        if output:
            body["text"] = output
        if shape.effort is not None:
            body["reasoning"] = {"effort": shape.effort}
        if shape.temperature is not None:
            body["temperature"] = shape.temperature
        if not self._compatible:
            body["prompt_cache_key"] = _cache_key(prompt)
        return body

    def _chat_body(self, prompt: ComparisonPrompt, format_: Format) -> Body:
        shape = self._shape
        body: Body = {
            "model": self._model,
            "messages": [
                {"role": "system", "content": prompt.system},
                # one text: many servers read no list of parts
                {"role": "user", "content": f"{prompt.stable}\n\n{prompt.essays}"},
            ],
            "max_tokens": shape.max_tokens,  # the older name, which every server knows
        }
        if format_ == "json_schema":
            body["response_format"] = {"type": "json_schema", "json_schema": _SCHEMA}
        if format_ == "json_object":
            body["response_format"] = {"type": "json_object"}
        if shape.effort is not None:
            body["reasoning_effort"] = shape.effort
        if shape.verbosity is not None:
            body["verbosity"] = shape.verbosity
        if shape.temperature is not None:
            body["temperature"] = shape.temperature
        return body

    def _read(self, body: Body) -> Reading:
        return _read_chat(body) if "choices" in body else _read_response(body)

    # --- jobs

    async def submit_job(self, job_key: str, items: Sequence[JobItem]) -> SubmittedJob:
        """Upload the requests, then create a batch of them that carries the job's key; each with one request.

        Raises:
            SubmissionUnknownError: the batch may have been created, and no answer came.
            JudgeError: the provider has not accepted the job. Of a file alone, nothing comes.
        """
        for item in items:
            check_text(item.request.prompt)
        client = self._client_without_retries()
        content = self._job_file(items)
        seconds = self._patience(len(content))

        async def upload() -> str:
            file = (f"cj-{job_key}.jsonl", content, "application/jsonl")
            return job_id(
                reply_of(await client.files.with_raw_response.create(file=file, purpose="batch", timeout=seconds))
            )

        file_id = await attempt(upload, seconds=seconds, expected=self._expected(), translate=self._job_error)

        async def create() -> SubmittedJob:
            batch = reply_of(
                await client.batches.with_raw_response.create(
                    input_file_id=file_id,
                    endpoint=_ENDPOINTS[self._form],
                    completion_window="24h",
                    metadata={_JOB_KEY: job_key},
                )
            )
            return SubmittedJob(job_id(batch), moment(batch.body, "expires_at"))

        return await attempt(create, seconds=self._timeout, expected=self._expected(), translate=self._submission_error)

    async def find_job(self, job_key: str, *, items: int, since: datetime) -> JobSearch:
        """Look for the batch that carries the key, among those made since then.

        Raises:
            JudgeError: the provider cannot be asked now.
        """
        earliest = (since - _CLOCKS_DIFFER_BY).timestamp()

        async def look() -> SubmittedJob | None:
            async for batch in self._client().batches.list(limit=_PAGE):  # newest first
                if batch.created_at < earliest:
                    break
                if (batch.metadata or {}).get(_JOB_KEY) == job_key:
                    expires = batch.expires_at
                    return SubmittedJob(batch.id, None if expires is None else datetime.fromtimestamp(expires, UTC))
            return None

        job = await self._asked(look)
        return JobSearch(SearchOutcome.ABSENT if job is None else SearchOutcome.FOUND, job)

    async def poll_job(self, provider_job_id: str) -> JobStatus:
        """Where the batch stands.

        Raises:
            JudgeError: the provider cannot be asked now.
        """
        batch = await self._batch(provider_job_id)
        phase = _PHASES.get(text(batch, "status") or "", JobPhase.RUNNING)
        ended = moment(batch, f"{phase.value}_at") if phase.is_over else None
        detail = _failure_detail(batch) if phase is JobPhase.FAILED else None
        return JobStatus(phase, ended_at=ended, expires_at=moment(batch, "expires_at"), detail=detail)

    async def job_results(self, provider_job_id: str, items: Sequence[JobItem]) -> AsyncIterator[JobResult]:
        """The results of a batch that is over, from its output file and its error file.

        Raises:
            JudgeError: the provider cannot be asked now, or the stream broke; what came before stands.
        """
        batch = await self._batch(provider_job_id)
        for name in ("output_file_id", "error_file_id"):
            file_id = text(batch, name)
            if file_id:
                async with aclosing(self._file_lines(file_id)) as lines:
                    async for line in lines:
                        yield self._job_result(line)

    async def cancel_job(self, provider_job_id: str) -> None:
        """Ask the provider to stop the batch; one that is over is left as it is.

        Raises:
            JudgeError: the provider cannot be asked now.
        """
        client = self._client_without_retries()
        refusal: JudgeError | None = None
        try:
            await self._asked(lambda: client.batches.cancel(provider_job_id))
        except JudgeError as error:
            if error.http_status not in (400, 409):
                raise
            refusal = error
        if refusal is not None and not (await self.poll_job(provider_job_id)).phase.is_over:
            raise refusal

    def _job_file(self, items: Sequence[JobItem]) -> bytes:
        return b"".join(
            json.dumps(
                {
                    "custom_id": item.custom_id,
                    "method": "POST",
                    "url": _ENDPOINTS[self._form],
                    "body": self._body(item.request.prompt, self._form, self._format),
                },
                ensure_ascii=False,
            ).encode()
            + b"\n"
            for item in items
        )

    async def _batch(self, provider_job_id: str) -> Body:
        batches = self._client().batches.with_raw_response

        async def look() -> Body:
            return reply_of(await batches.retrieve(provider_job_id)).body

        return await self._asked(look)

    async def _file_lines(self, file_id: str) -> AsyncGenerator[Body, None]:
        async with AsyncExitStack() as stack:
            content = self._client().files.with_streaming_response.content(file_id)
            response = await self._asked(lambda: stack.enter_async_context(content))
            lines = self._stream(json_lines(response.iter_bytes()))
            async for line in await stack.enter_async_context(aclosing(lines)):
                yield line

    def _job_result(self, line: Body) -> JobResult:
        custom_id = text(line, "custom_id") or ""
        try:
            return JobResult(custom_id, answer=self._line_answer(line))
        except JudgeError as error:
            return JobResult(custom_id, error=error)

    def _line_answer(self, line: Body) -> JudgeAnswer:
        code = text(part(line, "error"), "code")
        if code == "batch_expired":
            raise ExpiredError("the job's time ran out before this comparison", cost_usd=0.0)
        if code == "batch_cancelled":
            raise CancelledError("the job was cancelled before this comparison", cost_usd=0.0)
        response = part(line, "response")
        body, status = part(response, "body"), count(response, "status_code") or 500
        request_id = text(response, "request_id")
        if not response:
            raise problem_error(openai_problem(line, status=status))
        if status != 200:
            raise problem_error(openai_problem(body, status=status, request_id=request_id))
        return self._conclude(self._read(body), request_id, in_job=True)

    # --- the SDK

    def _open(self) -> "AsyncOpenAI":
        from openai import AsyncOpenAI

        if self._compatible:
            key = os.environ.get(COMPATIBLE_KEY_VARIABLE, "").strip() or "unused"  # the SDK insists on one
        else:
            key = key_from_environment(KEY_VARIABLE)
        quieten("openai")
        client = AsyncOpenAI(api_key=key, base_url=self._base_url, timeout=self._timeout, max_retries=SDK_RETRIES)
        _ = client.responses, client.chat  # the SDK loads its parts on first touch: not within the first call's time
        return client

    async def _describe_model(self, client: "AsyncOpenAI") -> object:
        return await client.models.retrieve(self._model)

    def _expected(self) -> tuple[type[Exception], ...]:
        from openai import OpenAIError

        return sdk_exceptions(OpenAIError)

    def _error(self, error: Exception) -> JudgeError:
        if self._compatible and _is_about_path(error):
            return _NoSuchPathError("the server has no such path: check its base_url", http_status=404, cost_usd=0.0)
        return openai_error(error)


class _NoSuchPathError(ModelNotFoundError):
    """A compatible server does not have the path that it was asked at."""


def _is_about_path(error: Exception) -> bool:
    """Whether a server refuses the path, and not the model: then its words name the model, or call it so."""
    from openai import APIStatusError

    if not isinstance(error, APIStatusError) or error.status_code not in _NO_SUCH_PATH:
        return False
    if error.status_code != 404:
        return True
    problem = openai_problem(decoded(error.response))
    return problem.code != "model_not_found" and "model" not in problem.message.lower()


def _cache_key(prompt: ComparisonPrompt) -> str:
    return hashlib.sha256(f"{prompt.system}\0{prompt.stable}".encode()).hexdigest()[:32]


# --- answers


def _read_response(body: Body) -> Reading:
    contents = [
        content for item in parts(body, "output") if item.get("type") == "message" for content in parts(item, "content")
    ]
    answer = "".join(text(content, "text") or "" for content in contents if content.get("type") == "output_text")
    usage = _usage(body, "input_tokens", "output_tokens")
    return Reading(answer, usage, _response_failure(body, contents))


def _response_failure(body: Body, contents: list[Body]) -> JudgeError | None:
    if text(body, "status") == "failed":
        return problem_error(openai_problem(body))
    if any(content.get("type") == "refusal" for content in contents):
        return RefusedError("the model declined to answer")
    return _ending_failure(text(part(body, "incomplete_details"), "reason"))


def _read_chat(body: Body) -> Reading:
    choice = next(iter(parts(body, "choices")), None)
    message = part(choice, "message")
    usage = _usage(body, "prompt_tokens", "completion_tokens")
    failure = (
        RefusedError("the model declined to answer")
        if text(message, "refusal")
        else _ending_failure(text(choice, "finish_reason"))
    )
    return Reading(text(message, "content") or "", usage, failure)


def _ending_failure(reason: str | None) -> JudgeError | None:
    match reason:
        case "max_output_tokens" | "length":
            return TruncatedAnswerError("the answer was cut at the output limit: allow more tokens, or less reasoning")
        case "content_filter":
            return RefusedError("a safety filter stopped the answer")
        case _:
            return None


def _usage(body: Body, input_name: str, output_name: str) -> Usage | None:
    usage = part(body, "usage")
    if not usage:
        return None
    details = part(usage, f"{input_name}_details")
    read, written = count(details, "cached_tokens"), count(details, "cache_write_tokens")
    return Usage(
        input=max(0, count(usage, input_name) - read - written),  # OpenAI's number includes them
        cache_read=read,
        cache_write=written,
        output=count(usage, output_name),
        reasoning=count(part(usage, f"{output_name}_details"), "reasoning_tokens"),
    )


def _failure_detail(batch: Body) -> str:
    codes = {identifier(error.get("code")) for error in parts(part(batch, "errors"), "data")}
    named = sorted(code for code in codes if code is not None)[:_MOST_CODES]
    return "the provider refused the job as a whole" + (f": {', '.join(named)}" if named else "")
