"""Whether an object store, or a worker's own disk, can take what a job brings."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import monotonic

from shared.disk import free_bytes, free_files
from shared.errors import Unavailable
from shared.ports import LocalStore, ObjectStore
from shared.words import counted

NEEDED_BYTES = 2**30
"""Free space that a disk must have: a few results."""
NEEDED_FILES = 10_000
"""Files that it must have room for: a few results."""
PROBE = "ready"
"""A key that is asked for; whether there is such an object does not matter."""
REMOTE_SECONDS = 10.0
"""For which the answer of a store on other machines is used again: probes are many."""


class StoreCheck:
    """Asks a store whether it answers, and one on a disk of ours for its room."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._answered_at: float | None = None
        self._asking = asyncio.Lock()

    async def problem(self) -> str | None:
        """Why it cannot take more; None: it can. Other stores report by themselves when full.

        Raises:
            EveryDreamError: it does not answer.
        """
        if isinstance(self._store, LocalStore):
            try:
                free = await asyncio.to_thread(self._store.free_bytes)
                files = await asyncio.to_thread(self._store.free_files)
            except Unavailable:
                return "its folder cannot be read"
            return _shortage(free, files)
        async with self._asking:
            if self._answered_at is None or monotonic() - self._answered_at > REMOTE_SECONDS:
                self._answered_at = None
                await self._store.exists(PROBE)
                self._answered_at = monotonic()
        return None


async def disk_problem(folder: Path) -> str | None:
    """Why a worker cannot work in this folder; None: it can."""
    try:
        free = await asyncio.to_thread(free_bytes, folder)
        files = await asyncio.to_thread(free_files, folder)
    except OSError:
        return "cannot be read"
    return _shortage(free, files)


def _shortage(free: int, files: int | None) -> str | None:
    if free < NEEDED_BYTES:
        return f"{free} bytes are free; {NEEDED_BYTES} are needed"
    if files is not None and files < NEEDED_FILES:
        room = counted(files, "more file")
        return f"there is room for {room} (inodes); {NEEDED_FILES} are needed"
    return None
