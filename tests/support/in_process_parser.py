"""A parser for tests that are not about its child: the same orders, carried out in a thread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from services.fetcher.limits import Limits
from services.fetcher.order import Task
from services.fetcher.parser import Parser
from services.fetcher.parsing.tasks import perform
from shared.concurrency import in_thread

T = TypeVar("T")


class InProcessParser(Parser):
    """Starts no child, and sets no limits."""

    def __init__(self) -> None:
        super().__init__(Path("no folder is used"))

    async def prepare(self) -> None: ...

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


def ignored(_file: str) -> None:
    """Nobody is told which file is read."""
