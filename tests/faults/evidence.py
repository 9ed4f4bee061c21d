"""Gathers what the ledger looks at: from the broker, the database, the buckets, logs and receivers.

    async with witnessed(broker, vhost) as witness:  # before the first job
        ...
        wrong = check(await gather(world, witness))

What is gathered stays where it is: dead letters are read and left.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import msgspec
import sqlalchemy as sa
from aio_pika.abc import AbstractChannel, AbstractQueue
from aio_pika.exceptions import AMQPError
from sqlalchemy.engine import Row

from services.gateway.database import tables
from services.gateway.database.connection import Database
from services.gateway.ports import Status
from shared.keys import webhook_secret
from shared.messaging.messages import (
    AnyMessage,
    JobCancelled,
    JobCompleted,
    JobFailed,
    JobTimedOut,
    decode,
)
from shared.messaging.topology import EXCHANGE
from shared.service_process import closing
from tests.faults.facts import (
    Accepted,
    Buried,
    Depth,
    End,
    Evidence,
    File,
    Post,
    Record,
    Stored,
    Text,
    Turn,
)
from tests.faults.leftovers import keys_in, left_over
from tests.faults.world import World
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.servers.s3 import S3Server
from tests.support.servers.web import Seen

WITNESS = "witness"
"""Our own queue."""
TRACE = "amq.rabbitmq.trace"
TRACE_ON = 'rabbit_trace:start(<<"%s">>)'
SENT_BY_NAME = "publish."
"""The broker's trace of what goes by the default exchange, to one queue alone."""
PAUSE_SECONDS = 0.2
QUIET_SECONDS = 30.0
"""In which every queue must have been seen empty at once; beats come and go."""
ENDS: Mapping[type[AnyMessage], Status] = {
    JobCompleted: "COMPLETED",
    JobFailed: "FAILED",
    JobCancelled: "CANCELLED",
    JobTimedOut: "TIMED_OUT",
}


# --- The witness ------------------------------------------------------------------------------


@dataclass
class Witness:
    """Hears all that is said on the exchange, and while the broker lets it what goes to queues."""

    url: str
    trace: Callable[[], object]
    heard: dict[bytes, AnyMessage | None] = field(default_factory=dict)
    """Each body with what it says, in the order of the first time; None: poison."""
    listening: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self) -> None:
        """For ever; what is said while the broker is away waits in a durable queue."""
        while True:
            try:
                with suppress(AMQPError, OSError, TimeoutError):
                    await self._listen()
            except Exception as error:  # noqa: BLE001 - deaf, it would call every job lost
                print(f"the witness listens anew after {error!r}")  # noqa: T201
            await asyncio.sleep(PAUSE_SECONDS)

    async def _listen(self) -> None:
        async with await aio_pika.connect(self.url, timeout=10) as connection:
            queue = await witness_queue(await connection.channel())
            await asyncio.to_thread(self.trace)
            await queue.bind(TRACE, SENT_BY_NAME)
            self.listening.set()
            async with queue.iterator() as messages:
                async for message in messages:
                    self.heard[message.body] = _understood(message.body)
                    await message.ack()

    @property
    def ends(self) -> Iterator[End]:
        for body, message in self.heard.items():
            if isinstance(message, JobCompleted | JobFailed | JobCancelled | JobTimedOut):
                status = ENDS[type(message)]
                yield End(job=message.job, run=message.run, status=status, body=body)


async def witness_queue(channel: AbstractChannel) -> AbstractQueue:
    """Our queue, bound to all that is said on the exchange; made if it is not there."""
    queue = await channel.declare_queue(WITNESS, durable=True)  # classic: others wait less
    exchange = await channel.declare_exchange(EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True)
    await queue.bind(exchange, "#")
    return queue


async def all_heard(world: World) -> None:
    """Wait until the witness has taken what was said so far."""

    async def taken() -> bool | None:
        ready, unacked = (await asyncio.to_thread(world.broker.depths, world.vhost))[WITNESS]
        return not ready + unacked or None

    await world.until(taken)


def _understood(body: bytes) -> AnyMessage | None:
    try:
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


@asynccontextmanager
async def witnessed(broker: RabbitMQ, vhost: str) -> AsyncIterator[Witness]:
    """Somebody who listens from now on."""
    witness = Witness(broker.url(vhost), lambda: broker.evaluate(TRACE_ON % vhost))
    listening = asyncio.create_task(witness.listen())
    try:
        await asyncio.wait_for(witness.listening.wait(), QUIET_SECONDS)
        yield witness
    finally:
        listening.cancel()
        await asyncio.wait([listening])


# --- All of it --------------------------------------------------------------------------------


async def gather(world: World, witness: Witness) -> Evidence:
    """Everything about a world that should be quiet by now."""
    queues, rows = await _at_rest(world)
    await all_heard(world)
    left = await left_over(world)
    theirs = await _contents(world.s3, world.bucket)
    return Evidence(
        accepted=tuple(
            Accepted(id=job.id, published=job.s3, webhook=job.webhook)
            for job in world.jobs.values()
        ),
        ends=tuple(witness.ends),
        history=tuple(_history(rows)),
        records=tuple([await _record(world, row) for row in rows["jobs"]]),
        bucket=tuple(_stored(theirs)),
        posts=tuple(_posts(world)),
        queues=queues,
        outbox=tuple(row.id for row in rows["outbox"]),
        left=left,
        dead_letters=tuple(map(_buried, rows["dead_letters"])),
        planted=tuple(world.planted),
        secrets=secrets_of(world),
        texts=(
            *_logs(world),
            *_row_texts(rows),
            *(Text(place=f"a message: {body[:60]!r}", content=body) for body in witness.heard),
            *(Text(place="a webhook", content=seen.body) for seen in world.web.posts),
            *(Text(place=f"artifact {key}", content=body) for key, body in theirs.items()),
            *[text async for text in _store_texts(world)],
        ),
    )


