"""Imports once and forks often: ``python -m tests.support.warm.server``."""

from __future__ import annotations

import errno
import importlib
import json
import logging
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

from shared.child.process import FOR_LIBRARIES, importing
from tests.support.warm.stand_in import MESSAGE_BYTES, address_of, line_to_server

MODULES = ("services.trainer.training.train", "services.inferencer.generation.pipeline_cache")
START_SECONDS = 120.0


def start_server() -> None:
    """Have a server for all processes of these tests, and for what they start, unless there is one.

    It ends with the process that all of them descend from.
    """
    if line := line_to_server():
        line.close()
        return
    root = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    command = [sys.executable, "-m", "tests.support.warm.server", str(root)]
    subprocess.run(command, check=True, start_new_session=True)


def main() -> None:
    """Return as soon as the server, a fork, answers."""
    root = int(sys.argv[1])
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        try:
            listener.bind(address_of(root))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            until_answered(root)
            return
        os.environ |= FOR_LIBRARIES
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # as its children do
        with importing():
            for module in MODULES:
                importlib.import_module(module)
        listener.listen(16)
        if os.fork() == 0:
            serve(listener, os.pidfd_open(root))


def until_answered(root: int) -> None:
    """Wait for the server that another process is starting."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
            if line.connect_ex(address_of(root)) == 0:
                return
        time.sleep(0.1)
    sys.exit("another process's server does not answer")


def serve(listener: socket.socket, root: int) -> NoReturn:
    """Fork for every stand-in until the root process is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as own:
        own.bind(address_of(os.getpid()))  # what our forks start descends from us, not from root
        own.listen(16)
        while line := accepted([listener, own], root):
            with line:
                if os.fork() == 0:
                    keep(line)
    os._exit(0)


def accepted(listeners: Sequence[socket.socket], root: int) -> socket.socket | None:
    """The next stand-in; None once the root process is gone."""
    ready, _, _ = select.select([root, *(each.fileno() for each in listeners)], [], [])
    if root in ready:
        return None
    return next(each for each in listeners if each.fileno() in ready).accept()[0]


def keep(line: socket.socket) -> None:
    """Fork the child, end it if the stand-in ends before it, and tell how it has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked, files, _, _ = socket.recv_fds(line, MESSAGE_BYTES, 4)
    if not asked:  # somebody has looked whether there is a server
        os._exit(0)
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
    with suppress(BrokenPipeError):  # the stand-in was killed first
        line.send(str(os.waitstatus_to_exitcode(status)).encode(), socket.MSG_NOSIGNAL)
    os._exit(0)


def become(
    module: str,
    folder: str,
    environment: dict[str, str],
    files: list[int],
    keeper: int,
    arguments: Sequence[str] | None = None,
) -> None:
    """Be the process that was to be started, for the rest of this process's life.

    ``arguments`` are a service's; a child of the product has none but its pipe and its parent.
    """
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ |= environment
    for standard, file in enumerate(files[:3]):
        os.dup2(file, standard)
        os.close(file)
    if arguments is None:
        sys.argv = [module, str(files[3]), str(keeper)]
        status = exit_status(importlib.import_module(module).main)
    else:
        sys.argv = [module, *arguments]
        status = exit_status(lambda: runpy.run_module(module, run_name="__main__"))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def exit_status(program: Callable[[], object]) -> int:
    """What ``python -m`` would end with."""
    try:
        program()
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
