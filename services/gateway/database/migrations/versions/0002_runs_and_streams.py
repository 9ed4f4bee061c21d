"""The number of runs of a job, and the stream position."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("run", sa.Integer, nullable=False, server_default="1"))
    op.create_index("jobs_by_owner_and_time", "jobs", ["owner", "created_at", "id"])
    op.create_table(
        "streams",
        sa.Column("job", sa.String(255), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("streams")
    op.drop_index("jobs_by_owner_and_time", "jobs")
    op.drop_column("jobs", "run")
