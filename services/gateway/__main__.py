"""Run the gateway: ``python -m services.gateway``."""

from __future__ import annotations

import asyncio

from services.gateway.app import Gateway, migrate
from services.gateway.database.connection import Database
from services.gateway.database.stores import stores_in
from shared import keys
from shared.adapters.rabbitmq import RabbitMQBus, quorum_of
from shared.adapters.stores import open_store
from shared.monitoring.server import monitored
from shared.service_process import closing, or_stopped, run, stop_on_signals
from shared.settings import Settings, from_environment, on_free_port
from shared.starting import begin_telemetry
from shared.telemetry import logs


async def main() -> None:
    logs.configure("gateway")
    settings, stop = on_free_port(from_environment()), stop_on_signals()
    begin_telemetry("gateway", settings)
    async with monitored("gateway", settings):
        await _run(settings, stop)


async def _run(settings: Settings, stop: asyncio.Event) -> None:
    key = keys.secret_key(settings.secret_key, settings.home)
    bus = RabbitMQBus.connecting(
        settings.amqp_url,
        source="gateway",
        heartbeat=settings.heartbeat,
        quorum=quorum_of(settings),
    )
    async with (
        closing(bus),
        closing(open_store(settings, key)) as store,
        closing(Database.open(settings.database_url, settings.database_connections)) as database,
    ):
        stores = stores_in(database)
        await or_stopped(migrate(stores.jobs), stop)
        await Gateway(settings, key, bus, store, stores).run(stop)


if __name__ == "__main__":
    run(main())
