"""Anthropic's and OpenAI's HTTP protocols on the loopback interface, for their official SDKs with `base_url=`.

    with ProviderServer(seed=1) as server:
        anthropic.Anthropic(base_url=server.anthropic_url, api_key=server.api_key, max_retries=0)
        openai.OpenAI(base_url=server.openai_url, api_key=server.api_key, max_retries=0)

By hand: `python -m cj_pipeline_tests.providers.server --port 8080`.
"""

import argparse
import asyncio
import contextlib
import json
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from cj_pipeline_tests.providers import anthropic_api, openai_api
from cj_pipeline_tests.providers.anthropic_api import AnthropicMessages
from cj_pipeline_tests.providers.dialects import (
    Answer,
    Body,
    Dialect,
    Problem,
    Prompt,
    PromptCache,
    RejectedError,
    compact,
)
from cj_pipeline_tests.providers.essays import PairKey, by_strength, digest, pair_key
from cj_pipeline_tests.providers.faults import (
    ENDING_FAULTS,
    ERROR_FAULTS,
    TRANSPORT_FAULTS,
    USABLE,
    FaultPlan,
    spoil,
)
from cj_pipeline_tests.providers.jobs import Fate, Item, Job, JobControls, Result
from cj_pipeline_tests.providers.limits import Limits, Window, retry_after
from cj_pipeline_tests.providers.openai_api import OpenAIChat, OpenAIResponses
from cj_pipeline_tests.providers.records import Call, Records
from cj_pipeline_tests.providers.registry import ANTHROPIC_PREFIX, OPENAI_PREFIX, Registry
from cj_pipeline_tests.providers.wire import Reply, Request, serve_connection

Decide = Callable[[str, str], dict[str, Any]]
"""(prompt text, model) → the verdict, a JSON object."""

_HTML = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"


@dataclass(frozen=True)
class _Outcome:
    """What a model made of a request."""

    status: int
    body: Body
    usable: bool | None
    """Whether its answer can be used; None when there is no answer to pay for."""


