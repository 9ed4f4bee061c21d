"""A process of pytest-xdist, forked: ``python -m tests.support.warm.worker`` for ``python``.

What the tests import takes each process of theirs some seconds, of which a fork has paid the most.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

from tests.support.warm.stand_in import CHILDREN, MESSAGE_BYTES, connected, end_like

PROGRAM = "tests.support.warm.worker_fork"


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: pytest ends its processes itself
    order = {"module": PROGRAM, "arguments": [], "folder": str(Path.cwd())}
    asked = json.dumps(order | {"environment": {**os.environ}})
    with connected(CHILDREN) as line:
        socket.send_fds(line, [asked.encode()], [0, 1, 2])
        line.recv(MESSAGE_BYTES)  # its id
        end_like(line.recv(MESSAGE_BYTES))


if __name__ == "__main__":
    main()
