"""Uploads in the object store: parts in order, and their list, written last."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from shared.concurrency import in_thread
from shared.errors import Refused
from shared.ports import ObjectStore, UploadPart, no_keepalive

ARCHIVE_BYTES = 10 << 30
"""Largest dataset zip, uploaded or downloaded."""
UPLOADS = "uploads/"
"""Prefix of the keys of all uploads."""


class PartList(Struct, frozen=True, kw_only=True):
    """The parts of an upload."""

    sha256: str
    """Of the whole upload."""
    parts: tuple[UploadPart, ...]
    """In order."""


def upload_prefix(upload: str) -> str:
    """Prefix of one upload's keys."""
    return f"{UPLOADS}{upload}/"


def list_key(upload: str) -> str:
    """Key of the list of its parts; it stands for the upload."""
    return f"{upload_prefix(upload)}parts.json"


async def write_list(
    store: ObjectStore, upload: str, sha256: str, parts: Iterable[UploadPart]
) -> None:
    """Write the list, which makes the upload complete. Raises Unavailable."""
    whole = PartList(sha256=sha256, parts=tuple(parts))
    await store.put(list_key(upload), msgspec.json.encode(whole))


async def sha256_of_parts(store: ObjectStore, parts: Iterable[UploadPart]) -> str:
    """Hex digest of all parts together. Raises NotFound or Unavailable."""
    digest = hashlib.sha256()
    async for data in _contents(store, parts):
        await in_thread(digest.update, data)
    return digest.hexdigest()


async def download_upload(
    store: ObjectStore, key: str, path: Path, *, keepalive: Callable[[], None] = no_keepalive
) -> None:
    """Download an upload's parts into one file; ``key`` is that of its list.

    Calls ``keepalive`` as it progresses.

    Raises:
        NotFound: it is not, or no longer, in the store.
        Refused: its content is not what was uploaded.
        Unavailable: the store does not answer.
    """
    whole = msgspec.json.decode(await store.get(key), type=PartList)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        async for data in _contents(store, whole.parts):
            await in_thread(digest.update, data)
            await in_thread(file.write, data)
            keepalive()
    if digest.hexdigest() != whole.sha256:
        raise Refused("the upload is damaged in the store; upload it again")


async def _contents(store: ObjectStore, parts: Iterable[UploadPart]) -> AsyncIterator[bytes]:
    for part in parts:
        yield await store.get(part.key)
