"""The promises of every event store, checked on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from services.gateway.database import tables
from services.gateway.database.connection import Database, normalise
from services.gateway.database.events import SqlEventStore
from services.gateway.database.jobs import SqlJobStore
from services.gateway.database.tables import events
from services.gateway.ports import DELETED, EventPlace, OpenStage, StoredProgress
from shared.messaging.messages import Stage
from shared.service_process import closing
from tests.contract.test_job_store import happened, job


class Stores(NamedTuple):
    """On one database."""

    database: Database
    jobs: SqlJobStore
    events: SqlEventStore


@pytest.fixture
def stores(database: Database) -> Stores:
    return Stores(database, SqlJobStore(database), SqlEventStore(database))


async def test_events_of_all_jobs_come_in_the_order_of_time_and_no_other_owner_s(
    stores: Stores,
) -> None:
    await stores.jobs.insert(job("b"), [], [happened(1, job="b", at=2.0)])
    await stores.jobs.insert(
        job("a"), [], [happened(1, number, job="a", at=2.0) for number in (0, 1)]
    )
    await stores.jobs.insert(job("c"), [], [happened(1, job="c", at=1.0)])
    await stores.jobs.insert(job("d", owner="else"), [], [happened(1, job="d", at=1.5)])

    places = await stores.events.places("somebody", 0.0)

    assert places == [(1.0, "c", 1, 0), (2.0, "a", 1, 0), (2.0, "a", 1, 1), (2.0, "b", 1, 0)]
    assert await stores.events.places("somebody", 0.0, 2) == places[:2]
    assert await stores.events.places("somebody", 1.0) == places[1:]
    assert await stores.events.places("nobody", 0.0) == []
    assert await stores.events.count("somebody", 0.0) == (4, 2.0)
    assert await stores.events.count("somebody", 1.0) == (3, 2.0)
    assert await stores.events.count("somebody", 2.0) == (0, 0.0)


async def test_events_are_read_by_their_places_as_far_as_there_still_are_any(
    stores: Stores,
) -> None:
    told = [happened(1, job="a", at=1.0), happened(1, 1, job="a", at=1.0)]
    await stores.jobs.insert(job("a"), [], told)
    await stores.jobs.insert(job("b"), [], [happened(1, job="b", at=2.0)])
    first, second, third = await stores.events.places("somebody", 0.0)

    assert await stores.events.read([second, first]) == told
    assert await stores.events.read([third]) == [happened(1, job="b", at=2.0)]
    await stores.jobs.delete("b")
    assert await stores.events.read([second, third]) == told[1:]
    assert await stores.events.read([]) == []


async def test_an_event_is_not_earlier_than_the_one_before_it_of_its_job(stores: Stores) -> None:
    await stores.jobs.insert(job("a"), [], [happened(1, job="a", at=20.0)])
    slow = [happened(2, number, job="a", at=5.0 + number) for number in (0, 1)]
    await stores.jobs.replace(job("a", version=2), [], slow, expected_version=1)
    await stores.jobs.replace(job("a", version=3), [], [], expected_version=2)
    later = [happened(4, job="a", at=21.0)]
    await stores.jobs.replace(job("a", version=4), [], later, expected_version=3)

    places = await stores.events.places("somebody", 0.0)

    assert [place[:1] + place[2:] for place in places] == [
        *((20.0, 1, 0), (20.0, 2, 0), (20.0, 2, 1), (21.0, 4, 0))
    ]


async def test_of_a_removed_job_one_event_is_left_until_it_is_deleted(stores: Stores) -> None:
    await stores.jobs.insert(job("a", version=3), [], [happened(3, job="a", at=9.0)])
    await stores.jobs.insert(job("b"), [], [happened(1, job="b", at=1.0)])

    await stores.jobs.remove("a", 8.0)
    await stores.jobs.remove("b", 8.0)

    places = await stores.events.places("somebody", 0.0)
    assert places == [(8.0, "b", 2, 0), (9.0, "a", 4, 0)]
    assert {(each.type, each.data) for each in await stores.events.read(places)} == {
        (DELETED, b"{}")
    }
    await stores.jobs.delete("a")
    assert await stores.events.places("somebody", 0.0) == places[:1]


async def test_a_job_that_is_changed_and_removed_at_once_leaves_one_event(
    stores: Stores, url: str
) -> None:
    for number in range(20):
        name = f"job-{number}"
        await stores.jobs.insert(job(name), [], [happened(1, job=name)])
        async with closing(SqlJobStore.open(url)) as neighbour:
            await asyncio.gather(
                stores.jobs.replace(
                    job(name, version=2), [], [happened(2, job=name)], expected_version=1
                ),
                neighbour.remove(name, 5.0),
            )

    places = await stores.events.places("somebody", 0.0)
    assert {each.type for each in await stores.events.read(places)} == {DELETED}
    assert len(places) == 20


async def test_what_an_earlier_version_writes_belongs_to_the_owner_of_its_job(
    stores: Stores,
) -> None:
    await stores.jobs.insert(job("a"), [], [happened(1, job="a", at=2.0)])
    await stores.jobs.insert(job("b"), [], [happened(1, job="b", at=1.0)])
    await stores.jobs.insert(job("c", owner="else"), [], [happened(1, job="c", at=1.0)])
    await stores.database.do(sa.update(events).where(events.c.job != "a").values(owner=None))

    assert await stores.events.places("somebody", 0.0) == [(1.0, "b", 1, 0), (2.0, "a", 1, 0)]
    assert await stores.events.count("somebody", 0.0) == (2, 2.0)


# --- progress


def at_work(name: str, stage: Stage, claim: str | None = "claim") -> Sequence[OpenStage]:
    return [OpenStage(name, stage, claim, 1.0)]


def numbers(name: str, stage: Stage = "training", run: int = 1) -> StoredProgress:
    return StoredProgress(name, stage, run, b'{"step": 3}', 1)


async def test_progress_is_that_of_an_owner_s_claimed_stages_in_their_run(stores: Stores) -> None:
    await stores.jobs.insert(job("a"), [], [], at_work("a", "training"))
    await stores.jobs.insert(job("waits"), [], [], at_work("waits", "training", None))
    await stores.jobs.insert(job("again", run=2), [], [], at_work("again", "training"))
    await stores.jobs.insert(job("other", owner="else"), [], [], at_work("other", "training"))
    await stores.jobs.insert(job("silent"), [], [], at_work("silent", "training"))
    rows = [numbers(name) for name in ("a", "waits", "again", "other")]
    await stores.jobs.write_progress([*rows, numbers("a", "staging")])

    assert await stores.events.progress("somebody") == [numbers("a")]
    assert await stores.events.progress("nobody") == []
    await stores.jobs.replace(
        job("a", version=2, status="COMPLETED", ended_at=9.0), [], [], [], expected_version=1
    )
    assert await stores.events.progress("somebody") == []


# --- many jobs


async def plan_of(url: str, ask: Callable[[], Awaitable[object]]) -> str:
    """How the database answers a question of the store, when it knows how many jobs there are."""
    asked: list[Any] = []
    every = Database.all

    async def note(database: Database, statement: Any, *values: Any) -> Any:
        asked.append(statement)
        return await every(database, statement, *values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "all", note)
        await ask()
    engine = create_async_engine(normalise(url))
    explain = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
    text = asked[0].compile(engine.sync_engine, compile_kwargs={"literal_binds": True})
    async with engine.begin() as connection:
        await connection.exec_driver_sql("ANALYZE")
        rows = (await connection.exec_driver_sql(f"{explain} {text}")).all()
    await engine.dispose()
    return "\n".join(str(row[-1]) for row in rows)


async def test_no_question_reads_all_of_an_owner_s_jobs_or_events(stores: Stores, url: str) -> None:
    jobs = [job_columns(f"job-{number}") for number in range(10_000)]
    told = [
        {**msgspec.structs.asdict(happened(1, job=each["id"], at=float(at))), "owner": "somebody"}
        for at, each in enumerate(jobs)
    ]
    old = [numbers(each["id"])._asdict() for each in jobs]
    at_work = [OpenStage(each["id"], "training", "claim", 1.0)._asdict() for each in jobs[:10]]
    rows = ((tables.jobs, jobs), (events, told), (tables.progress, old))
    async with stores.database.writing() as connection:
        for table, values in (*rows, (tables.open_stages, at_work)):
            await connection.execute(sa.insert(table), values)
    place = EventPlace(7.0, "job-7", 1, 0)

    for ask in (
        lambda: stores.events.count("somebody", 9990.0),
        lambda: stores.events.places("somebody", 9990.0, 100),
        lambda: stores.events.read([place]),
        lambda: stores.events.progress("somebody"),
    ):
        plan = await plan_of(url, ask)
        for name in ("jobs", "events", "progress"):
            assert f"SCAN {name}" not in plan, plan
            assert f"Seq Scan on {name}" not in plan, plan
        assert "jobs_by_owner" not in plan, plan


def job_columns(name: str) -> dict[str, Any]:
    return msgspec.structs.asdict(job(name))
