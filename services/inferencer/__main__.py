"""Runs the inferencer: ``python -m services.inferencer``."""

from __future__ import annotations

import asyncio

from services.inferencer.work import InferencerWork
from shared.adapters.worker import run_worker
from shared.ports import Bus, ObjectStore
from shared.runtime import Worker
from shared.settings import Settings


async def serve(
    settings: Settings, _key: str, bus: Bus, store: ObjectStore, stop: asyncio.Event
) -> None:
    """Draw images until ``stop`` is set."""
    work = InferencerWork(store, scratch=settings.scratch, cache=settings.cache)
    await Worker(bus, work, beat=settings.beat).run(stop)


async def main() -> None:
    await run_worker("inferencer", serve)


if __name__ == "__main__":
    asyncio.run(main())
