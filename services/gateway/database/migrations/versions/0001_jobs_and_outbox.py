"""Jobs, and the outbox of messages to publish."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(255), primary_key=True),
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("ended_at", sa.Double, nullable=True),
        sa.Column("record", sa.LargeBinary, nullable=False),
    )
    op.create_index("jobs_by_status", "jobs", ["status", "created_at", "id"])
    op.create_index("jobs_by_owner", "jobs", ["owner", "status"])
    op.create_index("jobs_by_end", "jobs", ["ended_at"])
    op.create_table(
        "outbox",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("id", sa.String(255), nullable=False, unique=True),
        sa.Column("message", sa.LargeBinary, nullable=False),
        sa.Column("queue", sa.String(255), nullable=True),
        sa.Column("needs_listener", sa.Boolean, nullable=False),
        sa.Column("due_at", sa.Double, nullable=False),
    )
    op.create_index("outbox_by_time", "outbox", ["due_at", "number"])


def downgrade() -> None:
    op.drop_table("outbox")
    op.drop_table("jobs")
