"""Registering and reading: assignments, batches, comparisons, and the controls people have over a batch.

Writes that need the right to a batch (planning, judging, deciding) are in `lease`.
"""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from cj_pipeline.core.errors import InputError, RequestError
from cj_pipeline.core.models import (
    BatchState,
    BatchStatus,
    Comparison,
    ComparisonStatus,
    Essay,
    EssayRole,
)
from cj_pipeline.ledger import tables as t
from cj_pipeline.ledger.engine import database_now, make_engine, prepare, read_transaction, write_transaction
from cj_pipeline.ledger.errors import BatchBusyError, UnknownAssignmentError, UnknownBatchError
from cj_pipeline.ledger.reading import (
    batch_record,
    committed_usd,
    latest_assignment,
    open_jobs_of,
    read_anchors,
    read_assignment,
    read_attempts,
    read_comparison_records,
    read_comparisons,
    read_jobs,
    read_state,
    read_waves,
)
from cj_pipeline.ledger.records import (
    AnchorRecord,
    AssignmentRecord,
    AttemptEnd,
    AttemptRecord,
    BatchRecord,
    ComparisonRecord,
    JobRecord,
    NewAssignment,
    NewBatch,
    Registration,
    WaveRecord,
)

REVISION_REMEDY: Final = "use --replace to add a revision (batches already submitted keep theirs)"
"""What to do where an assignment is registered with other content."""

MAX_IDLE_LAUNCHES: Final = 3
"""Launches in a row without a new judgment or publication after which a batch is put on hold."""

LAUNCH_GRACE: Final = timedelta(seconds=30)
"""How long the run of a claimed launch may take to appear before the launch counts as lost."""

JOB_LIFETIME: Final = timedelta(hours=25)
"""How long a provider batch job whose expiry is unknown may be awaited: both providers give up after 24 hours."""


def utc_now() -> datetime:
    """Now, aware, in UTC."""
    return datetime.now(UTC)


