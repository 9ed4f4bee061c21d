"""The process that the product starts: as long as it lives, a fork of the server works for it."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from shared.child.process import begin

MESSAGE_BYTES = 65536
CHILDREN, SERVICES = "children", "services"
"""The two kinds of servers."""


def address_of(kind: str, pid: int) -> str:
    """Where the server of this process listens: a name in Linux's abstract namespace."""
    return f"\0everydream-warm-{kind}-{pid}"


def stand_in_for(module: str) -> None:
    """Have a fork run the module's ``main`` with our files, and end as it ends."""
    begin()
    asked = json.dumps({"module": module, "folder": str(Path.cwd()), "environment": {**os.environ}})
    with connected(CHILDREN) as line:
        socket.send_fds(line, [asked.encode()], [0, 1, 2, int(sys.argv[1])])
        os.close(int(sys.argv[1]))  # else the end of the pipe never comes
        child = int(line.recv(MESSAGE_BYTES))
        signal.signal(signal.SIGTERM, lambda number, _: passed_on(number, child))
        end_like(line.recv(MESSAGE_BYTES))


def connected(kind: str) -> socket.socket:
    """A line to the server of the nearest ancestor that has one."""
    if line := line_to_server(kind):
        return line
    sys.exit(f"no server for {kind}: it has ended, or the test lacks the fixture warm_children")


def line_to_server(kind: str) -> socket.socket | None:
    """None: neither we nor an ancestor have one."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for pid in (os.getpid(), *ancestors()):
        if line.connect_ex(address_of(kind, pid)) == 0:
            return line
    line.close()
    return None


def ancestors() -> Iterator[int]:
    pid = os.getppid()
    while pid:
        yield pid
        stat = Path(f"/proc/{pid}/stat").read_text()
        pid = int(stat.rsplit(")", 1)[1].split()[1])


def passed_on(number: int, child: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, number)


def end_like(status: bytes) -> None:
    """Leave with an exit status, or by the signal whose negative number it is."""
    code = int(status or b"1")
    if code < 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)
