"""Provider batch jobs, why a call failed, money that ran out, and signs of instructions to the judge in an essay.

Existing rows keep their meaning: no wave was stopped by its cost, and an essay that was never examined says so (null).
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

UTC = sa.DateTime(timezone=True)


def upgrade() -> None:
    with op.batch_alter_table("attempts") as table:
        table.add_column(sa.Column("error_detail", sa.Text, nullable=True))
        # op.f: the full name as it stands, not to be expanded by the naming convention
        table.drop_constraint(op.f("ck_attempts_outcome_known"), type_="check")
        table.create_check_constraint(
            op.f("ck_attempts_outcome_known"), "outcome IN ('judged', 'error', 'lost', 'unsent')"
        )
    op.create_index("ix_attempts_bundle_id", "attempts", ["batch_id", "bundle_id"])
    with op.batch_alter_table("waves") as table:
        table.add_column(sa.Column("cost_stopped", sa.Boolean, nullable=False, server_default=sa.false()))
    with op.batch_alter_table("batch_essays") as table:
        table.add_column(sa.Column("injection_signs", sa.Text, nullable=True))
    op.create_table(
        "provider_jobs",
        sa.Column("job_key", sa.String(64), nullable=False),
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
        sa.PrimaryKeyConstraint("job_key", name="pk_provider_jobs"),
        sa.ForeignKeyConstraint(
            ["batch_id", "wave"], ["waves.batch_id", "waves.wave"], name="fk_provider_jobs_batch_id_waves"
        ),
        sa.CheckConstraint("items >= 1", name=op.f("ck_provider_jobs_items_positive")),
        sa.CheckConstraint(
            "status IN ('submitting', 'submitted', 'completed', 'expired', 'cancelled', 'failed', 'absent', "
            "'abandoned')",
            name=op.f("ck_provider_jobs_status_known"),
        ),
    )
    op.create_index("ix_provider_jobs_batch_id", "provider_jobs", ["batch_id"])
