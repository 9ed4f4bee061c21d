"""The datasets of checks, which are kept for a while."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

KEPT = sa.text("kept_until IS NOT NULL")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("kept_until", sa.Double, nullable=True))
    op.add_column(
        "jobs", sa.Column("kept_bytes", sa.BigInteger, nullable=False, server_default="0")
    )
    columns = ["owner", "kept_until", "kept_bytes", "id"]
    op.create_index("jobs_kept", "jobs", columns, postgresql_where=KEPT, sqlite_where=KEPT)


def downgrade() -> None:
    op.drop_index("jobs_kept", "jobs")
    op.drop_column("jobs", "kept_bytes")
    op.drop_column("jobs", "kept_until")
