"""What is passed on beside the trace that an outgoing message belongs to."""

import sqlalchemy as sa
from alembic import op

revision = "0018_beside_0017"
down_revision = "0017"


def upgrade() -> None:
    state = sa.Column("tracestate", sa.String(512), nullable=False, server_default=sa.text("''"))
    op.add_column("outbox", state)


def downgrade() -> None:
    op.drop_column("outbox", "tracestate")
