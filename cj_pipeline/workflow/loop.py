"""The wave loop: plan, record the plan, judge, record each judgment as it arrives, fit, decide, until it is final.

`advance_batch` does this for one batch under its lease, whoever calls it (a Dagster asset, `cj run`, a test). It
resumes by construction: every step is chosen from what the ledger holds. Pairing, fitting and deciding are core's
business, SQL is the ledger's.
"""

import asyncio
import os
import queue
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cached_property
from typing import Any, Final

from cj_pipeline.core.bradley_terry import BradleyTerryFit
from cj_pipeline.core.completion import Decision, decide, is_small_net
from cj_pipeline.core.designs import WaveRequest, plan_next_wave, plan_whole_budget
from cj_pipeline.core.diagnostics import bt_quality_flags
from cj_pipeline.core.grades import project_scored
from cj_pipeline.core.models import (
    BatchingMode,
    BatchKind,
    BatchState,
    BatchStatus,
    Comparison,
    ComparisonStatus,
    Essay,
    PairMode,
    StopRule,
)
from cj_pipeline.core.pairing import wave_size
from cj_pipeline.core.precision import RPS_WAVES, WavePrecision, low_reliability, precise_enough, wave_precision
from cj_pipeline.core.scoring import BTScoringResult, compute_bt_scores_and_se, max_score_change
from cj_pipeline.judges.protocol import Judge
from cj_pipeline.ledger import Lease, LeaseLostError, Ledger
from cj_pipeline.ledger.records import AttemptEnd, BatchRecord, WaveEnd, WavePlan, WaveRecord
from cj_pipeline.logs import get_logger
from cj_pipeline.settings import BatchTunables, CJSettings
from cj_pipeline.workflow.calibration import known_anchors
from cj_pipeline.workflow.dispatch import Bench, Breaker, Dispatched, Dispatcher, planned_tasks
from cj_pipeline.workflow.jobs import JobRunner, Wait
from cj_pipeline.workflow.judging import open_batch_judge
from cj_pipeline.workflow.registration import scale_of

MIN_STUDENTS: Final = 2


