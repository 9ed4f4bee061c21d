"""Runs the revisions inside the transaction that `Database.migrate` has opened, and only there.

A revision is written by hand into `versions/`; the contract tests compare where it leads with the
tables in `services/gateway/database/tables.py`.
"""

from alembic import context

from services.gateway.database.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
