"""What operators look at: dead letters, and the webhooks that are not tried again."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"

GIVEN_UP = sa.text("webhook_failed_at IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "dead_letters",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("queue", sa.String(255), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("job", sa.String(255), nullable=False),
        sa.Column("length", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_index("dead_letters_by_time", "dead_letters", ["at", "id"])
    op.create_index("dead_letters_by_job", "dead_letters", ["job"])
    op.add_column("jobs", sa.Column("webhook_failed_at", sa.Double, nullable=True))
    op.create_index(
        "jobs_failed_webhooks", "jobs", ["webhook_failed_at", "id"],
        postgresql_where=GIVEN_UP, sqlite_where=GIVEN_UP,
    )  # fmt: skip


def downgrade() -> None:
    op.drop_index("jobs_failed_webhooks", "jobs")
    op.drop_column("jobs", "webhook_failed_at")
    op.drop_table("dead_letters")
