"""What a gateway costs with many live jobs: ``python -m bench scale``, or ``make scale``.

A gateway in a process of its own, with RabbitMQ, a folder as its store, and SQLite or PostgreSQL,
in which so many jobs of one key wait. Then a worker claims some of them, and two keys ask. The
table is written into docs/performance.md, row by row. At last a thousand workers work for five
minutes (``bench/many_workers.py``).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import aiohttp

from bench import many_workers
from bench.jobs import OWNER, admitted, claiming, fill, released
from bench.load import highest_memory, milliseconds, timed
from services.gateway.turns.places import MIN_PLACES
from tests.support.measured_page import read, table, write
from tests.support.servers.postgres import PostgreSQL
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.services import ServiceProcess, services_in_a_folder

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
SIZES = {"sqlite": (10, 100, 1_000, 10_000), "postgresql": (10, 100, 1_000, 10_000, 100_000)}
WORKERS = "workers"
OTHER = "a-key-without-jobs"
HEARTBEAT = 1.0
"""Seconds: ten times as often as by default, so that heartbeats coincide with what is timed."""
PER_SECOND = 20
"""Requests or claims."""
SECONDS = 15
"""Of each measurement."""
HEAD = (
    *("database", "live jobs", "claim p50", "claim p99", "/health p99", "/status p99"),
    *("memory", "start", "load", "measured on"),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement; times in seconds."""

    database: str
    live: int
    claims: list[float]
    health: list[float]
    status: list[float]
    memory: int
    """The gateway's resident bytes, the most that were seen."""
    start: float
    """From the process to its port."""
    load: float
    """Processes that were ready to run on the machine, the mean over a minute."""

    @property
    def cells(self) -> tuple[str, ...]:
        times = (
            (self.claims, 50), (self.claims, 99), (self.health, 99), (self.status, 99)
        )  # fmt: skip
        return (
            self.database,
            f"{self.live:,}",
            *(milliseconds(values, of) for values, of in times),
            f"{self.memory / 2**20:.0f} MiB",
            f"{self.start:.1f} s",
            f"{self.load:.1f}",
            datetime.now(UTC).date().isoformat(),
        )


def main(arguments: list[str] | None = None) -> None:
    """Measure each size on each database, and write the rows."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--only", choices=(*SIZES, WORKERS), help="one database, or the workers")
    parser.add_argument("--least", type=int, default=1, help="live jobs")
    parser.add_argument("--most", type=int, default=100_000, help="live jobs")
    chosen = parser.parse_args(os.environ.get("SCALE_ARGS", "").split() or arguments or [])
    names = [chosen.only] if chosen.only else [*SIZES, WORKERS]
    with RabbitMQ() as broker, PostgreSQL() as server:
        for name in names:
            if name == WORKERS:
                asyncio.run(many_workers.measure(broker, server))
            for live in SIZES.get(name, ()):
                if chosen.least <= live <= chosen.most:
                    row = asyncio.run(measure(broker, server, name, live))
                    print(" | ".join(row.cells), flush=True)
                    keep(row)


async def measure(broker: RabbitMQ, server: PostgreSQL, database: str, live: int) -> Row:
    """Fill a new database, start a gateway on it, and ask."""
    with TemporaryDirectory(prefix="bench-scale-") as folder:
        sqlite = f"sqlite:///{folder}/everydream.db"
        url = sqlite if database == "sqlite" else await asyncio.to_thread(server.url)
        ids = [str(uuid4()) for _ in range(live)]
        # The first fill their line's places.
        await fill(url, (released(each) for each in ids[:MIN_PLACES]))
        await fill(url, map(admitted, ids[MIN_PLACES:]))
        amqp_url = await asyncio.to_thread(broker.fresh_url)
        environment = {
            "EVERYDREAM_AMQP_URL": amqp_url,
            "EVERYDREAM_DATABASE_URL": url,
            "EVERYDREAM_STORE_URL": f"file://{folder}/store",
            "EVERYDREAM_SECRET_KEY": "a key of thirty-two letters or more",
            "EVERYDREAM_API_KEYS": f"{OWNER},{OTHER}",
            "EVERYDREAM_HEARTBEAT": str(HEARTBEAT),
        }
        async with services_in_a_folder(environment) as services:
            began = time.perf_counter()
            gateway = services.begin("gateway")
            await gateway.wait_until_ready()
            start = time.perf_counter() - began
            with highest_memory(gateway) as memory:
                await asyncio.sleep(3 * HEARTBEAT)
                claims = await claim_times(amqp_url, ids[:MIN_PLACES])
                async with asking(gateway) as get:
                    health = await timed(health_of(get), per_second=PER_SECOND, seconds=SECONDS)
                    status = await timed(
                        status_of(get, ids), per_second=PER_SECOND, seconds=SECONDS
                    )
        return Row(
            database=database, live=live, claims=claims, health=health, status=status,
            memory=memory[0], start=start, load=os.getloadavg()[0],
        )  # fmt: skip


async def claim_times(amqp_url: str, ids: list[str]) -> list[float]:
    """A worker claims one of the jobs at random, and hands it over again at once."""
    async with claiming(amqp_url, HEARTBEAT) as claim:
        await claim(ids[0])  # the first waits for the gateway's own first messages
        return await timed(
            lambda: claim(random.choice(ids)),
            per_second=PER_SECOND,
            seconds=SECONDS,
            one_by_one=True,
        )


Get = Callable[[str, str], Awaitable[None]]


@asynccontextmanager
async def asking(gateway: ServiceProcess) -> AsyncIterator[Get]:
    async with aiohttp.ClientSession() as session:

        async def get(path: str, key: str) -> None:
            headers = {"Authorization": f"Bearer {key}"}
            address = f"{gateway.url}/v2/everydream-v1{path}"
            async with session.get(address, headers=headers) as answer:
                if answer.status != 200:  # noqa: PLR2004
                    raise RuntimeError(f"{path}: {answer.status} {await answer.text()}")
                await answer.read()

        yield get


def health_of(get: Get) -> Callable[[], Awaitable[None]]:
    """Of the key with all the jobs, and of the other, in turn."""
    keys = iter_for_ever(OWNER, OTHER)
    return lambda: get("/health", next(keys))


def status_of(get: Get, ids: list[str]) -> Callable[[], Awaitable[None]]:
    return lambda: get(f"/status/{random.choice(ids)}", OWNER)


def iter_for_ever(*values: str) -> Iterator[str]:
    while True:
        yield from values


def keep(row: Row) -> None:
    """Put the row into the page's table; the others stay as they are."""
    lines = read("scale", PAGE).splitlines()[2:]
    known = {cells[:2]: cells for cells in (tuple(line[2:-2].split(" | ")) for line in lines)}
    known[row.cells[:2]] = row.cells
    order = [(name, f"{live:,}") for name, sizes in SIZES.items() for live in sizes]
    write("scale", table(HEAD, (known[each] for each in order if each in known)), PAGE)
