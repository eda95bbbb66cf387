"""The seam between the workflow and whoever judges: requests in, answers or typed errors out.

One call judges one comparison. The workflow owns concurrency, attempts, bundles and the record; a judge owns its
transport and its prompt's wire form. Errors are in `judges.errors`.
"""

from dataclasses import dataclass, field
from typing import Final, Protocol

from pydantic import Field

from cj_pipeline.core.models import Value, Winner

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

    def upper_bound_usd(self, prompt: ComparisonPrompt) -> float | None:
        """The most one call with this prompt can cost, in US dollars; None if no price is known."""
        ...

    async def judge(self, request: JudgeRequest) -> JudgeAnswer:
        """Judge one comparison.

        Raises:
            JudgeError: typed, with its fate. Cancellation propagates.
        """
        ...

    async def aclose(self) -> None:
        """Release connections."""
        ...
