"""Jobs in a gateway's database, written as admission makes them; and a worker that claims them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from itertools import islice
from uuid import uuid4

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from services.gateway.database.connection import Database
from services.gateway.database.tables import jobs, open_stages
from services.gateway.jobs.record import Job
from services.gateway.jobs.record import open_stages as open_stages_of
from services.gateway.jobs.request_parser import parse_request
from services.gateway.jobs.rows import row_of
from services.gateway.jobs.transitions import admit, release
from services.gateway.web.authentication import digest_of
from shared.adapters.rabbitmq import RabbitMQBus
from shared.concurrency import until
from shared.errors import Unavailable
from shared.messaging.messages import ClaimGranted, Message, StagingInterrupted, StagingStarted
from shared.ports import ReplyQueue
from shared.service_process import closing

OWNER = "a-key-with-all-the-jobs"
REQUEST = {
    "input": {
        "train": {"data_url": "https://example.com/dataset.zip"},
        "inference": {"prompt": "a unique 123xyz concept name as a superhero"},
    }
}
PARSED = parse_request(REQUEST)
BATCH = 1_000
"""Jobs that are written in one commit."""


def admitted(job_id: str, key: str = OWNER) -> Job:
    """A job of this key that waits for its turn."""
    return admit(job_id, digest_of(key), PARSED, REQUEST["input"], sealed=None, now=time.time()).job


def released(job_id: str, key: str = OWNER) -> Job:
    """A job whose staging waits for a worker."""
    return release(admitted(job_id, key), time.time()).job


async def fill(url: str, new: Iterable[Job]) -> None:
    """Migrate a database, and write jobs into it."""
    async with closing(Database.open(url)) as database:
        await database.migrate()
        remaining = iter(new)
        while batch := [*islice(remaining, BATCH)]:
            rows = [msgspec.structs.asdict(row_of(job, 1)) for job in batch]
            stages = [stage._asdict() for job in batch for stage in open_stages_of(job)]
            async with database.writing() as connection:
                await connection.execute(sa.insert(jobs), rows)
                if stages:
                    await connection.execute(sa.insert(open_stages), stages)
    if url.startswith("postgresql"):
        await _vacuum(url)


async def _vacuum(url: str) -> None:
    """What PostgreSQL does by itself a minute after so many rows, which is not to be timed."""
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.exec_driver_sql("VACUUM ANALYZE")
    await engine.dispose()


Claim = Callable[[str], Awaitable[None]]


@asynccontextmanager
async def claiming(amqp_url: str, heartbeat: float) -> AsyncIterator[Claim]:
    """Claims the staging of a job as a fetcher does, until it is granted.

    Afterwards the job is handed over again, which is not waited for before the block ends.
    """
    bus = await RabbitMQBus.open(amqp_url, source="fetcher/bench", heartbeat=heartbeat)
    granted: dict[str, asyncio.Event] = {}
    async with closing(bus), bus.reply_queue(()) as reply_queue, asyncio.TaskGroup() as handing:
        listening = asyncio.create_task(_listen(reply_queue, granted))

        async def publish(message: Message) -> bool:
            with suppress(Unavailable):
                await bus.publish(message, reply_to=reply_queue.address)
                return True
            return False

        async def hand_over(fact: StagingInterrupted) -> None:
            while not await publish(fact):
                pass  # it has waited for its confirm

        async def claim(job: str) -> None:
            started = StagingStarted(job=job, stage="staging", claim=str(uuid4()), worker="bench")
            answer = granted[started.claim] = asyncio.Event()
            while not answer.is_set():
                await publish(started)
                await until(answer, timeout=heartbeat)
            over = StagingInterrupted(job=job, stage="staging", claim=started.claim)
            handing.create_task(hand_over(over))

        try:
            yield claim
        finally:
            listening.cancel()


async def _listen(reply_queue: ReplyQueue, granted: dict[str, asyncio.Event]) -> None:
    async for answer in reply_queue.messages():
        if isinstance(answer, ClaimGranted):
            granted[answer.claim].set()
