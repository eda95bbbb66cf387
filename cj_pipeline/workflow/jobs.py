"""Provider batch jobs: a wave submitted as one job, looked for, polled, and its results taken, all under the lease.

A job and its calls are in the ledger before it is sent. Whatever happens between submission and results (a crash, a
lost answer, a day of waiting), the next process finds the job in the ledger, asks the provider, and never sends the
same calls while an earlier job may hold them. Separate calls are in `dispatch`; when to come here, in `loop`.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from time import monotonic
from typing import Final
from zoneinfo import ZoneInfo

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.models import BatchApiMode, Comparison
from cj_pipeline.judges.errors import (
    CancelledError,
    ExpiredError,
    Fate,
    InvalidRequestError,
    JudgeError,
    MissingResultError,
    ProviderServerError,
    SubmissionUnknownError,
)
from cj_pipeline.judges.protocol import (
    ComparisonPrompt,
    JobItem,
    JobJudge,
    JobPhase,
    JobResult,
    JobStatus,
    SearchOutcome,
    custom_id_prefix,
)
from cj_pipeline.ledger import Lease, Ledger
from cj_pipeline.ledger.records import (
    AttemptEnd,
    AttemptRecord,
    AttemptStart,
    BatchRecord,
    JobRecord,
    JobState,
    NewJob,
    OrphanResult,
)
from cj_pipeline.settings import CJSettings
from cj_pipeline.workflow.dispatch import Bench, Breaker, Dispatched, Task, planned_tasks
from cj_pipeline.workflow.judging import open_batch_judge

LISTING_DELAY: Final = timedelta(seconds=60)
"""How long after a submission without an answer a job that is not in the provider's list may still appear there."""

_CLOSED_AS: Final = {
    JobPhase.COMPLETED: JobState.COMPLETED,
    JobPhase.EXPIRED: JobState.EXPIRED,
    JobPhase.CANCELLED: JobState.CANCELLED,
    JobPhase.FAILED: JobState.FAILED,
}
_NEVER_REACHED: Final = {JobPhase.EXPIRED: ExpiredError, JobPhase.CANCELLED: CancelledError}


@dataclass(frozen=True)
class Wait:
    """Nothing can be done now: come back at `until` (aware, UTC), or earlier if a job is found to be over."""

    until: datetime
    reason: str


def job_judge(judge: object) -> JobJudge:
    """The judge, as one that takes jobs.

    Raises:
        InputError: it takes none.
    """
    if isinstance(judge, JobJudge):
        return judge
    raise InputError("this judge takes no provider batch jobs: choose llm_batching_mode serial_bundle or per_request")


def custom_id(job_key: str, comparison_id: str, number: int) -> str:
    """How a call is known inside its job: unique among all jobs, 64 characters at most, letters, digits and '-'."""
    return f"{custom_id_prefix(job_key)}{comparison_id}-a{number}"


def night_opens(window: str, timezone: str, now: datetime) -> datetime | None:
    """When the night window opens next; None if it is open.

    Args:
        window: HH:MM-HH:MM, across midnight if the end is before the start; the same time twice is the whole day.
        timezone: IANA name.
        now: aware.
    """
    start_text, end_text = window.split("-")
    start, end = time.fromisoformat(start_text), time.fromisoformat(end_text)
    local = now.astimezone(ZoneInfo(timezone))
    clock = local.time().replace(tzinfo=None)
    is_open = start <= clock < end if start < end else (clock >= start or clock < end)
    if is_open:
        return None
    opening = local.replace(hour=start.hour, minute=start.minute, second=0, microsecond=0)
    if opening <= local:
        opening = (local + timedelta(days=1)).replace(hour=start.hour, minute=start.minute, second=0, microsecond=0)
    return opening.astimezone(UTC)


