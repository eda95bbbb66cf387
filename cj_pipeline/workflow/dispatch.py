"""Getting the comparisons of a wave answered by separate calls: in slots, in bundles, with attempts and a breaker.

A call is recorded before it is made and its answer before the slot goes on (`recorder`). What ends the sending early
is told in the `Dispatched` that comes back; what becomes of the wave then is the wave loop's business. Provider batch
jobs are in `jobs`.
"""

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, Self

from cj_pipeline.core.models import BatchingMode, Comparison, ComparisonStatus, Essay
from cj_pipeline.judges.batching import bundle_hint, bundle_size, bundles
from cj_pipeline.judges.errors import Fate, InvalidRequestError, JudgeError, RateLimitedError
from cj_pipeline.judges.prompts import JudgeInstructions, build_prompt
from cj_pipeline.judges.protocol import (
    ComparisonPrompt,
    Judge,
    JudgeAnswer,
    JudgeIdentity,
    JudgeRequest,
    SimulatedTruth,
    Usage,
)
from cj_pipeline.ledger import BatchHeldError, CostExceededError, Lease, Ledger
from cj_pipeline.ledger.records import AttemptEnd, AttemptStart, TokenCounts
from cj_pipeline.logs import get_logger
from cj_pipeline.settings import BatchTunables, CJSettings
from cj_pipeline.workflow.judging import batch_instructions
from cj_pipeline.workflow.recorder import Recorder

BACKOFF_SECONDS: Final = 0.5
BACKOFF_LIMIT_SECONDS: Final = 30.0
RETRY_AFTER_LIMIT_SECONDS: Final = 120.0
"""A provider that asks for a longer wait gets it between runs, not within one."""

LONGEST_PAUSE_SECONDS: Final = 900.0
MAX_INVALID_REQUESTS: Final = 3
"""So many requests refused as invalid, without a single judgment in the run, say that all will be."""

_DETAIL_CHARACTERS: Final = 500


@dataclass(frozen=True)
class Task:
    """A comparison to get answered.

    Attributes:
        comparison: what to compare.
        number: the number of its next attempt, from 1; lost calls do not count.
        repeat: earlier comparisons of the batch with the same essays in the same order.
        bundle_id: the bundle it travels in, if any.
    """

    comparison: Comparison
    number: int
    repeat: int
    bundle_id: str | None = None


