"""Runs the trainer: ``python -m services.trainer``."""

from __future__ import annotations

import asyncio
from functools import partial

from services.trainer.work import TrainerWork
from shared.adapters.worker import run_worker
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
    """Fine-tune until ``stop`` is set."""
    work = TrainerWork(
        store,
        scratch=settings.scratch,
        cache=settings.cache,
        resume_every=settings.resume_every,
        device=settings.trainers_device,
    )
    worker = Worker(
        bus, store, work, heartbeat=settings.heartbeat, drain=settings.drain_seconds, jobs=jobs
    )
    await worker.run(stop)


async def main(jobs: int | None = None) -> None:
    await run_worker("trainer", partial(serve, jobs=jobs))


if __name__ == "__main__":
    run(main())
