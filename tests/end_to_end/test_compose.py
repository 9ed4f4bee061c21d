"""The stack of `deploy/compose.yaml`, profile cpu, without an engine.

Every service runs by its own command, with its own environment as Compose would fill it in, its own
secrets in `/run/secrets`, on a read-only root with its own volumes and `tmpfs`, and without
capabilities. Only addresses are replaced: those of our private servers stand for the containers',
and only where the networks lead to them. What nothing holds here: limits of memory and processes,
and the way to the outside.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from PIL import Image

from everydream import drawings
from everydream.client import Client
from everydream.demo import request_for
from shared.settings import from_environment
from tests.support.broker_logins import PASSWORDS, make_logins
from tests.support.compose import (
    DEPLOY,
    environment_of,
    give_secrets,
    make_secrets,
    our_services,
    read_compose,
    read_env,
    seen_from,
)
from tests.support.container import container_of
from tests.support.following import followed
from tests.support.servers.process import HOST, free_port
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.servers.s3 import S3Server
from tests.support.servers.web import Web
from tests.support.services import Services, environment_at, resolved, services_in_a_folder

COMPOSE = read_compose()
STARTED = {
    name: entry for name, entry in our_services(COMPOSE).items()
    if "cpu" in entry.get("profiles", ["cpu"])
}  # fmt: skip
"""What `docker compose --profile cpu up` starts of ours."""
TEMPORARY = "/tmp"  # noqa: S108 - a container's own
HOME = "/var/lib/everydream"
"""Of the image's user, and its working folder."""
NOWHERE = f"{HOST}:1"
"""Where nobody listens."""
JOB_SECONDS = 200.0
SIDE = 128
CONTAINER = "tests.support.container"


@dataclass(frozen=True)
class Machine:
    """Where things are here."""

    secrets: Path
    logins: Mapping[str, str]
    """By service, its address of the broker."""
    database_url: str
    s3: S3Server
    port: int
    folder: Path

    @property
    def public_endpoint(self) -> str:
        """The S3 server by another name than the services use, as clients of the stack see it."""
        return self.s3.endpoint_url.replace(HOST, "localhost")

    def addresses(self, name: str) -> dict[str, str]:
        """What stands for the addresses in a container's environment."""
        reaches = "s3" in seen_from(COMPOSE, name)
        return {
            "EVERYDREAM_STORE_PUBLIC_ENDPOINT": self.public_endpoint,
            "EVERYDREAM_HOST": HOST,
            "EVERYDREAM_PORT": str(self.port),
            "EVERYDREAM_PUBLIC_URL": f"http://{HOST}:{self.port}",
            "EVERYDREAM_METRICS_PORT": str(free_port()),  # a container has all ports for itself
            "AWS_ENDPOINT_URL_S3": self.s3.endpoint_url if reaches else f"http://{NOWHERE}",
        }

    def give_secrets(self, name: str) -> Path:
        """A folder with the secrets of a container, and the addresses in them that it reaches."""
        seen, service = seen_from(COMPOSE, name), STARTED[name]["command"][-1]
        broker = self.logins[service] if "rabbitmq" in seen else f"amqp://{NOWHERE}"
        database = self.database_url if "postgres" in seen else f"postgresql://{NOWHERE}/none"
        moved = {f"amqp-url-{service}": broker, "database-url": database}
        given = self.folder / f"secrets-of-{name}"
        given.mkdir()
        for secret in STARTED[name]["secrets"]:
            text = (self.secrets / secret).read_text()
            (given / secret).write_text(moved.get(secret, text))
        return given

    def move(self, name: str, environment: Mapping[str, str]) -> dict[str, str]:
        """A container's environment, here; what it does not have it does not get."""
        here = self.addresses(name)
        moved = {key: here.get(key, value) for key, value in environment.items()}
        return moved | {"HOME": HOME, "EVERYDREAM_HOME": HOME}


def dot_env(web: Web) -> dict[str, str]:
    """The example, with what this machine needs."""
    return read_env(DEPLOY / ".env.example") | {
        "EVERYDREAM_ALLOWED_PRIVATE_HOSTS": web.url("").removeprefix("http://"),
        "EVERYDREAM_HEARTBEAT": "1",
    }