class Ledger:
    """The ledger of one database. Cheap to open; safe to share between threads."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @classmethod
    def open(cls, url: str) -> Self:
        """Open the ledger at a SQLAlchemy URL; a SQLite file that does not exist yet is created.

        Raises:
            InputError: not a SQLite or PostgreSQL URL.
            LedgerSchemaError: the schema is not this program's; says what to run.
        """
        engine = make_engine(url)
        try:
            prepare(engine)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    # --- assignments ---------------------------------------------------------------------------------------------

    def register_assignment(self, new: NewAssignment, *, replace: bool = False) -> Registration:
        """Store an assignment with its anchors. The same content again changes nothing.

        Raises:
            RequestError: the assignment exists with other content and `replace` is false: every difference is
                listed. With `replace` a revision is added; batches already submitted keep theirs.
        """
        content = _content_sha256(new)
        with write_transaction(self.engine) as connection:
            # serialises registrations of the same assignment on PostgreSQL; SQLite already holds its write lock
            if self.engine.dialect.name == "postgresql":
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext(:id))"), {"id": new.assignment_id})
            existing = latest_assignment(connection, new.assignment_id)
            if existing is not None and existing.content_sha256 == content:
                return Registration(new.assignment_id, existing.revision, changed=False, anchors=len(new.anchors))
            if existing is not None and not replace:
                problems = _assignment_differences(existing, read_anchors(connection, existing), new)
                raise RequestError(
                    f"assignment {new.assignment_id} is registered with other content",
                    [f"{problem}: {REVISION_REMEDY}" for problem in problems],
                )
            revision = 1 if existing is None else existing.revision + 1
            now = utc_now()
            _store_texts(connection, {a.text_sha256: (a.text, a.word_count) for a in new.anchors}, now)
            connection.execute(
                t.assignments.insert().values(
                    assignment_id=new.assignment_id,
                    revision=revision,
                    title=new.title,
                    language=new.language,
                    grade_scale=new.grade_scale,
                    grade_scale_definition=new.grade_scale_definition,
                    instructions=new.instructions,
                    system_prompt=new.system_prompt,
                    student_prompt=new.student_prompt,
                    judge_rubric=new.judge_rubric,
                    content_sha256=content,
                    created_at=now,
                )
            )
            if new.anchors:
                connection.execute(
                    t.anchor_essays.insert(),
                    [
                        {
                            "assignment_id": new.assignment_id,
                            "revision": revision,
                            "anchor_ref": anchor.anchor_ref,
                            "grade": anchor.grade,
                            "text_sha256": anchor.text_sha256,
                            "created_at": now,
                        }
                        for anchor in new.anchors
                    ],
                )
        return Registration(new.assignment_id, revision, changed=True, anchors=len(new.anchors))

    def assignment_differences(self, new: NewAssignment) -> list[str] | None:
        """What of an assignment's newest revision is not so; None: no such assignment."""
        with read_transaction(self.engine) as connection:
            existing = latest_assignment(connection, new.assignment_id)
            if existing is None:
                return None
            return _assignment_differences(existing, read_anchors(connection, existing), new)

    def assignments(self) -> list[AssignmentRecord]:
        """The newest revision of every assignment, by id."""
        with read_transaction(self.engine) as connection:
            ids = connection.execute(sa.select(t.assignments.c.assignment_id).distinct()).scalars().all()
            found = [latest_assignment(connection, assignment_id) for assignment_id in sorted(ids)]
        return [record for record in found if record is not None]

    def assignment(self, assignment_id: str, revision: int | None = None) -> AssignmentRecord:
        """An assignment, by default its newest revision.

        Raises:
            UnknownAssignmentError: naming the ones there are.
        """
        with read_transaction(self.engine) as connection:
            if revision is None:
                found = latest_assignment(connection, assignment_id)
            else:
                found = read_assignment(connection, assignment_id, revision)
        if found is None:
            known = ", ".join(record.assignment_id for record in self.assignments()) or "none yet"
            raise UnknownAssignmentError(
                f"no assignment {assignment_id!r} is registered (registered: {known}): "
                "run `cj assignments register FOLDER`"
            )
        return found

    def anchors(self, assignment: AssignmentRecord) -> list[AnchorRecord]:
        """The anchors of a revision of an assignment, by reference."""
        with read_transaction(self.engine) as connection:
            return read_anchors(connection, assignment)

    # --- batches -------------------------------------------------------------------------------------------------

    def submit_batch(self, new: NewBatch) -> bool:
        """Store a batch with the snapshot of its essays. True if it is new, false if the same request is there.

        Raises:
            InputError: the batch id exists with other content.
        """
        request = _request_sha256(new)
        with write_transaction(self.engine) as connection:
            inserted = connection.execute(
                _insert_ignore(connection, t.batches).values(
                    batch_id=new.batch_id,
                    kind=new.kind.value,
                    assignment_id=new.assignment_id,
                    assignment_revision=new.assignment_revision,
                    request_sha256=request,
                    judge_profile=new.judge_profile,
                    provider=new.provider,
                    model=new.model,
                    simulated=new.simulated,
                    overrides=new.overrides,
                    settings=new.settings,
                    total_budget=new.total_budget,
                    status=BatchStatus.SUBMITTED.value,
                    code_version=new.code_version,
                    correlation_id=new.correlation_id,
                    processing_metadata={},
                    anchor_bank=new.anchor_bank,
                    created_at=utc_now(),
                )
            )
            if inserted.rowcount == 0:
                known = connection.execute(
                    sa.select(t.batches.c.request_sha256).where(t.batches.c.batch_id == new.batch_id)
                ).scalar_one()
                if known != request:
                    raise InputError(
                        f"batch {new.batch_id} exists with other content (essays, assignment, judge or overrides): "
                        "choose another batch id; a submitted batch never changes"
                    )
                return False
            now = utc_now()
            texts = {e.text_sha256: (e.text, e.word_count) for e in new.essays if e.text is not None}
            _store_texts(connection, texts, now)
            if new.essays:
                connection.execute(
                    t.batch_essays.insert(),
                    [
                        {
                            "batch_id": new.batch_id,
                            "essay_id": essay.essay_id,
                            "role": essay.role.value,
                            "known_grade": essay.known_grade,
                            "text_sha256": essay.text_sha256,
                            "quality": essay.quality,
                            "injection_signs": None
                            if essay.injection_signs is None
                            else ",".join(essay.injection_signs),
                        }
                        for essay in new.essays
                    ],
                )
            add_event(connection, new.batch_id, "submitted", f"{len(new.essays)} essays, budget {new.total_budget}")
        return True

    def batch(self, batch_id: str) -> BatchRecord:
        """A batch.

        Raises:
            UnknownBatchError: no such batch; says how to submit one.
        """
        found = self._batches(t.batches.c.batch_id == batch_id)
        if not found:
            raise UnknownBatchError(
                f"no batch {batch_id[:80]!r} in the ledger: `cj status` lists the batches, `cj submit` adds one"
            )
        return found[0]

    def batches(self) -> list[BatchRecord]:
        """All batches, oldest first."""
        return self._batches(sa.true())

    def open_batches(self) -> list[BatchRecord]:
        """The batches that still need a run: not final, or final and not yet published; oldest first."""
        final = [status.value for status in BatchStatus if status.is_final]
        return self._batches(sa.or_(t.batches.c.status.not_in(final), t.batches.c.published_at.is_(None)))

    def _batches(self, where: sa.ColumnElement[bool]) -> list[BatchRecord]:
        now = database_now(self.engine.dialect.name)
        live = sa.and_(t.batches.c.lease_owner.is_not(None), t.batches.c.lease_expires_at > now)
        query = (
            sa.select(t.batches, live.label("lease_live"))
            .where(where)
            .order_by(t.batches.c.created_at, t.batches.c.batch_id)
        )
        with read_transaction(self.engine) as connection:
            return [batch_record(row) for row in connection.execute(query).mappings()]

    def essays(self, batch_id: str) -> list[Essay]:
        """The essays of a batch as they were at submission, by id."""
        query = (
            sa.select(t.batch_essays, t.texts.c.word_count)
            .join(t.texts, t.texts.c.text_sha256 == t.batch_essays.c.text_sha256)
            .where(t.batch_essays.c.batch_id == batch_id)
            .order_by(t.batch_essays.c.essay_id)
        )
        with read_transaction(self.engine) as connection:
            rows = connection.execute(query).mappings().all()
        # sorted here too: databases collate differently
        return sorted(
            (
                Essay(
                    essay_id=row["essay_id"],
                    role=EssayRole(row["role"]),
                    known_grade=row["known_grade"],
                    text_sha256=row["text_sha256"],
                    word_count=row["word_count"],
                    quality=row["quality"],
                )
                for row in rows
            ),
            key=lambda essay: essay.essay_id,
        )

    def texts(self, batch_id: str) -> dict[str, str]:
        """Essay id to text, for the judge's eyes only."""
        query = (
            sa.select(t.batch_essays.c.essay_id, t.texts.c.text)
            .join(t.texts, t.texts.c.text_sha256 == t.batch_essays.c.text_sha256)
            .where(t.batch_essays.c.batch_id == batch_id)
        )
        with read_transaction(self.engine) as connection:
            return {row.essay_id: row.text for row in connection.execute(query)}

    def comparisons(self, batch_id: str) -> list[Comparison]:
        """All comparisons of a batch, withdrawn ones included, in the order of planning."""
        with read_transaction(self.engine) as connection:
            return read_comparisons(connection, batch_id)

    def comparison_records(self, batch_id: str) -> list[ComparisonRecord]:
        """All comparisons of a batch with what their attempts amounted to, in the order of planning."""
        with read_transaction(self.engine) as connection:
            return read_comparison_records(connection, batch_id)

    def attempts(self, batch_id: str, comparison_id: str | None = None) -> list[AttemptRecord]:
        """The calls made for a batch, or for one of its comparisons, oldest first."""
        with read_transaction(self.engine) as connection:
            return read_attempts(connection, batch_id, comparison_id)

    def provider_jobs(self, batch_id: str) -> list[JobRecord]:
        """The provider batch jobs of a batch, oldest first."""
        with read_transaction(self.engine) as connection:
            return read_jobs(connection, t.provider_jobs.c.batch_id == batch_id)

    def jobs_out(self, batch_id: str) -> list[JobRecord]:
        """The provider batch jobs of a batch whose results may still come, oldest first."""
        with read_transaction(self.engine) as connection:
            return read_jobs(connection, open_jobs_of(batch_id))

    def injection_signs(self, batch_id: str) -> dict[str, tuple[str, ...] | None]:
        """Essay id to the signs found in its text that it addresses the judge; None if it was never examined."""
        query = sa.select(t.batch_essays.c.essay_id, t.batch_essays.c.injection_signs).where(
            t.batch_essays.c.batch_id == batch_id
        )
        with read_transaction(self.engine) as connection:
            return {
                row.essay_id: None
                if row.injection_signs is None
                else tuple(sign for sign in row.injection_signs.split(",") if sign)
                for row in connection.execute(query)
            }

    def waves(self, batch_id: str) -> list[WaveRecord]:
        """The waves of a batch, first to last."""
        with read_transaction(self.engine) as connection:
            return read_waves(connection, batch_id)

    def state(self, batch_id: str) -> BatchState:
        """One snapshot of everything the continuation decision looks at, read afresh.

        Raises:
            UnknownBatchError: no such batch.
        """
        with read_transaction(self.engine) as connection:
            return read_state(connection, batch_id)

    def attempt_counts(self, batch_id: str) -> dict[str, int]:
        """Calls by outcome: judged, error, lost, and open for those without one."""
        outcome = sa.func.coalesce(t.attempts.c.outcome, "open").label("outcome")
        query = sa.select(outcome, sa.func.count()).where(t.attempts.c.batch_id == batch_id).group_by(outcome)
        with read_transaction(self.engine) as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def cost_usd(self, batch_id: str) -> float | None:
        """US dollars over all finished calls, orphan results included; None if any of their costs is unknown."""
        known: float = 0.0
        with read_transaction(self.engine) as connection:
            for table, finished in (
                (t.attempts, t.attempts.c.outcome.is_not(None)),
                (t.orphan_results, sa.literal(True)),
            ):
                # an orphan of a lost attempt is already costed there, at its upper bound
                extra = table.c.attempt_id.is_(None) if table is t.orphan_results else sa.true()
                total, count, priced = connection.execute(
                    sa.select(sa.func.sum(table.c.cost_usd), sa.func.count(), sa.func.count(table.c.cost_usd)).where(
                        table.c.batch_id == batch_id, finished, extra
                    )
                ).one()
                if count != priced:
                    return None
                known += total or 0.0
        return known

    def committed_usd(self, batch_id: str) -> float:
        """US dollars the batch has cost at most: known costs, and upper bounds of calls whose cost is not known."""
        with read_transaction(self.engine) as connection:
            return committed_usd(connection, batch_id)

    def orphan_results(self, batch_id: str) -> list[dict[str, Any]]:
        """Results that changed nothing, oldest first: id of the comparison, reason, source, cost."""
        query = sa.select(t.orphan_results).where(t.orphan_results.c.batch_id == batch_id)
        with read_transaction(self.engine) as connection:
            return [dict(row) for row in connection.execute(query.order_by(t.orphan_results.c.orphan_id)).mappings()]

    def events(self, batch_id: str) -> list[dict[str, Any]]:
        """What people and the program did to a batch, oldest first: at, event, detail."""
        query = sa.select(t.batch_events.c.at, t.batch_events.c.event, t.batch_events.c.detail).where(
            t.batch_events.c.batch_id == batch_id
        )
        with read_transaction(self.engine) as connection:
            return [dict(row) for row in connection.execute(query.order_by(t.batch_events.c.event_id)).mappings()]

    def last_activity(self, batch_id: str) -> datetime:
        """When the batch last moved: submission, a call, an answer, a wave, or something a person did."""
        moments = [
            sa.select(sa.func.max(column)).where(table.c.batch_id == batch_id)
            for table, column in (
                (t.batches, t.batches.c.created_at),
                (t.attempts, t.attempts.c.sent_at),
                (t.attempts, t.attempts.c.finished_at),
                (t.waves, t.waves.c.started_at),
                (t.waves, t.waves.c.ended_at),
                (t.batch_events, t.batch_events.c.at),
            )
        ]
        with read_transaction(self.engine) as connection:
            found: list[datetime | None] = [connection.execute(query).scalar() for query in moments]
        return max(moment for moment in found if moment is not None)

    # --- controls ------------------------------------------------------------------------------------------------

    def hold(self, batch_id: str, reason: str) -> None:
        """Stop the batch as soon as its running calls are in, until `resume` or a launch by hand.

        Raises:
            UnknownBatchError, InputError: no such batch; the batch is final.
        """
        with write_transaction(self.engine) as connection:
            row = lock_batch(connection, batch_id)
            if BatchStatus(row["status"]).is_final and row["published_at"] is not None:
                raise InputError(f"batch {batch_id} is {row['status']}: there is nothing left to hold")
            _set_hold(connection, batch_id, reason)

    def resume(self, batch_id: str, detail: str = "resumed") -> bool:
        """Take the batch off hold; whether it was on hold.

        Raises:
            UnknownBatchError: no such batch.
        """
        with write_transaction(self.engine) as connection:
            row = lock_batch(connection, batch_id)
            if row["hold_reason"] is None:
                return False
            _update_batch(connection, batch_id, hold_reason=None, idle_launches=0, launch_mark=None)
            add_event(connection, batch_id, "resumed", detail)
            return True

    def reopen(self, batch_id: str, reason: str) -> None:
        """Return a failed, cancelled or held batch to work. What was judged stays; the budget stays a wall.

        Raises:
            UnknownBatchError: no such batch.
            InputError: the batch is neither failed, cancelled nor on hold.
            BatchBusyError: a process is writing it.
        """
        with write_transaction(self.engine) as connection:
            row = lock_batch(connection, batch_id)
            status = BatchStatus(row["status"])
            reopenable = status in (BatchStatus.FAILED, BatchStatus.CANCELLED) or row["hold_reason"] is not None
            if not reopenable:
                raise InputError(
                    f"batch {batch_id} is {status.value}: only a failed, cancelled or held batch can be reopened"
                )
            _refuse_live_lease(connection, batch_id)
            values: dict[str, Any] = {"hold_reason": None, "idle_launches": 0, "launch_mark": None, "not_before": None}
            if status in (BatchStatus.FAILED, BatchStatus.CANCELLED):
                values |= {
                    "status": BatchStatus.JUDGING.value,
                    "stop_reason": None,
                    "completed_at": None,
                    "published_at": None,
                }
            _update_batch(connection, batch_id, **values)
            add_event(connection, batch_id, "reopened", f"was {status.value}: {reason}")

    def claim_launch(self, batch_id: str, *, after: int | None = None, job_over: bool = False) -> int | None:
        """Count a launch of the batch, if it may be launched now; its number, or None.

        A batch may be launched if it is open, not on hold, not asked to wait, and no live lease is on it. After
        three launches in a row without a new judgment, publication or provider job, and without having been asked to
        wait, it is put on hold instead.

        Args:
            batch_id: the batch.
            after: the highest launch that has become a run, if known. Lower than the ledger's count: the last claim's
                run is still being made, so that a claim within `LAUNCH_GRACE` of it is refused. Higher: the ledger was
                restored, and its count goes on from there.
            job_over: the provider batch job it waits for is over, so that there is nothing to wait for any more.
        """
        with write_transaction(self.engine) as connection:
            row = lock_batch(connection, batch_id)
            now = utc_now()
            done = BatchStatus(row["status"]).is_final and row["published_at"] is not None
            asked_to_wait = row["not_before"] is not None
            waiting = asked_to_wait and row["not_before"] > now and not job_over
            coming = (
                after is not None
                and row["launch"] > after
                and row["launched_at"] is not None
                and now - row["launched_at"] < LAUNCH_GRACE
            )
            if done or waiting or coming or row["hold_reason"] is not None or _lease_live(connection, batch_id):
                return None
            judged = connection.execute(
                sa.select(sa.func.count()).where(
                    t.comparisons.c.batch_id == batch_id, t.comparisons.c.status == ComparisonStatus.JUDGED.value
                )
            ).scalar_one()
            jobs = connection.execute(
                sa.select(sa.func.count(), sa.func.count(t.provider_jobs.c.closed_at)).where(
                    t.provider_jobs.c.batch_id == batch_id
                )
            ).one()
            mark = f"{judged}:{row['published_as_of']}:{jobs[0]}:{jobs[1]}"
            idle = row["idle_launches"] + 1 if mark == row["launch_mark"] and not asked_to_wait else 1
            if idle > MAX_IDLE_LAUNCHES:
                _set_hold(
                    connection,
                    batch_id,
                    f"{MAX_IDLE_LAUNCHES} launches in a row brought no new judgment or publication: see the last "
                    "run's error, mend it, then `cj resume`",
                )
                return None
            launch = max(int(row["launch"]), after or 0) + 1
            _update_batch(
                connection,
                batch_id,
                launch=launch,
                launched_at=now,
                idle_launches=idle,
                launch_mark=mark,
                not_before=None,
            )
            return launch

    def record_orphan(self, batch_id: str, comparison_id: str, *, reason: str, source: str, **details: Any) -> None:
        """Keep an answer that may change nothing (late, duplicate, unknown), with its reason and cost.

        Args:
            details: further columns of `orphan_results`, where known: attempt_id, lease_epoch, winner, confidence,
                error_type, request_id, tokens_input, tokens_output, cost_usd.
        """
        with write_transaction(self.engine) as connection:
            insert_orphan(connection, batch_id, comparison_id, reason=reason, source=source, **details)

    def silent_batches(self, now: datetime) -> list[BatchRecord]:
        """Batches that were launched since they last moved and have been silent since for their timeout.

        Counted from the launch: a batch that waited long for it (its machine was off) still gets its whole timeout.
        One that was asked to wait, or whose provider batch job is out and has not expired, is not silent.
        """
        silent = []
        for record in self.open_batches():
            if record.status.is_final or record.hold_reason is not None or record.lease_live:
                continue
            if (record.not_before is not None and record.not_before > now) or self._job_awaited(record.batch_id, now):
                continue
            if record.launched_at is None or record.launched_at <= self.last_activity(record.batch_id):
                continue
            if now - record.launched_at > timedelta(hours=float(record.settings["batch_timeout_hours"])):
                silent.append(record)
        return silent

    def _job_awaited(self, batch_id: str, now: datetime) -> bool:
        return any((job.expires_at or job.created_at + JOB_LIFETIME) > now for job in self.jobs_out(batch_id))


