"""Copies artifacts to the user's bucket and links them from there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import structlog

from shared.errors import EveryDreamError, NotFound, Passing, Unavailable, reason_of
from shared.messaging.messages import Artifact
from shared.ports import ObjectStore

CHECK_OBJECT = "everydream-write-check"
"""Name of a test object of one byte."""
CHECK_SECONDS = 20.0
UNCHECKED = "whether the bucket takes the results could not be told before the training: "

LEAST_RATE = 64 << 10
"""Bytes per second that a bucket must take, averaged over a publication, which may begin slowly."""
SLOW_SECONDS = 3600.0

LINK_SECONDS = 7 * 24 * 3600
"""The longest lifetime of a presigned link."""

log = structlog.get_logger()


async def check(bucket: ObjectStore, job: str) -> str | None:
    """Write a test object and delete it; returns why that could not be checked, or None.

    Raises:
        Refused: the bucket does not accept writes; says why.
    """
    key = f"{job}/{CHECK_OBJECT}"
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await bucket.put(key, b"1")
            await _remove(bucket, key)
    except TimeoutError:
        return f"{UNCHECKED}it did not answer in {CHECK_SECONDS:g} s"
    except Unavailable as error:
        return f"{UNCHECKED}{error}"
    return None


async def _remove(bucket: ObjectStore, key: str) -> None:
    """Delete the test object; keys that may write need not be allowed to delete."""
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await bucket.delete(key)
    except (EveryDreamError, TimeoutError) as error:
        log.info("check_object_not_deleted", key=key, reason=reason_of(error))


async def publish(
    store: ObjectStore,
    bucket: ObjectStore,
    *,
    job: str,
    artifacts: Sequence[Artifact],
    deletable: Collection[Artifact] = (),
    scratch: Path,
    keepalive: Callable[[int], None],
) -> dict[str, str]:
    """Copy each artifact to ``<job>/<name>`` and link it; repeated, it writes the same keys.

    ``keepalive`` is called as it progresses, with the number of files published. Returns the
    presigned URLs in the user's bucket by the keys in our store. What of ``deletable`` is no longer
    in our store was deleted by its user, and is left out.

    Raises:
        Passing: the bucket takes less than :data:`LEAST_RATE`.
    """
    urls: dict[str, str] = {}

    def report() -> None:
        keepalive(len(urls))

    total = sum(artifact.bytes for artifact in artifacts)
    seconds = SLOW_SECONDS + total / LEAST_RATE
    try:
        async with asyncio.timeout(seconds):
            for artifact in artifacts:
                file = scratch / "artifact"
                try:
                    await store.download(artifact.key, file, keepalive=report)
                except NotFound:
                    if artifact not in deletable:
                        raise
                    log.info("deleted_checkpoint_left_out", job=job, key=artifact.key)
                    continue
                key = f"{job}/{artifact.name}"
                await bucket.upload(file, key, keepalive=report)
                urls[artifact.key] = await bucket.link(key, seconds=LINK_SECONDS)
                report()
            # Left over if the bucket did not answer when it was checked.
            await _remove(bucket, f"{job}/{CHECK_OBJECT}")
    except TimeoutError:
        raise Passing(
            f"the bucket has not taken the results ({total} bytes) within {seconds:.0f} s"
        ) from None
    return urls
