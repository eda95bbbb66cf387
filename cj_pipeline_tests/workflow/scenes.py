"""Batches to advance, judges to advance them with, and what the ledger then holds: for the tests of the workflow."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from cj_pipeline.core.models import BatchKind
from cj_pipeline.judges.protocol import ComparisonPrompt, Judge, JudgeAnswer, JudgeIdentity, JudgeRequest
from cj_pipeline.judges.simulated import LatencyProfile, SimulatedJudge, load_profiles
from cj_pipeline.ledger import Ledger
from cj_pipeline.ledger import tables as t
from cj_pipeline.settings import BatchOverrides, CJSettings
from cj_pipeline.workflow.intake import AnchorSubmission, AssignmentRequest, BatchRequest, EssaySubmission
from cj_pipeline.workflow.loop import Advance, advance_batch
from cj_pipeline.workflow.registration import Submission, register_assignment, submit_batch

GRADES = ("F+", "E-", "E+", "D-", "D+", "C-", "C+", "B", "A")
SCALE = "eng5_np_legacy_9_step"
SEED = 20260101
ANIMALS = (
    *("badger", "heron", "lynx", "otter", "walrus", "magpie"),
    *("hedgehog", "salmon", "moose", "viper", "toad", "crab"),
)
PLACES = ("Bergen", "Tromso", "Lund", "Visby")
SECRET_WORDS = ("quokka", *ANIMALS, *PLACES)
"""Words that only the essays use."""

Attempt = sa.RowMapping


# --- batches -------------------------------------------------------------------------------------------------------


def settings(**overrides: Any) -> CJSettings:
    """The defaults with `overrides`, whatever `.env` says here."""
    return CJSettings(_env_file=None, **overrides)


def student_text(number: int) -> str:
    return f"My quokka met a {ANIMALS[number % 12]} in {PLACES[number // 12 % 2]}, {number // 24} winters ago."


def anchor_text(number: int) -> str:
    return f"The quokka and the {ANIMALS[number % 12]} went to {PLACES[2 + number // 12]} by bus."


def assignment_request(assignment_id: str = "letters", *, anchors: int = 12, **changes: Any) -> AssignmentRequest:
    """An assignment whose anchors `k01`, `k02`, … are spread over the scale from below."""
    fields: dict[str, Any] = {
        "assignment_id": assignment_id,
        "title": "A letter to a friend",
        "language": "en",
        "grade_scale": SCALE,
        "grade_scale_definition": None,
        "instructions": "Judge the letter as a whole.",
        "student_prompt": "Write a letter to a friend.",
        "judge_rubric": "Content before language.",
        "system_prompt": None,
        "anchors": tuple(
            AnchorSubmission(f"k{i + 1:02d}", GRADES[i * 9 // anchors], anchor_text(i), f"k{i + 1:02d}.txt")
            for i in range(anchors)
        ),
    }
    return AssignmentRequest(**{**fields, **changes})


def students(count: int, *, best: float = 8.0) -> tuple[EssaySubmission, ...]:
    """`pupil-01`, `pupil-02`, … with qualities in equal steps from 0 to `best`."""
    return tuple(
        EssaySubmission(f"pupil-{i + 1:02d}", student_text(i), best * i / max(1, count - 1), f"pupil-{i + 1:02d}.txt")
        for i in range(count)
    )


def batch_request(batch_id: str = "b", **changes: Any) -> BatchRequest:
    fields: dict[str, Any] = {
        "batch_id": batch_id,
        "assignment_id": "letters",
        "kind": BatchKind.ASSESSMENT,
        "judge": None,
        "overrides": BatchOverrides(max_comparisons=60),
        "students": students(12),
    }
    return BatchRequest(**{**fields, **changes})


def submit(
    ledger: Ledger,
    batch_id: str = "b",
    *,
    student_count: int = 12,
    anchors: int = 12,
    judge: str | None = None,
    **overrides: Any,
) -> Submission:
    """Submit an assessment of `student_count` students and `anchors` anchors; `overrides` travel with it."""
    assignment_id = f"letters-{anchors}"
    register_assignment(ledger, assignment_request(assignment_id, anchors=anchors))
    request = batch_request(
        batch_id,
        assignment_id=assignment_id,
        judge=judge,
        overrides=BatchOverrides(**{"max_comparisons": 60, **overrides}),
        students=students(student_count),
    )
    return submit_batch(ledger, settings(), request)


def submit_lower_five(ledger: Ledger, batch_id: str = "lower5", **overrides: Any) -> Submission:
    """Submit five essays without an assignment, a small net; stability cannot end it."""
    limits = {"max_comparisons": 200, "score_stability_threshold": 0.0, **overrides}
    return submit_without_grades(ledger, 5, batch_id, judge="eng5-lower5", best=4.0, **limits)


def submit_without_grades(
    ledger: Ledger,
    essays: int,
    batch_id: str = "b",
    *,
    judge: str | None = None,
    best: float = 8.0,
    **overrides: Any,
) -> Submission:
    """Submit essays without an assignment, the best of them of the quality `best`; `overrides` travel with it."""
    request = batch_request(
        batch_id,
        assignment_id=None,
        kind=BatchKind.ANCHOR_ALIGN,
        judge=judge,
        overrides=BatchOverrides(**overrides),
        students=students(essays, best=best),
    )
    return submit_batch(ledger, settings(), request)


def advance(
    ledger: Ledger,
    batch_id: str = "b",
    *,
    judge: Judge | None = None,
    stop: threading.Event | None = None,
    on_event: Callable[[Any], None] | None = None,
    wait: float = 0.0,
    **setting: Any,
) -> Advance:
    """`advance_batch` under the default settings with `setting` changed."""
    return advance_batch(
        ledger, batch_id, settings(**setting), judge=judge, stop=stop, on_event=on_event, wait=wait, owner=None
    )


@contextmanager
def advancing(
    ledger: Ledger, batch_id: str = "b", *, judge: "Through", **arguments: Any
) -> Iterator["Future[Advance]"]:
    """`advance` in another thread, while the test does something to the batch. No thread outlives a failed test."""
    with ThreadPoolExecutor(1) as threads:
        try:
            yield threads.submit(advance, ledger, batch_id, judge=judge, **arguments)
        finally:
            if isinstance(judge, Gate):
                judge.opened.set()


def wait_for(condition: Callable[[], bool], *, seconds: float = 20.0) -> None:
    """Return as soon as the condition holds.

    Raises:
        TimeoutError: it did not hold in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s in vain")
        time.sleep(0.005)


