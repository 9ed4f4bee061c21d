"""Jobs over AMQP: the other's honest one, and what the rude key's own login forges of it."""

from __future__ import annotations

import uuid
from functools import reduce
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import msgspec
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import AMQPError

from shared.messaging.messages import NAMESPACE
from shared.messaging.topology import EXCHANGE
from tests.hostile.client import Caller, Event
from tests.hostile.materials import training

CONFIRMED, REFUSED = "confirmed", "refused by the broker"
KEY = "job.requested"


def job_of(event: Event) -> str:
    """The id that the other's job has."""
    return str(reduce(uuid.uuid5, (event.login, event.source, event.id), NAMESPACE))


async def submit(url: str, event: Event, request: dict[str, Any]) -> None:
    """As a program would that has no bad intentions, with a queue for the refusal."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.declare_queue(event.queue, durable=True)
        await publish(channel, EXCHANGE, KEY, event, request, user_id=event.login)


async def replies(url: str, event: Event) -> list[bytes]:
    """All that has come into the other's queue."""
    found: list[bytes] = []
    async with await aio_pika.connect(url) as connection:
        queue = await (await connection.channel()).get_queue(event.queue)
        while (message := await queue.get(fail=False)) is not None:
            await message.ack()
            found.append(message.body)
    return found


async def publish(
    channel: AbstractChannel,
    exchange: str,
    key: str,
    event: Event,
    request: dict[str, Any],
    *,
    user_id: str,
) -> None:
    message = aio_pika.Message(
        msgspec.json.encode({"type": KEY, "request": request}),
        content_type="application/json",
        user_id=user_id,
        reply_to=event.queue,
        headers={
            "cloudEvents_specversion": "1.0",
            "cloudEvents_id": event.id,
            "cloudEvents_source": event.source,
            "cloudEvents_type": KEY,
        },
    )
    to = await channel.get_exchange(exchange, ensure=False)
    await to.publish(message, key)


async def forge_events(caller: Caller) -> None:
    """The other's event with another request, with none, in its name, and into its queue."""
    event = caller.target.other
    login = str(urlsplit(caller.target.amqp_url).username)
    takes_its_job = training(caller.stock.missing)
    has_it_refused: dict[str, Any] = {"input": {}}
    for exchange, key, request, user_id in (
        (EXCHANGE, KEY, takes_its_job, login),
        (EXCHANGE, KEY, has_it_refused, login),
        (EXCHANGE, KEY, takes_its_job, event.login),
        (EXCHANGE, "job.completed", takes_its_job, login),
        ("", event.queue, takes_its_job, login),
    ):
        try:
            async with await aio_pika.connect(caller.target.amqp_url, timeout=10) as connection:
                channel = await connection.channel()
                await publish(channel, exchange, key, event, request, user_id=user_id)
            said = CONFIRMED
        except (AMQPError, OSError, TimeoutError):
            said = REFUSED
        caller.answers[said] += 1
