"""Submit a job over RabbitMQ and follow it to its end, without HTTP.

Plain AMQP with pika; nothing of this project is imported, so you can copy it into your program.

    pip install pika
    python submit_over_amqp.py amqp://shop:password@localhost/ request.json

The request is the JSON body that clients POST to ``/run``. See docs/amqp.md.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from typing import Any

import pika

EXCHANGE = "everydream"
SOURCE = "/shop"
NAMESPACE = uuid.UUID("6f1d8c1e-5a0b-5d4f-9d53-0c1f6b1f7c11")
"""The service derives job ids with it: from login, source and event, each by uuid5 of the last."""
ENDS = ("job.refused", "job.completed", "job.failed", "job.cancelled", "job.timed_out")


def submit(channel: Any, login: str, request: dict[str, Any], *, event: str, reply_to: str) -> str:
    """Publish a request and return the id of its job.

    Args:
        channel: an open channel of pika, with publisher confirms.
        login: the connection's user; the broker refuses any other.
        request: the body that ``/run`` takes.
        event: an id of your own; submitting it again does not make another job.
        reply_to: the queue for a refusal; its name begins with the login and a dot.

    Raises:
        pika.exceptions.UnroutableError: the service has never run on this broker.
    """
    channel.basic_publish(
        EXCHANGE,
        "job.requested",
        json.dumps({"type": "job.requested", "request": request}),
        pika.BasicProperties(
            content_type="application/json",
            delivery_mode=2,
            timestamp=int(time.time()),
            user_id=login,
            reply_to=reply_to,
            headers={
                "cloudEvents_specversion": "1.0",
                "cloudEvents_id": event,
                "cloudEvents_source": SOURCE,
                "cloudEvents_type": "job.requested",
                "cloudEvents_time": datetime.now(UTC).isoformat(),
            },
        ),
        mandatory=True,
    )
    return str(reduce(uuid.uuid5, (login, SOURCE, event), NAMESPACE))


def main() -> None:
    """Submit one request and print the events of its job until it ends."""
    address, file = sys.argv[1:]
    parameters = pika.URLParameters(address)
    with pika.BlockingConnection(parameters) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        login = parameters.credentials.username
        queue = f"{login}.{uuid.uuid4()}"
        channel.queue_declare(queue, exclusive=True)
        for key in ("job.started", *ENDS):
            channel.queue_bind(queue, EXCHANGE, key)
        request = json.loads(Path(file).read_text())
        job = submit(channel, login, request, event=str(uuid.uuid4()), reply_to=queue)
        print(job, "job.requested", flush=True)
        for _, _, body in channel.consume(queue, auto_ack=True):
            fact = json.loads(body)
            if fact["job"] == job:
                rest = {key: fact[key] for key in fact if key not in {"type", "job"}}
                print(job, fact["type"], json.dumps(rest), flush=True)
                if fact["type"] in ENDS:
                    break
        channel.cancel()


if __name__ == "__main__":
    main()
