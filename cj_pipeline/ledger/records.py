"""What goes into the ledger and comes out of it, as typed values. Texts and justifications never show in a repr."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from cj_pipeline.core.models import BatchKind, BatchStatus, EssayRole, PairMode, PlannedPair, Winner


@dataclass(frozen=True)
class NewAnchor:
    """An anchor to register with an assignment."""

    anchor_ref: str
    grade: str
    text_sha256: str
    text: str = field(repr=False)
    word_count: int


@dataclass(frozen=True)
class NewAssignment:
    """An assignment to register, anchors included."""

    assignment_id: str
    title: str
    language: str
    grade_scale: str
    grade_scale_definition: dict[str, Any] | None
    instructions: str = field(repr=False)
    system_prompt: str | None = field(repr=False)
    student_prompt: str = field(repr=False)
    judge_rubric: str = field(repr=False)
    anchors: tuple[NewAnchor, ...]


@dataclass(frozen=True)
class AssignmentRecord:
    """A revision of an assignment as registered."""

    assignment_id: str
    revision: int
    title: str
    language: str
    grade_scale: str
    grade_scale_definition: dict[str, Any] | None
    instructions: str = field(repr=False)
    system_prompt: str | None = field(repr=False)
    student_prompt: str = field(repr=False)
    judge_rubric: str = field(repr=False)
    content_sha256: str
    created_at: datetime


@dataclass(frozen=True)
class AnchorRecord:
    """An anchor of one revision of an assignment."""

    assignment_id: str
    revision: int
    anchor_ref: str
    grade: str
    text_sha256: str
    word_count: int


@dataclass(frozen=True)
class Registration:
    """What registering an assignment did."""

    assignment_id: str
    revision: int
    changed: bool
    anchors: int


@dataclass(frozen=True)
class NewEssay:
    """An essay of a batch to submit. An anchor's text is known already, by its hash."""

    essay_id: str
    role: EssayRole
    text_sha256: str
    known_grade: str | None = None
    quality: float | None = None
    injection_signs: tuple[str, ...] | None = None
    text: str | None = field(default=None, repr=False)
    word_count: int = 0


