"""The promises of every turn store, checked on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from services.gateway.database import connection as connections
from services.gateway.database import tables
from services.gateway.database.connection import Database
from services.gateway.database.stores import stores_in
from services.gateway.database.turns import SqlTurnStore
from services.gateway.ports import Held, OpenStage, Place, Standing, StoredJob
from services.gateway.stores import Stores
from services.gateway.turns.places import BUCKET_STAGES


@pytest.fixture
def stores(database: Database) -> Stores:
    return stores_in(database)


def job(name: str, owner: str, created_at: float, **changes: Any) -> StoredJob:
    waiting = StoredJob(
        id=name, owner=owner, status="IN_QUEUE", version=1, created_at=created_at, ended_at=None,
        line="train", released_at=None, staging=True, record=b"{}",
    )  # fmt: skip
    return msgspec.structs.replace(waiting, **changes)


async def add(stores: Stores, *jobs: StoredJob) -> None:
    for each in jobs:
        assert await stores.jobs.insert(each, [])


async def release(stores: Stores, name: str, at: float) -> None:
    await change(stores, name, released_at=at)


async def change(stores: Stores, name: str, **changes: Any) -> None:
    known = await stores.jobs.get(name)
    assert known
    later = msgspec.structs.replace(known, version=known.version + 1, **changes)
    assert await stores.jobs.replace(later, [], expected_version=known.version)


async def plan_of(engine: AsyncEngine, stores: Stores, question: Coroutine[Any, Any, Any]) -> str:
    """How the database answers the first question that the store asks it."""
    asked: list[sa.Select[Any]] = []

    async def note(statement: sa.Select[Any], *values: Mapping[str, Any]) -> list[Any]:
        asked.append(statement.params(*values))
        return [SimpleNamespace(id="1", number=0)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cast("SqlTurnStore", stores.turns)._database, "all", note)
        with suppress(AttributeError):  # a row of another question
            await question
    explain = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
    text = asked[0].compile(engine.sync_engine, compile_kwargs={"literal_binds": True})
    async with engine.connect() as connection:
        rows = (await connection.exec_driver_sql(f"{explain} {text}")).all()
    return "\n".join(str(row[-1]) for row in rows)


async def turns(stores: Stores, *barred: str) -> list[str]:
    """The jobs in the order in which they are released, one second after the other."""
    order = []
    while turn := await stores.turns.next("train", barred):
        order.append(turn[0])
        await release(stores, turn[0], 100.0 + len(order))
    return order


async def test_the_owners_take_turns_and_each_one_s_oldest_job_is_first(stores: Stores) -> None:
    await add(
        stores,
        *(job(f"a{number}", "anna", 1.0 + number) for number in range(4)),
        *(job(f"b{number}", "ben", 10.0 + number) for number in range(2)),
        job("c", "carl", 20.0),
    )

    assert await stores.turns.next("train") == ("a0", "anna")
    assert await turns(stores) == ["a0", "b0", "c", "a1", "b1", "a2", "a3"]
    assert await stores.turns.next("train") is None


async def test_who_had_a_turn_before_is_behind_who_had_none_even_if_that_job_is_gone(
    stores: Stores,
) -> None:
    await add(stores, job("old", "anna", 1.0), job("a", "anna", 2.0), job("b", "ben", 3.0))
    await release(stores, "old", 50.0)
    await change(stores, "old", status="CANCELLED", ended_at=60.0)
    await stores.jobs.remove("old", 61.0)

    assert await turns(stores) == ["b", "a"]


async def test_a_turn_in_one_line_is_none_in_another(stores: Stores) -> None:
    await add(
        stores,
        job("drawn", "anna", 1.0, line="draw", released_at=9.0),
        job("a", "anna", 2.0),
        job("b", "ben", 3.0),
        job("d", "ben", 4.0, line="draw"),
    )

    assert await stores.turns.next("train") == ("a", "anna")
    assert await stores.turns.next("draw") == ("d", "ben")
    assert [await stores.turns.is_waited_in(line) for line in ("train", "draw", "check")] == [
        True, True, False,
    ]  # fmt: skip


async def test_low_priority_goes_only_when_no_normal_job_waits(stores: Stores) -> None:
    await add(
        stores,
        job("low", "anna", 1.0, low=True),
        job("b0", "ben", 2.0),
        job("b1", "ben", 3.0),
    )

    assert await stores.turns.next("train", ["ben"]) is None
    assert await turns(stores) == ["b0", "b1", "low"]


async def test_jobs_of_barred_owners_have_to_wait(stores: Stores) -> None:
    await add(stores, job("a", "anna", 1.0), job("b", "ben", 2.0), job("c", "carl", 3.0))

    assert await stores.turns.next("train", ["anna", "nobody"]) == ("b", "ben")
    assert await turns(stores, "anna", "ben") == ["c"]


async def test_what_has_begun_or_ended_neither_waits_nor_holds_a_place(stores: Stores) -> None:
    await add(
        stores,
        job("first", "anna", 1.0, released_at=5.0),
        job("second", "anna", 2.0, released_at=6.0, staging=False),
        job("begun", "anna", 3.0, released_at=7.0, status="IN_PROGRESS"),
        job("ended", "anna", 3.5, released_at=None, status="CANCELLED"),
        job("drawn", "ben", 4.0, released_at=8.0, line="draw"),
        job("waits", "ben", 5.0),
    )

    held = await stores.turns.held()

    assert {*held} == {Held("train", "anna", 2, 1), Held("draw", "ben", 1, 1)}
    assert await stores.turns.count_released("train") == 2
    everybody = ("second", "first", "begun", "drawn", "waits")
    assert await stores.turns.released_before("train", everybody) == {"first": 0, "second": 1}
    assert await stores.turns.next("train") == ("waits", "ben")


async def test_the_standings_are_in_the_order_of_the_turns(stores: Stores) -> None:
    await add(
        stores,
        job("a0", "anna", 1.0),
        job("a1", "anna", 2.0),
        job("b", "ben", 3.0),
        job("c", "carl", 0.5, low=True),
        job("d", "dora", 4.0),
    )
    await release(stores, "b", 50.0)
    await add(stores, job("b2", "ben", 0.1))

    assert await stores.turns.standings("train", low=False) == [
        Standing("anna", 2, 0.0, 1.0), Standing("dora", 1, 0.0, 4.0), Standing("ben", 1, 50.0, 0.1),
    ]  # fmt: skip
    assert await stores.turns.standings("train", low=True) == [Standing("carl", 1, 0.0, 0.5)]


async def test_claims_of_some_stages_are_counted_by_owner(stores: Stores) -> None:
    for name, owner, stages in (
        ("a", "anna", [OpenStage("a", "bucket_check", "1", 1.0)]),
        ("b", "anna", [OpenStage("b", "model_publication", "2", 1.0)]),
        ("c", "ben", [OpenStage("c", "training", "3", 1.0)]),
        ("d", "ben", [OpenStage("d", "bucket_check", None, 1.0)]),
        ("e", "carl", [OpenStage("e", "image_publication", "4", 1.0)]),
    ):
        await stores.jobs.insert(job(name, owner, 1.0), [], [], stages)

    assert await stores.turns.claims_of(BUCKET_STAGES) == {"anna": 2, "carl": 1}


async def test_an_owner_s_own_jobs_are_counted_up_to_one_of_them(stores: Stores) -> None:
    await add(
        stores,
        *(job(f"a{number}", "anna", float(number)) for number in range(5)),
        job("released", "anna", 0.5, released_at=9.0),
        job("low", "anna", 0.5, low=True),
        job("b", "ben", 0.5),
    )
    place = Place("train", low=False, owner="anna")

    assert await stores.turns.count_ahead(place, (3.0, "a3")) == 3
    assert await stores.turns.count_ahead(place, (3.0, "a3"), limit=2) == 2
    assert await stores.turns.count_ahead(place, (3.0, "a3"), behind=(1.0, "a1")) == 1
    assert await stores.turns.every_waiting(place, 2) == [(1.0, "a1"), (3.0, "a3")]


@pytest.mark.parametrize("rows", [3000])
async def test_turns_are_found_by_an_index_however_many_jobs_wait(
    stores: Stores, url: str, rows: int
) -> None:
    engine = create_async_engine(connections.normalise(url))
    async with engine.begin() as connection:
        many = [
            msgspec.structs.asdict(
                job(
                    str(number),
                    f"owner {number % 3}",
                    float(number),
                    status="COMPLETED" if number % 10 else "IN_QUEUE",
                )
            )
            for number in range(rows)
        ]
        await connection.execute(sa.insert(tables.jobs), many)
        await connection.execute(sa.text("ANALYZE"))
    place = Place("train", low=False, owner="owner 1")

    for index, question in (
        ("jobs_waiting", stores.turns.next("train")),
        ("jobs_waiting", stores.turns.is_waited_in("train")),
        ("jobs_waiting", stores.turns.count_ahead(place, (9.0, "9"), limit=1000)),
        ("jobs_released", stores.turns.held()),
        ("jobs_released", stores.turns.count_released("train")),
        ("jobs_released", stores.turns.released_before("train", ["1", "2"])),
    ):
        plan = await plan_of(engine, stores, question)
        assert index in plan, f"{question}: {plan}"
        assert "Seq Scan on jobs" not in plan, plan
    await engine.dispose()