@dataclass(frozen=True)
class Bench:
    """Everything that stays the same while a batch is judged by one process."""

    ledger: Ledger
    lease: Lease
    judge: Judge
    tunables: BatchTunables
    settings: CJSettings
    instructions: JudgeInstructions = field(repr=False)
    essays: dict[str, Essay] = field(repr=False)
    texts: dict[str, str] = field(repr=False)
    log: Any = field(repr=False)

    @classmethod
    def of_batch(cls, ledger: Ledger, lease: Lease, settings: CJSettings, judge: Judge) -> Self:
        """The surroundings of the batch that the lease is for."""
        batch = ledger.batch(lease.batch_id)
        return cls(
            ledger=ledger,
            lease=lease,
            judge=judge,
            tunables=BatchTunables.model_validate(batch.settings),
            settings=settings,
            instructions=batch_instructions(ledger, batch),
            essays={essay.essay_id: essay for essay in ledger.essays(batch.batch_id)},
            texts=ledger.texts(batch.batch_id),
            log=get_logger(batch_id=batch.batch_id, correlation_id=batch.correlation_id),
        )

    def request(self, task: Task, *, fence_marker: str | None = None) -> JudgeRequest:
        """What the judge is asked for a task; with a marker, exactly as it was asked before."""
        comparison = task.comparison
        return JudgeRequest(
            comparison_id=comparison.comparison_id,
            prompt=build_prompt(
                self.instructions,
                self.texts[comparison.essay_a],
                self.texts[comparison.essay_b],
                fence_marker=fence_marker,
            ),
            repeat=task.repeat,
            attempt=task.number,
            truth=_truth(self.essays[comparison.essay_a], self.essays[comparison.essay_b]),
        )

    def start(self, task: Task, prompt: ComparisonPrompt, queued_at: datetime, *, in_job: bool = False) -> AttemptStart:
        """The record of a call about to be made."""
        identity = self.judge.identity
        return AttemptStart(
            comparison_id=task.comparison.comparison_id,
            number=task.number,
            provider=identity.provider,
            model=identity.model,
            prompt_sha256=prompt.sha256,
            fence_marker=prompt.fence_marker,
            queued_at=queued_at,
            bundle_id=task.bundle_id,
            upper_bound_usd=self.judge.upper_bound_usd(prompt, in_job=in_job),
        )

    def end(self, task: Task, start: AttemptStart, attempt_id: int, outcome: JudgeAnswer | JudgeError) -> AttemptEnd:
        """The record of how a call ended: an answer is judged, an error fails the comparison if its fate says so."""
        if isinstance(outcome, JudgeAnswer):
            return AttemptEnd(
                attempt_id=attempt_id,
                comparison_id=start.comparison_id,
                winner=outcome.winner,
                confidence=outcome.confidence,
                justification=outcome.justification,
                request_id=outcome.request_id,
                tokens=_token_counts(outcome.usage),
                latency_seconds=outcome.latency_seconds,
                cost_usd=outcome.cost_usd,
            )
        final = outcome.fate is not Fate.RETRY or task.number >= self.tunables.max_judgment_attempts
        return AttemptEnd(
            attempt_id=attempt_id,
            comparison_id=start.comparison_id,
            winner=None,
            error_type=outcome.error_type,
            error_detail=str(outcome)[:_DETAIL_CHARACTERS],
            final=final,
            http_status=outcome.http_status,
            request_id=outcome.request_id,
            tokens=_token_counts(outcome.usage),
            latency_seconds=outcome.latency_seconds,
            # an answer that never arrived may have been paid for
            cost_usd=start.upper_bound_usd if outcome.cost_usd is None else outcome.cost_usd,
        )

    def log_failure(self, task: Task, error: JudgeError, *, final: bool) -> None:
        """Tell which comparison of which essays failed, and how; an error's message holds no text and no key."""
        comparison = task.comparison
        (self.log.warning if final else self.log.info)(
            "comparison failed" if final else "call failed; trying again",
            comparison_id=comparison.comparison_id,
            essay_a=comparison.essay_a,
            essay_b=comparison.essay_b,
            attempt=task.number,
            error_type=error.error_type,
            http_status=error.http_status,
            detail=str(error)[:_DETAIL_CHARACTERS],
        )


def planned_tasks(ledger: Ledger, batch_id: str) -> list[Task]:
    """The comparisons of a batch that wait for an outcome, in the order of planning."""
    failed_calls = {record.comparison_id: record.failed_attempts for record in ledger.comparison_records(batch_id)}
    history = ledger.comparisons(batch_id)
    repeats = _repeats(history)
    return [
        Task(comparison, failed_calls[comparison.comparison_id] + 1, repeats[comparison.comparison_id])
        for comparison in history
        if comparison.status is ComparisonStatus.PLANNED
    ]


def _repeats(history: list[Comparison]) -> dict[str, int]:
    """Comparison id → how many earlier comparisons had the same essays in the same order."""
    seen = Counter[tuple[str, str]]()
    repeats = {}
    for comparison in history:
        pair = (comparison.essay_a, comparison.essay_b)
        repeats[comparison.comparison_id] = seen[pair]
        if comparison.status is not ComparisonStatus.WITHDRAWN:
            seen[pair] += 1
    return repeats


