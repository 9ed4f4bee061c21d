"""What a gateway costs with many live jobs: ``python -m bench scale``, or ``make scale``.

A gateway in a process of its own, with RabbitMQ, a folder as its store, and SQLite or PostgreSQL,
in which so many jobs of one key wait. Then a worker claims some of them, and two keys ask. The
table is written into docs/performance.md, row by row.
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
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import aiohttp
import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from bench.load import highest_memory, milliseconds, timed
from services.gateway.database.connection import Database
from services.gateway.database.tables import jobs, open_stages
from services.gateway.jobs.record import open_stages as open_stages_of
from services.gateway.jobs.request_parser import parse_request
from services.gateway.jobs.rows import row_of
from services.gateway.jobs.transitions import admit, release
from services.gateway.turns.places import MIN_PLACES
from services.gateway.web.authentication import digest_of
from shared.adapters.rabbitmq import RabbitMQBus
from shared.messaging.messages import ClaimGranted, StagingInterrupted, StagingStarted
from shared.ports import ReplyQueue
from shared.service_process import closing
from tests.support.measured_page import read, table, write
from tests.support.servers.postgres import PostgreSQL
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.services import ServiceProcess, services_in_a_folder

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
SIZES = {"sqlite": (10, 100, 1_000, 10_000), "postgresql": (10, 100, 1_000, 10_000, 100_000)}
OWNER, OTHER = "a-key-with-all-the-jobs", "a-key-without-jobs"
HEARTBEAT = 1.0
"""Seconds: ten times as often as by default, so that heartbeats coincide with what is timed."""
PER_SECOND = 20
"""Requests or claims."""
SECONDS = 15
"""Of each measurement."""
BATCH = 1_000
REQUEST = {
    "input": {
        "train": {"data_url": "https://example.com/dataset.zip"},
        "inference": {"prompt": "a unique 123xyz concept name as a superhero"},
    }
}
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
    parser.add_argument("--only", choices=SIZES, help="one database")
    parser.add_argument("--least", type=int, default=1, help="live jobs")
    parser.add_argument("--most", type=int, default=100_000, help="live jobs")
    chosen = parser.parse_args(os.environ.get("SCALE_ARGS", "").split() or arguments or [])
    names = [chosen.only] if chosen.only else [*SIZES]
    with RabbitMQ() as broker, PostgreSQL() as server:
        for name in names:
            for live in SIZES[name]:
                if chosen.least <= live <= chosen.most:
                    row = asyncio.run(measure(broker, server, name, live))
                    print(" | ".join(row.cells), flush=True)
                    keep(row)


async def measure(broker: RabbitMQ, server: PostgreSQL, database: str, live: int) -> Row:
    """Fill a new database, start a gateway on it, and ask."""
    with TemporaryDirectory(prefix="bench-scale-") as folder:
        sqlite = f"sqlite:///{folder}/everydream.db"
        url = sqlite if database == "sqlite" else await asyncio.to_thread(server.url)
        ids = await fill(url, live)
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


async def fill(url: str, live: int) -> list[str]:
    """Write jobs as admission makes them; their ids. The first fill their line's places."""
    ids = [str(uuid4()) for _ in range(live)]
    remaining, owner, request = iter(ids), digest_of(OWNER), parse_request(REQUEST)
    async with closing(Database.open(url)) as database:
        await database.migrate()
        while batch := [*islice(remaining, BATCH)]:
            now = time.time()
            admitted = [
                admit(job_id, owner, request, REQUEST["input"], sealed=None, now=now).job
                for job_id in batch
            ]
            released = {*ids[:MIN_PLACES]}
            admitted = [release(job, now).job if job.id in released else job for job in admitted]
            rows = [msgspec.structs.asdict(row_of(job, 1)) for job in admitted]
            stages = [stage._asdict() for job in admitted for stage in open_stages_of(job)]
            async with database.writing() as connection:
                await connection.execute(sa.insert(jobs), rows)
                if stages:
                    await connection.execute(sa.insert(open_stages), stages)
    if url.startswith("postgresql"):
        await vacuum(url)
    return ids


async def vacuum(url: str) -> None:
    """What PostgreSQL does by itself a minute after so many rows, which is not to be timed."""
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.exec_driver_sql("VACUUM ANALYZE")
    await engine.dispose()


async def claim_times(amqp_url: str, ids: list[str]) -> list[float]:
    """A worker claims one of the jobs at random, and hands it over again at once."""
    bus = await RabbitMQBus.open(amqp_url, source="fetcher/bench", heartbeat=HEARTBEAT)
    async with closing(bus), bus.reply_queue(()) as reply_queue:
        granted: dict[str, asyncio.Future[ClaimGranted]] = {}
        listening = asyncio.create_task(listen(reply_queue, granted))

        async def claim() -> None:
            started = StagingStarted(
                job=random.choice(ids), stage="staging", claim=str(uuid4()), worker="bench"
            )
            answer = granted[started.claim] = asyncio.get_running_loop().create_future()
            await bus.publish(started, reply_to=reply_queue.address)
            await answer
            over = StagingInterrupted(job=started.job, stage="staging", claim=started.claim)
            await bus.publish(over, reply_to=reply_queue.address)

        try:
            await claim()  # the first waits for the gateway's own first messages
            return await timed(claim, per_second=PER_SECOND, seconds=SECONDS, one_by_one=True)
        finally:
            listening.cancel()


async def listen(reply_queue: ReplyQueue, granted: dict[str, asyncio.Future[ClaimGranted]]) -> None:
    async for answer in reply_queue.messages():
        if isinstance(answer, ClaimGranted) and not granted[answer.claim].done():
            granted[answer.claim].set_result(answer)


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
