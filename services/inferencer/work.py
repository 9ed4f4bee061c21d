"""The inferencer's parent: it fetches the model, has a lasting child draw, and stores the images.

It loads no torch. The child sees folders; only the parent knows the store.
"""

from __future__ import annotations

import random
import shutil
from contextlib import aclosing
from pathlib import Path

from services.inferencer.order import DrawingOrder, Entry
from shared.child import (
    Child,
    ChildDied,
    Done,
    Drawn,
    GivenUp,
    Phase,
    Progress,
    Standby,
)
from shared.concurrency import in_thread
from shared.errors import Passing, Refused
from shared.folders import cached_folder, sha256_of
from shared.messages import (
    INFERENCER_RESULTS,
    AnyMessage,
    Artifact,
    CheckpointFinal,
    DrawnImage,
    GenerationInterrupted,
    GenerationProgressed,
    GenerationStarted,
    ImagesGenerated,
    Interruption,
    Progressed,
    Stage,
    Started,
)
from shared.ports import ObjectStore
from shared.request import Inference
from shared.runtime import Order

CHILD = "services.inferencer.child"
SEEDS = 2**32
"""A drawn seed is below this."""


class InferencerWork:
    """Draws a job's results with one child that outlives the job."""

    queue = INFERENCER_RESULTS
    places = 1
    started: type[Started] = GenerationStarted
    progressed: type[Progressed] = GenerationProgressed
    interrupted: type[Interruption] = GenerationInterrupted
    stops_gently = False

    def __init__(self, store: ObjectStore, *, scratch: Path, cache: Path) -> None:
        """``cache`` holds trained models for a while; ``scratch`` one job's images at a time."""
        self._store = store
        self._scratch = scratch
        self._cache = cache
        self._standby = Standby(CHILD)

    def stage_of(self, message: AnyMessage) -> Stage | None:
        return "generation" if isinstance(message, CheckpointFinal) else None

    async def prepare(self) -> str:
        """Start the child unless it lives; names the GPU."""
        return (await self._standby.ready()).gpu

    async def perform(self, order: Order) -> ImagesGenerated:
        """Draw every entry; nothing but the idle child is left when it is over."""
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
        trained = order.message
        assert isinstance(trained, CheckpointFinal)  # noqa: S101 - see stage_of
        order.progress(phase="fetching the trained model")
        model = await cached_folder(self._store, trained.model, self._cache, heard=order.heard)
        asked = DrawingOrder(
            model=str(model),
            entries=tuple(entry_of(each) for each in trained.inference),
            clip_skip=trained.clip_skip,
            out=str(folder),
        )
        images = await self._draw(order, asked) if asked.entries else []
        return ImagesGenerated(**order.stamp(), images=tuple(images))

    async def _draw(self, order: Order, asked: DrawingOrder) -> list[DrawnImage]:
        """Have the child draw; it is kept only if it had its last word and awaits another order."""
        child = await self._standby.ready()
        try:
            await child.order(asked)
            images: list[DrawnImage] = []
            last = await self._listen(child, order, asked, images)
        except ChildDied as error:
            raise Passing(str(error)) from error
        except BaseException:
            await self._standby.close()
            raise
        if isinstance(last, GivenUp):
            raise (Refused if last.refused else Passing)(last.reason)
        return images

    async def _listen(
        self, child: Child, order: Order, asked: DrawingOrder, images: list[DrawnImage]
    ) -> Done | GivenUp:
        """Store each image as it comes, until the child's last word on the order.

        Raises:
            ChildDied: it ended without one.
        """
        wanted = [entry for entry in asked.entries for _ in range(entry.inference.num_outputs)]
        async with aclosing(child.records()) as records:
            async for record in records:
                order.heard()
                match record:
                    case Phase(name=name):
                        order.progress(phase=name)
                    case Progress(numbers=numbers):
                        order.progress(**numbers)
                    case Drawn():
                        images.append(await self._store_image(order, record, wanted[record.index]))
                    case Done() | GivenUp():
                        return record
        raise AssertionError("records end by an error only")

    async def _store_image(self, order: Order, drawn: Drawn, entry: Entry) -> DrawnImage:
        path, asked = Path(drawn.path), entry.inference
        key = f"jobs/{order.job}/generation/{order.grant.attempt}/{path.name}"
        await self._store.upload(path, key, heard=order.heard)
        size = (await in_thread(path.stat)).st_size
        sha256 = await sha256_of(path)
        artifact = Artifact(name=path.name, kind="image", key=key, bytes=size, sha256=sha256)
        return DrawnImage(
            artifact=artifact,
            prompt=asked.prompt,
            negative_prompt=asked.negative_prompt,
            width=asked.width,
            height=asked.height,
            num_inference_steps=asked.num_inference_steps,
            guidance_scale=asked.guidance_scale,
            scheduler=asked.scheduler,
            seed=drawn.seed,
            passback=asked.passback,
        )


def entry_of(asked: Inference) -> Entry:
    """An entry with its seed: the one asked for, or one drawn for it."""
    is_open = asked.seed is None or asked.seed == -1
    seed = random.SystemRandom().randrange(SEEDS) if is_open else asked.seed
    return Entry(inference=asked, seed=seed or 0)
