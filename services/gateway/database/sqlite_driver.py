"""aiosqlite for SQLAlchemy, with one answer of the thread to wait for in each statement, not four.

Each answer takes about 0.1 ms of processor time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Self

import aiosqlite


def connect(file: str, **options: Any) -> Connection:
    """A connection that is opened when it is awaited; ``options`` are :mod:`sqlite3`'s."""
    return Connection(lambda: sqlite3.connect(file, **options), iter_chunk_size=1)


class Connection(aiosqlite.Connection):
    """One whose cursors read all rows of a statement as soon as it is executed."""

    def cursor(self) -> Cursor:  # type: ignore[override]
        return Cursor(self)

    async def call(self, method: str, statement: str, parameters: Iterable[Any]) -> Results:
        """Call a method of a new cursor, and close it, in one turn of the thread."""

        def in_thread() -> Results:
            cursor = self._conn.cursor()
            try:
                getattr(cursor, method)(statement, parameters)
                rows = cursor.fetchall() if cursor.description else []
                return Results(rows, cursor)
            finally:
                cursor.close()

        return await self._execute(in_thread)  # type: ignore[no-any-return, no-untyped-call]


class Results:
    """What is left of a cursor that was closed."""

    def __init__(self, rows: Sequence[Any], cursor: sqlite3.Cursor) -> None:
        self.rows = rows
        self.description = cursor.description
        self.rowcount = cursor.rowcount
        self.lastrowid = cursor.lastrowid


class Cursor:
    """As much of a cursor of aiosqlite as SQLAlchemy's dialect uses."""

    arraysize = 1

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._results: Results | None = None

    async def __aenter__(self) -> Self:
        return self

    async def execute(self, statement: str, parameters: Sequence[Any] = ()) -> Self:
        self._results = await self._connection.call("execute", statement, parameters)
        return self

    async def executemany(self, statement: str, parameters: Iterable[Sequence[Any]]) -> Self:
        self._results = await self._connection.call("executemany", statement, parameters)
        return self

    async def fetchall(self) -> Sequence[Any]:
        return self._results.rows if self._results else []

    async def close(self) -> None:
        """Nothing: it was closed when its rows had been read."""

    @property
    def description(self) -> Any:
        return self._results and self._results.description

    @property
    def rowcount(self) -> int:
        return self._results.rowcount if self._results else -1

    @property
    def lastrowid(self) -> int | None:
        return self._results.lastrowid if self._results else None
