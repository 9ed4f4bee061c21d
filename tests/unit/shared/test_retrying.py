"""Calls of an unavailable store are retried until a deadline."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic

import pytest

from shared.adapters.folder import FolderStore
from shared.errors import NotFound, Unavailable
from shared.ports import StoredObject
from shared.storage.retrying import RetryingStore


class Flaky(FolderStore):
    """Unavailable for its first calls; a listing breaks off in the middle."""

    def __init__(self, folder: Path, *, failures: int) -> None:
        super().__init__(folder, public_url="http://127.0.0.1:1", key="k" * 32)
        self.left = failures
        self.asked = 0

    def _maybe_fail(self) -> None:
        self.asked += 1
        self.left -= 1
        if self.left >= 0:
            raise Unavailable("the disk does not answer")

    async def put(self, key: str, data: bytes) -> None:
        self._maybe_fail()
        await super().put(key, data)

    async def get(self, key: str) -> bytes:
        self._maybe_fail()
        return await super().get(key)

    async def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        async for entry in super().list(prefix):
            yield entry
            self._maybe_fail()


async def test_what_fails_for_a_while_is_done_in_the_end(tmp_path: Path) -> None:
    flaky = Flaky(tmp_path, failures=2)
    await RetryingStore(flaky, deadline=50.0).put("a", b"1")
    assert (flaky.asked, await flaky.get("a")) == (3, b"1")


async def test_a_listing_that_breaks_off_gives_nothing_twice(tmp_path: Path) -> None:
    flaky = Flaky(tmp_path, failures=0)
    for key in ("a", "b", "c"):
        await flaky.put(key, b"")
    flaky.left = 1
    assert [entry.key async for entry in RetryingStore(flaky, deadline=50.0).list("")] == [
        "a",
        "b",
        "c",
    ]


async def test_a_missing_object_is_reported_at_once(tmp_path: Path) -> None:
    flaky = Flaky(tmp_path, failures=0)
    with pytest.raises(NotFound):
        await RetryingStore(flaky, deadline=50.0).get("nothing")
    assert flaky.asked == 1


async def test_the_wait_has_an_end_with_the_stores_own_reason(tmp_path: Path) -> None:
    flaky, begun = Flaky(tmp_path, failures=1_000_000), monotonic()
    with pytest.raises(Unavailable, match="the disk does not answer"):
        await RetryingStore(flaky, deadline=0.5).get("a")
    assert flaky.asked > 1
    assert monotonic() - begun >= 0.5
