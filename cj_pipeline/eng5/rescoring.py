"""Scores and grades of a batch that no ledger holds: of stubbed judgments, and of those an artefact recorded.

Here: the batch record that scoring asks for, and one call of `workflow.results` for all scored tables. Not here: how
scores and grades come about, and where the comparisons are from.
"""

from datetime import datetime
from typing import Any

import polars as pl

from cj_pipeline.core.grade_scale import GradeScale
from cj_pipeline.core.models import BatchKind, BatchStatus
from cj_pipeline.ledger.records import BatchRecord
from cj_pipeline.settings import BatchTunables
from cj_pipeline.workflow import frames
from cj_pipeline.workflow.results import flag, project, score, summarise


def unstored_batch(
    batch_id: str,
    *,
    kind: BatchKind,
    assignment_id: str | None,
    judge_profile: str,
    provider: str,
    model: str,
    simulated: bool,
    overrides: dict[str, Any],
    settings: dict[str, Any],
    total_budget: int | None,
    status: BatchStatus,
    stop_reason: str | None,
    code_version: str,
    correlation_id: str,
    created_at: datetime,
    completed_at: datetime | None,
    anchor_bank: dict[str, Any] | None = None,
) -> BatchRecord:
    """A batch's record without what only a ledger knows: leases, launches, publications."""
    return BatchRecord(
        batch_id=batch_id,
        kind=kind,
        assignment_id=assignment_id,
        assignment_revision=None,
        judge_profile=judge_profile,
        provider=provider,
        model=model,
        simulated=simulated,
        overrides=overrides,
        settings=settings,
        total_budget=total_budget,
        status=status,
        stop_reason=stop_reason,
        code_version=code_version,
        correlation_id=correlation_id,
        processing_metadata={},
        lease_owner=None,
        lease_epoch=0,
        lease_live=False,
        hold_reason=None,
        launch=0,
        launched_at=None,
        idle_launches=0,
        not_before=None,
        published_at=None,
        published_as_of=None,
        created_at=created_at,
        completed_at=completed_at,
        anchor_bank=anchor_bank,
    )


def scored_tables(
    batch: BatchRecord, scale: GradeScale | None, essays: pl.DataFrame, comparisons: pl.DataFrame
) -> dict[str, pl.DataFrame]:
    """The tables that are computed from a batch's essays and comparisons, as `workflow.results` computes them.

    Args:
        batch: its settings decide.
        scale: None gives no grades.
        essays: `frames.ESSAYS`.
        comparisons: `frames.COMPARISONS`.
    """
    tunables = BatchTunables.model_validate(batch.settings)
    scores = score(batch, comparisons, essays)
    summaries = summarise(batch.batch_id, scores, comparisons, tunables)
    projections = project(batch, scale, scores, comparisons).projections
    return {
        frames.BT_SCORES.name: scores,
        frames.SE_SUMMARIES.name: summaries,
        frames.QUALITY_FLAGS.name: flag(batch.batch_id, summaries, tunables),
        frames.GRADE_PROJECTIONS.name: projections,
    }
