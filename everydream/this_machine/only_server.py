"""One server in a home folder: its process holds a lock, and says in it what it is."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from shared.errors import SettingsError
from shared.settings import Settings

LOCK = "serve.lock"


class Server(Struct, frozen=True):
    """A server that runs."""

    process: int
    url: str
    base_model: str


@contextmanager
def only_server(settings: Settings) -> Iterator[None]:
    """Hold the home folder for the block; the kernel gives it free however the process ends.

    Two servers would take each other's jobs out of one database, with a bus of its own each.

    Raises:
        SettingsError: another server runs there.
    """
    descriptor = os.open(settings.home / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(_refusal(settings)) from None
        server = Server(os.getpid(), settings.public_url, settings.base_model)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, msgspec.json.encode(server))
        yield
    finally:
        os.close(descriptor)


def running_server(home: Path) -> Server | None:
    """The server of a home folder; None: none runs there."""
    try:
        descriptor = os.open(home / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with suppress(msgspec.DecodeError, OSError):  # it is just about to write it
            return msgspec.json.decode((home / LOCK).read_bytes(), type=Server)
    finally:
        os.close(descriptor)
    return None


def _refusal(settings: Settings) -> str:
    other = running_server(settings.home)
    which = f" at {other.url} (process {other.process})" if other else ""
    return (
        f"a server of {settings.home} runs already{which}; stop it, or give this one a folder of"
        " its own by --home or EVERYDREAM_HOME"
    )
