"""The trainer's parent process: fetch files, run the child, store what it saves.

It loads no torch. The child sees folders; only the parent knows the store.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import structlog
from msgspec.structs import replace

from services.trainer.artifact_uploads import ArtifactUploads, best_of
from services.trainer.html_report import with_report
from services.trainer.metrics_uploads import metrics_stored
from services.trainer.order import Commands, Outcome, TrainingOrder
from services.trainer.snapshot_uploads import SnapshotUploads, prompts_of
from shared.child.parent import Child, ChildDied, Standby
from shared.child.records import AnyRecord, Done, Phase, Progress, Saved, Stopped
from shared.concurrency import in_thread
from shared.dataset.manifest import Manifest
from shared.dataset.plan import job_seed
from shared.dataset.speed import DEVICE_KEY, ProbedDevice, Speed, speed_key
from shared.disk import require_room
from shared.errors import Interrupted, NotFound, Passing, Unavailable
from shared.messaging.messages import (
    AnyMessage,
    CheckpointFinal,
    DatasetStaged,
    Interruption,
    Progressed,
    SavedCheckpoint,
    Stage,
    Started,
    TrainingInterrupted,
    TrainingProgressed,
    TrainingStarted,
)
from shared.messaging.topology import TRAINER
from shared.monitoring.child import show_card, show_training, training_shown
from shared.ports import ObjectStore
from shared.scratch import scratch_folder
from shared.settings import ANY_DEVICE, DeviceSetting
from shared.storage.cache import cached_folder
from shared.storage.folders import download_folder, read_manifest
from shared.storage.manifest import copies_of_weights
from shared.storage.models import base_of
from shared.storage.snapshots import drawn_steps
from shared.worker.order import Order

log = structlog.get_logger()
CHILD = "services.trainer.training.child"
REMEMBERING_SECONDS = 5.0
MIN_STEPS = 100
"""The speed of a shorter training is not remembered."""


class TrainerWork:
    """Trains one job at a time, each in a child process of its own."""

    queue = TRAINER
    concurrency = 1
    started: type[Started] = TrainingStarted
    progressed: type[Progressed] = TrainingProgressed
    interrupted: type[Interruption] = TrainingInterrupted
    graceful = True

    def __init__(
        self,
        store: ObjectStore,
        *,
        scratch: Path,
        cache: Path,
        resume_every: float,
        device: DeviceSetting = ANY_DEVICE,
    ) -> None:
        """``cache`` holds base models between jobs; ``scratch`` holds one job's files at a time."""
        self._store = store
        self._scratch = scratch
        self._cache = cache
        self._resume_every = resume_every
        self._standby = Standby(CHILD, device=device)
        self._is_remembered = False
        self._said: set[str] = set()
        """Libraries that children cannot use: each is logged once, and not by each child."""

    def stage_of(self, message: AnyMessage) -> Stage | None:
        return "training" if isinstance(message, DatasetStaged) else None

    async def prepare(self) -> str:
        """Start the next job's child ahead, to have its imports done. Returns the GPU's name."""
        child = await self._standby.ready()
        await self._remember_device(child)
        show_card(child.uuid)
        for text in set(child.unusable) - self._said:
            log.warning("library_unusable", gpu=child.gpu, reason=text)
        self._said.update(child.unusable)
        return child.gpu

    async def perform(self, order: Order) -> CheckpointFinal:
        """Train; leave neither the child nor a file of the job behind."""
        async with scratch_folder(self._scratch, order.name) as folder:
            try:
                child = await self._standby.ready()
                training_order = await self._fetch(order, folder)
                if order.stopping.is_set():
                    raise Interrupted("stopped before training began")
                return await self._train(child, order, training_order)
            finally:
                await self.close()

    async def close(self) -> None:
        """End the child."""
        await self._standby.close()

    async def _fetch(self, order: Order, folder: Path) -> TrainingOrder:
        """Fetch what the child needs to the local disk."""
        staged = _staged(order)
        store, keepalive = self._store, order.keepalive
        order.progress(phase="fetching the dataset")
        await download_folder(store, staged.dataset, folder / "dataset", keepalive=keepalive)
        order.progress(phase="fetching the base model")
        base = await cached_folder(store, staged.base_model, self._cache, keepalive=keepalive)
        # Each about as large as the base.
        copies = copies_of_weights(staged.train)
        needed = copies * (await read_manifest(store, staged.base_model)).bytes
        await in_thread(require_room, folder, needed, "save the trained model later")
        resume = await self._fetch_resume_point(order, folder / "from")
        return TrainingOrder(
            job=order.job,
            train=staged.train,
            seed=job_seed(order.job, staged.train),
            dataset=str(folder / "dataset"),
            base=str(base),
            resume=str(resume) if resume else None,
            out=str(folder / "out"),
            sample_every=staged.train.sample_steps,
            sampled=tuple(await drawn_steps(store, order.job)),
            resume_every=self._resume_every,
        )

    async def _fetch_resume_point(self, order: Order, folder: Path) -> Path | None:
        """Its local folder; None: there is none, or no longer in the store."""
        if (point := order.grant.resume_point) is None:
            return None
        order.progress(phase="fetching the resume point")
        try:
            await download_folder(
                self._store, point, folder, keepalive=order.keepalive, immutable=True
            )
        except NotFound:
            log.warning("resume_point_missing", job=order.job, resume_point=point)
            return None
        log.info("resuming", job=order.job, resume_point=point)
        return folder

    async def _train(
        self, child: Child, order: Order, training_order: TrainingOrder
    ) -> CheckpointFinal:
        """Train, with snapshots for sample rows if there are prompts for them."""
        pictures = (await in_thread(Manifest.read, Path(training_order.dataset))).pictures
        prompts = prompts_of(training_order.train, pictures, training_order.seed)
        if not prompts:
            training_order = replace(training_order, sample_every=None)
        snapshots = SnapshotUploads(self._store, order, training_order, prompts)
        try:
            await snapshots.republish()
            async with metrics_stored(self._store, order, training_order):
                return await self._run_child(child, order, training_order, snapshots)
        finally:
            await snapshots.queue.cancel()

    async def _run_child(
        self, child: Child, order: Order, training_order: TrainingOrder, snapshots: SnapshotUploads
    ) -> CheckpointFinal:
        """Send the child its order, and handle its records until the last."""
        await child.order(training_order)
        uploads = ArtifactUploads(
            self._store,
            order,
            resumed=Path(training_order.resume) if training_order.resume else None,
            keep=training_order.train.keep_checkpoints,
        )
        forwarding = [
            asyncio.create_task(forward(order, child))
            for forward in (_forward_stop, _forward_commands)
        ]
        try:
            with training_shown():
                outcome = await _handle_records(child, order, uploads, snapshots)
            await self._remember_speed(order, child.gpu, outcome.steps)
            final = await self._store_outcome(order, outcome, uploads, snapshots)
            return await with_report(self._store, order, training_order, final, gpu=child.gpu)
        except (ChildDied, Passing) as error:
            await uploads.queue.finished()  # the next attempt continues from what was saved
            raise Passing(str(error)) from error
        finally:
            for task in forwarding:
                task.cancel()
            await uploads.queue.cancel()

    async def _store_outcome(
        self, order: Order, outcome: Outcome, uploads: ArtifactUploads, snapshots: SnapshotUploads
    ) -> CheckpointFinal:
        order.progress(phase="storing the trained model")
        staged = _staged(order)
        summary = msgspec.to_builtins(outcome)
        checkpoint = await uploads.checkpoint(Path(summary.pop("checkpoint")))
        folder, base = Path(summary.pop("model")), ""
        if staged.train.lora_shape is None:
            model = await uploads.model(folder, checkpoint)
        else:
            model = await uploads.lora(folder, checkpoint, staged.base_model)
            base = base_of(await read_manifest(self._store, model))
        path = summary.pop("merged")
        merged = [await uploads.checkpoint(Path(path))] if path else []
        metrics = await uploads.record(Path(summary.pop("metrics")), "metrics")
        events = await uploads.record(Path(summary.pop("tensorboard")), "tensorboard")
        last = outcome.validation.last.loss if outcome.validation else None
        checkpoints, last_is_best = mark_best(uploads.checkpoints, last)
        return CheckpointFinal(
            **order.stamp(),
            inference=staged.inference,
            row=snapshots.row(outcome.steps, outcome.epochs),
            clip_skip=staged.train.clip_skip,
            model=model,
            lora_base=base,
            checkpoint=checkpoint,
            checkpoints=checkpoints,
            records=(*merged, metrics, events),
            summary=summary if last is None else {**summary, "best": last_is_best},
        )

    async def _remember_device(self, child: Child) -> None:
        """Once, for the estimates of jobs before the first training on this device."""
        if self._is_remembered or not child.teraflops:
            return
        device = ProbedDevice(
            gpu=child.gpu, teraflops=child.teraflops, memory_bytes=child.memory_bytes
        )
        self._is_remembered = await self._remember(DEVICE_KEY, device)

    async def _remember_speed(self, order: Order, gpu: str, steps: int) -> None:
        """For the estimates of later jobs, which can do without it."""
        if (speed := speed_of(order, gpu)) is not None and steps >= MIN_STEPS:
            staged = _staged(order)
            whole = staged.lora_base or staged.base_model
            key = speed_key(gpu, whole, lora=staged.train.lora_rank is not None)
            await self._remember(key, speed)

    async def _remember(self, key: str, measured: Speed | ProbedDevice) -> bool:
        """Whether the store has taken it, soon: jobs can do without it."""
        try:
            async with asyncio.timeout(REMEMBERING_SECONDS):
                await self._store.put(key, msgspec.json.encode(measured))
        except (Unavailable, TimeoutError) as error:
            log.warning("speed_not_stored", key=key, reason=str(error) or "no answer in time")
            return False
        return True


