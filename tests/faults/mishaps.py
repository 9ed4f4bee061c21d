"""What may befall a scripted child."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from shared.errors import Passing, Refused
from tests.faults.script import How


def suffer(how: How | None) -> None:
    """End, hang or fail as the script wants it; None: all is well.

    Raises:
        Passing, Refused: to be said as the child's last word.
    """
    match how:
        case "exit":
            sys.exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            _hang()
        case "passing":
            raise Passing("the script wants another try")
        case "refused":
            raise Refused("the script wants no other try")


def attempt_of(out: str) -> int:
    """The attempt at the stage, by the name of the parent's folder: ``JOB-STAGE-ATTEMPT``."""
    folder = next(part for part in reversed(Path(out).parts) if part.count("-") >= 2)
    return int(folder.rpartition("-")[2])


def _hang() -> None:
    while True:
        time.sleep(3600)
