"""What the budgets of a key are counted by."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

BY_OWNER = ["owner", "status", "created_at", "id"]
PARTS = "UPDATE uploads SET parts = (SELECT count(*) FROM upload_parts WHERE upload = uploads.id)"


def upgrade() -> None:
    op.add_column(
        "jobs", sa.Column("request_bytes", sa.Integer, nullable=False, server_default="0")
    )
    op.drop_index("jobs_by_owner", "jobs")
    op.create_index("jobs_by_owner", "jobs", [*BY_OWNER, "request_bytes"])
    op.add_column("uploads", sa.Column("parts", sa.Integer, nullable=False, server_default="0"))
    op.execute(PARTS)


def downgrade() -> None:
    op.drop_column("uploads", "parts")
    op.drop_index("jobs_by_owner", "jobs")
    op.create_index("jobs_by_owner", "jobs", BY_OWNER)
    op.drop_column("jobs", "request_bytes")
