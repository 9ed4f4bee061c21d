"""Send orders to the long-lived child, and store the images that it writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from services.inferencer.order import GenerationOrder
from shared.child.parent import ChildDied, OnRecord, Standby
from shared.child.records import Done
from shared.concurrency import in_thread
from shared.errors import Passing
from shared.messaging.messages import Artifact
from shared.ports import ObjectStore
from shared.storage.folders import sha256_of


async def run_order(standby: Standby, order: GenerationOrder, on_record: OnRecord) -> None:
    """Have the child carry out an order; it is kept only if it ends with its final record.

    Raises:
        Refused, Passing: the order failed, or the child died.
        Exception: raised by ``on_record``.
    """
    try:
        child = await standby.ready()
        await child.order(order)
        last = await child.final_record(on_record)
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
    """Upload an image; the artifact's name is the last part of its key."""
    await store.upload(path, key, keepalive=keepalive)
    size = (await in_thread(path.stat)).st_size
    sha256 = await sha256_of(path)
    return Artifact(name=key.rpartition("/")[2], kind=kind, key=key, bytes=size, sha256=sha256)
