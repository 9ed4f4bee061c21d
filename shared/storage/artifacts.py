"""Files that a job leaves: under their keys, with their sizes and sha256."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from shared.concurrency import in_thread
from shared.messaging.messages import Artifact
from shared.ports import ObjectStore
from shared.request import Train
from shared.storage.folders import sha256_of


def copies_of_weights(train: Train) -> int:
    """How often a finished model's weights are kept.

    A ``.safetensors`` checkpoint serves its folder, too; beside a ``.ckpt`` there is a folder with
    the same weights, because a pickle is never loaded from the store.
    """
    return 1 if train.checkpoint_format == "safetensors" else 2


async def upload_artifact(
    store: ObjectStore,
    path: Path,
    key: str,
    kind: Literal["checkpoint", "image", "sample", "metrics", "tensorboard"],
    *,
    keepalive: Callable[[], None],
) -> Artifact:
    """Upload a file; the artifact's name is the last part of its key. Raises Unavailable."""
    await store.upload(path, key, keepalive=keepalive)
    size = (await in_thread(path.stat)).st_size
    sha256 = await sha256_of(path)
    return Artifact(name=key.rpartition("/")[2], kind=kind, key=key, bytes=size, sha256=sha256)
