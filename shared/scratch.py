"""Folders for one piece of work, gone with it; those of processes that died are removed later.

Each holds a file that its process keeps locked. The kernel releases the lock however the process
ends, so whoever gets it knows that the folder is abandoned. Locks belong to an opened file, not to
a process: this holds for several workers in one process too.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from shared.concurrency import in_thread

PREFIX = ".locked-"
"""Of folders whose lock tells whether their process lives."""
LOCK = ".lock"
LEFTOVER_SECONDS = 24 * 3600.0


@asynccontextmanager
async def scratch_folder(parent: Path, name: str) -> AsyncIterator[Path]:
    """A new, empty folder in ``parent`` for the block; removed even if cancelled repeatedly.

    ``name`` is for people; two with the same name do not meet.
    """
    folder = _LockedFolder(parent, name)
    try:
        await in_thread(folder.create)
        yield folder.path
    finally:
        await in_thread(folder.remove)


@contextmanager
def locked_folder(parent: Path, name: str) -> Iterator[Path]:
    """As :func:`scratch_folder`, for code that runs in a thread."""
    folder = _LockedFolder(parent, name)
    try:
        folder.create()
        yield folder.path
    finally:
        folder.remove()


def remove_abandoned(parent: Path) -> None:
    """Remove the folders in ``parent`` whose processes have died."""
    for folder in parent.glob(f"{PREFIX}*"):
        _remove_unless_locked(folder)


def remove_old(parent: Path) -> None:
    """Remove everything else in ``parent`` in which nothing changed for a day.

    Earlier versions left it, which had no locks, or a process that died before it had its lock.
    """
    for path in parent.glob("*"):
        if not path.name.startswith(PREFIX) and time.time() - _last_change(path) > LEFTOVER_SECONDS:
            _remove(path)


class _LockedFolder:
    def __init__(self, parent: Path, name: str) -> None:
        self._name = f"{uuid.uuid4().hex}-{name}"
        self.path = parent / f"{PREFIX}{self._name}"
        self._lock: int | None = None

    def create(self) -> None:
        """Lock it under another name first: without its lock it would count as abandoned."""
        new = self.path.with_name(f".new-{self._name}")
        new.mkdir(parents=True)
        try:
            self._lock = os.open(new / LOCK, os.O_CREAT | os.O_WRONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            new.rename(self.path)
        except BaseException:
            _remove(new)
            raise

    def remove(self) -> None:
        _remove(self.path)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _remove_unless_locked(folder: Path) -> None:
    try:
        lock = os.open(folder / LOCK, os.O_WRONLY)
    except FileNotFoundError:  # its removal has begun
        _remove(folder)
        return
    except PermissionError:  # another user's
        return
    try:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)
    finally:
        os.close(lock)


def _last_change(path: Path) -> float:
    """Of anything in it, in seconds since the epoch; now if another process is removing it."""
    with suppress(FileNotFoundError):
        return max(each.lstat().st_mtime for each in (path, *path.rglob("*")))
    return time.time()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
