"""How often a request that comes again and again asks the database."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import aiosqlite
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Row

from services.gateway.database import sqlite_driver
from services.gateway.database.connection import Database
from services.gateway.request_owner import request_owner
from shared.messaging.messages import TrainingProgressed
from tests.support.gateway_world import eventually, trained, training, world

COUNT_FOR_A_WHILE = """
WITH RECURSIVE counted(number) AS (
  SELECT 1 UNION ALL SELECT number + 1 FROM counted WHERE number < 3000000
)
SELECT max(number) FROM counted
"""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[sa.Executable]:
    """What was asked for requests, without the gateway's own questions."""
    statements: list[sa.Executable] = []
    every = Database.all

    async def noted(
        database: Database, statement: sa.Executable, *values: Any
    ) -> Sequence[Row[Any]]:
        if request_owner() is not None:
            statements.append(statement)
        return await every(database, statement, *values)

    monkeypatch.setattr(Database, "all", noted)
    return statements


async def test_a_status_with_progress_is_one_question_and_two_in_the_queue(
    tmp_path: Path, asked: list[sa.Executable]
) -> None:
    async with world(tmp_path) as here:
        running, trainer = await training(here)
        await trainer.publish(TrainingProgressed, progress={"step": 3})

        async def has_progress() -> bool | None:
            return (await here.status(running))["output"]["step"] == 3 or None

        await eventually(has_progress)
        waiting = await here.run()
        questions = {}
        for job in (running, waiting, await trained(here)):
            asked.clear()
            await here.status(job)
            questions[job] = len(asked)

    assert [*questions.values()] == [1, 2, 1]


async def test_each_statement_waits_for_sqlite_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = count()
    ask = aiosqlite.Connection._execute

    async def counted(connection: aiosqlite.Connection, *question: Any) -> Any:
        next(answers)
        return await ask(connection, *question)  # type: ignore[no-untyped-call]

    database = Database.open(f"sqlite:///{tmp_path / 'jobs.db'}")
    await database.do(sa.text("CREATE TABLE numbers AS SELECT 1 AS number UNION ALL SELECT 2"))
    monkeypatch.setattr(aiosqlite.Connection, "_execute", counted)

    assert await database.all(sa.text("SELECT number FROM numbers")) == [(1,), (2,)]
    assert next(answers) == 1
    assert await database.do(sa.text("DELETE FROM numbers WHERE number = 2")) == 1
    assert next(answers) == 1 + 1 + 3, "a transaction begins and ends"
    await database.close()


async def test_a_closed_database_does_nothing_more_in_any_thread(tmp_path: Path) -> None:
    """A thread that is left would tell an event loop that may be gone by then."""
    before = {*threading.enumerate()}
    database = Database.open(f"sqlite:///{tmp_path / 'jobs.db'}")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await database.all(sa.text(COUNT_FOR_A_WHILE))

    await database.close()

    left = {*threading.enumerate()} - before
    assert not [thread for thread in left if "_connection_worker_thread" in thread.name]


async def test_nor_does_one_that_was_closed_before_it_was_connected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {*threading.enumerate()}
    go_on = threading.Event()

    def connect(*_: Any, **__: Any) -> NoReturn:
        go_on.wait()
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(sqlite3, "connect", connect)
    database = Database.open(f"sqlite:///{tmp_path / 'jobs.db'}")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await database.all(sa.text("SELECT 1"))

    asyncio.get_running_loop().call_later(0.1, go_on.set)
    await database.close()

    left = {*threading.enumerate()} - before
    assert not [thread for thread in left if "_connection_worker_thread" in thread.name]


async def test_a_database_that_is_closed_during_a_call_leaves_no_connection_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[aiosqlite.Connection] = []
    connect = sqlite_driver.connect

    def noted(*arguments: Any, **options: Any) -> aiosqlite.Connection:
        opened.append(connect(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite_driver, "connect", noted)
    database = Database.open(f"sqlite:///{tmp_path / 'jobs.db'}")
    call = asyncio.create_task(database.all(sa.text(COUNT_FOR_A_WHILE)))
    await eventually(lambda: asyncio.sleep(0, opened and opened[0]._connection))

    await database.close()

    assert await call == [(3_000_000,)]
    assert [each._connection for each in opened] == [None]
