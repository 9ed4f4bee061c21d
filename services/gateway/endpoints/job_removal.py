"""Remove a job, or one of its checkpoints, for good."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial

from aiohttp import web

from services.gateway.jobs.outputs import without_checkpoints
from services.gateway.jobs.presenter import Presenter
from services.gateway.jobs.record import Job, Step
from services.gateway.jobs.references import JOBS, jobs_needing
from services.gateway.jobs.repository import JobRepository, UnknownJob
from services.gateway.jobs.response_types import Removed, RemovedCheckpoint
from services.gateway.jobs.transitions import cancel
from services.gateway.ports import JobStore
from services.gateway.web.application import in_time
from services.gateway.web.authorization import Authorizer
from services.gateway.web.routing import Answer, route

NAMED = 10
"""Jobs that a refusal names."""
STEP_SHOWN = 20
"""Characters of a step that is none."""


class JobRemovalRoutes:
    """``DELETE /jobs/{job}`` and ``/jobs/{job}/checkpoints/{step}``."""

    def __init__(
        self,
        *,
        authorizer: Authorizer,
        repository: JobRepository,
        jobs: JobStore,
        presenter: Presenter,
        clock: Callable[[], float],
        on_removal: Callable[[str], None],
    ) -> None:
        """``on_removal`` is called with the id of a job whose files are to be deleted."""
        self._authorizer = authorizer
        self._repository = repository
        self._jobs = jobs
        self._presenter = presenter
        self._clock = clock
        self._on_removal = on_removal

    @route(
        "DELETE",
        "/jobs/{job}",
        "Delete a job and all its files for good",
        needs="delete",
        answers={200: Answer("The job was deleted.", Removed)},
        errors=(409,),
    )
    async def _remove(self, request: web.Request, owner: str) -> web.Response:
        """Cancel first, so that workers stop."""
        async with in_time():
            job_id = (await self._authorizer.job(request, owner)).job.id
            needing = await jobs_needing(self._jobs, owner, f"{JOBS}{job_id}/", NAMED + 1)
            refuse_if_needed([each for each in needing if each != job_id])
            await self._repository.change(job_id, partial(cancel, now=self._clock()))
            removed = await self._repository.remove(job_id, owner)
        if not removed:
            raise UnknownJob(job_id)
        self._on_removal(job_id)
        gone: Removed = {"id": job_id, "deleted": True}
        return web.json_response(gone)

    @route(
        "DELETE",
        "/jobs/{job}/checkpoints/{step}",
        "Delete an intermediate checkpoint of a job for good",
        needs="delete",
        answers={200: Answer("The checkpoint was deleted.", RemovedCheckpoint)},
        errors=(409,),
    )
    async def _remove_checkpoint(self, request: web.Request, owner: str) -> web.Response:
        async with in_time():
            current = (await self._authorizer.job(request, owner)).job
            job = await self._presenter.whole(current, ["checkpoints", "summary"])
            step = request.match_info["step"]
            keys = [each.artifact.key for each in job.checkpoints if str(each.step) == step]
            if not keys:
                raise _no_checkpoint(job, step)
            for key in keys:
                refuse_if_needed(await jobs_needing(self._jobs, owner, key, NAMED + 1))
            delete = partial(delete_checkpoints, keys=keys)
            if await self._repository.change(job.id, delete, results=True) is None:
                raise UnknownJob(job.id)
        gone: RemovedCheckpoint = {"id": job.id, "step": int(step), "deleted": True}
        return web.json_response(gone)


def delete_checkpoints(job: Job, keys: Collection[str]) -> Step:
    return Step(without_checkpoints(job, keys))


def _no_checkpoint(job: Job, step: str) -> web.HTTPException:
    if job.checkpoint is not None and str(job.summary.get("steps")) == step:
        return web.HTTPConflict(
            text=f"the checkpoint at step {step} is the job's model, which cannot be deleted alone:"
            " delete the job"
        )
    return web.HTTPNotFound(text=f"the job has no checkpoint at step {step[:STEP_SHOWN]!r}")


def refuse_if_needed(jobs: Sequence[str]) -> None:
    """Raises web.HTTPConflict: these jobs are yet to read what is to be deleted."""
    if jobs:
        named = ", ".join(jobs[:NAMED])
        more = " and more" if len(jobs) > NAMED else ""
        raise web.HTTPConflict(
            text=f"jobs that have not ended still need it: {named}{more}; cancel them first, or"
            " delete it when they have ended"
        )
