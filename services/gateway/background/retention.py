"""Delete jobs, uploads, working files, models and dead letters when their time is over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

import msgspec
import structlog

from services.gateway.background.model_eviction import ModelEviction
from services.gateway.jobs.record import Job
from services.gateway.jobs.rows import read
from services.gateway.jobs.uploads import Uploads
from services.gateway.ports import JobStore, StoredJob
from services.gateway.system_ports import DeadLetterStore
from shared.errors import EveryDreamError
from shared.messaging.messages import DatasetStaged, ModelStaged, Stage, decode
from shared.ports import ObjectStore
from shared.storage.snapshots import snapshots_of

DAY = 24 * 3600.0
PAUSE_HEARTBEATS = 360
HOUR = 3600.0
EVICTIONS = 6
"""Of models, between two other deletions."""
LATE_HEARTBEATS = 6
"""After a job's end; by then its workers have learned of it, and what they wrote meanwhile goes."""

PAGE = 10_000
"""Jobs of which files are deleted at a time; the next ones follow at the next time."""
DEAD_LETTERS = 10_000
"""Kept at most, the newest."""
CLOCKS_DIFFER = 60.0
"""Seconds; until then another gateway may still let a job have a check's dataset."""

log = structlog.get_logger()


class Retention:
    """Deletes old jobs and uploads, and an ended job's working files at once."""

    def __init__(
        self,
        jobs: JobStore,
        store: ObjectStore,
        uploads: Uploads,
        models: ModelEviction,
        dead_letters: DeadLetterStore,
        *,
        clock: Callable[[], float],
        heartbeat: float,
        keep_days: float,
        on_deleted: Callable[[str, Collection[str]], Awaitable[object]],
    ) -> None:
        """``on_deleted`` records that these prefixes of a job are gone."""
        self._models = models
        self._dead_letters = dead_letters
        self._jobs = jobs
        self._store = store
        self._uploads = uploads
        self._on_deleted = on_deleted
        self._clock = clock
        self._pause = min(PAUSE_HEARTBEATS * heartbeat, HOUR)
        self._late = LATE_HEARTBEATS * heartbeat
        self._deleted_again_until = clock() - DAY
        """When the last job ended whose working files were deleted again."""
        self._keep = keep_days * DAY
        self._uncertain: dict[str, float] = {}
        """Ids of jobs that may have no row, and when that was noted."""
        self._to_delete: asyncio.Queue[str] = asyncio.Queue()
        """Prefixes in the object store."""

    def job_ended(self, job: Job) -> None:
        """Delete its working files, except what a retry would need."""
        for prefix in working_files(job):
            self._to_delete.put_nowait(prefix)

    def job_removed(self, job_id: str) -> None:
        """Delete all its objects; later ones go by :meth:`delete_leftovers`."""
        self._to_delete.put_nowait(objects_of(job_id))

    def object_replaced(self, key: str) -> None:
        """Delete what no record names any more; if it cannot be, it goes later or with its job."""
        self._to_delete.put_nowait(key)

    def job_uncertain(self, job_id: str) -> None:
        """Objects were written for a job that may not have been; see :meth:`delete_again`."""
        self._uncertain[job_id] = self._clock()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._delete_queued())
            group.create_task(self._delete_regularly())
            group.create_task(self._delete_again_regularly())
            group.create_task(self._evict_regularly())

    async def _delete_queued(self) -> None:
        while True:
            prefix = await self._to_delete.get()
            try:
                await self._store.delete(prefix)
            except EveryDreamError as error:  # deleted by delete_again, or with the job
                log.warning("not_deleted", prefix=prefix, reason=str(error))

    async def _delete_regularly(self) -> None:
        while True:
            try:
                await self.delete_leftovers()
                await self.delete_due()
                await self.delete_expired()
            except EveryDreamError as error:
                log.warning("retention_put_off", reason=str(error))
            await asyncio.sleep(self._pause)

    async def _delete_again_regularly(self) -> None:
        while True:
            try:
                await self.delete_again()
            except EveryDreamError as error:
                log.warning("retention_put_off", reason=str(error))
            await asyncio.sleep(self._late)

    async def _evict_regularly(self) -> None:
        while True:
            try:
                await self._models.evict()
            except EveryDreamError as error:
                log.warning("retention_put_off", reason=str(error))
            await asyncio.sleep(self._pause / EVICTIONS)

    async def delete_again(self) -> None:
        """Delete the working files of jobs that ended a little while ago, or within the past day.

        A worker may have written some after the end, and a gateway may have died before it deleted
        them. Objects of jobs that were not created after all go, too.

        Raises:
            Unavailable: the database or the store does not answer; the rest is deleted next time.
        """
        late = self._clock() - self._late
        while ids := await self._jobs.ended_before(late, after=self._deleted_again_until):
            for job_id in ids:
                row = await self._jobs.get(job_id)
                if row is None or row.ended_at is None:
                    continue
                for prefix in _working_files_of(row):
                    await self._store.delete(prefix)
                self._deleted_again_until = row.ended_at
        for job_id in [each for each, at in self._uncertain.items() if at < late]:
            if await self._jobs.get(job_id) is None:
                await self._store.delete(objects_of(job_id))
            self._uncertain.pop(job_id, None)

    async def delete_expired(self) -> None:
        """Delete every job, upload and dead letter that is old enough, a job's objects first.

        Raises:
            Unavailable: the database or the store does not answer; the rest is deleted next time.
        """
        now = self._clock()
        while ids := await self._jobs.ended_before(now - self._keep, now=now):
            for job_id in ids:
                await self._store.delete(objects_of(job_id))
                await self._jobs.delete(job_id)
                log.info("job_forgotten", job=job_id)
        await self._uploads.remove_expired(
            untouched_since=self._clock() - DAY, finished_before=self._clock() - self._keep
        )
        await self._dead_letters.trim(now - self._keep, DEAD_LETTERS)

    async def delete_due(self) -> None:
        """Delete what checks have staged, when it was kept long enough, and checkpoints.

        Those were deleted by request, and a gateway may have died before their files were.

        Raises:
            Unavailable: the database or the store does not answer; the rest is deleted next time.
        """
        for job_id in await self._jobs.kept_before(self._clock() - CLOCKS_DIFFER, PAGE):
            try:
                await self._delete_due_of(job_id)
            except msgspec.DecodeError:  # its record; it must not end the retention of others
                log.exception("cannot_judge", job=job_id)

    async def _delete_due_of(self, job_id: str) -> None:
        if (row := await self._jobs.get(job_id)) is None:
            return
        job = read(row)
        staged = (f"{objects_of(job_id)}staging/",) if job.kept else ()
        prefixes = job.files_to_delete or staged
        for prefix in prefixes:
            await self._store.delete(prefix)
        await self._on_deleted(job_id, prefixes)

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

    The snapshots, and what attempts at staging left that did not succeed; of a check whose dataset
    is kept, the latter alone. Of a job that cannot be retried also its dataset, its resume points,
    and folders of models that were not finished.
    """
    root = objects_of(job.id)
    pages = _others(job.pictures, f"{root}pictures", _attempts(job, "staging"))
    if job.kept:
        return [*pages, *_others(job.kept.dataset, f"{root}staging", _attempts(job, "staging"))]
    if job.status not in ("COMPLETED", "CANCELLED"):
        attempts = _others(_staged_of(job), f"{root}staging", _attempts(job, "staging"))
        return [snapshots_of(job.id), *pages, *attempts]
    prefixes = [snapshots_of(job.id), *pages, f"{root}staging/"]
    for number in _attempts(job, "training"):
        prefixes.append(f"{root}training/{number}/resume")
        if job.model != f"{root}training/{number}/model":
            prefixes.append(f"{root}training/{number}/model/")
    return prefixes


def _others(kept: str, root: str, attempts: range) -> list[str]:
    """Prefixes of attempts under ``root``, without the attempt that ``kept`` belongs to."""
    prefixes = (f"{root}/{number}/" for number in attempts)
    return [each for each in prefixes if not f"{kept}/".startswith(each)]


def _attempts(job: Job, stage: Stage) -> range:
    """Numbers of the attempts at a stage."""
    return range(1, (job.stages[stage].attempts if stage in job.stages else 0) + 1)


def _staged_of(job: Job) -> str:
    """The prefix of what a retry would begin with; empty: it would be staged again."""
    stage = job.stages.get("training") or job.stages.get("generation")
    match decode(stage.trigger) if stage else None:
        case DatasetStaged(dataset=prefix) | ModelStaged(model=prefix):
            return f"{prefix}/"
    return ""


def _working_files_of(row: StoredJob) -> list[str]:
    try:
        return working_files(read(row))
    except msgspec.DecodeError:
        log.exception("cannot_judge", job=row.id)
        return []
