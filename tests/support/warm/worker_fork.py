"""What a fork does that is a process of pytest-xdist: what execnet's ``python -c`` would."""

from __future__ import annotations

import atexit
import sys

if __name__ == "__main__":
    try:
        exec(eval(sys.stdin.readline()))  # noqa: S102, S307 - as execnet's own first line does
    finally:
        atexit._run_exitfuncs()  # a fork leaves without them
