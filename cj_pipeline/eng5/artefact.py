"""The run artefact: what a run was given, what was judged, what came of it, and how anyone can check that.

Here: the form of `assessment_run.<mode>.json` as pydantic models, and its JSON Schema, which is published as
`docs/schemas/eng5_assessment_run.schema.json`. Not here: how an artefact is made from a batch (`artefact_building`)
and checked against files and ledger (`artefact_verification`).

An artefact holds no essay text. Its justifications may quote essays: it may be kept where the graph is, and must not
reach logs or metadata.
"""

import json
from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AwareDatetime, Field, JsonValue, StringConstraints, model_validator

from cj_pipeline.core.anchor_bank import AnchorBank
from cj_pipeline.core.models import BatchId, BatchKind, BatchStatus, ComparisonStatus, PairMode, Value, Winner

SCHEMA_VERSION: Final = "1.0"
SCHEMA_PATH: Final = "docs/schemas/eng5_assessment_run.schema.json"
"""Where the schema is published, from the repository's root."""

MANIFEST_PATTERN: Final = (
    r"^(requests|events/(comparisons|assessment_results|completions))/[A-Za-z0-9][A-Za-z0-9_-]*\.json$"
)

Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
GitSha = Annotated[str, StringConstraints(pattern="^[0-9a-f]{40}(-dirty)?$")]
EssayId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=160)]
ManifestPath = Annotated[str, StringConstraints(pattern=MANIFEST_PATTERN)]
Count = Annotated[int, Field(ge=0)]
Real = Annotated[float, Field(allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RunMode(StrEnum):
    """The modes that write an artefact."""

    DRY_RUN = "dry-run"
    EXECUTE = "execute"
    ANCHOR_ALIGN_TEST = "anchor-align-test"


# --- what the run was --------------------------------------------------------------------------------------------


class JudgeFacts(Value):
    """Who judged."""

    profile: str = Field(description="the judge configuration")
    provider: str
    model: str
    simulated: bool = Field(description="no real judge was asked: the numbers say nothing about pupils")


class RunMetadata(Value):
    """What was run, when, and by which version of the program."""

    mode: RunMode
    batch_id: BatchId
    kind: BatchKind
    correlation_id: str = Field(description="ties log lines, runs and records of the batch together")
    assignment_id: str | None
    assignment_revision: int | None
    grade_scale: str = Field(description="name of the scale that expert grades and projections are on")
    grade_scale_definition: dict[str, JsonValue] | None = Field(description="the scale, if it is not built in")
    runner_version: str = Field(description="version of this program that wrote the artefact")
    judged_by_version: str = Field(description="version of this program that the batch was submitted to")
    git_sha: GitSha | None = Field(description="commit of the program's working tree; null outside of one")
    generated_at: AwareDatetime
    created_at: AwareDatetime = Field(description="submission")
    completed_at: AwareDatetime | None = Field(description="final decision")
    status: BatchStatus
    stop_reason: str | None
    total_budget: int | None = Field(description="comparisons the batch may ever submit")
    judge: JudgeFacts
    judge_overrides: dict[str, JsonValue] = Field(description="what the batch brought along, by setting")
    settings: dict[str, JsonValue] = Field(description="the settings in force for the batch")


# --- what went in ------------------------------------------------------------------------------------------------


class InputFile(Value):
    """A file of the assets folder."""

    path: str = Field(description="from the assets folder on, with forward slashes")
    sha256: Sha256 = Field(description="of the file's bytes")


class InputText(InputFile):
    """A document of the assets folder."""

    bytes: Count
    text_sha256: Sha256 = Field(description="of its text in normal form, as the ledger knows it")
    word_count: Count


class InputEssay(InputText):
    """An essay of the assets folder."""

    essay_id: EssayId | None = Field(description="its id in the batch; null if it took no part")


class InputStudent(InputEssay):
    """A student essay of the assets folder."""

    student_id: EssayId


class InputAnchor(InputEssay):
    """An anchor of the assets folder, with its expert grade."""

    anchor_id: EssayId
    grade: str


class JudgePrompts(Value):
    """SHA-256 of each part of the prompt besides the essays, in normal form; null where the judge was given none."""

    system_prompt: Sha256
    instructions: Sha256 | None
    student_prompt: Sha256 | None
    rubric: Sha256 | None


class RunInputs(Value):
    """The assets folder as it was when the artefact was written, and what the judge was told."""

    instructions: InputText
    judge_prompt: InputText
    grade_table: InputFile
    anchors: tuple[InputAnchor, ...]
    students: tuple[InputStudent, ...]
    prompts: JudgePrompts
    anchor_bank: AnchorBank | None = Field(
        None, description="where earlier nights placed the anchors, as the batch was submitted with it; null: no bank"
    )


# --- what came of it ---------------------------------------------------------------------------------------------


class ComparisonOutcome(Value):
    """A comparison with its judgment, or how it failed. Tokens and cost are over all its calls."""

    sequence: int = Field(ge=1, description="place in the order of planning, from 1, without withdrawn comparisons")
    comparison_id: str = Field(pattern="^[A-Za-z0-9][A-Za-z0-9_-]*$")
    wave: int = Field(ge=1)
    pair_mode: PairMode
    essay_a: EssayId = Field(description="read first")
    essay_b: EssayId = Field(description="read second")
    status: Literal[ComparisonStatus.PLANNED, ComparisonStatus.JUDGED, ComparisonStatus.FAILED]
    winner: Winner | None
    winner_id: EssayId | None
    loser_id: EssayId | None
    confidence: int | None = Field(ge=1, le=5)
    justification: str | None = Field(repr=False, description="the judge's reason; may quote the essays")
    error_type: str | None = Field(description="of the last failed call of a failed comparison")
    provider: str | None
    model: str | None
    prompt_sha256: Sha256 | None = Field(description="of what the judge read, apart from the random marker")
    tokens_in: Count
    tokens_out: Count
    cost_usd: Usd | None = Field(description="null if a price is unknown")
    attempts: Count = Field(description="calls, lost and failed ones included")
    started_at: AwareDatetime | None = Field(description="first call")
    completed_at: AwareDatetime | None = Field(description="outcome recorded")
    grade_scale: str

    @model_validator(mode="after")
    def _tells_one_story(self) -> Self:
        pair = {Winner.A: (self.essay_a, self.essay_b), Winner.B: (self.essay_b, self.essay_a)}
        expected = (None, None) if self.winner is None else pair[self.winner]
        if (self.winner_id, self.loser_id) != expected:
            raise ValueError(f"comparison {self.comparison_id}: winner, winner_id and loser_id contradict each other")
        if (self.winner is not None) != (self.status is ComparisonStatus.JUDGED):
            raise ValueError(f"comparison {self.comparison_id}: a judged comparison has a winner, any other has none")
        if self.winner is not None and self.prompt_sha256 is None:
            raise ValueError(f"comparison {self.comparison_id}: missing prompt hash, although it was judged")
        return self


class GradeOutcome(Value):
    """The projected grade of an essay, or the reason there is none. An anchor's is projected without itself."""

    available: bool
    reason: str | None
    grade: str | None = Field(description="as projected, see docs/statistics.md")
    confidence: Probability | None = Field(description="probability of the grade")
    label: str | None = Field(description="HIGH, MID or LOW confidence")
    boundary_distance_se: Real | None = Field(description="distance to the nearest grade boundary, in SEs")
    nearest_boundary: str | None = Field(description="the boundary, as lower|upper grade")
    probabilities: dict[str, Probability] = Field(description="of every grade of the scale, low to high")


class PromptReference(Value):
    """The task that the students were given."""

    storage_id: Sha256 = Field(description="SHA-256 of the prompt's text in normal form")


class EssayOutcome(Value):
    """An essay of the batch, without its text."""

    essay_id: EssayId
    is_anchor: bool = Field(description="whether it tied the scale to grades in this batch")
    anchor_grade: str | None = Field(description="the expert grade, if it has one")
    text_sha256: Sha256
    word_count: Count
    grade_projection: GradeOutcome
    student_prompt_ref: PromptReference | None = Field(description="null if the judge was shown no student prompt")


class RunResults(Value):
    """Comparisons in the order of planning, and essays by id. `llm_comparisons` is the same list by its older name."""

    comparisons: tuple[ComparisonOutcome, ...]
    llm_comparisons: tuple[ComparisonOutcome, ...]
    essays: tuple[EssayOutcome, ...]

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        _refuse_repeats("comparison", (comparison.comparison_id for comparison in self.comparisons))
        _refuse_repeats("essay", (essay.essay_id for essay in self.essays))
        if self.llm_comparisons != self.comparisons:
            raise ValueError(f"llm_comparisons is not the same list as comparisons: {self._first_difference()}")
        if [comparison.sequence for comparison in self.comparisons] != list(range(1, len(self.comparisons) + 1)):
            raise ValueError("the sequence of comparisons is not 1, 2, 3, ...")
        known = {essay.essay_id for essay in self.essays}
        for comparison in self.comparisons:
            if not known >= {comparison.essay_a, comparison.essay_b}:
                raise ValueError(f"comparison {comparison.comparison_id} names an essay that is not among the essays")
        return self

    def _first_difference(self) -> str:
        for one, other in zip(self.comparisons, self.llm_comparisons, strict=False):
            if one != other:
                fields = [name for name in ComparisonOutcome.model_fields if getattr(one, name) != getattr(other, name)]
                return f"they differ in {', '.join(fields)} of comparison {one.comparison_id}"
        return f"they have {len(self.comparisons)} and {len(self.llm_comparisons)} comparisons"


class ScaleRow(Value):
    """An essay's place on the Bradley-Terry scale. Scores and standard errors are in logits."""

    essay_id: EssayId
    rank: int = Field(ge=1, description="1 is best")
    score: Real = Field(description="scores of a batch sum to zero")
    se: Real = Field(ge=0, description="standard error as estimated, not capped")
    se_capped: Real = Field(ge=0, description="as batch reports show it, capped at BT_STANDARD_ERROR_MAX")
    se_prior_free: Real | None = Field(description="from the judgments alone; null: they say nothing")
    comparisons: Count = Field(description="judged comparisons of the essay")
    wins: Count
    losses: Count
    component: int = Field(description="connected part of the comparison graph; scores compare within one")
    is_anchor: bool
    anchor_grade: str | None


class SeScope(Value):
    """How certain the scale is over a group of essays; see `core.diagnostics.bt_se_summary`. Logits."""

    mean_se: Real | None
    max_se: Real | None
    min_se: Real | None
    item_count: Count
    comparison_count: Count
    items_at_cap: Count
    isolated_items: Count
    mean_comparisons_per_item: Real | None
    min_comparisons_per_item: Count | None
    max_comparisons_per_item: Count | None


class QualityFlags(Value):
    """What deserves a look; flags change no decision."""

    bt_se_inflated: bool
    comparison_coverage_sparse: bool
    has_isolated_items: bool


class Diagnostics(Value):
    """Gauges of the batch."""

    bt_se_summary: dict[Literal["all", "anchors", "students"], SeScope]
    bt_quality_flags: QualityFlags


class TokenCount(Value):
    """What all calls to one model used. Input is what was neither read from nor written to the cache."""

    provider: str
    model: str
    calls: Count
    input: Count
    cache_read: Count
    cache_write: Count
    output: Count = Field(description="reasoning included")
    reasoning: Count
    cost_usd: Usd | None = Field(description="null if a price is unknown")


class RunCosts(Value):
    """What the run cost, in US dollars and tokens."""

    total_usd: Usd | None = Field(description="over all calls, late answers included; null if a price is unknown")
    max_cost_usd: Usd | None = Field(description="what the batch was allowed to cost; null: no limit")
    token_counts: tuple[TokenCount, ...] = Field(description="one per provider and model")


# --- how it can be checked ---------------------------------------------------------------------------------------


class FileDigest(Value):
    """A file's SHA-256 and size."""

    sha256: Sha256
    bytes: Count


class RunEnvironment(Value):
    """What the artefact was made with. `packages` are those that numbers depend on."""

    python: str
    platform: str
    packages: dict[str, str]


class ObservedCounts(Value):
    """What had been observed when the artefact was written."""

    students: Count
    anchors: Count
    submitted: Count = Field(description="comparisons planned and not withdrawn")
    judged: Count
    failed: Count
    pending: Count
    attempts: Count = Field(description="calls to the judge, lost and failed ones included")
    lost_attempts: Count
    orphan_results: Count = Field(description="answers that came late, twice or to no call, and changed nothing")
    grade_projections: Count = Field(description="essays with a projected grade")
    completions: int = Field(ge=0, le=1)


class RunnerStatus(Value):
    """Whether the run was seen to its end."""

    partial_data: bool = Field(description="the batch had not ended when the artefact was written")
    timeout: bool = Field(description="the runner stopped waiting for it")
    observed: ObservedCounts


class RunValidation(Value):
    """The manifest maps every file under requests/ and events/, from the batch's folder on, to its digest."""

    # said to pydantic already, by the keys' type, but not by the schema it writes
    manifest: dict[ManifestPath, FileDigest] = Field(json_schema_extra={"additionalProperties": False})
    environment: RunEnvironment
    runner_status: RunnerStatus


class RunArtefact(Value):
    """All of a run in one document."""

    schema_version: Literal["1.0"]
    metadata: RunMetadata
    inputs: RunInputs
    results: RunResults
    bt_summary: tuple[ScaleRow, ...] = Field(description="best first")
    diagnostics: Diagnostics
    costs: RunCosts
    validation: RunValidation

    @model_validator(mode="after")
    def _scale_holds_the_essays(self) -> Self:
        _refuse_repeats("essay", (row.essay_id for row in self.bt_summary))
        if {row.essay_id for row in self.bt_summary} != {essay.essay_id for essay in self.results.essays}:
            raise ValueError("bt_summary and results.essays name different essays")
        return self


def _refuse_repeats(noun: str, ids: Iterable[str]) -> None:
    repeated = sorted(identifier for identifier, count in Counter(ids).items() if count > 1)
    if repeated:
        raise ValueError(f"{noun} {', '.join(repeated[:5])} is there more than once")


def artefact_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of an artefact as it is written."""
    schema = RunArtefact.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_text() -> str:
    """The text of the published file."""
    return json.dumps(artefact_schema(), indent=2, ensure_ascii=False) + "\n"
