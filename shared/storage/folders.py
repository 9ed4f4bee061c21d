"""Folders in an object store: every file, and last a manifest.

Without its manifest a folder does not exist. The manifest holds each file's name, size and sha256,
so that a partial or mixed copy is detected before it is used.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from shared.concurrency import gather_limited, in_thread
from shared.disk import require_room
from shared.errors import NotFound, Unavailable
from shared.ports import ObjectStore, no_keepalive
from shared.storage.manifest import MANIFEST, FileEntry, FolderManifest

CONCURRENT_FILES = 8
"""Files transferred at a time."""


async def sha256_of(path: Path) -> str:
    """Hex digest of a file, computed in a thread."""
    return (await in_thread(_describe, path, path.name)).sha256


async def content_address(folder: Path, *, keepalive: Callable[[], None] = no_keepalive) -> str:
    """sha256 (hex) over the names and contents of all files of a folder."""
    return (await describe_folder(folder, keepalive=keepalive)).address


async def describe_folder(
    folder: Path, *, keepalive: Callable[[], None] = no_keepalive
) -> FolderManifest:
    """The manifest that a local folder would be stored with.

    Raises:
        ValueError: not a folder, or it holds a file named like our manifest.
    """

    async def describe(name: str) -> FileEntry:
        entry = await in_thread(_describe, folder / name, name)
        keepalive()
        return entry

    names = await asyncio.to_thread(_names, folder)
    return FolderManifest(
        files=tuple(await gather_limited(describe, names, limit=CONCURRENT_FILES))
    )


async def upload_folder(
    store: ObjectStore,
    folder: Path,
    prefix: str,
    *,
    stored: Iterable[FileEntry] = (),
    keepalive: Callable[[], None] = no_keepalive,
    immutable: bool = False,
) -> FolderManifest:
    """Store every file of a folder under ``prefix/``, and the manifest last.

    ``stored`` are files that belong to the folder, but lie in the store already, each under its
    ``key``. Calls ``keepalive`` as it progresses. ``immutable``: no file of it is changed later.

    Raises:
        Unavailable: the store does not answer; the folder does not exist then.
    """
    local = (await describe_folder(folder, keepalive=keepalive)).files
    files = sorted((*local, *stored), key=lambda file: file.name)
    manifest = FolderManifest(files=tuple(files))

    async def upload(file: FileEntry) -> None:
        key = key_of(prefix, file)
        await store.upload(folder / file.name, key, keepalive=keepalive, immutable=immutable)

    await gather_limited(upload, local, limit=CONCURRENT_FILES)
    await store.put(_manifest_key(prefix), msgspec.json.encode(manifest))
    return manifest


async def folder_exists(store: ObjectStore, prefix: str) -> bool:
    """Whether a complete folder is stored under ``prefix/``."""
    return await store.exists(_manifest_key(prefix))


async def read_manifest(store: ObjectStore, prefix: str) -> FolderManifest:
    """The manifest of a stored folder.

    Raises:
        NotFound: no complete folder is stored there.
    """
    try:
        data = await store.get(_manifest_key(prefix))
        return msgspec.json.decode(data, type=FolderManifest)
    except NotFound:
        raise NotFound(f"no whole folder under {prefix!r} in the store") from None
    except msgspec.DecodeError as error:
        raise Unavailable(f"the manifest of {prefix!r} in the store is damaged: {error}") from None


async def download_folder(
    store: ObjectStore,
    prefix: str,
    folder: Path,
    *,
    keepalive: Callable[[], None] = no_keepalive,
    immutable: bool = False,
) -> FolderManifest:
    """Download a stored folder and check every file's size and sha256.

    ``immutable``: no file of it is changed later.

    Raises:
        NotFound: no complete folder is stored there.
        Unavailable: a file is missing or differs from the manifest; or the store does not answer.
        Full: the disk has no room for it.
    """
    manifest = await read_manifest(store, prefix)

    async def download(file: FileEntry) -> None:
        key, path = key_of(prefix, file), folder / file.name
        await _download_checked(store, key, path, file, keepalive, immutable=immutable)
        keepalive()

    await in_thread(require_room, folder, manifest.bytes, f"fetch {prefix!r} from the store")
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    await gather_limited(download, manifest.files, limit=CONCURRENT_FILES)
    return manifest


async def _download_checked(
    store: ObjectStore,
    key: str,
    path: Path,
    expected: FileEntry,
    keepalive: Callable[[], None],
    *,
    immutable: bool,
) -> None:
    try:
        await store.download(key, path, keepalive=keepalive, immutable=immutable)
    except NotFound:
        raise Unavailable(f"{key!r} is in a manifest of the store, but missing") from None
    found = await in_thread(_describe, path, expected.name)
    if (found.bytes, found.sha256) != (expected.bytes, expected.sha256):
        raise Unavailable(
            f"{key!r} is damaged in the store or on its way: {found.bytes} bytes with sha256"
            f" {found.sha256}, its manifest says {expected.bytes} with {expected.sha256}"
        )


def key_of(prefix: str, file: FileEntry) -> str:
    """Where a file of a folder lies in the store."""
    return file.key or f"{prefix.rstrip('/')}/{file.name}"


def _manifest_key(prefix: str) -> str:
    return f"{prefix.rstrip('/')}/{MANIFEST}"


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
