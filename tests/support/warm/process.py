"""A service that is a fork, to its starter as one that was started cold."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import TimeoutExpired
from typing import IO

from tests.support.servers.process import ServerError
from tests.support.warm.server import start_server
from tests.support.warm.stand_in import (
    MESSAGE_BYTES,
    SERVICES,
    connected,
    line_to_server,
)

PROGRAMS = ("tests.support.warm", "tests.support.warm.command", "tests.faults.scripted")
"""Modules of the tests that run services and do not mind what has been imported before them."""


class WarmProcess:
    """What `subprocess.Popen` is, as far as `Child` asks."""

    def __init__(
        self,
        args: Sequence[str],
        folder: Path,
        env: Mapping[str, str],
        log: IO[bytes],
        errors: IO[bytes] | None = None,
    ) -> None:
        """``args`` are those of a cold start: ``python -m MODULE ...``; stderr may be apart."""
        self.args = args
        self.returncode: int | None = None
        module, *arguments = args[2:]
        order = {"module": module, "arguments": arguments, "folder": str(folder)}
        asked = json.dumps(order | {"environment": dict(env)})
        self._line = line_to_services()
        with Path(os.devnull).open("rb") as nothing:
            files = [nothing.fileno(), log.fileno(), (errors or log).fileno()]
            socket.send_fds(self._line, [asked.encode()], files)
        self.pid = self._told()

    def poll(self) -> int | None:
        """As Popen's."""
        if self.returncode is None and select.select([self._line], [], [], 0)[0]:
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """As Popen's."""
        if self.returncode is None:
            if not select.select([self._line], [], [], timeout)[0]:
                raise TimeoutExpired(self.args, timeout or 0)
            self._end()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """As Popen's."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has just ended, and that is on its way
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _end(self) -> None:
        self.returncode = self._told()
        self._line.close()

    def _told(self) -> int:
        with suppress(ConnectionError):
            if said := self._line.recv(MESSAGE_BYTES):
                return int(said)
        raise ServerError(f"{self.args!r}: the server has ended")


def line_to_services() -> socket.socket:
    """A line to the server of services, which is started if there is none."""
    if line := line_to_server(SERVICES):
        return line
    start_server()
    return connected(SERVICES)


def is_warm(command: Sequence[str]) -> bool:
    """Whether a fork may run this command line."""
    return command[1] == "-m" and command[2] in PROGRAMS
