"""Imports once and forks often: ``python -m tests.support.warm.server``."""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from shared.child.process import QUIET_AND_OFFLINE
from shared.service_process import importing
from tests.support.warm.stand_in import MESSAGE_BYTES, address_of

MODULES = ("services.trainer.training.train", "services.inferencer.generation.pipeline_cache")
READY = b"ready\n"


@contextmanager
def warm_server() -> Iterator[None]:
    """A server for the children of this process, and for theirs."""
    command = [sys.executable, "-m", "tests.support.warm.server", str(os.getpid())]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == READY, "the warm server did not start"
            yield
        finally:
            process.kill()


def main() -> None:
    os.environ |= QUIET_AND_OFFLINE
    with importing():
        for module in MODULES:
            importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address_of(int(sys.argv[1])))
        listener.listen(16)
        os.write(1, READY)
        while line := accepted(listener):
            with line:
                if os.fork() == 0:
                    keep(line)


def accepted(listener: socket.socket) -> socket.socket | None:
    """The next stand-in; None once the tests are gone, who hold the other end of stdin."""
    ready, _, _ = select.select([listener.fileno(), 0], [], [])
    return None if 0 in ready else listener.accept()[0]


def keep(line: socket.socket) -> None:
    """Fork the child, end it if the stand-in ends before it, and tell how it has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked, files, _, _ = socket.recv_fds(line, MESSAGE_BYTES, 4)
    keeper = os.getpid()
    if (child := os.fork()) == 0:
        line.close()
        become(**json.loads(asked), files=files, keeper=keeper)
    for file in files:
        os.close(file)
    line.send(str(child).encode())
    end = os.pidfd_open(child)
    if end not in select.select([line.fileno(), end], [], [])[0]:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    line.send(str(os.waitstatus_to_exitcode(status)).encode(), socket.MSG_NOSIGNAL)
    os._exit(0)


def become(
    module: str, folder: str, environment: dict[str, str], files: list[int], keeper: int
) -> None:
    """Be the process that the product wanted to start, for the rest of this process's life."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ |= environment
    for standard, file in enumerate(files[:3]):
        os.dup2(file, standard)
        os.close(file)
    sys.argv = [module, str(files[3]), str(keeper)]
    status = exit_status(module)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def exit_status(module: str) -> int:
    """What ``python -m`` would end with."""
    try:
        importlib.import_module(module).main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)  # noqa: T201
            return 1
        return end.code or 0
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
