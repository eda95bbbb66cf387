"""The wave loop: plan, record the plan, judge, record each judgment as it arrives, fit, decide, until it is final.

`advance_batch` does this for one batch under its lease, whoever calls it (a Dagster asset, `cj run`, a test). It
resumes by construction: every step is chosen from what the ledger holds. Pairing, fitting and deciding are core's
business, SQL is the ledger's.
"""

import asyncio
import os
import queue
import random
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from cj_pipeline.core.bradley_terry import compute_bt_scores_and_se, max_score_change
from cj_pipeline.core.completion import Decision, decide, is_small_net
from cj_pipeline.core.diagnostics import bt_quality_flags
from cj_pipeline.core.models import (
    BatchKind,
    BatchState,
    BatchStatus,
    Comparison,
    ComparisonStatus,
    Essay,
    PairMode,
)
from cj_pipeline.core.pairing import plan_wave, wave_size
from cj_pipeline.judges.catalogue import open_judge
from cj_pipeline.judges.errors import Fate, JudgeError
from cj_pipeline.judges.prompts import DEFAULT_SYSTEM_PROMPT, JudgeInstructions, build_prompt
from cj_pipeline.judges.protocol import Judge, JudgeRequest, SimulatedTruth, Usage
from cj_pipeline.ledger import Lease, LeaseLostError, Ledger
from cj_pipeline.ledger.records import (
    AttemptEnd,
    AttemptStart,
    BatchRecord,
    TokenCounts,
    WaveEnd,
    WavePlan,
    WaveRecord,
)
from cj_pipeline.logs import get_logger
from cj_pipeline.settings import BatchTunables, CJSettings
from cj_pipeline.workflow.recorder import Recorder

BACKOFF_SECONDS: Final = 0.5
BACKOFF_LIMIT_SECONDS: Final = 30.0
MIN_STUDENTS: Final = 2


class Outcome(StrEnum):
    """Why an advance ended."""

    FINAL = "final"  # nothing is left to judge
    PAUSED = "paused"  # waves_per_run or seconds_per_run reached
    HELD = "held"  # someone put the batch on hold
    INTERRUPTED = "interrupted"  # this process was asked to stop


@dataclass(frozen=True)
class Progress:
    """Where a batch stands, told after every recorded answer."""

    judged: int
    failed: int
    total_budget: int
    wave: int


@dataclass(frozen=True)
class WaveReport:
    """What is known at the end of a wave, for whoever watches."""

    wave: int
    pair_mode: str
    submitted: int
    judged: int
    failed: int
    total_budget: int
    max_score_change: float | None
    mean_se: float | None
    max_se: float | None
    decision: str
    reason: str
    flags: dict[str, bool]


@dataclass(frozen=True)
class Advance:
    """What an advance did."""

    batch_id: str
    outcome: Outcome
    status: BatchStatus
    stop_reason: str | None
    waves: int
    judged: int


def process_owner(run_id: str | None = None) -> str:
    """How this process signs a lease: `host:pid`, and the Dagster run where there is one."""
    owner = f"{socket.gethostname()}:{os.getpid()}"
    return f"{owner}:run={run_id}" if run_id else owner


def owner_run_id(owner: str | None) -> str | None:
    """The Dagster run that a lease's owner belongs to, if any."""
    if owner is None or ":run=" not in owner:
        return None
    return owner.rsplit(":run=", 1)[1]