class ProviderServer:
    """Serves both providers in a thread of its own. Attributes may be changed while it runs.

    Nothing but a call to a model (messages, responses, chat completions) waits for `latency`, counts as in flight and
    meets `faults`; items of jobs meet `faults` as well, when their job ends. Calls about jobs and files meet
    `jobs.faults`. Errors are answered at once, without latency.
    """

    def __init__(
        self,
        seed: int = 0,
        latency: float = 0.0,
        decide: Decide | None = None,
        api_key: str = "test-key",
        *,
        responses_missing: bool = False,
        port: int = 0,
    ) -> None:
        self.seed = seed
        self.latency = latency
        self.decide: Decide = decide or by_strength
        self.api_key = api_key
        self.responses_missing = responses_missing
        self.port = port
        self.faults = FaultPlan(seed)
        self.jobs = JobControls(faults=FaultPlan(seed))
        self.hang_seconds = 30.0
        self.retry_after_seconds = 1.0
        self.limits: Limits | None = None
        self.enforce_limits = False
        self.minute_seconds = 60.0
        self.cache_min_chars = 200
        self.unknown_models: set[str] = set()
        self.crashes: list[str] = []

        self._records = Records()
        self._cache = PromptCache()
        self._windows = {"anthropic": Window(), "openai": Window()}
        self.dialects: dict[str, Dialect] = {
            f"{ANTHROPIC_PREFIX}/v1/messages": AnthropicMessages(),
            f"{OPENAI_PREFIX}/v1/responses": OpenAIResponses(),
            f"{OPENAI_PREFIX}/v1/chat/completions": OpenAIChat(),
        }
        self._registry = Registry(self, self._answer_item)
        self._numbers = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    # Life

    def start(self) -> None:
        """Listen; returns when connections are accepted."""
        ready = threading.Event()
        self._failure = None
        self._thread = threading.Thread(target=self._run, args=(ready,), name="provider-server", daemon=True)
        self._thread.start()
        ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def stop(self) -> None:
        """Close all connections and end the thread."""
        if self._thread is None or self._loop is None or self._stop is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self.crashes and error is None:
            raise RuntimeError("the provider server crashed:\n" + "\n".join(self.crashes))

    def _run(self, ready: threading.Event) -> None:
        try:
            asyncio.run(self._serve(ready))
        except OSError as problem:  # the port is taken
            self._failure = problem
        finally:
            ready.set()

    async def _serve(self, ready: threading.Event) -> None:
        connections: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            try:
                await serve_connection(self._handle, reader, writer)
            except asyncio.CancelledError:
                writer.transport.abort()
            finally:
                connections.discard(task)

        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(connected, "127.0.0.1", self.port, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stop.wait()
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    # What tests look at

    @property
    def anthropic_url(self) -> str:
        """What `base_url` of Anthropic's SDK has to be."""
        return f"http://127.0.0.1:{self.port}{ANTHROPIC_PREFIX}"

    @property
    def openai_url(self) -> str:
        """What `base_url` of OpenAI's SDK has to be."""
        return f"http://127.0.0.1:{self.port}{OPENAI_PREFIX}/v1"

    @property
    def calls(self) -> list[Call]:
        """All requests and all items of jobs so far, in order of arrival."""
        with self._records.lock:
            return list(self._records.calls)

    @property
    def model_calls(self) -> list[Call]:
        """Those of `calls` that asked a model something, items of jobs included."""
        paths = {dialect.path for dialect in self.dialects.values()}
        return [call for call in self.calls if call.method == "POST" and call.path in paths]

    @property
    def billed(self) -> Counter[PairKey]:
        """Usable answers produced, by (sha256 of text A, sha256 of text B), whether or not they reached the client."""
        with self._records.lock:
            return Counter(self._records.billed)

    @property
    def spoiled(self) -> Counter[PairKey]:
        """Answers that cost money and are of no use: malformed, truncated, refused, empty."""
        with self._records.lock:
            return Counter(self._records.spoiled)

    @property
    def answered(self) -> int:
        """Usable answers produced."""
        return self.billed.total()

    @property
    def max_in_flight(self) -> int:
        """The most calls to models that were ever under way together."""
        return self._records.max_in_flight

    @property
    def keep_bodies(self) -> bool:
        """Whether `calls` hold the requests' bodies; switch it off for long benchmarks."""
        return self._records.keep_bodies

    @keep_bodies.setter
    def keep_bodies(self, keep: bool) -> None:
        self._records.keep_bodies = keep

    def reset(self) -> None:
        """Forget calls, bills, caches and the past minute; jobs and files stay, and so do all settings."""
        self._records.reset()
        self._cache = PromptCache()
        self._windows = {"anthropic": Window(), "openai": Window()}

    # From a request to a reply

    async def _handle(self, request: Request) -> Reply | None:
        provider = "anthropic" if request.path.startswith(f"{ANTHROPIC_PREFIX}/") else "openai"
        request_id = f"req_{self.next_number()}"
        try:
            reply = await self._route(request, provider, request_id)
        except Exception:  # noqa: BLE001 (a bug here or in a test's `decide` is told when the server closes)
            self.crashes.append(traceback.format_exc())
            reply = Reply(500, b"the test server crashed", "text/plain")
        if reply is not None:
            reply.headers["request-id" if provider == "anthropic" else "x-request-id"] = request_id
        return reply

    async def _route(self, request: Request, provider: str, request_id: str) -> Reply | None:
        prefix = ANTHROPIC_PREFIX if provider == "anthropic" else OPENAI_PREFIX
        path = request.path.removeprefix(prefix)
        body, malformed = _parse(request)
        call = self._records.arrive(provider, path, body, request.headers, request.method)
        dialect = self.dialects.get(request.path) if request.method == "POST" else None
        try:
            self._authorise(request, provider)
            if malformed:
                raise RejectedError(Problem(400, "invalid_request_error", "The request body is not valid JSON."))
            if dialect is not None and not (self.responses_missing and isinstance(dialect, OpenAIResponses)):
                self._records.begin(call)
                try:
                    reply = await self._ask(request, call, dialect, body, request_id)
                finally:
                    self._records.end()
            else:
                reply = await self._administer(request, call, provider, path, body)
        except RejectedError as rejection:
            reply = _error_reply(rejection.problem, provider, request_id)
        if reply is not None:
            call.status = reply.status
        return reply

    def _authorise(self, request: Request, provider: str) -> None:
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if provider == "openai":
            if bearer != self.api_key:
                raise RejectedError(openai_api.wrong_key(bearer))
            return
        given = request.headers.get("x-api-key", bearer)
        if given != self.api_key:
            message = "invalid x-api-key" if given else "x-api-key header is required"
            raise anthropic_api.rejected(message, status=401)
        if "anthropic-version" not in request.headers:
            raise anthropic_api.rejected("anthropic-version: header is required")

    # Calls to a model

    async def _ask(self, request: Request, call: Call, dialect: Dialect, body: Body, request_id: str) -> Reply | None:
        dialect.check(body)
        prompt = dialect.prompt(body)
        limit_headers = self._admit(dialect, body, prompt)
        pair = pair_key(prompt.text)
        fault = call.fault = self.faults.next(pair)
        if fault == "hang" and await request.client_leaves(self.hang_seconds):
            return None
        if fault in ("drop", "bad_gateway", "not_json_body"):
            return _broken(fault)
        outcome = self._outcome(dialect, body, prompt, fault, request_id)
        headers = dict(limit_headers)
        if fault == "rate_limited_retry_after":
            headers["retry-after"] = f"{self.retry_after_seconds:g}"
        if outcome.usable is not None:
            if self.latency > 0:
                await asyncio.sleep(self.latency)
            self._records.bill(pair, outcome.usable)
        if dialect.provider == "openai":
            headers["openai-processing-ms"] = str(round(self.latency * 1000))
        return Reply(outcome.status, compact(outcome.body), headers=headers, half=fault == "drop_mid_body")

    def _admit(self, dialect: Dialect, body: Body, prompt: Prompt) -> dict[str, str]:
        """The rate limit headers; raises `RejectedError` for a call over the limit, where limits are enforced."""
        limits = self.limits or (None, None)
        window = self._windows[dialect.provider]
        wait = window.wait(limits if self.enforce_limits else (None, None), prompt.tokens, self.minute_seconds)
        headers = window.headers(dialect.provider, limits, self.minute_seconds)
        if wait == 0:
            return headers
        problem = dialect.problem("rate_limited", body, self.api_key)
        headers["retry-after"] = retry_after(wait, self.minute_seconds)
        raise RejectedError(Problem(problem.status, problem.type, problem.message, problem.code, headers=headers))

    def _outcome(self, dialect: Dialect, body: Body, prompt: Prompt, fault: str | None, request_id: str) -> _Outcome:
        """What the model makes of a request that is in order."""
        if body["model"] in self.unknown_models:
            fault = "model_not_found"
        if fault in ERROR_FAULTS:
            problem = dialect.problem(fault, body, self.api_key)
            return _Outcome(problem.status, dialect.error(problem, request_id), None)
        text = json.dumps(spoil(self.decide(prompt.text, body["model"]), fault), ensure_ascii=False)
        limit = dialect.output_limit(body)
        ending = fault if fault in ENDING_FAULTS else None
        if ending is None and limit is not None and len(text) // 4 + dialect.reasoning_tokens(body) > limit:
            ending = "truncated"
        if ending in ("refusal", "empty_answer"):
            text = ""
        elif ending is not None or fault == "invalid_json":
            text = text[: len(text) // 2]
        if ending == "content_filter" and dialect.provider == "anthropic":
            text = ""
        usage = dialect.usage(self._cache, body, prompt, len(text) // 4, self.cache_min_chars)
        answer = dialect.success(body, Answer(text, ending, usage), self.next_number())
        return _Outcome(200, answer, ending is None and fault in USABLE)

    # Jobs, files, models

    async def _administer(self, request: Request, call: Call, provider: str, path: str, body: Body) -> Reply | None:
        fault = call.fault = self.jobs.faults.next((digest(f"{request.method} {path}"), ""))
        if fault == "hang" and await request.client_leaves(self.hang_seconds):
            return None
        if fault in ("drop", "bad_gateway", "not_json_body"):
            return _broken(fault)
        if fault in ERROR_FAULTS:
            problem = self._problem_of(provider, fault)
            headers = {"retry-after": f"{self.retry_after_seconds:g}"} if fault == "rate_limited_retry_after" else {}
            raise RejectedError(Problem(problem.status, problem.type, problem.message, problem.code, headers=headers))
        route = [request.method, *path.removeprefix("/v1/").split("/")] if path.startswith("/v1/") else []
        reply = self._registry.serve(provider, route, request, body)
        if reply is not None and fault == "drop_mid_body":
            reply.half = True
        return reply

    def _problem_of(self, provider: str, fault: str) -> Problem:
        dialect: Dialect = AnthropicMessages() if provider == "anthropic" else OpenAIResponses()
        return dialect.problem(fault, {}, self.api_key)

    def _answer_item(self, job: Job, item: Item) -> Result:
        dialect, request_id = job.dialect, f"req_{self.next_number()}"
        call = self._records.arrive(job.provider, dialect.path, item.body, {}, "POST")
        call.custom_id = item.custom_id
        try:
            dialect.check(item.body)
        except RejectedError as rejection:
            call.status = rejection.problem.status
            error = dialect.error(rejection.problem, request_id)
            return Result(item.custom_id, "refused", rejection.problem.status, error, request_id)
        prompt = dialect.prompt(item.body)
        pair = pair_key(prompt.text)
        call.fault = self.faults.next(pair)
        fault = "server_error" if call.fault in TRANSPORT_FAULTS else call.fault
        outcome = self._outcome(dialect, item.body, prompt, fault, request_id)
        if job.provider == "anthropic" and outcome.status == 200:
            outcome.body["usage"]["service_tier"] = "batch"
        call.status = outcome.status
        if outcome.usable is not None:
            self._records.bill(pair, outcome.usable)
        fate: Fate = "refused" if outcome.usable is None else "answered"
        return Result(item.custom_id, fate, outcome.status, outcome.body, request_id)

    def next_number(self) -> str:
        """What ids are made of: counted, and different for every seed."""
        self._numbers += 1
        return f"{self.seed & 0xFFFF:04x}{self._numbers:012x}"


def _parse(request: Request) -> tuple[Body, bool]:
    """The JSON object of a request, and whether there should be one and is not."""
    if not request.body or request.headers.get("content-type", "").startswith("multipart/"):
        return {}, False
    try:
        body = json.loads(request.body)
    except ValueError:
        return {}, True
    return (body, False) if isinstance(body, dict) else ({}, True)


def _error_reply(problem: Problem, provider: str, request_id: str) -> Reply:
    shape = anthropic_api.error_body if provider == "anthropic" else openai_api.error_body
    return Reply(problem.status, compact(shape(problem, request_id)), headers=dict(problem.headers))


def _broken(fault: str) -> Reply | None:
    """What comes back when something between the client and the provider breaks."""
    if fault == "drop":
        return None
    return Reply(502 if fault == "bad_gateway" else 200, _HTML, "text/html")


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="Serve Anthropic's and OpenAI's protocols on the loopback interface.")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds an answer takes")
    parser.add_argument("--api-key", default="test-key")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    server = ProviderServer(options.seed, options.latency, api_key=options.api_key, port=options.port)
    with server, contextlib.suppress(KeyboardInterrupt):
        print(f"Anthropic: {server.anthropic_url}\nOpenAI:    {server.openai_url}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
