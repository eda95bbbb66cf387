"""Rows to records: what a transaction sees of batches, waves, comparisons, calls and jobs.

For the ledger's own modules, which decide what to read and when; nothing is written here.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cj_pipeline.core.completion import coverage
from cj_pipeline.core.models import BatchKind, BatchState, BatchStatus, Comparison, ComparisonStatus, PairMode, Winner
from cj_pipeline.ledger import tables as t
from cj_pipeline.ledger.errors import UnknownBatchError
from cj_pipeline.ledger.records import (
    AnchorRecord,
    AssignmentRecord,
    AttemptRecord,
    BatchRecord,
    ComparisonRecord,
    JobRecord,
    JobState,
    WaveRecord,
)


def read_comparisons(connection: Connection, batch_id: str) -> list[Comparison]:
    """All comparisons of a batch in the order of planning."""
    c = t.comparisons.c
    query = sa.select(
        c.comparison_id, c.wave, c.essay_a, c.essay_b, c.pair_mode, c.status, c.winner, c.confidence
    ).where(c.batch_id == batch_id)
    found = [
        Comparison(
            comparison_id=row.comparison_id,
            wave=row.wave,
            essay_a=row.essay_a,
            essay_b=row.essay_b,
            pair_mode=PairMode(row.pair_mode),
            status=ComparisonStatus(row.status),
            winner=None if row.winner is None else Winner(row.winner),
            confidence=row.confidence,
        )
        for row in connection.execute(query)
    ]
    return sorted(found, key=lambda comparison: comparison.comparison_id)


def read_waves(connection: Connection, batch_id: str) -> list[WaveRecord]:
    """The waves of a batch, first to last."""
    query = sa.select(t.waves).where(t.waves.c.batch_id == batch_id).order_by(t.waves.c.wave)
    return [_wave_record(row) for row in connection.execute(query).mappings()]


def read_state(connection: Connection, batch_id: str) -> BatchState:
    """The batch's state, counted from its rows.

    Raises:
        UnknownBatchError: no such batch.
    """
    budget = connection.execute(
        sa.select(t.batches.c.batch_id, t.batches.c.total_budget).where(t.batches.c.batch_id == batch_id)
    ).one_or_none()
    if budget is None:
        raise UnknownBatchError(f"no batch {batch_id[:80]!r} in the ledger: `cj status` lists the batches")
    nodes = (
        connection.execute(sa.select(t.batch_essays.c.essay_id).where(t.batch_essays.c.batch_id == batch_id))
        .scalars()
        .all()
    )
    found = read_comparisons(connection, batch_id)
    waves = read_waves(connection, batch_id)
    counts = dict.fromkeys(ComparisonStatus, 0)
    pending_waves = set()
    for comparison in found:
        counts[comparison.status] += 1
        if comparison.status is ComparisonStatus.PLANNED:
            pending_waves.add(comparison.wave)
    covered = coverage(nodes, found, (wave.pair_mode for wave in waves if wave.wave not in pending_waves))
    last = waves[-1] if waves else None
    return BatchState(
        batch_id=batch_id,
        node_count=len(nodes),
        total_budget=budget.total_budget,
        submitted=len(found) - counts[ComparisonStatus.WITHDRAWN],
        judged=counts[ComparisonStatus.JUDGED],
        failed=counts[ComparisonStatus.FAILED],
        pending=counts[ComparisonStatus.PLANNED],
        max_possible_pairs=covered.max_possible_pairs,
        successful_pairs=covered.successful_pairs_count,
        resampling_passes=covered.resampling_pass_count,
        wave_cut_by_budget=last is not None and last.cut_by_budget,
        max_score_change=None if last is None else last.max_score_change,
        provider_rejected=last is not None and last.provider_rejected,
        cost_spent=last is not None and last.cost_stopped,
    )


def _wave_record(row: sa.RowMapping) -> WaveRecord:
    values = {name: row[name] for name in WaveRecord.__dataclass_fields__}
    values["pair_mode"] = PairMode(row["pair_mode"])
    return WaveRecord(**values)


def batch_record(row: sa.RowMapping) -> BatchRecord:
    """A row of `batches` (with `lease_live`) as a record."""
    values = {name: row[name] for name in BatchRecord.__dataclass_fields__}
    values["kind"] = BatchKind(row["kind"])
    values["status"] = BatchStatus(row["status"])
    values["lease_live"] = bool(row["lease_live"])
    return BatchRecord(**values)


def read_assignment(connection: Connection, assignment_id: str, revision: int) -> AssignmentRecord | None:
    """One revision of an assignment, or None."""
    query = sa.select(t.assignments).where(
        t.assignments.c.assignment_id == assignment_id, t.assignments.c.revision == revision
    )
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else AssignmentRecord(**row)


def latest_assignment(connection: Connection, assignment_id: str) -> AssignmentRecord | None:
    """The newest revision of an assignment, or None."""
    newest = connection.execute(
        sa.select(sa.func.max(t.assignments.c.revision)).where(t.assignments.c.assignment_id == assignment_id)
    ).scalar()
    return None if newest is None else read_assignment(connection, assignment_id, newest)


def read_anchors(connection: Connection, assignment: AssignmentRecord) -> list[AnchorRecord]:
    """The anchors of a revision of an assignment, by reference."""
    query = (
        sa.select(t.anchor_essays, t.texts.c.word_count)
        .join(t.texts, t.texts.c.text_sha256 == t.anchor_essays.c.text_sha256)
        .where(
            t.anchor_essays.c.assignment_id == assignment.assignment_id,
            t.anchor_essays.c.revision == assignment.revision,
        )
        .order_by(t.anchor_essays.c.anchor_ref)
    )
    return [
        AnchorRecord(**{name: row[name] for name in AnchorRecord.__dataclass_fields__})
        for row in connection.execute(query).mappings()
    ]


def read_comparison_records(connection: Connection, batch_id: str) -> list[ComparisonRecord]:
    """All comparisons of a batch with what their attempts amounted to, in the order of planning."""
    a, c = t.attempts.c, t.comparisons.c
    finished = sa.case((a.outcome.is_not(None), 1))
    totals = (
        sa.select(
            a.comparison_id,
            sa.func.count(sa.case((a.outcome.is_distinct_from("unsent"), 1))).label("attempts"),
            sa.func.count(sa.case((a.outcome == "lost", 1))).label("lost_attempts"),
            sa.func.count(sa.case((a.outcome == "error", 1))).label("failed_attempts"),
            sa.func.count(finished).label("finished"),
            sa.func.count(a.cost_usd).label("priced"),
            sa.func.sum(a.cost_usd).label("cost_usd"),
            sa.func.sum(sa.func.coalesce(a.tokens_input, 0)).label("tokens_in"),
            sa.func.sum(sa.func.coalesce(a.tokens_output, 0)).label("tokens_out"),
            sa.func.min(a.sent_at).label("submitted_at"),
            sa.func.max(a.attempt_id).label("last_attempt"),
        )
        .where(a.batch_id == batch_id)
        .group_by(a.comparison_id)
        .subquery()
    )
    last = t.attempts.alias()
    query = (
        sa.select(t.comparisons, totals, last.c.provider, last.c.model, last.c.prompt_sha256)
        .outerjoin(totals, totals.c.comparison_id == c.comparison_id)
        .outerjoin(last, last.c.attempt_id == totals.c.last_attempt)
        .where(c.batch_id == batch_id)
    )
    records = [
        ComparisonRecord(
            comparison_id=row.comparison_id,
            wave=row.wave,
            essay_a=row.essay_a,
            essay_b=row.essay_b,
            pair_mode=row.pair_mode,
            status=row.status,
            winner=row.winner,
            confidence=row.confidence,
            justification=row.justification,
            error_type=row.error_type,
            provider=row.provider,
            model=row.model,
            prompt_sha256=row.prompt_sha256,
            tokens_in=int(row.tokens_in or 0),
            tokens_out=int(row.tokens_out or 0),
            cost_usd=_total_cost(row),
            submitted_at=row.submitted_at,
            completed_at=row.completed_at,
            attempts=row.attempts or 0,
            lost_attempts=row.lost_attempts or 0,
            failed_attempts=row.failed_attempts or 0,
        )
        for row in connection.execute(query)
    ]
    return sorted(records, key=lambda record: record.comparison_id)


def _total_cost(row: Any) -> float | None:
    if not row.attempts:
        return 0.0
    return row.cost_usd if row.priced == row.finished and row.finished else None


def read_attempts(connection: Connection, batch_id: str, comparison_id: str | None = None) -> list[AttemptRecord]:
    """The calls of a batch, or of one of its comparisons, in the order in which they were recorded."""
    a = t.attempts.c
    where = [a.batch_id == batch_id] + ([] if comparison_id is None else [a.comparison_id == comparison_id])
    query = (
        sa.select(*(t.attempts.c[name] for name in AttemptRecord.__dataclass_fields__))
        .where(*where)
        .order_by(a.attempt_id)
    )
    return [AttemptRecord(**row) for row in connection.execute(query).mappings()]


def read_jobs(connection: Connection, where: sa.ColumnElement[bool]) -> list[JobRecord]:
    """Provider batch jobs, oldest first."""
    query = sa.select(t.provider_jobs).where(where).order_by(t.provider_jobs.c.created_at, t.provider_jobs.c.job_key)
    return [JobRecord(**{**row, "status": JobState(row["status"])}) for row in connection.execute(query).mappings()]


def open_jobs_of(batch_id: str) -> sa.ColumnElement[bool]:
    """The condition on `provider_jobs` that a batch's results may still come from them."""
    out = [state.value for state in JobState if state.is_out]
    return sa.and_(t.provider_jobs.c.batch_id == batch_id, t.provider_jobs.c.status.in_(out))


def committed_usd(connection: Connection, batch_id: str) -> float:
    """What a batch has cost at most: known costs, and upper bounds where a cost is unknown or still to come.

    A call without either counts as nothing: a batch with a cost limit is only accepted for judges with a price.
    """
    spent = connection.execute(
        sa.select(sa.func.sum(sa.func.coalesce(t.attempts.c.cost_usd, t.attempts.c.upper_bound_usd, 0.0))).where(
            t.attempts.c.batch_id == batch_id
        )
    ).scalar()
    orphaned = connection.execute(
        sa.select(sa.func.sum(sa.func.coalesce(t.orphan_results.c.cost_usd, 0.0))).where(
            t.orphan_results.c.batch_id == batch_id, t.orphan_results.c.attempt_id.is_(None)
        )
    ).scalar()
    return float(spent or 0.0) + float(orphaned or 0.0)
