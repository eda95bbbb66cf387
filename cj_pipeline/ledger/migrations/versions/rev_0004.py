"""The anchor bank that a batch was submitted with.

Existing batches were judged and scored without one, and say so (null).
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("batches") as table:
        table.add_column(sa.Column("anchor_bank", sa.JSON(none_as_null=True), nullable=True))
