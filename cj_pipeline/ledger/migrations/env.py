"""Alembic's entry: runs the revisions on the connection that `engine.upgrade` hands over."""

from alembic import context

from cj_pipeline.ledger.engine import VERSION_TABLE
from cj_pipeline.ledger.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
