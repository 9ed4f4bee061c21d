"""The models in the store that jobs still need."""

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from alembic import op
from msgspec import Struct, field

revision = "0014"
down_revision = "0013"

PAGE = 20
STILL_NEEDED = ("IN_QUEUE", "IN_PROGRESS", "FAILED", "TIMED_OUT")
"""A failed job may be retried."""
CACHE = "cache/"
INDEXES = (
    ("jobs_by_model", ["model"], "model IS NOT NULL"),
    ("jobs_models", ["owner", "model", "model_bytes"], "model_bytes > 0"),
)


class Trigger(Struct):
    """What is needed here of the message that requests training, or generation without it."""

    base_model: str = ""
    model: Any = None


class Stage(Struct):
    trigger: bytes = field(name="asking")


class Record(Struct):
    """What is needed here of a job's record."""

    stages: dict[str, Stage] = field(default_factory=dict)


jobs = sa.table(
    "jobs",
    *(sa.column(name) for name in ("id", "status", "model")),
    sa.column("record", sa.LargeBinary),
)


def upgrade() -> None:
    op.add_column("jobs", sa.Column("model", sa.String(255), nullable=True))
    op.add_column(
        "jobs", sa.Column("model_bytes", sa.BigInteger, nullable=False, server_default="0")
    )
    connection = op.get_bind()
    needed = sa.select(jobs.c.id).where(jobs.c.status.in_(STILL_NEEDED))
    ids = connection.execute(needed).scalars().all()
    for start in range(0, len(ids), PAGE):
        fill(connection, ids[start : start + PAGE])
    for name, columns, condition in INDEXES:
        where = sa.text(condition)
        op.create_index(name, "jobs", columns, postgresql_where=where, sqlite_where=where)


def fill(connection: sa.Connection, ids: Sequence[str]) -> None:
    rows = connection.execute(sa.select(jobs.c.id, jobs.c.record).where(jobs.c.id.in_(ids)))
    for row in rows.all():
        if model := model_in(row.record):
            update = sa.update(jobs).where(jobs.c.id == row.id).values(model=model)
            connection.execute(update)


def model_in(text: bytes) -> str | None:
    """None also if the record cannot be read."""
    try:
        stages = msgspec.json.decode(text, type=Record).stages
        for stage in (stages[name] for name in ("training", "generation") if name in stages):
            trigger = msgspec.json.decode(stage.trigger, type=Trigger)
            for named in (trigger.base_model, trigger.model):
                if isinstance(named, str) and named.startswith(CACHE):
                    return named
    except msgspec.DecodeError:
        pass
    return None


def downgrade() -> None:
    for name, _, _ in INDEXES:
        op.drop_index(name, "jobs")
    op.drop_column("jobs", "model_bytes")
    op.drop_column("jobs", "model")
