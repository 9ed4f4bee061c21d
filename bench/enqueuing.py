"""What task queues for Python take to enqueue, each message confirmed by the broker.

``python -m bench.enqueuing NAME URL``: one of the peers in a process of its own, as its documents
say; it prints seconds.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

from msgspec import json

from bench.load import timed
from bench.pairs import RESULT

PER_SECOND, SECONDS = 50, 15
ARGUMENT = {
    "train": {"data_url": "https://example.com/dataset.zip"},
    "inference": {"prompt": "a unique 123xyz concept name as a superhero"},
}


def celery(url: str) -> Callable[[], object]:
    from celery import Celery  # noqa: PLC0415

    app = Celery(broker=url)
    app.conf.broker_transport_options = {"confirm_publish": True}
    app.conf.task_ignore_result = True
    return lambda: app.send_task("train", args=[ARGUMENT])


def dramatiq(url: str) -> Callable[[], object]:
    import dramatiq  # noqa: PLC0415
    from dramatiq.brokers.rabbitmq import RabbitmqBroker  # noqa: PLC0415

    broker = RabbitmqBroker(url=url, confirm_delivery=True)

    @dramatiq.actor(broker=broker)
    def train(_argument: object) -> None: ...

    return lambda: train.send(ARGUMENT)


BLOCKING = {"celery": celery, "dramatiq": dramatiq}
PEERS = (*BLOCKING, "taskiq")


async def main() -> None:
    name, url = sys.argv[1:]
    if name == "taskiq":
        seconds = await of_taskiq(url)
    else:
        send = BLOCKING[name](url)

        async def ask() -> None:
            send()

        seconds = await measured(ask)
    print(f"{RESULT}{json.encode(seconds).decode()}", flush=True)


async def of_taskiq(url: str) -> list[float]:
    from taskiq_aio_pika import AioPikaBroker  # noqa: PLC0415

    broker = AioPikaBroker(url)

    @broker.task(task_name="train")
    async def train(_argument: object) -> None: ...

    await broker.startup()
    try:
        return await measured(lambda: train.kiq(ARGUMENT))
    finally:
        await broker.shutdown()


async def measured(ask: Callable[[], Awaitable[object]]) -> list[float]:
    await ask()  # the first connects, and declares what there is none of
    return await timed(ask, per_second=PER_SECOND, seconds=SECONDS)


if __name__ == "__main__":
    asyncio.run(main())
