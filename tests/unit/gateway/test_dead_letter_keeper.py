"""Dead letters go from the broker to the database, and none gets lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from services.gateway.background import dead_letters
from services.gateway.background.dead_letters import DeadLetterKeeper
from services.gateway.system_ports import StoredDeadLetter
from shared.adapters.memory import MemoryBroker
from shared.messaging.messages import BucketDue
from shared.messaging.topology import NOTIFIER_PUBLISH

HUNG = 10.0
"""Seconds."""


class Store:
    """Refuses some dead letters, as a database does by a bug."""

    def __init__(self, *refused: str) -> None:
        self.refused = list(refused)
        self.tries: list[str] = []
        self.kept: list[str] = []
        self.tried = asyncio.Event()

    async def add(self, letter: StoredDeadLetter) -> None:
        self.tries.append(letter.letter.reason)
        self.tried.set()
        if letter.letter.reason in self.refused:
            raise ValueError("no such column")
        self.kept.append(letter.letter.reason)

    async def until(self, tries: Sequence[str]) -> None:
        async with asyncio.timeout(HUNG):
            while self.tries[: len(tries)] != list(tries):
                self.tried.clear()
                await self.tried.wait()


@pytest.fixture
async def broker() -> MemoryBroker:
    """With three dead letters, by these reasons."""
    broker = MemoryBroker()
    bus = broker.bus("notifier/1")
    for reason in ("one", "two", "three"):
        await bus.publish(BucketDue(job=reason, run=1))
        await (await bus.get(NOTIFIER_PUBLISH)).dead_letter(reason)
    return broker


@asynccontextmanager
async def gateway(broker: MemoryBroker, store: Store) -> AsyncIterator[None]:
    """One that takes them for the block."""
    keeper = DeadLetterKeeper(broker.bus("gateway/1"), store)  # type: ignore[arg-type]
    running = asyncio.create_task(keeper.run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_one_that_the_database_refuses_holds_up_no_other_and_is_there_for_the_next_gateway(
    broker: MemoryBroker,
) -> None:
    refusing, mended = Store("one"), Store()

    async with gateway(broker, refusing):
        await refusing.until(["one", "two", "three"])
    async with gateway(broker, mended):
        await mended.until(["one"])

    assert refusing.kept == ["two", "three"]
    assert refusing.tries.count("one") == 1  # not in a hot loop
    assert mended.kept == ["one"]


async def test_one_that_the_database_refuses_is_kept_once_it_takes_it(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "AGAIN_SECONDS", 0.0)
    store, after = Store("two"), Store()

    async with gateway(broker, store):
        await store.until(["one", "two", "three", "two"])
        store.refused.clear()
        await store.until(["one", "two", "three", *["two"] * (len(store.tries) - 2)])
    async with gateway(broker, after):
        await asyncio.sleep(0)

    assert sorted(store.kept) == ["one", "three", "two"]
    assert after.tries == []
