"""A reader who types what the documents say, from the README down, beside a server of their own.

In every run they close the README at its end; in the long form they read all pages.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import aiohttp
import pytest

from everydream.client import Client
from tests.end_to_end.story import dataset, host_of, picture
from tests.support.documents import ROOT, SHELL, Block, blocks, commands_of
from tests.support.following import followed
from tests.support.forms import few
from tests.support.servers.process import HOST, free_port, listens
from tests.support.servers.web import Web
from tests.support.services import ROUGH, environment_at

NOT_RUN = {
    r"api\.runpod\.ai": "asks RunPod; tests/clients runs the original page's examples",
    r"^make ": "installs, or runs tests; make demo is test_demo.py",
    r"^\. \.venv/bin/activate|^pip install": "the tests are run in what this makes",
    r"^docker compose|^export RABBITMQCTL": "needs Docker; test_compose.py reads the files",
    r"deploy/rabbitmq-users\.sh|^rabbitmqctl": "needs a broker; test_broker_rights.py makes logins",
    r"^kubectl": "needs a cluster; test_kubernetes.py builds what it would apply",
    r"^everydream models pull": "fetches gigabytes from the hub",
    r"^everydream (backup|restore)": "needs an empty place; tests/faults/test_restore.py has one",
    r"^git (pull|tag)": "changes the clone",
    r"^\.venv/bin/pytest -m gpu|cuda:1": "needs a card, or two",
}
"""Commands that are not run here, and why. They exist: tests/unit/docs/test_commands.py."""

SERVE, KEY = "everydream serve", "YOUR-KEY"
ADDRESS = re.compile(r"(?:127\.0\.0\.1|localhost):8080")
ZIP = "https://example.org/my-images.zip"
CLIENTS = ROOT / ".venv" / "clients"
PROGRAMS = {
    "python": ([str(CLIENTS / "python" / "bin" / "python"), "-c"], None),
    "javascript": (["node", "--input-type=module", "--eval"], CLIENTS / "node"),
}
"""By language: what runs a program of it, and where, if that matters."""
FOLDERS = ("my-images", "photos")
"""Whose pictures the documents' commands train on."""
PATIENCE = 240.0
README = "README.md"
RESULTS = {README: 1, "all pages": len(FOLDERS) + 1}
"""Folders with results, by what was read; the last of all is that of the check that was changed."""

BLOCKS = blocks()


def is_run(text: str) -> bool:
    return not any(re.search(pattern, text) for pattern in NOT_RUN)


def test_what_is_not_run_stands_in_the_documents() -> None:
    shells = [block for block in BLOCKS if block.language == SHELL]
    every = [command.text for block in shells for command in commands_of(block)]
    stale = [pattern for pattern in NOT_RUN if not any(re.search(pattern, text) for text in every)]
    assert stale == []


