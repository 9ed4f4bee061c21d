"""A private PostgreSQL server, from the system's own package."""

import os
import pwd
import secrets
import signal
from contextlib import suppress
from itertools import count
from pathlib import Path
from subprocess import PIPE, STDOUT, run

import asyncpg
import psutil

from tests.support.servers.process import (
    HOST,
    Child,
    Server,
    ServerError,
    free_port,
    in_own_loop,
    search_path,
)

START_SECONDS = 120

# Speed for data that nobody will miss; the tests connect by TCP alone.
SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
}


def find_programs() -> Path:
    """Return the folder with the newest `initdb` and `postgres`."""
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if not folders:
        raise ServerError("No PostgreSQL here: apt-get install postgresql")
    return max(folders, key=lambda folder: int(folder.parent.name))


def find_owner() -> pwd.struct_passwd | None:
    """Return the user that the server shall run as: it refuses to be root."""
    if os.geteuid() != 0:
        return None
    users = {user.pw_name: user for user in pwd.getpwall()}
    return users.get("postgres") or users["nobody"]


def _name(url: str) -> str:
    """Of the database at this address."""
    return url.rpartition("/")[2]


class PostgreSQL(Server):
    """One database server; a test gets a database of its own from `url()`."""

    def __init__(self) -> None:
        self._programs = find_programs()
        self._owner = find_owner()
        super().__init__(self._owner)
        self.port = free_port()
        self.password = secrets.token_hex(16)
        """In every address, though all who know the port are trusted: so that it can be leaked."""
        self._data = self.folder / "data"
        self._env = {"PATH": search_path(), "HOME": str(self.folder), "LC_ALL": "C.UTF-8"}
        self._server: Child | None = None
        self._numbers = count(1)

    def start(self) -> None:
        """Start the server, on a new folder or on the one it had."""
        if self._server and self._server.alive:
            return
        if not self._data.exists():
            self._make_data()
        self._server = self._start_server()
        self._server.wait_until(self._is_ready, START_SECONDS)

    def pause(self) -> None:
        """Make the server hang: connections stay open, nothing is answered."""
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):  # a connection that was just closed
                process.suspend()

    def resume(self) -> None:
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def end_processes(self) -> None:
        if self._server:
            self.resume()
            self._server.end(signal.SIGINT)
            self._server = None

    def url(self, template: str = "") -> str:
        """Make a database, empty or a copy of one that nobody uses, and return its address."""
        name = f"test_{next(self._numbers)}"
        self._do(f"CREATE DATABASE {name}" + (f" TEMPLATE {_name(template)}" if template else ""))
        return f"postgresql+asyncpg://test:{self.password}@{HOST}:{self.port}/{name}"

    def drop(self, url: str) -> None:
        """Remove a database, whoever is still connected to it."""
        self._do(f"DROP DATABASE {_name(url)} WITH (FORCE)")

    def _processes(self) -> list[psutil.Process]:
        """The server first, so that it starts no other; then one for each connection."""
        if not self._server:
            raise ServerError("the server is not running")
        server = psutil.Process(self._server.pid)
        return [server, *server.children(recursive=True)]

    def _make_data(self) -> None:
        options = ("--no-sync", "--no-instructions", "-E", "UTF8", "--locale=C.UTF-8")
        self._run("initdb", "-D", str(self._data), "-U", "test", "-A", "trust", *options)

    def _start_server(self) -> Child:
        settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
        return Child(
            [self._program("postgres"), "-D", str(self._data), "-p", str(self.port), *settings],
            folder=self.folder,
            env=self._env,
            owner=self._owner,
        )

    def _is_ready(self) -> bool:
        try:
            self._do("SELECT 1")
        except (OSError, asyncpg.PostgresError):
            return False
        return True

    def _do(self, statement: str) -> None:
        """Without a program: to start one in every test takes longer than what it does."""

        async def do() -> None:
            connection = await asyncpg.connect(
                host=HOST, port=self.port, user="test", database="postgres", ssl=False
            )
            try:
                await connection.execute(statement, timeout=START_SECONDS)
            finally:
                await connection.close()

        in_own_loop(do())

    def _program(self, name: str) -> str:
        return str(self._programs / name)

    def _run(self, name: str, *arguments: str) -> None:
        done = run(
            [self._program(name), *arguments],
            cwd=self.folder,
            env=self._env,
            stdout=PIPE,
            stderr=STDOUT,
            text=True,
            timeout=START_SECONDS,
            check=False,
            user=self._owner and self._owner.pw_uid,
            group=self._owner and self._owner.pw_gid,
            extra_groups=self._owner and (),
        )
        if done.returncode:
            raise ServerError(f"{name}: {done.stdout}")
