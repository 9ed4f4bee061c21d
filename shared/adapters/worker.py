"""Runs a worker's process on RabbitMQ and the deployment's store, set up from the environment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from shared import keys
from shared.adapters.rabbitmq import RabbitMQBus, quorum_of
from shared.adapters.stores import open_store
from shared.monitoring.health import Health, probed
from shared.monitoring.server import monitored
from shared.ports import Bus, ObjectStore
from shared.service_process import closing, or_stopped, source_of, stop_on_signals
from shared.settings import Settings, from_environment
from shared.starting import begin_telemetry
from shared.storage.leftovers import remove_leftovers
from shared.storage.ready import StoreCheck, disk_problem
from shared.storage.retrying import STORE_HEARTBEATS, RetryingStore
from shared.telemetry import logs

Serve = Callable[[Settings, str, Bus, ObjectStore, asyncio.Event], Awaitable[None]]
"""A service: takes settings, secret key, bus, store, and the event that stops it."""


async def run_worker(
    service: str, serve: Serve, *, check: Callable[[Settings], None] = lambda _: None
) -> None:
    """Open bus and store, serve until SIGTERM or SIGINT, and close them.

    Raises:
        SettingsError: a setting is wrong by itself, or by ``check``, which is asked before anything
            is opened.
    """
    logs.configure(service)
    settings, stop = from_environment(), stop_on_signals()
    check(settings)
    begin_telemetry(service, settings)
    async with monitored(service, settings):
        await _run(service, serve, settings, stop)


async def _run(service: str, serve: Serve, settings: Settings, stop: asyncio.Event) -> None:
    key = keys.secret_key(settings.secret_key, settings.home)
    opening = RabbitMQBus.open(
        settings.amqp_url,
        source=source_of(service),
        heartbeat=settings.heartbeat,
        quorum=quorum_of(settings),
    )
    await remove_leftovers(settings)
    bus = await or_stopped(opening, stop)
    if bus is not None:
        async with closing(bus), closing(open_store(settings, key)) as store:
            retrying = RetryingStore(store, deadline=STORE_HEARTBEATS * settings.heartbeat)
            disk = partial(disk_problem, settings.home)
            health = Health({"store": StoreCheck(store).problem, "disk": disk})
            async with probed(health):
                await serve(settings, key, bus, retrying, stop)
