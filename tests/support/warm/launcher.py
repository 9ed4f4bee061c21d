"""Forks services that have paid for their imports: ``python -m tests.support.warm.launcher``.

Its stdin is a socket, on which it gets one socket for each service: there it reads what to run,
tells the process's id and, when that has ended, how. It ends with the process at the other end.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys

from shared.child.process import importing
from tests.support.warm.server import keep

MODULES = (
    "everydream.cli",
    "everydream.commands.serving",
    "everydream.this_machine.greeting",
    "services.gateway.__main__",
    "services.fetcher.__main__",
    "services.trainer.work",
    "services.inferencer.work",
    "services.notifier.__main__",
)
"""Not who asks those of the GPU for their ``CHILD``, which a program of the tests replaces."""


def main() -> None:
    asking = socket.socket(fileno=0)
    with importing():
        for module in MODULES:
            importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    while True:
        asked, files, _, _ = socket.recv_fds(asking, 1, 1)
        if not asked:
            sys.exit(0)
        with socket.socket(fileno=files[0]) as line:
            if os.fork() == 0:
                asking.detach()
                keep(line)


if __name__ == "__main__":
    main()
