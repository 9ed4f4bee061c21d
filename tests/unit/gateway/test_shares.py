"""One owner's requests leave most of the database to the others."""

from __future__ import annotations

import asyncio

from sqlalchemy.pool import AsyncAdaptedQueuePool

from services.gateway.database.connection import CONNECTIONS, Database
from services.gateway.database.shares import OF_AN_OWNER, OWN, Shares
from services.gateway.request_owner import answering


async def ask(shares: Shares, owner: str | None, go_on: asyncio.Event, inside: list[str]) -> None:
    with answering(owner):
        async with shares.hold():
            inside.append(owner or "the gateway")
            await go_on.wait()


async def steps() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_an_owner_waits_for_his_own_calls_and_nobody_else_does() -> None:
    shares, go_on, inside = Shares(), asyncio.Event(), list[str]()
    async with asyncio.TaskGroup() as group:
        for owner in ["one"] * 100 + ["two"] + [None] * 20:
            group.create_task(ask(shares, owner, go_on, inside))
        await steps()
        assert inside == ["one"] * OF_AN_OWNER + ["two"] + ["the gateway"] * OWN
        go_on.set()
    assert (inside.count("one"), inside.count("the gateway")) == (100, 20)


def test_the_gateways_own_work_leaves_connections_to_two_owners() -> None:
    assert OWN + 2 * OF_AN_OWNER < CONNECTIONS


async def test_who_gives_up_waiting_leaves_his_turn_to_the_next() -> None:
    shares, go_on, inside = Shares(), asyncio.Event(), list[str]()
    holding = [asyncio.create_task(ask(shares, "one", go_on, inside)) for _ in range(OF_AN_OWNER)]
    await steps()
    impatient = asyncio.create_task(ask(shares, "one", go_on, inside))
    patient = asyncio.create_task(ask(shares, "one", go_on, inside))
    await steps()
    impatient.cancel()
    go_on.set()
    await asyncio.gather(*holding, patient)
    assert inside == ["one"] * (OF_AN_OWNER + 1)


async def test_owners_who_ask_nothing_are_forgotten() -> None:
    shares, go_on = Shares(), asyncio.Event()
    go_on.set()
    for number in range(1000):
        await ask(shares, str(number), go_on, [])
    assert len(shares._of) <= 1


async def test_a_gateway_has_as_many_connections_as_it_is_told() -> None:
    url = "postgresql://nobody@127.0.0.1:9/none"
    for database, number in ((Database.open(url), CONNECTIONS), (Database.open(url, 40), 40)):
        assert isinstance(pool := database._engine.pool, AsyncAdaptedQueuePool)
        assert pool.size() == number
        await database.close()
