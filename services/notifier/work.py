"""The notifier's claimed work: checks the user's bucket and publishes a job's artifacts there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from services.notifier.bucket import check, publish
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
from shared.scratch import scratch_folder
from shared.service_process import closing
from shared.storage.retrying import STORE_HEARTBEATS, RetryingStore
from shared.worker.order import Order

OpenBucket = Callable[[S3Config], ObjectStore]
"""Opens the user's bucket; keys are below its ``objectPath``. Raises Refused."""


class NotifierWork:
    """Checks the bucket at ``bucket.due``, and publishes results.

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
        """``heartbeat`` in seconds; an unavailable bucket is waited for, for some heartbeats."""
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
        """Check the bucket, or copy and link every artifact of the requesting fact."""
        bucket = self._open_bucket(self._unseal(order))
        if isinstance(order.message, BucketDue):
            async with closing(bucket):
                return BucketChecked(**order.stamp(), warning=await check(bucket, order.job))
        return await self._publish(order, bucket)

    async def _publish(self, order: Order, bucket: ObjectStore) -> ArtifactsPublished:
        retrying = RetryingStore(bucket, deadline=STORE_HEARTBEATS * self._heartbeat)
        artifacts = [*artifacts_of(order.message), *order.grant.samples]
        async with closing(bucket), scratch_folder(self._scratch, order.name) as scratch:
            urls = await publish(
                self._store, retrying, job=order.job, artifacts=artifacts,
                deletable=deletable(order.message), scratch=scratch,
                keepalive=lambda files: order.progress(phase="publishing", files=files),
            )  # fmt: skip
        return ArtifactsPublished(**order.stamp(), urls=urls)

    def _unseal(self, order: Order) -> S3Config:
        if order.grant.s3 is None:
            raise Refused("the job has no s3Config any more")
        return keys.unseal(self._key, order.grant.s3, order.job)

    async def close(self) -> None:
        """Nothing to close between orders."""


def artifacts_of(message: AnyMessage) -> list[Artifact]:
    """The artifacts of a fact that are published to the user's bucket."""
    match message:
        case CheckpointFinal(checkpoint=last, checkpoints=earlier, records=records):
            return [last, *(each.artifact for each in earlier), *records, *_last_report(message)]
        case ImagesGenerated(images=images, html_report=report):
            drawn = [image.artifact for image in images if image.artifact]
            return [*drawn, report] if report else drawn
    return []


def _last_report(final: CheckpointFinal) -> list[Artifact]:
    """The report, unless one with images follows: the bucket has one of the name."""
    follows = bool(final.inference) or final.row is not None
    return [final.html_report] if final.html_report and not follows else []


def deletable(message: AnyMessage) -> list[Artifact]:
    """Those of them that users may delete while their job goes on."""
    if isinstance(message, CheckpointFinal):
        return [each.artifact for each in message.checkpoints]
    return []
