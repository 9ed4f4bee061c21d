"""The inferencer's parent: fetch the model, have the child generate images, and store them.

The parent loads no torch and knows the store; the child sees folders only.
"""

from __future__ import annotations

import random
from pathlib import Path

from msgspec.structs import replace

from services.inferencer.child_client import run_order
from services.inferencer.html_report import with_report
from services.inferencer.order import GenerationOrder, ImageRequest, Provenance
from services.inferencer.sample_rows import generate_row, sample_requests
from shared.child.parent import Standby
from shared.child.records import AnyRecord, Drawn, ImageFailed, Phase, Progress
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
from shared.monitoring.child import show_card
from shared.ports import ObjectStore
from shared.request import AddedLora, Inference
from shared.scratch import scratch_folder
from shared.storage.artifacts import upload_drawn
from shared.storage.cache import cached_folder
from shared.storage.manifest import LORA
from shared.worker.order import Order

CHILD = "services.inferencer.generation.child"
IMAGES, LAST_SAMPLES = "the images: ", "the last samples: "
ROW_MISSING = "the last samples are missing: "
SAMPLE_MISSING = "one of the last samples is missing: "
SEEDS = 2**32
"""Random seeds are below this."""


class InferencerWork:
    """Generates images with a trained or a named model, by one child that outlives the job."""

    queue = INFERENCER_RESULTS
    concurrency = 1
    started: type[Started] = GenerationStarted
    progressed: type[Progressed] = GenerationProgressed
    interrupted: type[Interruption] = GenerationInterrupted
    graceful = False

    def __init__(self, store: ObjectStore, standby: Standby, *, scratch: Path, cache: Path) -> None:
        """``cache`` keeps models between jobs; ``scratch`` holds one job's images at a time.

        ``standby`` keeps the child, which may generate samples between the results.
        """
        self._store = store
        self._scratch = scratch
        self._cache = cache
        self._standby = standby

    def stage_of(self, message: AnyMessage) -> Stage | None:
        return "generation" if isinstance(message, CheckpointFinal | ModelStaged) else None

    async def prepare(self) -> str:
        """Start the child unless it is running; returns the GPU's name."""
        child = await self._standby.ready()
        show_card(child.uuid)
        return child.gpu

    async def perform(self, order: Order) -> ImagesGenerated:
        """Generate all images and the last row; only the idle child is left afterwards."""
        async with scratch_folder(self._scratch, order.name) as folder:
            return await self._perform(order, folder)

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
        generation = GenerationOrder(
            model=str(model),
            requests=tuple(image_request(each) for each in finished.inference),
            clip_skip=finished.clip_skip,
            loras=loras_of(finished),
            provenance=provenance(finished),
            out=str(folder),
        )
        images, warnings = (
            await self._generate_images(order, generation) if generation.requests else ([], ())
        )
        row = finished.row if isinstance(finished, CheckpointFinal) else None
        samples, row_warnings = await self._generate_last_row(order, row, generation)
        generated = ImagesGenerated(
            **order.stamp(),
            images=tuple(images),
            samples=samples,
            warnings=(*(f"{IMAGES}{each}" for each in warnings), *row_warnings),
        )
        return await with_report(self._store, order, generated, folder)

    async def _generate_images(
        self, order: Order, generation: GenerationOrder
    ) -> tuple[list[DrawnImage], tuple[str, ...]]:
        """Store each image as soon as it is there; all in the requests' order, and warnings."""
        requests = [
            request for request in generation.requests for _ in range(request.inference.num_outputs)
        ]
        images: dict[int, DrawnImage] = {}

        async def on_record(record: AnyRecord) -> None:
            order.keepalive()
            match record:
                case Phase(name=name):
                    order.progress(phase=name)
                case Progress(numbers=numbers):
                    order.progress(**numbers)
                case Drawn(index=index):
                    images[index] = await self._store_image(order, record, requests[index])
                case ImageFailed(index=index, seed=seed, reason=reason):
                    images[index] = _image(None, requests[index], seed, error=reason)

        warnings = await run_order(self._standby, generation, on_record)
        return [images[index] for index in range(len(requests))], warnings

    async def _generate_last_row(
        self, order: Order, row: SampleRow | None, generation: GenerationOrder
    ) -> tuple[tuple[DrawnSample, ...], tuple[str, ...]]:
        """The finished model's samples, and warnings for missing ones: they fail no job."""
        if row is None:
            return (), ()
        order.progress(phase="drawing the last samples")
        generation = replace(generation, requests=sample_requests(row))
        try:
            generated = await generate_row(
                self._standby, self._store, order.job, row, generation, keepalive=order.keepalive
            )
        except Unavailable:
            raise
        except (Refused, Passing) as error:
            return (), (f"{ROW_MISSING}{error}",)
        missing = (f"{SAMPLE_MISSING}{reason}" for reason in generated.missing)
        of_rows = (f"{LAST_SAMPLES}{each}" for each in generated.warnings)
        return generated.samples, (*missing, *of_rows)

    async def _store_image(self, order: Order, drawn: Drawn, request: ImageRequest) -> DrawnImage:
        path, thumbnail = Path(drawn.path), Path(drawn.thumbnail)
        key = f"jobs/{order.job}/generation/{order.grant.attempt}/{path.name}"
        artifact, beside = await upload_drawn(
            self._store, path, thumbnail, key, "image", keepalive=order.keepalive
        )
        return replace(_image(artifact, request, drawn.seed), thumbnail=beside)


def _image(
    artifact: Artifact | None, request: ImageRequest, seed: int, *, error: str | None = None
) -> DrawnImage:
    inference = request.inference
    return DrawnImage(
        artifact=artifact,
        prompt=inference.prompt,
        negative_prompt=inference.negative_prompt,
        width=inference.width,
        height=inference.height,
        num_inference_steps=inference.num_inference_steps,
        guidance_scale=inference.guidance_scale,
        scheduler=inference.scheduler,
        seed=seed,
        passback=inference.passback,
        error=error,
    )


def loras_of(finished: CheckpointFinal | ModelStaged) -> tuple[AddedLora, ...]:
    """The LoRAs in the model's folder."""
    if isinstance(finished, ModelStaged):
        return finished.loras
    if not finished.lora_base:
        return ()
    return (AddedLora(file=LORA, name=finished.checkpoint.name.removesuffix(".safetensors")),)


def provenance(finished: CheckpointFinal | ModelStaged) -> Provenance:
    """What the images' PNGs say of the model."""
    if isinstance(finished, ModelStaged):
        return Provenance(job=finished.job, model=finished.name, sha256=finished.sha256)
    return Provenance(
        job=finished.job,
        step=finished.summary.get("steps"),
        model=finished.checkpoint.name,
        sha256=finished.checkpoint.sha256,
    )


def image_request(inference: Inference) -> ImageRequest:
    """An entry with its seed: the given one, or a random one."""
    is_open = inference.seed is None or inference.seed == -1
    seed = random.SystemRandom().randrange(SEEDS) if is_open else inference.seed
    return ImageRequest(inference=inference, seed=seed or 0)
