"""Whether a worker can take work, and how much it has: for probes and metrics."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from shared.messaging.messages import Stage
from shared.messaging.topology import Queue
from shared.monitoring.health import STARTING, Health
from shared.monitoring.worker import BUSY, SLOTS
from shared.ports import Bus

FAILED = "could not start what it works with; its log says why"


class WorkerState:
    """Of the slots of one worker."""

    def __init__(self, bus: Bus, queue: Queue, concurrency: int) -> None:
        self._bus = bus
        self._queue = queue
        self._concurrency = concurrency
        self._preparing = 0
        self._problem: str | None = STARTING
        service = bus.source.partition("/")[0]
        self.health = Health({"broker": self._broker, service: self._slots})
        SLOTS.labels(service).set(concurrency)

    async def prepared(self, preparing: Coroutine[Any, Any, str]) -> str:
        """What the work's ``prepare`` returns; until then the slot is not ready."""
        self._preparing += 1
        try:
            gpu = await preparing
        except Exception:
            self._problem = FAILED
            raise
        finally:
            self._preparing -= 1
        self._problem = None
        return gpu

    @contextmanager
    def busy(self, stage: Stage) -> Iterator[None]:
        """The block is the work under a claim."""
        with BUSY.labels(stage).track_inprogress():
            yield

    async def _slots(self) -> str | None:
        """A worker is ready once one of its slots is: a GPU's, with its child's imports done."""
        is_starting = self._preparing == self._concurrency
        return STARTING if is_starting and self._problem is None else self._problem

    async def _broker(self) -> None:
        """Raises Unavailable: it does not answer."""
        await self._bus.depth(self._queue)
