"""The seam between the workflow and whoever judges: requests in, answers or typed errors out.

One call judges one comparison; a judge that is also a `JobJudge` takes many at once as a provider batch job. The
workflow owns concurrency, attempts, bundles and the record; a judge owns its transport, its pace and its prompt's wire
form. Errors are in `judges.errors`.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from pydantic import Field

from cj_pipeline.core.models import Value, Winner

if TYPE_CHECKING:
    from cj_pipeline.judges.errors import JudgeError

SIMULATED_PROVIDER: Final = "simulated"
"""The provider of every simulated judge, as recorded with its attempts."""


class Usage(Value):
    """Tokens of one call, by kind, as the provider reports them."""

    input: int = Field(0, ge=0)
    cache_read: int = Field(0, ge=0)
    cache_write: int = Field(0, ge=0)
    output: int = Field(0, ge=0)
    reasoning: int = Field(0, ge=0)


@dataclass(frozen=True)
class ComparisonPrompt:
    """What the judge reads: a stable part shared by a batch's comparisons, then the two essays.

    Attributes:
        system: the system prompt.
        stable: instructions, student prompt, rubric and response rules; the same for the whole batch.
        essays: both essays, each inside its fence.
        fence_marker: the random marker of this request's fences.
        sha256: over everything above with the marker replaced by a constant, so that equal questions are equal.
    """

    system: str = field(repr=False)
    stable: str = field(repr=False)
    essays: str = field(repr=False)
    fence_marker: str
    sha256: str


@dataclass(frozen=True)
class SimulatedTruth:
    """The qualities (in grade steps) that a simulated judge goes by; never part of a prompt."""

    quality_a: float
    quality_b: float


@dataclass(frozen=True)
class JudgeRequest:
    """One comparison to judge.

    Attributes:
        comparison_id: within its batch; for the judge's own bookkeeping, not part of the prompt.
        prompt: what the judge reads.
        repeat: how many earlier comparisons of the batch had the same essays in the same order (0 for the first).
        attempt: 1 for the first call, one more after each failed call; lost calls do not count.
        truth: qualities for a simulated judge; None where they are not known.
    """

    comparison_id: str
    prompt: ComparisonPrompt
    repeat: int
    attempt: int
    truth: SimulatedTruth | None = None


@dataclass(frozen=True)
class JudgeAnswer:
    """A judgment with what it cost.

    Attributes:
        winner: by position.
        confidence: 1 (barely) to 5 (certain).
        justification: the judge's reason; may quote the essays, so it stays out of logs and metadata.
        usage: tokens.
        cost_usd: US dollars; None if no price is known.
        request_id: the provider's id of the call.
        latency_seconds: as seen by the caller of the provider.
    """

    winner: Winner
    confidence: int
    justification: str = field(repr=False)
    usage: Usage
    cost_usd: float | None
    request_id: str | None
    latency_seconds: float


@dataclass(frozen=True)
class JudgeIdentity:
    """Who judges, as recorded with every attempt. `simulated` is shown wherever the result goes."""

    profile: str
    provider: str
    model: str
    simulated: bool


class Judge(Protocol):
    """Answers comparisons. Safe to call concurrently from one event loop."""

    @property
    def identity(self) -> JudgeIdentity:
        """Who this is."""
        ...

    def upper_bound_usd(self, prompt: ComparisonPrompt, *, in_job: bool = False) -> float | None:
        """The most one call with this prompt can cost, in US dollars; None if no price is known.

        Args:
            prompt: what the judge would read.
            in_job: whether it travels in a provider batch job, at its discount.
        """
        ...

    def cache_seconds(self, prompt: ComparisonPrompt) -> float | None:
        """How long a finished call keeps the provider's cache of the stable part warm, in seconds.

        None where no cache helps: the provider has none, or the stable part is too short for it.
        """
        ...

    async def pace(self, prompt: ComparisonPrompt) -> None:
        """Wait until the provider's limits allow one more call with this prompt. Cancellation propagates."""
        ...

    def may_send(self, prompt: ComparisonPrompt) -> bool:
        """Whether a call with this prompt may be sent at once; if so, it counts as sent. Otherwise see `pace`."""
        ...

    async def judge(self, request: JudgeRequest) -> JudgeAnswer:
        """Judge one comparison.

        Raises:
            JudgeError: typed, with its fate. Cancellation propagates.
        """
        ...

    async def check_access(self) -> None:
        """See whether this judge can be asked now: provider reached, key taken, model there. Costs nothing.

        Raises:
            JudgeError: it could not; the message says what to do.
        """
        ...

    async def aclose(self) -> None:
        """Release connections."""
        ...