def secrets_of(world: World) -> dict[str, str]:
    """What must stand nowhere, by what it is."""
    environment = world.services.environment
    key = environment["EVERYDREAM_SECRET_KEY"]
    return {
        "API key": environment["EVERYDREAM_API_KEYS"],
        "secret key": key,
        "secret of the stores": environment["AWS_SECRET_ACCESS_KEY"],
        "webhook secret": webhook_secret(environment.get("EVERYDREAM_WEBHOOK_SECRET"), key),
        **_password("broker", environment["EVERYDREAM_AMQP_URL"]),
        **_password("database", environment["EVERYDREAM_DATABASE_URL"]),
    }


def _password(of: str, url: str) -> dict[str, str]:
    password = urlsplit(url).password
    return {} if password is None else {f"{of}'s password": password}


# --- Broker -----------------------------------------------------------------------------------


async def _at_rest(world: World) -> tuple[tuple[Depth, ...], Rows]:
    """Queues and outbox when they are empty, or as they are when time is up.

    The witness's queue is not among them. The gateway takes dead letters into the database.
    """
    url = world.services.environment["EVERYDREAM_DATABASE_URL"]
    deadline = monotonic() + QUIET_SECONDS
    while True:
        depths = await asyncio.to_thread(_depths, world.broker, world.vhost)
        is_late = monotonic() > deadline
        if is_late or not any(depth.ready or depth.unacked for depth in depths):
            rows = await _rows(url)
            if is_late or not rows["outbox"]:
                return depths, rows
        await asyncio.sleep(PAUSE_SECONDS)


def _depths(broker: RabbitMQ, vhost: str) -> tuple[Depth, ...]:
    return tuple(
        Depth(queue=name, ready=ready, unacked=unacked)
        for name, (ready, unacked) in broker.depths(vhost).items()
        if name != WITNESS
    )


def _buried(row: Row[Any]) -> Buried:
    return Buried(queue=row.queue, reason=row.reason, sha256=row.sha256)


# --- Database ---------------------------------------------------------------------------------

Rows = Mapping[str, Sequence[Row[Any]]]


async def _rows(url: str) -> Rows:
    """Every row of every table."""
    async with closing(Database.open(url)) as database:
        return {
            name: await database.all(sa.select(table).order_by(*table.primary_key.columns))
            for name, table in tables.metadata.tables.items()
        }


def _history(rows: Rows) -> Iterator[Turn]:
    for row in rows["events"]:
        if row.type == "status":
            data = msgspec.json.decode(row.data)
            yield Turn(job=row.job, run=data["run"], status=data["status"])


def _row_texts(rows: Rows) -> Iterator[Text]:
    for name, every in rows.items():
        for row in every:
            yield Text(place=f"a row of {name}", content=b"\n".join(map(_plain, row)))


def _plain(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


async def _record(world: World, row: Row[Any]) -> Record:
    told = await world.status(row.id)
    files = told["output"].get("artifacts", ())
    return Record(
        id=row.id,
        run=row.run,
        status=row.status,
        told=told["status"],
        files=tuple(
            File(name=each["name"], bytes=each["bytes"], sha256=each["sha256"],
                 url=each["url"].partition("?")[0])
            for each in files
        ),
    )  # fmt: skip


# --- Objects, webhooks, logs ------------------------------------------------------------------


async def _contents(s3: S3Server, bucket: str) -> dict[str, bytes]:
    """Every object, by key."""
    keys = await keys_in(s3, bucket)
    async with s3.client() as client:
        return {key: await _content(client, bucket, key) for key in keys}


async def _content(client: Any, bucket: str, key: str) -> bytes:
    answer = await client.get_object(Bucket=bucket, Key=key)
    content: bytes = await answer["Body"].read()
    return content


def _stored(contents: Mapping[str, bytes]) -> Iterator[Stored]:
    for key, body in contents.items():
        yield Stored(key=key, bytes=len(body), sha256=sha256(body).hexdigest())


async def _store_texts(world: World) -> AsyncIterator[Text]:
    """What the deployment's own store keeps."""
    bucket = urlsplit(world.services.environment["EVERYDREAM_STORE_URL"]).netloc
    for key, body in (await _contents(world.s3, bucket)).items():
        yield Text(place=f"object {key}", content=body)


def _posts(world: World) -> Iterator[Post]:
    answers = {id(seen): status for seen, status in world.web.answered}
    for seen in world.web.posts:
        yield _post(seen, answers.get(id(seen)))


def _post(seen: Seen, answer: int | None) -> Post:
    body = msgspec.json.decode(seen.body)
    return Post(
        job=body["id"], status=body["status"], webhook_id=seen.headers["webhook-id"],
        body=seen.body, answer=answer,
    )  # fmt: skip


def _logs(world: World) -> Iterator[Text]:
    for process in world.services.all:
        yield Text(place=f"the log of {process.folder.name}", content=process.text.encode())
    for path in (world.broker.folder / "log").glob("*"):
        yield Text(place=f"the broker's {path.name}", content=path.read_bytes())
