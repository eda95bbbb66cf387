"""A judge that asks Anthropic: Messages for single calls, Message Batches for jobs, through the official SDK.

Here: Anthropic's wire form of a prompt, what its answers, results and states mean. Not here: error rules, time limits
and costs (`judges.transport`), pace (`judges.pacing`), prices, and what each model can do (`judges.models`).
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from datetime import date, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from cj_pipeline.judges.errors import (
    CancelledError,
    ContextTooLongError,
    ExpiredError,
    InvalidRequestError,
    JudgeError,
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
    custom_id_prefix,
)
from cj_pipeline.judges.transport import (
    SDK_RETRIES,
    Body,
    ProviderJudge,
    Reading,
    Reply,
    anthropic_error,
    anthropic_problem,
    attempt,
    check_text,
    count,
    job_id,
    json_lines,
    key_from_environment,
    moment,
    part,
    parts,
    problem_error,
    prompt_size,
    quieten,
    reply_of,
    sdk_exceptions,
    text,
)

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from anthropic.types.messages import MessageBatch

PROVIDER: Final = "anthropic"
KEY_VARIABLE: Final = "ANTHROPIC_API_KEY"

_MAX_JOB_ITEMS: Final = 100_000
_PAGE: Final = 100
_CLOCKS_DIFFER_BY: Final = timedelta(minutes=10)

# Items of a job have an error type and no status: the status that Anthropic gives this type in a call.
_STATUS_OF_TYPE: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class AnthropicJudge(ProviderJudge["AsyncAnthropic"]):
    """A `JobJudge` that asks Anthropic. The key is read from ANTHROPIC_API_KEY at the first call.

    Args:
        model: as Anthropic names it.
        options: how the model is to be asked.
        prices: for costs and their upper bounds.
        timeout_seconds: the most one call may take, in all.
        requests_per_minute: our own limit; None for none.
        tokens_per_minute: our own limit; None for none.
        on: the day whose prices count.
    """

    def __init__(
        self,
        model: str,
        options: JudgeOptions,
        *,
        prices: PriceList,
        timeout_seconds: float,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        on: date,
    ) -> None:
        super().__init__(
            provider=PROVIDER,
            model=model,
            options=options,
            prices=prices,
            timeout_seconds=timeout_seconds,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            on=on,
        )

    @property
    def max_job_items(self) -> int:
        """What Anthropic allows in one Message Batch."""
        return _MAX_JOB_ITEMS

    @property
    def max_job_bytes(self) -> int:
        """What Anthropic allows in one Message Batch: 256 MB."""
        return 256_000_000

    # --- single calls

    async def _ask(self, prompt: ComparisonPrompt) -> Reply:
        params = self._params(prompt)
        # for models that still take one, though the SDK's method does not
        extra = {"temperature": params.pop("temperature")} if "temperature" in params else None
        create = self._client_without_retries().messages.with_raw_response.create

        async def send() -> Reply:
            return reply_of(await create(**params, extra_body=extra, timeout=self._timeout))

        return await attempt(send, seconds=self._timeout, expected=self._expected(), translate=self._call_error)

    def _params(self, prompt: ComparisonPrompt) -> Body:
        """The request for one comparison, alone or as an item of a job. Nothing in it tells who is asked about."""
        output: Body = {}
        if self._rules.structured_output:
            output["format"] = {"type": "json_schema", "schema": _response_schema()}
        params: Body = {
            "model": self._model,
            "max_tokens": self._shape.max_tokens,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        # everything up to here is the same for the whole batch: cached by the first call, then read
                        {"type": "text", "text": prompt.stable, "cache_control": {"type": "ephemeral"}},
                        {"type": "text", "text": prompt.essays},
                    ],
                }
            ],
        }
        if prompt.system.strip():  # an empty block is refused
            params["system"] = [{"type": "text", "text": prompt.system}]
        if self._shape.temperature is not None:
            params["temperature"] = self._shape.temperature
        if self._shape.effort is not None:
            output["effort"] = self._shape.effort
        if output:
            params["output_config"] = output
        if self._shape.reasoning == "adaptive":
            params["thinking"] = {"type": "adaptive"}
        if self._shape.reasoning == "budget":
            params["thinking"] = {"type": "enabled", "budget_tokens": self._shape.thinking_budget}
        return params

    def _read(self, body: Body) -> Reading:
        answer = "".join(text(block, "text") or "" for block in parts(body, "content") if block.get("type") == "text")
        return Reading(answer, _usage(body), _failure(text(body, "stop_reason")))

    # --- jobs

    async def submit_job(self, job_key: str, items: Sequence[JobItem]) -> SubmittedJob:
        """Create a Message Batch, with one request and no retry. Anthropic keeps no key of ours with a batch: what
        finds it again are the custom ids, which start with the key's prefix.

        Raises:
            SubmissionUnknownError: the request may have reached Anthropic, and no answer came.
            JudgeError: Anthropic has not accepted the job.
        """
        for item in items:
            check_text(item.request.prompt)
        requests: Any = [{"custom_id": item.custom_id, "params": self._params(item.request.prompt)} for item in items]
        seconds = self._patience(sum(prompt_size(item.request.prompt) for item in items))
        client = self._client_without_retries()

        async def send() -> SubmittedJob:
            batch = reply_of(await client.messages.batches.with_raw_response.create(requests=requests, timeout=seconds))
            return SubmittedJob(job_id(batch), moment(batch.body, "expires_at"))

        return await attempt(send, seconds=seconds, expected=self._expected(), translate=self._submission_error)

    async def find_job(self, job_key: str, *, items: int, since: datetime) -> JobSearch:
        """Look among the batches since then that are of this size. One that has ended is ours if its results say so;
        of one that has not, nobody can tell: the outcome is then undecided.

        Raises:
            JudgeError: Anthropic cannot be asked now.
        """
        undecided = False
        for batch in await self._asked(lambda: self._batches_since(since - _CLOCKS_DIFFER_BY)):
            if _total(batch) != items:
                continue
            if batch.processing_status != "ended":
                undecided = True
            # results that were deleted, after weeks, would be of no use: such a batch is not looked at
            elif batch.results_url and await self._holds(batch.id, custom_id_prefix(job_key)):
                return JobSearch(SearchOutcome.FOUND, SubmittedJob(batch.id, batch.expires_at))
        return JobSearch(SearchOutcome.UNDECIDED if undecided else SearchOutcome.ABSENT)

    async def poll_job(self, provider_job_id: str) -> JobStatus:
        """Where the batch stands.

        Raises:
            JudgeError: Anthropic cannot be asked now.
        """
        batches = self._client().messages.batches.with_raw_response

        async def look() -> Body:
            return reply_of(await batches.retrieve(provider_job_id)).body

        batch = await self._asked(look)
        return JobStatus(_phase(batch), ended_at=moment(batch, "ended_at"), expires_at=moment(batch, "expires_at"))

    async def job_results(self, provider_job_id: str, items: Sequence[JobItem]) -> AsyncIterator[JobResult]:
        """The results of a batch that has ended, as Anthropic streams them.

        Raises:
            JudgeError: Anthropic cannot be asked now, or the stream broke; what came before stands.
        """
        async with aclosing(self._result_lines(provider_job_id)) as lines:
            async for line in lines:
                yield self._job_result(line)

    async def cancel_job(self, provider_job_id: str) -> None:
        """Ask Anthropic to stop the batch; one that is over is left as it is.

        Raises:
            JudgeError: Anthropic cannot be asked now.
        """
        client = self._client_without_retries()
        refusal: JudgeError | None = None
        try:
            await self._asked(lambda: client.messages.batches.cancel(provider_job_id))
        except InvalidRequestError as error:
            refusal = error
        if refusal is not None and not (await self.poll_job(provider_job_id)).phase.is_over:
            raise refusal

    async def _batches_since(self, earliest: datetime) -> list["MessageBatch"]:
        found = []
        async for batch in self._client().messages.batches.list(limit=_PAGE):  # newest first
            if batch.created_at < earliest:
                break
            found.append(batch)
        return found

    async def _holds(self, provider_job_id: str, prefix: str) -> bool:
        async with aclosing(self._result_lines(provider_job_id)) as lines:
            async for line in lines:
                return (text(line, "custom_id") or "").startswith(prefix)
        return False

    async def _result_lines(self, provider_job_id: str) -> AsyncGenerator[Body, None]:
        async with AsyncExitStack() as stack:
            batches = self._client().messages.batches
            results = await self._asked(lambda: batches.results(provider_job_id), self._results_error)
            stack.push_async_callback(results.close)
            # the bytes as they come: the SDK's own decoder takes them 64 at a time
            lines = self._stream(json_lines(results.http_response.aiter_bytes()))
            async for line in await stack.enter_async_context(aclosing(lines)):
                yield line

    def _job_result(self, line: Body) -> JobResult:
        custom_id = text(line, "custom_id") or ""
        result = part(line, "result")
        try:
            return JobResult(custom_id, answer=self._result_answer(result))
        except JudgeError as error:
            return JobResult(custom_id, error=error)

    def _result_answer(self, result: Body) -> JudgeAnswer:
        match text(result, "type"):
            case "succeeded":
                message = part(result, "message")
                return self._conclude(self._read(message), text(message, "id"), in_job=True)
            case "expired":
                raise ExpiredError("the job's time ran out before this comparison", cost_usd=0.0)
            case "canceled":
                raise CancelledError("the job was cancelled before this comparison", cost_usd=0.0)
            case _:
                body = part(result, "error")
                status = _STATUS_OF_TYPE.get(text(part(body, "error"), "type") or "", 500)
                raise problem_error(anthropic_problem(body, status=status))

    # --- the SDK

    def _open(self) -> "AsyncAnthropic":
        from anthropic import AsyncAnthropic

        key = key_from_environment(KEY_VARIABLE)
        quieten("anthropic")
        client = AsyncAnthropic(
            api_key=key,
            timeout=self._timeout,
            max_retries=SDK_RETRIES,
            open_telemetry=False,  # the environment could make its spans carry the essays
        )
        _ = client.messages  # the SDK loads its parts on first touch: not within the first call's time
        return client

    async def _describe_model(self, client: "AsyncAnthropic") -> object:
        return await client.models.retrieve(self._model)

    def _expected(self) -> tuple[type[Exception], ...]:
        from anthropic import AnthropicError

        return sdk_exceptions(AnthropicError)

    def _error(self, error: Exception) -> JudgeError:
        return anthropic_error(error)

    def _results_error(self, error: Exception) -> JudgeError:
        from anthropic import AnthropicError

        if type(error) is AnthropicError:  # the SDK's own: the batch names no place of its results
            return InvalidRequestError("the job has no results: it is not over, or they were deleted", cost_usd=0.0)
        return self._job_error(error)


@cache
def _response_schema() -> Body:
    """The answer's schema as Anthropic takes it."""
    from anthropic import transform_schema

    return transform_schema(RESPONSE_SCHEMA)


