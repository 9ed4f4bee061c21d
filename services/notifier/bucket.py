"""The user's bucket: artifacts are copied there and linked from there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from shared.errors import EveryDreamError, Unavailable
from shared.messaging.messages import Artifact
from shared.ports import ObjectStore

CHECK = "everydream-write-check"
"""Name of the object of one byte."""
CHECK_SECONDS = 20.0
UNTOLD = "whether the bucket takes the results could not be told before the training: "

LINK_SECONDS = 7 * 24 * 3600
"""The longest that a presigned link can last."""

log = structlog.get_logger()


async def check(theirs: ObjectStore, job: str) -> str | None:
    """Write one byte and remove it; None if that works, else why it cannot be told whether.

    Raises:
        Refused: the bucket will take nothing from us; says why.
    """
    key = f"{job}/{CHECK}"
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await theirs.put(key, b"1")
            await _remove(theirs, key)
    except TimeoutError:
        return f"{UNTOLD}it did not answer in {CHECK_SECONDS:g} s"
    except Unavailable as error:
        return f"{UNTOLD}{error}"
    return None


async def _remove(theirs: ObjectStore, key: str) -> None:
    """Keys that may write need not be ones that may delete."""
    try:
        await theirs.delete(key)
    except EveryDreamError as error:
        log.info("check_object_stays", key=key, reason=str(error))


async def publish(
    ours: ObjectStore,
    theirs: ObjectStore,
    *,
    job: str,
    artifacts: Sequence[Artifact],
    scratch: Path,
    keepalive: Callable[[int], None],
) -> dict[str, str]:
    """Copy each artifact to ``<job>/<name>`` and link it; keys are the same when repeated.

    ``keepalive`` is called as the bytes go, with how many files are published. Returns the
    presigned URL in their store by the key in ours.
    """
    urls: dict[str, str] = {}

    def alive() -> None:
        keepalive(len(urls))

    for artifact in artifacts:
        file = scratch / "artifact"
        await ours.download(artifact.key, file, keepalive=alive)
        key = f"{job}/{artifact.name}"
        await theirs.upload(file, key, keepalive=alive)
        urls[artifact.key] = await theirs.link(key, seconds=LINK_SECONDS)
        alive()
    await _remove(theirs, f"{job}/{CHECK}")  # stays where the store was away when it was tried
    return urls
