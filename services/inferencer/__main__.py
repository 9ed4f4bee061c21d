"""Run the inferencer: ``python -m services.inferencer``."""

from __future__ import annotations

import asyncio

from services.inferencer.sample_rows import SampleRows
from services.inferencer.work import CHILD, InferencerWork
from shared.adapters.worker import run_worker
from shared.child.parent import Standby
from shared.ports import Bus, ObjectStore
from shared.service_process import run
from shared.settings import Settings
from shared.worker.runtime import Worker


async def serve(
    settings: Settings, _key: str, bus: Bus, store: ObjectStore, stop: asyncio.Event
) -> None:
    """Generate results, and samples while none are waiting, until ``stop`` is set."""
    standby = Standby(CHILD, device=settings.inferencers_device)
    scratch, cache = settings.scratch, settings.cache
    work = InferencerWork(store, standby, scratch=scratch, cache=cache)
    samples = SampleRows(bus, store, standby, scratch=scratch, cache=cache)
    await Worker(bus, store, work, heartbeat=settings.heartbeat, best_effort_tasks=samples).run(
        stop
    )


async def main() -> None:
    await run_worker("inferencer", serve)


if __name__ == "__main__":
    run(main())
