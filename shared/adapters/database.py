"""The job store in a database: SQLite for one gateway, PostgreSQL when several run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from sqlite3 import SQLITE_BUSY
from time import monotonic
from typing import Any, Self, get_args

import aiosqlite
import msgspec
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from asyncpg.exceptions import InterfaceError, PostgresError
from sqlalchemy import event, exc
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Row, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from shared.errors import Unavailable
from shared.jobs import ENDS, Status
from shared.ports import Outgoing, StoredJob

MIGRATIONS = Path(__file__).with_name("migrations")
DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
LIVE = tuple(status for status in get_args(Status) if status not in ENDS)
PAGE = 100
"""Rows fetched at a time where all are asked for."""
MIGRATION_LOCK = 0x65766572
"""Number of the advisory lock under which one process at a time migrates PostgreSQL."""

WAIT_SECONDS = 5.0
"""How long a connection waits for SQLite's write lock."""
LOCKED_SECONDS = 0.01
"""Between two tries where SQLite itself does not wait."""
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0

OURS_TO_MEND = (exc.IntegrityError, exc.ProgrammingError, exc.DataError, exc.NotSupportedError)
"""A wrong statement is our mistake, and waiting does not mend it."""
AWAY = (
    *(exc.DBAPIError, exc.TimeoutError),
    *(PostgresError, InterfaceError, OSError, aiosqlite.OperationalError),
)
"""The second row is what the drivers raise by themselves, before there is a connection."""

metadata = sa.MetaData()

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(255), primary_key=True),
    sa.Column("owner", sa.String(255), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("ended_at", sa.Double, nullable=True),
    sa.Column("record", sa.LargeBinary, nullable=False),
    sa.Index("jobs_by_status", "status", "created_at", "id"),
    sa.Index("jobs_by_owner", "owner", "status"),
    sa.Index("jobs_by_end", "ended_at"),
)

outbox = sa.Table(
    "outbox",
    metadata,
    # BIGINT counts up by itself in PostgreSQL, INTEGER alone does in SQLite.
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("id", sa.String(255), nullable=False, unique=True),
    sa.Column("message", sa.LargeBinary, nullable=False),
    sa.Column("queue", sa.String(255), nullable=True),
    sa.Column("needs_listener", sa.Boolean, nullable=False),
    sa.Column("due_at", sa.Double, nullable=False),
    sa.Index("outbox_by_time", "due_at", "number"),
)


