"""Make a job's report and store it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from time import time

import structlog

from shared.concurrency import in_thread
from shared.errors import reason_of
from shared.html_report.facts import TrainingFacts
from shared.html_report.page import NAME, Job, render
from shared.html_report.pictures import grid_of, images_of
from shared.messaging.messages import Artifact, ClaimGranted, DrawnImage, DrawnSample
from shared.ports import ObjectStore
from shared.storage.artifacts import upload_artifact

SECONDS = 30.0
"""Allowed for a report: it holds up the results."""

log = structlog.get_logger()


async def made_or_missing(
    job: str, making: Awaitable[Artifact]
) -> tuple[Artifact | None, tuple[str, ...]]:
    """The report, or a warning why there is none: no job fails without it."""
    try:
        async with asyncio.timeout(SECONDS):
            return await making, ()
    except Exception as error:  # whatever it is, no job is lost by it
        is_late = isinstance(error, TimeoutError)
        reason = "the store did not answer in time" if is_late else reason_of(error)
        log.warning("report_not_made", job=job, reason=reason, exc_info=True)
        return None, (f"{NAME} is missing: {reason}",)


async def store_report(
    store: ObjectStore,
    facts: TrainingFacts,
    grant: ClaimGranted,
    *,
    prefix: str,
    folder: Path,
    samples: Sequence[DrawnSample] = (),
    images: Sequence[DrawnImage] | None = None,
    keepalive: Callable[[], None],
) -> Artifact:
    """Make the report and store it.

    Args:
        store: has the thumbnails, and gets the report.
        facts: on the training.
        grant: of the work that makes the report, which has what the gateway knows of the job.
        prefix: of the report's key.
        folder: a local one for the file.
        samples: of all steps.
        images: of the results; None: none were asked for.
        keepalive: called as it goes on.

    Raises:
        Unavailable: the store does not answer.
    """
    job = Job(grant.submitted_at, grant.started_at, grant.warnings)
    grid = await grid_of(store, samples, keepalive)
    shown = None if images is None else await images_of(store, images, keepalive)
    page = await in_thread(render, facts, job, grid, shown, made_at=time())
    path = folder / NAME
    await in_thread(path.write_text, page, "utf-8", "replace")
    return await upload_artifact(store, path, f"{prefix}/{NAME}", "report", keepalive=keepalive)
