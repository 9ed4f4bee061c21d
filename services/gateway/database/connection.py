"""The connection to the database: SQLite for one gateway, PostgreSQL when several run."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from sqlite3 import SQLITE_BUSY
from threading import Thread
from time import monotonic
from typing import Any, Self
from weakref import WeakSet

import aiosqlite
import sqlalchemy as sa
from asyncpg.exceptions import InterfaceError, PostgresError
from sqlalchemy import event, exc
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Dialect, Row, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from services.gateway.database import sqlite_driver
from services.gateway.database.schema import Schema, read_schema, upgrade_schema
from services.gateway.database.shares import Shares
from shared.errors import Unavailable

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
MIGRATION_LOCK = 0x65766572
"""Advisory lock under which one process at a time migrates PostgreSQL."""

WAIT_SECONDS = 5.0
"""How long a transaction waits for SQLite's write lock."""
LOCK_SECONDS = 0.2
"""How long SQLite itself waits, in a thread that a cancelled call has to wait for."""
LOCKED_SECONDS = 0.01
"""Between two tries when SQLite itself does not wait."""
CONNECTIONS = 15
"""To PostgreSQL, unless another number is asked for; more calls wait for one."""
IDLE_SECONDS = 0.5
"""After so long without use, a connection is tried before it is used."""
USED_AT = "used_at"
CLOSE_SECONDS = 5.0
"""For the calls that go on when a database is closed, and then for the driver's threads."""
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0

BUGS = (exc.IntegrityError, exc.ProgrammingError, exc.DataError, exc.NotSupportedError)
"""Errors of wrong statements; a retry would not help."""
AWAY = (
    *(exc.DBAPIError, exc.TimeoutError),
    *(PostgresError, InterfaceError, OSError, aiosqlite.OperationalError),
)
"""The second row is what the drivers raise before there is a connection."""


