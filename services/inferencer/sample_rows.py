"""Rows of samples: every prompt drawn from a snapshot while training goes on, or at its end.

A sample depends on its prompt, its seed and the weights alone, so that one column shows what was
learned in between, and a row that is drawn again is the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import structlog

from services.inferencer.child_client import draw, store_image
from services.inferencer.order import About, DrawingOrder, ImageRequest
from shared.child.parent import Standby
from shared.child.records import AnyRecord, Drawn, ImageFailed
from shared.concurrency import in_thread
from shared.errors import NotFound, Passing, Refused, Unavailable
from shared.messaging.messages import CheckpointSampled, DrawnSample, SampleRow, SamplesGenerated
from shared.messaging.topology import INFERENCER_SAMPLES
from shared.ports import Bus, ObjectStore
from shared.request import Inference
from shared.storage.cache import cached_folder
from shared.storage.folders import download_folder
from shared.storage.snapshots import sample_key, standing
from shared.worker.order import BestEffortTask

STEPS = 30
GUIDANCE = 7.5

log = structlog.get_logger()


class SampleRows:
    """Draws the rows that trainings ask for on their way; a late one gives way to a newer."""

    queue = INFERENCER_SAMPLES

    def __init__(
        self, bus: Bus, store: ObjectStore, standby: Standby, *, scratch: Path, cache: Path
    ) -> None:
        """``standby`` is the child that draws the results too; ``cache`` holds base models."""
        self._bus = bus
        self._store = store
        self._standby = standby
        self._scratch = scratch
        self._cache = cache

    async def run(self, best_effort_task: BestEffortTask) -> None:
        """Draw a row and remove its snapshot; one that was passed over is removed undrawn.

        Raises:
            Unavailable: the store or the broker is away; the snapshot stands.
        """
        asked = best_effort_task.message
        if not isinstance(asked, CheckpointSampled):
            return
        if await self._is_overtaken(asked):
            log.info(
                "sample_row_skipped", job=asked.job, step=asked.row.step, reason="a newer one waits"
            )
        else:
            await self._draw_or_pass_over(asked, best_effort_task)
        await self._store.delete(f"{asked.snapshot}/")

    async def _is_overtaken(self, asked: CheckpointSampled) -> bool:
        steps = [snapshot.step for snapshot in await standing(self._store, asked.job)]
        return max(steps, default=0) > asked.row.step

    async def _draw_or_pass_over(
        self, asked: CheckpointSampled, best_effort_task: BestEffortTask
    ) -> None:
        folder = self._scratch / asked.snapshot.replace("/", "-")
        try:
            await in_thread((folder / "out").mkdir, parents=True, exist_ok=True)
            await self._draw(asked, folder, best_effort_task.keepalive)
        except NotFound:
            log.info("sample_row_skipped", job=asked.job, step=asked.row.step, reason="it is gone")
        except Unavailable:
            raise
        except (Refused, Passing) as error:
            log.warning("sample_row_skipped", job=asked.job, step=asked.row.step, reason=str(error))
        finally:
            await in_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _draw(
        self, asked: CheckpointSampled, folder: Path, keepalive: Callable[[], None]
    ) -> None:
        weights = folder / "weights"
        await download_folder(self._store, asked.snapshot, weights, keepalive=keepalive)
        base = await cached_folder(self._store, asked.base_model, self._cache, keepalive=keepalive)
        order = DrawingOrder(
            model=str(base),
            weights=str(weights),
            entries=entries_of(asked.row),
            clip_skip=asked.clip_skip,
            about=About(job=asked.job, step=asked.row.step),
            out=str(folder / "out"),
        )
        samples, missing = await draw_row(
            self._standby, self._store, asked.job, asked.row, order, keepalive=keepalive
        )
        for reason in missing:
            log.warning("sample_missing", job=asked.job, step=asked.row.step, reason=reason)
        await self._bus.publish(SamplesGenerated(job=asked.job, samples=samples))
        log.info("sample_row_drawn", job=asked.job, step=asked.row.step)


async def draw_row(
    standby: Standby,
    store: ObjectStore,
    job: str,
    row: SampleRow,
    order: DrawingOrder,
    *,
    keepalive: Callable[[], None],
) -> tuple[tuple[DrawnSample, ...], tuple[str, ...]]:
    """Draw a row into the store; the order's entries are :func:`entries_of` it.

    Beside the samples, in the order of their prompts, stands why others are missing.

    Raises:
        Refused, Passing: it cannot be drawn; see :func:`services.inferencer.child_client.draw`.
    """
    samples: list[DrawnSample] = []
    missing: list[str] = []

    async def hear(record: AnyRecord) -> None:
        keepalive()
        if isinstance(record, Drawn):
            samples.append(await _stored(store, job, row, record, keepalive))
        elif isinstance(record, ImageFailed):
            missing.append(record.reason)

    await draw(standby, order, hear)
    return tuple(sorted(samples, key=lambda sample: sample.index)), tuple(missing)


def entries_of(row: SampleRow) -> tuple[ImageRequest, ...]:
    """One image for each prompt, square, each with a seed of its own that all rows share."""
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


async def _stored(
    store: ObjectStore, job: str, row: SampleRow, drawn: Drawn, keepalive: Callable[[], None]
) -> DrawnSample:
    key = sample_key(job, step=row.step, index=drawn.index)
    return DrawnSample(
        artifact=await store_image(store, Path(drawn.path), key, "sample", keepalive=keepalive),
        step=row.step,
        epoch=row.epoch,
        index=drawn.index,
        prompt=row.prompts[drawn.index],
        seed=drawn.seed,
    )
