"""The tables results are told in: one schema each, used by the lake, the DuckDB graph, checks and pictures.

A column's dtype and meaning are written here once. How the rows come about is in `workflow.results`.
"""

from dataclasses import dataclass
from typing import Any, Final

import polars as pl
from polars.datatypes import DataType, DataTypeClass

ColumnType = DataType | DataTypeClass
UTC: Final = pl.Datetime("us", "UTC")
PROBABILITIES: Final = pl.List(pl.Struct({"grade": pl.String, "probability": pl.Float64}))


@dataclass(frozen=True)
class Column:
    """A column: its name, polars dtype, meaning, and whether it may be null."""

    name: str
    dtype: ColumnType
    description: str
    nullable: bool = False


@dataclass(frozen=True)
class Table:
    """A table of results."""

    name: str
    description: str
    columns: tuple[Column, ...]

    @property
    def schema(self) -> dict[str, ColumnType]:
        """Column name to polars dtype, in order."""
        return {column.name: column.dtype for column in self.columns}

    def frame(self, rows: list[dict[str, Any]]) -> pl.DataFrame:
        """The rows as a typed frame with exactly this table's columns (empty rows give an empty, typed frame)."""
        return pl.DataFrame(rows, schema=self.schema, orient="row")


_BATCH_ID = Column("batch_id", pl.String, "the batch, which is also the Dagster partition")
_ESSAY_ID = Column("essay_id", pl.String, "the essay; anchors have synthetic ids ANCHOR_{ref}_{hash}")
_IS_ANCHOR = Column("is_anchor", pl.Boolean, "true for an essay with an expert grade")
_KNOWN_GRADE = Column("known_grade", pl.String, "the expert grade of an anchor", nullable=True)

