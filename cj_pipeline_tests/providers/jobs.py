"""Batch jobs of both providers: their life, their results, and what can go wrong with a whole job."""

import json
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cj_pipeline_tests.providers import anthropic_api, openai_api
from cj_pipeline_tests.providers.dialects import Body, Dialect, compact
from cj_pipeline_tests.providers.faults import FaultPlan

DAY = 24 * 60 * 60
_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")

Fate = Literal["answered", "refused", "expired", "canceled"]


@dataclass
class JobControls:
    """How whole jobs behave. May be changed while the server runs; counts are per job."""

    hold: bool | int = False
    """Polls (GETs of the job) during which a job stays in progress; True: until this is changed."""

    expire_items: int = 0
    """How many items of a job, from its first, come back expired."""

    finish_before_cancel: int = 0
    """How many items of a job, from its first, were finished when it was cancelled."""

    cancelled_lines: bool = False
    """OpenAI: unfinished items of a cancelled batch are in the error file (batch_cancelled) rather than absent."""

    extra_result: bool = False
    """A good result of an item nobody asked for is among the results."""

    duplicate_result: bool = False
    """One result is there twice."""

    lose_create_response: bool | int = False
    """A job is created, and the connection closed without an answer; a number: for so many creations only."""

    fail_validation: bool = False
    """OpenAI: a batch ends as failed, with errors about its input file."""

    faults: FaultPlan = field(default_factory=FaultPlan)
    """Faults of the calls about jobs and files themselves: ERROR_FAULTS and TRANSPORT_FAULTS, scripted or by chance.

    Chance depends on the path and on how often it was asked.
    """


@dataclass(frozen=True)
class Item:
    """One request of a job."""

    custom_id: str
    body: Body


@dataclass(frozen=True)
class Result:
    """What came of one item: the body and status of an answer or error, unless it expired or was cancelled."""

    custom_id: str
    fate: Fate
    status: int = 0
    body: Body = field(default_factory=dict)
    request_id: str = ""


@dataclass
class Job:
    """A batch of either provider."""

    id: str
    provider: str
    dialect: Dialect
    items: tuple[Item, ...]
    created: float
    metadata: dict[str, str] | None = None
    input_file_id: str = ""
    errors: list[Body] = field(default_factory=list)
    polls: int = 0
    cancelled: float | None = None
    ended: float | None = None
    results: list[Result] = field(default_factory=list)
    output_file_id: str | None = None
    error_file_id: str | None = None

    def count(self, *fates: Fate) -> int:
        """How many of its items ended so."""
        ids = {item.custom_id for item in self.items}
        return len({result.custom_id for result in self.results if result.fate in fates} & ids)


def is_due(job: Job, controls: JobControls) -> bool:
    """Count a poll; whether the job ends with it."""
    if job.ended is not None:
        return False
    job.polls += 1
    if job.cancelled is not None or job.errors:
        return True
    return controls.hold is not True and job.polls > int(controls.hold)


def finish(job: Job, controls: JobControls, answer: Callable[[Item], Result], seed: int) -> None:
    """End a job: every item meets its fate, and the results get into an order of their own."""
    job.ended = time.time()
    if job.errors:
        return
    for number, item in enumerate(job.items):
        if job.cancelled is not None and number >= controls.finish_before_cancel:
            job.results.append(Result(item.custom_id, "canceled"))
        elif job.cancelled is None and number < controls.expire_items:
            job.results.append(Result(item.custom_id, "expired"))
        else:
            job.results.append(answer(item))
    answered = [result for result in job.results if result.fate == "answered"]
    if controls.extra_result and answered:
        model = answered[-1]
        job.results.append(Result("unknown-item", "answered", model.status, model.body, model.request_id))
    if controls.duplicate_result and answered:
        job.results.append(answered[0])
    random.Random(f"{seed}:{job.id}").shuffle(job.results)


def newest_first(jobs: Sequence[Job], provider: str) -> list[Job]:
    """A provider's jobs as its list shows them."""
    return [job for job in reversed(jobs) if job.provider == provider]


def page_limit(query: dict[str, str], highest: int) -> int | None:
    """The page size a client asks for, or None when it is not acceptable."""
    given = query.get("limit", "20")
    return int(given) if given.isdigit() and 1 <= int(given) <= highest else None


# Anthropic


