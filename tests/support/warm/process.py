"""A service that the launcher has forked, to its starter as one that was started cold."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from subprocess import DEVNULL, TimeoutExpired
from typing import IO

from tests.support.servers.process import ServerError
from tests.support.warm.stand_in import MESSAGE_BYTES

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
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, Path(os.devnull).open("rb") as nothing:
            files = [nothing.fileno(), log.fileno(), (errors or log).fileno()]
            socket.send_fds(self._line, [asked.encode()], files)
            socket.send_fds(launcher(), [b"."], [theirs.fileno()])
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
        if said := self._line.recv(MESSAGE_BYTES):
            return int(said)
        raise ServerError(f"{self.args!r}: the launcher has ended")


def is_warm(command: Sequence[str]) -> bool:
    """Whether a fork may run this command line."""
    return command[1] == "-m" and command[2] in PROGRAMS


@cache
def launcher() -> socket.socket:
    """Start the launcher of this process, which ends with it; returns before it is ready."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            # Unbuffered, as the services write their logs.
            [sys.executable, "-u", "-m", "tests.support.warm.launcher"],
            stdin=theirs.fileno(),
            stdout=DEVNULL,
            start_new_session=True,
        )
    atexit.register(process.wait)
    atexit.register(ours.close)  # the last that is registered is called first
    return ours
