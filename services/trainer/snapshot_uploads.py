"""Upload snapshots, and publish which rows of samples to draw from them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import structlog

from services.trainer.order import SNAPSHOTS, TrainingOrder
from services.trainer.upload_queue import UploadQueue
from shared.child.records import Saved
from shared.concurrency import in_thread
from shared.dataset.manifest import Picture
from shared.dataset.plan import random_of
from shared.errors import Unavailable
from shared.messaging.messages import CheckpointSampled, DatasetStaged, SampleRow
from shared.ports import ObjectStore
from shared.request import Train
from shared.storage.folders import folder_exists, upload_folder
from shared.storage.retrying import RetryingStore
from shared.storage.snapshots import Snapshot, snapshot_prefix, waiting_snapshots
from shared.worker.order import Order

CAPTION_PROMPTS = 4
"""Captions used as sample prompts where a request has none."""
POLL_SECONDS = 1.0
"""Between two checks whether a snapshot is still in the store."""

log = structlog.get_logger()


def prompts_of(train: Train, pictures: Sequence[Picture], seed: int) -> tuple[str, ...]:
    """The prompts of the sample rows: the request's, or up to four captions of the dataset."""
    if train.sample_prompts:
        return tuple(train.sample_prompts)
    captions = sorted({picture.caption for picture in pictures} - {""})
    count = min(CAPTION_PROMPTS, len(captions))
    return tuple(random_of(seed, "sample prompts").sample(captions, count))


class SnapshotUploads:
    """Uploads one job's snapshots beside the training, and publishes which may be drawn.

    While one waits in the store to be drawn, a folder of its step is in the child's ``out``.
    """

    def __init__(
        self,
        store: ObjectStore,
        order: Order,
        training_order: TrainingOrder,
        prompts: tuple[str, ...],
    ) -> None:
        self._store = store
        self._order = order
        self._training_order = training_order
        self._prompts = prompts
        self._folder = Path(training_order.out) / SNAPSHOTS
        self._waiting: list[Snapshot] = []
        self.queue = UploadQueue(self._upload, afterwards=self._clean_up, every=POLL_SECONDS)

    async def republish(self) -> None:
        """Publish again what an earlier attempt left in the store; before the child begins.

        Whether that attempt has published it is not known; drawn twice a row is the same.

        Raises:
            Unavailable: the store does not answer.
        """
        for snapshot in await waiting_snapshots(self._store, self._order.job):
            (self._folder / str(snapshot.step)).mkdir(parents=True, exist_ok=True)
            self._waiting.append(snapshot)
            await self._publish(snapshot)

    def row(self, step: int, epoch: int) -> SampleRow | None:
        """The row at a step; None: there are no prompts."""
        if not self._prompts:
            return None
        return SampleRow(
            step=step,
            epoch=epoch,
            prompts=self._prompts,
            seed=self._training_order.seed,
            resolution=self._training_order.train.resolution,
        )

    async def _upload(self, saved: Saved) -> None:
        """Its local folder stays, empty, as long as the snapshot waits in the store."""
        folder = Path(saved.path)
        prefix = snapshot_prefix(
            self._order.job, self._order.grant.attempt, step=saved.step, epoch=saved.epoch
        )
        store = RetryingStore(self._store)  # without a deadline: training goes on meanwhile
        await upload_folder(store, folder, prefix, keepalive=self._order.keepalive, immutable=True)
        await in_thread(_empty, folder)
        snapshot = Snapshot(prefix=prefix, step=saved.step, epoch=saved.epoch)
        self._waiting.append(snapshot)
        await self._publish(snapshot, command=saved.command)

    async def _publish(self, snapshot: Snapshot, *, command: int = 0) -> None:
        row = self.row(snapshot.step, snapshot.epoch)
        if row is None:
            return
        staged = self._order.message
        assert isinstance(staged, DatasetStaged)  # noqa: S101 - what requests training
        fact = CheckpointSampled(
            **self._order.stamp(),
            snapshot=snapshot.prefix,
            base_model=staged.base_model,
            clip_skip=staged.train.clip_skip,
            row=row,
            command=command,
        )
        await self._order.publish(fact)
        log.info("snapshot_stored", job=self._order.job, step=snapshot.step)

    async def _clean_up(self) -> None:
        """Remove the local folders of snapshots that were drawn or skipped."""
        for snapshot in list(self._waiting):
            if await self._is_stored(snapshot):
                continue
            self._waiting.remove(snapshot)
            await in_thread(shutil.rmtree, self._folder / str(snapshot.step), ignore_errors=True)

    async def _is_stored(self, snapshot: Snapshot) -> bool:
        """True also while the store does not answer."""
        try:
            return await folder_exists(self._store, snapshot.prefix)
        except Unavailable:
            return True


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
