"""Delete jobs, uploads and working files when their time is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from services.gateway.jobs.record import Job
from services.gateway.jobs.uploads import Uploads
from services.gateway.ports import JobStore
from shared.errors import EveryDreamError
from shared.ports import ObjectStore
from shared.storage.snapshots import snapshots_of

DAY = 24 * 3600.0
PAUSE_HEARTBEATS = 360
HOUR = 3600.0

log = structlog.get_logger()


class Retention:
    """Deletes old jobs and uploads, and an ended job's working files at once."""

    def __init__(
        self,
        jobs: JobStore,
        store: ObjectStore,
        uploads: Uploads,
        *,
        clock: Callable[[], float],
        heartbeat: float,
        keep_days: float,
    ) -> None:
        self._jobs = jobs
        self._store = store
        self._uploads = uploads
        self._clock = clock
        self._pause = min(PAUSE_HEARTBEATS * heartbeat, HOUR)
        self._keep = keep_days * DAY
        self._to_delete: asyncio.Queue[str] = asyncio.Queue()
        """Prefixes in the object store."""

    def job_ended(self, job: Job) -> None:
        """Delete its working files, except what a retry would need."""
        for prefix in working_files(job):
            self._to_delete.put_nowait(prefix)

    def job_removed(self, job_id: str) -> None:
        """Delete all its objects; later ones go by :meth:`delete_leftovers`."""
        self._to_delete.put_nowait(objects_of(job_id))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._delete_queued())
            group.create_task(self._delete_regularly())

    async def _delete_queued(self) -> None:
        while True:
            prefix = await self._to_delete.get()
            try:
                await self._store.delete(prefix)
            except EveryDreamError as error:  # deleted with the job after keep_days
                log.warning("not_deleted", prefix=prefix, reason=str(error))

    async def _delete_regularly(self) -> None:
        while True:
            try:
                await self.delete_leftovers()
                await self.delete_expired()
            except EveryDreamError as error:
                log.warning("retention_put_off", reason=str(error))
            await asyncio.sleep(self._pause)

    async def delete_expired(self) -> None:
        """Delete every job and upload that is old enough, its objects first.

        Raises:
            Unavailable: the database or the store does not answer; the rest is deleted next time.
        """
        while ids := await self._jobs.ended_before(self._clock() - self._keep):
            for job_id in ids:
                await self._store.delete(objects_of(job_id))
                await self._jobs.delete(job_id)
                log.info("job_forgotten", job=job_id)
        await self._uploads.remove_expired(
            untouched_since=self._clock() - DAY, finished_before=self._clock() - self._keep
        )

    async def delete_leftovers(self) -> None:
        """Delete what workers wrote for jobs after their removal, for a day.

        Raises:
            Unavailable: the database or the store does not answer; the rest is deleted next time.
        """
        for job_id, at in await self._jobs.removed():
            await self._store.delete(objects_of(job_id))
            if self._clock() - at > DAY:
                await self._jobs.delete(job_id)


def objects_of(job_id: str) -> str:
    """The prefix of all objects of a job."""
    return f"jobs/{job_id}/"


def working_files(job: Job) -> list[str]:
    """Prefixes that an ended job no longer needs.

    The snapshots; of a job that cannot be retried also its dataset and resume points.
    """
    if job.status not in ("COMPLETED", "CANCELLED"):
        return [snapshots_of(job.id)]
    training = job.stages.get("training")
    attempts = range(1, (training.attempts if training else 0) + 1)
    resume_points = [f"jobs/{job.id}/training/{attempt}/resume" for attempt in attempts]
    return [snapshots_of(job.id), f"jobs/{job.id}/staging/", *resume_points]