# --- judges --------------------------------------------------------------------------------------------------------


def simulated(*, mean_seconds: float | None = None, **error_rates: float) -> SimulatedJudge:
    """The judge that batches have by default, with errors, and with a latency if one is given."""
    profile = load_profiles()["cj-generic"]
    if mean_seconds is not None:
        latency = LatencyProfile(mean_seconds=mean_seconds, p95_seconds=2 * mean_seconds)
        profile = profile.model_copy(update={"latency": latency})
    return SimulatedJudge(profile, seed=SEED, latency=mean_seconds is not None, error_rates=error_rates)


class Through:
    """A judge that hands everything to another one. Subclasses do something on the way."""

    def __init__(self, inner: Judge | None = None) -> None:
        self.inner = inner or simulated()
        self.requests: list[JudgeRequest] = []
        self.closed = False

    @property
    def identity(self) -> JudgeIdentity:
        return self.inner.identity

    def upper_bound_usd(self, prompt: ComparisonPrompt, *, in_job: bool = False) -> float | None:
        return 0.5

    def cache_seconds(self, prompt: ComparisonPrompt) -> float | None:
        return self.inner.cache_seconds(prompt)

    async def pace(self, prompt: ComparisonPrompt) -> None:
        await self.inner.pace(prompt)

    def may_send(self, prompt: ComparisonPrompt) -> bool:
        return self.inner.may_send(prompt)

    async def judge(self, request: JudgeRequest) -> JudgeAnswer:
        self.requests.append(request)
        return await self.inner.judge(request)

    async def aclose(self) -> None:
        self.closed = True


class Gate(Through):
    """Answers the first calls at once; the others are in flight until the gate is opened."""

    def __init__(self, first: int, inner: Judge | None = None) -> None:
        super().__init__(inner)
        self.first = first
        self.waiting = 0
        self.opened = threading.Event()

    async def judge(self, request: JudgeRequest) -> JudgeAnswer:
        if len(self.requests) >= self.first and not self.opened.is_set():
            self.waiting += 1
            while not self.opened.is_set():
                await asyncio.sleep(0.005)
        return await super().judge(request)


# --- what the ledger holds -----------------------------------------------------------------------------------------


def record(ledger: Ledger, batch_id: str = "b") -> list[tuple[Any, ...]]:
    """(comparison_id, a, b, wave, winner, confidence) of every comparison that was not withdrawn."""
    return [
        (row.comparison_id, row.essay_a, row.essay_b, row.wave, row.winner, row.confidence)
        for row in ledger.comparison_records(batch_id)
        if row.status != "withdrawn"
    ]


def history(ledger: Ledger, batch_id: str = "b") -> list[tuple[Any, ...]]:
    """Every wave with its mode, decision and scores to the last bit."""
    return [
        (w.wave, w.pair_mode, w.cut_by_budget, w.callbacks, w.max_score_change, w.decision, w.reason, w.scores, w.ses)
        for w in ledger.waves(batch_id)
    ]


def attempts(ledger: Ledger, batch_id: str = "b") -> list[Attempt]:
    """Every call, in the order in which they were recorded as sent."""
    query = sa.select(t.attempts).where(t.attempts.c.batch_id == batch_id).order_by(t.attempts.c.attempt_id)
    with ledger.engine.connect() as connection:
        return list(connection.execute(query).mappings())


def attempts_by_comparison(ledger: Ledger, batch_id: str = "b") -> dict[str, list[Attempt]]:
    found: dict[str, list[Attempt]] = {}
    for attempt in attempts(ledger, batch_id):
        found.setdefault(attempt["comparison_id"], []).append(attempt)
    return found


def tell_secrets(text: str) -> list[str]:
    """The words of essays that occur in `text`."""
    return [word for word in SECRET_WORDS if word.lower() in text.lower()]
