"""For tests that are not about the parsing child: the same orders, carried out in a thread."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from services.fetcher.limits import Limits
from services.fetcher.order import Task
from services.fetcher.parser import Parser, Reader
from services.fetcher.parsing.tasks import perform
from shared.child.parent import Child
from shared.concurrency import in_thread

NOWHERE = Path("no folder is used")
T = TypeVar("T")


class InProcessParser(Parser):
    """Starts no child."""

    def __init__(self) -> None:
        super().__init__(NOWHERE)

    async def prepare(self) -> None: ...

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[Reader]:
        yield InProcessReader()


class InProcessReader(Reader):
    """Sets no limits."""

    def __init__(self) -> None:
        super().__init__(_no_child, NOWHERE)

    async def parse(
        self,
        task: Task,
        limits: Limits,
        result: type[T],
        *,
        keepalive: Callable[[], None],
        on_progress: Callable[..., Any] = lambda **_: None,
    ) -> T:
        reports = _Reports(keepalive, on_progress)
        sent = msgspec.json.decode(msgspec.json.encode(task), type=Task)
        done = await in_thread(perform, sent, limits, reports)
        return msgspec.json.decode(msgspec.json.encode(done), type=result)


class _Reports:
    def __init__(self, keepalive: Callable[[], None], on_progress: Callable[..., Any]) -> None:
        self._keepalive = keepalive
        self.progress = on_progress

    def reading(self, _file: str) -> None:
        self._keepalive()


async def _no_child() -> Child:
    raise AssertionError("these orders are carried out in a thread")


def ignored(_file: str) -> None:
    """Nobody is told which file is read."""
