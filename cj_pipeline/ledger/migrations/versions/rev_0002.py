"""Holds, launches, publications, bundles, orphan results and events; winners by position ('a', 'b').

Existing batches keep everything they had: their winners are translated, each gets a correlation id derived from its
batch id, and attempts take the moment of sending as the moment of queueing.
"""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

UTC = sa.DateTime(timezone=True)
SERIAL = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    _translate_winners()
    _extend_batches()
    _extend_attempts()
    with op.batch_alter_table("assignments") as table:
        table.add_column(sa.Column("system_prompt", sa.Text, nullable=True))
    with op.batch_alter_table("batch_essays") as table:
        table.add_column(sa.Column("quality", sa.Double, nullable=True))
    with op.batch_alter_table("waves") as table:
        table.add_column(sa.Column("provider_rejected", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_table(
        "orphan_results",
        sa.Column("orphan_id", SERIAL, autoincrement=True, nullable=False),
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
        sa.PrimaryKeyConstraint("orphan_id", name="pk_orphan_results"),
    )
    op.create_index("ix_orphan_results_batch_id", "orphan_results", ["batch_id"])
    op.create_table(
        "batch_events",
        sa.Column("event_id", SERIAL, autoincrement=True, nullable=False),
        sa.Column("batch_id", sa.String(64), nullable=False),
        sa.Column("at", UTC, nullable=False),
        sa.Column("event", sa.String(32), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("event_id", name="pk_batch_events"),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.batch_id"], name="fk_batch_events_batch_id_batches"),
    )
    op.create_index("ix_batch_events_batch_id", "batch_events", ["batch_id"])


def _translate_winners() -> None:
    # op.f: the full name as it stands, not to be expanded by the naming convention
    with op.batch_alter_table("comparisons") as table:
        table.drop_constraint(op.f("ck_comparisons_winner_known"), type_="check")
        table.drop_constraint(op.f("ck_comparisons_status_known"), type_="check")
    op.execute("UPDATE comparisons SET winner = substr(winner, 7, 1) WHERE winner IS NOT NULL")
    with op.batch_alter_table("comparisons") as table:
        table.alter_column("winner", type_=sa.String(1), existing_type=sa.String(8), existing_nullable=True)
        table.create_check_constraint(op.f("ck_comparisons_winner_known"), "winner IN ('a', 'b')")
        table.create_check_constraint(
            op.f("ck_comparisons_status_known"), "status IN ('planned', 'judged', 'failed', 'withdrawn')"
        )


def _extend_batches() -> None:
    with op.batch_alter_table("batches") as table:
        table.add_column(sa.Column("correlation_id", sa.String(36), nullable=True))
        table.add_column(sa.Column("hold_reason", sa.Text, nullable=True))
        table.add_column(sa.Column("launch", sa.Integer, nullable=False, server_default="0"))
        table.add_column(sa.Column("launched_at", UTC, nullable=True))
        table.add_column(sa.Column("idle_launches", sa.Integer, nullable=False, server_default="0"))
        table.add_column(sa.Column("launch_mark", sa.String(64), nullable=True))
        table.add_column(sa.Column("not_before", UTC, nullable=True))
        table.add_column(sa.Column("published_at", UTC, nullable=True))
        table.add_column(sa.Column("published_as_of", sa.Integer, nullable=True))
    batches = sa.table("batches", sa.column("batch_id"), sa.column("correlation_id"))
    connection = op.get_bind()
    for batch_id in connection.execute(sa.select(batches.c.batch_id)).scalars().all():
        connection.execute(
            batches.update()
            .where(batches.c.batch_id == batch_id)
            .values(correlation_id=str(uuid.uuid5(uuid.NAMESPACE_OID, batch_id)))
        )
    with op.batch_alter_table("batches") as table:
        table.alter_column("correlation_id", existing_type=sa.String(36), nullable=False)


def _extend_attempts() -> None:
    with op.batch_alter_table("attempts") as table:
        table.add_column(sa.Column("bundle_id", sa.String(64), nullable=True))
        table.add_column(sa.Column("fence_marker", sa.String(64), nullable=True))
        table.add_column(sa.Column("queued_at", UTC, nullable=True))
        table.add_column(sa.Column("tokens_cache_read", sa.Integer, nullable=True))
        table.add_column(sa.Column("tokens_cache_write", sa.Integer, nullable=True))
        table.add_column(sa.Column("tokens_reasoning", sa.Integer, nullable=True))
        table.add_column(sa.Column("upper_bound_usd", sa.Double, nullable=True))
    op.execute("UPDATE attempts SET queued_at = sent_at")
    with op.batch_alter_table("attempts") as table:
        table.alter_column("queued_at", existing_type=UTC, nullable=False)
