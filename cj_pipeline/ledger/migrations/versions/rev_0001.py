"""The first ledger: assignments, anchors, batches, comparisons, attempts and waves.

Winners were recorded by slot name ('essay_a', 'essay_b'); launches, holds, publications and orphan results were not
recorded at all. `op.f` marks a full name, not to be expanded by the naming convention.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

UTC = sa.DateTime(timezone=True)
SERIAL = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "texts",
        sa.Column("text_sha256", sa.String(64), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("word_count", sa.Integer, nullable=False),
        sa.Column("created_at", UTC, nullable=False),
        sa.PrimaryKeyConstraint("text_sha256", name="pk_texts"),
    )
    op.create_table(
        "assignments",
        sa.Column("assignment_id", sa.String(64), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("language", sa.String(32), nullable=False),
        sa.Column("grade_scale", sa.String(64), nullable=False),
        sa.Column("grade_scale_definition", sa.JSON, nullable=True),
        sa.Column("instructions", sa.Text, nullable=False),
        sa.Column("student_prompt", sa.Text, nullable=False),
        sa.Column("judge_rubric", sa.Text, nullable=False),
        sa.Column("content_sha256", sa.String(64), nullable=False),
        sa.Column("created_at", UTC, nullable=False),
        sa.PrimaryKeyConstraint("assignment_id", "revision", name="pk_assignments"),
        sa.CheckConstraint("revision >= 1", name=op.f("ck_assignments_revision_positive")),
    )
    op.create_table(
        "anchor_essays",
        sa.Column("assignment_id", sa.String(64), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("anchor_ref", sa.String(64), nullable=False),
        sa.Column("grade", sa.String(32), nullable=False),
        sa.Column("text_sha256", sa.String(64), nullable=False),
        sa.Column("created_at", UTC, nullable=False),
        sa.PrimaryKeyConstraint("assignment_id", "revision", "anchor_ref", name="pk_anchor_essays"),
        sa.ForeignKeyConstraint(["text_sha256"], ["texts.text_sha256"], name="fk_anchor_essays_text_sha256_texts"),
        sa.ForeignKeyConstraint(
            ["assignment_id", "revision"],
            ["assignments.assignment_id", "assignments.revision"],
            name="fk_anchor_essays_assignment_id_assignments",
        ),
    )
    op.create_table(
        "batches",
        sa.Column("batch_id", sa.String(64), nullable=False),
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
        sa.Column("processing_metadata", sa.JSON, nullable=False),
        sa.Column("lease_owner", sa.Text, nullable=True),
        sa.Column("lease_epoch", sa.Integer, nullable=False, server_default="0"),
        sa.Column("lease_since", sa.Double, nullable=True),
        sa.Column("lease_expires_at", sa.Double, nullable=True),
        sa.Column("created_at", UTC, nullable=False),
        sa.Column("completed_at", UTC, nullable=True),
        sa.PrimaryKeyConstraint("batch_id", name="pk_batches"),
        sa.ForeignKeyConstraint(
            ["assignment_id", "assignment_revision"],
            ["assignments.assignment_id", "assignments.revision"],
            name="fk_batches_assignment_id_assignments",
        ),
        sa.CheckConstraint("total_budget > 0", name=op.f("ck_batches_budget_positive")),
    )
    op.create_table(
        "batch_essays",
        sa.Column("batch_id", sa.String(64), nullable=False),
        sa.Column("essay_id", sa.String(160), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("known_grade", sa.String(32), nullable=True),
        sa.Column("text_sha256", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", "essay_id", name="pk_batch_essays"),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.batch_id"], name="fk_batch_essays_batch_id_batches"),
        sa.ForeignKeyConstraint(["text_sha256"], ["texts.text_sha256"], name="fk_batch_essays_text_sha256_texts"),
        sa.CheckConstraint("role IN ('student', 'anchor')", name=op.f("ck_batch_essays_role_known")),
        sa.CheckConstraint(
            "role <> 'anchor' OR known_grade IS NOT NULL", name=op.f("ck_batch_essays_anchor_has_grade")
        ),
    )
    op.create_table(
        "waves",
        sa.Column("batch_id", sa.String(64), nullable=False),
        sa.Column("wave", sa.Integer, nullable=False),
        sa.Column("pair_mode", sa.String(16), nullable=False),
        sa.Column("cut_by_budget", sa.Boolean, nullable=False),
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
        sa.PrimaryKeyConstraint("batch_id", "wave", name="pk_waves"),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.batch_id"], name="fk_waves_batch_id_batches"),
        sa.CheckConstraint("wave >= 1", name=op.f("ck_waves_wave_positive")),
        sa.CheckConstraint("pair_mode IN ('coverage', 'resampling')", name=op.f("ck_waves_pair_mode_known")),
    )
    op.create_table(
        "comparisons",
        sa.Column("batch_id", sa.String(64), nullable=False),
        sa.Column("comparison_id", sa.String(32), nullable=False),
        sa.Column("wave", sa.Integer, nullable=False),
        sa.Column("essay_a", sa.String(160), nullable=False),
        sa.Column("essay_b", sa.String(160), nullable=False),
        sa.Column("pair_mode", sa.String(16), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("winner", sa.String(8), nullable=True),
        sa.Column("confidence", sa.Integer, nullable=True),
        sa.Column("justification", sa.Text, nullable=True),
        sa.Column("error_type", sa.String(64), nullable=True),
        sa.Column("completed_at", UTC, nullable=True),
        sa.PrimaryKeyConstraint("batch_id", "comparison_id", name="pk_comparisons"),
        sa.ForeignKeyConstraint(
            ["batch_id", "wave"], ["waves.batch_id", "waves.wave"], name="fk_comparisons_batch_id_waves"
        ),
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
        sa.CheckConstraint("essay_a <> essay_b", name=op.f("ck_comparisons_two_essays")),
        sa.CheckConstraint("winner IN ('essay_a', 'essay_b')", name=op.f("ck_comparisons_winner_known")),
        sa.CheckConstraint("confidence BETWEEN 1 AND 5", name=op.f("ck_comparisons_confidence_range")),
        sa.CheckConstraint("status IN ('planned', 'judged', 'failed')", name=op.f("ck_comparisons_status_known")),
        sa.CheckConstraint("(status = 'judged') = (winner IS NOT NULL)", name=op.f("ck_comparisons_judged_has_winner")),
        sa.CheckConstraint("pair_mode IN ('coverage', 'resampling')", name=op.f("ck_comparisons_pair_mode_known")),
    )
    op.create_index("ix_comparisons_batch_id_status", "comparisons", ["batch_id", "status"])
    op.create_table(
        "attempts",
        sa.Column("attempt_id", SERIAL, autoincrement=True, nullable=False),
        sa.Column("batch_id", sa.String(64), nullable=False),
        sa.Column("comparison_id", sa.String(32), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("lease_epoch", sa.Integer, nullable=False),
        sa.Column("provider", sa.String(64), nullable=False),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("prompt_sha256", sa.String(64), nullable=False),
        sa.Column("sent_at", UTC, nullable=False),
        sa.Column("finished_at", UTC, nullable=True),
        sa.Column("outcome", sa.String(16), nullable=True),
        sa.Column("error_type", sa.String(64), nullable=True),
        sa.Column("http_status", sa.Integer, nullable=True),
        sa.Column("request_id", sa.String(128), nullable=True),
        sa.Column("tokens_input", sa.Integer, nullable=True),
        sa.Column("tokens_output", sa.Integer, nullable=True),
        sa.Column("latency_seconds", sa.Double, nullable=True),
        sa.Column("cost_usd", sa.Double, nullable=True),
        sa.PrimaryKeyConstraint("attempt_id", name="pk_attempts"),
        sa.ForeignKeyConstraint(
            ["batch_id", "comparison_id"],
            ["comparisons.batch_id", "comparisons.comparison_id"],
            name="fk_attempts_batch_id_comparisons",
        ),
        sa.CheckConstraint("number >= 1", name=op.f("ck_attempts_number_positive")),
        sa.CheckConstraint("outcome IN ('judged', 'error', 'lost')", name=op.f("ck_attempts_outcome_known")),
    )
    op.create_index("ix_attempts_batch_id_comparison_id", "attempts", ["batch_id", "comparison_id"])
    for name, condition in (
        ("uq_attempts_one_open", "outcome IS NULL"),
        ("uq_attempts_one_judged", "outcome = 'judged'"),
    ):
        op.create_index(
            name,
            "attempts",
            ["batch_id", "comparison_id"],
            unique=True,
            sqlite_where=sa.text(condition),
            postgresql_where=sa.text(condition),
        )
