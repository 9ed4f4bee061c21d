"""Follow everything that happens to jobs, as another system would: a dashboard, a bill, an archive.

Plain AMQP by pika; nothing of this project is imported.

    pip install pika
    python follow_facts.py amqp://dashboard:password@localhost/ dashboard.facts

The queue is durable: what happens while this program does not run waits there. A fact may come
twice; its ``cloudEvents_id`` is the same then. See docs/amqp.md.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pika

EXCHANGE = "everydream"
WANTED = ("job.*", "training.*", "checkpoint.*", "samples.generated", "images.generated")


def follow(channel: Any, queue: str) -> None:
    """Print every fact once, for ever; one that was not handled comes again after a crash."""
    channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
    for key in WANTED:
        channel.queue_bind(queue, EXCHANGE, key)
    channel.basic_qos(prefetch_count=16)
    seen: set[str] = set()
    for method, properties, body in channel.consume(queue):
        headers = properties.headers or {}
        event = headers.get("cloudEvents_id", "")
        if event not in seen:
            seen.add(event)
            fact = json.loads(body)
            told = headers.get("cloudEvents_time", "-")
            print(told, fact["type"], fact.get("job", "-"), flush=True)
        channel.basic_ack(method.delivery_tag)


def main() -> None:
    """Follow until interrupted."""
    address, queue = sys.argv[1:]
    with pika.BlockingConnection(pika.URLParameters(address)) as connection:
        follow(connection.channel(), queue)


if __name__ == "__main__":
    main()