def anthropic_items(body: Body) -> tuple[Item, ...]:
    """The items of POST /v1/messages/batches; raises `RejectedError`.

    What is wrong with the parameters of an item is told in its result.
    """
    if extra := sorted(body.keys() - {"requests"}):
        raise anthropic_api.rejected(f"{extra[0]}: Extra inputs are not permitted")
    requests = body.get("requests")
    if not isinstance(requests, list) or not requests:
        raise anthropic_api.rejected("requests: List should have at least 1 item after validation, not 0")
    if len(requests) > 100_000:
        raise anthropic_api.rejected("requests: List should have at most 100000 items after validation")
    items, seen = [], set()
    for number, request in enumerate(requests):
        if not isinstance(request, dict) or request.keys() != {"custom_id", "params"}:
            raise anthropic_api.rejected(f"requests.{number}: expected the fields custom_id and params")
        custom_id = request["custom_id"]
        if not isinstance(custom_id, str) or not _CUSTOM_ID.fullmatch(custom_id):
            message = f"requests.{number}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'"
            raise anthropic_api.rejected(message)
        if custom_id in seen:
            raise anthropic_api.rejected(f"requests.{number}.custom_id: custom_id must be unique: {custom_id}")
        seen.add(custom_id)
        items.append(Item(custom_id, request["params"] if isinstance(request["params"], dict) else {}))
    return tuple(items)


def anthropic_batch(job: Job, base_url: str) -> Body:
    """A MessageBatch."""
    ended = job.ended is not None
    return {
        "id": job.id,
        "type": "message_batch",
        "processing_status": "ended" if ended else "in_progress" if job.cancelled is None else "canceling",
        "request_counts": {
            "processing": 0 if ended else len(job.items),
            "succeeded": job.count("answered"),
            "errored": job.count("refused"),
            "canceled": job.count("canceled"),
            "expired": job.count("expired"),
        },
        "created_at": anthropic_api.timestamp(job.created),
        "expires_at": anthropic_api.timestamp(job.created + DAY),
        "ended_at": None if job.ended is None else anthropic_api.timestamp(job.ended),
        "cancel_initiated_at": None if job.cancelled is None else anthropic_api.timestamp(job.cancelled),
        "archived_at": None,
        "results_url": f"{base_url}/v1/messages/batches/{job.id}/results" if ended else None,
    }


def anthropic_page(jobs: list[Job], query: dict[str, str], base_url: str) -> Body:
    """A page of the list; raises `RejectedError`."""
    limit = page_limit(query, 1000)
    if limit is None:
        raise anthropic_api.rejected("limit: Input should be between 1 and 1000")
    ids = [job.id for job in jobs]
    for name in ("after_id", "before_id"):
        if name in query and query[name] not in ids:
            raise anthropic_api.rejected(f"{name}: no such batch")
    if "before_id" in query:
        before = jobs[: ids.index(query["before_id"])]
        shown, has_more = before[-limit:], len(before) > limit
    else:
        rest = jobs[ids.index(query["after_id"]) + 1 :] if "after_id" in query else jobs
        shown, has_more = rest[:limit], len(rest) > limit
    return {
        "data": [anthropic_batch(job, base_url) for job in shown],
        "has_more": has_more,
        "first_id": shown[0].id if shown else None,
        "last_id": shown[-1].id if shown else None,
    }


def anthropic_results(job: Job) -> bytes:
    """The results as JSON lines."""
    lines = []
    for result in job.results:
        outcome: Body = {"type": result.fate}
        if result.fate == "answered":
            outcome = {"type": "succeeded", "message": result.body}
        elif result.fate == "refused":
            outcome = {"type": "errored", "error": result.body}
        lines.append(compact({"custom_id": result.custom_id, "result": outcome}) + b"\n")
    return b"".join(lines)


# OpenAI