@dataclass
class Reader:
    """Somebody with a clone, pictures and a terminal, who types one command after the other."""

    desk: Path
    web: Web
    blocks: list[Block]
    """What is read."""
    port: int = field(default_factory=free_port)
    last: str = ""
    """The job that was submitted last."""
    ran: list[str] = field(default_factory=list)
    """The places of what was typed."""

    @property
    def environment(self) -> dict[str, str]:
        """Of a terminal in which nothing of ours is set but what the tests need."""
        own = environment_at(self.desk)
        return own | {
            "PATH": f"{self.desk / 'bin'}:{own['PATH']}",
            "EVERYDREAM_PORT": str(self.port),
            "EVERYDREAM_BASE_MODEL": "tiny",
            "EVERYDREAM_HEARTBEAT": "0.5",
            "EVERYDREAM_ALLOWED_PRIVATE_HOSTS": host_of(self.web.url()),
        }

    def prepare(self) -> None:
        """What a clone has, what the documents call theirs, and a curl that fails on errors."""
        own = shutil.ignore_patterns("secrets", ".env")
        shutil.copytree(ROOT / "deploy", self.desk / "deploy", ignore=own)
        (self.desk / "bin").mkdir()
        for folder, number in product(FOLDERS, range(2)):
            (self.desk / folder).mkdir(exist_ok=True)
            (self.desk / folder / f"ted_{number}.png").write_bytes(picture(number))
        (self.desk / "photos.zip").write_bytes(dataset(2))
        self.web.serve("/my-images.zip", dataset(2))
        (self.desk / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n")
        command = shlex.join([sys.executable, "-m", *ROUGH])
        script = self.desk / "bin" / "everydream"
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        script.chmod(0o755)

    def with_own_names(self, text: str) -> str:
        """With the address and the link that are real here, and a job's id where one is meant."""
        text = ADDRESS.sub(f"{HOST}:{self.port}", text).replace(ZIP, self.web.url("/my-images.zip"))
        return re.sub(r"\bID(-OF-A-FINISHED-JOB)?\b", self.last, text)

    async def read(self, client: Client) -> None:
        """Type all that is run, page by page."""
        for block in self.blocks:
            if block.language == SHELL:
                for command in commands_of(block):
                    if is_run(command.text) and SERVE not in command.text:
                        await self.type(command.text, block, client)
            elif block.language in PROGRAMS and ADDRESS.search(block.text):
                await self.run_program(block, client)

    async def type(self, text: str, block: Block, client: Client) -> None:
        """Type one command; it must succeed."""
        if "ID-OF-A-FINISHED-JOB" in text or text.startswith("everydream edit"):
            self.last = await newest(client, "COMPLETED")
        elif re.search(r"/jobs/ID/", text):
            self.last = await a_training(client, self.web)
        own = {} if block.page == README else {"EVERYDREAM_API_KEY": KEY}
        command = ["bash", "-euo", "pipefail", "-c", self.with_own_names(text)]
        waits = text.startswith("everydream run")
        output = await self.ended(command, self.desk, own, block, client if waits else None)
        if submitted := re.match(r'\{"id": ?"([0-9a-f-]{36})", ?"status"', output):
            self.last = submitted[1]
        self.ran.append(block.place)

    async def run_program(self, block: Block, client: Client) -> None:
        program, folder = PROGRAMS[block.language]
        text = self.with_own_names(block.text).replace("time.sleep(5)", "time.sleep(0.2)")
        await self.ended([*program, text], folder or self.desk, {}, block, client)
        self.ran.append(block.place)

    async def ended(
        self,
        command: list[str],
        folder: Path,
        own: dict[str, str],
        block: Block,
        stopper: Client | None,
    ) -> str:
        """What a command prints; with a stopper trainings end at their first step meanwhile."""
        process = await asyncio.create_subprocess_exec(
            *command, cwd=folder, env=self.environment | own,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(PATIENCE), cutting_short(stopper):
                output, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        said = f"{block.place}: {command[-1]}\n{output.decode()}\n{errors.decode()}"
        assert process.returncode == 0, said
        return output.decode()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """The server, started as the README says."""
        (typed,) = [
            command.text
            for block in BLOCKS
            if block.page == README and block.language == SHELL
            for command in commands_of(block)
            if SERVE in command.text
        ]
        log = self.desk / "serve.log"
        with log.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                "bash", "-c", typed, cwd=self.desk, env=self.environment, stderr=file
            )
        try:
            async with asyncio.timeout(PATIENCE):
                while not listens(self.port):
                    assert process.returncode is None, log.read_text()
                    await asyncio.sleep(0.05)
            yield
        except BaseException as error:
            error.add_note(log.read_text()[-6000:])
            raise
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def newest(client: Client, *status: str) -> str:
    """The id of the newest job with this status."""
    return str((await client.jobs(status, limit=1, cursor=None))["jobs"][0]["id"])


async def a_training(client: Client, web: Web) -> str:
    """A job whose training runs."""
    job = await client.run({"input": {"train": {"data_url": web.url("/my-images.zip")}}})
    async for status in followed(client, job, every=0.1):
        if status["output"].get("step"):
            break
    return job


@asynccontextmanager
async def cutting_short(client: Client | None) -> AsyncIterator[None]:
    """Stop every training once it has begun: three hundred epochs are for those with time."""

    async def stop_all(client: Client) -> None:
        told: set[str] = set()
        while True:
            jobs = (await client.jobs(("IN_PROGRESS",), limit=100, cursor=None))["jobs"]
            for job in {each["id"] for each in jobs} - told:
                with suppress(aiohttp.ClientResponseError):  # it has just ended
                    await client.send_command(job, "stop")
                told.add(job)
            await asyncio.sleep(0.2)

    async with asyncio.TaskGroup() as group:
        stopping = group.create_task(stop_all(client)) if client else None
        yield
        if stopping:
            stopping.cancel()


@pytest.mark.usefixtures("warm_children")
@pytest.mark.parametrize("read", few(README, of=RESULTS))
async def test_whoever_types_what_the_documents_say_gets_what_they_promise(
    read: str, tmp_path: Path, web: Web
) -> None:
    blocks_read = [block for block in BLOCKS if block.page == README or read != README]
    reader = Reader(tmp_path, web, blocks_read)
    reader.prepare()
    async with reader.serving(), aiohttp.ClientSession() as session:
        client = Client(session, f"http://{HOST}:{reader.port}", KEY)
        await reader.read(client)

    pages = {place.partition(":")[0] for place in reader.ran}
    others = {"docs/clients.md", "docs/command-line.md", "docs/endpoint.md"}
    assert pages == {README} if read == README else pages > {README, *others}
    results = [*(tmp_path / "everydream-results").iterdir()]
    assert len(results) == RESULTS[read]
    for folder in results:
        assert [*folder.glob("last-*.safetensors")], folder
        assert [*folder.glob("images/*.png")], folder