# --- building blocks, shared with `lease` ------------------------------------------------------------------------


def lock_batch(connection: Connection, batch_id: str) -> sa.RowMapping:
    """The batch's row, locked until the transaction ends (SQLite holds the database's write lock already).

    Raises:
        UnknownBatchError: no such batch.
    """
    query = sa.select(t.batches).where(t.batches.c.batch_id == batch_id).with_for_update()
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise UnknownBatchError(f"no batch {batch_id[:80]!r} in the ledger: `cj status` lists the batches")
    return row


def add_event(connection: Connection, batch_id: str, event: str, detail: str) -> None:
    """Record what happened to a batch."""
    connection.execute(t.batch_events.insert().values(batch_id=batch_id, at=utc_now(), event=event, detail=detail))


def insert_orphan(
    connection: Connection, batch_id: str, comparison_id: str, *, reason: str, source: str, **details: Any
) -> None:
    """Keep an answer that changes nothing; see `Ledger.record_orphan`."""
    connection.execute(
        t.orphan_results.insert().values(
            batch_id=batch_id,
            comparison_id=comparison_id,
            reason=reason,
            source=source,
            received_at=utc_now(),
            **details,
        )
    )


def orphan_details(end: AttemptEnd, lease_epoch: int) -> dict[str, Any]:
    """What is known of an answer that came to a call of ours."""
    return {
        "attempt_id": end.attempt_id,
        "lease_epoch": lease_epoch,
        "winner": None if end.winner is None else end.winner.value,
        "confidence": end.confidence,
        "error_type": end.error_type,
        "request_id": end.request_id,
        "tokens_input": end.tokens.input,
        "tokens_output": end.tokens.output,
        "cost_usd": end.cost_usd,
    }


