"""Write files and folders atomically."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, for a file or a folder.

    If the block succeeds, it is flushed to disk and replaces ``path``; otherwise it is removed.
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
    """Flush a file to disk, or a folder and, with ``deep``, everything in it."""
    inside = sorted(path.rglob("*")) if deep and path.is_dir() else []
    for each in (*inside, path):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
