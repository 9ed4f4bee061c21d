"""What a gateway takes for requests that come at a steady rate: ``python -m bench gateway``.

A gateway in a process of its own, with RabbitMQ, a folder as its store, and SQLite or PostgreSQL.
No worker is there, so jobs only wait; the load comes from this process, on the same machine. Task
queues that enqueue over the same broker stand beside it. The tables are written into
docs/performance.md.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory
from typing import NamedTuple

import aiohttp
from msgspec import json

from bench import rows
from bench.enqueuing import ARGUMENT, PEERS, PER_SECOND, SECONDS
from bench.load import highest_memory, milliseconds, timed
from bench.pairs import RESULT, run_module
from tests.support.measured_page import today
from tests.support.servers.postgres import PostgreSQL
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.services import ServiceProcess, services_in_a_folder

DATABASES = ("SQLite", "PostgreSQL")
LOOKS_PER_SECOND = 200
KEY = "a-key-with-jobs-that-wait"
HEAD = (
    *("database", f"/run p50, {PER_SECOND}/s", "/run p99"),
    *(f"/status p50, {LOOKS_PER_SECOND}/s", "/status p99", "memory", "load", "measured on"),
)
PEERS_HEAD = ("task queue", f"enqueue p50, {PER_SECOND}/s", "p99", "measured on")


class Measured(NamedTuple):
    """Seconds of each request, and the gateway's resident bytes, the most that were seen."""

    run: list[float]
    status: list[float]
    memory: int


def main() -> None:
    """Measure both databases and the peers, and write the rows."""
    with RabbitMQ() as broker, PostgreSQL() as server:
        broker.start()
        server.start()
        for database in DATABASES:
            found = asyncio.run(measure(broker, server, database))
            figures = (
                *(milliseconds(found.run, of) for of in (50, 99)),
                *(milliseconds(found.status, of) for of in (50, 99)),
                f"{found.memory / 2**20:.0f} MiB", f"{os.getloadavg()[0]:.1f}", today(),
            )  # fmt: skip
            rows.put("gateway", HEAD, (database, *figures), DATABASES)
        for peer in PEERS:
            seconds = enqueuing(peer, broker.fresh_url())
            figures = (*(milliseconds(seconds, of) for of in (50, 99)), today())
            rows.put("enqueuing", PEERS_HEAD, (peer, *figures), PEERS)


async def measure(broker: RabbitMQ, server: PostgreSQL, database: str) -> Measured:
    """Start a gateway on a new database, and ask."""
    with TemporaryDirectory(prefix="bench-gateway-") as folder:
        sqlite = f"sqlite:///{folder}/everydream.db"
        url = sqlite if database == "SQLite" else await asyncio.to_thread(server.url)
        environment = {
            "EVERYDREAM_AMQP_URL": await asyncio.to_thread(broker.fresh_url),
            "EVERYDREAM_DATABASE_URL": url,
            "EVERYDREAM_STORE_URL": f"file://{folder}/store",
            "EVERYDREAM_SECRET_KEY": "a key of thirty-two letters or more",
            "EVERYDREAM_API_KEYS": KEY,
        }
        async with services_in_a_folder(environment) as services:
            gateway = services.begin("gateway")
            await gateway.wait_until_ready()
            with highest_memory(gateway) as memory:
                async with asking(gateway) as session:
                    ids: list[str] = []
                    run = await timed(
                        lambda: submit(session, ids), per_second=PER_SECOND, seconds=SECONDS
                    )
                    status = await timed(
                        lambda: look(session, ids), per_second=LOOKS_PER_SECOND, seconds=SECONDS
                    )
        return Measured(run, status, memory[0])


@asynccontextmanager
async def asking(gateway: ServiceProcess) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {KEY}"}
    address = f"{gateway.url}/v2/everydream-v1/"
    async with aiohttp.ClientSession(
        address, headers=headers, raise_for_status=True, connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        yield session


async def submit(session: aiohttp.ClientSession, ids: list[str]) -> None:
    async with session.post("run", json={"input": ARGUMENT}) as answer:
        ids.append((await answer.json())["id"])


async def look(session: aiohttp.ClientSession, ids: list[str]) -> None:
    async with session.get(f"status/{random.choice(ids)}") as answer:
        await answer.read()


def enqueuing(peer: str, url: str) -> list[float]:
    """Seconds that a peer took for each message."""
    lines = run_module("bench.enqueuing", peer, url).splitlines()
    (result,) = [line for line in lines if line.startswith(RESULT)]
    return json.decode(result.removeprefix(RESULT), type=list[float])


if __name__ == "__main__":
    main()
