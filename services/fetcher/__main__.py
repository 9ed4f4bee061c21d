"""Run the fetcher: ``python -m services.fetcher``."""

from __future__ import annotations

import asyncio
from functools import partial

from services.fetcher.models.base_setting import check_base_model
from services.fetcher.models.configured_model import hub_token
from services.fetcher.models.stage import ModelStager
from services.fetcher.parser import Parser
from services.fetcher.work import FetcherWork
from shared.adapters.worker import run_worker
from shared.ports import Bus, ObjectStore
from shared.service_process import run
from shared.settings import Settings
from shared.worker.runtime import Worker

TRAINER_STARTS_SECONDS = 20.0
"""How long a trainer may take until it is ready, if it starts with the fetcher."""


async def serve(
    settings: Settings,
    _key: str,
    bus: Bus,
    store: ObjectStore,
    stop: asyncio.Event,
    *,
    jobs: int | None = None,
) -> None:
    """Stage datasets and base models until ``stop`` is set."""
    hub_token()  # a wrong setting shows at the start, not with the first job
    allowed = settings.allowed_private_hosts
    parser = Parser(settings.scratch)
    models = ModelStager(
        store,
        configured=settings.base_model,
        home=settings.home,
        allowed=allowed,
        private=settings.private_models,
    )
    work = FetcherWork(
        store,
        models,
        parser,
        scratch=settings.scratch,
        allowed=allowed,
        concurrency=settings.concurrency or 4,
        patience=TRAINER_STARTS_SECONDS,
    )
    worker = Worker(
        bus, store, work, heartbeat=settings.heartbeat, drain=settings.drain_seconds, jobs=jobs
    )
    await worker.run(stop)


async def main(jobs: int | None = None) -> None:
    await run_worker("fetcher", partial(serve, jobs=jobs), check=check_base_model)


if __name__ == "__main__":
    run(main())