def speed_of(order: Order, gpu: str) -> Speed | None:
    """The training speed by its last progress and its report; None: not known."""
    staged = _staged(order)
    steps, megapixels = staged.report.get("steps", 0), staged.report.get("megapixels", 0.0)
    steps_per_second = order.numbers.get("images_per_second", 0.0) / staged.train.batch_size
    rate = steps_per_second * megapixels / max(steps, 1)
    return Speed(gpu=gpu, megapixels_per_second=rate) if rate > 0.0 else None


def mark_best(
    checkpoints: tuple[SavedCheckpoint, ...], last: float | None
) -> tuple[tuple[SavedCheckpoint, ...], bool]:
    """The intermediate checkpoints with the best one marked, and whether the final one is better.

    ``last`` is the final one's validation loss; None: nothing was measured.
    """
    best = best_of(checkpoints)
    if last is None or best is None or (best.validation_loss or 0.0) > last:
        return checkpoints, last is not None
    return tuple(replace(each, best=each == best) for each in checkpoints), False


async def _handle_records(
    child: Child, order: Order, uploads: ArtifactUploads, snapshots: SnapshotUploads
) -> Outcome:
    """Publish progress and queue uploads as the child reports them.

    At the end no snapshot is waited for: the last row comes with the results.

    Raises:
        Interrupted: the child was stopped; what it saved is in the store.
        Refused, Passing: the child failed.
        ChildDied: it ended without a final record.
    """

    async def on_record(record: AnyRecord) -> None:
        order.keepalive()
        match record:
            case Phase(name=name):
                order.progress(phase=name)
            case Progress(numbers=numbers, memory_bytes=held):
                order.progress(**numbers)
                show_training(numbers, held)
            case Saved(kind="snapshot"):
                snapshots.queue.add(record)
            case Saved():
                uploads.add(record)

    last = await child.final_record(on_record)
    order.keepalive()
    match last:
        case Done(summary=summary):
            await snapshots.queue.cancel()
            await uploads.queue.finished()
            return msgspec.convert(summary, Outcome)
        case Stopped():
            await snapshots.queue.finished()
            await uploads.queue.finished()
    raise last.error()


async def _forward_stop(order: Order, child: Child) -> None:
    await order.stopping.wait()
    child.stop()


async def _forward_commands(order: Order, child: Child) -> None:
    """Send the child the user's commands whenever they change."""
    while True:
        await order.commands_changed.wait()
        order.commands_changed.clear()
        log.info("command_received", job=order.job, commands=order.commands)
        await child.order(Commands(commands=order.commands))


def _staged(order: Order) -> DatasetStaged:
    assert isinstance(order.message, DatasetStaged)  # noqa: S101 - see stage_of
    return order.message
