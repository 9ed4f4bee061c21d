"""Snapshots from the child's disk to the store, and what to draw from them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import structlog

from services.trainer.order import SNAPSHOTS, TrainingOrder
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
from shared.storage.snapshots import Snapshot, snapshot_prefix, standing
from shared.worker.order import Order

CAPTIONS_DRAWN = 4
"""Captions that take the place of sample prompts where a request has none."""
LOOK_SECONDS = 1.0
"""Between two looks whether a snapshot still stands."""

log = structlog.get_logger()


def prompts_of(train: Train, pictures: Sequence[Picture], seed: int) -> tuple[str, ...]:
    """What to draw: the request's prompts, or up to four different captions of the dataset."""
    if train.sample_prompts:
        return tuple(train.sample_prompts)
    captions = sorted({picture.caption for picture in pictures} - {""})
    count = min(CAPTIONS_DRAWN, len(captions))
    return tuple(random_of(seed, "sample prompts").sample(captions, count))


class SnapshotUploads:
    """Uploads one job's snapshots beside the training, and says when each may be drawn.

    While one stands in the store, a folder of its step stands in the child's ``out``.
    """

    def __init__(
        self, store: ObjectStore, order: Order, asked: TrainingOrder, prompts: tuple[str, ...]
    ) -> None:
        self._store = store
        self._order = order
        self._asked = asked
        self._prompts = prompts
        self._folder = Path(asked.out) / SNAPSHOTS
        self._standing: list[Snapshot] = []
        self._waiting: asyncio.Queue[Saved] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Go on with what an earlier attempt left; call it before the child begins.

        Whether that attempt has said so is not known, so it is said again: drawn twice a row is
        the same.

        Raises:
            Unavailable: the store does not answer.
        """
        for snapshot in await standing(self._store, self._order.job):
            (self._folder / str(snapshot.step)).mkdir(parents=True, exist_ok=True)
            self._standing.append(snapshot)
            await self._say(snapshot)
        self._task = asyncio.create_task(self._run())

    def row(self, step: int, epoch: int) -> SampleRow | None:
        """The row at a step; None: there are no prompts."""
        if not self._prompts:
            return None
        return SampleRow(
            step=step,
            epoch=epoch,
            prompts=self._prompts,
            seed=self._asked.seed,
            resolution=self._asked.train.resolution,
        )

    def add(self, saved: Saved) -> None:
        """Upload this when its turn comes; raises what went wrong with an earlier one."""
        self._check()
        self._waiting.put_nowait(saved)

    async def finished(self) -> None:
        """Wait until all are stored. Raises what went wrong with one of them."""
        waiting = asyncio.create_task(self._waiting.join())
        running = [self._task] if self._task else []
        await asyncio.wait((waiting, *running), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        self._check()

    async def cancel(self) -> None:
        """Stop what is under way; rows that were not said are lost."""
        if self._task:
            self._task.cancel()
            await asyncio.wait((self._task,))

    def _check(self) -> None:
        if self._task and self._task.done():
            self._task.result()

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    saved = await self._waiting.get()
            except TimeoutError:
                await self._look()
            else:
                await self._store_snapshot(saved)
                self._waiting.task_done()
                await self._look()

    async def _store_snapshot(self, saved: Saved) -> None:
        """Its local folder stays, empty, as the sign that it stands."""
        folder = Path(saved.path)
        prefix = snapshot_prefix(
            self._order.job, self._order.grant.attempt, step=saved.step, epoch=saved.epoch
        )
        store = RetryingStore(self._store)  # without a deadline: training goes on meanwhile
        await upload_folder(store, folder, prefix, keepalive=self._order.keepalive)
        await in_thread(_empty, folder)
        snapshot = Snapshot(prefix=prefix, step=saved.step, epoch=saved.epoch)
        self._standing.append(snapshot)
        await self._say(snapshot, command=saved.command)

    async def _say(self, snapshot: Snapshot, *, command: int = 0) -> None:
        row = self.row(snapshot.step, snapshot.epoch)
        staged = self._order.message
        assert isinstance(staged, DatasetStaged)  # noqa: S101 - what training is asked for by
        if row is None:
            return
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

    async def _look(self) -> None:
        """Remove the signs of those that were drawn or passed over."""
        for snapshot in list(self._standing):
            if await self._stands(snapshot):
                continue
            self._standing.remove(snapshot)
            await in_thread(shutil.rmtree, self._folder / str(snapshot.step), ignore_errors=True)

    async def _stands(self, snapshot: Snapshot) -> bool:
        """Also while the store does not answer."""
        try:
            return await folder_exists(self._store, snapshot.prefix)
        except Unavailable:
            return True


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