class Database:
    """Executes statements, a few at a time for each owner, and translates errors to the project's.

    In a :meth:`writing` block no other call may be made: it could wait for itself.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.dialect = engine.dialect.name
        """``sqlite`` or ``postgresql``."""
        is_sqlite = engine.dialect.name == "sqlite"
        # A single SELECT needs no transaction, whose begin and end are answers to wait for.
        self._reading = engine.execution_options(
            **({"sqlite_begin": None} if is_sqlite else {"isolation_level": "AUTOCOMMIT"})
        )
        self.insert = insert_of(engine.dialect.name)
        # SQLite has one writer at a time; this lock is fair, its own is not.
        self._write_lock = asyncio.Lock() if is_sqlite else nullcontext()
        self._shares = Shares()
        self._calls = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._threads = WeakSet[Thread]()
        if is_sqlite:
            event.listen(engine.sync_engine, "do_connect", self._note_threads)

    @classmethod
    def open(cls, url: str, connections: int = CONNECTIONS) -> Self:
        """A database at ``sqlite:///file`` or ``postgresql://user:password@host/name``.

        Nothing is connected yet. The folder of a SQLite file is created. Of ``connections`` to
        PostgreSQL there are that many at most.
        """
        address = normalise(url)
        is_sqlite = address.get_backend_name() == "sqlite"
        return cls(_sqlite(address) if is_sqlite else _postgresql(address, connections))

    async def migrate(self) -> Schema:
        """Upgrade the schema; as it was before. Safe when several processes do it at once.

        Raises:
            SettingsError: it is of a newer version, beside which this one cannot work.
            Unavailable: the database does not answer.
        """
        if self._engine.dialect.name == "sqlite":
            await self._write_ahead()
        async with self.writing(lock=MIGRATION_LOCK) as connection:
            return await connection.run_sync(upgrade_schema)

    async def schema(self) -> Schema:
        """How the schema stands to this version's. Raises Unavailable."""
        with _translate_errors():
            async with self._call(), self._engine.connect() as connection:
                return await connection.run_sync(read_schema)

    async def all(
        self, statement: sa.Executable, values: Mapping[str, Any] | None = None
    ) -> Sequence[Row[Any]]:
        """The rows of a SELECT; ``values`` are those of its parameters. Raises Unavailable."""
        with _translate_errors():
            async with self._call(), self._reading.connect() as connection:
                return (await connection.execute(statement, values)).all()

    async def do(self, statement: sa.Executable) -> int:
        """Execute a statement in its own transaction; the number of changed rows.

        Raises:
            Unavailable: the database does not answer.
        """
        async with self.writing() as connection:
            return (await connection.execute(statement)).rowcount

    @asynccontextmanager
    async def writing(self, lock: int | None = None) -> AsyncIterator[AsyncConnection]:
        """A transaction; those with the same ``lock`` run one after another.

        SQLite's write lock is taken at the beginning, because SQLite refuses it without a wait
        to a transaction that has read before. In PostgreSQL ``lock`` is an advisory lock.
        """
        with _translate_errors():
            async with (
                self._call(),
                self._write_lock,
                self._engine.connect() as connection,
                AsyncExitStack() as transaction,
            ):
                await connection.execution_options(sqlite_begin="IMMEDIATE")
                await _begin(connection, transaction)
                if lock is not None and connection.dialect.name == "postgresql":
                    await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))
                yield connection

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[None]:
        async with self._shares.hold():
            self._calls += 1
            self._is_idle.clear()
            try:
                yield
            finally:
                self._calls -= 1
                if not self._calls:
                    self._is_idle.set()

    async def close(self) -> None:
        """Close all connections, once the calls that use them have ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._is_idle.wait()
        await self._engine.dispose()
        for thread in list(self._threads):
            # A call that was cancelled goes on in it, and tells the event loop, which may be gone.
            await asyncio.to_thread(thread.join, CLOSE_SECONDS)

    def _note_threads(
        self, _dialect: Dialect, _record: object, _arguments: object, options: dict[str, Any]
    ) -> None:
        """Have our driver connect, and note its thread at once: it goes on if connecting fails."""

        def connect(file: str, **options: Any) -> aiosqlite.Connection:
            connection = sqlite_driver.connect(file, **options)
            thread = connection._thread  # noqa: SLF001 - has no other name
            thread.daemon = True
            self._threads.add(thread)
            return connection

        options["async_creator_fn"] = connect

    async def _write_ahead(self) -> None:
        """Switch SQLite to a write-ahead log, so that readers do not wait for a writer.

        The file keeps this mode. SQLite does not wait for the lock of this change, unlike for
        others, so it is retried while another process starts.
        """
        deadline = monotonic() + WAIT_SECONDS
        with _translate_errors():
            while not await self._in_wal():
                if monotonic() > deadline:
                    raise Unavailable("the database does not answer: it is locked")
                await asyncio.sleep(LOCKED_SECONDS)

    async def _in_wal(self) -> bool:
        """Switch to the write-ahead log; False while another process holds the file."""
        try:
            async with self._engine.connect() as connection:
                raw = (await connection.get_raw_connection()).driver_connection
                assert isinstance(raw, aiosqlite.Connection)  # noqa: S101 - the engine's driver
                await raw.execute("PRAGMA journal_mode = WAL")
        except (exc.OperationalError, aiosqlite.OperationalError) as error:
            if not _is_busy(error):
                raise
            return False
        return True


async def _begin(connection: AsyncConnection, transaction: AsyncExitStack) -> None:
    """Begin; retry while another process holds SQLite's write lock."""
    deadline = monotonic() + WAIT_SECONDS
    while True:
        try:
            await transaction.enter_async_context(connection.begin())
        except exc.OperationalError as error:
            if not _is_busy(error) or monotonic() > deadline:
                raise
            await asyncio.sleep(LOCKED_SECONDS)
        else:
            return


def _is_busy(error: Exception) -> bool:
    """Whether another connection has a lock of SQLite's; the code's upper bits say which."""
    return getattr(getattr(error, "orig", error), "sqlite_errorcode", 0) & 0xFF == SQLITE_BUSY