class JobRunner:
    """Takes a batch's jobs one step further.

    Args:
        bench: the batch's surroundings.
        breaker: how long to wait when the provider cannot be asked.
        on_end: told of every recorded end of a call.
        cancelling: the batch is being cancelled, so that what the provider did not get to counts as never sent.
    """

    def __init__(
        self,
        bench: Bench,
        breaker: Breaker,
        on_end: Callable[[Comparison, AttemptEnd], None],
        *,
        cancelling: bool = False,
    ) -> None:
        self._bench = bench
        self._cancelling = cancelling
        self._judge = job_judge(bench.judge)
        self._breaker = breaker
        self._on_end = on_end
        self.judged = 0

    async def step(self, wave: int, tasks: Sequence[Task]) -> Dispatched | Wait:
        """Ask after the job that is out, or submit the tasks as one; a `Wait` while it is out.

        Args:
            wave: the wave the tasks belong to.
            tasks: the comparisons still planned, whether a job that is out holds them or not.

        Raises:
            LeaseLostError: another process has taken over.
        """
        try:
            for job in self._bench.ledger.jobs_out(self._bench.lease.batch_id):
                waiting = await self._follow(job, tasks)
                if waiting is not None:
                    return waiting
                if job.status is JobState.SUBMITTED:
                    return self._after(job)
            if not self._bench.ledger.jobs_out(self._bench.lease.batch_id):
                return await self._submit(wave, tasks)
            return Dispatched()
        except JudgeError as error:
            return self._refused(error)

    async def collect(self, tasks: Sequence[Task]) -> Wait | None:
        """Take in the jobs that are over, and submit nothing; a `Wait` if one is not over.

        Raises:
            LeaseLostError: another process has taken over.
            JudgeError: the provider cannot be asked now.
        """
        while out := self._bench.ledger.jobs_out(self._bench.lease.batch_id):
            waiting = await self._follow(out[0], tasks)
            if waiting is not None:
                return waiting
            tasks = planned_tasks(self._bench.ledger, self._bench.lease.batch_id)
        return None

    def _after(self, job: JobRecord) -> Dispatched:
        """What a job that is over means for the wave: one that the provider refused as a whole stops it."""
        closed = next(j for j in self._bench.ledger.provider_jobs(job.batch_id) if j.job_key == job.job_key)
        if closed.status is not JobState.FAILED:
            return Dispatched()
        return Dispatched(rejected=InvalidRequestError(f"the provider refused the job: {closed.detail or 'no reason'}"))

    def _refused(self, error: JudgeError) -> Dispatched | Wait:
        """The provider could not be asked, or did not accept: wait for better times, or stop."""
        self._bench.log.warning("provider batch job: no success", error_type=error.error_type, detail=str(error))
        if error.fate is not Fate.RETRY:
            return Dispatched(rejected=error)
        self._breaker.open(error, at_least=error.retry_after_seconds or 0.0)
        return Wait(
            datetime.now(UTC) + timedelta(seconds=self._breaker.pause_seconds or 0.0),
            f"the provider cannot be asked now ({error.error_type})",
        )

    # --- a job that is out ---------------------------------------------------------------------------------------

    async def _follow(self, job: JobRecord, tasks: Sequence[Task]) -> Wait | None:
        """Take a job as far as it goes; a `Wait` if it must be waited for."""
        if job.status is JobState.SUBMITTING:
            return await self._look_for(job)
        if job.provider_job_id is None:
            raise ProviderServerError(f"job {job.job_key} was accepted without an id, which is a defect")
        status = await self._judge.poll_job(job.provider_job_id)
        if not status.phase.is_over:
            expiry = status.expires_at or job.expires_at or job.created_at + timedelta(hours=25)
            return Wait(max(expiry, self._next_look()), f"provider batch job {job.provider_job_id} is out")
        await self._take_results(job, status, tasks)
        return None

    async def _look_for(self, job: JobRecord) -> Wait | None:
        """Find out what became of a submission without an answer, before anything is sent again."""
        search = await self._judge.find_job(job.job_key, items=job.items, since=job.created_at)
        if search.outcome is SearchOutcome.FOUND and search.job is not None:
            self._bench.lease.job_accepted(job.job_key, search.job.provider_job_id, search.job.expires_at)
            self._bench.log.info("provider batch job found again", job=search.job.provider_job_id)
            return None
        settled = datetime.now(UTC) - job.created_at >= LISTING_DELAY
        if search.outcome is SearchOutcome.ABSENT and settled:
            self._bench.lease.close_job(
                job.job_key, JobState.ABSENT, [], detail="sent without an answer, and the provider has no such job"
            )
            self._bench.log.warning("provider batch job never arrived; its comparisons are sent again", job=job.job_key)
            return None
        until = max(job.created_at + LISTING_DELAY, self._next_look())
        return Wait(until, "it is not known yet whether the provider has the job")

    def _next_look(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self._bench.settings.batch_api_poll_seconds)

    async def _take_results(self, job: JobRecord, status: JobStatus, tasks: Sequence[Task]) -> None:
        """Record every result, once, in one transaction; what the provider did not get to becomes an error."""
        bench = self._bench
        by_comparison = {task.comparison.comparison_id: task for task in tasks}
        attempts = {
            custom_id(job.job_key, attempt.comparison_id, attempt.number): attempt
            for attempt in bench.ledger.attempts(job.batch_id)
            if attempt.bundle_id == job.job_key and attempt.outcome is None
        }
        items = [
            JobItem(known, bench.request(_again(by_comparison[a.comparison_id], a), fence_marker=a.fence_marker))
            for known, a in attempts.items()
        ]
        found: dict[str, JobResult] = {}
        orphans: list[OrphanResult] = []
        if status.phase is not JobPhase.FAILED:
            async for result in self._judge.job_results(job.provider_job_id or "", items):
                if result.custom_id not in attempts or result.custom_id in found:
                    orphans.append(_orphan(result, "duplicate" if result.custom_id in found else "unknown"))
                else:
                    found[result.custom_id] = result
        ends = [
            self._end(_again(by_comparison[attempt.comparison_id], attempt), attempt, found.get(known), status)
            for known, attempt in attempts.items()
        ]
        bench.lease.close_job(
            job.job_key, _CLOSED_AS[status.phase], ends, orphans, detail=status.detail, ended_at=status.ended_at
        )
        bench.log.info(
            "provider batch job taken in",
            job=job.provider_job_id,
            phase=status.phase.value,
            items=len(attempts),
            results=len(found),
            orphans=len(orphans),
        )
        if any(end.winner is not None for end in ends):
            self._breaker.judged()
        for end in ends:
            self.judged += end.winner is not None
            self._on_end(by_comparison[end.comparison_id].comparison, end)

    def _end(self, task: Task, attempt: AttemptRecord, result: JobResult | None, status: JobStatus) -> AttemptEnd:
        start = _start_of(attempt)
        if status.phase is JobPhase.FAILED:
            return _never_made(attempt, "job_failed")
        if result is not None and result.answer is not None:
            return self._bench.end(task, start, attempt.attempt_id, result.answer)
        never_reached = _NEVER_REACHED.get(status.phase, MissingResultError)
        error = (result.error if result is not None else None) or never_reached(
            "the provider batch job brought no result for this comparison", cost_usd=0.0
        )
        if self._cancelling and isinstance(error, CancelledError):
            return _never_made(attempt, error.error_type)
        end = self._bench.end(task, start, attempt.attempt_id, error)
        self._bench.log_failure(task, error, final=end.final)
        return end

    # --- a new job -----------------------------------------------------------------------------------------------

    async def _submit(self, wave: int, tasks: Sequence[Task]) -> Dispatched | Wait:
        """Submit as many tasks as one job and the money left can take, at the time that BATCH_API_MODE allows."""
        bench = self._bench
        opens = self._not_before()
        if opens is not None:
            return opens
        job_key = secrets.token_hex(16)
        queued_at = datetime.now(UTC)
        keyed = [
            Task(task.comparison, task.number, task.repeat, job_key) for task in tasks[: self._judge.max_job_items]
        ]
        requests = [bench.request(task) for task in keyed]
        fitting = _fitting([request.prompt for request in requests], self._judge.max_job_bytes)
        keyed, requests = keyed[:fitting], requests[:fitting]
        starts = [
            bench.start(task, request.prompt, queued_at, in_job=True)
            for task, request in zip(keyed, requests, strict=True)
        ]
        affordable = _affordable(starts, bench.lease.money_left())
        if affordable == 0:
            return Dispatched(cost_spent=True)
        starts, requests, keyed = starts[:affordable], requests[:affordable], keyed[:affordable]
        identity = bench.judge.identity
        attempt_ids = bench.lease.open_job(NewJob(job_key, wave, identity.provider, identity.model, tuple(starts)))
        items = [JobItem(custom_id(job_key, request.comparison_id, request.attempt), request) for request in requests]
        bench.lease.check_fresh()
        try:
            submitted = await self._judge.submit_job(job_key, items)
        except SubmissionUnknownError as error:
            bench.log.warning("provider batch job: no answer to its submission; looking for it", detail=str(error))
            return Wait(queued_at + LISTING_DELAY, "it is not known yet whether the provider has the job")
        except JudgeError as error:
            ends = [
                AttemptEnd(
                    attempt_id,
                    start.comparison_id,
                    None,
                    error_type=error.error_type,
                    http_status=error.http_status,
                    made=False,
                    cost_usd=0.0,
                )
                for attempt_id, start in zip(attempt_ids, starts, strict=True)
            ]
            bench.lease.close_job(job_key, JobState.FAILED, ends, detail=str(error))
            raise
        bench.lease.job_accepted(job_key, submitted.provider_job_id, submitted.expires_at)
        bench.log.info("provider batch job submitted", job=submitted.provider_job_id, items=len(items), wave=wave)
        return Dispatched()

    def _not_before(self) -> Wait | None:
        tunables, settings = self._bench.tunables, self._bench.settings
        if tunables.batch_api_mode is not BatchApiMode.NIGHTLY:
            return None
        opens = night_opens(settings.batch_api_night_window, settings.batch_api_timezone, datetime.now(UTC))
        if opens is None:
            return None
        return Wait(opens, f"provider batch jobs are submitted at night ({settings.batch_api_night_window})")


