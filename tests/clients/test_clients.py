"""Clients that exist, as their makers ship them, ask real services for real jobs."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.end_to_end.story import API_KEY, User, dataset, host_of, user_of
from tests.support.following import followed
from tests.support.servers.process import search_path
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.servers.s3 import S3Server
from tests.support.servers.web import running_web
from tests.support.services import WARM, Services, running, shared_environment

# One loop, and so one set of services, for all that a process runs of this file.
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("warm_children"),
]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "endpoint.md"
INSTALLED = ROOT / ".venv" / "clients"
PYTHON = str(INSTALLED / "python" / "bin" / "python")
NODE = ["node", "--input-type=module", "--eval"]
SERVICES = ["gateway", "fetcher", "trainer", "inferencer", "notifier"]
PLAIN, ASYNCIO, NPM = "plain-key", "asyncio-key", "npm-key"
"""A key of its own for each: what one purges and counts is no other's."""
PATIENCE = 200.0


@dataclass
class Here:
    """The endpoint, and somebody whose images it trains on."""

    services: Services
    user: User

    @property
    def url(self) -> str:
        return self.services.first("gateway").url

    def requests(self) -> str:
        """A job that is done in seconds, one that is never, one whose images are not there, and
        what to draw again."""
        small = self.user.request(max_epochs=1)
        train, inference = small["input"]["train"], small["input"]["inference"]
        inference["num_inference_steps"] = 1
        endless = {"input": {"train": {**train, "max_epochs": 100_000}}}
        failing = {"input": {"train": {**train, "data_url": self.user.web.url("/nowhere.zip")}}}
        again = {"inference": inference}
        return json.dumps({"small": small, "endless": endless, "failing": failing, "again": again})

    async def told_by(self, *script: str, key: str, folder: Path) -> Any:
        """What a client's script found out: the last line that it prints."""
        printed = await self.printed_by(*script, f"{self.url}/v2", key, self.requests(), at=folder)
        return json.loads(printed.splitlines()[-1])

    async def printed_by(self, *command: str, at: Path) -> str:
        status, output, errors = await ended(command, at)
        assert status == 0, f"{errors}\n{self.services.last_words()}"
        return output


async def ended(command: tuple[str, ...], folder: Path) -> tuple[int | None, str, str]:
    """The exit status of a program, and what it printed."""
    environment = {"PATH": search_path(), "HOME": str(folder), "GOCACHE": str(INSTALLED / "go")}
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(PATIENCE):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, output.decode(), errors.decode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(
    rabbitmq: RabbitMQ, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Here]:
    assert INSTALLED.exists(), "the clients are not installed: make .venv/.clients-installed"
    rabbitmq.start()
    s3_server.start()
    async with running_web() as web:
        environment = shared_environment(
            amqp_url=rabbitmq.fresh_url(),
            database_url=f"sqlite:///{tmp_path_factory.mktemp('gateway')}/jobs.db",
            s3=s3_server,
            bucket=s3_server.create_bucket(),
            HEARTBEAT="0.5",
            API_KEYS=f"{PLAIN},{ASYNCIO},{NPM},{API_KEY}",
            ALLOWED_PRIVATE_HOSTS=host_of(web.url()),
        )
        async with (
            running(SERVICES, environment, program=WARM) as services,
            user_of(services.first("gateway").url, web) as user,
        ):
            yield Here(services, user)


# --- RunPod's packages


async def test_the_plain_api_of_runpods_python_package_has_all_its_operations_answered(
    here: Here, tmp_path: Path
) -> None:
    told = await here.told_by(PYTHON, str(HERE / "runpod_sync.py"), key=PLAIN, folder=tmp_path)

    assert_cut_short(told["cut short"])
    assert told["rest of the stream"].startswith("HTTPError: 404 Client Error")
    assert told["failed"]["status"] == "FAILED"
    assert told["failed"]["output"]["inference"] == []
    await assert_completed(told["completed"], here.user)
    await assert_drawn(told["completed"]["run_sync"], here.user)
    assert told["refused"]["wrong key"].startswith("RuntimeError: 401 Unauthorized")
    assert told["refused"]["mistake"].startswith("HTTPError: 400 Client Error")


async def test_the_asyncio_api_of_runpods_python_package_has_all_its_operations_answered(
    here: Here, tmp_path: Path
) -> None:
    told = await here.told_by(PYTHON, str(HERE / "runpod_asyncio.py"), key=ASYNCIO, folder=tmp_path)

    assert_cut_short(told["cut short"])
    assert told["rest of the stream"] == "KeyError: 'status'"
    assert told["failed"]["status"] == "FAILED"
    assert told["failed"]["output"]["inference"] == []
    await assert_completed(told["completed"], here.user)
    assert told["refused"] == {"wrong key": "KeyError: 'id'", "mistake": "KeyError: 'id'"}