class Database:
    """Jobs and outbox in two tables; see :class:`shared.ports.JobStore`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._insert = insert_of(engine.dialect.name)
        # SQLite has one writer at a time; queueing here is fair, its own lock is not.
        self._turn = asyncio.Lock() if engine.dialect.name == "sqlite" else nullcontext()

    @classmethod
    def open(cls, url: str) -> Self:
        """A store for ``sqlite:///file`` or ``postgresql://user:password@host/name``.

        Nothing is connected yet. The folder of a SQLite file is made.
        """
        address = normalise(url)
        return cls(_sqlite(address) if _is_sqlite(address) else _postgresql(address))

    async def migrate(self) -> None:
        if self._engine.dialect.name == "sqlite":
            await self._write_ahead()
        async with self._writing() as connection:
            if connection.dialect.name == "postgresql":
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            await connection.run_sync(_upgrade)

    async def insert(self, job: StoredJob, outgoing: Sequence[Outgoing]) -> bool:
        async with self._writing() as connection:
            row = self._insert(jobs).values(**_columns(job)).on_conflict_do_nothing()
            if (await connection.execute(row)).rowcount == 0:
                return False
            await self._add(connection, outgoing)
            return True

    async def get(self, job_id: str) -> StoredJob | None:
        found = await self._all(sa.select(jobs).where(jobs.c.id == job_id))
        return _job(found[0]) if found else None

    async def replace(
        self, job: StoredJob, outgoing: Sequence[Outgoing], *, expected_version: int
    ) -> bool:
        if job.version != expected_version + 1:
            raise ValueError(f"version {job.version} cannot follow {expected_version}")
        ours = (jobs.c.id == job.id) & (jobs.c.version == expected_version)
        async with self._writing() as connection:
            update = sa.update(jobs).where(ours).values(**_columns(job))
            if (await connection.execute(update)).rowcount == 0:
                return False
            await self._add(connection, outgoing)
            return True

    async def live(self) -> AsyncIterator[StoredJob]:
        place = sa.tuple_(jobs.c.created_at, jobs.c.id)
        all_live = sa.select(jobs).where(jobs.c.status.in_(LIVE)).order_by(*place.clauses)
        page = await self._all(all_live.limit(PAGE))
        while page:
            for row in page:
                yield _job(row)
            after = place > (page[-1].created_at, page[-1].id)
            page = await self._all(all_live.where(after).limit(PAGE))

    async def ended_before(self, moment: float, limit: int = 100) -> Sequence[str]:
        old = jobs.c.status.in_(ENDS) & (jobs.c.ended_at < moment)
        ids = sa.select(jobs.c.id).where(old).order_by(jobs.c.ended_at).limit(limit)
        return [row.id for row in await self._all(ids)]

    async def delete(self, job_id: str) -> None:
        await self._do(sa.delete(jobs).where(jobs.c.id == job_id))

    async def count_live(self, owner: str) -> int:
        theirs = (jobs.c.owner == owner) & jobs.c.status.in_(LIVE)
        (row,) = await self._all(sa.select(sa.func.count().label("number")).where(theirs))
        return int(row.number)

    async def due(self, now: float, limit: int = 100) -> Sequence[Outgoing]:
        order = (outbox.c.due_at, outbox.c.number)
        rows = sa.select(outbox).where(outbox.c.due_at <= now).order_by(*order).limit(limit)
        return [_outgoing(row) for row in await self._all(rows)]

    async def sent(self, outgoing_id: str) -> None:
        await self._do(sa.delete(outbox).where(outbox.c.id == outgoing_id))

    async def postpone(self, outgoing_id: str, due_at: float) -> None:
        row = sa.update(outbox).where(outbox.c.id == outgoing_id)
        await self._do(row.values(due_at=due_at))

    async def close(self) -> None:
        await self._engine.dispose()

    async def _write_ahead(self) -> None:
        """Have SQLite keep a write-ahead log, so that readers do not wait for a writer.

        The file remembers it. SQLite does not wait for the lock that the change needs, as it does
        for every other: whoever starts at the same moment tries again.
        """
        with _away():
            async with self._engine.connect() as connection:
                raw = (await connection.get_raw_connection()).driver_connection
                assert isinstance(raw, aiosqlite.Connection)  # noqa: S101 - the engine's driver
                deadline = monotonic() + WAIT_SECONDS
                while not await _in_wal(raw):
                    if monotonic() > deadline:
                        raise Unavailable("the database does not answer: it is locked")
                    await asyncio.sleep(LOCKED_SECONDS)

    async def _add(self, connection: AsyncConnection, outgoing: Sequence[Outgoing]) -> None:
        if outgoing:
            rows = self._insert(outbox).on_conflict_do_nothing()
            await connection.execute(rows, [_columns(each) for each in outgoing])

    async def _all(self, statement: sa.Executable) -> Sequence[Row[Any]]:
        with _away():
            async with self._engine.connect() as connection:
                return (await connection.execute(statement)).all()

    async def _do(self, statement: sa.Executable) -> None:
        async with self._writing() as connection:
            await connection.execute(statement)

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncConnection]:
        """One transaction: all of it or nothing.

        SQLite's write lock is taken at its beginning: a transaction that has read before it
        writes is refused without a wait.
        """
        with _away():
            async with self._turn, self._engine.connect() as connection:
                await connection.execution_options(sqlite_begin="IMMEDIATE")
                async with connection.begin():
                    yield connection


def insert_of(dialect: str) -> Callable[[sa.Table], sqlite.Insert | postgresql.Insert]:
    """The dialect's own insert, which can leave alone what is there already."""
    return sqlite.insert if dialect == "sqlite" else postgresql.insert


def normalise(url: str) -> URL:
    """The URL with the driver that we use, whichever was named.

    Raises:
        ValueError: neither ``sqlite`` nor ``postgresql``.
    """
    address = make_url(url)
    name = address.get_backend_name()
    if name not in DRIVERS:
        raise ValueError(f"{name} is no database that we know; give sqlite:/// or postgresql://")
    return address.set(drivername=DRIVERS[name])


def _is_sqlite(address: URL) -> bool:
    return address.get_backend_name() == "sqlite"


def _postgresql(address: URL) -> AsyncEngine:
    limits = {"timeout": CONNECT_SECONDS, "command_timeout": ANSWER_SECONDS}
    return create_async_engine(address, pool_pre_ping=True, connect_args=limits)


def _sqlite(address: URL) -> AsyncEngine:
    if not address.database or address.database == ":memory:":
        raise ValueError("a SQLite job store needs a file: sqlite:///path")
    with _away():
        Path(address.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(address, connect_args={"timeout": WAIT_SECONDS})
    event.listen(engine.sync_engine, "connect", _set_up_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions by itself
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous = FULL")  # an admitted job outlives a power failure
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


async def _in_wal(connection: aiosqlite.Connection) -> bool:
    """Ask for the write-ahead log; False while somebody else holds the file."""
    try:
        await connection.execute("PRAGMA journal_mode = WAL")
    except aiosqlite.OperationalError as error:
        if error.sqlite_errorcode != SQLITE_BUSY:
            raise
        return False
    return True


def _begin_sqlite(connection: Connection) -> None:
    kind = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {kind}")


def _upgrade(connection: Connection) -> None:
    """Bring the schema to the newest revision, inside the transaction that is open."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    command.upgrade(config, "head")


@contextmanager
def _away() -> Iterator[None]:
    try:
        yield
    except OURS_TO_MEND:
        raise
    except AWAY as error:
        raise Unavailable(f"the database does not answer: {error}") from error


def _columns(row: StoredJob | Outgoing) -> Mapping[str, Any]:
    return msgspec.structs.asdict(row)


def _job(row: Row[Any]) -> StoredJob:
    return StoredJob(**row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it


def _outgoing(row: Row[Any]) -> Outgoing:
    return Outgoing(
        id=row.id,
        message=row.message,
        queue=row.queue,
        needs_listener=row.needs_listener,
        due_at=row.due_at,
    )