def _usage(body: Body) -> Usage | None:
    usage = part(body, "usage")
    if not usage:
        return None
    return Usage(
        input=count(usage, "input_tokens"),  # what was read from or written to the cache is not in it
        cache_read=count(usage, "cache_read_input_tokens"),
        cache_write=count(usage, "cache_creation_input_tokens"),
        output=count(usage, "output_tokens"),
        reasoning=count(part(usage, "output_tokens_details"), "thinking_tokens"),
    )


def _failure(stop_reason: str | None) -> JudgeError | None:
    match stop_reason:
        case "max_tokens":
            return TruncatedAnswerError("the answer was cut at max_tokens: allow more, or less thinking")
        case "refusal":
            return RefusedError("the model declined to answer")
        case "model_context_window_exceeded":
            return ContextTooLongError("the essays and the answer together do not fit the model's context window")
        case _:
            return None


def _phase(batch: Body) -> JobPhase:
    if text(batch, "processing_status") != "ended":
        return JobPhase.RUNNING
    if text(batch, "cancel_initiated_at") is not None:
        return JobPhase.CANCELLED
    return JobPhase.EXPIRED if count(part(batch, "request_counts"), "expired") else JobPhase.COMPLETED


def _total(batch: "MessageBatch") -> int:
    counts = batch.request_counts
    return counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
