"""From the ledger's record to the tables results are told in: pure re-computation, no call made, nothing written.

The Dagster assets, `cj show` and the graph all come through here, so that they cannot tell different stories. What a
column means is in `workflow.frames`.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cj_pipeline.core.bradley_terry import fit_bradley_terry
from cj_pipeline.core.diagnostics import bt_quality_flags, bt_se_summary
from cj_pipeline.core.grade_scale import GradeScale
from cj_pipeline.core.grades import GradeProjectionResult, ScoreBasis, basis_of_grades, project_grades
from cj_pipeline.core.models import (
    BatchStatus,
    Comparison,
    ComparisonStatus,
    EssayRole,
    PairMode,
    Winner,
)
from cj_pipeline.core.pairing import positions
from cj_pipeline.core.scoring import compute_bt_scores_and_se
from cj_pipeline.judges.prompts import JUSTIFICATION_MAX_WORDS
from cj_pipeline.judges.protocol import SIMULATED_PROVIDER
from cj_pipeline.ledger import Ledger
from cj_pipeline.ledger.records import BatchRecord
from cj_pipeline.settings import BatchTunables
from cj_pipeline.workflow import frames
from cj_pipeline.workflow.calibration import known_anchors
from cj_pipeline.workflow.registration import scale_of

FloatArray = NDArray[np.float64]

NO_GRADES_BECAUSE: Final = {
    "insufficient_essays": "There are fewer than two student essays, and a comparison needs two.",
    "low_success_rate": "Too many comparisons could not be judged, so no grade would be fair.",
    "cost_spent": "The money allowed for the batch did not even buy one judgment.",
    "provider_rejected": "The judge refused to work (key, model or quota), so the batch was stopped.",
    "timeout_incomplete": "The batch stood still for too long with too few comparisons judged.",
    "timeout_low_success_rate": "The batch stood still for too long, and too many comparisons could not be judged.",
    "missing_budget": "The batch has no valid budget, which is a defect: submit it again.",
    "cancelled": "The batch was cancelled.",
}
NO_ASSIGNMENT: Final = "This batch was not set up for grades: it has no assignment, and so no grade scale."


@dataclass(frozen=True)
class BatchResults:
    """Everything there is to tell about a batch, as of one reading of the ledger."""

    batch: BatchRecord
    tables: dict[str, pl.DataFrame]
    projection: GradeProjectionResult | None
    as_of: int

    def __getitem__(self, name: str) -> pl.DataFrame:
        return self.tables[name]


def collect_results(ledger: Ledger, batch_id: str) -> BatchResults:
    """Read and re-compute everything about a batch.

    Raises:
        UnknownBatchError: no such batch.
    """
    batch = ledger.batch(batch_id)
    tunables = BatchTunables.model_validate(batch.settings)
    essays = essays_frame(ledger, batch_id)
    comparisons = comparisons_frame(ledger, batch_id)
    scores = score(batch, comparisons, essays)
    summaries = summarise(batch_id, scores, comparisons, tunables)
    projected = project(batch, scale_of(ledger, batch), scores, comparisons)
    return BatchResults(
        batch=batch,
        tables={
            frames.BATCHES.name: batches_frame(ledger, batch, comparisons),
            frames.ESSAYS.name: essays,
            frames.COMPARISONS.name: comparisons,
            frames.ATTEMPTS.name: attempts_frame(ledger, batch_id, comparisons),
            frames.BT_SCORES.name: scores,
            frames.WAVES.name: waves_frame(ledger, batch_id, comparisons),
            frames.SE_SUMMARIES.name: summaries,
            frames.QUALITY_FLAGS.name: flag(batch_id, summaries, tunables),
            frames.GRADE_PROJECTIONS.name: projected.projections,
            frames.GRADE_BOUNDARIES.name: projected.boundaries,
            frames.ANCHOR_REPORT.name: projected.anchors,
        },
        projection=projected.result,
        as_of=judged_count(comparisons),
    )


def judged_count(comparisons: pl.DataFrame) -> int:
    """How many comparisons were judged: what a publication is "as of"."""
    return comparisons.filter(pl.col("status") == ComparisonStatus.JUDGED.value).height


def batches_frame(ledger: Ledger, batch: BatchRecord, comparisons: pl.DataFrame) -> pl.DataFrame:
    """One row about the batch (`frames.BATCHES`), counted from the comparisons that its other tables stand on.

    Counted, not read again: a batch at work moves between two readings.
    """
    counted = Counter(comparisons["status"].to_list())
    judged = counted[ComparisonStatus.JUDGED]
    calls = ledger.attempt_counts(batch.batch_id)
    scale = scale_of(ledger, batch)
    return frames.BATCHES.frame(
        [
            {
                "batch_id": batch.batch_id,
                "assignment_id": batch.assignment_id,
                "kind": batch.kind.value,
                "status": batch.status.value,
                "stop_reason": batch.stop_reason,
                "grade_scale": None if scale is None else scale.name,
                "total_budget": batch.total_budget,
                "submitted": counted.total() - counted[ComparisonStatus.WITHDRAWN],
                "judged": judged,
                "failed": counted[ComparisonStatus.FAILED],
                "attempts": sum(calls.values()) - calls.get("unsent", 0),
                "lost_attempts": calls.get("lost", 0),
                "judge_profile": batch.judge_profile,
                "provider": batch.provider,
                "model": batch.model,
                "simulated": batch.simulated,
                "cost_usd": ledger.cost_usd(batch.batch_id),
                "max_cost_usd": batch.settings.get("max_cost_usd"),
                "batching_mode": BatchTunables.model_validate(batch.settings).llm_batching_mode.value,
                "orphan_results": len(ledger.orphan_results(batch.batch_id)),
                "injection_flagged": sum(bool(signs) for signs in ledger.injection_signs(batch.batch_id).values()),
                "correlation_id": batch.correlation_id,
                "code_version": batch.code_version,
                "settings_json": json.dumps(batch.settings, sort_keys=True),
                "created_at": batch.created_at,
                "completed_at": batch.completed_at,
                "as_of": judged,
            }
        ]
    )


def essays_frame(ledger: Ledger, batch_id: str, role: EssayRole | None = None) -> pl.DataFrame:
    """The essays of a batch (`frames.ESSAYS`), all or those of one role."""
    signs = ledger.injection_signs(batch_id)
    return frames.ESSAYS.frame(
        [
            {
                "batch_id": batch_id,
                "essay_id": essay.essay_id,
                "is_anchor": essay.is_anchor,
                "known_grade": essay.known_grade,
                "text_sha256": essay.text_sha256,
                "word_count": essay.word_count,
                "injection_signs": None if (found := signs[essay.essay_id]) is None else ",".join(found),
            }
            for essay in ledger.essays(batch_id)
            if role is None or essay.role is role
        ]
    )


def comparisons_frame(ledger: Ledger, batch_id: str) -> pl.DataFrame:
    """All comparisons of a batch with their judgments (`frames.COMPARISONS`), in the order of planning."""
    rows = []
    for record in ledger.comparison_records(batch_id):
        row = {name: getattr(record, name) for name in frames.COMPARISONS.schema if hasattr(record, name)}
        first_wins = record.winner == Winner.A.value
        winner_id = record.essay_a if first_wins else record.essay_b
        loser_id = record.essay_b if first_wins else record.essay_a
        judged = record.winner is not None
        rows.append(
            row
            | {
                "batch_id": batch_id,
                "winner_id": winner_id if judged else None,
                "loser_id": loser_id if judged else None,
                "justification_over_cap": None
                if record.justification is None
                else len(record.justification.split()) > JUSTIFICATION_MAX_WORDS,
            }
        )
    return frames.COMPARISONS.frame(rows)


def attempts_frame(ledger: Ledger, batch_id: str, comparisons: pl.DataFrame) -> pl.DataFrame:
    """All calls made for a batch's comparisons (`frames.ATTEMPTS`), in the order of recording."""
    waves = dict(comparisons.select("comparison_id", "wave").iter_rows())
    return frames.ATTEMPTS.frame(
        [
            {name: getattr(attempt, name) for name in frames.ATTEMPTS.schema if hasattr(attempt, name)}
            | {"batch_id": batch_id, "wave": waves[attempt.comparison_id]}
            for attempt in ledger.attempts(batch_id)
            # a call recorded since the comparisons were read belongs to the next reading
            if attempt.comparison_id in waves
        ]
    )


