"""Whose turn it is: the jobs that wait for it, and each owner's last one."""

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa
from alembic import op
from msgspec import Struct, field

revision = "0011"
down_revision = "0010"

PAGE = 20
NEWEST = 20
"""Completed jobs whose line is filled in, for the mean time that waiting jobs are shown."""
SUBMITTED = b'{"type":"job.submitted"'
WAITING = sa.text("status = 'IN_QUEUE' AND released_at IS NULL")
RELEASED = sa.text("status = 'IN_QUEUE' AND released_at IS NOT NULL")


class Policy(Struct):
    low: bool = field(default=False, name="lowPriority")


class Stage(Struct):
    done: bool = False
    failed: str | None = None


class Record(Struct):
    """What is needed here of a job's record; the rest is not even decoded."""

    trains: bool = True
    checks: bool = False
    policy: Policy = field(default_factory=Policy)
    stages: dict[str, Stage] = field(default_factory=dict)

    @property
    def columns(self) -> dict[str, object]:
        staging = self.stages.get("staging")
        return {
            "line": "check" if self.checks else "train" if self.trains else "draw",
            "low": self.policy.low,
            "staging": staging is not None and not staging.done and staging.failed is None,
        }


jobs = sa.table(
    "jobs",
    *(sa.column(name) for name in ("id", "status", "created_at", "line", "low", "staging")),
    sa.column("record", sa.LargeBinary),
)
outbox = sa.table(
    "outbox",
    *(sa.column(name) for name in ("number", "queue")),
    sa.column("message", sa.LargeBinary),
)


def upgrade() -> None:
    for column in (
        sa.Column("line", sa.String(8), nullable=True),
        sa.Column("low", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("released_at", sa.Double, nullable=True, server_default="0"),
        sa.Column("staging", sa.Boolean, nullable=False, server_default=sa.false()),
    ):
        op.add_column("jobs", column)
    for name, columns, condition in (
        ("jobs_waiting", ["line", "low", "owner", "created_at", "id"], WAITING),
        ("jobs_released", ["line", "released_at", "id", "owner", "staging"], RELEASED),
    ):
        op.create_index(name, "jobs", columns, postgresql_where=condition, sqlite_where=condition)
    op.create_table(
        "turns",
        sa.Column("owner", sa.String(255), primary_key=True),
        sa.Column("line", sa.String(8), primary_key=True),
        sa.Column("released_at", sa.Double, nullable=False),
    )
    op.add_column("outbox", sa.Column("owner", sa.String(255), nullable=True))
    is_webhook = sa.text("owner IS NOT NULL")
    op.create_index(
        "outbox_webhooks", "outbox", ["owner", "due_at", "number"],
        postgresql_where=is_webhook, sqlite_where=is_webhook,
    )  # fmt: skip
    connection = op.get_bind()
    newest = jobs.c.created_at.desc()
    of = sa.select(jobs.c.id).order_by(newest)
    queued = of.where(jobs.c.status == "IN_QUEUE")
    completed = of.where(jobs.c.status == "COMPLETED").limit(NEWEST)
    for ids in (queued, completed):
        fill(connection, connection.execute(ids).scalars().all())
    send_to_fetchers(connection)


def fill(connection: sa.Connection, ids: Sequence[str]) -> None:
    """All are released already. A few at a time, because records may be large."""
    for start in range(0, len(ids), PAGE):
        page = jobs.c.id.in_(ids[start : start + PAGE])
        for row in connection.execute(sa.select(jobs.c.id, jobs.c.record).where(page)).all():
            try:
                record = msgspec.json.decode(row.record, type=Record)
            except msgspec.DecodeError:  # nobody could read it; it has no turn either
                continue
            connection.execute(sa.update(jobs).where(jobs.c.id == row.id).values(record.columns))


def send_to_fetchers(connection: sa.Connection) -> None:
    """What was said of a new job requested its staging, too; no queue is bound to it any more."""
    published = sa.select(outbox.c.number, outbox.c.message).where(outbox.c.queue.is_(None))
    for row in connection.execute(published).all():
        if row.message.startswith(SUBMITTED):
            to_fetchers = sa.update(outbox).where(outbox.c.number == row.number)
            connection.execute(to_fetchers.values(queue="fetcher"))


def downgrade() -> None:
    op.drop_index("outbox_webhooks", "outbox")
    op.drop_column("outbox", "owner")
    op.drop_table("turns")
    op.drop_index("jobs_released", "jobs")
    op.drop_index("jobs_waiting", "jobs")
    for name in ("staging", "released_at", "low", "line"):
        op.drop_column("jobs", name)
