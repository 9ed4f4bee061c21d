"""The inferencer's parent: it fetches the model, has a lasting child draw, and stores the images.

It loads no torch. The child sees folders; only the parent knows the store.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from msgspec.structs import replace

from services.inferencer.child_client import draw, store_image
from services.inferencer.order import About, DrawingOrder, ImageRequest
from services.inferencer.sample_rows import draw_row, entries_of
from shared.child.parent import Standby
from shared.child.records import AnyRecord, Drawn, ImageFailed, Phase, Progress
from shared.concurrency import in_thread
from shared.errors import Passing, Refused, Unavailable
from shared.messaging.messages import (
    AnyMessage,
    Artifact,
    CheckpointFinal,
    DrawnImage,
    DrawnSample,
    GenerationInterrupted,
    GenerationProgressed,
    GenerationStarted,
    ImagesGenerated,
    Interruption,
    ModelStaged,
    Progressed,
    SampleRow,
    Stage,
    Started,
)
from shared.messaging.topology import INFERENCER_RESULTS
from shared.ports import ObjectStore
from shared.request import Inference
from shared.storage.cache import cached_folder
from shared.worker.order import Order

CHILD = "services.inferencer.generation.child"
LOST = "the last samples are missing: "
LOST_ONE = "one of the last samples is missing: "
SEEDS = 2**32
"""A drawn seed is below this."""


class InferencerWork:
    """Draws with a trained or a named model, by one child that outlives the job."""

    queue = INFERENCER_RESULTS
    concurrency = 1
    started: type[Started] = GenerationStarted
    progressed: type[Progressed] = GenerationProgressed
    interrupted: type[Interruption] = GenerationInterrupted
    graceful = False

    def __init__(self, store: ObjectStore, standby: Standby, *, scratch: Path, cache: Path) -> None:
        """``cache`` holds models for a while; ``scratch`` one job's images at a time.

        ``standby`` keeps the child, which may draw samples between the results.
        """
        self._store = store
        self._scratch = scratch
        self._cache = cache
        self._standby = standby

    def stage_of(self, message: AnyMessage) -> Stage | None:
        return "generation" if isinstance(message, CheckpointFinal | ModelStaged) else None

    async def prepare(self) -> str:
        """Start the child unless it lives; names the GPU."""
        return (await self._standby.ready()).gpu

    async def perform(self, order: Order) -> ImagesGenerated:
        """Draw every entry and the last row; only the idle child is left when it is over."""
        folder = self._scratch / f"{order.job}-generation-{order.grant.attempt}"
        try:
            await in_thread(folder.mkdir, parents=True, exist_ok=True)
            return await self._perform(order, folder)
        finally:
            await in_thread(shutil.rmtree, folder, ignore_errors=True)

    async def close(self) -> None:
        """End the child."""
        await self._standby.close()

    async def _perform(self, order: Order, folder: Path) -> ImagesGenerated:
        finished = order.message
        assert isinstance(finished, CheckpointFinal | ModelStaged)  # noqa: S101 - see stage_of
        order.progress(phase="fetching the finished model")
        model = await cached_folder(
            self._store, finished.model, self._cache, keepalive=order.keepalive
        )
        asked = DrawingOrder(
            model=str(model),
            entries=tuple(entry_of(each) for each in finished.inference),
            clip_skip=finished.clip_skip,
            about=about(finished),
            out=str(folder),
        )
        images = await self._draw_images(order, asked) if asked.entries else []
        row = finished.row if isinstance(finished, CheckpointFinal) else None
        samples, warnings = await self._draw_last_row(order, row, asked)
        return ImagesGenerated(
            **order.stamp(), images=tuple(images), samples=samples, warnings=warnings
        )

    async def _draw_images(self, order: Order, asked: DrawingOrder) -> list[DrawnImage]:
        """Store each image as it comes; they are in the order of the request at the end."""
        wanted = [entry for entry in asked.entries for _ in range(entry.inference.num_outputs)]
        images: dict[int, DrawnImage] = {}

        async def hear(record: AnyRecord) -> None:
            order.keepalive()
            match record:
                case Phase(name=name):
                    order.progress(phase=name)
                case Progress(numbers=numbers):
                    order.progress(**numbers)
                case Drawn(index=index):
                    images[index] = await self._store_image(order, record, wanted[index])
                case ImageFailed(index=index):
                    images[index] = _spoiled_image(record, wanted[index])

        await draw(self._standby, asked, hear)
        return [images[index] for index in range(len(wanted))]

    async def _draw_last_row(
        self, order: Order, row: SampleRow | None, asked: DrawingOrder
    ) -> tuple[tuple[DrawnSample, ...], tuple[str, ...]]:
        """The samples of the finished model; without them, why. No job fails for want of them."""
        if row is None:
            return (), ()
        order.progress(phase="drawing the last samples")
        asked = replace(asked, entries=entries_of(row))
        try:
            samples, missing = await draw_row(
                self._standby, self._store, order.job, row, asked, keepalive=order.keepalive
            )
        except Unavailable:
            raise
        except (Refused, Passing) as error:
            return (), (f"{LOST}{error}",)
        return samples, tuple(f"{LOST_ONE}{reason}" for reason in missing)

    async def _store_image(self, order: Order, drawn: Drawn, entry: ImageRequest) -> DrawnImage:
        path = Path(drawn.path)
        key = f"jobs/{order.job}/generation/{order.grant.attempt}/{path.name}"
        artifact = await store_image(self._store, path, key, "image", keepalive=order.keepalive)
        return _image(artifact, entry.inference, drawn.seed)


def _spoiled_image(spoiled: ImageFailed, entry: ImageRequest) -> DrawnImage:
    return _image(None, entry.inference, spoiled.seed, error=spoiled.reason)


def _image(
    artifact: Artifact | None, asked: Inference, seed: int, *, error: str | None = None
) -> DrawnImage:
    return DrawnImage(
        artifact=artifact,
        prompt=asked.prompt,
        negative_prompt=asked.negative_prompt,
        width=asked.width,
        height=asked.height,
        num_inference_steps=asked.num_inference_steps,
        guidance_scale=asked.guidance_scale,
        scheduler=asked.scheduler,
        seed=seed,
        passback=asked.passback,
        error=error,
    )


def about(finished: CheckpointFinal | ModelStaged) -> About:
    """What the images say of the model that the fact brings."""
    if isinstance(finished, ModelStaged):
        return About(job=finished.job, model=finished.name, sha256=finished.sha256)
    return About(
        job=finished.job,
        step=finished.summary.get("steps"),
        model=finished.checkpoint.name,
        sha256=finished.checkpoint.sha256,
    )


def entry_of(asked: Inference) -> ImageRequest:
    """An entry with its seed: the one asked for, or one drawn for it."""
    is_open = asked.seed is None or asked.seed == -1
    seed = random.SystemRandom().randrange(SEEDS) if is_open else asked.seed
    return ImageRequest(inference=asked, seed=seed or 0)