class Outcome(StrEnum):
    """Why an advance ended."""

    FINAL = "final"  # nothing is left to judge
    PAUSED = "paused"  # waves_per_run or seconds_per_run reached
    WAITING = "waiting"  # the batch asked to wait: a provider batch job is out, or the provider keeps failing
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
    waiting: Wait | None = None


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
    return Advance(
        batch_id,
        outcome,
        after.status,
        after.stop_reason,
        waves=loop.waves_ended,
        judged=loop.judged,
        waiting=loop.waiting,
    )


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
        self._fit: BradleyTerryFit | None = None
        self._precision = [
            WavePrecision.model_validate(measured) for measured in self._batch.processing_metadata.get("precision", [])
        ]
        self._essays: dict[str, Essay] = {essay.essay_id: essay for essay in ledger.essays(lease.batch_id)}
        self._known = known_anchors(self._batch, list(self._essays))
        self._opened_judge = judge is None
        self._judge = judge or open_batch_judge(self._batch, settings)
        self._log = get_logger(batch_id=lease.batch_id, correlation_id=self._batch.correlation_id)
        self._started = time.monotonic()
        self._counts = Counter[str]()
        self.waiting: Wait | None = None
        self._breaker = Breaker(
            self._tunables.breaker_failures,
            self._tunables.breaker_pause_seconds,
            opened=int(self._batch.processing_metadata.get("breaker_opened", 0)),
        )

    @cached_property
    def _bench(self) -> Bench:
        # texts are read once something is to be judged
        return Bench.of_batch(self._ledger, self._lease, self._settings, self._judge)

    @cached_property
    def _dispatcher(self) -> Dispatcher:
        return Dispatcher(self._bench, self._breaker, lambda: self._asked_to_stop, self._tell)

    @cached_property
    def _jobs(self) -> JobRunner:
        return JobRunner(self._bench, self._breaker, self._tell)

    @property
    def _in_one_wave(self) -> bool:
        """Whether everything is planned at once, for a provider batch job."""
        return self._tunables.llm_batching_mode is BatchingMode.PROVIDER_BATCH_API

    @property
    def _asked_to_stop(self) -> bool:
        return self._stopping.is_set() or self._lease.held_back or self._lease.lost

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
            return await self._judge_wave(waves[-1], state)
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
        forgiven = state.model_copy(update={"provider_rejected": False, "cost_spent": False})
        decision = decide(forgiven, self._tunables, single_wave=self._in_one_wave and bool(waves))
        if state.submitted >= (state.total_budget or 0) and decision.status is not None:
            self._lease.finalise(decision.status, decision.reason)
            return Outcome.FINAL
        plan = self._single_wave(waves, state) if self._in_one_wave else self._next_wave(waves, state)
        if not plan.pairs and decision.status is not None:
            # a reopened small net whose passes are used up
            self._lease.finalise(decision.status, decision.reason)
            return Outcome.FINAL
        self._lease.plan_wave(plan)
        return None

    def _next_wave(self, waves: list[WaveRecord], state: BatchState) -> WavePlan:
        """The pairs between here and the next look at stability."""
        mode = PairMode.RESAMPLING if state.unique_coverage_complete else PairMode.COVERAGE
        budget_left = (state.total_budget or 0) - state.submitted
        size = wave_size(
            len(self._essays),
            least=self._tunables.comparisons_per_stability_check_iteration,
            budget_left=budget_left,
        )
        scored = next((wave for wave in reversed(waves) if wave.scores is not None), None)
        number = len(waves) + 1
        request = replace(
            self._wave_request(number, size.size),
            mode=mode,
            scores=(scored.scores if scored else None) or {},
            ses=(scored.ses if scored else None) or {},
            fit=self._fit,
        )
        self._fit = None
        pairs = plan_next_wave(self._tunables.pair_design, request)
        return WavePlan(number, mode, size.cut_by_budget, tuple(pairs))

    def _single_wave(self, waves: list[WaveRecord], state: BatchState) -> WavePlan:
        """Everything up to the budget, or to a small net's cap."""
        number = len(waves) + 1
        pairs = plan_whole_budget(
            self._tunables.pair_design,
            self._wave_request(number, (state.total_budget or 0) - state.submitted),
            least=self._tunables.comparisons_per_stability_check_iteration,
            passes=self._tunables.max_resampling_passes_for_small_net,
        )
        mode = PairMode.RESAMPLING if state.unique_coverage_complete else PairMode.COVERAGE
        return WavePlan(number, mode, cut_by_budget=False, pairs=tuple(pairs))

    def _wave_request(self, number: int, size: int) -> WaveRequest:
        """What a design is told about the batch, but for scores."""
        return WaveRequest(
            essay_ids=sorted(self._essays),
            history=self._ledger.comparisons(self.batch_id),
            size=size,
            scores={},
            ses={},
            seed=self._tunables.pair_generation_seed,
            batch_id=self.batch_id,
            wave=number,
            small_net=is_small_net(len(self._essays), self._tunables),
            anchor_grades={e.essay_id: e.known_grade for e in self._essays.values() if e.is_anchor and e.known_grade},
            balance_positions=self._tunables.enable_comparison_position_balancing,
            known=self._known,
        )

    # --- judging -------------------------------------------------------------------------------------------------

    async def _judge_wave(self, wave: WaveRecord, state: BatchState) -> Outcome | None:
        """Get the wave's comparisons answered, by calls or by a provider batch job."""
        tasks = planned_tasks(self._ledger, self.batch_id)
        self._counts = Counter(judged=state.judged, failed=state.failed)
        done: Dispatched | Wait
        if self._in_one_wave:
            done = await self._jobs.step(wave.wave, tasks)
        else:
            done = await self._dispatcher.run(wave.wave, tasks)
        if self._lease.lost:
            return None
        if isinstance(done, Wait):
            return self._wait(done)
        if done.stopped:
            self._stop_wave(wave, done)
        elif self._breaker.is_open:
            pause = self._breaker.pause_seconds or 0.0
            kind = self._breaker.error.error_type if self._breaker.error else "judge_error"
            return self._wait(
                Wait(datetime.now(UTC) + timedelta(seconds=pause), f"the provider keeps failing ({kind})")
            )
        return None

    def _stop_wave(self, wave: WaveRecord, done: Dispatched) -> None:
        withdrawn = self._lease.stop_wave(
            wave.wave, provider_rejected=done.rejected is not None, cost_stopped=done.rejected is None
        )
        if done.rejected is None:
            self._log.warning("max_cost_usd reached; wave stopped", wave=wave.wave, withdrawn=withdrawn)
            return
        self._log.error(
            "judge refused for good; wave stopped",
            wave=wave.wave,
            error_type=done.rejected.error_type,
            http_status=done.rejected.http_status,
            detail=str(done.rejected),
            withdrawn=withdrawn,
        )

    def _wait(self, wait: Wait) -> Outcome:
        """Leave the batch to a later run, which the sensors launch when it is time."""
        self._lease.wait_until(wait.until, {"waiting_for": wait.reason, "breaker_opened": self._breaker.opened})
        self.waiting = wait
        self._log.info("waiting", until=wait.until.isoformat(), reason=wait.reason)
        return Outcome.WAITING

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

    def _precise(self, wave: WaveRecord, scoring: BTScoringResult) -> str | None:
        """Measure the wave's precision, if that may stop the batch; why it may stop, or None."""
        if self._tunables.stop_rule is not StopRule.PRECISION:
            return None
        scale = scale_of(self._ledger, self._batch)
        projected = scale and project_scored(
            scale, scoring, {e.essay_id: e.known_grade for e in self._essays.values() if e.is_anchor and e.known_grade}
        )
        measured = wave_precision(
            wave.wave,
            full=not wave.cut_by_budget,
            judgments=scoring.per_essay_counts.values(),
            projections=projected.projections if projected else (),
            reliability_low=lambda: low_reliability(
                *scoring.fit.integrated_moments(), self._tunables.pair_generation_seed
            ),
        )
        self._precision = [*(m for m in self._precision if m.wave < wave.wave), measured][-RPS_WAVES - 1 :]
        return precise_enough(self._precision)

    def _end_wave(self, waves: list[WaveRecord], state: BatchState) -> bool:
        """Fit, decide, record; whether the decision is final."""
        comparisons = self._ledger.comparisons(self.batch_id)
        scoring = compute_bt_scores_and_se(
            comparisons,
            sorted(self._essays),
            self._tunables,
            anchor_ids=[essay_id for essay_id, essay in self._essays.items() if essay.is_anchor],
            known=self._known,
        )
        # what planning would otherwise have to fit again
        self._fit = scoring.fit
        previous = next((wave.scores for wave in reversed(waves[:-1]) if wave.scores is not None), None)
        change = max_score_change(previous, scoring.scores)
        wave = waves[-1]
        # cancelled and reopened, a batch still has to have the rest of its one wave judged
        whole = not any(c.wave == wave.wave and c.status is ComparisonStatus.WITHDRAWN for c in comparisons)
        decision = decide(
            state.model_copy(update={"max_score_change": change}),
            self._tunables,
            single_wave=self._in_one_wave and whole,
            precise=self._precise(wave, scoring),
        )
        flags = bt_quality_flags(scoring.se_summary, self._tunables)
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
                    "order_effect": scoring.fit.order_effect,
                    "order_effect_se": scoring.fit.order_effect_se,
                    "precision": [measured.model_dump() for measured in self._precision],
                    "waiting_for": None,
                    "breaker_opened": self._breaker.opened,
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


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