def pairs_frame(comparisons: pl.DataFrame) -> pl.DataFrame:
    """The plan (`frames.PAIRS`) out of the comparisons."""
    return comparisons.select(list(frames.PAIRS.schema))


def judgments_frame(comparisons: pl.DataFrame) -> pl.DataFrame:
    """The comparisons as the lake keeps them (`frames.JUDGMENTS`): without justifications."""
    return comparisons.select(list(frames.JUDGMENTS.schema))


def waves_frame(ledger: Ledger, batch_id: str, comparisons: pl.DataFrame) -> pl.DataFrame:
    """The wave history (`frames.WAVES`)."""
    counted: dict[tuple[int, str], int] = {
        (wave, status): count for wave, status, count in comparisons.group_by("wave", "status").len().iter_rows()
    }
    totals = {
        row["wave"]: row
        for row in comparisons.group_by("wave")
        .agg(
            pl.col("tokens_in", "tokens_out", "cost_usd").sum(),
            pl.col("cost_usd").is_null().any().alias("unpriced"),
        )
        .iter_rows(named=True)
    }
    nothing = {"tokens_in": 0, "tokens_out": 0, "cost_usd": 0.0, "unpriced": False}
    rows = []
    for wave in ledger.waves(batch_id):
        spent = totals.get(wave.wave, nothing)
        by_status = {status: counted.get((wave.wave, status.value), 0) for status in ComparisonStatus}
        rows.append(
            {
                "batch_id": batch_id,
                "wave": wave.wave,
                "pair_mode": wave.pair_mode.value,
                "planned": sum(by_status.values()) - by_status[ComparisonStatus.WITHDRAWN],
                "judged": by_status[ComparisonStatus.JUDGED],
                "failed": by_status[ComparisonStatus.FAILED],
                "callbacks": wave.callbacks,
                "max_score_change": wave.max_score_change,
                "mean_se": wave.mean_se,
                "max_se": wave.max_se,
                "decision": wave.decision,
                "reason": wave.reason,
                "tokens_in": spent["tokens_in"],
                "tokens_out": spent["tokens_out"],
                "cost_usd": None if spent["unpriced"] else spent["cost_usd"],
                "started_at": wave.started_at,
                "ended_at": wave.ended_at,
            }
        )
    return frames.WAVES.frame(rows)