def insert_of(dialect: str) -> Callable[[sa.Table], sqlite.Insert | postgresql.Insert]:
    """The dialect's own insert, which can ignore conflicts."""
    return sqlite.insert if dialect == "sqlite" else postgresql.insert


def normalise(url: str) -> URL:
    """The URL with our driver, whichever it names.

    Raises:
        ValueError: neither ``sqlite`` nor ``postgresql``.
    """
    address = make_url(url)
    name = address.get_backend_name()
    if name not in DRIVERS:
        raise ValueError(f"{name} is no database that we know; give sqlite:/// or postgresql://")
    return address.set(drivername=DRIVERS[name])


def _postgresql(address: URL, connections: int) -> AsyncEngine:
    limits = {"timeout": CONNECT_SECONDS, "command_timeout": ANSWER_SECONDS}
    engine = create_async_engine(
        address,
        pool_size=connections,
        max_overflow=0,  # one more would be closed after each use
        connect_args=limits,
        hide_parameters=True,
    )
    engine.dialect.do_terminate = _hang_up  # type: ignore[method-assign, assignment]
    event.listen(engine.sync_engine, "checkin", _note_use)
    event.listen(engine.sync_engine, "checkout", partial(_ping_if_idle, engine.dialect))
    return engine


def _note_use(_: Any, record: ConnectionPoolEntry) -> None:
    record.info[USED_AT] = monotonic()


def _ping_if_idle(
    dialect: Dialect, connection: Any, record: ConnectionPoolEntry, _: object
) -> None:
    """Replace a connection that was lost meanwhile; one just used needs no question before it.

    Source: "Custom / Legacy Pessimistic Ping" in SQLAlchemy's documentation of pooling.
    """
    if connection.driver_connection.is_closed():
        raise exc.InvalidatePoolError
    if monotonic() - record.info.get(USED_AT, monotonic()) > IDLE_SECONDS:
        try:
            dialect.do_ping(connection)
        except dialect.loaded_dbapi.Error as error:
            raise exc.InvalidatePoolError from error


def _hang_up(connection: Any) -> None:
    """Close without a message: a cancelled statement must not wait for a server that hangs."""
    connection.driver_connection.terminate()


def _sqlite(address: URL) -> AsyncEngine:
    if not address.database or address.database == ":memory:":
        raise ValueError("a SQLite job store needs a file: sqlite:///path")
    with _translate_errors():
        _make_private(Path(address.database))
    limits = {"timeout": LOCK_SECONDS}
    # Without hide_parameters, logged errors would contain users' data.
    engine = create_async_engine(address, connect_args=limits, hide_parameters=True)
    event.listen(engine.sync_engine, "connect", _set_up_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    event.listen(engine.sync_engine, "invalidate", _roll_back)
    engine.dialect.do_rollback = _roll_back_if_begun  # type: ignore[method-assign, assignment]
    return engine


def _make_private(file: Path) -> None:
    """Create the file for its owner alone, or close it to others; its log follows its mode."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if file.is_dir():
        return  # each call says that the database does not answer
    os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    found = file.stat()
    if found.st_uid == os.geteuid() and found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        file.chmod(found.st_mode & stat.S_IRWXU)


def _set_up_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions by itself
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous = FULL")  # an admitted job outlives a power failure
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    if kind := connection.get_execution_options().get("sqlite_begin", "DEFERRED"):
        connection.exec_driver_sql(f"BEGIN {kind}")


def _roll_back(connection: Any, *_: object) -> None:
    """Release the write lock; a connection closed with an unread row would keep it for long."""
    connection.rollback()


def _roll_back_if_begun(connection: Any) -> None:
    opened = connection.driver_connection._connection  # noqa: SLF001 - None: it is closed
    if opened and opened.in_transaction:
        connection.rollback()


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except BUGS:
        raise
    except AWAY as error:
        raise Unavailable(f"the database does not answer: {error}") from error
