"""The tables, as the migrations create them."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

COUNTING = sa.BigInteger().with_variant(sa.Integer, "sqlite")
"""Auto-increments as BIGINT in PostgreSQL, but in SQLite only as INTEGER."""

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(255), primary_key=True),
    sa.Column("owner", sa.String(255), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("run", sa.Integer, nullable=False, server_default="1"),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double, nullable=True),
    sa.Column("ended_at", sa.Double, nullable=True),
    sa.Column("overdue_at", sa.Double, nullable=True),
    sa.Column("line", sa.String(8), nullable=True),
    sa.Column("low", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("released_at", sa.Double, nullable=True, server_default="0"),
    sa.Column("staging", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("record", sa.LargeBinary, nullable=False),
    sa.Column("request_bytes", sa.Integer, nullable=False, server_default="0"),
    sa.Column("kept_until", sa.Double, nullable=True),
    sa.Column("kept_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("model", sa.String(255), nullable=True),
    sa.Column("model_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("webhook_failed_at", sa.Double, nullable=True),
    sa.Index("jobs_by_status", "status", "created_at", "id"),
    sa.Index("jobs_by_owner", "owner", "status", "created_at", "id", "request_bytes"),
    sa.Index("jobs_by_owner_and_time", "owner", "created_at", "id"),
    sa.Index("jobs_by_end", "ended_at"),
)
# A condition of a comparison implies that the column is not NULL, so both databases use these.
sa.Index(
    "jobs_overdue", jobs.c.overdue_at, jobs.c.id,
    postgresql_where=jobs.c.overdue_at.is_not(None), sqlite_where=jobs.c.overdue_at.is_not(None),
)  # fmt: skip
sa.Index(
    "jobs_retried", jobs.c.owner, jobs.c.run,
    postgresql_where=jobs.c.run > 1, sqlite_where=jobs.c.run > 1,
)  # fmt: skip

sa.Index(
    "jobs_kept", jobs.c.owner, jobs.c.kept_until, jobs.c.kept_bytes, jobs.c.id,
    postgresql_where=jobs.c.kept_until.is_not(None), sqlite_where=jobs.c.kept_until.is_not(None),
)  # fmt: skip

STORED = sa.text("kept_bytes > 0")
sa.Index(
    "jobs_stored", jobs.c.owner, jobs.c.kept_bytes, postgresql_where=STORED, sqlite_where=STORED
)

sa.Index(
    "jobs_by_model", jobs.c.model,
    postgresql_where=jobs.c.model.is_not(None), sqlite_where=jobs.c.model.is_not(None),
)  # fmt: skip
COUNTED = sa.text("model_bytes > 0")
sa.Index(
    "jobs_models", jobs.c.owner, jobs.c.model, jobs.c.model_bytes,
    postgresql_where=COUNTED, sqlite_where=COUNTED,
)  # fmt: skip

FAILED_WEBHOOKS = jobs.c.webhook_failed_at.is_not(None)
sa.Index(
    "jobs_failed_webhooks", jobs.c.webhook_failed_at, jobs.c.id,
    postgresql_where=FAILED_WEBHOOKS, sqlite_where=FAILED_WEBHOOKS,
)  # fmt: skip

WAITING = sa.text("status = 'IN_QUEUE' AND released_at IS NULL")
"""As written in the partial index: a bound parameter would not imply it."""
sa.Index(
    "jobs_waiting", *(jobs.c[name] for name in ("line", "low", "owner", "created_at", "id")),
    postgresql_where=WAITING, sqlite_where=WAITING,
)  # fmt: skip
RELEASED = sa.text("status = 'IN_QUEUE' AND released_at IS NOT NULL")
sa.Index(
    "jobs_released", *(jobs.c[name] for name in ("line", "released_at", "id", "owner", "staging")),
    postgresql_where=RELEASED, sqlite_where=RELEASED,
)  # fmt: skip

turns = sa.Table(
    "turns",
    metadata,
    sa.Column("owner", sa.String(255), primary_key=True),
    sa.Column("line", sa.String(8), primary_key=True),
    sa.Column("released_at", sa.Double, nullable=False),
)

open_stages = sa.Table(
    "open_stages",
    metadata,
    sa.Column("job", sa.String(255), primary_key=True),
    sa.Column("stage", sa.String(32), primary_key=True),
    sa.Column("claim", sa.String(255), nullable=True),
    sa.Column("due_at", sa.Double, nullable=False),
)
sa.Index(
    "open_stages_claimed", open_stages.c.claim,
    postgresql_where=open_stages.c.claim.is_not(None),
    sqlite_where=open_stages.c.claim.is_not(None),
)  # fmt: skip
sa.Index(
    "open_stages_waiting", open_stages.c.stage, open_stages.c.due_at, open_stages.c.job,
    postgresql_where=open_stages.c.claim.is_(None), sqlite_where=open_stages.c.claim.is_(None),
)  # fmt: skip

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("number", COUNTING, primary_key=True),
    sa.Column("id", sa.String(255), nullable=False, unique=True),
    sa.Column("message", sa.LargeBinary, nullable=False),
    sa.Column("queue", sa.String(255), nullable=True),
    sa.Column("needs_listener", sa.Boolean, key="mandatory", nullable=False),
    sa.Column("due_at", sa.Double, nullable=False),
    sa.Column("job", sa.String(255), nullable=False, server_default=sa.text("''")),
    sa.Column("taken_until", sa.Double, nullable=False, server_default="0"),
    sa.Column("owner", sa.String(255), nullable=True),
    sa.Column("traceparent", sa.String(55), nullable=True),
    sa.Column("tracestate", sa.String(512), nullable=False, server_default=sa.text("''")),
    sa.Index("outbox_by_time", "due_at", "number"),
    sa.Index("outbox_by_job", "job", "taken_until"),
)

sa.Index(
    "outbox_webhooks", outbox.c.owner, outbox.c.due_at, outbox.c.number,
    postgresql_where=outbox.c.owner.is_not(None), sqlite_where=outbox.c.owner.is_not(None),
)  # fmt: skip

events = sa.Table(
    "events",
    metadata,
    sa.Column("job", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("type", sa.String(32), nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("owner", sa.String(255), nullable=True),
    sa.Index("events_by_owner", "owner", "at", "job", "version", "number"),
)

progress = sa.Table(
    "progress",
    metadata,
    sa.Column("job", sa.String(255), primary_key=True),
    sa.Column("stage", sa.String(32), primary_key=True),
    sa.Column("run", sa.Integer, nullable=False),
    sa.Column("numbers", sa.LargeBinary, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
)

streams = sa.Table(
    "streams",
    metadata,
    sa.Column("job", sa.String(255), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)

removed = sa.Table(
    "removed",
    metadata,
    sa.Column("job", sa.String(255), primary_key=True),
    sa.Column("at", sa.Double, nullable=False),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(255), nullable=False, unique=True),
    sa.Column("scopes", sa.String(255), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("disabled_at", sa.Double, nullable=True),
    sa.Column("last_used_at", sa.Double, nullable=True),
)

uploads = sa.Table(
    "uploads",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(255), nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("received", sa.BigInteger, nullable=False),
    sa.Column("parts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("expected", sa.String(64), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("touched_at", sa.Double, nullable=False),
    sa.Column("finished_at", sa.Double, nullable=True),
    sa.Index("uploads_by_owner", "owner", "finished_at"),
    sa.Index("uploads_by_end", "finished_at", "touched_at"),
)

upload_parts = sa.Table(
    "upload_parts",
    metadata,
    sa.Column("upload", sa.String(64), primary_key=True),
    sa.Column("offset", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("key", sa.String(1024), nullable=False),
)

dead_letters = sa.Table(
    "dead_letters",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("queue", sa.String(255), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("type", sa.String(64), nullable=False),
    sa.Column("job", sa.String(255), nullable=False),
    sa.Column("length", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Index("dead_letters_by_time", "at", "id"),
    sa.Index("dead_letters_by_job", "job"),
)
