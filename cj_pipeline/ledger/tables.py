"""The ledger's schema as it is now. How an older one becomes this one is in `migrations/`.

Constraints do the work where a database can: keys, ranges, one open call per comparison. Counters are not stored.
"""

from datetime import UTC as UTC_ZONE
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.types import TypeDecorator

NAMING: Final = {
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

metadata: Final = sa.MetaData(naming_convention=NAMING)


class UTCDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC. SQLite keeps no zone, so it is taken off and put back there."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Aware → the column's form; a naive value is a defect of the caller."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive datetime cannot be recorded: UTC is required")
        value = value.astimezone(UTC_ZONE)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """The column's form → aware, UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC_ZONE) if value.tzinfo is None else value.astimezone(UTC_ZONE)


UTC: Final = UTCDateTime()
# autoincrement in SQLite needs INTEGER
SERIAL: Final = sa.BigInteger().with_variant(sa.Integer, "sqlite")


texts: Final = sa.Table(
    "texts",
    metadata,
    sa.Column("text_sha256", sa.String(64), primary_key=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("word_count", sa.Integer, nullable=False),
    sa.Column("created_at", UTC, nullable=False),
)

assignments: Final = sa.Table(
    "assignments",
    metadata,
    sa.Column("assignment_id", sa.String(64), primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("language", sa.String(32), nullable=False),
    sa.Column("grade_scale", sa.String(64), nullable=False),
    sa.Column("grade_scale_definition", sa.JSON, nullable=True),
    sa.Column("instructions", sa.Text, nullable=False),
    sa.Column("system_prompt", sa.Text, nullable=True),
    sa.Column("student_prompt", sa.Text, nullable=False),
    sa.Column("judge_rubric", sa.Text, nullable=False),
    sa.Column("content_sha256", sa.String(64), nullable=False),
    sa.Column("created_at", UTC, nullable=False),
    sa.CheckConstraint("revision >= 1", name="revision_positive"),
)

anchor_essays: Final = sa.Table(
    "anchor_essays",
    metadata,
    sa.Column("assignment_id", sa.String(64), primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True),
    sa.Column("anchor_ref", sa.String(64), primary_key=True),
    sa.Column("grade", sa.String(32), nullable=False),
    sa.Column("text_sha256", sa.ForeignKey("texts.text_sha256"), nullable=False),
    sa.Column("created_at", UTC, nullable=False),
    sa.ForeignKeyConstraint(["assignment_id", "revision"], ["assignments.assignment_id", "assignments.revision"]),
)

batches: Final = sa.Table(
    "batches",
    metadata,
    sa.Column("batch_id", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("assignment_id", sa.String(64), nullable=True),
    sa.Column("assignment_revision", sa.Integer, nullable=True),
    sa.Column("request_sha256", sa.String(64), nullable=False),
    sa.Column("judge_profile", sa.String(128), nullable=False),
    sa.Column("provider", sa.String(64), nullable=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("simulated", sa.Boolean, nullable=False),
    sa.Column("overrides", sa.JSON, nullable=False),
    sa.Column("settings", sa.JSON, nullable=False),
    sa.Column("total_budget", sa.Integer, nullable=True),
    sa.Column("status", sa.String(48), nullable=False),
    sa.Column("stop_reason", sa.Text, nullable=True),
    sa.Column("code_version", sa.String(64), nullable=False),
    sa.Column("correlation_id", sa.String(36), nullable=False),
    sa.Column("processing_metadata", sa.JSON, nullable=False),
    sa.Column("lease_owner", sa.Text, nullable=True),
    sa.Column("lease_epoch", sa.Integer, nullable=False, server_default="0"),
    sa.Column("lease_since", sa.Double, nullable=True),
    sa.Column("lease_expires_at", sa.Double, nullable=True),
    sa.Column("hold_reason", sa.Text, nullable=True),
    sa.Column("launch", sa.Integer, nullable=False, server_default="0"),
    sa.Column("launched_at", UTC, nullable=True),
    sa.Column("idle_launches", sa.Integer, nullable=False, server_default="0"),
    sa.Column("launch_mark", sa.String(64), nullable=True),
    sa.Column("not_before", UTC, nullable=True),
    sa.Column("published_at", UTC, nullable=True),
    sa.Column("published_as_of", sa.Integer, nullable=True),
    sa.Column("created_at", UTC, nullable=False),
    sa.Column("completed_at", UTC, nullable=True),
    # null, and not JSON's null, for none
    sa.Column("anchor_bank", sa.JSON(none_as_null=True), nullable=True),
    sa.ForeignKeyConstraint(
        ["assignment_id", "assignment_revision"], ["assignments.assignment_id", "assignments.revision"]
    ),
    sa.CheckConstraint("total_budget > 0", name="budget_positive"),
)

batch_essays: Final = sa.Table(
    "batch_essays",
    metadata,
    sa.Column("batch_id", sa.ForeignKey("batches.batch_id"), primary_key=True),
    sa.Column("essay_id", sa.String(160), primary_key=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("known_grade", sa.String(32), nullable=True),
    sa.Column("text_sha256", sa.ForeignKey("texts.text_sha256"), nullable=False),
    sa.Column("quality", sa.Double, nullable=True),
    # comma separated names of signs; '' for none, null for never examined
    sa.Column("injection_signs", sa.Text, nullable=True),
    sa.CheckConstraint("role IN ('student', 'anchor')", name="role_known"),
    sa.CheckConstraint("role <> 'anchor' OR known_grade IS NOT NULL", name="anchor_has_grade"),
)

waves: Final = sa.Table(
    "waves",
    metadata,
    sa.Column("batch_id", sa.ForeignKey("batches.batch_id"), primary_key=True),
    sa.Column("wave", sa.Integer, primary_key=True),
    sa.Column("pair_mode", sa.String(16), nullable=False),
    sa.Column("cut_by_budget", sa.Boolean, nullable=False),
    sa.Column("provider_rejected", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("cost_stopped", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("started_at", UTC, nullable=False),
    sa.Column("ended_at", UTC, nullable=True),
    sa.Column("callbacks", sa.Integer, nullable=True),
    sa.Column("max_score_change", sa.Double, nullable=True),
    sa.Column("mean_se", sa.Double, nullable=True),
    sa.Column("max_se", sa.Double, nullable=True),
    sa.Column("scores", sa.JSON, nullable=True),
    sa.Column("ses", sa.JSON, nullable=True),
    sa.Column("decision", sa.String(32), nullable=True),
    sa.Column("reason", sa.String(64), nullable=True),
    sa.CheckConstraint("wave >= 1", name="wave_positive"),
    sa.CheckConstraint("pair_mode IN ('coverage', 'resampling')", name="pair_mode_known"),
)

comparisons: Final = sa.Table(
    "comparisons",
    metadata,
    sa.Column("batch_id", sa.String(64), primary_key=True),
    sa.Column("comparison_id", sa.String(32), primary_key=True),
    sa.Column("wave", sa.Integer, nullable=False),
    sa.Column("essay_a", sa.String(160), nullable=False),
    sa.Column("essay_b", sa.String(160), nullable=False),
    sa.Column("pair_mode", sa.String(16), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("winner", sa.String(1), nullable=True),
    sa.Column("confidence", sa.Integer, nullable=True),
    sa.Column("justification", sa.Text, nullable=True),
    sa.Column("error_type", sa.String(64), nullable=True),
    sa.Column("completed_at", UTC, nullable=True),
    sa.ForeignKeyConstraint(["batch_id", "wave"], ["waves.batch_id", "waves.wave"]),
    sa.ForeignKeyConstraint(
        ["batch_id", "essay_a"],
        ["batch_essays.batch_id", "batch_essays.essay_id"],
        name="fk_comparisons_essay_a_batch_essays",
    ),
    sa.ForeignKeyConstraint(
        ["batch_id", "essay_b"],
        ["batch_essays.batch_id", "batch_essays.essay_id"],
        name="fk_comparisons_essay_b_batch_essays",
    ),
    sa.CheckConstraint("essay_a <> essay_b", name="two_essays"),
    sa.CheckConstraint("winner IN ('a', 'b')", name="winner_known"),
    sa.CheckConstraint("confidence BETWEEN 1 AND 5", name="confidence_range"),
    sa.CheckConstraint("status IN ('planned', 'judged', 'failed', 'withdrawn')", name="status_known"),
    sa.CheckConstraint("(status = 'judged') = (winner IS NOT NULL)", name="judged_has_winner"),
    sa.CheckConstraint("pair_mode IN ('coverage', 'resampling')", name="pair_mode_known"),
    sa.Index("ix_comparisons_batch_id_status", "batch_id", "status"),
)

attempts: Final = sa.Table(
    "attempts",
    metadata,
    sa.Column("attempt_id", SERIAL, primary_key=True, autoincrement=True),
    sa.Column("batch_id", sa.String(64), nullable=False),
    sa.Column("comparison_id", sa.String(32), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("lease_epoch", sa.Integer, nullable=False),
    sa.Column("bundle_id", sa.String(64), nullable=True),
    sa.Column("provider", sa.String(64), nullable=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("prompt_sha256", sa.String(64), nullable=False),
    sa.Column("fence_marker", sa.String(64), nullable=True),
    sa.Column("queued_at", UTC, nullable=False),
    sa.Column("sent_at", UTC, nullable=False),
    sa.Column("finished_at", UTC, nullable=True),
    sa.Column("outcome", sa.String(16), nullable=True),
    sa.Column("error_type", sa.String(64), nullable=True),
    sa.Column("error_detail", sa.Text, nullable=True),
    sa.Column("http_status", sa.Integer, nullable=True),
    sa.Column("request_id", sa.String(128), nullable=True),
    sa.Column("tokens_input", sa.Integer, nullable=True),
    sa.Column("tokens_cache_read", sa.Integer, nullable=True),
    sa.Column("tokens_cache_write", sa.Integer, nullable=True),
    sa.Column("tokens_output", sa.Integer, nullable=True),
    sa.Column("tokens_reasoning", sa.Integer, nullable=True),
    sa.Column("latency_seconds", sa.Double, nullable=True),
    sa.Column("upper_bound_usd", sa.Double, nullable=True),
    sa.Column("cost_usd", sa.Double, nullable=True),
    sa.ForeignKeyConstraint(["batch_id", "comparison_id"], ["comparisons.batch_id", "comparisons.comparison_id"]),
    sa.CheckConstraint("number >= 1", name="number_positive"),
    sa.CheckConstraint("outcome IN ('judged', 'error', 'lost', 'unsent')", name="outcome_known"),
    sa.Index("ix_attempts_batch_id_comparison_id", "batch_id", "comparison_id"),
    sa.Index("ix_attempts_bundle_id", "batch_id", "bundle_id"),
    sa.Index(
        "uq_attempts_one_open",
        "batch_id",
        "comparison_id",
        unique=True,
        sqlite_where=sa.text("outcome IS NULL"),
        postgresql_where=sa.text("outcome IS NULL"),
    ),
    sa.Index(
        "uq_attempts_one_judged",
        "batch_id",
        "comparison_id",
        unique=True,
        sqlite_where=sa.text("outcome = 'judged'"),
        postgresql_where=sa.text("outcome = 'judged'"),
    ),
)

# the attempts of a job carry its key as their bundle_id
provider_jobs: Final = sa.Table(
    "provider_jobs",
    metadata,
    sa.Column("job_key", sa.String(64), primary_key=True),
    sa.Column("batch_id", sa.String(64), nullable=False),
    sa.Column("wave", sa.Integer, nullable=False),
    sa.Column("provider", sa.String(64), nullable=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("items", sa.Integer, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("provider_job_id", sa.String(128), nullable=True),
    sa.Column("detail", sa.Text, nullable=True),
    sa.Column("created_at", UTC, nullable=False),
    sa.Column("submitted_at", UTC, nullable=True),
    sa.Column("expires_at", UTC, nullable=True),
    sa.Column("ended_at", UTC, nullable=True),
    sa.Column("closed_at", UTC, nullable=True),
    sa.ForeignKeyConstraint(["batch_id", "wave"], ["waves.batch_id", "waves.wave"]),
    sa.CheckConstraint("items >= 1", name="items_positive"),
    sa.CheckConstraint(
        "status IN ('submitting', 'submitted', 'completed', 'expired', 'cancelled', 'failed', 'absent', 'abandoned')",
        name="status_known",
    ),
    sa.Index("ix_provider_jobs_batch_id", "batch_id"),
)

orphan_results: Final = sa.Table(
    "orphan_results",
    metadata,
    sa.Column("orphan_id", SERIAL, primary_key=True, autoincrement=True),
    sa.Column("batch_id", sa.String(64), nullable=False),
    sa.Column("comparison_id", sa.String(64), nullable=False),
    sa.Column("attempt_id", sa.BigInteger, nullable=True),
    sa.Column("lease_epoch", sa.Integer, nullable=True),
    sa.Column("reason", sa.String(64), nullable=False),
    sa.Column("source", sa.String(64), nullable=False),
    sa.Column("winner", sa.String(1), nullable=True),
    sa.Column("confidence", sa.Integer, nullable=True),
    sa.Column("error_type", sa.String(64), nullable=True),
    sa.Column("request_id", sa.String(128), nullable=True),
    sa.Column("tokens_input", sa.Integer, nullable=True),
    sa.Column("tokens_output", sa.Integer, nullable=True),
    sa.Column("cost_usd", sa.Double, nullable=True),
    sa.Column("received_at", UTC, nullable=False),
    sa.Index("ix_orphan_results_batch_id", "batch_id"),
)

batch_events: Final = sa.Table(
    "batch_events",
    metadata,
    sa.Column("event_id", SERIAL, primary_key=True, autoincrement=True),
    sa.Column("batch_id", sa.ForeignKey("batches.batch_id"), nullable=False),
    sa.Column("at", UTC, nullable=False),
    sa.Column("event", sa.String(32), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Index("ix_batch_events_batch_id", "batch_id"),
)