def score(batch: BatchRecord, comparisons: pl.DataFrame, essays: pl.DataFrame) -> pl.DataFrame:
    """Fit the Bradley–Terry scale of a batch (`frames.BT_SCORES`); no rows for a batch without essays.

    Args:
        batch: its settings decide, and the anchor bank it was submitted with.
        comparisons: `frames.COMPARISONS` or `frames.JUDGMENTS`.
        essays: `frames.ESSAYS`, anchors included.
    """
    tunables = BatchTunables.model_validate(batch.settings)
    ids = essays["essay_id"].to_list()
    if not ids:
        return frames.BT_SCORES.frame([])
    grades = dict(zip(ids, essays["known_grade"].to_list(), strict=True))
    anchors = set(essays.filter(pl.col("is_anchor"))["essay_id"].to_list())
    known = known_anchors(batch, ids)
    result = compute_bt_scores_and_se(_comparisons(comparisons), ids, tunables, anchor_ids=anchors, known=known)
    simulated = SIMULATED_PROVIDER in comparisons["provider"].to_list()
    return frames.BT_SCORES.frame(
        [
            {
                "batch_id": batch.batch_id,
                "essay_id": essay_id,
                "is_anchor": essay_id in anchors,
                "known_grade": grades[essay_id],
                "rank": rank,
                "score": result.scores[essay_id],
                "se": result.ses[essay_id],
                "se_uncapped": result.ses_uncapped[essay_id],
                "score_low": result.intervals[essay_id][0],
                "score_high": result.intervals[essay_id][1],
                "se_prior_free": _finite_or_none(result.prior_free_ses[essay_id]),
                "comparisons": result.per_essay_counts[essay_id],
                "wins": result.wins[essay_id],
                "losses": result.losses[essay_id],
                "component": result.components[essay_id],
                "prior_sd": result.fit.prior_sd,
                "simulated": simulated,
            }
            for rank, essay_id in enumerate(result.ranking(), start=1)
        ]
    )


