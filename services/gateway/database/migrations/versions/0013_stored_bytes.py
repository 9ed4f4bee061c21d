"""What checks keep in the store is counted after their datasets are gone, too."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

STORED = sa.text("kept_bytes > 0")


def upgrade() -> None:
    columns = ["owner", "kept_bytes"]
    op.create_index("jobs_stored", "jobs", columns, postgresql_where=STORED, sqlite_where=STORED)


def downgrade() -> None:
    op.drop_index("jobs_stored", "jobs")