class Breaker:
    """Opens when a provider keeps failing; how long to wait then doubles each time nothing was judged in between.

    Args:
        threshold: provider faults in a row that open it; one is enough if it was open before and nothing was judged.
        first_pause: seconds of the first wait.
        opened: how many times in a row it has been open before, as an earlier run left it.
    """

    def __init__(self, threshold: int, first_pause: float, opened: int = 0) -> None:
        self._threshold = threshold
        self._first_pause = first_pause
        self._faults = 0
        self.opened = opened
        self.pause_seconds: float | None = None
        self.error: JudgeError | None = None

    @property
    def is_open(self) -> bool:
        """Whether nothing more should be sent in this run."""
        return self.pause_seconds is not None

    def judged(self) -> None:
        """An answer came: the provider is well."""
        self._faults = 0
        self.opened = 0

    def failed(self, error: JudgeError) -> None:
        """A call failed."""
        asked = error.retry_after_seconds
        if asked is not None and asked > RETRY_AFTER_LIMIT_SECONDS:
            self.open(error, at_least=asked)
        elif not error.provider_fault:
            self._faults = 0
        elif not (isinstance(error, RateLimitedError) and asked is not None):
            # a limit with a stated wait is an agreement, not a fault
            self._faults += 1
            if self._faults >= (1 if self.opened else self._threshold):
                self.open(error)

    def open(self, error: JudgeError, *, at_least: float = 0.0) -> None:
        """Send nothing more in this run."""
        if self.is_open:
            return
        pause = min(LONGEST_PAUSE_SECONDS, self._first_pause * 2.0**self.opened)
        # a provider may name a day; after six hours another look does no harm
        self.pause_seconds = max(pause, min(at_least, 6 * 3600.0))
        self.opened += 1
        self.error = error


@dataclass
class Dispatched:
    """Why sending ended, where it ended before every task had its outcome."""

    rejected: JudgeError | None = None
    cost_spent: bool = False

    @property
    def stopped(self) -> bool:
        """Whether the wave cannot go on."""
        return self.rejected is not None or self.cost_spent


@dataclass(frozen=True)
class _Call:
    """A call that is recorded, or about to be."""

    task: Task
    request: JudgeRequest
    start: AttemptStart
    attempt_id: int


