"""Files and folders that are whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write a file or a folder to.

    It is flushed to disk and takes the place of ``path`` when the block ends well, and is removed
    when it does not.
    """
    temporary = path.with_name(f".{path.name}.part")
    remove(temporary)
    try:
        yield temporary
        flush(temporary)
        if path.is_dir():
            remove(path)
        temporary.replace(path)
        flush(path.parent, deep=False)
    finally:
        remove(temporary)


def flush(path: Path, *, deep: bool = True) -> None:
    """Write a file, or a folder and all that is in it, through to the disk."""
    inside = sorted(path.rglob("*")) if deep and path.is_dir() else []
    for each in (*inside, path):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
