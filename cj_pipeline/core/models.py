"""The nouns of comparative judgement as typed values: essays, comparisons, judgments, batch state and their enums.

Values only: no behaviour beyond what follows from the fields. What the ledger stores about a batch and what the
statistics compute from it meet in these classes.
"""

import re
from enum import StrEnum
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from cj_pipeline.core.errors import InputError

BATCH_ID_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
ESSAY_ID_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$"
MAX_ESSAY_CHARACTERS: Final = 50_000

BatchId = Annotated[str, StringConstraints(pattern=BATCH_ID_PATTERN)]


def check_batch_id(value: str) -> str:
    """Return `value` if it may name a batch (and so a partition and a file), else raise `InputError`."""
    # \Z, not $: a trailing newline must not pass
    if not re.match(BATCH_ID_PATTERN[:-1] + r"\Z", value):
        raise InputError(
            f"batch id {value[:80]!r} is not usable: 1 to 64 letters, digits, '_' or '-', "
            "starting with a letter or digit"
        )
    return value


class BatchKind(StrEnum):
    """What a batch is for."""

    ASSESSMENT = "assessment"
    ANCHOR_ALIGN = "anchor_align"
    CALIBRATION = "calibration"


class EssayRole(StrEnum):
    """How an essay takes part in a batch."""

    STUDENT = "student"
    ANCHOR = "anchor"


class BatchStatus(StrEnum):
    """Where a batch stands. Everything but SUBMITTED and JUDGING is final."""

    SUBMITTED = "SUBMITTED"
    JUDGING = "JUDGING"
    COMPLETE_STABLE = "COMPLETE_STABLE"
    COMPLETE_MAX_COMPARISONS = "COMPLETE_MAX_COMPARISONS"
    COMPLETE_SMALL_NET = "COMPLETE_SMALL_NET"
    COMPLETE_FORCED_RECOVERY = "COMPLETE_FORCED_RECOVERY"
    COMPLETE_INSUFFICIENT_ESSAYS = "COMPLETE_INSUFFICIENT_ESSAYS"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """Whether no further judgment will be bought for the batch."""
        return self not in (BatchStatus.SUBMITTED, BatchStatus.JUDGING)

    @property
    def has_grades(self) -> bool:
        """Whether the batch ended with a scale that grades can be read from."""
        return self in (
            BatchStatus.COMPLETE_STABLE,
            BatchStatus.COMPLETE_MAX_COMPARISONS,
            BatchStatus.COMPLETE_SMALL_NET,
            BatchStatus.COMPLETE_FORCED_RECOVERY,
        )


class PairMode(StrEnum):
    """Why a pair was chosen: to see it for the first time, or to judge it again."""

    COVERAGE = "coverage"
    RESAMPLING = "resampling"


class PairDesign(StrEnum):
    """How the pairs of a wave are chosen; see `cj_pipeline.core.designs`."""

    COVERAGE = "coverage"
    RANDOM = "random"
    BALANCED = "balanced"
    ADAPTIVE = "adaptive"
    CALIBRATED = "calibrated"

    @property
    def needs_bank(self) -> bool:
        """Whether it pairs by anchors that an anchor bank has placed, and cannot plan without."""
        return self is PairDesign.CALIBRATED


class BatchingMode(StrEnum):
    """How a batch's comparisons travel to the judge."""

    PER_REQUEST = "per_request"
    SERIAL_BUNDLE = "serial_bundle"
    PROVIDER_BATCH_API = "provider_batch_api"


class BatchApiMode(StrEnum):
    """When a provider batch job may be submitted."""

    DISABLED = "disabled"
    NIGHTLY = "nightly"
    OPPORTUNISTIC = "opportunistic"


class StopRule(StrEnum):
    """What ends a batch before its budget does: scores that stand still, or grades that are known well enough."""

    STABILITY = "stability"
    PRECISION = "precision"


class ComparisonStatus(StrEnum):
    """Where a comparison stands. `WITHDRAWN` ones were never sent and count towards nothing."""

    PLANNED = "planned"
    JUDGED = "judged"
    FAILED = "failed"
    WITHDRAWN = "withdrawn"


class AttemptOutcome(StrEnum):
    """How one call to the judge ended.

    `LOST`: its process died or lost the lease before the answer was recorded. `UNSENT`: it was recorded with a provider
    batch job that the provider did not accept, and never reached the judge.
    """

    JUDGED = "judged"
    ERROR = "error"
    LOST = "lost"
    UNSENT = "unsent"


class Winner(StrEnum):
    """The judge's answer, by position."""

    A = "a"
    B = "b"


class Value(BaseModel):
    """Base of the frozen values below: equal by content, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Essay(Value):
    """An essay as a batch holds it. The text itself lives in the ledger, found by `text_sha256`.

    `quality` is the truth a simulated judge goes by, in grade steps; real batches have none.
    """

    essay_id: str
    role: EssayRole
    known_grade: str | None = None
    text_sha256: str
    word_count: int = Field(ge=0)
    quality: float | None = None

    @property
    def is_anchor(self) -> bool:
        """Whether the essay has an expert grade and ties the scale to grades."""
        return self.role is EssayRole.ANCHOR


class PlannedPair(Value):
    """An ordered pair chosen for judging: `essay_a` is read first."""

    essay_a: str
    essay_b: str
    pair_mode: PairMode


class Comparison(Value):
    """A planned comparison and, once judged, its outcome. `comparison_id` sorts in the order of planning."""

    comparison_id: str
    wave: int = Field(ge=1)
    essay_a: str
    essay_b: str
    pair_mode: PairMode
    status: ComparisonStatus
    winner: Winner | None = None
    confidence: int | None = Field(default=None, ge=1, le=5)

    @property
    def winner_id(self) -> str | None:
        """The essay that won, if the comparison was judged."""
        if self.winner is None:
            return None
        return self.essay_a if self.winner is Winner.A else self.essay_b

    @property
    def loser_id(self) -> str | None:
        """The essay that lost, if the comparison was judged."""
        if self.winner is None:
            return None
        return self.essay_b if self.winner is Winner.A else self.essay_a


class BatchState(Value):
    """Everything the continuation decision looks at, read from the ledger in one snapshot.

    Counts are comparisons, not attempts. `submitted` = planned and not withdrawn; `pending` = of those, without
    an outcome. `total_budget` may be missing in a defective batch: see `completion.completion_denominator`.
    `provider_rejected` and `cost_spent` say that the last wave was stopped: the judge refused for good, or the next
    call could have exceeded the batch's `max_cost_usd`.
    """

    batch_id: str
    node_count: int = Field(ge=0)
    total_budget: int | None
    submitted: int = Field(ge=0)
    judged: int = Field(ge=0)
    failed: int = Field(ge=0)
    pending: int = Field(ge=0)
    max_possible_pairs: int = Field(ge=0)
    successful_pairs: int = Field(ge=0)
    resampling_passes: int = Field(ge=0)
    wave_cut_by_budget: bool = False
    max_score_change: float | None = None
    provider_rejected: bool = False
    cost_spent: bool = False

    @property
    def callbacks(self) -> int:
        """Comparisons with an outcome: judged or failed."""
        return self.judged + self.failed

    @property
    def success_rate(self) -> float | None:
        """Judged share of the comparisons with an outcome; None before the first outcome."""
        return self.judged / self.callbacks if self.callbacks else None

    @property
    def unique_coverage_complete(self) -> bool:
        """Whether every unordered pair has at least one successful judgment."""
        return self.max_possible_pairs > 0 and self.successful_pairs >= self.max_possible_pairs
