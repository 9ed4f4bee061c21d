"""Two processes that import once and fork often: ``python -m tests.support.warm.server ROOT``.

One has imported what the services need. The other, a fork of it, has also imported torch and
diffusers: its forks are children of the GPU services, and the processes of pytest-xdist.
"""

from __future__ import annotations

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
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from subprocess import DEVNULL
from typing import NoReturn

from shared.child.process import FOR_LIBRARIES, importing
from tests.support.warm.stand_in import (
    CHILDREN,
    MESSAGE_BYTES,
    SERVICES,
    address_of,
    line_to_server,
)

FOR_SERVICES = (
    "everydream.cli",
    "everydream.commands.serving",
    "everydream.this_machine.greeting",
    "services.gateway.__main__",
    "services.fetcher.__main__",
    "services.trainer.work",
    "services.inferencer.work",
    "services.notifier.__main__",
)
"""Without ``__main__`` of the GPU services: ``CHILD``, which ``tests.support.warm`` replaces, would
be read too early. None of these imports torch or what else reads ``FOR_LIBRARIES``.
"""
FOR_CHILDREN = ("services.trainer.training.train", "services.inferencer.generation.pipeline_cache")


def start_server() -> None:
    """Have servers for all processes of these tests, and for what they start, unless there are.

    They end with the process that all of them descend from. Who asks one that is still importing
    waits until it is done.
    """
    if line := line_to_server(CHILDREN):
        line.close()
        return
    # Unbuffered, for the services' logs.
    command = [sys.executable, "-u", "-m", "tests.support.warm.server", str(os.getpid())]
    subprocess.run(command, check=True, stdin=DEVNULL, stdout=DEVNULL, start_new_session=True)


def main() -> None:
    """Return as soon as the servers, forks, can be asked."""
    root = int(sys.argv[1])
    listeners = {kind: [listening(kind, root)] for kind in (SERVICES, CHILDREN)}
    if os.fork() == 0:
        be_servers(listeners, os.pidfd_open(root))


def be_servers(listeners: dict[str, list[socket.socket]], root: int) -> NoReturn:
    for kind, those in listeners.items():
        # Also under our own id: the ancestors of our forks end with us, not with root.
        those.append(listening(kind, os.getpid()))
    import_all(FOR_SERVICES)
    if os.fork():
        close(listeners[CHILDREN])
        serve(listeners[SERVICES], root)
    close(listeners[SERVICES])
    if not asked_for(listeners[CHILDREN], root):
        os._exit(0)
    os.environ |= FOR_LIBRARIES
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # as its children do
    import_all(FOR_CHILDREN)
    serve(listeners[CHILDREN], root)


def listening(kind: str, pid: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address_of(kind, pid))
    listener.listen(16)
    return listener


def import_all(modules: Iterable[str]) -> None:
    with importing():
        for module in modules:
            importlib.import_module(module)


def close(listeners: Iterable[socket.socket]) -> None:
    for listener in listeners:
        listener.close()


def serve(listeners: Sequence[socket.socket], root: int) -> NoReturn:
    """Fork for everybody who asks until the root process is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    while line := accepted(listeners, root):
        with line:
            if os.fork() == 0:
                close(listeners)
                keep(line)
    os._exit(0)


def asked_for(listeners: Sequence[socket.socket], root: int) -> list[socket.socket]:
    """Wait until somebody asks; none once the root process is gone."""
    ready, _, _ = select.select([root, *(each.fileno() for each in listeners)], [], [])
    return [] if root in ready else [each for each in listeners if each.fileno() in ready]


def accepted(listeners: Sequence[socket.socket], root: int) -> socket.socket | None:
    """A line to the next who asks; None once the root process is gone."""
    ready = asked_for(listeners, root)
    return ready[0].accept()[0] if ready else None


def keep(line: socket.socket) -> None:
    """Fork the process, end it if who asked ends before it, and tell how it has ended."""
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
