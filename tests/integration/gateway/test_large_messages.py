"""Messages that the broker does not take because of their size."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from shared.adapters import memory
from shared.messaging.messages import PublicationStarted, encode
from shared.messaging.topology import FETCHER, MAX_MESSAGE_BYTES, NOTIFIER_PUBLISH
from shared.storage.large_fields import LARGE
from tests.support.gateway_world import (
    OTHER_KEY,
    S3_CONFIG,
    TRAIN_ONLY,
    eventually,
    trained,
    world,
)
from tests.support.servers.rabbitmq import RabbitMQ

ROOT = "/v1/everydream-v1"
WORDS = "x" * (MAX_MESSAGE_BYTES // 10)


def with_inference(entry: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"input": {**TRAIN_ONLY["input"], "inference": entry}, **more}


def stream_of(request: dict[str, Any]) -> io.BytesIO:
    """A large body, as the HTTP client wants it."""
    return io.BytesIO(json.dumps(request).encode())


@pytest.mark.parametrize(
    "request_",
    [
        with_inference({"prompt": "x" * (MAX_MESSAGE_BYTES + 1)}),
        with_inference({"prompt": WORDS, "num_outputs": 10}, webhook="http://example.com"),
        with_inference({"prompt": '"' * (MAX_MESSAGE_BYTES // 8)}, webhook="http://example.com"),
    ],
    ids=["the request itself", "its images", "its webhook"],
)
async def test_a_request_larger_than_any_message_is_carried_by_the_store(
    tmp_path: Path, request_: dict[str, Any]
) -> None:
    async with world(tmp_path) as here:
        answer = await here.ask("POST", f"{ROOT}/runsync?wait=0", data=stream_of(request_))

        assert answer.status == 200
        submitted = await here.get(FETCHER)
        assert submitted.job == answer.body["id"]
        assert len(encode(submitted)) < LARGE


@asynccontextmanager
async def taking_at_most(node: RabbitMQ, size: int) -> AsyncIterator[None]:
    await asyncio.to_thread(node.take_at_most, size)
    try:
        yield
    finally:
        await asyncio.to_thread(node.take_at_most)


async def test_a_job_that_the_broker_does_not_take_fails_with_a_reason_and_delays_nobody(
    rabbitmq: RabbitMQ, amqp_url: str, tmp_path: Path
) -> None:
    large = with_inference({"prompt": "x" * 30_000})
    async with taking_at_most(rabbitmq, 20_000), world(tmp_path, amqp_url=amqp_url) as here:
        for _ in range(2):
            jobs = [await here.run(large) for _ in range(5)]
            answer = await here.ask("POST", f"{ROOT}/run", json=TRAIN_ONLY, key=OTHER_KEY)
            while (await here.get(FETCHER)).job != answer.body["id"]:
                pass  # the one before, said again: its confirm was lost with the connection
            for job in jobs:
                failed = await here.status_becomes(job, "FAILED")
                assert "the broker refuses the message job.submitted of 3" in failed["error"]
                assert "PRECONDITION_FAILED" in failed["error"]


async def test_a_grant_that_the_broker_does_not_take_fails_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MAX_MESSAGE_BYTES", 8_000)
    bucket = {**S3_CONFIG, "accessSecret": "x" * 8_000}
    async with world(tmp_path) as here:
        job = await here.run({**TRAIN_ONLY, "s3Config": bucket})
        await here.get(NOTIFIER_PUBLISH)

        await here.publish(PublicationStarted(job=job, stage="bucket_check", claim="c", worker="w"))

        failed = await here.status_becomes(job, "FAILED")
        assert "refuses the message claim.granted of 1" in failed["error"]


async def test_a_webhook_that_the_broker_does_not_take_has_failed_and_its_job_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its body says the request again, as JSON in JSON: every quotation mark is four letters."""
    monkeypatch.setattr(memory, "MAX_MESSAGE_BYTES", 20_000)
    train = {"data_url": "https://example.com/" + '"' * 7_000}
    async with world(tmp_path) as here:
        job = await trained(here, input={"train": train}, webhook="https://example.com/hook")

        async def outcome() -> Any:
            answer = await here.ask("GET", f"{ROOT}/jobs/{job}/webhooks")
            return answer.body["deliveries"][0].get("reason")

        assert "refuses the message webhook.due of " in await eventually(outcome)
        assert (await here.status(job))["status"] == "COMPLETED"
