"""What the end-to-end tests have in common: a user with a zip, a bucket, a webhook and a client."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from standardwebhooks import Webhook

from everydream import drawings
from everydream.client import Client
from shared.keys import webhook_secret
from tests.support.following import followed
from tests.support.servers.s3 import S3Server
from tests.support.servers.web import Seen, Web
from tests.support.services import COMMAND, ServiceProcess, services_in_a_folder

TINY = Path(__file__).parents[2] / "shared" / "tiny"
API_KEY = "test-key"
SECRET_KEY = "a key of thirty-two letters or more"
PATIENCE = 240.0


@dataclass
class User:
    """Somebody who wants a model trained."""

    web: Web
    client: Client
    session: aiohttp.ClientSession

    def request(self, *, s3: dict[str, str] | None = None, **train: Any) -> dict[str, Any]:
        """The endpoint's own JSON for a short job on the drawn data set."""
        body = {
            "input": {
                "train": {
                    "data_url": self.web.serve("/dataset.zip", dataset()),
                    "resolution": 256,
                    "batch_size": 4,
                    "max_epochs": 2,
                    "lr": 1e-4,
                    "useadam8bit": False,
                    **train,
                },
                "inference": {
                    "prompt": drawings.CONCEPTS[0].captions[0],
                    "width": 128,
                    "height": 128,
                    "num_inference_steps": 4,
                    "seed": 7,
                    "passback": "mine",
                },
            },
            "webhook": self.web.url("/webhook"),
        }
        return body if s3 is None else {**body, "s3Config": s3}

    async def finished(self, job: str) -> dict[str, Any]:
        """The job's last status."""
        async with asyncio.timeout(PATIENCE):
            return [status async for status in followed(self.client, job, every=0.2)][-1]

    async def fetch(self, url: str) -> bytes:
        async with self.session.get(_exactly(url), raise_for_status=True) as response:
            return await response.read()

    async def webhook(self, number: int = 1) -> dict[str, Any]:
        """The body of the newest webhook, its signature checked by the scheme's own library."""
        return verified((await self.web.wait_for_posts(number))[-1])


def _exactly(url: str) -> Any:
    """A presigned URL must not be quoted anew."""
    import yarl  # noqa: PLC0415

    return yarl.URL(url, encoded=True)


def verified(post: Seen) -> dict[str, Any]:
    secret = webhook_secret(None, SECRET_KEY)
    headers = {name.lower(): value for name, value in post.headers.items()}
    Webhook(secret).verify(post.body, headers)
    body: dict[str, Any] = msgspec.json.decode(post.body)
    return body


def dataset(pictures: int = 4) -> bytes:
    """A zip of a few drawn pictures of the first concept, captioned by their names."""
    buffer = io.BytesIO()
    caption = drawings.CONCEPTS[0].captions[0]
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(pictures):
            archive.writestr(f"{caption}_{number}.png", picture(number))
    return buffer.getvalue()


def picture(seed: int) -> bytes:
    from random import Random  # noqa: PLC0415

    image = drawings.draw_concept(drawings.CONCEPTS[0], Random(seed), 256)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@asynccontextmanager
async def user_of(url: str, web: Web) -> AsyncIterator[User]:
    """A user of the gateway at this address."""
    async with aiohttp.ClientSession() as session:
        yield User(web, Client(session, url, API_KEY), session)


@asynccontextmanager
async def served(
    web: Web, program: Sequence[str] = COMMAND, **settings: str
) -> AsyncIterator[tuple[ServiceProcess, User]]:
    """The whole product in one process, and a user of it."""
    environment = {
        "EVERYDREAM_BASE_MODEL": "tiny",
        "EVERYDREAM_API_KEYS": API_KEY,
        "EVERYDREAM_SECRET_KEY": SECRET_KEY,
        "EVERYDREAM_HEARTBEAT": "0.5",
        "OMP_NUM_THREADS": "",
        "EVERYDREAM_ALLOWED_PRIVATE_HOSTS": host_of(web.url()),
        **{f"EVERYDREAM_{name}": value for name, value in settings.items()},
    }
    async with services_in_a_folder(environment) as services:
        process = await services.start("gateway", command=(*program, "serve"))
        async with user_of(process.url, web) as user:
            yield process, user


def bucket_config(s3: S3Server, bucket: str) -> dict[str, str]:
    """The ``s3Config`` of a user whose bucket is on the test's S3 server."""
    return {
        "accessId": s3.access_key,
        "accessSecret": s3.secret_key,
        "bucketName": bucket,
        "endpointUrl": s3.endpoint_url,
    }


def host_of(url: str) -> str:
    return url.split("/")[2]
