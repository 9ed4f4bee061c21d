"""Room on a disk, looked for before anything is written there, and told clearly when it is gone."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import Full

SPARE = 64 * 2**20
"""Bytes that bulk data leaves free, for what else is on the disk: a database, logs."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says when a disk, a quota or a limit leaves no room."""


def free_bytes(folder: Path) -> int:
    """What may be written to the disk that this folder is on, or would be made on.

    Raises:
        OSError: the disk does not answer.
    """
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    return shutil.disk_usage(there).free


def require_room(folder: Path, needed: int, doing: str) -> None:
    """Make sure that so many bytes can be written; ``doing`` says what for: "save a checkpoint".

    Raises:
        Full: they cannot.
    """
    free = free_bytes(folder)
    if free < needed:
        raise Full(
            f"no room on the disk to {doing}: {needed} bytes are needed in {folder},"
            f" and {free} are free"
        )


@contextmanager
def told_when_full(doing: str) -> Iterator[None]:
    """Turn the system's own word into ours, where a disk fills up in the middle.

    Raises:
        Full: it did.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise Full(f"the disk has filled up; there was no room to {doing}: {error}") from error
