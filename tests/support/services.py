"""The services as real processes: started as the containers start them, and gone afterwards.

    async with running(["gateway", "trainer", "trainer", ...], environment) as services:
        services.first("gateway").url
        await services.first("trainer").kill()
        await services.start("trainer")

Each process has a folder of its own, which is also its ``HOME``. A test that fails shows the last
words of every one of them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import tomllib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from pwd import struct_passwd
from time import monotonic
from typing import IO
from urllib.parse import urlsplit

import psutil

from shared.settings import Settings, from_environment
from tests.support.servers.process import (
    HOST,
    Child,
    Process,
    ServerError,
    free_port,
    listens,
    search_path,
)
from tests.support.servers.s3 import S3Server
from tests.support.warm.process import WarmProcess, is_warm

ROOT = Path(__file__).parents[2]
READY_SECONDS = 120.0
STOP_SECONDS = 60.0
"""Past it a service that was asked to stop is killed, and the test fails."""
ORPHAN_SECONDS = 10.0
"""In which the children of a service that is gone must be gone too."""
PASSED_ON = ("LANG", "LC_ALL", "OMP_NUM_THREADS", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE",
             "COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")  # fmt: skip
LAST_WORDS = 6000
COMMAND = ("everydream",)
WARM = ("tests.support.warm",)
"""The command with warm children and rough sample rows.

It is a fork itself, and so is what begins with ``FULL_ROWS`` or ``ROUGH``.
"""
COLD = ("tests.support.warm.__main__",)
"""The same, but a process of its own: for who looks into its environment, arguments or memory.

Needs the fixture ``warm_children``.
"""
FULL_ROWS = (*WARM, "--full-rows")
"""With warm children alone."""
ROUGH = (*WARM, "--rough")
"""With small and rough images and trainings, too."""


class ServiceProcess(Child):
    """One service in a process of its own."""

    def __init__(
        self,
        name: str,
        environment: Mapping[str, str],
        folder: Path,
        command: Sequence[str],
        settings: Settings | None = None,
    ) -> None:
        self.name = name
        self.folder = folder
        self.environment = _complete(name, environment, folder)
        self.settings = settings or from_environment(self.environment)
        self.ended = False
        super().__init__(resolved(command), folder=folder, env=self.environment)

    def _begin(
        self,
        command: Sequence[str],
        folder: Path,
        env: Mapping[str, str],
        log: IO[bytes],
        owner: struct_passwd | None,
    ) -> Process:
        if is_warm(command):
            return WarmProcess(command, folder, env, log)
        return super()._begin(command, folder, env, log, owner)

    @property
    def url(self) -> str:
        """Where a gateway answers."""
        return f"http://{HOST}:{self.settings.port}"

    @property
    def text(self) -> str:
        """All that it has logged so far."""
        return self.log.read_text(errors="replace")

    @property
    def status(self) -> int | None:
        """The exit status; minus the signal's number if a signal ended it; None while it runs."""
        return self._process.poll()

    @property
    def is_ready(self) -> bool:
        """A gateway listens; a worker is connected to the broker."""
        if not self.alive:
            return False
        if self.name == "gateway":
            return listens(self.settings.port)
        return bool(self._connections(urlsplit(self.settings.amqp_url).port or 5672))

    async def wait_until_ready(self, seconds: float = READY_SECONDS) -> None:
        await self.wait_for(lambda: self.is_ready, seconds)

    async def wait_for(self, happened: Callable[[], bool], seconds: float) -> None:
        """Ask until the answer is yes; raises ServerError when it ends first or time is up."""
        deadline = monotonic() + seconds
        while not happened():
            if not self.alive or monotonic() > deadline:
                said = f"did not get there, status {self.status}"
                raise ServerError(f"{self.name} {said}:\n{self.last_words}")
            await asyncio.sleep(0.05)

    async def wait_for_log(self, words: str, seconds: float = READY_SECONDS) -> None:
        """Wait until it has logged these words."""
        await self.wait_for(lambda: words in self.text, seconds)

    async def stop(self, seconds: float = STOP_SECONDS) -> None:
        """SIGTERM, as a container engine does; raises ServerError unless it ends in good order."""
        self.ended = True
        await asyncio.to_thread(self.end, signal.SIGTERM, seconds)
        if self.status:
            raise ServerError(f"{self.name} ended with status {self.status}:\n{self.last_words}")
        await self._see_children_off()

    async def kill(self) -> None:
        """SIGKILL, as the kernel does; its children must follow by themselves."""
        self.ended = True
        await asyncio.to_thread(self.end, signal.SIGKILL)
        await self._see_children_off()

    @property
    def children(self) -> list[psutil.Process]:
        """Its live children and theirs, also once it is gone: whoever works in its folder."""
        found = psutil.process_iter(["cwd", "status"])
        return [
            process
            for process in found
            if process.info["cwd"] == str(self.folder)
            and process.info["status"] != psutil.STATUS_ZOMBIE
            and process.pid != self.pid
        ]

    @property
    def last_words(self) -> str:
        return self.text[-LAST_WORDS:]

    async def _see_children_off(self) -> None:
        deadline = monotonic() + ORPHAN_SECONDS
        while children := self.children:
            if monotonic() > deadline:
                for child in children:
                    child.kill()
                raise ServerError(f"{self.name} left children behind: {children}")
            await asyncio.sleep(0.05)

    def _connections(self, port: int) -> list[object]:
        return [
            connection
            for connection in psutil.Process(self.pid).net_connections("tcp")
            if connection.status == psutil.CONN_ESTABLISHED and connection.raddr[1] == port
        ]


