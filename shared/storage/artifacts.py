"""Upload a file as an artifact: under its key, with its size and sha256."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from shared.concurrency import in_thread
from shared.messaging.messages import Artifact
from shared.ports import ObjectStore
from shared.storage.folders import sha256_of


async def upload_artifact(
    store: ObjectStore,
    path: Path,
    key: str,
    kind: Literal["checkpoint", "image", "sample", "metrics", "tensorboard"],
    *,
    keepalive: Callable[[], None],
    immutable: bool = False,
) -> Artifact:
    """Upload a file; the artifact's name is the last part of its key. Raises Unavailable."""
    await store.upload(path, key, keepalive=keepalive, immutable=immutable)
    size = (await in_thread(path.stat)).st_size
    sha256 = await sha256_of(path)
    return Artifact(name=key.rpartition("/")[2], kind=kind, key=key, bytes=size, sha256=sha256)
