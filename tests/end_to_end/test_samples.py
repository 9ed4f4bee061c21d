"""Samples over RabbitMQ, PostgreSQL and S3: seen while training goes on, kept at the end."""

from __future__ import annotations

import io
import os
from typing import Any

import pytest
from PIL import Image

from tests.end_to_end.diary import PAGE, diary
from tests.end_to_end.story import bucket_config
from tests.end_to_end.test_main_job import SERVICES, world
from tests.support.following import followed
from tests.support.servers.s3 import S3Server
from tests.support.servers.web import Web
from tests.support.services import FULL_ROWS, WARM

pytestmark = pytest.mark.usefixtures("warm_children")

PROGRAM = FULL_ROWS if PAGE in os.environ else WARM
"""The page that is measured shows rows as the product draws them."""
PROMPT = "a zorblat by the sea"
STEPS, EVERY = 60, 20
SECONDS = 10.0
"""From the drawing of a row to its being shown; it takes far less."""


def steps_of(samples: list[dict[str, Any]]) -> list[int]:
    return [each["step"] for each in samples]


def pixels(png: bytes) -> bytes:
    with Image.open(io.BytesIO(png)) as image:
        return image.tobytes()


async def test_samples_arrive_while_training_goes_on_and_end_in_the_users_bucket(
    web: Web, amqp_url: str, postgres_url: str, s3_server: S3Server, s3_bucket: str
) -> None:
    theirs = s3_server.create_bucket()
    async with (
        world(SERVICES, web, amqp_url, postgres_url, s3_server, s3_bucket, PROGRAM) as (_, user),
        diary(amqp_url) as kept,
    ):
        request = user.request(
            s3=bucket_config(s3_server, theirs), batch_size=1, max_epochs=STEPS // 4,
            sample_prompts=[PROMPT], sample_steps=EVERY,
        )  # fmt: skip
        del request["input"]["inference"]
        job = await user.client.run(request)
        seen: list[dict[str, Any]] = []
        first = b""
        async for status in followed(user.client, job, every=0.1):
            output = status["output"]
            kept.see(output)
            if not seen and output.get("stage") == "training" and output["samples"]:
                seen = output["samples"]
                first = await user.fetch(seen[0]["image"])
        assert status["status"] == "COMPLETED", status
        kept.write()
        assert kept.drawn[0] < kept.trained_at
        assert kept.shown[0] < kept.trained_at
        for step, at in kept.drawn.items():
            assert kept.shown[step] - at < SECONDS, (kept.drawn, kept.shown)

        assert steps_of(seen) == [0]
        assert (seen[0]["epoch"], seen[0]["prompt"], seen[0]["seed"]) == (0, PROMPT, 555)
        assert Image.open(io.BytesIO(first)).size == (256, 256)

        train = status["output"]["train"]
        steps = steps_of(train["samples"])
        assert steps == sorted(set(steps))
        assert {0, STEPS} <= set(steps) <= set(range(0, STEPS + 1, EVERY))
        assert status["output"]["inference"] == []
        for sample in train["samples"]:
            assert f"/{theirs}/{job}/sample-gs{sample['step']:05}-000.png" in sample["image"]
        images = [await user.fetch(each["image"]) for each in train["samples"]]
        assert images[0] == first
        assert pixels(images[-1]) != pixels(first)