def summarise(batch_id: str, scores: pl.DataFrame, comparisons: pl.DataFrame, tunables: BatchTunables) -> pl.DataFrame:
    """How certain the scale is (`frames.SE_SUMMARIES`), from the scores and the comparisons they come from."""
    judged = comparisons.filter(pl.col("status") == ComparisonStatus.JUDGED.value)
    summary = bt_se_summary(
        _column(scores, "se"),
        {essay: math.inf if se is None else se for essay, se in _column(scores, "se_prior_free").items()},
        list(judged.select("essay_a", "essay_b").iter_rows()),
        cap=tunables.bt_standard_error_max,
        anchor_ids=scores.filter(pl.col("is_anchor"))["essay_id"].to_list(),
    )
    return frames.SE_SUMMARIES.frame(
        [{"batch_id": batch_id, "scope": scope, **values} for scope, values in summary.items()]
    )


def summary_by_scope(summaries: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """`bt_se_summary` as a dict by scope, out of its table."""
    return {
        row["scope"]: {name: value for name, value in row.items() if name not in ("batch_id", "scope")}
        for row in summaries.iter_rows(named=True)
    }


def flag(batch_id: str, summaries: pl.DataFrame, tunables: BatchTunables) -> pl.DataFrame:
    """What deserves a look (`frames.QUALITY_FLAGS`); flags change no decision."""
    flags = bt_quality_flags(summary_by_scope(summaries), tunables)
    return frames.QUALITY_FLAGS.frame([{"batch_id": batch_id, **flags}])


@dataclass(frozen=True)
class Projected:
    """Grades as tables, and the result they come from (None where the batch has none)."""

    result: GradeProjectionResult | None
    projections: pl.DataFrame
    boundaries: pl.DataFrame
    anchors: pl.DataFrame


def project(batch: BatchRecord, scale: GradeScale | None, scores: pl.DataFrame, comparisons: pl.DataFrame) -> Projected:
    """Grades from scores, or a row with the reason for every essay; boundaries and anchor report where there are any.

    Args:
        batch: the batch.
        scale: its grade scale, if it has one.
        scores: `frames.BT_SCORES`.
        comparisons: `frames.COMPARISONS` or `frames.JUDGMENTS` that the scores come from.
    """
    reason = _no_grades_reason(batch, scale)
    if reason is not None or scale is None:
        rows = [
            {
                "batch_id": batch.batch_id,
                "essay_id": row["essay_id"],
                "is_anchor": row["is_anchor"],
                "known_grade": row["known_grade"],
                "available": False,
                "reason": reason,
                "probabilities": [],
                "probabilities_uniform": [],
                "simulated": batch.simulated,
            }
            for row in scores.iter_rows(named=True)
        ]
        nothing = frames.GRADE_BOUNDARIES.frame([]), frames.ANCHOR_REPORT.frame([])
        return Projected(None, frames.GRADE_PROJECTIONS.frame(rows), *nothing)
    basis = _basis_of_grades(batch, scores, comparisons)
    result = project_grades(
        scale,
        scores=dict(zip(scores["essay_id"].to_list(), basis.scores.tolist(), strict=True)),
        ses=_column(scores, "se_uncapped"),
        components=_column(scores, "component"),
        known_grades=_column(scores.filter(pl.col("is_anchor")), "known_grade"),
        covariance=basis.covariance,
        prior_sd=basis.prior_sd,
        anchors_placed=basis.anchors_placed,
    )
    return Projected(
        result, _projections_frame(batch, result), _boundaries_frame(batch, result), _anchors_frame(batch, result)
    )


def _basis_of_grades(batch: BatchRecord, scores: pl.DataFrame, comparisons: pl.DataFrame) -> ScoreBasis:
    """What grades rest on, in the order of the rows, fitted again at the width of the prior that the scores are at."""
    if not scores.height:
        return ScoreBasis(np.zeros(0), np.zeros((0, 0)), None, anchors_placed=False)
    judged = comparisons.filter(pl.col("status") == ComparisonStatus.JUDGED.value).sort("comparison_id")
    place = {essay: row for row, essay in enumerate(sorted(scores["essay_id"].to_list()))}
    first = judged["winner"] == Winner.A.value
    a, b = ([place[essay] for essay in judged[name].to_list()] for name in ("essay_a", "essay_b"))
    a_won = first.to_numpy().astype(np.bool_)
    fit = fit_bradley_terry(
        np.where(a_won, a, b).astype(np.int64),
        np.where(a_won, b, a).astype(np.int64),
        len(place),
        prior_sd=float(scores["prior_sd"][0]),
        winner_first=a_won,
        known=known_anchors(batch, list(place)),
    )
    basis = basis_of_grades(fit)
    order = [place[essay] for essay in scores["essay_id"].to_list()]
    return basis._replace(scores=basis.scores[order], covariance=basis.covariance[np.ix_(order, order)])


def _projections_frame(batch: BatchRecord, result: GradeProjectionResult) -> pl.DataFrame:
    def listed(probabilities: Mapping[str, float]) -> list[dict[str, Any]]:
        return [{"grade": grade, "probability": probability} for grade, probability in probabilities.items()]

    return frames.GRADE_PROJECTIONS.frame(
        [
            projection.model_dump()
            | {
                "batch_id": batch.batch_id,
                "label": None if projection.label is None else projection.label.value,
                "probabilities": listed(projection.probabilities),
                "probabilities_uniform": listed(projection.probabilities_uniform),
                "simulated": batch.simulated,
            }
            for projection in result.projections
        ]
    )


def _boundaries_frame(batch: BatchRecord, result: GradeProjectionResult) -> pl.DataFrame:
    return frames.GRADE_BOUNDARIES.frame(
        [
            boundary.model_dump() | {"batch_id": batch.batch_id, "number": number}
            for number, boundary in enumerate(result.boundaries, start=1)
        ]
    )


def _anchors_frame(batch: BatchRecord, result: GradeProjectionResult) -> pl.DataFrame:
    inverted = Counter(essay for pair in result.inversions for essay in (pair.lower_graded, pair.higher_graded))
    return frames.ANCHOR_REPORT.frame(
        [
            check.model_dump() | {"batch_id": batch.batch_id, "inversions": inverted[check.essay_id]}
            for check in result.anchors
        ]
    )


def last_failure(ledger: Ledger, batch_id: str) -> str | None:
    """What the last failed call or provider batch job of a batch said, in our words; None if none failed."""
    failed = [attempt for attempt in ledger.attempts(batch_id) if attempt.error_detail is not None]
    refused = [job for job in ledger.provider_jobs(batch_id) if job.detail is not None]
    if failed and (not refused or failed[-1].sent_at > refused[-1].created_at):
        return f"{failed[-1].error_type}: {failed[-1].error_detail}"
    return refused[-1].detail if refused else None


def position_table(ledger: Ledger, batch_id: str) -> pl.DataFrame:
    """Appearances as A and as B per essay: batch_id, essay_id, is_anchor, as_a, as_b, skew (as_a − as_b)."""
    essays = ledger.essays(batch_id)
    counts = positions(ledger.comparisons(batch_id), [essay.essay_id for essay in essays])
    return pl.DataFrame(
        [
            {
                "batch_id": batch_id,
                "essay_id": essay.essay_id,
                "is_anchor": essay.is_anchor,
                "as_a": counts[essay.essay_id].as_a,
                "as_b": counts[essay.essay_id].as_b,
                "skew": counts[essay.essay_id].skew,
            }
            for essay in essays
        ],
        schema={
            "batch_id": pl.String,
            "essay_id": pl.String,
            "is_anchor": pl.Boolean,
            "as_a": pl.Int64,
            "as_b": pl.Int64,
            "skew": pl.Int64,
        },
    )


def _no_grades_reason(batch: BatchRecord, scale: GradeScale | None) -> str | None:
    if batch.status is BatchStatus.COMPLETE_INSUFFICIENT_ESSAYS or (
        batch.status.is_final and not batch.status.has_grades
    ):
        reason = batch.stop_reason or "cancelled"
        return NO_GRADES_BECAUSE.get(reason, f"The batch ended as {batch.status.value}: {reason}.")
    return NO_ASSIGNMENT if scale is None else None


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _column(scores: pl.DataFrame, name: str) -> dict[str, Any]:
    return dict(zip(scores["essay_id"].to_list(), scores[name].to_list(), strict=True))


def _comparisons(frame: pl.DataFrame) -> Sequence[Comparison]:
    wanted = frame.select("comparison_id", "wave", "essay_a", "essay_b", "pair_mode", "status", "winner", "confidence")
    return [
        Comparison(
            comparison_id=row["comparison_id"],
            wave=row["wave"],
            essay_a=row["essay_a"],
            essay_b=row["essay_b"],
            pair_mode=PairMode(row["pair_mode"]),
            status=ComparisonStatus(row["status"]),
            winner=None if row["winner"] is None else Winner(row["winner"]),
            confidence=row["confidence"],
        )
        for row in wanted.iter_rows(named=True)
    ]
