"""The connection to the database: SQLite for one gateway, PostgreSQL when several run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from sqlite3 import SQLITE_BUSY
from time import monotonic
from typing import Any, Self

import aiosqlite
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from asyncpg.exceptions import InterfaceError, PostgresError
from sqlalchemy import event, exc
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Row, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from shared.errors import Unavailable

MIGRATIONS = Path(__file__).with_name("migrations")
DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
MIGRATION_TURN = 0x65766572
"""Number of the advisory lock under which one process at a time migrates PostgreSQL."""

WAIT_SECONDS = 5.0
"""How long a transaction waits for SQLite's write lock."""
LOCK_SECONDS = 0.2
"""How long SQLite waits by itself: in a thread, where whoever gives up must wait along."""
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


class Database:
    """Statements against one database, with the project's errors."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.insert = insert_of(engine.dialect.name)
        # SQLite has one writer at a time; queueing here is fair, its own lock is not.
        self._turn = asyncio.Lock() if engine.dialect.name == "sqlite" else nullcontext()

    @classmethod
    def open(cls, url: str) -> Self:
        """A database at ``sqlite:///file`` or ``postgresql://user:password@host/name``.

        Nothing is connected yet. The folder of a SQLite file is made.
        """
        address = normalise(url)
        return cls(_sqlite(address) if _is_sqlite(address) else _postgresql(address))

    async def migrate(self) -> None:
        """Bring the schema up to date; safe when several processes do it at once."""
        if self._engine.dialect.name == "sqlite":
            await self._write_ahead()
        async with self.writing(turn=MIGRATION_TURN) as connection:
            await connection.run_sync(_upgrade)

    async def all(self, statement: sa.Executable) -> Sequence[Row[Any]]:
        """The rows of a SELECT. Raises Unavailable."""
        with _away():
            async with self._engine.connect() as connection:
                return (await connection.execute(statement)).all()

    async def do(self, statement: sa.Executable) -> int:
        """How many rows a statement changed, in a transaction of its own. Raises Unavailable."""
        async with self.writing() as connection:
            return (await connection.execute(statement)).rowcount

    @asynccontextmanager
    async def writing(self, turn: int | None = None) -> AsyncIterator[AsyncConnection]:
        """One transaction: all of it or nothing; of those with one ``turn``, one at a time.

        SQLite's write lock is taken at its beginning: a transaction that has read before it
        writes is refused without a wait. PostgreSQL has an advisory lock for each turn.
        """
        with _away():
            async with (
                self._turn,
                self._engine.connect() as connection,
                AsyncExitStack() as transaction,
            ):
                await connection.execution_options(sqlite_begin="IMMEDIATE")
                await _begin(connection, transaction)
                if turn is not None and connection.dialect.name == "postgresql":
                    await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(turn)))
                yield connection

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


async def _begin(connection: AsyncConnection, transaction: AsyncExitStack) -> None:
    """Begin, again while somebody else holds SQLite's write lock."""
    deadline = monotonic() + WAIT_SECONDS
    while True:
        try:
            await transaction.enter_async_context(connection.begin())
        except exc.OperationalError as error:
            busy = getattr(error.orig, "sqlite_errorcode", None) == SQLITE_BUSY
            if not busy or monotonic() > deadline:
                raise
            await asyncio.sleep(LOCKED_SECONDS)
        else:
            return


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
    engine = create_async_engine(
        address, pool_pre_ping=True, connect_args=limits, hide_parameters=True
    )
    engine.dialect.do_terminate = _hang_up  # type: ignore[method-assign, assignment]
    return engine


def _hang_up(connection: Any) -> None:
    """Without a goodbye: whoever gives a statement up must not wait for a server that hangs."""
    connection.driver_connection.terminate()


def _sqlite(address: URL) -> AsyncEngine:
    if not address.database or address.database == ":memory:":
        raise ValueError("a SQLite job store needs a file: sqlite:///path")
    with _away():
        Path(address.database).parent.mkdir(parents=True, exist_ok=True)
    limits = {"timeout": LOCK_SECONDS}
    # Else every error would show the rows of its statement, and with them what users keep to
    # themselves; errors are logged.
    engine = create_async_engine(address, connect_args=limits, hide_parameters=True)
    event.listen(engine.sync_engine, "connect", _set_up_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    event.listen(engine.sync_engine, "invalidate", _roll_back)
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


def _roll_back(connection: Any, *_: object) -> None:
    """Let go of the write lock: closed with a row unread, a connection would keep it for long."""
    connection.rollback()


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
