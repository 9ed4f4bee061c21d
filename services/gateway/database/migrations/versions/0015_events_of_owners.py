"""Whose each event is, so that all of a key's are found in their order."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"

events = sa.table("events", sa.column("job"), sa.column("owner"))
jobs = sa.table("jobs", sa.column("id"), sa.column("owner"))


def upgrade() -> None:
    op.add_column("events", sa.Column("owner", sa.String(255), nullable=True))
    of_its_job = sa.select(jobs.c.owner).where(jobs.c.id == events.c.job).scalar_subquery()
    op.get_bind().execute(sa.update(events).values(owner=of_its_job))
    op.create_index("events_by_owner", "events", ["owner", "at", "job", "version", "number"])


def downgrade() -> None:
    op.drop_index("events_by_owner", "events")
    op.drop_column("events", "owner")