@dataclass(frozen=True)
class NewBatch:
    """A batch to submit: everything it will ever be judged with, fixed now.

    `anchor_bank` is a `core.anchor_bank.AnchorBank` as JSON; it is no part of what makes two requests the same, because
    the bank grows with every night.
    """

    batch_id: str
    kind: BatchKind
    assignment_id: str | None
    assignment_revision: int | None
    judge_profile: str
    provider: str
    model: str
    simulated: bool
    overrides: dict[str, Any]
    settings: dict[str, Any]
    total_budget: int
    code_version: str
    correlation_id: str
    essays: tuple[NewEssay, ...]
    anchor_bank: dict[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class BatchRecord:
    """A batch as the ledger has it. `lease_live` and `lease_seconds_left` are by the database's clock at reading."""

    batch_id: str
    kind: BatchKind
    assignment_id: str | None
    assignment_revision: int | None
    judge_profile: str
    provider: str
    model: str
    simulated: bool
    overrides: dict[str, Any]
    settings: dict[str, Any]
    total_budget: int | None
    status: BatchStatus
    stop_reason: str | None
    code_version: str
    correlation_id: str
    processing_metadata: dict[str, Any]
    lease_owner: str | None
    lease_epoch: int
    lease_live: bool
    hold_reason: str | None
    launch: int
    launched_at: datetime | None
    idle_launches: int
    not_before: datetime | None
    published_at: datetime | None
    published_as_of: int | None
    created_at: datetime
    completed_at: datetime | None
    anchor_bank: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def lease_abandoned(self) -> bool:
        """Whether the last holder neither renewed nor released its lease: it died, was stopped or lost the database."""
        return self.lease_owner is not None and not self.lease_live


@dataclass(frozen=True)
class WaveRecord:
    """A wave; what is decided at its end is None until then. Scores and SEs by essay id, in logits."""

    wave: int
    pair_mode: PairMode
    cut_by_budget: bool
    provider_rejected: bool
    cost_stopped: bool
    started_at: datetime
    ended_at: datetime | None
    callbacks: int | None
    max_score_change: float | None
    mean_se: float | None
    max_se: float | None
    scores: dict[str, float] | None
    ses: dict[str, float] | None
    decision: str | None
    reason: str | None


@dataclass(frozen=True)
class WavePlan:
    """A wave to record: its pairs in order, each under the comparison id at the same position."""

    wave: int
    pair_mode: PairMode
    cut_by_budget: bool
    pairs: tuple[PlannedPair, ...]

    def comparison_id(self, index: int) -> str:
        """The id of the pair at `index` (from 0): sorts in the order of planning within a batch."""
        return f"w{self.wave:05d}-c{index + 1:05d}"


@dataclass(frozen=True)
class WaveEnd:
    """What is known and decided at the end of a wave."""

    wave: int
    callbacks: int
    max_score_change: float | None
    mean_se: float | None
    max_se: float | None
    scores: dict[str, float]
    ses: dict[str, float]
    decision: str
    reason: str
    status: BatchStatus | None
    metadata: dict[str, Any]


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of one call; None where the provider said nothing."""

    input: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None
    output: int | None = None
    reasoning: int | None = None


@dataclass(frozen=True)
class AttemptStart:
    """A call about to be made."""

    comparison_id: str
    number: int
    provider: str
    model: str
    prompt_sha256: str
    fence_marker: str | None
    queued_at: datetime
    bundle_id: str | None
    upper_bound_usd: float | None


@dataclass(frozen=True)
class AttemptEnd:
    """How a call ended: with a winner, or with an error type.

    `final` fails the comparison with it. `made` is false for a call that never reached the judge, although it was
    recorded: it counts as unsent, not as an attempt.
    """

    attempt_id: int
    comparison_id: str
    winner: Winner | None
    confidence: int | None = None
    justification: str | None = field(default=None, repr=False)
    error_type: str | None = None
    error_detail: str | None = None
    final: bool = False
    made: bool = True
    http_status: int | None = None
    request_id: str | None = None
    tokens: TokenCounts = TokenCounts()
    latency_seconds: float | None = None
    cost_usd: float | None = None


class JobState(StrEnum):
    """Where a provider batch job stands in the ledger. All but the first two are closed."""

    SUBMITTING = "submitting"  # about to be sent, or sent without an answer
    SUBMITTED = "submitted"  # accepted by the provider
    COMPLETED = "completed"  # results taken
    EXPIRED = "expired"  # results taken of what the provider got to
    CANCELLED = "cancelled"  # results taken of what was judged by then
    FAILED = "failed"  # refused by the provider as a whole
    ABSENT = "absent"  # sent without an answer, and not found at the provider
    ABANDONED = "abandoned"  # its batch ended without waiting for it

    @property
    def is_out(self) -> bool:
        """Whether results may still come."""
        return self in (JobState.SUBMITTING, JobState.SUBMITTED)


@dataclass(frozen=True)
class NewJob:
    """A provider batch job about to be submitted, with the calls it stands for."""

    job_key: str
    wave: int
    provider: str
    model: str
    starts: "tuple[AttemptStart, ...]"


@dataclass(frozen=True)
class JobRecord:
    """A provider batch job as the ledger has it."""

    job_key: str
    batch_id: str
    wave: int
    provider: str
    model: str
    items: int
    status: JobState
    provider_job_id: str | None
    detail: str | None
    created_at: datetime
    submitted_at: datetime | None
    expires_at: datetime | None
    ended_at: datetime | None
    closed_at: datetime | None


@dataclass(frozen=True)
class OrphanResult:
    """A result that belongs to no call that waits for it."""

    comparison_id: str
    reason: str
    winner: str | None = None
    confidence: int | None = None
    error_type: str | None = None
    request_id: str | None = None
    tokens_input: int | None = None
    tokens_output: int | None = None
    cost_usd: float | None = None


@dataclass(frozen=True)
class AttemptRecord:
    """A call as the ledger has it."""

    attempt_id: int
    comparison_id: str
    number: int
    bundle_id: str | None
    provider: str
    model: str
    prompt_sha256: str
    fence_marker: str | None
    queued_at: datetime
    sent_at: datetime
    finished_at: datetime | None
    outcome: str | None
    error_type: str | None
    error_detail: str | None
    http_status: int | None
    request_id: str | None
    tokens_input: int | None
    tokens_cache_read: int | None
    tokens_cache_write: int | None
    tokens_output: int | None
    tokens_reasoning: int | None
    latency_seconds: float | None
    upper_bound_usd: float | None
    cost_usd: float | None


@dataclass(frozen=True)
class ComparisonRecord:
    """A comparison with what its attempts amounted to (tokens and cost over all of them)."""

    comparison_id: str
    wave: int
    essay_a: str
    essay_b: str
    pair_mode: str
    status: str
    winner: str | None
    confidence: int | None
    justification: str | None = field(repr=False)
    error_type: str | None
    provider: str | None
    model: str | None
    prompt_sha256: str | None
    tokens_in: int
    tokens_out: int
    cost_usd: float | None
    submitted_at: datetime | None
    completed_at: datetime | None
    attempts: int
    lost_attempts: int
    failed_attempts: int
