"""Small valid things to put into a ledger, each field changeable by name, and steps that many ledger tests take."""

import hashlib
import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from cj_pipeline.core.models import BatchKind, BatchStatus, EssayRole, PairMode, PlannedPair, Winner
from cj_pipeline.ledger import Lease, Ledger
from cj_pipeline.ledger import tables as t
from cj_pipeline.ledger.engine import read_transaction, write_transaction
from cj_pipeline.ledger.records import (
    AttemptEnd,
    AttemptStart,
    NewAnchor,
    NewAssignment,
    NewBatch,
    NewEssay,
    TokenCounts,
    WaveEnd,
    WavePlan,
)
from cj_pipeline.settings import BatchTunables

QUEUED_AT = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def new_anchor(ref: str, grade: str, text: str | None = None) -> NewAnchor:
    text = text or f"The anchor {ref}, written by hand."
    return NewAnchor(anchor_ref=ref, grade=grade, text_sha256=sha256(text), text=text, word_count=len(text.split()))


def new_assignment(assignment_id: str = "letters", **changes: Any) -> NewAssignment:
    """An assignment on the legacy scale with two anchors, `k1` (A) and `k2` (C+)."""
    base = NewAssignment(
        assignment_id=assignment_id,
        title="A letter to a friend",
        language="en",
        grade_scale="eng5_np_legacy_9_step",
        grade_scale_definition=None,
        instructions="Judge the letter as a whole.",
        system_prompt=None,
        student_prompt="Write a letter to a friend.",
        judge_rubric="Content, language, structure.",
        anchors=(new_anchor("k1", "A"), new_anchor("k2", "C+")),
    )
    return replace(base, **changes)


def new_student(essay_id: str, text: str | None = None, quality: float | None = None) -> NewEssay:
    text = text or f"The essay {essay_id}, written by a student."
    return NewEssay(
        essay_id=essay_id,
        role=EssayRole.STUDENT,
        text_sha256=sha256(text),
        quality=quality,
        text=text,
        word_count=len(text.split()),
    )


def anchor_essay(anchor: NewAnchor, essay_id: str | None = None) -> NewEssay:
    """An anchor as a batch takes it in: its text is in the ledger since the assignment was registered."""
    return NewEssay(
        essay_id=essay_id or f"ANCHOR_{anchor.anchor_ref}",
        role=EssayRole.ANCHOR,
        text_sha256=anchor.text_sha256,
        known_grade=anchor.grade,
    )


def new_batch(batch_id: str = "b1", *, students: int = 4, **changes: Any) -> NewBatch:
    """A batch without an assignment and with the students `s1`, `s2`, … and a budget of 20."""
    base = NewBatch(
        batch_id=batch_id,
        kind=BatchKind.ASSESSMENT,
        assignment_id=None,
        assignment_revision=None,
        judge_profile="cj-generic",
        provider="simulated",
        model="cj-generic",
        simulated=True,
        overrides={},
        settings=BatchTunables().model_dump(),
        total_budget=20,
        code_version="test",
        correlation_id="00000000-0000-0000-0000-000000000001",
        essays=tuple(new_student(f"s{number}") for number in range(1, students + 1)),
    )
    return replace(base, **changes)


def all_pairs(count: int) -> list[tuple[str, str]]:
    """Every unordered pair of the students `s1` … `s<count>`, smaller number first."""
    return list(itertools.combinations([f"s{number}" for number in range(1, count + 1)], 2))


def wave_plan(
    wave: int = 1,
    pairs: list[tuple[str, str]] | None = None,
    *,
    mode: PairMode = PairMode.COVERAGE,
    cut_by_budget: bool = False,
) -> WavePlan:
    """A wave over `pairs`, by default (s1, s2) and (s3, s4)."""
    chosen = pairs if pairs is not None else [("s1", "s2"), ("s3", "s4")]
    return WavePlan(
        wave, mode, cut_by_budget, tuple(PlannedPair(essay_a=a, essay_b=b, pair_mode=mode) for a, b in chosen)
    )


def start(comparison_id: str, number: int = 1, **changes: Any) -> AttemptStart:
    """A call whose price is at most 0.5 US dollars."""
    base = AttemptStart(
        comparison_id=comparison_id,
        number=number,
        provider="simulated",
        model="cj-generic",
        prompt_sha256=sha256("prompt"),
        fence_marker="fence",
        queued_at=QUEUED_AT,
        bundle_id=None,
        upper_bound_usd=0.5,
    )
    return replace(base, **changes)


def judged(attempt_id: int, comparison_id: str, winner: Winner = Winner.A, **changes: Any) -> AttemptEnd:
    """An answer that cost 0.25 US dollars."""
    base = AttemptEnd(
        attempt_id=attempt_id,
        comparison_id=comparison_id,
        winner=winner,
        confidence=4,
        justification="It is clearer.",
        request_id="req-1",
        tokens=TokenCounts(input=100, output=10),
        latency_seconds=0.1,
        cost_usd=0.25,
    )
    return replace(base, **changes)


def failed(attempt_id: int, comparison_id: str, *, final: bool, **changes: Any) -> AttemptEnd:
    """A call that ended in a `malformed` answer for 0.125 US dollars."""
    base = AttemptEnd(
        attempt_id=attempt_id,
        comparison_id=comparison_id,
        winner=None,
        error_type="malformed",
        final=final,
        http_status=200,
        tokens=TokenCounts(input=100, output=1),
        cost_usd=0.125,
    )
    return replace(base, **changes)


def wave_end(wave: int = 1, *, status: BatchStatus | None = None, **changes: Any) -> WaveEnd:
    """The end of a wave after two outcomes; final if a status is given."""
    base = WaveEnd(
        wave=wave,
        callbacks=2,
        max_score_change=0.25,
        mean_se=0.5,
        max_se=0.75,
        scores={"s1": 0.5, "s2": -0.5},
        ses={"s1": 0.7, "s2": 0.7},
        decision="REQUEST_MORE_COMPARISONS" if status is None else "FINALIZE_SCORING",
        reason="coverage" if status is None else "stable",
        status=status,
        metadata={"prior_sd": 1.5},
    )
    return replace(base, **changes)


# --- steps -----------------------------------------------------------------------------------------------------------


def submit(ledger: Ledger, batch_id: str = "b1", **changes: Any) -> None:
    assert ledger.submit_batch(new_batch(batch_id, **changes))


def acquire(ledger: Ledger, batch_id: str = "b1", owner: str = "host:1", seconds: float = 30.0) -> Lease:
    return Lease.acquire(ledger, batch_id, owner=owner, seconds=seconds)


def update_batch(ledger: Ledger, batch_id: str = "b1", **values: Any) -> None:
    """Set columns of a batch behind the ledger's back."""
    with write_transaction(ledger.engine) as connection:
        connection.execute(t.batches.update().where(t.batches.c.batch_id == batch_id).values(**values))


def rows(ledger: Ledger) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table."""
    with read_transaction(ledger.engine) as connection:
        return {
            table.name: sorted((tuple(row) for row in connection.execute(sa.select(table))), key=repr)
            for table in t.metadata.sorted_tables
        }


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """The results (or errors) of calls made by threads that begin together."""
    barrier = threading.Barrier(len(calls))
    results: list[Any] = [None] * len(calls)

    def run(index: int, call: Callable[[], Any]) -> None:
        barrier.wait()
        try:
            results[index] = call()
        except Exception as error:  # noqa: BLE001 - the caller looks at it
            results[index] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results
