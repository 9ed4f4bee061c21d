"""Whether the parts that a process needs are there, for probes.

A service says for as long as it runs what it needs; several services in one process need all of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager

import structlog
from msgspec import Struct

from shared.errors import EveryDreamError

Check = Callable[[], Awaitable[str | None]]
"""Why a part is not ready, for anybody to read; None: it is. An error of ours: no answer."""

CHECK_SECONDS = 2.0
"""How long a part may take to answer; a probe commonly waits for 3."""
STARTING, NOT_REACHED_YET = "is starting", "was not reached yet"
"""Reasons that are no fault: a process or a child has just begun. They are not logged."""

log = structlog.get_logger()


class Problem(Struct, frozen=True):
    """A part that is not ready, why, and since when (seconds since the epoch)."""

    part: str
    reason: str
    since: float


class Health:
    """Asks parts, and remembers since when one is not ready."""

    def __init__(
        self,
        parts: Mapping[str, Check],
        *,
        essential: Collection[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``essential`` are the parts without which no request at all can be answered."""
        self._parts = parts
        self._essential = frozenset(essential)
        self._clock = clock
        self._known: dict[str, Problem] = {}

    async def problems(self, *, essential: bool = False) -> list[Problem]:
        """The parts that are not ready, in their order; or only the essential ones."""
        asked = [part for part in self._parts if part in self._essential or not essential]
        reasons = await asyncio.gather(*(_reason(self._parts[part]) for part in asked))
        for part, reason in zip(asked, reasons, strict=True):
            self._note(part, reason)
        return [self._known[part] for part in asked if part in self._known]

    def _note(self, part: str, reason: str | None) -> None:
        """Remember a problem with its first time, or forget one that is solved."""
        known = self._known.pop(part, None)
        if reason is None:
            return
        self._known[part] = Problem(part, reason, known.since if known else self._clock())
        if not _is_quiet(reason) and (known is None or _is_quiet(known.reason)):
            log.warning("not_ready", part=part, reason=reason)


def _is_quiet(reason: str) -> bool:
    return reason in (STARTING, NOT_REACHED_YET)


async def _reason(check: Check) -> str | None:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await check()
    except (EveryDreamError, TimeoutError):
        return "does not answer"


_running: list[Health] = []
"""Of the services in this process."""


@asynccontextmanager
async def probed(health: Health) -> AsyncIterator[None]:
    """Let the probes of this process ask for these parts, too, within the block."""
    _running.append(health)
    try:
        yield
    finally:
        _running.remove(health)


async def process_problems(*, essential: bool = False) -> list[Problem]:
    """As :meth:`Health.problems`, of all services in this process; before any runs, that."""
    if not _running:
        return [] if essential else [Problem("process", STARTING, time.time())]
    each = await asyncio.gather(*(health.problems(essential=essential) for health in _running))
    return list({problem.part: problem for problems in each for problem in problems}.values())