def _fitting(prompts: Sequence[ComparisonPrompt], most: int) -> int:
    """How many of the prompts, from the first on, make a job of at most so many bytes; at least one."""
    total = 0
    for index, prompt in enumerate(prompts):
        # JSON may write two bytes as six; the rest of an item is its ids, its options and the schema
        total += 3 * sum(len(part.encode()) for part in (prompt.system, prompt.stable, prompt.essays)) + 4096
        if total > most:
            return max(1, index)
    return len(prompts)


def _affordable(starts: Sequence[AttemptStart], money_left: float | None) -> int:
    """How many of the calls, from the first on, cannot together cost more than is left."""
    if money_left is None:
        return len(starts)
    committed = 0.0
    for index, start in enumerate(starts):
        committed += start.upper_bound_usd or 0.0
        if committed > money_left:
            return index
    return len(starts)


def _never_made(attempt: AttemptRecord, error_type: str) -> AttemptEnd:
    """Nothing was judged and nothing paid: the call does not count, and its comparison is as if never sent."""
    return AttemptEnd(attempt.attempt_id, attempt.comparison_id, None, error_type=error_type, made=False, cost_usd=0.0)


def _again(task: Task, attempt: AttemptRecord) -> Task:
    """The task as it stood when the attempt was made."""
    return Task(task.comparison, attempt.number, task.repeat, attempt.bundle_id)


