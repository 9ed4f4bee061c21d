"""A real spawned child that writes the records of a script, for tests of its parent.

Its order is a list of steps: ``{"write": record}``, ``{"sleep": seconds}``, ``{"exit": status}``,
``{"fork": seconds}`` (start a grandchild that lives so long), ``{"fork_away": seconds}`` (the
same, in a session of its own), ``{"kill": signal}`` (itself), ``{"environment": true}`` (report the
names of its variables), ``{"print": text}``, ``{"wait_for_stop": true}`` (until SIGTERM).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import msgspec
from msgspec import Struct

from shared.child import process, records


class Script(Struct, frozen=True):
    steps: list[dict[str, Any]]


def carry_out(step: dict[str, Any], writer: process.RecordWriter) -> None:
    match step:
        case {"write": record}:
            writer.write(msgspec.convert(record, records.AnyRecord))
        case {"sleep": seconds}:
            time.sleep(seconds)
        case {"exit": status}:
            sys.exit(status)
        case {"kill": number}:
            os.kill(os.getpid(), number)
        case {"fork": seconds}:
            subprocess.Popen(["/bin/sleep", str(seconds)], close_fds=False)
        case {"fork_away": seconds}:
            command = ["/bin/sleep", str(seconds)]
            subprocess.Popen(command, close_fds=False, start_new_session=True)
        case {"environment": _}:
            writer.write(records.Done(summary={"names": sorted(os.environ)}))
        case {"print": text}:
            print(text, flush=True)  # noqa: T201 - to a log
        case {"wait_for_stop": _}:
            signal.sigwait({signal.SIGTERM})
            writer.write(records.Stopped())


def main() -> None:
    writer = process.begin()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    writer.write(records.Ready(gpu="scripted", unusable=("a library",)))
    while True:
        for step in process.read_order(Script).steps:
            carry_out(step, writer)


if __name__ == "__main__":
    main()
