"""The parent's side of drawing: an order to the lasting child, and its images into the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from services.inferencer.order import DrawingOrder
from shared.child.parent import ChildDied, OnRecord, Standby
from shared.child.records import Done
from shared.concurrency import in_thread
from shared.errors import Passing
from shared.messaging.messages import Artifact
from shared.ports import ObjectStore
from shared.storage.folders import sha256_of


async def draw(standby: Standby, asked: DrawingOrder, hear: OnRecord) -> None:
    """Have the child draw; it is kept only if it had its last word and awaits another order.

    Raises:
        Refused, Passing: the child gave up, or died.
        Exception: what ``hear`` raises.
    """
    try:
        child = await standby.ready()
        await child.order(asked)
        last = await child.last_word(hear)
    except ChildDied as error:
        raise Passing(str(error)) from error
    except BaseException:
        await standby.close()
        raise
    if not isinstance(last, Done):
        raise last.error()


async def store_image(
    store: ObjectStore,
    path: Path,
    key: str,
    kind: Literal["image", "sample"],
    *,
    keepalive: Callable[[], None],
) -> Artifact:
    """Put a drawn file into the store under a key whose last part is its name."""
    await store.upload(path, key, keepalive=keepalive)
    size = (await in_thread(path.stat)).st_size
    sha256 = await sha256_of(path)
    return Artifact(name=key.rpartition("/")[2], kind=kind, key=key, bytes=size, sha256=sha256)
