"""Free space on disks: checked before writing, and a clear error when a disk is full."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from shared.errors import Full

SPARE = 64 * 2**20
"""Bytes that bulk data leaves free for other files on the disk: a database, logs."""
CACHE_BYTES = 50 * 2**30
"""Largest size of a local cache: about ten Stable Diffusion 1.5 models in fp32."""
KEPT_SECONDS = 3600.0
"""A cached folder stays for an hour after its last use: something may be reading it."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers for a full disk, an exhausted quota or a file-size limit."""


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk that holds this folder, or would hold it.

    Raises:
        OSError: the disk does not answer.
    """
    return shutil.disk_usage(_existing(folder)).free


def free_files(folder: Path) -> int | None:
    """How many more files fit on the disk that holds this folder, or would; None: no such limit.

    Raises:
        OSError: the disk does not answer.
    """
    disk = os.statvfs(_existing(folder))
    return disk.f_favail if disk.f_files else None


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(each for each in (folder, *folder.absolute().parents) if each.exists())


class Room(NamedTuple):
    """What fits on a disk."""

    bytes: int
    files: int | None
    """None: there is no limit."""


def total_room(folder: Path) -> Room:
    """What fits on the disk that holds this folder, with what is on it.

    Raises:
        OSError: the disk does not answer.
    """
    return Room(shutil.disk_usage(folder).total, os.statvfs(folder).f_files or None)


def require_room(folder: Path, needed: int, doing: str) -> None:
    """Check that ``needed`` bytes can be written; ``doing`` is for the text: "save a checkpoint".

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
def translate_disk_full(doing: str) -> Iterator[None]:
    """Turn the system's errors for a full disk into ours.

    Raises:
        Full: the disk filled up within the block.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise Full(f"the disk has filled up; there was no room to {doing}: {error}") from error
