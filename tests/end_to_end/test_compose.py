"""The stack of `deploy/compose.yaml`, profile cpu, without containers.

Every service runs by its own command and with its own environment, as Compose would fill it in.
Only addresses, and the logins that belong to them, are replaced: those of our private servers
stand for the containers'.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from PIL import Image

from everydream import drawings
from everydream.client import Client
from everydream.demo import request_for
from tests.support.broker_logins import make_logins
from tests.support.compose import DEPLOY, environment_of, our_services, read_compose, read_env
from tests.support.servers.process import HOST, free_port
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.servers.s3 import S3Server
from tests.support.servers.web import Web
from tests.support.services import Services, services_in_a_folder

COMPOSE = read_compose()
JOB_SECONDS = 200.0
SIDE = 128


@dataclass(frozen=True)
class Machine:
    """Where things are here."""

    logins: Mapping[str, str]
    """By service, its address of the broker."""
    database_url: str
    s3: S3Server
    port: int

    @property
    def public_endpoint(self) -> str:
        """The S3 server by another name than the services use, as clients of the stack see it."""
        return self.s3.endpoint_url.replace(HOST, "localhost")

    @property
    def addresses(self) -> dict[str, str]:
        """What stands for the addresses in the compose file."""
        return {
            "EVERYDREAM_DATABASE_URL": self.database_url,
            "EVERYDREAM_STORE_PUBLIC_ENDPOINT": self.public_endpoint,
            "EVERYDREAM_HOST": HOST,
            "EVERYDREAM_PORT": str(self.port),
            "EVERYDREAM_PUBLIC_URL": f"http://{HOST}:{self.port}",
            "AWS_ENDPOINT_URL_S3": self.s3.endpoint_url,
        }

    def move(self, service: str, environment: Mapping[str, str]) -> dict[str, str]:
        """A container's environment, here; what it does not have it does not get."""
        here = {**self.addresses, "EVERYDREAM_AMQP_URL": self.logins[service]}
        return {name: here.get(name, value) for name, value in environment.items()}


def dot_env(s3: S3Server, web: Web) -> dict[str, str]:
    """The example, filled in."""
    filled = {name: value or "5" * 64 for name, value in read_env(DEPLOY / ".env.example").items()}
    return filled | {
        "AWS_ACCESS_KEY_ID": s3.access_key,
        "AWS_SECRET_ACCESS_KEY": s3.secret_key,
        "EVERYDREAM_API_KEYS": "first-key,second-key",
        "EVERYDREAM_ALLOWED_PRIVATE_HOSTS": web.url("").removeprefix("http://"),
        "EVERYDREAM_HEARTBEAT": "1",
    }


def small(request: dict[str, Any]) -> dict[str, Any]:
    """The demo's request, for one rough image."""
    train = {**request["input"]["train"], "max_epochs": 1, "resolution": 256}
    image = {"num_outputs": 1, "num_inference_steps": 4, "width": SIDE, "height": SIDE}
    inference = [{**request["input"]["inference"][0], **image}]
    return {**request, "input": {"train": train, "inference": inference}}


async def start(services: Services, machine: Machine, values: Mapping[str, str]) -> None:
    """What `docker compose --profile cpu up` starts of ours, by its own command."""
    for entry in our_services(COMPOSE).values():
        if "cpu" in entry.get("profiles", ["cpu"]):
            name = entry["command"][-1]
            environment = machine.move(name, environment_of(entry, values))
            services.begin(name, environment, entry["command"])
    await services.wait_until_ready()


async def result_of(services: Services, client: Client, job: str) -> dict[str, Any]:
    """The job's last status; a service that dies meanwhile is told of at once."""
    status: dict[str, Any] = {}
    async with asyncio.timeout(JOB_SECONDS):
        async for status in client.follow(job):  # noqa: B007 - the last one is the result
            services.check()
    return status


async def test_the_compose_stack_trains_draws_and_tells(
    rabbitmq: RabbitMQ, postgres_url: str, s3_server: S3Server, web: Web, tmp_path: Path
) -> None:
    s3_server.start()
    s3_server.create_bucket(COMPOSE["services"]["s3"]["environment"]["S3_BUCKET"])
    rabbitmq.start()
    logins = make_logins(rabbitmq, rabbitmq.fresh_vhost())
    machine = Machine(logins, postgres_url, s3_server, free_port())
    drawings.draw_dataset(tmp_path / "data", each=2)
    web.serve("/dataset.zip", drawings.zip_dataset(tmp_path / "data"))

    async with services_in_a_folder({}) as services, aiohttp.ClientSession() as session:
        await start(services, machine, dot_env(s3_server, web))
        client = Client(session, services.first("gateway").url, "second-key")
        job = await client.run(small(request_for(web.url(""))))
        status = await result_of(services, client, job)
        assert status["status"] == "COMPLETED", status

        [image] = status["output"]["inference"]
        assert image["image"].startswith(machine.public_endpoint)
        await client.download(image["image"], tmp_path / "image.png")
        with Image.open(tmp_path / "image.png") as drawn:
            assert drawn.size == (SIDE, SIDE)

        [post] = await web.wait_for_posts(1)
        told = msgspec.json.decode(post.body)
        assert (told["id"], told["status"]) == (job, "COMPLETED")
