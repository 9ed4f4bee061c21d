"""What is costly is counted beside the requests that ask for it, and once for all of them."""

from __future__ import annotations

import asyncio

import pytest

from services.gateway.turns import stale_cache
from services.gateway.turns.stale_cache import StaleCache
from shared.errors import Unavailable


class Counter:
    """Counts how often it is asked; each answer waits until it is let go."""

    def __init__(self) -> None:
        self.asked = 0
        self.away = False
        self.open = asyncio.Event()
        self.open.set()

    async def count(self, _key: str) -> int:
        self.asked += 1
        asked = self.asked
        await self.open.wait()
        if self.away:
            raise Unavailable("a test made it unavailable")
        return asked


def seconds(monkeypatch: pytest.MonkeyPatch, *, fresh: float, stale: float) -> None:
    monkeypatch.setattr(stale_cache, "FRESH_SECONDS", fresh)
    monkeypatch.setattr(stale_cache, "STALE_SECONDS", stale)


async def test_many_who_ask_at_once_share_one_count_and_later_ones_its_value() -> None:
    counter = Counter()
    cache = StaleCache(counter.count)

    assert await asyncio.gather(*(cache.get("a") for _ in range(5))) == [1] * 5
    assert await cache.get("a") == 1
    assert (await cache.get("b"), counter.asked) == (2, 2)


async def test_an_older_value_is_given_at_once_and_refreshed_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counter = Counter()
    cache = StaleCache(counter.count)
    await cache.get("a")
    seconds(monkeypatch, fresh=0.0, stale=3600.0)
    counter.open.clear()

    assert [await cache.get("a") for _ in range(3)] == [1, 1, 1]
    counter.open.set()
    for _ in range(3):
        await asyncio.sleep(0)
    assert await cache.get("a") == 2


async def test_a_value_that_is_too_old_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter()
    cache = StaleCache(counter.count)
    seconds(monkeypatch, fresh=0.0, stale=0.0)

    assert [await cache.get("a") for _ in range(3)] == [1, 2, 3]


async def test_a_failure_is_told_to_who_has_no_value_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counter = Counter()
    cache = StaleCache(counter.count)
    await cache.get("a")
    counter.away = True
    seconds(monkeypatch, fresh=0.0, stale=3600.0)

    assert [await cache.get("a") for _ in range(3)] == [1, 1, 1]
    with pytest.raises(Unavailable):
        await cache.get("b")
    counter.away = False
    assert await cache.get("b") > 1


async def test_who_gives_up_leaves_the_count_to_the_others() -> None:
    counter = Counter()
    cache = StaleCache(counter.count)
    counter.open.clear()
    first, second = (asyncio.create_task(cache.get("a")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait((first,))
    counter.open.set()

    assert await second == 1


async def test_only_so_many_values_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stale_cache, "MAX_VALUES", 2)
    counter = Counter()
    cache = StaleCache(counter.count)

    for key in ("a", "b", "c"):
        await cache.get(key)

    assert [*cache._entries] == ["b", "c"]
