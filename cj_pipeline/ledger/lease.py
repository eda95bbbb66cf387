"""The right to write one batch, and every write that needs it.

A lease has an epoch; each write checks, in its own transaction, that the epoch is still the batch's. A holder that
was stopped past its expiry and taken over can therefore write nothing more. The clock is the database's.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from cj_pipeline.core.models import AttemptOutcome, BatchState, BatchStatus, ComparisonStatus
from cj_pipeline.ledger import tables as t
from cj_pipeline.ledger.engine import database_now, write_transaction
from cj_pipeline.ledger.errors import (
    BatchBusyError,
    BatchEndedError,
    BudgetExceededError,
    LeaseLostError,
    PendingComparisonsError,
)
from cj_pipeline.ledger.ledger import Ledger, add_event, insert_orphan, lock_batch, orphan_details, read_state, utc_now
from cj_pipeline.ledger.records import AttemptEnd, AttemptStart, WaveEnd, WavePlan


class Lease:
    """A held lease. Use as a context manager: it is renewed from a thread and released at the end.

    Args of `acquire`:
        owner: who, for people and for the launch rules: `host:pid` with the Dagster run id where there is one.
        seconds: how long the lease outlives the holder's last sign of life.
        wait: seconds to wait for another holder before giving up.
    """

    def __init__(self, ledger: Ledger, batch_id: str, owner: str, epoch: int, seconds: float) -> None:
        self._ledger = ledger
        self._engine = ledger.engine
        self.batch_id = batch_id
        self.owner = owner
        self.epoch = epoch
        self.seconds = seconds
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
        return cls(ledger, batch_id, owner, epoch, seconds)

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
            row = lock_batch(connection, self.batch_id)
            if row["lease_epoch"] != self.epoch or row["lease_owner"] != self.owner:
                self._lost.set()
                raise self._gone()
            if row["hold_reason"] is None:
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
        """
        with self._transaction() as connection:
            return [
                self._start(connection, operation)
                if isinstance(operation, AttemptStart)
                else self._end(connection, operation)
                for operation in operations
            ]

    def _start(self, connection: Connection, start: AttemptStart) -> int:
        inserted = connection.execute(
            t.attempts.insert()
            .values(
                batch_id=self.batch_id,
                comparison_id=start.comparison_id,
                number=start.number,
                lease_epoch=self.epoch,
                bundle_id=start.bundle_id,
                provider=start.provider,
                model=start.model,
                prompt_sha256=start.prompt_sha256,
                fence_marker=start.fence_marker,
                queued_at=start.queued_at,
                sent_at=utc_now(),
                upper_bound_usd=start.upper_bound_usd,
            )
            .returning(t.attempts.c.attempt_id)
        )
        return int(inserted.scalar_one())

    def _end(self, connection: Connection, end: AttemptEnd) -> int:
        now = utc_now()
        outcome = AttemptOutcome.JUDGED if end.winner is not None else AttemptOutcome.ERROR
        closed = connection.execute(
            t.attempts.update()
            .where(
                t.attempts.c.attempt_id == end.attempt_id,
                t.attempts.c.batch_id == self.batch_id,
                t.attempts.c.comparison_id == end.comparison_id,
                t.attempts.c.outcome.is_(None),
            )
            .values(
                finished_at=now,
                outcome=outcome.value,
                error_type=end.error_type,
                http_status=end.http_status,
                request_id=end.request_id,
                tokens_input=end.tokens.input,
                tokens_cache_read=end.tokens.cache_read,
                tokens_cache_write=end.tokens.cache_write,
                tokens_output=end.tokens.output,
                tokens_reasoning=end.tokens.reasoning,
                latency_seconds=end.latency_seconds,
                cost_usd=end.cost_usd,
            )
        )
        if closed.rowcount == 0:
            # the call has its outcome already: an answer counts once, and is kept
            details = orphan_details(end, self.epoch)
            insert_orphan(connection, self.batch_id, end.comparison_id, reason="duplicate", source="lease", **details)
            return end.attempt_id
        planned = sa.and_(
            t.comparisons.c.batch_id == self.batch_id,
            t.comparisons.c.comparison_id == end.comparison_id,
            t.comparisons.c.status == ComparisonStatus.PLANNED.value,
        )
        if end.winner is not None:
            connection.execute(
                t.comparisons.update()
                .where(planned)
                .values(
                    status=ComparisonStatus.JUDGED.value,
                    winner=end.winner.value,
                    confidence=end.confidence,
                    justification=end.justification,
                    completed_at=now,
                )
            )
        elif end.final:
            connection.execute(
                t.comparisons.update()
                .where(planned)
                .values(status=ComparisonStatus.FAILED.value, error_type=end.error_type, completed_at=now)
            )
        return end.attempt_id

    def stop_wave(self, wave: int) -> int:
        """End a wave that the judge refused for good: unsent comparisons are withdrawn, tried ones fail.

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
                .values(provider_rejected=True)
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
            _mark_lost(connection, self.batch_id)
            _settle_pending(connection, self.batch_id)
            self._merge_metadata(connection, metadata or {})
            self._finalise(connection, status, reason)

    def wait_until(self, not_before: Any) -> None:
        """Ask launches to wait until a moment (aware, UTC).

        Raises:
            LeaseLostError: another process has taken over.
        """
        with self._transaction() as connection:
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


def _mark_lost(connection: Connection, batch_id: str) -> None:
    connection.execute(
        t.attempts.update()
        .where(t.attempts.c.batch_id == batch_id, t.attempts.c.outcome.is_(None))
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
        .where(t.attempts.c.batch_id == batch_id, t.attempts.c.comparison_id == c.comparison_id)
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
