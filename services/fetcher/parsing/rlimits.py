"""Limits that the system holds the parsing child to, and what is said when one is met.

They bound what a stranger's file can take; they are no sandbox.
"""

from __future__ import annotations

import ctypes
import errno
import resource
import sys

from services.fetcher.limits import Limits

OPEN_FILES = 64
NEW_NETWORK, NEW_USER = 0x40000000, 0x10000000
"""Flags of Linux's ``unshare``."""


def leave_network() -> bool:
    """Move to an empty network namespace; returns whether the system gives one.

    Needs Linux, and either CAP_SYS_ADMIN or user namespaces for everybody. Must be called while the
    process has one thread.
    """
    if sys.platform != "linux":
        return False
    unshare = ctypes.CDLL(None).unshare
    return any(unshare(flags) == 0 for flags in (NEW_NETWORK, NEW_USER | NEW_NETWORK))


def apply(limits: Limits) -> None:
    """Limit what this process may take from now on: a job's next order gets limits of its own."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, int(limits.processor_seconds + used.ru_utime + used.ru_stime) + 1)
    _limit(resource.RLIMIT_FSIZE, limits.file_bytes)
    _limit(resource.RLIMIT_NOFILE, OPEN_FILES)
    _limit(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":  # elsewhere the parent watches the memory
        _limit(resource.RLIMIT_AS, limits.memory_bytes)


def _limit(kind: int, value: int) -> None:
    """Set a soft limit: its signal can be told from others, SIGXCPU from SIGKILL."""
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def is_too_large(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that a file would grow beyond the limit."""
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            return True
        error = error.__cause__
    return False
