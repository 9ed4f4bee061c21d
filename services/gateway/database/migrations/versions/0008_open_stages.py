"""What supervision reads of live jobs: their open stages, and when they are overdue."""

from collections.abc import Iterator

import msgspec
import sqlalchemy as sa
from alembic import op
from msgspec import Struct, field

revision = "0008"
down_revision = "0007"

PAGE = 20
NEWEST = 20
"""Completed jobs whose start is filled in, for the mean time that waiting jobs are shown."""


class Claim(Struct):
    id: str


class Stage(Struct):
    due_at: float = 0.0
    claim: Claim | None = None
    done: bool = False
    failed: str | None = None


class Policy(Struct):
    execution_timeout: int = field(default=24 * 3600 * 1000, name="executionTimeout")
    ttl: int = 7 * 24 * 3600 * 1000


class Record(Struct):
    """What is needed here of a job's record; the rest is not even decoded."""

    created_at: float
    started_at: float | None = None
    policy: Policy = field(default_factory=Policy)
    stages: dict[str, Stage] = field(default_factory=dict)

    def overdue_at(self) -> float:
        limits = [self.created_at + self.policy.ttl / 1000]
        if self.started_at is not None:
            limits.append(self.started_at + self.policy.execution_timeout / 1000)
        return min(limits)


jobs = sa.table(
    "jobs",
    *(sa.column(name) for name in ("id", "status", "created_at", "started_at", "overdue_at")),
    sa.column("record", sa.LargeBinary),
)


def upgrade() -> None:
    for name in ("started_at", "overdue_at"):
        op.add_column("jobs", sa.Column(name, sa.Double, nullable=True))
    table = op.create_table(
        "open_stages",
        sa.Column("job", sa.String(255), primary_key=True),
        sa.Column("stage", sa.String(32), primary_key=True),
        sa.Column("claim", sa.String(255), nullable=True),
        sa.Column("due_at", sa.Double, nullable=False),
    )
    fill(table)
    op.drop_index("jobs_by_owner", "jobs")
    op.create_index("jobs_by_owner", "jobs", ["owner", "status", "created_at", "id"])
    for name, on, columns, condition in (
        ("jobs_overdue", "jobs", ["overdue_at", "id"], "overdue_at IS NOT NULL"),
        ("jobs_retried", "jobs", ["owner", "run"], "run > 1"),
        ("open_stages_claimed", "open_stages", ["claim"], "claim IS NOT NULL"),
        ("open_stages_waiting", "open_stages", ["stage", "due_at", "job"], "claim IS NULL"),
    ):
        where = sa.text(condition)
        op.create_index(name, on, columns, postgresql_where=where, sqlite_where=where)


def fill(table: sa.Table) -> None:
    connection = op.get_bind()
    for job, record in live_jobs(connection):
        connection.execute(
            sa.update(jobs)
            .where(jobs.c.id == job)
            .values(started_at=record.started_at, overdue_at=record.overdue_at())
        )
        stages = [
            {
                "job": job,
                "stage": name,
                "claim": stage.claim.id if stage.claim else None,
                "due_at": stage.due_at,
            }
            for name, stage in record.stages.items()
            if not stage.done and stage.failed is None
        ]
        if stages:
            connection.execute(sa.insert(table), stages)
    newest = sa.select(jobs.c.id, jobs.c.record).where(jobs.c.status == "COMPLETED")
    for job, record in readable(
        connection, newest.order_by(jobs.c.created_at.desc()).limit(NEWEST)
    ):
        connection.execute(
            sa.update(jobs).where(jobs.c.id == job).values(started_at=record.started_at)
        )


def live_jobs(connection: sa.Connection) -> Iterator[tuple[str, Record]]:
    """A few at a time, because records may be large."""
    live = sa.select(jobs.c.id).where(jobs.c.status.in_(("IN_QUEUE", "IN_PROGRESS")))
    ids = connection.execute(live).scalars().all()
    for start in range(0, len(ids), PAGE):
        page = jobs.c.id.in_(ids[start : start + PAGE])
        yield from readable(connection, sa.select(jobs.c.id, jobs.c.record).where(page))


def readable(
    connection: sa.Connection, wanted: sa.Select[tuple[str, bytes]]
) -> Iterator[tuple[str, Record]]:
    """Without the records that nobody could read: they are supervised no more than before."""
    for row in connection.execute(wanted).all():
        try:
            yield row.id, msgspec.json.decode(row.record, type=Record)
        except msgspec.DecodeError:
            continue


def downgrade() -> None:
    op.drop_table("open_stages")
    op.drop_index("jobs_by_owner", "jobs")
    op.create_index("jobs_by_owner", "jobs", ["owner", "status"])
    op.drop_index("jobs_retried", "jobs")
    op.drop_index("jobs_overdue", "jobs")
    op.drop_column("jobs", "overdue_at")
    op.drop_column("jobs", "started_at")
