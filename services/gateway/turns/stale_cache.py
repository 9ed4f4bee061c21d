"""Remember what is costly to count, and refresh it beside the requests that ask for it.

Source of the rule: stale-while-revalidate (RFC 5861).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from time import monotonic
from typing import Generic, NamedTuple, TypeVar

from services.gateway.request_owner import answering

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

FRESH_SECONDS = 1.0
"""A value is used as it is."""
STALE_SECONDS = 10.0
"""Until then it is still used, while it is refreshed."""
MAX_VALUES = 1000


class Entry(NamedTuple, Generic[V]):
    value: V
    at: float


class StaleCache(Generic[K, V]):
    """The newest value of each key; one caller loads it, the others use what it got."""

    def __init__(self, load: Callable[[K], Awaitable[V]]) -> None:
        """``load`` measures the value of a key."""
        self._load = load
        self._entries: dict[K, Entry[V]] = {}
        self._loading: dict[K, asyncio.Task[V]] = {}

    async def get(self, key: K) -> V:
        """A value of at most ``STALE_SECONDS``.

        Raises:
            Exception: what ``load`` raises, if there is no such value.
        """
        known = self._entries.get(key)
        age = monotonic() - known.at if known else STALE_SECONDS
        if known and age < FRESH_SECONDS:
            return known.value
        loading = self._loading.get(key) or self._begin(key)
        if known and age < STALE_SECONDS:
            return known.value
        return await asyncio.shield(loading)

    def newest(self, key: K) -> V | None:
        """The newest value, however old; None: none yet. It is refreshed, but not waited for."""
        known = self._entries.get(key)
        is_fresh = known is not None and monotonic() - known.at < FRESH_SECONDS
        if not is_fresh and key not in self._loading:
            self._begin(key)
        return known.value if known else None

    def _begin(self, key: K) -> asyncio.Task[V]:
        with answering(None):  # others wait for it too
            loading = asyncio.create_task(self._refresh(key))
        self._loading[key] = loading
        # A failure is raised for whom no value is left; until then it need not be noticed.
        loading.add_done_callback(lambda done: done.cancelled() or done.exception())
        return loading

    async def _refresh(self, key: K) -> V:
        try:
            value = await self._load(key)
        finally:
            del self._loading[key]
        self._entries.pop(key, None)
        self._entries[key] = Entry(value, monotonic())
        if len(self._entries) > MAX_VALUES:
            del self._entries[next(iter(self._entries))]
        return value
