"""The job of an outgoing message, and its lease by one of several gateways."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column(
        "outbox", sa.Column("job", sa.String(255), nullable=False, server_default=sa.text("''"))
    )
    op.add_column("outbox", sa.Column("taken_until", sa.Double, nullable=False, server_default="0"))
    job = "split_part(id, '/', 1)"
    if op.get_bind().dialect.name == "sqlite":
        job = "substr(id, 1, instr(id || '/', '/') - 1)"
    op.execute(f"UPDATE outbox SET job = {job}")  # noqa: S608 - from the two lines above
    op.create_index("outbox_by_job", "outbox", ["job", "taken_until"])


def downgrade() -> None:
    op.drop_index("outbox_by_job", "outbox")
    op.drop_column("outbox", "taken_until")
    op.drop_column("outbox", "job")
