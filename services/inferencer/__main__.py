"""Run the inferencer: ``python -m services.inferencer``."""

from __future__ import annotations

import asyncio
from functools import partial

from services.inferencer.sample_rows import SampleRows
from services.inferencer.work import CHILD, InferencerWork
from shared.adapters.worker import run_worker
from shared.child.parent import Standby
from shared.ports import Bus, ObjectStore
from shared.service_process import run
from shared.settings import Settings
from shared.worker.runtime import Worker


async def serve(
    settings: Settings,
    _key: str,
    bus: Bus,
    store: ObjectStore,
    stop: asyncio.Event,
    *,
    jobs: int | None = None,
) -> None:
    """Generate results, and samples while none are waiting, until ``stop`` is set."""
    standby = Standby(CHILD, device=settings.inferencers_device)
    scratch, cache = settings.scratch, settings.cache
    work = InferencerWork(store, standby, scratch=scratch, cache=cache)
    samples = SampleRows(bus, store, standby, scratch=scratch, cache=cache)
    worker = Worker(
        bus, store, work, heartbeat=settings.heartbeat, best_effort_tasks=samples,
        drain=settings.drain_seconds, jobs=jobs,
    )  # fmt: skip
    await worker.run(stop)


async def main(jobs: int | None = None) -> None:
    await run_worker("inferencer", partial(serve, jobs=jobs))


if __name__ == "__main__":
    run(main())