def advance_batch(
    ledger: Ledger,
    batch_id: str,
    settings: CJSettings,
    *,
    owner: str | None = None,
    judge: Judge | None = None,
    wait: float = 0.0,
    stop: threading.Event | None = None,
    on_event: Callable[[Progress | WaveReport], None] | None = None,
) -> Advance:
    """Take a batch as far as it goes: to its final decision, a limit of the settings, a hold or an interrupt.

    The event loop runs in a thread of its own, so that an interrupt of the caller (Ctrl-C, a terminated run) never
    cancels calls in flight: nothing more is sent, answers are awaited for `interrupt_grace_seconds` and recorded,
    the lease is released, and the interrupt goes on its way. A second interrupt leaves at once; what was in flight is
    then `lost`.

    Args:
        owner: how to sign the lease; by default this host and process.
        judge: who judges, closed by whoever opened it; by default the batch's judge.
        wait: seconds to wait for another process to finish with the batch.
        stop: set it to ask for a clean stop (outcome INTERRUPTED).
        on_event: called in the caller's thread, with `Progress` after recorded answers and `WaveReport` after waves.

    Raises:
        UnknownBatchError, BatchBusyError, LeaseLostError: see `ledger.errors`.
        MissingBudgetError: the batch has no budget.
    """
    before = ledger.batch(batch_id)
    if before.status.is_final:
        return Advance(batch_id, Outcome.FINAL, before.status, before.stop_reason, waves=0, judged=0)
    stopping = stop or threading.Event()
    with Lease.acquire(
        ledger, batch_id, owner=owner or process_owner(), seconds=settings.lease_seconds, wait=wait
    ) as lease:
        loop = _WaveLoop(ledger, lease, settings, judge, stopping)
        outcome = _run_in_thread(loop, stopping, settings, on_event or (lambda _event: None))
    after = ledger.batch(batch_id)
    return Advance(batch_id, outcome, after.status, after.stop_reason, waves=loop.waves_ended, judged=loop.judged)


def _run_in_thread(
    loop: "_WaveLoop",
    stopping: threading.Event,
    settings: CJSettings,
    on_event: Callable[[Progress | WaveReport], None],
) -> Outcome:
    result: list[Outcome] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(asyncio.run(loop.run()))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failure.append(error)
        finally:
            loop.events.put(None)

    thread = threading.Thread(target=run, name=f"waves-{loop.batch_id}", daemon=True)
    try:
        # an interrupt may come while the thread starts, too
        thread.start()
        # the timeout keeps this thread open to signals
        while (event := _next_event(loop.events, thread)) is not None:
            on_event(event)
    except BaseException:
        stopping.set()
        if thread.is_alive():
            # room for the grace period and the last commit
            thread.join(settings.interrupt_grace_seconds + 10.0)
        raise
    if failure:
        raise failure[0]
    return result[0]


def _next_event(
    events: "queue.SimpleQueue[Progress | WaveReport | None]", thread: threading.Thread
) -> Progress | WaveReport | None:
    while True:
        try:
            return events.get(timeout=0.1)
        except queue.Empty:
            if not thread.is_alive():
                return None