def _start_of(attempt: AttemptRecord) -> AttemptStart:
    return AttemptStart(
        comparison_id=attempt.comparison_id,
        number=attempt.number,
        provider=attempt.provider,
        model=attempt.model,
        prompt_sha256=attempt.prompt_sha256,
        fence_marker=attempt.fence_marker,
        queued_at=attempt.queued_at,
        bundle_id=attempt.bundle_id,
        upper_bound_usd=attempt.upper_bound_usd,
    )


def _orphan(result: JobResult, reason: str) -> OrphanResult:
    """A result that no call waits for. Its custom id is the provider's word: cut to what the ledger holds."""
    answer, error = result.answer, result.error
    usage = answer.usage if answer is not None else error.usage if error is not None else None
    return OrphanResult(
        comparison_id=result.custom_id[:64],
        reason=reason,
        winner=None if answer is None else answer.winner.value,
        confidence=None if answer is None else answer.confidence,
        error_type=None if error is None else error.error_type,
        request_id=answer.request_id if answer is not None else None,
        tokens_input=None if usage is None else usage.input,
        tokens_output=None if usage is None else usage.output,
        cost_usd=answer.cost_usd if answer is not None else 0.0,
    )


# --- from outside of a run ---------------------------------------------------------------------------------------


async def ask_after(batch: BatchRecord, job: JobRecord, settings: CJSettings) -> JobPhase:
    """Where a job that is out stands, with nothing written.

    Raises:
        JudgeError: the provider cannot be asked now.
        InputError: the batch's judge cannot be opened.
    """
    judge = job_judge(open_batch_judge(batch, settings))
    try:
        return (await judge.poll_job(job.provider_job_id or "")).phase
    finally:
        await judge.aclose()


async def cancel_jobs(ledger: Ledger, lease: Lease, settings: CJSettings, *, wait: float) -> None:
    """Ask the provider to stop the jobs of a leased batch, and take in what it has judged by then.

    Args:
        ledger: the ledger.
        lease: of the batch.
        settings: the program's.
        wait: seconds to wait for the provider to stop; what comes later is never collected, and costed at its bound.

    Raises:
        JudgeError: the provider cannot be asked now.
        InputError: the batch's judge cannot be opened.
        LeaseLostError: another process has taken over.
    """
    out = ledger.jobs_out(lease.batch_id)
    if not out:
        return
    judge = job_judge(open_batch_judge(ledger.batch(lease.batch_id), settings))
    try:
        bench = Bench.of_batch(ledger, lease, settings, judge)
        breaker = Breaker(1, settings.breaker_pause_seconds)
        runner = JobRunner(bench, breaker, lambda _comparison, _end: None, cancelling=True)
        for job in out:
            if job.provider_job_id is not None:
                await judge.cancel_job(job.provider_job_id)
        deadline = monotonic() + wait
        while await runner.collect(planned_tasks(ledger, lease.batch_id)) is not None and monotonic() < deadline:
            await asyncio.sleep(min(5.0, max(0.2, wait / 20)))
    finally:
        await judge.aclose()