@dataclass(frozen=True)
class StoredFile:
    """An uploaded file, or one that a batch wrote."""

    id: str
    filename: str
    purpose: str
    content: bytes
    created: float

    def shape(self) -> Body:
        """A FileObject."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": int(self.created),
            "expires_at": None,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


def openai_items(content: bytes, endpoint: str) -> tuple[tuple[Item, ...], list[Body]]:
    """The items of a batch's input file, and what its validation finds wrong with it."""
    items: list[Item] = []
    errors: list[Body] = []
    seen: set[str] = set()
    models: set[Any] = set()
    for number, line in enumerate(content.decode("utf-8", "replace").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            request = json.loads(line)
            custom_id, url, body = request["custom_id"], request["url"], request["body"]
            method = request["method"]
        except ValueError:
            errors.append(_line_error("invalid_json_line", "This line is not parseable as valid JSON.", number))
            continue
        except (KeyError, TypeError):
            message = "This line misses one of custom_id, method, url and body."
            errors.append(_line_error("missing_required_parameter", message, number))
            continue
        if method != "POST" or url != endpoint:
            message = f"The URL provided for this request does not match the batch endpoint. Expected '{endpoint}'."
            errors.append(_line_error("mismatched_endpoint", message, number, "url"))
        if custom_id in seen:
            message = f"The custom_id for this request is a duplicate of another request: {custom_id}."
            errors.append(_line_error("duplicate_custom_id", message, number, "custom_id"))
        seen.add(custom_id)
        models.add(body.get("model") if isinstance(body, dict) else None)
        if len(models) > 1:
            message = "The provided model does not match the other requests of this file."
            errors.append(_line_error("model_mismatch", message, number, "body.model"))
            models.pop()
        items.append(Item(str(custom_id), body if isinstance(body, dict) else {}))
    if not items and not errors:
        errors.append(_line_error("empty_file", "The input file is empty.", None))
    return tuple(items), errors


def _line_error(code: str, message: str, line: int | None, param: str | None = None) -> Body:
    return {"code": code, "message": message, "line": line, "param": param}


FAILED_VALIDATION = _line_error("invalid_json_line", "This line is not parseable as valid JSON.", 1)


def openai_batch(job: Job) -> Body:
    """A Batch."""

    def at(moment: float | None) -> int | None:
        return None if moment is None else int(moment)

    expired = job.count("expired") > 0
    if job.ended is None:
        status = "cancelling" if job.cancelled is not None else "in_progress" if job.polls else "validating"
    elif job.errors:
        status = "failed"
    else:
        status = "cancelled" if job.cancelled is not None else "expired" if expired else "completed"
    models = [item.body.get("model") for item in job.items[:1]]
    return {
        "id": job.id,
        "object": "batch",
        "endpoint": job.dialect.path,
        "model": models[0] if models else None,
        "errors": {"object": "list", "data": job.errors} if status == "failed" else None,
        "input_file_id": job.input_file_id,
        "completion_window": "24h",
        "status": status,
        "output_file_id": job.output_file_id,
        "error_file_id": job.error_file_id,
        "created_at": int(job.created),
        "in_progress_at": int(job.created) if status not in ("validating", "failed") else None,
        "expires_at": int(job.created + DAY),
        "finalizing_at": at(job.ended) if status == "completed" else None,
        "completed_at": at(job.ended) if status == "completed" else None,
        "failed_at": at(job.ended) if status == "failed" else None,
        "expired_at": at(job.ended) if status == "expired" else None,
        "cancelling_at": at(job.cancelled),
        "cancelled_at": at(job.ended) if status == "cancelled" else None,
        "request_counts": {
            "total": 0 if status in ("validating", "failed") else len(job.items),
            "completed": job.count("answered"),
            "failed": job.count("refused"),
        },
        "usage": _openai_usage(job),
        "metadata": job.metadata,
    }


def _openai_usage(job: Job) -> Body:
    bodies = {result.custom_id: result.body for result in job.results if result.fate == "answered"}
    usages = [bodies[item.custom_id]["usage"] for item in job.items if item.custom_id in bodies]

    def total(*names: str) -> int:
        return sum(usage[name] for usage in usages for name in names if name in usage)

    def detail(name: str, *holders: str) -> int:
        return sum(usage[holder][name] for usage in usages for holder in holders if holder in usage)

    return {
        "input_tokens": total("input_tokens", "prompt_tokens"),
        "input_tokens_details": {
            "cached_tokens": detail("cached_tokens", "input_tokens_details", "prompt_tokens_details")
        },
        "output_tokens": total("output_tokens", "completion_tokens"),
        "output_tokens_details": {
            "reasoning_tokens": detail("reasoning_tokens", "output_tokens_details", "completion_tokens_details")
        },
        "total_tokens": total("total_tokens"),
    }


def openai_page(jobs: list[Job], query: dict[str, str]) -> Body:
    """A page of the list; raises `RejectedError`."""
    limit = page_limit(query, 100)
    if limit is None:
        raise openai_api.rejected("Invalid 'limit': expected a value between 1 and 100.", "invalid_value", "limit")
    ids = [job.id for job in jobs]
    if "after" in query and query["after"] not in ids:
        raise openai_api.rejected(f"No batch found with id '{query['after']}'.", "invalid_value", "after")
    rest = jobs[ids.index(query["after"]) + 1 :] if "after" in query else jobs
    shown = rest[:limit]
    return {
        "object": "list",
        "data": [openai_batch(job) for job in shown],
        "first_id": shown[0].id if shown else None,
        "last_id": shown[-1].id if shown else None,
        "has_more": len(rest) > limit,
    }


def openai_lines(job: Job, cancelled_lines: bool) -> tuple[bytes, bytes]:
    """The output file and the error file as JSON lines."""
    output: list[bytes] = []
    errors: list[bytes] = []
    reasons = {
        "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
        "canceled": ("batch_cancelled", "This request was cancelled before it was executed."),
    }
    for number, result in enumerate(job.results):
        line: Body = {"id": f"batch_req_{job.id[-8:]}{number:06d}", "custom_id": result.custom_id}
        if result.fate in reasons:
            code, message = reasons[result.fate]
            line |= {"response": None, "error": {"code": code, "message": message}}
            if result.fate == "canceled" and not cancelled_lines:
                continue
        else:
            response = {"status_code": result.status, "request_id": result.request_id, "body": result.body}
            line |= {"response": response, "error": None}
        (output if result.fate == "answered" else errors).append(compact(line) + b"\n")
    return b"".join(output), b"".join(errors)