class Services:
    """The running services of one test."""

    def __init__(
        self,
        environment: Mapping[str, str],
        folder: Path,
        program: Sequence[str] = COMMAND,
    ) -> None:
        self.environment = environment
        self.folder = folder
        self.program = program
        self.all: list[ServiceProcess] = []

    def first(self, name: str) -> ServiceProcess:
        """The first of that name that runs."""
        return self.named(name)[0]

    def named(self, name: str) -> list[ServiceProcess]:
        """Those of that name that run, in the order of their start."""
        return [process for process in self.all if process.name == name and process.alive]

    async def start(
        self,
        name: str,
        environment: Mapping[str, str] | None = None,
        command: Sequence[str] | None = None,
    ) -> ServiceProcess:
        """Start one more, with an environment or a command of its own if wanted."""
        process = self.begin(name, environment, command)
        await process.wait_until_ready()
        return process

    def begin(
        self,
        name: str,
        environment: Mapping[str, str] | None = None,
        command: Sequence[str] | None = None,
        settings: Settings | None = None,
    ) -> ServiceProcess:
        """Start one more, and do not wait for it.

        ``settings`` are its own, if they cannot be read from the environment here.
        """
        process = ServiceProcess(
            name,
            self.environment if environment is None else environment,
            _new_folder(self.folder, f"{len(self.all)}-{name}"),
            command or (*self.program, "service", name),
            settings,
        )
        self.all.append(process)
        return process

    def begin_again(self, ended: ServiceProcess) -> ServiceProcess:
        """Start one in the place of one that has ended, on what that one left on its disk."""
        home = ended.environment["EVERYDREAM_HOME"]
        return self.begin(ended.name, {**self.environment, "EVERYDREAM_HOME": home})

    async def wait_until_ready(self) -> None:
        """Wait for all of them; the first that does not get there ends the wait."""
        async with asyncio.TaskGroup() as group:
            for process in self.all:
                group.create_task(process.wait_until_ready())

    def check(self) -> None:
        """Raise ServerError if one has ended that no test has ended."""
        for process in self.all:
            if not process.alive and not process.ended:
                raise ServerError(
                    f"{process.name} ended with status {process.status}:\n{process.last_words}"
                )

    async def stop(self) -> None:
        """Stop all that run, and only then tell what went wrong."""
        stopping = (process.stop() for process in self.all if not process.ended)
        for result in await asyncio.gather(*stopping, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def kill(self) -> None:
        """End whatever has not been ended, at once."""
        killing = (process.kill() for process in self.all if not process.ended)
        await asyncio.gather(*killing, return_exceptions=True)

    def last_words(self) -> str:
        return "\n".join(
            f"---- {process.folder.name}, status {process.status}\n{process.last_words}"
            for process in self.all
        )


@asynccontextmanager
async def running(
    names: Iterable[str],
    environment: Mapping[str, str],
    *,
    program: Sequence[str] = COMMAND,
    ready: bool = True,
) -> AsyncIterator[Services]:
    """Run these services, any of them several times, for as long as the block lasts.

    What the environment leaves open each process gets for itself: a gateway a free port, all a
    folder of their own for ``EVERYDREAM_HOME``.

    Args:
        names: of services: ``gateway``, ``fetcher``, ``trainer``, ``inferencer``, ``notifier``.
        environment: ``EVERYDREAM_*`` and ``AWS_*``; see :func:`shared_environment`.
        program: takes the arguments ``service NAME``: a console script of ours, or a module of
            the tests.
        ready: wait until all are.

    Raises:
        ServerError: one did not start, ended by itself, did not stop in good order on SIGTERM, or
            left children behind.
    """
    async with services_in_a_folder(environment, program) as services:
        for name in names:
            services.begin(name)
        if ready:
            await services.wait_until_ready()
        yield services


@asynccontextmanager
async def services_in_a_folder(
    environment: Mapping[str, str], program: Sequence[str] = COMMAND
) -> AsyncIterator[Services]:
    """No service yet, but a sure end for all that are started in the block."""
    folder = _temporary_folder()
    services = Services(environment, folder, program)
    try:
        yield services
        services.check()
        await services.stop()
    except BaseException as error:
        error.add_note(services.last_words())
        raise
    finally:
        await services.kill()
        shutil.rmtree(folder, ignore_errors=True)


def shared_environment(
    *, amqp_url: str, database_url: str, s3: S3Server, bucket: str, **others: str
) -> dict[str, str]:
    """What five services that work together have in common, with the tiny model.

    ``others`` are settings without their prefix: ``HEARTBEAT="0.2"``.
    """
    return {
        "EVERYDREAM_AMQP_URL": amqp_url,
        "EVERYDREAM_DATABASE_URL": database_url,
        "EVERYDREAM_STORE_URL": f"s3://{bucket}/test",
        "EVERYDREAM_BASE_MODEL": "tiny",
        "EVERYDREAM_SECRET_KEY": "a key of thirty-two letters or more",
        "EVERYDREAM_API_KEYS": "test-key",
        "AWS_ENDPOINT_URL_S3": s3.endpoint_url,
        "AWS_ACCESS_KEY_ID": s3.access_key,
        "AWS_SECRET_ACCESS_KEY": s3.secret_key,
        "AWS_DEFAULT_REGION": s3.region,
        **{f"EVERYDREAM_{name}": value for name, value in others.items()},
    }


def resolved(command: Sequence[str]) -> list[str]:
    """A command line for this interpreter, of one of our console scripts or a tests' module.

    Raises:
        KeyError: the project has no such script.
    """
    program, *arguments = command
    if program.startswith("tests."):
        return [sys.executable, "-m", program, *arguments]
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts[program].partition(":")
    code = f"import sys; from {module} import {function}; sys.exit({function}())"
    return [sys.executable, "-c", code, *arguments]


def environment_at(home: Path) -> dict[str, str]:
    """What a command of ours is started with: nothing of the tests' own settings."""
    passed_on = {key: os.environ[key] for key in PASSED_ON if key in os.environ}
    return passed_on | {"PATH": search_path(), "HOME": str(home), "PYTHONPATH": str(ROOT)}


def _complete(name: str, environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    own = {"PYTHONUNBUFFERED": "1", "EVERYDREAM_HOME": str(folder / "home")}
    if name == "gateway":
        own["EVERYDREAM_PORT"] = str(free_port())
    return environment_at(folder) | own | dict(environment)


def _temporary_folder() -> Path:
    """A new one by its real name, by which the system knows a process's working folder."""
    return Path(tempfile.mkdtemp(prefix="services-")).resolve()


def _new_folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    return folder
