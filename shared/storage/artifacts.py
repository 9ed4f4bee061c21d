"""Upload files of a job as artifacts: under their keys, with size and sha256."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Literal

from shared.concurrency import in_thread
from shared.messaging.messages import Artifact
from shared.ports import ObjectStore
from shared.storage.folders import sha256_of


async def upload_artifact(
    store: ObjectStore,
    path: Path,
    key: str,
    kind: Literal["checkpoint", "image", "sample", "metrics", "tensorboard", "report"],
    *,
    keepalive: Callable[[], None],
    immutable: bool = False,
) -> Artifact:
    """Upload a file; the artifact's name is the last part of its key. Raises Unavailable."""
    await store.upload(path, key, keepalive=keepalive, immutable=immutable)
    size = (await in_thread(path.stat)).st_size
    sha256 = await sha256_of(path)
    return Artifact(name=key.rpartition("/")[2], kind=kind, key=key, bytes=size, sha256=sha256)


async def upload_drawn(
    store: ObjectStore,
    path: Path,
    thumbnail: Path,
    key: str,
    kind: Literal["image", "sample"],
    *,
    keepalive: Callable[[], None],
) -> tuple[Artifact, str]:
    """Upload an image, and its thumbnail beside it; returns the thumbnail's key too.

    The thumbnail comes first: an image that is there has one. Raises Unavailable.
    """
    beside = str(PurePosixPath(key).with_suffix(thumbnail.suffix))
    await store.upload(thumbnail, beside, keepalive=keepalive)
    return await upload_artifact(store, path, key, kind, keepalive=keepalive), beside
