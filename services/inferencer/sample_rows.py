"""Generate rows of samples: one image for each prompt, from a snapshot or the finished model.

A sample depends on its prompt, its seed and the weights alone. So one column of the rows shows what
was learned in between, and a row generated again is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import structlog

from services.inferencer.child_client import run_order
from services.inferencer.order import GenerationOrder, ImageRequest, Provenance
from shared.child.parent import Standby
from shared.child.records import AnyRecord, Drawn, ImageFailed
from shared.concurrency import in_thread
from shared.errors import NotFound, Passing, Refused, Unavailable
from shared.messaging.messages import CheckpointSampled, DrawnSample, SampleRow, SamplesGenerated
from shared.messaging.topology import INFERENCER_SAMPLES
from shared.ports import Bus, ObjectStore
from shared.request import Inference
from shared.scratch import scratch_folder
from shared.storage.artifacts import upload_drawn
from shared.storage.cache import cached_folder
from shared.storage.folders import download_folder
from shared.storage.large_fields import load_fields, store_message
from shared.storage.snapshots import sample_key, waiting_snapshots
from shared.worker.order import BestEffortTask

LIVE_SAMPLES = "samples during the training: "
STEPS = 30
GUIDANCE = 7.5

log = structlog.get_logger()


class GeneratedRow(NamedTuple):
    """What became of a row."""

    samples: tuple[DrawnSample, ...]
    """In the order of their prompts."""
    missing: tuple[str, ...]
    """The reasons why others are missing."""
    warnings: tuple[str, ...]


class SampleRows:
    """Generates the rows of trainings in progress; skips one when its job has a newer one."""

    queue = INFERENCER_SAMPLES

    def __init__(
        self, bus: Bus, store: ObjectStore, standby: Standby, *, scratch: Path, cache: Path
    ) -> None:
        """``standby`` keeps the child, shared with the results; ``cache`` holds base models."""
        self._bus = bus
        self._store = store
        self._standby = standby
        self._scratch = scratch
        self._cache = cache

    async def run(self, best_effort_task: BestEffortTask) -> None:
        """Generate a row, or skip it if it is superseded; remove its snapshot.

        Raises:
            Unavailable: the store or the broker is away; the snapshot stays.
        """
        sampled = best_effort_task.message
        if not isinstance(sampled, CheckpointSampled):
            return
        if await self._is_superseded(sampled):
            log.info(
                "sample_row_skipped",
                job=sampled.job,
                step=sampled.row.step,
                reason="a newer one waits",
            )
        else:
            await self._generate_or_skip(sampled, best_effort_task)
        await self._store.delete(f"{sampled.snapshot}/")

    async def _is_superseded(self, sampled: CheckpointSampled) -> bool:
        steps = [snapshot.step for snapshot in await waiting_snapshots(self._store, sampled.job)]
        return max(steps, default=0) > sampled.row.step

    async def _generate_or_skip(
        self, sampled: CheckpointSampled, best_effort_task: BestEffortTask
    ) -> None:
        job, step = sampled.job, sampled.row.step
        try:
            async with scratch_folder(self._scratch, f"{job}-samples-{step}") as folder:
                await in_thread((folder / "out").mkdir)
                await self._generate(sampled, folder, best_effort_task.keepalive)
        except NotFound:
            log.info("sample_row_skipped", job=job, step=step, reason="it is gone")
        except Unavailable:
            raise
        except (Refused, Passing) as error:
            log.warning("sample_row_skipped", job=job, step=step, reason=str(error))

    async def _generate(
        self, sampled: CheckpointSampled, folder: Path, keepalive: Callable[[], None]
    ) -> None:
        begun = monotonic()
        sampled = await load_fields(self._store, sampled)
        job, row = sampled.job, sampled.row
        snapshot = folder / "weights"
        await download_folder(
            self._store, sampled.snapshot, snapshot, keepalive=keepalive, immutable=True
        )
        base = await cached_folder(
            self._store, sampled.base_model, self._cache, keepalive=keepalive
        )
        order = GenerationOrder(
            model=str(base),
            snapshot=str(snapshot),
            requests=sample_requests(row),
            clip_skip=sampled.clip_skip,
            provenance=Provenance(job=job, step=row.step),
            out=str(folder / "out"),
        )
        samples, missing, warnings = await generate_row(
            self._standby, self._store, job, row, order, keepalive=keepalive
        )
        for reason in missing:
            log.warning("sample_missing", job=job, step=row.step, reason=reason)
        generated = SamplesGenerated(
            job=job, samples=samples, warnings=tuple(f"{LIVE_SAMPLES}{each}" for each in warnings)
        )
        await self._bus.publish(await store_message(self._store, generated))
        log.info("sample_row_drawn", job=job, step=row.step, seconds=round(monotonic() - begun, 3))


async def generate_row(
    standby: Standby,
    store: ObjectStore,
    job: str,
    row: SampleRow,
    order: GenerationOrder,
    *,
    keepalive: Callable[[], None],
) -> GeneratedRow:
    """Generate a row and store it; the order's requests are the row's :func:`sample_requests`.

    Raises:
        Refused, Passing: see :func:`services.inferencer.child_client.run_order`.
    """
    samples: list[DrawnSample] = []
    missing: list[str] = []

    async def on_record(record: AnyRecord) -> None:
        keepalive()
        if isinstance(record, Drawn):
            samples.append(await _store_sample(store, job, row, record, keepalive))
        elif isinstance(record, ImageFailed):
            missing.append(record.reason)

    warnings = await run_order(standby, order, on_record)
    in_order = tuple(sorted(samples, key=lambda sample: sample.index))
    return GeneratedRow(in_order, tuple(missing), warnings)


def sample_requests(row: SampleRow) -> tuple[ImageRequest, ...]:
    """One square image for each prompt, with its own seed, the same in all rows."""
    return tuple(
        ImageRequest(
            inference=Inference(
                prompt=prompt,
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                scheduler="DDIM",
            ),
            seed=row.seed + index,
            side=row.resolution,
        )
        for index, prompt in enumerate(row.prompts)
    )


async def _store_sample(
    store: ObjectStore, job: str, row: SampleRow, drawn: Drawn, keepalive: Callable[[], None]
) -> DrawnSample:
    key = sample_key(job, step=row.step, index=drawn.index)
    artifact, thumbnail = await upload_drawn(
        store, Path(drawn.path), Path(drawn.thumbnail), key, "sample", keepalive=keepalive
    )
    return DrawnSample(
        artifact=artifact,
        thumbnail=thumbnail,
        step=row.step,
        epoch=row.epoch,
        index=drawn.index,
        prompt=row.prompts[drawn.index],
        seed=drawn.seed,
    )
