"""What the server keeps: jobs and files, and the endpoints about them and about models."""

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from cj_pipeline_tests.providers import anthropic_api, openai_api
from cj_pipeline_tests.providers import jobs as batch
from cj_pipeline_tests.providers.anthropic_api import AnthropicMessages
from cj_pipeline_tests.providers.dialects import Body, Dialect, compact
from cj_pipeline_tests.providers.jobs import Item, Job, JobControls, Result, StoredFile
from cj_pipeline_tests.providers.openai_api import OpenAIResponses
from cj_pipeline_tests.providers.wire import Reply, Request, form_parts

ANTHROPIC_PREFIX = "/anthropic"
OPENAI_PREFIX = "/openai"


class Settings(Protocol):
    """What of the server matters here."""

    seed: int
    jobs: JobControls
    responses_missing: bool
    unknown_models: set[str]

    @property
    def dialects(self) -> Mapping[str, Dialect]:
        """By path."""

    @property
    def anthropic_url(self) -> str:
        """Before /v1."""

    def next_number(self) -> str:
        """What ids are made of."""


class Registry:
    """Jobs and files of both providers. Used by the server's thread only."""

    def __init__(self, server: Settings, answer_item: Callable[[Job, Item], Result]) -> None:
        self._server = server
        self._answer_item = answer_item
        self._jobs: list[Job] = []
        self._files: dict[str, StoredFile] = {}

    def serve(self, provider: str, route: list[str], request: Request, body: Body) -> Reply | None:
        """Answer a request, whose method and path after /v1 are the route; raises `RejectedError`."""
        if provider == "anthropic":
            return self._anthropic_route(route, request, body)
        return self._openai_route(route, request, body)

    def _anthropic_route(self, route: list[str], request: Request, body: Body) -> Reply | None:
        match route:
            case ["GET", "models", model] if model not in self._server.unknown_models:
                return _json(anthropic_api.model_info(model))
            case ["GET", "models", model]:
                raise anthropic_api.rejected(f"model: {model}", status=404)
            case ["POST", "messages", "batches"]:
                items = batch.anthropic_items(body)
                job = self._new_job("msgbatch_", AnthropicMessages(), items)
                return self._unless_lost(_json(batch.anthropic_batch(job, self._server.anthropic_url)))
            case ["GET", "messages", "batches"]:
                listed = batch.newest_first(self._jobs, "anthropic")
                return _json(batch.anthropic_page(listed, request.query, self._server.anthropic_url))
            case ["GET", "messages", "batches", job_id]:
                job = self._job("anthropic", job_id)
                self._poll(job)
                return _json(batch.anthropic_batch(job, self._server.anthropic_url))
            case ["POST", "messages", "batches", job_id, "cancel"]:
                job = self._job("anthropic", job_id)
                if job.ended is not None:
                    raise anthropic_api.rejected(f"Batch {job_id} cannot be canceled because it has ended.")
                job.cancelled = job.cancelled or time.time()
                return _json(batch.anthropic_batch(job, self._server.anthropic_url))
            case ["GET", "messages", "batches", job_id, "results"]:
                job = self._job("anthropic", job_id)
                if job.ended is None:
                    message = f"Batch {job_id} has no results yet: it is still being processed."
                    raise anthropic_api.rejected(message, status=404)
                return Reply(200, batch.anthropic_results(job), "application/x-jsonl")
        raise anthropic_api.rejected("Not found", status=404)

    def _openai_route(self, route: list[str], request: Request, body: Body) -> Reply | None:
        match route:
            case ["POST", "responses"] if self._server.responses_missing:
                return Reply(404, compact({"detail": "Not Found"}))
            case ["GET", "models", model] if model not in self._server.unknown_models:
                return _json(openai_api.model_info(model))
            case ["GET", "models", model]:
                message = f"The model '{model}' does not exist"
                raise openai_api.rejected(message, "model_not_found", "model", status=404)
            case ["POST", "files"]:
                return _json(self._upload(request).shape())
            case ["GET", "files", file_id]:
                return _json(self._file(file_id).shape())
            case ["GET", "files", file_id, "content"]:
                return Reply(200, self._file(file_id).content, "application/octet-stream")
            case ["DELETE", "files", file_id]:
                del self._files[self._file(file_id).id]
                return _json({"id": file_id, "object": "file", "deleted": True})
            case ["POST", "batches"]:
                return self._unless_lost(_json(batch.openai_batch(self._create_openai(body))))
            case ["GET", "batches"]:
                return _json(batch.openai_page(batch.newest_first(self._jobs, "openai"), request.query))
            case ["GET", "batches", job_id]:
                job = self._job("openai", job_id)
                self._poll(job)
                return _json(batch.openai_batch(job))
            case ["POST", "batches", job_id, "cancel"]:
                job = self._job("openai", job_id)
                if job.ended is not None:
                    status = batch.openai_batch(job)["status"]
                    raise openai_api.rejected(f"Cannot cancel a batch with status '{status}'.", status=409)
                job.cancelled = job.cancelled or time.time()
                return _json(batch.openai_batch(job))
        raise openai_api.rejected(f"Invalid URL ({request.method} {request.path})", status=404)

    def _upload(self, request: Request) -> StoredFile:
        parts = form_parts(request.body, request.headers.get("content-type", ""))
        if "file" not in parts or "purpose" not in parts:
            missing = "purpose" if "file" in parts else "file"
            raise openai_api.rejected(
                f"Missing required parameter: '{missing}'.", "missing_required_parameter", missing
            )
        filename, content = parts["file"]
        purpose = parts["purpose"][1].decode()
        if purpose != "batch":
            raise openai_api.rejected(f"'{purpose}' is not one of ['batch'] - 'purpose'", None, "purpose")
        return self._store(filename or "upload", purpose, content)

    def _store(self, filename: str, purpose: str, content: bytes) -> StoredFile:
        stored = StoredFile(f"file-{self._server.next_number()}", filename, purpose, content, time.time())
        self._files[stored.id] = stored
        return stored

    def _file(self, file_id: str) -> StoredFile:
        if file_id not in self._files:
            raise openai_api.rejected(f"No such File object: {file_id}", None, "id", status=404)
        return self._files[file_id]

    def _create_openai(self, body: Body) -> Job:
        allowed = {"completion_window", "endpoint", "input_file_id", "metadata", "output_expires_after"}
        if extra := sorted(body.keys() - allowed):
            raise openai_api.rejected(f"Unknown parameter: '{extra[0]}'.", "unknown_parameter", extra[0])
        for name in ("input_file_id", "endpoint", "completion_window"):
            if name not in body:
                raise openai_api.rejected(f"Missing required parameter: '{name}'.", "missing_required_parameter", name)
        if body["completion_window"] != "24h":
            raise openai_api.rejected("Invalid value for 'completion_window'.", "invalid_value", "completion_window")
        openai_api.check_metadata(body.get("metadata"))
        dialect = self._server.dialects.get(OPENAI_PREFIX + str(body["endpoint"]))
        if dialect is None or (self._server.responses_missing and isinstance(dialect, OpenAIResponses)):
            raise openai_api.rejected("Invalid value for 'endpoint'.", "invalid_value", "endpoint")
        source = self._file(str(body["input_file_id"]))
        items, errors = batch.openai_items(source.content, dialect.path)
        if self._server.jobs.fail_validation:
            errors = [batch.FAILED_VALIDATION]
        job = self._new_job("batch_", dialect, items)
        job.metadata, job.input_file_id, job.errors = body.get("metadata"), source.id, errors
        return job

    def _new_job(self, prefix: str, dialect: Dialect, items: tuple[Item, ...]) -> Job:
        job = Job(f"{prefix}{self._server.next_number()}", dialect.provider, dialect, items, time.time())
        self._jobs.append(job)
        return job

    def _unless_lost(self, reply: Reply) -> Reply | None:
        """The answer to the creation of a job, unless it is to be lost."""
        lost = self._server.jobs.lose_create_response
        if lost is True:
            return None
        if lost > 0:
            self._server.jobs.lose_create_response = lost - 1
            return None
        return reply

    def _job(self, provider: str, job_id: str) -> Job:
        for job in self._jobs:
            if job.id == job_id and job.provider == provider:
                return job
        if provider == "anthropic":
            raise anthropic_api.rejected(f"Batch {job_id} not found", status=404)
        raise openai_api.rejected(f"No batch found with id '{job_id}'.", status=404)

    def _poll(self, job: Job) -> None:
        if self._server.jobs.fail_validation and job.provider == "openai" and job.ended is None and not job.errors:
            job.errors = [batch.FAILED_VALIDATION]
        if not batch.is_due(job, self._server.jobs):
            return
        batch.finish(job, self._server.jobs, lambda item: self._answer_item(job, item), self._server.seed)
        if job.provider == "openai" and not job.errors:
            output, errors = batch.openai_lines(job, self._server.jobs.cancelled_lines)
            for name, content in (("output", output), ("error", errors)):
                if content:
                    stored = self._store(f"{job.id}_{name}.jsonl", "batch_output", content)
                    setattr(job, f"{name}_file_id", stored.id)


def _json(body: Body) -> Reply:
    return Reply(200, compact(body))
