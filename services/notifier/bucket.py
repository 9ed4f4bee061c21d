"""The user's bucket: artifacts are copied there and linked from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from shared.messages import Artifact
from shared.ports import ObjectStore

LINK_SECONDS = 7 * 24 * 3600
"""The longest that a presigned link can last."""


async def publish(
    ours: ObjectStore,
    theirs: ObjectStore,
    *,
    job: str,
    artifacts: Sequence[Artifact],
    scratch: Path,
    heard: Callable[[int], None],
) -> dict[str, str]:
    """Copy each artifact to ``<job>/<name>`` and link it; keys are the same when repeated.

    ``heard`` is called as the bytes go, with how many files are published. Returns the key in our
    store to the presigned URL in theirs.
    """
    urls: dict[str, str] = {}

    def alive() -> None:
        heard(len(urls))

    for artifact in artifacts:
        file = scratch / "artifact"
        await ours.download(artifact.key, file, heard=alive)
        key = f"{job}/{artifact.name}"
        await theirs.upload(file, key, heard=alive)
        urls[artifact.key] = await theirs.link(key, seconds=LINK_SECONDS)
        alive()
    return urls
