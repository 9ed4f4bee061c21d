"""A local cache of stored folders, shared by the processes of a machine."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from shared.concurrency import in_thread
from shared.disk import CACHE_BYTES, KEPT_SECONDS
from shared.errors import Full
from shared.ports import ObjectStore, no_keepalive
from shared.scratch import PREFIX, scratch_folder
from shared.storage.folders import download_folder
from shared.storage.manifest import MANIFEST

TIMES = ".modified.json"
"""In a cached folder: when each of its files was last written."""
LEFTOVER_SECONDS = 24 * 3600.0
"""Evicted folders older than this were left by a process that died."""


async def cached_folder(
    store: ObjectStore,
    prefix: str,
    cache: Path,
    *,
    max_bytes: int = CACHE_BYTES,
    keepalive: Callable[[], None] = no_keepalive,
) -> Path:
    """A local copy of a stored folder that never changes, downloaded unless it is cached.

    Several processes may share the cache. Beyond ``max_bytes`` the least recently used folders
    are removed, and all if the disk has no room, but none used within the past hour. Do not write
    into the copy. Its manifest lies beside its files, see :func:`known_sha256`.

    Raises:
        NotFound: no complete folder is stored there.
        Unavailable, Full: as :func:`download_folder`.
    """
    target = cache / hashlib.sha256(prefix.encode()).hexdigest()
    if not await in_thread(_touch, target):
        try:
            await _download(store, prefix, target, keepalive)
        except Full:
            if not await in_thread(_evict, cache, 0):
                raise
            await _download(store, prefix, target, keepalive)
        await in_thread(_evict, cache, max_bytes)
    return target


async def _download(
    store: ObjectStore, prefix: str, target: Path, keepalive: Callable[[], None]
) -> None:
    async with scratch_folder(target.parent, "incoming") as folder:
        incoming = folder / "whole"
        manifest = await download_folder(
            store, prefix, incoming, keepalive=keepalive, immutable=True
        )
        times = await in_thread(_modified, incoming, [file.name for file in manifest.files])
        await in_thread((incoming / TIMES).write_bytes, msgspec.json.encode(times))
        await in_thread((incoming / MANIFEST).write_bytes, msgspec.json.encode(manifest))
        await in_thread(_move_into_place, incoming, target)


def _touch(folder: Path) -> bool:
    """Whether the folder is cached as it was downloaded; marks it as used now."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent), suppress(FileNotFoundError):
        if _is_changed(folder):
            folder.rename(_hidden(folder.parent))
            return False
        os.utime(folder)
        return True
    return False


def _is_changed(folder: Path) -> bool:
    """Whether somebody has written over a file: one that links share may be the owner's own."""
    times = folder / TIMES
    if not times.exists():  # an earlier version's, which shared none
        return False
    known = msgspec.json.decode(times.read_bytes(), type=dict[str, int])
    return _modified(folder, known) != known


def _modified(folder: Path, names: Iterable[str]) -> dict[str, int]:
    """When these files were last written, in nanoseconds."""
    return {name: (folder / name).stat().st_mtime_ns for name in names}


def _move_into_place(incoming: Path, target: Path) -> None:
    """Move a downloaded folder into place, unless another process was faster."""
    with _locked(target.parent):
        if not target.exists():
            incoming.rename(target)
        os.utime(target)


def _evict(cache: Path, max_bytes: int) -> bool:
    """Remove folders beyond ``max_bytes``; returns whether there were any.

    They are renamed under the lock and removed after it: no reader sees half a folder or waits
    long.
    """
    with _locked(cache):
        evicted = [folder.rename(_hidden(cache)) for folder in _excess(cache, max_bytes)]
    for folder in [*evicted, *_leftovers(cache)]:
        shutil.rmtree(folder, ignore_errors=True)
    return bool(evicted)


def _hidden(cache: Path) -> Path:
    """A new name for a folder that is no longer part of the cache."""
    return cache / f".{uuid.uuid4().hex}"


def _excess(cache: Path, max_bytes: int) -> Iterator[Path]:
    """The least recently used folders, beyond ``max_bytes``."""
    cached = [item for item in cache.iterdir() if item.is_dir() and item.name[0] != "."]
    total = 0
    for folder in sorted(cached, key=lambda folder: folder.stat().st_mtime, reverse=True):
        total += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if total > max_bytes and _age(folder) > KEPT_SECONDS:
            yield folder


def _leftovers(cache: Path) -> list[Path]:
    hidden = (item for item in cache.iterdir() if item.is_dir() and item.name[0] == ".")
    evicted = (folder for folder in hidden if not folder.name.startswith(PREFIX))
    return [folder for folder in evicted if _age(folder) > LEFTOVER_SECONDS]


def _age(path: Path) -> float:
    """Seconds since its last use; 0 if another process has just removed it."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """One process at a time; held for renames and look-ups only, never while bytes move."""
    with (cache / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
