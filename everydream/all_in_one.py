"""The five services in one process: in-memory bus, SQLite, a folder; GPU work in children."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from services.fetcher.__main__ import serve as fetch
from services.gateway.app import Gateway
from services.gateway.database.api_keys import SqlKeyStore
from services.gateway.database.connection import Database
from services.gateway.database.jobs import SqlJobStore
from services.gateway.database.uploads import SqlUploadStore
from services.gateway.ports import Record
from services.inferencer.__main__ import serve as infer
from services.notifier.__main__ import serve as notify
from services.trainer.__main__ import serve as train
from shared import keys
from shared.adapters.memory import MemoryBroker
from shared.adapters.stores import open_store
from shared.messaging.topology import GATEWAY_RECORDER
from shared.ports import Bus
from shared.service_process import closing
from shared.settings import Settings
from shared.storage.retrying import STORE_HEARTBEATS, RetryingStore

THREADS = "OMP_NUM_THREADS"


@dataclass
class AllInOne:
    """The whole product in one event loop; restarted, it goes on with what was under way."""

    settings: Settings
    listening: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once requests are answered at ``settings.port``."""

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set, then let every service go in good order."""
        share_cores()
        settings = self.settings
        settings.home.mkdir(parents=True, exist_ok=True)
        key = keys.secret_key(settings.secret_key, settings.home)
        broker = MemoryBroker()
        async with AsyncExitStack() as stack:
            database = await stack.enter_async_context(
                closing(Database.open(settings.database_url))
            )
            record = Record(SqlJobStore(database), SqlKeyStore(database), SqlUploadStore(database))
            store = await stack.enter_async_context(closing(open_store(settings, key)))
            retrying = RetryingStore(store, deadline=STORE_HEARTBEATS * settings.heartbeat)
            front, *workers = [
                await stack.enter_async_context(closing(broker.bus(name)))
                for name in ("gateway", "fetcher", "trainer", "inferencer", "notifier")
            ]
            await database.migrate()
            gateway = Gateway(settings, key, front, store, record)
            async with asyncio.TaskGroup() as group:
                last = asyncio.Event()
                group.create_task(gateway.run(last))
                group.create_task(self._announce(gateway))
                async with asyncio.TaskGroup() as serving:
                    serving.create_task(fetch(settings, key, workers[0], retrying, stop))
                    serving.create_task(train(settings, key, workers[1], retrying, stop))
                    serving.create_task(infer(settings, key, workers[2], retrying, stop))
                    serving.create_task(notify(settings, key, workers[3], retrying, stop))
                await drained(front)
                last.set()

    async def _announce(self, gateway: Gateway) -> None:
        await gateway.listening.wait()
        self.listening.set()


def share_cores() -> None:
    """Half of the cores for each of the two children that compute, unless the environment says.

    A torch thread spins while it waits for the others. Where two processes have a thread for every
    core, those that wait keep off those that work.
    """
    if not os.environ.get(THREADS):
        os.environ[THREADS] = str(max(1, len(os.sched_getaffinity(0)) // 2))


async def drained(bus: Bus) -> None:
    """Wait until the gateway has recorded the workers' last words; they live in memory only."""
    while await bus.depth(GATEWAY_RECORDER):  # noqa: ASYNC110 - a queue has no event
        await asyncio.sleep(0.01)
