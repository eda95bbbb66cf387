"""Alembic revisions of the ledger, oldest first. A revision is never edited once it has shipped."""
