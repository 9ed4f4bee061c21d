"""Runs the trainer: ``python -m services.trainer``."""

from __future__ import annotations

import asyncio

from services.trainer.work import TrainerWork
from shared import keys, telemetry
from shared.adapters.rabbitmq import RabbitMQBus
from shared.adapters.stores import open_store
from shared.ports import Bus, ObjectStore
from shared.runtime import Worker, closing, or_stopped, source_of, stop_on_signals
from shared.settings import Settings, from_environment


async def serve(settings: Settings, bus: Bus, store: ObjectStore, stop: asyncio.Event) -> None:
    """Fine-tune until ``stop`` is set."""
    work = TrainerWork(
        store, scratch=settings.scratch, cache=settings.cache, resume_every=settings.resume_every
    )
    await Worker(bus, work, beat=settings.beat).run(stop)


async def main() -> None:
    telemetry.configure("trainer")
    settings, stop = from_environment(), stop_on_signals()
    key = keys.secret_key(settings.secret_key, settings.home)
    source = source_of("trainer")
    opening = RabbitMQBus.open(settings.amqp_url, source=source, beat=settings.beat)
    bus = await or_stopped(opening, stop)
    if bus is not None:
        async with closing(bus), closing(open_store(settings, key)) as store:
            await serve(settings, bus, store, stop)


if __name__ == "__main__":
    asyncio.run(main())
