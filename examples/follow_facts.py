"""Follow all events of all jobs, for instance for a dashboard, billing or an archive.

Plain AMQP with pika; nothing of this project is imported.

    pip install pika
    python follow_facts.py amqp://dashboard:password@localhost/ dashboard.facts

The queue is durable: it keeps events while this program does not run. An event may be delivered
twice, with the same ``cloudEvents_id``. See docs/amqp.md.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pika

EXCHANGE = "everydream"
KEYS = ("job.*", "training.*", "checkpoint.*", "samples.generated", "images.generated")


def follow(channel: Any, queue: str) -> None:
    """Print every event once; after a crash, events that are not acknowledged come again."""
    channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
    for key in KEYS:
        channel.queue_bind(queue, EXCHANGE, key)
    channel.basic_qos(prefetch_count=16)
    seen: set[str] = set()
    for method, properties, body in channel.consume(queue):
        headers = properties.headers or {}
        event = headers.get("cloudEvents_id", "")
        if event not in seen:
            seen.add(event)
            fact = json.loads(body)
            time = headers.get("cloudEvents_time", "-")
            print(time, fact["type"], fact.get("job", "-"), flush=True)
        channel.basic_ack(method.delivery_tag)


def main() -> None:
    """Follow until interrupted."""
    address, queue = sys.argv[1:]
    with pika.BlockingConnection(pika.URLParameters(address)) as connection:
        follow(connection.channel(), queue)


if __name__ == "__main__":
    main()
