"""Whole folders in an object store: every file, then a manifest that makes them count.

Without its manifest a folder does not exist. It holds each file's name, size and sha256, so a torn
or mixed copy is noticed before anybody trains on it.
"""

from __future__ import annotations

import asyncio
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
from msgspec import Struct

from shared.concurrency import a_few_at_once, in_thread
from shared.disk import require_room
from shared.errors import NotFound, Unavailable
from shared.ports import ObjectStore, unheard

MANIFEST = ".folder.sha256.json"
"""A dataset or a model has a ``manifest.json`` of its own at times; never one of this name."""
AT_ONCE = 8
"""Files on their way at a time."""
CACHE_BYTES = 50 * 2**30
"""Bound of a local cache of folders: about ten Stable Diffusion 1.5 models in fp32."""
KEPT_SECONDS = 3600.0
"""A cached folder stays for an hour after it was asked for: somebody may be reading it."""
LEFTOVER_SECONDS = 24 * 3600.0
"""A half-fetched folder this old belongs to a process that died."""


class FileEntry(Struct, frozen=True, kw_only=True):
    """One file of a folder; ``name`` is relative and uses ``/``."""

    name: str
    bytes: int
    sha256: str


class FolderManifest(Struct, frozen=True, kw_only=True):
    """Every file of a folder, in order of names."""

    files: tuple[FileEntry, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def address(self) -> str:
        """sha256 (hex) over all names and contents: equal folders have equal addresses."""
        lines = (f"{file.sha256}  {file.name}\n" for file in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


async def sha256_of(path: Path) -> str:
    """Hex digest of a file, computed in a thread."""
    return (await in_thread(_describe, path, path.name)).sha256


async def content_address(folder: Path, *, heard: Callable[[], None] = unheard) -> str:
    """sha256 (hex) over the names and contents of all files of a folder."""
    return (await describe_folder(folder, heard=heard)).address


async def describe_folder(folder: Path, *, heard: Callable[[], None] = unheard) -> FolderManifest:
    """The manifest that a folder would be stored with.

    Raises:
        ValueError: the folder holds a file named like our manifest, or is none.
    """

    async def describe(name: str) -> FileEntry:
        entry = await in_thread(_describe, folder / name, name)
        heard()
        return entry

    names = await asyncio.to_thread(_names, folder)
    return FolderManifest(files=tuple(await a_few_at_once(describe, names, most=AT_ONCE)))


async def upload_folder(
    store: ObjectStore, folder: Path, prefix: str, *, heard: Callable[[], None] = unheard
) -> FolderManifest:
    """Store every file of a folder under ``prefix/``, and the manifest last.

    ``heard`` is called as the work gets on.

    Raises:
        Unavailable: the store does not answer; what was written does not count.
    """
    manifest = await describe_folder(folder, heard=heard)

    async def upload(file: FileEntry) -> None:
        await store.upload(folder / file.name, _key(prefix, file.name), heard=heard)

    await a_few_at_once(upload, manifest.files, most=AT_ONCE)
    await store.put(_key(prefix, MANIFEST), msgspec.json.encode(manifest))
    return manifest


async def folder_exists(store: ObjectStore, prefix: str) -> bool:
    """Whether a whole folder is stored under ``prefix/``."""
    return await store.exists(_key(prefix, MANIFEST))


async def read_manifest(store: ObjectStore, prefix: str) -> FolderManifest:
    """The manifest of a stored folder.

    Raises:
        NotFound: no whole folder is stored there.
    """
    try:
        data = await store.get(_key(prefix, MANIFEST))
        return msgspec.json.decode(data, type=FolderManifest)
    except NotFound:
        raise NotFound(f"no whole folder under {prefix!r} in the store") from None
    except msgspec.DecodeError as error:
        raise Unavailable(f"the manifest of {prefix!r} in the store is damaged: {error}") from None


async def download_folder(
    store: ObjectStore, prefix: str, folder: Path, *, heard: Callable[[], None] = unheard
) -> FolderManifest:
    """Fetch a stored folder and check every file's size and sha256.

    Raises:
        NotFound: no whole folder is stored there.
        Unavailable: a file is missing or is not what the manifest says; or the store is away.
        Full: the disk has no room for it.
    """
    manifest = await read_manifest(store, prefix)

    async def download(file: FileEntry) -> None:
        await _fetch(store, _key(prefix, file.name), folder / file.name, file, heard)
        heard()

    await in_thread(require_room, folder, manifest.bytes, f"fetch {prefix!r} from the store")
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    await a_few_at_once(download, manifest.files, most=AT_ONCE)
    return manifest


async def cached_folder(
    store: ObjectStore,
    prefix: str,
    cache: Path,
    *,
    most_bytes: int = CACHE_BYTES,
    heard: Callable[[], None] = unheard,
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
        await _fetch_into_cache(store, prefix, target, heard)
        await in_thread(_evict, cache, most_bytes)
    return target


def known_sha256(folder: Path) -> dict[str, str]:
    """sha256 (hex) of the files of a cached folder by name; empty for any other folder."""
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=FolderManifest)
    except FileNotFoundError:
        return {}
    return {file.name: file.sha256 for file in manifest.files}


async def _fetch_into_cache(
    store: ObjectStore, prefix: str, target: Path, heard: Callable[[], None]
) -> None:
    incoming = _hidden(target.parent)
    try:
        manifest = await download_folder(store, prefix, incoming, heard=heard)
        await in_thread((incoming / MANIFEST).write_bytes, msgspec.json.encode(manifest))
        await in_thread(_settle, incoming, target)
    finally:
        await in_thread(shutil.rmtree, incoming, ignore_errors=True)


async def _fetch(
    store: ObjectStore, key: str, path: Path, expected: FileEntry, heard: Callable[[], None]
) -> None:
    try:
        await store.download(key, path, heard=heard)
    except NotFound:
        raise Unavailable(f"{key!r} is in a manifest of the store, but missing") from None
    found = await in_thread(_describe, path, expected.name)
    if found != expected:
        raise Unavailable(
            f"{key!r} is damaged in the store or on its way: {found.bytes} bytes with sha256"
            f" {found.sha256}, its manifest says {expected.bytes} with {expected.sha256}"
        )


def _key(prefix: str, name: str) -> str:
    return f"{prefix.rstrip('/')}/{name}"


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    if MANIFEST in names:
        raise ValueError(f"{folder} holds a file named {MANIFEST}, which is the store's own")
    return names


def _describe(path: Path, name: str) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(name=name, bytes=file.tell(), sha256=digest)


# --- The cache on disk: a folder's modification time says when it was last asked for ------------


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
