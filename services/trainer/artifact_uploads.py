"""Upload checkpoints, resume points and the trained model, and publish what is stored."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from services.trainer.upload_queue import UploadQueue
from shared.child.records import Saved
from shared.concurrency import in_thread
from shared.messaging.messages import Artifact, CheckpointSaved, ResumePointSaved, SavedCheckpoint
from shared.ports import ObjectStore
from shared.storage.artifacts import upload_artifact
from shared.storage.folders import describe_folder, upload_folder
from shared.storage.manifest import LORA, SINGLE_FILE, FileEntry
from shared.storage.models import shared_files
from shared.storage.retrying import RetryingStore
from shared.worker.order import Order

CHECKPOINTS = "checkpoints.json"
"""In a resume point: the checkpoints saved before it."""
RESUME_POINTS_KEPT = 2

log = structlog.get_logger()


class ArtifactUploads:
    """One job's uploads: what the child saves through :attr:`queue`, the results directly."""

    def __init__(
        self, store: ObjectStore, order: Order, *, resumed: Path | None, keep: int | None = None
    ) -> None:
        """``resumed`` is the local folder of the resume point that the training continues from.

        ``keep`` is how many intermediate checkpoints stay in the store; None: all.
        """
        # Without a deadline: training goes on meanwhile. Once the child is done, only the store's
        # progress is a sign of life, and the runtime cancels work that shows none.
        self._store = RetryingStore(store)
        self._keep = keep
        self._order = order
        self._prefix = f"jobs/{order.job}/training/{order.grant.attempt}"
        self._checkpoints = _earlier_checkpoints(resumed)
        self._resume_points = [order.grant.resume_point] if order.grant.resume_point else []
        self._newest_resume_point = -1
        self.queue = UploadQueue(self._upload)

    @property
    def checkpoints(self) -> tuple[SavedCheckpoint, ...]:
        """The intermediate ones in the store, oldest first."""
        return tuple(self._checkpoints)

    def add(self, saved: Saved) -> None:
        """Upload this in its turn; of resume points that wait, only the newest."""
        if saved.kind == "resume_point":
            self._newest_resume_point = saved.step
        self.queue.add(saved)

    async def checkpoint(self, path: Path) -> Artifact:
        """Store one checkpoint file, and the optimizers beside it if there are any."""
        folder = f"{self._prefix}/checkpoints"
        artifact = await self._file(path, folder, "checkpoint")
        if (optimizers := path.with_suffix(".optimizer")).is_dir():
            await self._folder(optimizers, f"{folder}/{optimizers.name}")
        return artifact

    async def record(self, path: Path, kind: Literal["metrics", "tensorboard"]) -> Artifact:
        """Store the metrics."""
        return await self._file(path, f"{self._prefix}/records", kind)

    async def _file(
        self, path: Path, folder: str, kind: Literal["checkpoint", "metrics", "tensorboard"]
    ) -> Artifact:
        key, keepalive = f"{folder}/{path.name}", self._order.keepalive
        # A checkpoint has several gigabytes; the child writes it once.
        return await upload_artifact(
            self._store, path, key, kind, keepalive=keepalive, immutable=kind == "checkpoint"
        )

    async def model(self, folder: Path, checkpoint: Artifact) -> str:
        """Store the diffusers folder; its prefix. The checkpoint's weights are stored once."""
        weights = FileEntry(
            name=SINGLE_FILE,
            bytes=checkpoint.bytes,
            sha256=checkpoint.sha256,
            key=checkpoint.key,
        )
        stored = (weights,) if checkpoint.name.endswith(".safetensors") else ()
        return await self._folder(folder, f"{self._prefix}/model", stored)

    async def lora(self, folder: Path, checkpoint: Artifact, base: str) -> str:
        """Store a LoRA's model: the base model's files where they are, and what it adds to them.

        ``base`` is the prefix of the model that it was trained on.
        """
        own = {LORA, *(file.name for file in (await describe_folder(folder)).files)}
        of_base = [each for each in await shared_files(self._store, base) if each.name not in own]
        weights = FileEntry(
            name=LORA, bytes=checkpoint.bytes, sha256=checkpoint.sha256, key=checkpoint.key
        )
        return await self._folder(folder, f"{self._prefix}/model", [*of_base, weights])

    async def _upload(self, saved: Saved) -> None:
        if saved.kind == "checkpoint":
            await self._store_checkpoint(saved)
        else:
            await self._store_resume_point(saved)

    async def _store_checkpoint(self, saved: Saved) -> None:
        path = Path(saved.path)
        artifact = await self.checkpoint(path)
        checkpoint = SavedCheckpoint(
            artifact=artifact,
            step=saved.step,
            epoch=saved.epoch,
            validation_loss=saved.validation_loss,
        )
        self._checkpoints, replaced = keep_newest_and_best(
            [*self._checkpoints, checkpoint], self._keep
        )
        fact = CheckpointSaved(
            **self._order.stamp(),
            artifact=artifact,
            step=saved.step,
            epoch=saved.epoch,
            validation_loss=saved.validation_loss,
            replaced=tuple(each.artifact.key for each in replaced),
            command=saved.command,
        )
        await self._order.publish(fact)  # before the deletion: no link leads to a deleted file
        for each in replaced:
            await self._delete(each.artifact.key)
        await in_thread(path.unlink)
        await in_thread(shutil.rmtree, path.with_suffix(".optimizer"), ignore_errors=True)

    async def _store_resume_point(self, saved: Saved) -> None:
        """Store it unless a newer one waits; keep the newest two."""
        folder = Path(saved.path)
        if saved.step == self._newest_resume_point:
            (folder / CHECKPOINTS).write_bytes(msgspec.json.encode(self._checkpoints))
            prefix = await self._folder(folder, f"{self._prefix}/resume/{saved.step}")
            fact = ResumePointSaved(
                **self._order.stamp(), prefix=prefix, step=saved.step, epoch=saved.epoch
            )
            await self._order.publish(fact)
            log.info("resume_point_saved", job=self._order.job, step=saved.step)
            await self._delete_older(prefix)
        await in_thread(shutil.rmtree, folder)

    async def _delete_older(self, newest: str) -> None:
        self._resume_points.append(newest)
        while len(self._resume_points) > RESUME_POINTS_KEPT:
            await self._store.delete(f"{self._resume_points.pop(0)}/")

    async def _delete(self, key: str) -> None:
        """Delete a checkpoint, and the optimizers beside it if there are any."""
        stem = key.removesuffix(Path(key).suffix)
        await self._store.delete(f"{stem}.")

    async def _folder(self, folder: Path, prefix: str, stored: Iterable[FileEntry] = ()) -> str:
        keepalive = self._order.keepalive
        await upload_folder(
            self._store, folder, prefix, stored=stored, keepalive=keepalive, immutable=True
        )
        return prefix


def keep_newest_and_best(
    checkpoints: list[SavedCheckpoint], keep: int | None
) -> tuple[list[SavedCheckpoint], list[SavedCheckpoint]]:
    """The checkpoints to keep (the newest, and the best by validation) and the others."""
    if keep is None:
        return checkpoints, []
    stay = {each.artifact.key for each in checkpoints[-keep:]}
    if (best := best_of(checkpoints)) is not None:
        stay.add(best.artifact.key)
    return (
        [each for each in checkpoints if each.artifact.key in stay],
        [each for each in checkpoints if each.artifact.key not in stay],
    )


def best_of(checkpoints: Iterable[SavedCheckpoint]) -> SavedCheckpoint | None:
    """The one with the lowest validation loss, of equals the first; None: none was measured."""
    measured = [each for each in checkpoints if each.validation_loss is not None]
    return min(measured, key=lambda each: each.validation_loss or 0.0, default=None)


def _earlier_checkpoints(resumed: Path | None) -> list[SavedCheckpoint]:
    """Those that earlier attempts saved."""
    if resumed is None:
        return []
    return msgspec.json.decode((resumed / CHECKPOINTS).read_bytes(), type=list[SavedCheckpoint])
