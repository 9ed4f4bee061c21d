"""The progress of stages, beside the records of their jobs."""

import msgspec
import sqlalchemy as sa
from alembic import op
from msgspec import Struct, field

revision = "0009"
down_revision = "0008"

PAGE = 20


class Record(Struct):
    """What is needed here of a job's record."""

    run: int = 1
    progress: dict[str, msgspec.Raw] = field(default_factory=dict)


jobs = sa.table("jobs", sa.column("id"), sa.column("status"), sa.column("record", sa.LargeBinary))


def upgrade() -> None:
    table = op.create_table(
        "progress",
        sa.Column("job", sa.String(255), primary_key=True),
        sa.Column("stage", sa.String(32), primary_key=True),
        sa.Column("run", sa.Integer, nullable=False),
        sa.Column("numbers", sa.LargeBinary, nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
    )
    connection = op.get_bind()
    live = sa.select(jobs.c.id).where(jobs.c.status.in_(("IN_QUEUE", "IN_PROGRESS")))
    ids = connection.execute(live).scalars().all()
    for start in range(0, len(ids), PAGE):
        page = jobs.c.id.in_(ids[start : start + PAGE])
        rows = connection.execute(sa.select(jobs.c.id, jobs.c.record).where(page)).all()
        if progress := [row for job, record in rows for row in progress_in(job, record)]:
            connection.execute(sa.insert(table), progress)


def progress_in(job: str, text: bytes) -> list[dict[str, object]]:
    """Nothing if the record cannot be read."""
    try:
        record = msgspec.json.decode(text, type=Record)
    except msgspec.DecodeError:
        return []
    return [
        {
            "job": job,
            "stage": stage,
            "run": record.run,
            "numbers": bytes(numbers),
            "sequence": 1,
        }
        for stage, numbers in record.progress.items()
    ]


def downgrade() -> None:
    op.drop_table("progress")