async def test_runpods_npm_package_has_all_its_operations_answered(here: Here) -> None:
    script = (HERE / "runpod_sdk.mjs").read_text()
    told = await here.told_by(*NODE, script, key=NPM, folder=INSTALLED / "node")

    assert_cut_short(told["cut short"])
    (rest,) = told["cut short"]["rest"]
    assert rest["train"]["checkpoint_url"] is None
    assert (told["failed"]["status"], told["failed"]["succeeded"]) == ("FAILED", False)
    assert "/nowhere.zip: the server answers 404 Not Found" in told["failed"]["error"]
    await assert_completed(told["completed"], here.user)
    assert told["completed"]["runSync"]["succeeded"]
    await assert_drawn(told["completed"]["runSync"]["output"], here.user)
    assert told["refused"] == {
        "wrong key": "401: invalid API key: send it as 'Authorization: Bearer KEY'",
        "mistake": "400: input.train.data_url: required, but missing;"
        " expected an http or https URL, or the id of a dataset check",
    }


def assert_cut_short(told: dict[str, Any]) -> None:
    """One job was at work and one behind it; then neither was."""
    assert (told["first"]["stage"], told["first"]["steps"]) == ("training", 100_000)
    jobs = {"completed": 0, "failed": 0, "inProgress": 1, "inQueue": 1, "retried": 0}
    assert told["health"]["jobs"] == jobs
    assert told["health"]["workers"]["running"] == 1
    assert told["purged"] == {"removed": 1, "status": "completed"}
    assert told["cancelled"]["status"] == "CANCELLED"
    assert (told["waiting"], told["status"]) == ("CANCELLED", "CANCELLED")


async def assert_completed(told: dict[str, Any], user: User) -> None:
    """The stream told how it went, and ended with what the job's output is."""
    *earlier, last = told["streamed"]
    assert {piece["stage"] for piece in earlier} <= {"staging", "training", "generation"}
    assert earlier
    assert told["status"] == "COMPLETED"
    assert told["output"]["train"]["steps"] == 1
    assert checksums(last) == checksums(told["output"])
    await assert_drawn(told["output"], user)


def checksums(output: dict[str, Any]) -> dict[str, str]:
    return {artifact["name"]: artifact["sha256"] for artifact in output["artifacts"]}


async def assert_drawn(output: dict[str, Any], user: User) -> None:
    """There is one image, and it is where the client is told."""
    (drawn,) = output["inference"]
    assert drawn["passback"] == "mine"
    image = await user.fetch(drawn["image"])
    assert image.startswith(b"\x89PNG")
    assert sha256(image).hexdigest() == checksums(output)["0000.png"]


# --- The page's examples

PROGRAMS = {
    "bash": ["bash", "-c"],
    "python": [PYTHON, "-c"],
    "javascript": ["node", "--input-type=commonjs", "--eval"],
    "go": ["go", "run"],
}


async def test_the_pages_own_examples_run_with_nothing_changed_but_host_key_and_link(
    here: Here, tmp_path: Path
) -> None:
    client = here.user.client
    link = here.user.web.serve("/one.zip", dataset(1))
    request = {
        "train": {"data_url": link},
        "inference": {"prompt": "a unique 123xyz concept name as a superhero"},
    }

    jobs = {language: await job_of(language, link, here, tmp_path) for language in PROGRAMS}

    asked = {language: (await client.status(job))["input"] for language, job in jobs.items()}
    assert asked == dict.fromkeys(PROGRAMS, request)
    one, *others = jobs.values()
    for job in others:
        await client.cancel(job)
    async for status in followed(client, one, every=0.2):
        if status["output"].get("steps"):
            break
    assert (status["status"], status["output"]["steps"]) == ("IN_PROGRESS", 300)
    await client.cancel(one)


async def job_of(language: str, link: str, here: Here, folder: Path) -> str:
    """The id of the job that the example in this language says it has asked for."""
    text = example(language).replace("https://api.runpod.ai", here.url)
    text = re.sub(r"\bx{40}\b", API_KEY, text).replace("https://LINK_TO_ZIP.FILE", link)
    where = INSTALLED / "node" if language == "javascript" else folder
    printed = await here.printed_by(*PROGRAMS[language], program(language, text, folder), at=where)
    assert re.search(r"\bstatus\b\W+IN_QUEUE\b", printed), printed
    found = re.search(r"\bid\b\W+([0-9a-f-]{36})\b", printed)
    assert found, printed
    return found[1]


def example(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found
    return found[1]


def program(language: str, text: str, folder: Path) -> str:
    """The text itself, or the file that it must be in."""
    if language != "go":
        return text
    file = folder / "example.go"
    file.write_text(text)
    return str(file)