class _WaveLoop:
    """The state of one advance: what does not change about the batch, and what this process has done."""

    def __init__(
        self,
        ledger: Ledger,
        lease: Lease,
        settings: CJSettings,
        judge: Judge | None,
        stopping: threading.Event,
    ) -> None:
        self.batch_id = lease.batch_id
        self.waves_ended = 0
        self.judged = 0
        self._ledger = ledger
        self._lease = lease
        self._settings = settings
        self._stopping = stopping
        self.events: queue.SimpleQueue[Progress | WaveReport | None] = queue.SimpleQueue()
        self._batch: BatchRecord = ledger.batch(lease.batch_id)
        self._tunables = BatchTunables.model_validate(self._batch.settings)
        self._essays: dict[str, Essay] = {essay.essay_id: essay for essay in ledger.essays(lease.batch_id)}
        self._opened_judge = judge is None
        self._judge = judge or open_judge(
            self._batch.judge_profile,
            seed=self._tunables.pair_generation_seed,
            latency=settings.simulated_latency,
        )
        self._instructions = _instructions(ledger, self._batch)
        self._texts: dict[str, str] = {}
        self._log = get_logger(batch_id=lease.batch_id, correlation_id=self._batch.correlation_id)
        self._started = time.monotonic()
        self._rejected: JudgeError | None = None
        self._broken = False
        self._warm = False
        self._counts = Counter[str]()

    @property
    def _asked_to_stop(self) -> bool:
        return self._stopping.is_set() or self._broken or self._lease.held_back or self._lease.lost

    async def run(self) -> Outcome:
        """Step until nothing is left to do here. Between waves no call is in flight, so blocking is harmless."""
        try:
            while True:
                outcome = await self._step()
                if outcome is not None:
                    self._log.info("advance ended", outcome=outcome.value, waves=self.waves_ended, judged=self.judged)
                    return outcome
        finally:
            if self._opened_judge:
                await self._judge.aclose()

    async def _step(self) -> Outcome | None:
        if self._lease.lost:
            raise LeaseLostError(f"batch {self.batch_id}: another process has taken over")
        state = self._lease.state()
        if self._batch.status.is_final:
            # another process ended the batch while this one waited for the lease
            return Outcome.FINAL
        if self._asked_to_stop:
            return Outcome.HELD if self._lease.held_back else Outcome.INTERRUPTED
        if self._too_few_essays():
            self._lease.finalise(BatchStatus.COMPLETE_INSUFFICIENT_ESSAYS, "insufficient_essays")
            return Outcome.FINAL
        waves = self._ledger.waves(self.batch_id)
        if state.pending:
            await self._judge_wave(waves[-1], state)
            return None
        if waves and waves[-1].ended_at is None:
            return Outcome.FINAL if self._end_wave(waves, state) else None
        if self._limit_reached():
            return Outcome.PAUSED
        return self._plan_wave(waves, state)

    def _too_few_essays(self) -> bool:
        if self._batch.kind is BatchKind.ASSESSMENT:
            return sum(not essay.is_anchor for essay in self._essays.values()) < MIN_STUDENTS
        return len(self._essays) < MIN_STUDENTS

    def _limit_reached(self) -> bool:
        waves, seconds = self._settings.waves_per_run, self._settings.seconds_per_run
        return (waves is not None and self.waves_ended >= waves) or (
            seconds is not None and time.monotonic() - self._started >= seconds
        )

    # --- planning ------------------------------------------------------------------------------------------------

    def _plan_wave(self, waves: list[WaveRecord], state: BatchState) -> Outcome | None:
        # a reopened batch arrives here with a final decision behind it: what refused it then is forgiven now
        decision = decide(state.model_copy(update={"provider_rejected": False}), self._tunables)
        if state.submitted >= (state.total_budget or 0) and decision.status is not None:
            self._lease.finalise(decision.status, decision.reason)
            return Outcome.FINAL
        mode = PairMode.RESAMPLING if state.unique_coverage_complete else PairMode.COVERAGE
        budget_left = (state.total_budget or 0) - state.submitted
        size = wave_size(
            len(self._essays),
            least=self._tunables.comparisons_per_stability_check_iteration,
            budget_left=budget_left,
        )
        scored = next((wave for wave in reversed(waves) if wave.scores is not None), None)
        number = len(waves) + 1
        pairs = plan_wave(
            sorted(self._essays),
            self._ledger.comparisons(self.batch_id),
            mode=mode,
            size=size.size,
            scores=(scored.scores if scored else None) or {},
            ses=(scored.ses if scored else None) or {},
            seed=self._tunables.pair_generation_seed,
            batch_id=self.batch_id,
            wave=number,
            small_net=is_small_net(len(self._essays), self._tunables),
            balance_positions=self._tunables.enable_comparison_position_balancing,
        )
        self._lease.plan_wave(WavePlan(number, mode, size.cut_by_budget, tuple(pairs)))
        return None

    # --- judging -------------------------------------------------------------------------------------------------

    async def _judge_wave(self, wave: WaveRecord, state: BatchState) -> None:
        records = self._ledger.comparison_records(self.batch_id)
        failed_calls = {record.comparison_id: record.failed_attempts for record in records}
        history = self._ledger.comparisons(self.batch_id)
        repeats = _repeats(history)
        pending = deque(
            (comparison, failed_calls[comparison.comparison_id] + 1, repeats[comparison.comparison_id])
            for comparison in history
            if comparison.status is ComparisonStatus.PLANNED
        )
        self._texts = self._texts or self._ledger.texts(self.batch_id)
        self._counts = Counter(judged=state.judged, failed=state.failed)
        self._rejected = None
        with Recorder(self._ledger, self._lease) as recorder:

            async def slot() -> None:
                while pending and not self._asked_to_stop and self._rejected is None:
                    comparison, number, repeat = pending.popleft()
                    await self._judge_one(recorder, comparison, number, repeat)

            if not self._warm:
                # the first call goes alone: it warms the provider's cache, and a wrong key costs one failure, not many
                comparison, number, repeat = pending.popleft()
                await self._until_stopped([asyncio.create_task(self._judge_one(recorder, comparison, number, repeat))])
                self._warm = True
            slots = min(self._tunables.judge_concurrency, len(pending))
            await self._until_stopped([asyncio.create_task(slot()) for _ in range(slots)])
        if self._rejected is not None and not self._lease.lost:
            withdrawn = self._lease.stop_wave(wave.wave)
            self._log.error(
                "judge refused for good; wave stopped",
                wave=wave.wave,
                error_type=self._rejected.error_type,
                http_status=self._rejected.http_status,
                withdrawn=withdrawn,
            )

    async def _until_stopped(self, tasks: "list[asyncio.Task[None]]") -> None:
        """Wait for the tasks; once asked to stop, for the grace period at most. Their first error is raised."""
        if not tasks:
            return
        waiting: set[asyncio.Task[None]] = set(tasks)
        deadline: float | None = None
        while waiting:
            done, waiting = await asyncio.wait(waiting, timeout=0.1, return_when=asyncio.FIRST_EXCEPTION)
            errors = [task.exception() for task in done if not task.cancelled() and task.exception() is not None]
            if errors:
                # the others' answers are paid for: they are awaited like on an interrupt
                self._broken = True
                if waiting:
                    await asyncio.wait(waiting, timeout=self._settings.interrupt_grace_seconds)
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)
                raise errors[0]  # type: ignore[misc]
            if self._asked_to_stop and deadline is None:
                deadline = time.monotonic() + self._settings.interrupt_grace_seconds
            if deadline is not None and time.monotonic() >= deadline:
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)
                return

    async def _judge_one(self, recorder: Recorder, comparison: Comparison, number: int, repeat: int) -> None:
        queued_at = datetime.now(UTC)
        while not self._asked_to_stop and self._rejected is None:
            prompt = build_prompt(self._instructions, self._texts[comparison.essay_a], self._texts[comparison.essay_b])
            request = JudgeRequest(
                comparison_id=comparison.comparison_id,
                prompt=prompt,
                repeat=repeat,
                attempt=number,
                truth=self._truth(comparison),
            )
            identity = self._judge.identity
            start = AttemptStart(
                comparison_id=comparison.comparison_id,
                number=number,
                provider=identity.provider,
                model=identity.model,
                prompt_sha256=prompt.sha256,
                fence_marker=prompt.fence_marker,
                queued_at=queued_at,
                bundle_id=None,
                upper_bound_usd=self._judge.upper_bound_usd(prompt),
            )
            attempt_id = await recorder.commit(start)
            self._lease.check_fresh()
            end = await self._call(request, attempt_id, number)
            await recorder.commit(end)
            self._tell(comparison, end)
            if end.winner is not None or end.final:
                return
            number += 1
            await self._back_off(number)

    async def _call(self, request: JudgeRequest, attempt_id: int, number: int) -> AttemptEnd:
        started = time.monotonic()
        try:
            answer = await self._judge.judge(request)
        except JudgeError as error:
            if error.fate is Fate.REJECT:
                self._rejected = error
            unpriced = 0.0 if self._judge.identity.simulated else None
            return AttemptEnd(
                attempt_id=attempt_id,
                comparison_id=request.comparison_id,
                winner=None,
                error_type=error.error_type,
                final=error.fate is not Fate.RETRY or number >= self._tunables.max_judgment_attempts,
                http_status=error.http_status,
                request_id=error.request_id,
                tokens=_token_counts(error.usage),
                latency_seconds=time.monotonic() - started,
                cost_usd=unpriced if error.cost_usd is None else error.cost_usd,
            )
        return AttemptEnd(
            attempt_id=attempt_id,
            comparison_id=request.comparison_id,
            winner=answer.winner,
            confidence=answer.confidence,
            justification=answer.justification,
            request_id=answer.request_id,
            tokens=_token_counts(answer.usage),
            latency_seconds=answer.latency_seconds,
            cost_usd=answer.cost_usd,
        )

    async def _back_off(self, number: int) -> None:
        """Exponential backoff with full jitter, left early when asked to stop; none for a judge without latency."""
        if self._judge.identity.simulated and not self._settings.simulated_latency:
            return
        longest = min(BACKOFF_LIMIT_SECONDS, BACKOFF_SECONDS * 2 ** (number - 1))
        deadline = time.monotonic() + random.uniform(longest / 2, longest)
        while time.monotonic() < deadline and not self._asked_to_stop and self._rejected is None:
            await asyncio.sleep(0.05)

    def _truth(self, comparison: Comparison) -> SimulatedTruth | None:
        quality_a = self._essays[comparison.essay_a].quality
        quality_b = self._essays[comparison.essay_b].quality
        if quality_a is None or quality_b is None:
            return None
        return SimulatedTruth(quality_a, quality_b)

    def _tell(self, comparison: Comparison, end: AttemptEnd) -> None:
        if end.winner is not None:
            self._counts["judged"] += 1
            self.judged += 1
        elif end.final:
            self._counts["failed"] += 1
        self.events.put(
            Progress(self._counts["judged"], self._counts["failed"], self._batch.total_budget or 0, comparison.wave)
        )

    # --- deciding ------------------------------------------------------------------------------------------------

    def _end_wave(self, waves: list[WaveRecord], state: BatchState) -> bool:
        """Fit, decide, record; whether the decision is final."""
        scoring = compute_bt_scores_and_se(
            self._ledger.comparisons(self.batch_id),
            sorted(self._essays),
            self._tunables,
            anchor_ids=[essay_id for essay_id, essay in self._essays.items() if essay.is_anchor],
        )
        previous = next((wave.scores for wave in reversed(waves[:-1]) if wave.scores is not None), None)
        change = max_score_change(previous, scoring.scores)
        decision = decide(state.model_copy(update={"max_score_change": change}), self._tunables)
        flags = bt_quality_flags(scoring.se_summary, self._tunables)
        wave = waves[-1]
        self._lease.end_wave(
            WaveEnd(
                wave=wave.wave,
                callbacks=state.callbacks,
                max_score_change=change,
                mean_se=_number(scoring.se_summary["all"]["mean_se"]),
                max_se=_number(scoring.se_summary["all"]["max_se"]),
                scores=scoring.scores,
                ses=scoring.ses_uncapped,
                decision=decision.decision.value,
                reason=decision.reason,
                status=decision.status,
                metadata={
                    "bt_se_summary": scoring.se_summary,
                    "bt_quality_flags": flags,
                    "prior_sd": scoring.fit.prior_sd,
                    "coverage": {
                        "max_possible_pairs": state.max_possible_pairs,
                        "successful_pairs_count": state.successful_pairs,
                        "unique_coverage_complete": state.unique_coverage_complete,
                        "resampling_pass_count": state.resampling_passes,
                    },
                },
            )
        )
        self.waves_ended += 1
        self.events.put(
            WaveReport(
                wave=wave.wave,
                pair_mode=wave.pair_mode.value,
                submitted=state.submitted,
                judged=state.judged,
                failed=state.failed,
                total_budget=state.total_budget or 0,
                max_score_change=change,
                mean_se=_number(scoring.se_summary["all"]["mean_se"]),
                max_se=_number(scoring.se_summary["all"]["max_se"]),
                decision=decision.decision.value,
                reason=decision.reason,
                flags=flags,
            )
        )
        self._log.info(
            "wave complete; evaluated stability",
            wave=wave.wave,
            pair_mode=wave.pair_mode.value,
            submitted=state.submitted,
            judged=state.judged,
            failed=state.failed,
            total_budget=state.total_budget,
            decision=decision.decision.value,
            reason=decision.reason,
            max_score_change=None if change is None else round(change, 6),
            **flags,
        )
        return decision.decision in (Decision.FINALIZE_SCORING, Decision.FINALIZE_FAILURE)


def _instructions(ledger: Ledger, batch: BatchRecord) -> JudgeInstructions:
    if batch.assignment_id is None:
        return JudgeInstructions()
    assignment = ledger.assignment(batch.assignment_id, batch.assignment_revision)
    return JudgeInstructions(
        system_prompt=assignment.system_prompt or DEFAULT_SYSTEM_PROMPT,
        language=assignment.language,
        instructions=assignment.instructions,
        student_prompt=assignment.student_prompt,
        rubric=assignment.judge_rubric,
    )


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


def _token_counts(usage: Usage) -> TokenCounts:
    return TokenCounts(
        input=usage.input,
        cache_read=usage.cache_read,
        cache_write=usage.cache_write,
        output=usage.output,
        reasoning=usage.reasoning,
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