def write_container(machine: Machine, name: str, secrets: Path, folder: Path) -> Path:
    """The file that describes a service's container; ``folder`` is where it works."""
    container = container_of(STARTED[name], volumes=machine.folder, secrets=secrets, folder=folder)
    file = machine.folder / f"{name}.json"
    file.write_bytes(msgspec.json.encode(container))
    return file


def secrets_of(s3: S3Server) -> dict[str, str]:
    """Those that this machine's servers know, and two keys."""
    return {
        "EVERYDREAM_API_KEYS": "first-key,second-key",
        "AWS_ACCESS_KEY_ID": s3.access_key,
        "AWS_SECRET_ACCESS_KEY": s3.secret_key,
        **{f"RABBITMQ_{name.upper()}_PASSWORD": word for name, word in PASSWORDS.items()},
    }


def small(request: dict[str, Any]) -> dict[str, Any]:
    """The demo's request, for one rough image, and one sample in a row."""
    train = {**request["input"]["train"], "max_epochs": 1, "resolution": 256}
    train["sample_prompts"] = train["sample_prompts"][:1]
    image = {"num_outputs": 1, "num_inference_steps": 4, "width": SIDE, "height": SIDE}
    inference = [{**request["input"]["inference"][0], **image}]
    return {**request, "input": {"train": train, "inference": inference}}


async def start(services: Services, machine: Machine, values: Mapping[str, str]) -> None:
    """Start each service in its container, by its own command."""
    for number, (name, entry) in enumerate(STARTED.items()):
        service, secrets = entry["command"][-1], machine.give_secrets(name)
        folder = services.folder / f"{number}-{service}"
        container = write_container(machine, name, secrets, folder)
        environment = machine.move(name, environment_of(entry, values))
        services.begin(
            service,
            environment,
            (CONTAINER, str(container), *entry["command"]),
            from_environment(give_secrets(entry, environment, secrets)),
        )
    await services.wait_until_ready()


async def result_of(services: Services, client: Client, job: str) -> dict[str, Any]:
    """The job's last status; a service that dies meanwhile is told of at once."""
    status: dict[str, Any] = {}
    async with asyncio.timeout(JOB_SECONDS):
        async for status in followed(client, job):  # noqa: B007 - the last one is the result
            services.check()
    return status


@pytest.mark.parametrize("name", STARTED)
def test_a_service_has_the_rights_of_its_container_here(
    name: str, s3_server: S3Server, tmp_path: Path
) -> None:
    secrets = make_secrets(tmp_path)
    machine = Machine(secrets, dict.fromkeys(PASSWORDS, ""), "", s3_server, 0, tmp_path)
    (folder := tmp_path / "work").mkdir()
    container = write_container(machine, name, machine.give_secrets(name), folder)
    places = ["/", "/usr", "/var/lib", HOME, TEMPORARY, "/run/secrets", str(folder), str(DEPLOY)]

    view = (CONTAINER, str(container), "tests.support.container_view", *places)
    told = subprocess.run(
        resolved(view), env=environment_at(folder), capture_output=True, text=True, check=False
    )

    assert told.returncode == 0, told.stderr
    kept = [HOME] if "volumes" in STARTED[name] else []
    measured = [str(DEPLOY)] if "COVERAGE_PROCESS_CONFIG" in os.environ else []
    assert json.loads(told.stdout) == {
        "capabilities": ["0" * 16],
        "no_new_privileges": True,
        "secrets": sorted(STARTED[name]["secrets"]),
        "writable": [*kept, TEMPORARY, *measured],
    }


@pytest.mark.long
async def test_the_compose_stack_trains_draws_and_tells(
    rabbitmq: RabbitMQ, postgres_url: str, s3_server: S3Server, web: Web, tmp_path: Path
) -> None:
    s3_server.start()
    s3_server.create_bucket(COMPOSE["services"]["s3"]["environment"]["S3_BUCKET"])
    rabbitmq.start()
    logins = make_logins(rabbitmq, rabbitmq.fresh_vhost())
    secrets = make_secrets(tmp_path, secrets_of(s3_server))
    machine = Machine(secrets, logins, postgres_url, s3_server, free_port(), tmp_path)
    drawings.draw_dataset(tmp_path / "data", each=2)
    web.serve("/dataset.zip", drawings.zip_dataset(tmp_path / "data"))

    async with services_in_a_folder({}) as services, aiohttp.ClientSession() as session:
        await start(services, machine, dot_env(web))
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
