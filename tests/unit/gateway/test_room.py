"""Turns at what is large: nobody waits behind all that another owner sends."""

from __future__ import annotations

import asyncio

import pytest

from services.gateway.web import room
from services.gateway.web.room import FairLock
from shared.errors import Unavailable


async def take(lock: FairLock, owner: str, go_on: asyncio.Event, inside: list[str]) -> None:
    async with lock.hold(owner):
        inside.append(owner)
        await go_on.wait()


async def steps() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_of_each_owner_one_waits_and_all_others_for_that_one() -> None:
    lock, go_on, inside = FairLock(), asyncio.Event(), list[str]()
    async with asyncio.TaskGroup() as group:
        for owner in ["one"] * 100 + ["two"] * 2 + ["three"]:
            group.create_task(take(lock, owner, go_on, inside))
        await steps()
        assert inside == ["one"]
        go_on.set()
    assert inside[:5] == ["one", "two", "three", "one", "two"]
    assert len(inside) == 103


async def test_who_waits_too_long_for_his_own_or_for_another_is_told_and_holds_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "ROOM_SECONDS", 0.01)
    lock, go_on, inside = FairLock(), asyncio.Event(), list[str]()
    holding = asyncio.create_task(take(lock, "one", go_on, inside))
    await steps()
    for owner in ("one", "two"):
        with pytest.raises(Unavailable):
            await take(lock, owner, go_on, inside)
    go_on.set()
    await holding
    for owner in ("one", "two"):
        await take(lock, owner, go_on, inside)
    assert inside == ["one", "one", "two"]


async def test_owners_who_hold_nothing_are_forgotten() -> None:
    lock, go_on = FairLock(), asyncio.Event()
    go_on.set()
    for number in range(100):
        await take(lock, str(number), go_on, [])
    assert len(lock._of) <= 1
