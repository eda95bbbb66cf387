"""One thread that writes calls and answers to the ledger while the event loop goes on calling the judge.

Everything waiting is committed together (group commit), so that `synchronous=FULL` costs one sync for many answers. A
slot waits for its commit before it does anything else. What to write is the wave loop's business.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from cj_pipeline.ledger import Lease, LeaseLostError, Ledger
from cj_pipeline.ledger.ledger import orphan_details
from cj_pipeline.ledger.records import AttemptEnd, AttemptStart


@dataclass(frozen=True)
class _Request:
    operations: tuple[AttemptStart | AttemptEnd, ...]
    done: "asyncio.Future[int]"
    loop: asyncio.AbstractEventLoop


class Recorder:
    """Commits operations under a lease, in the order they come, many at a time. Use as a context manager."""

    def __init__(self, ledger: Ledger, lease: Lease) -> None:
        self._ledger = ledger
        self._lease = lease
        self._queue: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"recorder-{lease.batch_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._queue.put(None)
        self._thread.join()

    async def commit(self, *operations: AttemptStart | AttemptEnd) -> int:
        """Wait until the operations are committed, in one transaction; the last one's attempt id.

        An answer is committed even if the waiting task is cancelled meanwhile.

        Args:
            operations: an answer, a call about to be made, or an answer and the call after it.

        Raises:
            LeaseLostError: another process has taken over. An answer then went to the orphan results, with its cost.
            BatchHeldError, CostExceededError: the call may not be made. An answer before it was committed.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[int] = loop.create_future()
        self._queue.put(_Request(operations, done, loop))
        return await asyncio.shield(done)

    def _run(self) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                return
            group, last = [first], False
            with contextlib.suppress(queue.Empty):
                while True:
                    request = self._queue.get_nowait()
                    if request is None:
                        last = True
                        break
                    group.append(request)
            self._commit(group)
            if last:
                return

    def _commit(self, group: list[_Request]) -> None:
        try:
            ids = iter(self._lease.record([operation for request in group for operation in request.operations]))
            last_ids = [[next(ids) for _ in request.operations][-1] for request in group]
        except LeaseLostError as error:
            try:
                self._orphan(group)
            except Exception as failure:  # noqa: BLE001 - the slots must learn of the lost lease all the same
                error.add_note(f"late answers could not be kept: {failure}")
            _fail(group, error)
        except Exception as error:  # noqa: BLE001 - handed to the slot that waits for it
            if len(group) == 1:
                self._commit_what_can_be(group[0], error)
                return
            # one bad operation must not take the others' answers with it
            for request in group:
                self._commit([request])
        else:
            _tell(group, lambda: _resolve(group, last_ids))

    def _commit_what_can_be(self, request: _Request, error: Exception) -> None:
        """A refused call must not take the answer before it with it."""
        ends = [operation for operation in request.operations if isinstance(operation, AttemptEnd)]
        if len(request.operations) > 1 and ends:
            try:
                self._lease.record(ends)
            except Exception as failure:  # noqa: BLE001 - handed to the slot that waits for it
                error = failure
        _fail([request], error)

    def _orphan(self, group: list[_Request]) -> None:
        for end in (operation for request in group for operation in request.operations):
            if isinstance(end, AttemptEnd):
                self._ledger.record_orphan(
                    self._lease.batch_id,
                    end.comparison_id,
                    reason="late",
                    source="lease_lost",
                    **orphan_details(end, self._lease.epoch),
                )


def _tell(group: list[_Request], callback: Callable[[], None]) -> None:
    # all requests come from one event loop: waking it once is enough
    group[0].loop.call_soon_threadsafe(callback)


def _resolve(group: list[_Request], attempt_ids: list[int]) -> None:
    for request, attempt_id in zip(group, attempt_ids, strict=True):
        if not request.done.done():
            request.done.set_result(attempt_id)


def _fail(group: list[_Request], error: Exception) -> None:
    _tell(group, lambda: _reject(group, error))


def _reject(group: list[_Request], error: Exception) -> None:
    for request in group:
        if not request.done.done():
            request.done.set_exception(error)
