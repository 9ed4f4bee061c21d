"""Models in the store stay while a job needs them, and as long as there is room for all."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from services.gateway.background.model_eviction import (
    UNFINISHED_SECONDS,
    USED_SECONDS,
    ModelEviction,
)
from services.gateway.ports import JobStore
from shared.adapters.folder import FolderStore
from shared.storage.folders import folder_exists
from shared.storage.manifest import MANIFEST
from shared.storage.models import note_use, stored_model
from tests.support.gateway_world import KEY, Clock

SIZE = 100
ROOM = 2 * SIZE + 50
"""For two models."""


class Needs:
    """Which models jobs need."""

    def __init__(self, *prefixes: str) -> None:
        self.prefixes = set(prefixes)

    async def needs_model(self, prefix: str) -> bool:
        return prefix in self.prefixes


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> FolderStore:
    return FolderStore(tmp_path, public_url="http://here", key=KEY, clock=clock)


async def add(
    store: FolderStore, clock: Clock, name: str, hours_ago: float, *, whole: bool = True
) -> str:
    """Store a model whose last use is so long ago."""
    prefix = stored_model(name * 64)
    await note_use(store, prefix)
    await store.put(f"{prefix}/unet/weights.safetensors", b"x" * SIZE)
    if whole:
        await store.put(f"{prefix}/{MANIFEST}", b"")
    await age(store, clock, prefix, hours_ago)
    return prefix


async def age(store: FolderStore, clock: Clock, prefix: str, hours_ago: float) -> None:
    async for each in store.list(f"{prefix}/"):
        moment = clock() - hours_ago * 3600
        os.utime(store.path_of(each.key), (moment, moment))


async def left(store: FolderStore) -> list[str]:
    """Every model of which there is anything, by the letter that its name is made of."""
    return sorted({each.key[len("cache/")] async for each in store.list("cache/")})


def evicting(store: FolderStore, clock: Clock, needs: Needs) -> ModelEviction:
    jobs: JobStore = needs  # type: ignore[assignment]  # all that it asks of jobs
    return ModelEviction(jobs, store, clock=clock, max_bytes=ROOM)


async def test_beyond_the_room_for_all_the_least_recently_used_models_go(
    store: FolderStore, clock: Clock
) -> None:
    for name, hours_ago in (("a", 5), ("b", 3), ("c", 4), ("d", 9)):
        await add(store, clock, name, hours_ago)

    await evicting(store, clock, Needs()).evict()

    assert await left(store) == ["b", "c"]


async def test_what_a_job_needs_stays_and_takes_no_room_from_others(
    store: FolderStore, clock: Clock
) -> None:
    prefixes = {
        name: await add(store, clock, name, hours_ago)
        for name, hours_ago in (("a", 5), ("b", 3), ("c", 4), ("d", 9))
    }
    needs = Needs(prefixes["b"], prefixes["d"])

    await evicting(store, clock, needs).evict()
    assert await left(store) == ["a", "b", "c", "d"]

    needs.prefixes.remove(prefixes["d"])
    await evicting(store, clock, needs).evict()
    assert await left(store) == ["a", "b", "c"]


async def test_a_model_that_was_just_given_to_a_job_stays_though_no_record_says_so_yet(
    store: FolderStore, clock: Clock
) -> None:
    for name, hours_ago in (("a", 5), ("b", 3), ("c", 4)):
        await add(store, clock, name, hours_ago)
    oldest = stored_model("a" * 64)
    await note_use(store, oldest)
    os.utime(store.path_of(f"{oldest}/used"), (clock(), clock()))

    await evicting(store, clock, Needs()).evict()
    assert await left(store) == ["a", "b"]

    for name in "de":
        await add(store, clock, name, hours_ago=(USED_SECONDS - 60) / 3600)
    await evicting(store, clock, Needs()).evict()
    assert await left(store) == ["a", "d", "e"]


class Meanwhile(FolderStore):
    """Something is done to the store as soon as a manifest is deleted."""

    def __init__(self, store: FolderStore, clock: Clock) -> None:
        super().__init__(store._root, public_url="http://here", key=KEY, clock=clock)
        self.then: Callable[[], Awaitable[object]] = asyncio.Event().wait

    async def delete(self, prefix: str) -> int:
        deleted = await super().delete(prefix)
        if prefix.endswith(MANIFEST):
            await self.then()
        return deleted


async def test_a_model_that_a_fetcher_uses_meanwhile_stays_whole(
    store: FolderStore, clock: Clock
) -> None:
    for name, hours_ago in (("a", 5), ("b", 3), ("c", 4)):
        await add(store, clock, name, hours_ago)
    oldest, meanwhile = stored_model("a" * 64), Meanwhile(store, clock)
    meanwhile.then = partial(note_use, store, oldest)

    await evicting(meanwhile, clock, Needs()).evict()

    assert await left(store) == ["a", "b", "c"]
    assert await folder_exists(store, oldest)


async def test_two_gateways_at_once_delete_a_model_once(store: FolderStore, clock: Clock) -> None:
    for name, hours_ago in (("a", 5), ("b", 3), ("c", 4)):
        await add(store, clock, name, hours_ago)
    meanwhile = Meanwhile(store, clock)
    meanwhile.then = evicting(store, clock, Needs()).evict

    await evicting(meanwhile, clock, Needs()).evict()

    assert await left(store) == ["b", "c"]


async def test_what_a_dead_fetcher_has_begun_goes_after_a_day(
    store: FolderStore, clock: Clock
) -> None:
    day = UNFINISHED_SECONDS / 3600
    await add(store, clock, "a", day + 1, whole=False)
    await add(store, clock, "b", day - 1, whole=False)

    await evicting(store, clock, Needs()).evict()

    assert await left(store) == ["b"]


async def test_what_lies_beside_the_models_is_left_alone(store: FolderStore, clock: Clock) -> None:
    for name, hours_ago in (("a", 5), ("b", 3), ("c", 4)):
        await add(store, clock, name, hours_ago)
    others = [
        "cache/device.json",
        f"cache/speed/{'c' * 64}.json",
        "cache/base/model.safetensors",
        f"cache/{'f' * 64}",
        f"jobs/cache/{'a' * 64}/file",
    ]
    for key in others:
        await store.put(key, b"x" * 1000)
        os.utime(store.path_of(key), (0, 0))

    await evicting(store, clock, Needs()).evict()

    assert [await store.exists(key) for key in others] == [True] * len(others)
    assert not await folder_exists(store, stored_model("a" * 64))
