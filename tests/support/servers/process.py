"""What the private servers have in common: a folder, a port, child processes, and a sure end."""

import asyncio
import os
import random
import shutil
import signal
import socket
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pwd import struct_passwd
from subprocess import DEVNULL, PIPE, STDOUT, Popen, TimeoutExpired
from typing import IO, Any, Protocol, Self, TypeVar

T = TypeVar("T")

HOST = "127.0.0.1"

# Below the ports that the system lends to outgoing connections: a client that keeps knocking on the
# port of a stopped server would otherwise be lent that very port, and the server could not return.
PORTS = range(20000, 32000)

# Reads until the tests' end of the pipe is gone, however they ended; then ends the server for them.
GUARD = """
while read -r _; do :; done
sleep "$3"; kill -TERM "$1"; sleep 5; kill -KILL "$1"
rm -rf "$2"
"""


class Process(Protocol):
    """What `Child` asks of its process; `subprocess.Popen` is one."""

    args: Any
    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, number: int, /) -> None: ...

    def kill(self) -> None: ...


class ServerError(Exception):
    """A server is missing, did not start, or did not do what was asked."""


def free_port() -> int:
    """Return a port that nothing listens on."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        if _is_free(port):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def listens(port: int) -> bool:
    """Say whether a connection to the port is accepted."""
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def in_own_loop(work: Coroutine[object, object, T]) -> T:
    """Run a coroutine to its end from anywhere, also from inside a running loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def search_path() -> str:
    """Return the folders of programs, the system's own always among them."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/bin", "/bin"])


class Child:
    """A process of ours: in a session of its own, ended by its pid, and gone when the tests are."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        env: Mapping[str, str],
        owner: struct_passwd | None = None,
        linger: int = 0,  # seconds to outlive the tests by
    ) -> None:
        self.log = folder / f"{Path(command[0]).name}.log"
        with self.log.open("ab") as log:
            self._process = self._begin(command, folder, env, log, owner)
        self._guard = Popen(
            ["/bin/sh", "-c", GUARD, "guard", str(self.pid), str(folder), str(linger)],
            stdin=PIPE,
            stdout=DEVNULL,
            stderr=DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Ask until the answer is yes; raise the process's last words if it does not become so."""
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.alive or time.monotonic() > deadline:
                raise ServerError(f"{self._process.args!r} is not ready:\n{self._last_words()}")
            time.sleep(0.05)

    def end(self, number: signal.Signals, seconds: float = 30) -> None:
        """End the process and wait for it; what does not listen in time is killed."""
        self._release_guard()
        self.send(signal.SIGCONT)
        self.send(number)
        try:
            self._process.wait(seconds)
        except TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _begin(
        self,
        command: Sequence[str],
        folder: Path,
        env: Mapping[str, str],
        log: IO[bytes],
        owner: struct_passwd | None,
    ) -> Process:
        return Popen(
            command,
            cwd=folder,
            env=env,
            stdin=DEVNULL,
            stdout=log,
            stderr=STDOUT,
            start_new_session=True,  # Ctrl-C is for the tests, which then end us in order
            user=owner and owner.pw_uid,
            group=owner and owner.pw_gid,
            extra_groups=owner and (),
        )

    def _release_guard(self) -> None:
        self._guard.kill()
        self._guard.communicate()

    def _last_words(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]


class Server(ABC):
    """A server with a folder of its own, to be used in a `with` statement."""

    def __init__(self, owner: struct_passwd | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"{type(self).__name__.lower()}-"))
        if owner:
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abstractmethod
    def start(self) -> None:
        """Return when the server answers; nothing to do if it already does."""

    def stop(self) -> None:
        """End all processes and remove the folder."""
        self.end_processes()
        if self.folder.exists():
            shutil.rmtree(self.folder)

    @abstractmethod
    def end_processes(self) -> None:
        """End whatever was started, in the order that the server likes."""