BATCHES = Table(
    "batches",
    "one row per batch: what it was, how it stopped, what it cost",
    (
        _BATCH_ID,
        Column("assignment_id", pl.String, "the writing task", nullable=True),
        Column("kind", pl.String, "assessment, anchor_align or calibration"),
        Column("status", pl.String, "SUBMITTED, JUDGING or how it ended"),
        Column("stop_reason", pl.String, "why it stopped, or null while it goes on", nullable=True),
        Column("grade_scale", pl.String, "the grade scale", nullable=True),
        Column("total_budget", pl.Int64, "comparisons the batch may ever submit"),
        Column("submitted", pl.Int64, "comparisons planned and not withdrawn"),
        Column("judged", pl.Int64, "comparisons with a judgment"),
        Column("failed", pl.Int64, "comparisons that ended without one"),
        Column("attempts", pl.Int64, "calls to the judge, lost and failed ones included"),
        Column("lost_attempts", pl.Int64, "calls whose answer was never recorded"),
        Column("judge_profile", pl.String, "the judge configuration"),
        Column("provider", pl.String, "who judged"),
        Column("model", pl.String, "the judge's model"),
        Column("simulated", pl.Boolean, "true if no real judge was asked: the numbers say nothing about pupils"),
        Column("cost_usd", pl.Float64, "US dollars over all attempts; null if a price is unknown", nullable=True),
        Column("max_cost_usd", pl.Float64, "US dollars the batch may cost; null: no limit", nullable=True),
        Column("batching_mode", pl.String, "per_request, serial_bundle or provider_batch_api"),
        Column("orphan_results", pl.Int64, "answers that came late, twice or to no call, and changed nothing"),
        Column("injection_flagged", pl.Int64, "essays that look as if they address the judge"),
        Column("correlation_id", pl.String, "ties log lines, runs and records of the batch together"),
        Column("code_version", pl.String, "version of this program that judged"),
        Column("settings_json", pl.String, "the settings in force for the batch, as JSON"),
        Column("created_at", UTC, "submission, UTC"),
        Column("completed_at", UTC, "final decision, UTC", nullable=True),
        Column("as_of", pl.Int64, "judgments this publication is based on"),
    ),
)
ESSAYS = Table(
    "essays",
    "the nodes: one row per essay in a batch, without its text",
    (
        _BATCH_ID,
        _ESSAY_ID,
        _IS_ANCHOR,
        _KNOWN_GRADE,
        Column("text_sha256", pl.String, "SHA-256 of the text, which stays in the ledger"),
        Column("word_count", pl.Int64, "words"),
        Column(
            "injection_signs",
            pl.String,
            "signs that the text addresses the judge, comma separated; '' for none, null if never examined (anchors)",
            nullable=True,
        ),
    ),
)
PAIRS = Table(
    "pair_waves",
    "the plan: one row per comparison, in the order of planning",
    (
        _BATCH_ID,
        Column("wave", pl.Int64, "the wave, from 1"),
        Column("comparison_id", pl.String, "unique in the batch; sorts in the order of planning"),
        Column("essay_a", pl.String, "read first"),
        Column("essay_b", pl.String, "read second"),
        Column("pair_mode", pl.String, "coverage (first sight of the pair) or resampling"),
        Column("status", pl.String, "planned, judged, failed or withdrawn"),
    ),
)
COMPARISONS = Table(
    "comparisons",
    "the edges: one row per comparison with its judgment, or how it failed",
    (
        _BATCH_ID,
        Column("wave", pl.Int64, "the wave, from 1"),
        Column("comparison_id", pl.String, "unique in the batch; sorts in the order of planning"),
        Column("essay_a", pl.String, "read first"),
        Column("essay_b", pl.String, "read second"),
        Column("winner", pl.String, "a, b, or null if it was not judged", nullable=True),
        Column("winner_id", pl.String, "the essay that won", nullable=True),
        Column("loser_id", pl.String, "the essay that lost", nullable=True),
        Column("confidence", pl.Int64, "the judge's confidence, 1 to 5", nullable=True),
        Column("justification", pl.String, "the judge's reason; may quote the essays", nullable=True),
        Column(
            "justification_over_cap",
            pl.Boolean,
            "whether it is longer than the prompt allows; it is kept whole",
            nullable=True,
        ),
        Column("status", pl.String, "planned, judged, failed or withdrawn"),
        Column("error_type", pl.String, "of the last failed attempt of a failed comparison", nullable=True),
        Column("provider", pl.String, "who judged", nullable=True),
        Column("model", pl.String, "the judge's model", nullable=True),
        Column("prompt_sha256", pl.String, "SHA-256 of what the judge read", nullable=True),
        Column("tokens_in", pl.Int64, "input tokens over all attempts"),
        Column("tokens_out", pl.Int64, "output tokens over all attempts"),
        Column("cost_usd", pl.Float64, "US dollars over all attempts; null if unknown", nullable=True),
        Column("submitted_at", UTC, "first call, UTC", nullable=True),
        Column("completed_at", UTC, "outcome recorded, UTC", nullable=True),
        Column("attempts", pl.Int64, "calls, lost and failed ones included"),
        Column("pair_mode", pl.String, "coverage or resampling"),
    ),
)
ATTEMPTS = Table(
    "attempts",
    "the calls: one row per call to the judge, with how it ended and what it cost",
    (
        _BATCH_ID,
        Column("attempt_id", pl.Int64, "unique in the ledger; in the order of recording"),
        Column("comparison_id", pl.String, "the comparison it was made for"),
        Column("wave", pl.Int64, "the comparison's wave"),
        Column("number", pl.Int64, "the comparison's attempt, from 1; lost calls do not count"),
        Column("bundle_id", pl.String, "the bundle or provider batch job it travelled in", nullable=True),
        Column("provider", pl.String, "who was asked"),
        Column("model", pl.String, "the model that was asked"),
        Column("prompt_sha256", pl.String, "SHA-256 of what the judge read, apart from the random marker"),
        Column("outcome", pl.String, "judged, error, lost, unsent, or null while it is open", nullable=True),
        Column("error_type", pl.String, "what went wrong", nullable=True),
        Column("http_status", pl.Int64, "the provider's status code", nullable=True),
        Column("request_id", pl.String, "the provider's id of the call", nullable=True),
        Column("tokens_input", pl.Int64, "input tokens neither read from nor written to the cache", nullable=True),
        Column("tokens_cache_read", pl.Int64, "input tokens read from the provider's cache", nullable=True),
        Column("tokens_cache_write", pl.Int64, "input tokens written to the provider's cache", nullable=True),
        Column("tokens_output", pl.Int64, "output tokens, reasoning included", nullable=True),
        Column("tokens_reasoning", pl.Int64, "of those, reasoning", nullable=True),
        Column("cost_usd", pl.Float64, "US dollars; of a lost call its upper bound; null if unknown", nullable=True),
        Column("queued_at", UTC, "ready to be sent, UTC"),
        Column("sent_at", UTC, "recorded as sent, UTC"),
        Column("finished_at", UTC, "outcome recorded, UTC", nullable=True),
        Column("latency_seconds", pl.Float64, "from sending to the answer", nullable=True),
    ),
)
_FROM_JUSTIFICATIONS: Final = ("justification", "justification_over_cap")
JUDGMENTS = Table(
    "llm_judgments",
    "the comparisons as the lake keeps them: without justifications, which may quote the essays",
    tuple(column for column in COMPARISONS.columns if column.name not in _FROM_JUSTIFICATIONS),
)
BT_SCORES = Table(
    "bt_scores",
    "the scale: one row per essay, best first",
    (
        _BATCH_ID,
        _ESSAY_ID,
        _IS_ANCHOR,
        _KNOWN_GRADE,
        Column("rank", pl.Int64, "1 is best"),
        Column("score", pl.Float64, "Bradley–Terry score in logits; scores of a batch sum to zero"),
        Column("se", pl.Float64, "standard error in logits, capped at BT_STANDARD_ERROR_MAX"),
        Column("se_uncapped", pl.Float64, "standard error in logits as estimated"),
        Column("score_low", pl.Float64, "lower end of the score's 95 % posterior interval, logits", nullable=True),
        Column("score_high", pl.Float64, "its upper end; on wide scales the score is not in the middle", nullable=True),
        Column("se_prior_free", pl.Float64, "SE in logits from the judgments alone; null: none at all", nullable=True),
        Column("comparisons", pl.Int64, "judged comparisons of the essay"),
        Column("wins", pl.Int64, "of those, won"),
        Column("losses", pl.Int64, "of those, lost"),
        Column("component", pl.Int64, "connected part of the comparison graph; scores compare within one"),
        Column("prior_sd", pl.Float64, "fitted width of the scores' prior, logits: one number per batch"),
        Column("simulated", pl.Boolean, "true if judgments behind the score were simulated"),
    ),
)
WAVES = Table(
    "waves",
    "the history: one row per wave, with what was decided at its end",
    (
        _BATCH_ID,
        Column("wave", pl.Int64, "from 1"),
        Column("pair_mode", pl.String, "coverage or resampling"),
        Column("planned", pl.Int64, "comparisons planned and not withdrawn"),
        Column("judged", pl.Int64, "of those, judged"),
        Column("failed", pl.Int64, "of those, failed"),
        Column("callbacks", pl.Int64, "comparisons of the batch with an outcome at the wave's end", nullable=True),
        Column("max_score_change", pl.Float64, "largest |change of a score| against the wave before", nullable=True),
        Column("mean_se", pl.Float64, "mean standard error at the wave's end", nullable=True),
        Column("max_se", pl.Float64, "largest standard error at the wave's end", nullable=True),
        Column("decision", pl.String, "what was decided at the wave's end", nullable=True),
        Column("reason", pl.String, "why", nullable=True),
        Column("tokens_in", pl.Int64, "input tokens of its calls"),
        Column("tokens_out", pl.Int64, "output tokens of its calls"),
        Column("cost_usd", pl.Float64, "US dollars of its calls; null if a price is unknown", nullable=True),
        Column("started_at", UTC, "planned, UTC"),
        Column("ended_at", UTC, "decided, UTC", nullable=True),
    ),
)
SE_SUMMARIES = Table(
    "bt_se_summaries",
    "how certain the scale is: one row per scope (all, anchors, students)",
    (
        _BATCH_ID,
        Column("scope", pl.String, "all, anchors or students"),
        Column("mean_se", pl.Float64, "logits", nullable=True),
        Column("max_se", pl.Float64, "logits", nullable=True),
        Column("min_se", pl.Float64, "logits", nullable=True),
        Column("item_count", pl.Int64, "essays"),
        Column("comparison_count", pl.Int64, "judged comparisons that touch the scope"),
        Column("items_at_cap", pl.Int64, "essays whose prior-free standard error reaches the cap"),
        Column("isolated_items", pl.Int64, "essays without a judged comparison"),
        Column("mean_comparisons_per_item", pl.Float64, "judged comparisons per essay", nullable=True),
        Column("min_comparisons_per_item", pl.Int64, "fewest", nullable=True),
        Column("max_comparisons_per_item", pl.Int64, "most", nullable=True),
    ),
)
QUALITY_FLAGS = Table(
    "quality_flags",
    "what deserves a look: one row per batch; flags change no decision",
    (
        _BATCH_ID,
        Column("bt_se_inflated", pl.Boolean, "standard errors above the warning thresholds"),
        Column("comparison_coverage_sparse", pl.Boolean, "fewer comparisons per essay than the threshold"),
        Column("has_isolated_items", pl.Boolean, "more isolated essays than tolerated"),
    ),
)
GRADE_PROJECTIONS = Table(
    "grade_projections",
    "the grades: one row per essay, with every grade's probability, or the reason there is none",
    (
        _BATCH_ID,
        _ESSAY_ID,
        _IS_ANCHOR,
        _KNOWN_GRADE,
        Column("available", pl.Boolean, "whether a grade could be projected"),
        Column("reason", pl.String, "why not, in words a teacher understands", nullable=True),
        Column("grade", pl.String, "the median of what the grade may be; for an anchor, without itself", nullable=True),
        Column("confidence", pl.Float64, "probability of the grade", nullable=True),
        Column("label", pl.String, "HIGH, MID or LOW confidence", nullable=True),
        Column("boundary_distance_se", pl.Float64, "distance to the nearest grade boundary, in SEs", nullable=True),
        Column("nearest_boundary", pl.String, "the boundary, as lower|upper grade", nullable=True),
        Column("probabilities", PROBABILITIES, "every grade of the scale with its probability"),
        Column(
            "would_change",
            pl.Float64,
            "probability that another grade would be printed if score and boundaries were known exactly",
            nullable=True,
        ),
        Column("grade_uniform", pl.String, "the grade if all grades were equally common beforehand", nullable=True),
        Column("confidence_uniform", pl.Float64, "probability of that grade, then", nullable=True),
        Column("probabilities_uniform", PROBABILITIES, "every grade's probability, then"),
        Column("simulated", pl.Boolean, "true if the judgments were simulated"),
    ),
)
GRADE_BOUNDARIES = Table(
    "grade_boundaries",
    "where grades end and what that means for the class: one row per boundary; none without grades",
    (
        _BATCH_ID,
        Column("boundary", pl.String, "as lower|upper grade"),
        Column("number", pl.Int64, "from 1 at the bottom of the scale"),
        Column("is_pass", pl.Boolean, "whether it divides failing from passing"),
        Column("score", pl.Float64, "where it lies on the batch's score scale, logits"),
        Column("se", pl.Float64, "its standard error from the anchors, logits; it moves all students alike"),
        Column("low", pl.Float64, "lower end of its 95 % interval, logits"),
        Column("high", pl.Float64, "upper end"),
        Column("share_above", pl.Float64, "expected share of students above it"),
        Column("share_low", pl.Float64, "share of students above it if it lies at the interval's upper end"),
        Column("share_high", pl.Float64, "share of students above it if it lies at the lower end"),
        Column("accuracy", pl.Float64, "expected share of students printed on the right side"),
        Column("consistency", pl.Float64, "chance that judging all again would leave a student on the same side"),
        Column("false_pass", pl.Float64, "expected share of students printed above whose grade is below"),
        Column("false_fail", pl.Float64, "expected share of students printed below whose grade is above"),
    ),
)
ANCHOR_REPORT = Table(
    "anchor_report",
    "how each anchor fits in with the others: one row per anchor; none without an assignment",
    (
        _BATCH_ID,
        _ESSAY_ID,
        Column("known_grade", pl.String, "the expert grade"),
        Column("misfit", pl.Float64, "standard deviations its score is above what its grade predicts", nullable=True),
        Column("probability", pl.Float64, "of the expert grade, going by the other anchors", nullable=True),
        Column("leverage", pl.Float64, "by how much its grade's centre follows its score, 0 to 1", nullable=True),
        Column("influence", pl.Float64, "largest shift of a boundary without it, in mean grade steps", nullable=True),
        Column("inversions", pl.Int64, "anchors that the judge puts in the other order with it than the experts"),
        Column("replace_first", pl.Boolean, "whether it is the one to replace or regrade first"),
    ),
)

GRAPH_TABLES: Final = (
    BATCHES,
    ESSAYS,
    COMPARISONS,
    ATTEMPTS,
    BT_SCORES,
    WAVES,
    SE_SUMMARIES,
    QUALITY_FLAGS,
    GRADE_PROJECTIONS,
    GRADE_BOUNDARIES,
    ANCHOR_REPORT,
)
"""The tables of the DuckDB graph, each keyed by batch_id."""
