"""Run the revisions inside the transaction that `Database.migrate` has opened.

Revisions in `versions/` are written by hand; the contract tests compare their result with
`services/gateway/database/tables.py`.
"""

from alembic import context

from services.gateway.database.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
