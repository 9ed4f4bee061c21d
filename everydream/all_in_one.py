"""The five services in one process: in-memory bus, SQLite, a folder; GPU work in children."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field

from services.fetcher.__main__ import serve as fetch
from services.gateway.app import Gateway
from services.gateway.database.connection import Database
from services.gateway.database.stores import stores_in
from services.inferencer.__main__ import serve as infer
from services.notifier.__main__ import serve as notify
from services.trainer.__main__ import serve as train
from shared import keys
from shared.adapters.memory import MemoryBroker
from shared.adapters.stores import open_store
from shared.messaging.topology import GATEWAY_RECORDER
from shared.monitoring.server import monitored
from shared.ports import Bus
from shared.service_process import closing
from shared.settings import Settings
from shared.storage.leftovers import remove_leftovers
from shared.storage.retrying import STORE_HEARTBEATS, RetryingStore

THREADS = "OMP_NUM_THREADS"
DRAIN_SECONDS = 10.0
"""For recording the workers' last facts when the process stops."""


@dataclass
class AllInOne:
    """The whole product in one event loop; after a restart it resumes what was under way."""

    settings: Settings
    listening: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the gateway listens at ``settings.port``."""

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set, then shut every service down in order."""
        share_cores()
        settings = self.settings
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = keys.secret_key(settings.secret_key, settings.home)
        broker = MemoryBroker()
        async with monitored("everydream", settings), AsyncExitStack() as stack:
            database = await stack.enter_async_context(
                closing(Database.open(settings.database_url, settings.database_connections))
            )
            stores = stores_in(database)
            store = await stack.enter_async_context(closing(open_store(settings, key)))
            retrying = RetryingStore(store, deadline=STORE_HEARTBEATS * settings.heartbeat)
            gateway_bus, *worker_buses = [
                await stack.enter_async_context(closing(broker.bus(name)))
                for name in ("gateway", "fetcher", "trainer", "inferencer", "notifier")
            ]
            await remove_leftovers(settings)
            await database.migrate()
            gateway = Gateway(settings, key, gateway_bus, store, stores)
            async with asyncio.TaskGroup() as group:
                gateway_stop = asyncio.Event()
                group.create_task(gateway.run(gateway_stop))
                group.create_task(self._announce(gateway))
                async with asyncio.TaskGroup() as serving:
                    serving.create_task(fetch(settings, key, worker_buses[0], retrying, stop))
                    serving.create_task(train(settings, key, worker_buses[1], retrying, stop))
                    serving.create_task(infer(settings, key, worker_buses[2], retrying, stop))
                    serving.create_task(notify(settings, key, worker_buses[3], retrying, stop))
                # What is not recorded by then is found out after the next start, as after a crash.
                with suppress(TimeoutError):
                    async with asyncio.timeout(DRAIN_SECONDS):
                        await drained(gateway_bus)
                gateway_stop.set()

    async def _announce(self, gateway: Gateway) -> None:
        await gateway.listening.wait()
        self.listening.set()


def share_cores() -> None:
    """Give each of the two GPU children half of the cores, unless the environment sets a number.

    Waiting torch threads spin. If both processes had a thread for every core, the waiting ones
    would slow down the working ones.
    """
    if not os.environ.get(THREADS):
        os.environ[THREADS] = str(max(1, len(os.sched_getaffinity(0)) // 2))


async def drained(bus: Bus) -> None:
    """Wait until the gateway has recorded all facts of the workers, kept in memory."""
    while await bus.depth(GATEWAY_RECORDER):  # noqa: ASYNC110 - a queue has no event
        await asyncio.sleep(0.01)
