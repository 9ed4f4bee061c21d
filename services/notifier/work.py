"""The notifier's claimed work: publishing a job's artifacts to the user's own bucket."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from services.notifier import bucket
from shared import keys
from shared.errors import Refused
from shared.messaging.messages import (
    AnyMessage,
    Artifact,
    ArtifactsPublished,
    BucketChecked,
    BucketDue,
    CheckpointFinal,
    ImagesGenerated,
    PublicationInterrupted,
    PublicationProgressed,
    PublicationStarted,
    Stage,
)
from shared.messaging.topology import NOTIFIER_PUBLISH
from shared.ports import ObjectStore
from shared.request import S3Config
from shared.service_process import closing
from shared.storage.retrying import STORE_HEARTBEATS, RetryingStore
from shared.worker.order import Order

OpenBucket = Callable[[S3Config], ObjectStore]
"""Opens the user's bucket; keys are below its ``objectPath``. Raises Refused."""


class NotifierWork:
    """Tries the bucket at ``bucket.due``, and publishes what is done.

    At ``checkpoint.final`` the model, at ``images.generated`` images and samples.
    """

    queue = NOTIFIER_PUBLISH
    started = PublicationStarted
    progressed = PublicationProgressed
    interrupted = PublicationInterrupted
    graceful = False

    def __init__(
        self,
        store: ObjectStore,
        open_bucket: OpenBucket,
        *,
        key: str,
        scratch: Path,
        heartbeat: float,
        concurrency: int = 4,
    ) -> None:
        """``heartbeat``, in seconds: a bucket that is away is waited for, for some of them."""
        self.concurrency = concurrency
        self._store = store
        self._open_bucket = open_bucket
        self._key = key
        self._scratch = scratch
        self._heartbeat = heartbeat

    def stage_of(self, message: AnyMessage) -> Stage | None:
        match message:
            case BucketDue():
                return "bucket_check"
            case CheckpointFinal():
                return "model_publication"
            case ImagesGenerated():
                return "image_publication"
        return None

    async def prepare(self) -> str:
        return ""

    async def perform(self, order: Order) -> ArtifactsPublished | BucketChecked:
        """Try the bucket, or copy and link every artifact of the fact that asks."""
        theirs = self._open_bucket(self._unsealed(order))
        if isinstance(order.message, BucketDue):
            async with closing(theirs):
                return BucketChecked(**order.stamp(), warning=await bucket.check(theirs, order.job))
        return await self._publish(order, theirs)

    async def _publish(self, order: Order, theirs: ObjectStore) -> ArtifactsPublished:
        scratch = self._scratch / f"{order.job}-{order.stage}-{order.grant.attempt}"
        retrying = RetryingStore(theirs, deadline=STORE_HEARTBEATS * self._heartbeat)
        try:
            scratch.mkdir(parents=True, exist_ok=True)
            artifacts = [*artifacts_of(order.message), *order.grant.samples]
            urls = await bucket.publish(
                self._store, retrying, job=order.job, artifacts=artifacts, scratch=scratch,
                keepalive=lambda files: order.progress(phase="publishing", files=files),
            )  # fmt: skip
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            await theirs.close()
        return ArtifactsPublished(**order.stamp(), urls=urls)

    def _unsealed(self, order: Order) -> S3Config:
        if order.grant.s3 is None:
            raise Refused("the job has no s3Config any more")
        return keys.unseal(self._key, order.grant.s3, order.job)

    async def close(self) -> None:
        """Nothing lasts between orders."""


def artifacts_of(message: AnyMessage) -> list[Artifact]:
    """What a fact brings that belongs into the user's bucket."""
    match message:
        case CheckpointFinal(checkpoint=last, checkpoints=earlier, records=records):
            return [last, *(each.artifact for each in earlier), *records]
        case ImagesGenerated(images=images):
            return [image.artifact for image in images if image.artifact]
    return []