# --- provider batch jobs -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JobItem:
    """One comparison of a provider batch job, found again in its results by `custom_id`."""

    custom_id: str
    request: JudgeRequest


@dataclass(frozen=True)
class SubmittedJob:
    """A job that the provider has accepted. `expires_at` (aware, UTC): when the provider gives up on it."""

    provider_job_id: str
    expires_at: datetime | None


class JobPhase(StrEnum):
    """Where a provider batch job stands."""

    RUNNING = "running"  # no results can be had yet
    COMPLETED = "completed"  # ended; there are results
    EXPIRED = "expired"  # the provider's time ran out; there may be results of a part
    CANCELLED = "cancelled"  # cancelled; there may be results of a part
    FAILED = "failed"  # the provider refused the job as a whole; nothing was judged

    @property
    def is_over(self) -> bool:
        """Whether the provider does nothing more for the job."""
        return self is not JobPhase.RUNNING


@dataclass(frozen=True)
class JobStatus:
    """A look at a job. `detail` says in our words why it failed; `expires_at` as in `SubmittedJob`."""

    phase: JobPhase
    ended_at: datetime | None = None
    expires_at: datetime | None = None
    detail: str | None = None


class SearchOutcome(StrEnum):
    """What looking for a job, whose submission got no answer, brought."""

    FOUND = "found"
    ABSENT = "absent"  # the provider has no such job: it may be submitted again
    UNDECIDED = "undecided"  # a job there may be ours, and cannot be told apart yet: look again later


@dataclass(frozen=True)
class JobSearch:
    """The outcome of a search; `job` where it was found."""

    outcome: SearchOutcome
    job: SubmittedJob | None = None


@dataclass(frozen=True)
class JobResult:
    """What became of one item: an answer, or a typed error with its fate."""

    custom_id: str
    answer: JudgeAnswer | None = field(default=None, repr=False)
    error: "JudgeError | None" = None


@runtime_checkable
class JobJudge(Judge, Protocol):
    """A judge whose provider takes many comparisons at once, and answers within hours at a discount."""

    @property
    def max_job_items(self) -> int:
        """Most comparisons that one job may hold."""
        ...

    @property
    def max_job_bytes(self) -> int:
        """Most bytes that one job's request may have, everything included."""
        ...

    async def submit_job(self, job_key: str, items: Sequence[JobItem]) -> SubmittedJob:
        """Submit a job, once: nothing is retried here, because a lost answer may hide an accepted job.

        Args:
            job_key: ours, unique for ever; travels with the job so that `find_job` can find it.
            items: non-empty; custom ids are unique and start with `custom_id_prefix(job_key)`.

        Raises:
            SubmissionUnknownError: the request may have reached the provider, and no answer came.
            JudgeError: the provider has not accepted the job.
        """
        ...

    async def find_job(self, job_key: str, *, items: int, since: datetime) -> JobSearch:
        """Look for a job whose submission got no answer.

        Args:
            job_key: as submitted.
            items: how many comparisons it held.
            since: when it was sent at the earliest (aware, UTC, our clock).

        Raises:
            JudgeError: the provider cannot be asked now.
        """
        ...

    async def poll_job(self, provider_job_id: str) -> JobStatus:
        """Where the job stands.

        Raises:
            JudgeError: the provider cannot be asked now.
        """
        ...

    def job_results(self, provider_job_id: str, items: Sequence[JobItem]) -> AsyncIterator[JobResult]:
        """The results of a job that is over, in any order, as the provider gives them: duplicates and unknown custom
        ids included. Items that the provider did not get to have an `ExpiredError` or a `CancelledError`, or none.

        Raises:
            JudgeError: the provider cannot be asked now.
        """
        ...

    async def cancel_job(self, provider_job_id: str) -> None:
        """Ask the provider to stop; what it has judged by then is still paid and still delivered.

        Raises:
            JudgeError: the provider cannot be asked now.
        """
        ...


def custom_id_prefix(job_key: str) -> str:
    """What the custom ids of a job's items start with."""
    return f"{job_key[:16]}-"
