"""A local cache of stored folders, shared by the processes of a machine."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from shared.concurrency import in_thread
from shared.ports import ObjectStore, no_keepalive
from shared.storage.folders import download_folder
from shared.storage.manifest import MANIFEST

CACHE_BYTES = 50 * 2**30
"""Bound of a local cache of folders: about ten Stable Diffusion 1.5 models in fp32."""
KEPT_SECONDS = 3600.0
"""A cached folder stays for an hour after it was asked for: somebody may be reading it."""
LEFTOVER_SECONDS = 24 * 3600.0
"""A half-fetched folder this old belongs to a process that died."""


async def cached_folder(
    store: ObjectStore,
    prefix: str,
    cache: Path,
    *,
    most_bytes: int = CACHE_BYTES,
    keepalive: Callable[[], None] = no_keepalive,
) -> Path:
    """A local copy of a stored folder that never changes, fetched unless it is in the cache.

    Several processes may share the cache. Beyond ``most_bytes`` the folders that were asked for
    least recently go, but none that was asked for within the past hour. Do not write into it. Its
    manifest is beside its files, see :func:`known_sha256`.

    Raises:
        NotFound: no whole folder is stored there.
        Unavailable: as :func:`download_folder`.
    """
    target = cache / hashlib.sha256(prefix.encode()).hexdigest()
    if not await in_thread(_touch, target):
        await _fetch_into_cache(store, prefix, target, keepalive)
        await in_thread(_evict, cache, most_bytes)
    return target


async def _fetch_into_cache(
    store: ObjectStore, prefix: str, target: Path, keepalive: Callable[[], None]
) -> None:
    incoming = _hidden(target.parent)
    try:
        manifest = await download_folder(store, prefix, incoming, keepalive=keepalive)
        await in_thread((incoming / MANIFEST).write_bytes, msgspec.json.encode(manifest))
        await in_thread(_settle, incoming, target)
    finally:
        await in_thread(shutil.rmtree, incoming, ignore_errors=True)


def _touch(folder: Path) -> bool:
    """Whether the cache has it; it counts as used now."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent), suppress(FileNotFoundError):
        os.utime(folder)
        return True
    return False


def _settle(incoming: Path, target: Path) -> None:
    """Put a fetched folder in place, unless another process was faster."""
    with _locked(target.parent):
        if target.exists():
            os.utime(target)
        else:
            incoming.rename(target)
            os.utime(target)


def _evict(cache: Path, most_bytes: int) -> None:
    """Rename under the lock, remove after it: nobody sees half a folder, nobody waits long."""
    with _locked(cache):
        doomed = [
            folder.rename(cache / f".{uuid.uuid4().hex}") for folder in _excess(cache, most_bytes)
        ]
    for folder in [*doomed, *_leftovers(cache)]:
        shutil.rmtree(folder, ignore_errors=True)


def _hidden(cache: Path) -> Path:
    """A new name for a folder that does not count yet, or no longer."""
    return cache / f".{uuid.uuid4().hex}"


def _excess(cache: Path, most_bytes: int) -> Iterator[Path]:
    """Folders beyond the bound, those asked for most recently being kept first."""
    settled = [item for item in cache.iterdir() if item.is_dir() and item.name[0] != "."]
    total = 0
    for folder in sorted(settled, key=lambda folder: folder.stat().st_mtime, reverse=True):
        total += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if total > most_bytes and _age(folder) > KEPT_SECONDS:
            yield folder


def _leftovers(cache: Path) -> list[Path]:
    hidden = (item for item in cache.iterdir() if item.is_dir() and item.name[0] == ".")
    return [folder for folder in hidden if _age(folder) > LEFTOVER_SECONDS]


def _age(path: Path) -> float:
    """Seconds since it was last asked for; nothing for what another process has just removed."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """One process at a time; held for renames and looks only, never while bytes move."""
    with (cache / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