class Dispatcher:
    """Sends tasks to the judge as separate calls, many at once, until each has its outcome or sending must end.

    Args:
        bench: the batch's surroundings.
        breaker: counts provider faults across the waves of a run.
        asked_to_stop: whether nothing more may be sent, for a reason outside of judging.
        on_end: told of every recorded end of a call.
    """

    def __init__(
        self,
        bench: Bench,
        breaker: Breaker,
        asked_to_stop: Callable[[], bool],
        on_end: Callable[[Comparison, AttemptEnd], None],
    ) -> None:
        self._bench = bench
        self._breaker = breaker
        self._asked_to_stop = asked_to_stop
        self._on_end = on_end
        self._alone = asyncio.Lock()
        self._proven = False
        self._warm_until = 0.0
        self._judged = 0
        self._invalid = 0
        self._broken = False
        self._idle: set[asyncio.Task[Any] | None] = set()
        self._pending: deque[Task] = deque()
        self._under_way = 0
        self._done = Dispatched()

    async def run(self, wave: int, tasks: Sequence[Task]) -> Dispatched:
        """Get the tasks answered; whatever is not, when this returns, was not sent or is being tried again.

        Raises:
            LeaseLostError: another process has taken over.
        """
        self._done = Dispatched()
        self._under_way = 0
        bench = self._bench
        with Recorder(bench.ledger, bench.lease) as recorder:
            queued_at = datetime.now(UTC)
            self._pending = deque(self._bundled(wave, tasks))

            async def slot() -> None:
                going = True
                while going and self._pending and not self._stopping:
                    going = await self._take(recorder, self._pending.popleft(), queued_at)

            slots = min(bench.tunables.judge_concurrency, len(self._pending))
            await self._until_stopped([asyncio.create_task(slot()) for _ in range(slots)])
        return self._done

    @property
    def _stopping(self) -> bool:
        return self._broken or self._asked_to_stop() or self._done.stopped or self._breaker.is_open

    def _bundled(self, wave: int, tasks: Sequence[Task]) -> list[Task]:
        tunables = self._bench.tunables
        if tunables.llm_batching_mode is not BatchingMode.SERIAL_BUNDLE:
            return list(tasks)
        hint = tunables.preferred_bundle_size
        if hint is not None and tunables.enable_llm_batching_metadata_hints and bundle_hint(hint) is None:
            self._bench.log.warning("preferred_bundle_size ignored: it must be an integer from 1 to 64", wave=wave)
        size = bundle_size(
            max(1, len(tasks)),
            hint=hint,
            use_hints=tunables.enable_llm_batching_metadata_hints,
            largest=tunables.serial_bundle_max_requests_per_call,
        )
        epoch = self._bench.lease.epoch
        return [
            Task(task.comparison, task.number, task.repeat, f"w{wave:05d}-b{index:04d}-e{epoch}")
            for index, bundle in enumerate(bundles(tasks, size), start=1)
            for task in bundle
        ]

    async def _take(self, recorder: Recorder, task: Task, queued_at: datetime) -> bool:
        """Judge one task, alone if it is the first of this run or finds the provider's prompt cache cold.

        False if nothing more should be taken by this slot.
        """
        async with self._alone:
            # the first call of a run proves the key and the provider's health, and warms the cache for the others
            if self._must_go_alone:
                going = await self._judge(recorder, task, queued_at, alone=True)
                self._proven = True
                return going
        return await self._judge(recorder, task, queued_at)

    @property
    def _must_go_alone(self) -> bool:
        return not self._proven or time.monotonic() >= self._warm_until

    async def _judge(self, recorder: Recorder, task: Task, queued_at: datetime, *, alone: bool = False) -> bool:
        """Judge a task, and those that can follow it without a pause: their start is recorded with its end.

        False if the last of them could not be sent.
        """
        call = await self._begin(recorder, task, queued_at)
        if call is None:
            return False
        while call is not None:
            outcome = await self._ask(call.request)
            end = self._bench.end(call.task, call.start, call.attempt_id, outcome)
            self._note(call, outcome, end)
            settled = end.winner is not None or end.final
            following = self._following(queued_at) if settled and not alone else None
            following = await self._record(recorder, end, following)
            self._on_end(call.task.comparison, end)
            if not settled:
                again = replace(call.task, number=call.task.number + 1)
                queued_at = datetime.now(UTC)
                await self._back_off(again.number, outcome)
                following = await self._begin(recorder, again, queued_at)
                if following is None:
                    return False
            call = following
        return True

    async def _begin(self, recorder: Recorder, task: Task, queued_at: datetime) -> "_Call | None":
        """Record a call once the provider's pace allows it; None if it must not be sent, at least not by this slot."""
        request = self._bench.request(task)
        if self._stopping or not await self._unless_stopped(self._bench.judge.pace(request.prompt)):
            return None
        start = self._bench.start(task, request.prompt, queued_at)
        try:
            attempt_id = await recorder.commit(start)
        except CostExceededError:
            self._put_back(task)
            return None
        except BatchHeldError:
            return None
        self._under_way += 1
        self._bench.lease.check_fresh()
        return _Call(task, request, start, attempt_id)

    def _put_back(self, task: Task) -> None:
        """Keep a call that the money left may not pay for: calls under way may turn out cheaper than feared."""
        self._pending.appendleft(task)
        if not self._under_way:
            self._done.cost_spent = True

    def _following(self, queued_at: datetime) -> "_Call | None":
        """A call that can be made right after another one; its attempt is not recorded yet."""
        if self._stopping or self._must_go_alone or not self._pending:
            return None
        request = self._bench.request(self._pending[0])
        if not self._bench.judge.may_send(request.prompt):
            return None
        task = self._pending.popleft()
        return _Call(task, request, self._bench.start(task, request.prompt, queued_at), attempt_id=0)

    async def _record(self, recorder: Recorder, end: AttemptEnd, following: "_Call | None") -> "_Call | None":
        """Record how a call ended and, in one transaction, the start of the one that follows it; that, if it may."""
        if following is None:
            await recorder.commit(end)
            self._under_way -= 1
            return None
        try:
            attempt_id = await recorder.commit(end, following.start)
        except (CostExceededError, BatchHeldError):
            # the end is recorded all the same; the other comparison waits for its turn
            self._under_way -= 1
            self._pending.appendleft(following.task)
            return None
        self._bench.lease.check_fresh()
        return replace(following, attempt_id=attempt_id)

    async def _ask(self, request: JudgeRequest) -> JudgeAnswer | JudgeError:
        started = time.monotonic()
        try:
            return await self._bench.judge.judge(request)
        except JudgeError as error:
            if error.latency_seconds is None:
                error.latency_seconds = time.monotonic() - started
            if error.cost_usd is None and self._bench.judge.identity.simulated:
                error.cost_usd = 0.0
            return error

    def _note(self, call: "_Call", outcome: JudgeAnswer | JudgeError, end: AttemptEnd) -> None:
        """What an outcome means for the calls after it."""
        if isinstance(outcome, JudgeAnswer):
            self._judged += 1
            self._breaker.judged()
            keeps_warm = self._bench.judge.cache_seconds(call.request.prompt)
            self._warm_until = float("inf") if keeps_warm is None else time.monotonic() + keeps_warm
            return
        self._bench.log_failure(call.task, outcome, final=end.final)
        self._breaker.failed(outcome)
        if not self._judged and isinstance(outcome, InvalidRequestError):
            self._invalid += 1
        if outcome.fate is Fate.REJECT or self._invalid >= MAX_INVALID_REQUESTS:
            self._done.rejected = outcome
        if self._bench.judge.cache_seconds(call.request.prompt) is None:
            self._warm_until = float("inf")

    async def _back_off(self, number: int, error: JudgeAnswer | JudgeError) -> None:
        """Exponential backoff with jitter, or what the provider asked for if that is longer; left early on a stop."""
        asked = getattr(error, "retry_after_seconds", None) or 0.0
        longest = min(BACKOFF_LIMIT_SECONDS, BACKOFF_SECONDS * 2 ** (number - 1))
        wait = 0.0 if _answers_at_once(self._bench) else random.uniform(longest / 2, longest)
        if wait or asked:
            await self._unless_stopped(asyncio.sleep(max(wait, min(asked, RETRY_AFTER_LIMIT_SECONDS))))

    async def _unless_stopped(self, waiting: Coroutine[Any, Any, None]) -> bool:
        """Wait for something that may take long; False if sending had to end first (`_until_stopped` sees to it)."""
        task = asyncio.current_task()
        self._idle.add(task)
        try:
            await waiting
        except asyncio.CancelledError:
            if task is None or not self._stopping:
                raise
            task.uncancel()
            return False
        finally:
            self._idle.discard(task)
        return not self._stopping

    async def _until_stopped(self, tasks: "list[asyncio.Task[None]]") -> None:
        """Wait for the tasks; once asked to stop, for the grace period at most. Their first error is raised."""
        grace = self._bench.settings.interrupt_grace_seconds
        waiting: set[asyncio.Task[None]] = set(tasks)
        deadline: float | None = None
        while waiting:
            done, waiting = await asyncio.wait(waiting, timeout=0.1, return_when=asyncio.FIRST_EXCEPTION)
            if self._stopping:
                for task in list(self._idle):
                    # it waits for its turn, with no call in flight
                    if task is not None:
                        task.cancel()
            errors = [task.exception() for task in done if not task.cancelled() and task.exception() is not None]
            if errors:
                # the others' answers are paid for: they are awaited like on an interrupt
                self._broken = True
                if waiting:
                    await asyncio.wait(waiting, timeout=grace)
                await _cancel(waiting)
                raise errors[0]  # type: ignore[misc]
            if self._asked_to_stop() and deadline is None:
                deadline = time.monotonic() + grace
            if deadline is not None and time.monotonic() >= deadline:
                await _cancel(waiting)
                return


async def _cancel(tasks: "set[asyncio.Task[None]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _answers_at_once(bench: Bench) -> bool:
    identity: JudgeIdentity = bench.judge.identity
    return identity.simulated and not bench.settings.simulated_latency


def _truth(essay_a: Essay, essay_b: Essay) -> SimulatedTruth | None:
    if essay_a.quality is None or essay_b.quality is None:
        return None
    return SimulatedTruth(essay_a.quality, essay_b.quality)


def _token_counts(usage: Usage) -> TokenCounts:
    return TokenCounts(
        input=usage.input,
        cache_read=usage.cache_read,
        cache_write=usage.cache_write,
        output=usage.output,
        reasoning=usage.reasoning,
    )
