"""Uploads in the object store: parts in order, and a list of them that is written last."""

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
"""Of a dataset's zip, uploaded or downloaded."""
UPLOADS = "uploads/"
"""How the key of an upload's list begins, and of its parts."""


class PartList(Struct, frozen=True, kw_only=True):
    """What an upload is made of."""

    sha256: str
    """Of the whole."""
    parts: tuple[UploadPart, ...]
    """In order."""


def upload_prefix(upload: str) -> str:
    """Everything of one upload."""
    return f"{UPLOADS}{upload}/"


def list_key(upload: str) -> str:
    """Where the list of its parts is; it stands for the upload."""
    return f"{upload_prefix(upload)}parts.json"


async def write_list(
    store: ObjectStore, upload: str, sha256: str, parts: Iterable[UploadPart]
) -> None:
    """Make the upload one that can be fetched. Raises Unavailable."""
    whole = PartList(sha256=sha256, parts=tuple(parts))
    await store.put(list_key(upload), msgspec.json.encode(whole))


async def sha256_of_parts(store: ObjectStore, parts: Iterable[UploadPart]) -> str:
    """Hex digest of the whole. Raises NotFound or Unavailable."""
    digest = hashlib.sha256()
    async for data in _contents(store, parts):
        await in_thread(digest.update, data)
    return digest.hexdigest()


async def download_upload(
    store: ObjectStore, key: str, path: Path, *, keepalive: Callable[[], None] = no_keepalive
) -> None:
    """Put an upload together in a file; ``key`` is that of its list.

    Calls ``keepalive`` as it gets on.

    Raises:
        NotFound: it is not, or no longer, in the store.
        Refused: it is not what was uploaded.
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