def _content_sha256(new: NewAssignment) -> str:
    content = [
        new.title,
        new.language,
        new.grade_scale,
        new.grade_scale_definition,
        new.instructions,
        new.system_prompt,
        new.student_prompt,
        new.judge_rubric,
        sorted([anchor.anchor_ref, anchor.grade, anchor.text_sha256] for anchor in new.anchors),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _request_sha256(new: NewBatch) -> str:
    """Over what the user asked for; anchors, settings and versions come from the surroundings."""
    students = [
        [essay.essay_id, essay.text_sha256, essay.quality] for essay in new.essays if essay.role is EssayRole.STUDENT
    ]
    content = [new.kind.value, new.assignment_id, new.judge_profile, new.overrides, sorted(students)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _assignment_differences(
    existing: AssignmentRecord, anchors: Sequence[AnchorRecord], new: NewAssignment
) -> list[str]:
    fields = ("title", "language", "grade_scale", "instructions", "system_prompt", "student_prompt", "judge_rubric")
    problems = [f"{name} differs" for name in fields if getattr(existing, name) != getattr(new, name)]
    if existing.grade_scale_definition != new.grade_scale_definition:
        problems.append("grade_scale_definition differs")
    before = {anchor.anchor_ref: anchor for anchor in anchors}
    after = {anchor.anchor_ref: anchor for anchor in new.anchors}
    for ref in sorted(before.keys() | after.keys()):
        if ref not in after:
            problems.append(f"anchor {ref} is registered but not in the folder")
        elif ref not in before:
            problems.append(f"anchor {ref} is new")
        elif before[ref].grade != after[ref].grade:
            problems.append(f"anchor {ref} has grade {before[ref].grade}, the folder says {after[ref].grade}")
        elif before[ref].text_sha256 != after[ref].text_sha256:
            problems.append(f"anchor {ref} has another text")
    return problems


def _insert_ignore(connection: Connection, table: sa.Table) -> Any:
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as postgresql_insert

        return postgresql_insert(table).on_conflict_do_nothing()
    from sqlalchemy.dialects.sqlite import insert as sqlite_insert

    return sqlite_insert(table).on_conflict_do_nothing()


def _store_texts(connection: Connection, texts: dict[str, tuple[str, int]], now: datetime) -> None:
    if texts:
        connection.execute(
            _insert_ignore(connection, t.texts),
            [
                {"text_sha256": sha256, "text": text, "word_count": words, "created_at": now}
                for sha256, (text, words) in sorted(texts.items())
            ],
        )


def _update_batch(connection: Connection, batch_id: str, **values: Any) -> None:
    connection.execute(t.batches.update().where(t.batches.c.batch_id == batch_id).values(**values))


def _set_hold(connection: Connection, batch_id: str, reason: str) -> None:
    _update_batch(connection, batch_id, hold_reason=reason)
    add_event(connection, batch_id, "held", reason)


def _lease_live(connection: Connection, batch_id: str) -> bool:
    query = sa.select(sa.func.count()).where(
        t.batches.c.batch_id == batch_id,
        t.batches.c.lease_owner.is_not(None),
        t.batches.c.lease_expires_at > database_now(connection.dialect.name),
    )
    return bool(connection.execute(query).scalar_one())


def _refuse_live_lease(connection: Connection, batch_id: str) -> None:
    if _lease_live(connection, batch_id):
        raise BatchBusyError(f"batch {batch_id} is being written by another process: `cj hold {batch_id}` first")
