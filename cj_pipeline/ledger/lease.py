"""The right to write one batch, and every write that needs it.

A lease has an epoch; each write checks, in its own transaction, that the epoch is still the batch's. A holder that
was stopped past its expiry and taken over can therefore write nothing more. The clock is the database's.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final, Self

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from cj_pipeline.core.models import AttemptOutcome, BatchState, BatchStatus, ComparisonStatus
from cj_pipeline.ledger import tables as t
from cj_pipeline.ledger.engine import database_now, write_transaction
from cj_pipeline.ledger.errors import (
    BatchBusyError,
    BatchEndedError,
    BatchHeldError,
    BudgetExceededError,
    CostExceededError,
    LeaseLostError,
    PendingComparisonsError,
)
from cj_pipeline.ledger.ledger import Ledger, add_event, insert_orphan, lock_batch, orphan_details, utc_now
from cj_pipeline.ledger.reading import committed_usd, open_jobs_of, read_state
from cj_pipeline.ledger.records import AttemptEnd, AttemptStart, JobState, NewJob, OrphanResult, WaveEnd, WavePlan

_ORPHAN_KEYS: Final = ("comparison_id", "reason")


class Lease:
    """A held lease. Use as a context manager: it is renewed from a thread and released at the end.

    Args of `acquire`:
        owner: who, for people and for the launch rules: `host:pid` with the Dagster run id where there is one.
        seconds: how long the lease outlives the holder's last sign of life.
        wait: seconds to wait for another holder before giving up.
    """

    def __init__(
        self,
        ledger: Ledger,
        batch_id: str,
        owner: str,
        epoch: int,
        seconds: float,
        *,
        max_cost_usd: float | None = None,
    ) -> None:
        self._ledger = ledger
        self._engine = ledger.engine
        self.batch_id = batch_id
        self.owner = owner
        self.epoch = epoch
        self.seconds = seconds
        self._cost_limit = max_cost_usd
        self._alive_at = time.monotonic()
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._held = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def acquire(cls, ledger: Ledger, batch_id: str, *, owner: str, seconds: float, wait: float = 0.0) -> Self:
        """Take the batch's lease; calls that were left without an outcome become `lost`.

        Raises:
            UnknownBatchError: no such batch.
            BatchBusyError: another process holds it: who, and for how long.
        """
        deadline = time.monotonic() + wait
        while True:
            try:
                return cls._try_acquire(ledger, batch_id, owner, seconds)
            except BatchBusyError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(min(0.5, max(0.05, seconds / 10)))

    @classmethod
    def _try_acquire(cls, ledger: Ledger, batch_id: str, owner: str, seconds: float) -> Self:
        with write_transaction(ledger.engine) as connection:
            row = lock_batch(connection, batch_id)
            now = float(connection.execute(sa.select(database_now(connection.dialect.name))).scalar_one())
            if row["lease_owner"] is not None and row["lease_expires_at"] > now:
                raise BatchBusyError(
                    f"batch {batch_id} is being written by {row['lease_owner']} since {now - row['lease_since']:.0f} s "
                    f"(its lease runs for another {row['lease_expires_at'] - now:.0f} s unless renewed): wait for it "
                    f"(--wait), or stop it with `cj hold {batch_id}`"
                )
            epoch = int(row["lease_epoch"]) + 1
            if row["lease_owner"] is not None:
                add_event(connection, batch_id, "taken_over", f"the lease of {row['lease_owner']} had run out")
            connection.execute(
                t.batches.update()
                .where(t.batches.c.batch_id == batch_id)
                .values(lease_owner=owner, lease_epoch=epoch, lease_since=now, lease_expires_at=now + seconds)
            )
            _mark_lost(connection, batch_id)
        # fixed at submission, like all settings of a batch
        return cls(ledger, batch_id, owner, epoch, seconds, max_cost_usd=row["settings"].get("max_cost_usd"))

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._renew_until_stopped, name=f"lease-{self.batch_id}", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(LeaseLostError):
            self.release()

    @property
    def lost(self) -> bool:
        """Whether the lease is known to be gone."""
        return self._lost.is_set()

    @property
    def held_back(self) -> bool:
        """Whether the batch was put on hold, as of the last look."""
        return self._held.is_set()

    def check_fresh(self) -> None:
        """Refuse to go on if no sign of life reached the ledger for the lease's length: someone may have taken over.

        Raises:
            LeaseLostError: the lease is or may be gone.
        """
        if self.lost or time.monotonic() - self._alive_at > self.seconds:
            raise self._gone()

    def renew(self) -> None:
        """Extend the lease.

        Raises:
            LeaseLostError: another process has taken over.
        """
        with self._transaction() as connection:
            now = database_now(connection.dialect.name)
            connection.execute(
                t.batches.update()
                .where(t.batches.c.batch_id == self.batch_id)
                .values(lease_expires_at=now + self.seconds)
            )

    def release(self) -> None:
        """Give the lease back; calls still without an outcome become `lost`.

        Raises:
            LeaseLostError: another process has taken over.
        """
        with self._transaction() as connection:
            _mark_lost(connection, self.batch_id)
            connection.execute(
                t.batches.update()
                .where(t.batches.c.batch_id == self.batch_id)
                .values(lease_owner=None, lease_since=None, lease_expires_at=None)
            )

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(self.seconds / 3):
            try:
                self.renew()
            except LeaseLostError:
                return
            except DBAPIError:
                # the database may come back before the lease runs out; check_fresh guards meanwhile
                continue

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Connection]:
        started = time.monotonic()
        with write_transaction(self._engine) as connection:
            row = connection.execute(_LEASE_OF, {"the_batch": self.batch_id}).one_or_none()
            if row is None or row.lease_epoch != self.epoch or row.lease_owner != self.owner:
                self._lost.set()
                raise self._gone()
            if row.hold_reason is None:
                self._held.clear()
            else:
                self._held.set()
            yield connection
        self._alive_at = started

    def _gone(self) -> LeaseLostError:
        return LeaseLostError(
            f"batch {self.batch_id}: this process ({self.owner}) no longer holds the lease; it stops, and whoever "
            "holds it now goes on"
        )

    # --- what a holder may write ---------------------------------------------------------------------------------

    def plan_wave(self, plan: WavePlan) -> None:
        """Record a wave and its comparisons, counted against the budget, before anything is sent.

        Raises:
            LeaseLostError: another process has taken over.
            BatchEndedError: the batch is final.
            BudgetExceededError: the wave does not fit into what the budget leaves.
        """
        with self._transaction() as connection:
            self._refuse_ended(connection)
            state = read_state(connection, self.batch_id)
            budget = state.total_budget
            if budget is None or state.submitted + len(plan.pairs) > budget:
                raise BudgetExceededError(
                    f"batch {self.batch_id}: {len(plan.pairs)} more comparisons after {state.submitted} would exceed "
                    f"the budget of {budget}"
                )
            connection.execute(
                t.waves.insert().values(
                    batch_id=self.batch_id,
                    wave=plan.wave,
                    pair_mode=plan.pair_mode.value,
                    cut_by_budget=plan.cut_by_budget,
                    started_at=utc_now(),
                )
            )
            connection.execute(
                t.comparisons.insert(),
                [
                    {
                        "batch_id": self.batch_id,
                        "comparison_id": plan.comparison_id(index),
                        "wave": plan.wave,
                        "essay_a": pair.essay_a,
                        "essay_b": pair.essay_b,
                        "pair_mode": pair.pair_mode.value,
                        "status": ComparisonStatus.PLANNED.value,
                    }
                    for index, pair in enumerate(plan.pairs)
                ],
            )
            self._update(connection, status=BatchStatus.JUDGING.value, not_before=None)

    def record(self, operations: Sequence[AttemptStart | AttemptEnd]) -> list[int]:
        """Record calls about to be made and answers that came, in one transaction (group commit).

        Returns:
            The attempt id for each operation, in order.

        Raises:
            LeaseLostError: another process has taken over; nothing was recorded.
            BatchHeldError: a call was to be made of a batch on hold; nothing was recorded.
            CostExceededError: a call could exceed the batch's `max_cost_usd`; nothing was recorded.
        """
        starts = [operation for operation in operations if isinstance(operation, AttemptStart)]
        ends = [operation for operation in operations if isinstance(operation, AttemptEnd)]
        with self._transaction() as connection:
            if starts and self.held_back:
                raise BatchHeldError(f"batch {self.batch_id} is on hold: nothing more is sent")
            self._end(connection, ends)
            self._refuse_cost(connection, starts)
            started = iter(self._start(connection, starts))
        return [next(started) if isinstance(o, AttemptStart) else o.attempt_id for o in operations]

    def money_left(self) -> float | None:
        """US dollars that the batch's `max_cost_usd` leaves for calls not yet made; None without such a limit.

        Raises:
            LeaseLostError: another process has taken over.
        """
        limit = self._cost_limit
        if limit is None:
            return None
        with self._transaction() as connection:
            return limit - committed_usd(connection, self.batch_id)

    def _refuse_cost(self, connection: Connection, starts: Sequence[AttemptStart]) -> None:
        if not starts or (limit := self._cost_limit) is None:
            return
        committed = committed_usd(connection, self.batch_id)
        wanted = sum(start.upper_bound_usd or 0.0 for start in starts)
        if committed + wanted > limit:
            raise CostExceededError(
                f"batch {self.batch_id}: {len(starts)} more calls may cost {wanted:.4f} USD after {committed:.4f} USD, "
                f"which would exceed max_cost_usd {limit:.4f}"
            )

    # --- provider batch jobs -------------------------------------------------------------------------------------

    def open_job(self, job: NewJob) -> list[int]:
        """Record a provider batch job and all its calls before it is sent; the attempt ids, in order.

        Raises:
            LeaseLostError: another process has taken over.
            CostExceededError: the job could exceed the batch's `max_cost_usd`; nothing was recorded.
        """
        with self._transaction() as connection:
            self._refuse_cost(connection, job.starts)
            connection.execute(
                t.provider_jobs.insert().values(
                    job_key=job.job_key,
                    batch_id=self.batch_id,
                    wave=job.wave,
                    provider=job.provider,
                    model=job.model,
                    items=len(job.starts),
                    status=JobState.SUBMITTING.value,
                    created_at=utc_now(),
                )
            )
            return self._start(connection, job.starts)

    def job_accepted(self, job_key: str, provider_job_id: str, expires_at: datetime | None) -> None:
        """Record that the provider has the job, and under which id.

        Raises:
            LeaseLostError: another process has taken over.
        """
        with self._transaction() as connection:
            self._update_job(
                connection,
                job_key,
                status=JobState.SUBMITTED.value,
                provider_job_id=provider_job_id,
                submitted_at=utc_now(),
                expires_at=expires_at,
            )

    def close_job(
        self,
        job_key: str,
        status: JobState,
        ends: Sequence[AttemptEnd],
        orphans: Sequence[OrphanResult] = (),
        *,
        detail: str | None = None,
        ended_at: datetime | None = None,
    ) -> None:
        """Take a job's results, all or none of them; calls of the job that they leave open become `lost`.

        Args:
            job_key: the job.
            status: how it ended.
            ends: how its calls ended.
            orphans: results that belong to none of its calls.
            detail: why it failed, in our words.
            ended_at: when the provider ended it (aware, UTC).

        Raises:
            LeaseLostError: another process has taken over.
        """
        with self._transaction() as connection:
            self._end(connection, ends)
            for orphan in orphans:
                values = {name: value for name, value in asdict(orphan).items() if name not in _ORPHAN_KEYS}
                insert_orphan(
                    connection,
                    self.batch_id,
                    orphan.comparison_id,
                    reason=orphan.reason,
                    source="provider_job",
                    **values,
                )
            self._update_job(
                connection, job_key, status=status.value, detail=detail, ended_at=ended_at, closed_at=utc_now()
            )
            _mark_lost(connection, self.batch_id)

    def _update_job(self, connection: Connection, job_key: str, **values: Any) -> None:
        connection.execute(
            t.provider_jobs.update()
            .where(t.provider_jobs.c.job_key == job_key, t.provider_jobs.c.batch_id == self.batch_id)
            .values(**values)
        )

    def _start(self, connection: Connection, starts: Sequence[AttemptStart]) -> list[int]:
        if not starts:
            return []
        now = utc_now()
        inserted = connection.execute(
            t.attempts.insert().returning(t.attempts.c.attempt_id, sort_by_parameter_order=True),
            [
                {
                    "batch_id": self.batch_id,
                    "comparison_id": start.comparison_id,
                    "number": start.number,
                    "lease_epoch": self.epoch,
                    "bundle_id": start.bundle_id,
                    "provider": start.provider,
                    "model": start.model,
                    "prompt_sha256": start.prompt_sha256,
                    "fence_marker": start.fence_marker,
                    "queued_at": start.queued_at,
                    "sent_at": now,
                    "upper_bound_usd": start.upper_bound_usd,
                }
                for start in starts
            ],
        )
        return [int(attempt_id) for attempt_id in inserted.scalars()]

    def _end(self, connection: Connection, ends: Sequence[AttemptEnd]) -> None:
        """Close calls and their comparisons; an answer to a call that has its outcome already is kept as an orphan."""
        if not ends:
            return
        a = t.attempts.c
        still_open = {
            (row.attempt_id, row.comparison_id)
            for row in connection.execute(
                sa.select(a.attempt_id, a.comparison_id).where(
                    a.batch_id == self.batch_id,
                    a.attempt_id.in_([end.attempt_id for end in ends]),
                    a.outcome.is_(None),
                )
            )
        }
        counted = []
        for end in ends:
            call = (end.attempt_id, end.comparison_id)
            if call in still_open:
                still_open.remove(call)
                counted.append(end)
            else:
                details = orphan_details(end, self.epoch)
                insert_orphan(
                    connection, self.batch_id, end.comparison_id, reason="duplicate", source="lease", **details
                )
        if not counted:
            return
        now = utc_now()
        connection.execute(_CLOSE_ATTEMPT, [_closing(end, now) for end in counted])
        settled = [end for end in counted if end.winner is not None or end.final]
        if settled:
            connection.execute(
                _SETTLE_COMPARISON, [{**_settling(end, now), "the_batch": self.batch_id} for end in settled]
            )

    def stop_wave(self, wave: int, *, provider_rejected: bool = False, cost_stopped: bool = False) -> int:
        """End a wave early, saying why: unsent comparisons are withdrawn, tried ones fail.

        Args:
            wave: the wave.
            provider_rejected: the judge refused for good.
            cost_stopped: the next call could exceed the batch's `max_cost_usd`.

        Returns:
            How many comparisons were withdrawn.

        Raises:
            LeaseLostError: another process has taken over.
        """
        with self._transaction() as connection:
            withdrawn = _settle_pending(connection, self.batch_id)
            connection.execute(
                t.waves.update()
                .where(t.waves.c.batch_id == self.batch_id, t.waves.c.wave == wave)
                .values(provider_rejected=provider_rejected, cost_stopped=cost_stopped)
            )
        return withdrawn

    def state(self) -> BatchState:
        """The batch's state, read afresh under the lease.

        Raises:
            LeaseLostError: another process has taken over.
        """
        with self._transaction() as connection:
            return read_state(connection, self.batch_id)

    def end_wave(self, end: WaveEnd) -> None:
        """Record what is known and decided at a wave's end; a final decision finalises in the same transaction.

        Raises:
            LeaseLostError: another process has taken over.
            BatchEndedError: the batch is final.
            PendingComparisonsError: comparisons are still pending.
        """
        with self._transaction() as connection:
            self._refuse_ended(connection)
            self._refuse_pending(connection)
            connection.execute(
                t.waves.update()
                .where(t.waves.c.batch_id == self.batch_id, t.waves.c.wave == end.wave)
                .values(
                    ended_at=utc_now(),
                    callbacks=end.callbacks,
                    max_score_change=end.max_score_change,
                    mean_se=end.mean_se,
                    max_se=end.max_se,
                    scores=end.scores,
                    ses=end.ses,
                    decision=end.decision,
                    reason=end.reason,
                )
            )
            self._merge_metadata(connection, end.metadata)
            if end.status is not None:
                self._finalise(connection, end.status, end.reason)

    def finalise(self, status: BatchStatus, reason: str, metadata: dict[str, Any] | None = None) -> None:
        """End the batch outside a wave's end (too few essays, silent too long, cancelled): pending is settled first.

        Raises:
            LeaseLostError: another process has taken over.
            BatchEndedError: the batch is final, perhaps since this process last looked.
        """
        with self._transaction() as connection:
            self._refuse_ended(connection)
            connection.execute(
                t.provider_jobs.update()
                .where(open_jobs_of(self.batch_id))
                .values(status=JobState.ABANDONED.value, closed_at=utc_now())
            )
            _mark_lost(connection, self.batch_id)
            _settle_pending(connection, self.batch_id)
            self._merge_metadata(connection, metadata or {})
            self._finalise(connection, status, reason)

    def wait_until(self, not_before: datetime, metadata: dict[str, Any] | None = None) -> None:
        """Ask launches to wait until a moment (aware, UTC); `metadata` joins what the batch remembers.

        Raises:
            LeaseLostError: another process has taken over.
        """
        with self._transaction() as connection:
            self._merge_metadata(connection, metadata or {})
            self._update(connection, not_before=not_before)

    def mark_published(self, as_of: int) -> None:
        """Record that results based on `as_of` judgments were published; of a final batch that ends its work.

        Raises:
            LeaseLostError: another process has taken over.
        """
        with self._transaction() as connection:
            row = lock_batch(connection, self.batch_id)
            values: dict[str, Any] = {"published_as_of": as_of}
            if BatchStatus(row["status"]).is_final:
                values["published_at"] = utc_now()
                add_event(connection, self.batch_id, "published", f"based on {as_of} judgments")
            self._update(connection, **values)

    def _refuse_ended(self, connection: Connection) -> None:
        status = BatchStatus(
            connection.execute(sa.select(t.batches.c.status).where(t.batches.c.batch_id == self.batch_id)).scalar_one()
        )
        if status.is_final:
            raise BatchEndedError(
                f"batch {self.batch_id} is {status.value} already: `cj show {self.batch_id}` shows its results"
            )

    def _refuse_pending(self, connection: Connection) -> None:
        pending = connection.execute(
            sa.select(sa.func.count()).where(
                t.comparisons.c.batch_id == self.batch_id, t.comparisons.c.status == ComparisonStatus.PLANNED.value
            )
        ).scalar_one()
        if pending:
            raise PendingComparisonsError(f"batch {self.batch_id}: {pending} comparisons still wait for an answer")

    def _finalise(self, connection: Connection, status: BatchStatus, reason: str) -> None:
        self._update(connection, status=status.value, stop_reason=reason, completed_at=utc_now(), hold_reason=None)
        add_event(connection, self.batch_id, "finalised", f"{status.value}: {reason}")

    def _merge_metadata(self, connection: Connection, metadata: dict[str, Any]) -> None:
        known = connection.execute(
            sa.select(t.batches.c.processing_metadata).where(t.batches.c.batch_id == self.batch_id)
        ).scalar_one()
        self._update(connection, processing_metadata={**known, **metadata})

    def _update(self, connection: Connection, **values: Any) -> None:
        connection.execute(t.batches.update().where(t.batches.c.batch_id == self.batch_id).values(**values))


# built once: they run for every answer
_LEASE_OF: Final = (
    sa.select(t.batches.c.lease_epoch, t.batches.c.lease_owner, t.batches.c.hold_reason)
    .where(t.batches.c.batch_id == sa.bindparam("the_batch"))
    .with_for_update()
)
_CLOSED_COLUMNS: Final = (
    *("finished_at", "outcome", "error_type", "error_detail", "http_status", "request_id", "tokens_input"),
    *("tokens_cache_read", "tokens_cache_write", "tokens_output", "tokens_reasoning", "latency_seconds", "cost_usd"),
)
_CLOSE_ATTEMPT: Final = (
    t.attempts.update()
    .where(t.attempts.c.attempt_id == sa.bindparam("the_attempt"))
    .values({name: sa.bindparam(f"new_{name}") for name in _CLOSED_COLUMNS})
)
_SETTLED_COLUMNS: Final = ("status", "winner", "confidence", "justification", "error_type", "completed_at")
_SETTLE_COMPARISON: Final = (
    t.comparisons.update()
    .where(
        t.comparisons.c.batch_id == sa.bindparam("the_batch"),
        t.comparisons.c.comparison_id == sa.bindparam("the_comparison"),
        t.comparisons.c.status == ComparisonStatus.PLANNED.value,
    )
    .values({name: sa.bindparam(f"new_{name}") for name in _SETTLED_COLUMNS})
)


def _closing(end: AttemptEnd, now: datetime) -> dict[str, Any]:
    outcome = AttemptOutcome.JUDGED if end.winner is not None else AttemptOutcome.ERROR
    return {
        "the_attempt": end.attempt_id,
        "new_finished_at": now,
        "new_outcome": (outcome if end.made else AttemptOutcome.UNSENT).value,
        "new_error_type": end.error_type,
        "new_error_detail": end.error_detail,
        "new_http_status": end.http_status,
        "new_request_id": end.request_id,
        "new_tokens_input": end.tokens.input,
        "new_tokens_cache_read": end.tokens.cache_read,
        "new_tokens_cache_write": end.tokens.cache_write,
        "new_tokens_output": end.tokens.output,
        "new_tokens_reasoning": end.tokens.reasoning,
        "new_latency_seconds": end.latency_seconds,
        "new_cost_usd": end.cost_usd,
    }


def _settling(end: AttemptEnd, now: datetime) -> dict[str, Any]:
    judged = end.winner is not None
    return {
        "the_comparison": end.comparison_id,
        "new_status": (ComparisonStatus.JUDGED if judged else ComparisonStatus.FAILED).value,
        "new_winner": None if end.winner is None else end.winner.value,
        "new_confidence": end.confidence,
        "new_justification": end.justification,
        "new_error_type": None if judged else end.error_type,
        "new_completed_at": now,
    }


def _mark_lost(connection: Connection, batch_id: str) -> None:
    """Give up on calls without an outcome, but not on those of a provider job that is out: it outlives its process."""
    jobs_out = sa.select(t.provider_jobs.c.job_key).where(open_jobs_of(batch_id))
    nobodys = sa.or_(t.attempts.c.bundle_id.is_(None), t.attempts.c.bundle_id.not_in(jobs_out))
    connection.execute(
        t.attempts.update()
        .where(t.attempts.c.batch_id == batch_id, t.attempts.c.outcome.is_(None), nobodys)
        .values(
            outcome=AttemptOutcome.LOST.value,
            finished_at=utc_now(),
            error_type="lost",
            cost_usd=t.attempts.c.upper_bound_usd,
        )
    )


def _settle_pending(connection: Connection, batch_id: str) -> int:
    """Withdraw the comparisons that were never sent, fail the ones that were; how many were withdrawn."""
    c = t.comparisons.c
    pending = sa.and_(c.batch_id == batch_id, c.status == ComparisonStatus.PLANNED.value)
    sent = (
        sa.select(sa.literal(1))
        .where(
            t.attempts.c.batch_id == batch_id,
            t.attempts.c.comparison_id == c.comparison_id,
            t.attempts.c.outcome.is_distinct_from(AttemptOutcome.UNSENT.value),
        )
        .exists()
    )
    last_error = (
        sa.select(t.attempts.c.error_type)
        .where(t.attempts.c.batch_id == batch_id, t.attempts.c.comparison_id == c.comparison_id)
        .order_by(t.attempts.c.attempt_id.desc())
        .limit(1)
        .scalar_subquery()
    )
    now = utc_now()
    withdrawn = connection.execute(
        t.comparisons.update()
        .where(pending, sa.not_(sent))
        .values(status=ComparisonStatus.WITHDRAWN.value, completed_at=now)
    )
    connection.execute(
        t.comparisons.update()
        .where(pending)
        .values(status=ComparisonStatus.FAILED.value, error_type=sa.func.coalesce(last_error, "lost"), completed_at=now)
    )
    return withdrawn.rowcount
