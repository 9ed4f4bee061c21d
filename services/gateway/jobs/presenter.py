"""What ``/status`` and the webhook show of a job."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, cast

import msgspec

from services.gateway.jobs.record import Job, delay_time, execution_time
from services.gateway.jobs.response_types import (
    Checkpoint,
    CheckResult,
    File,
    Image,
    JobStatus,
    JobSummary,
    Output,
    Progress,
    QueuePosition,
    Results,
    Sample,
    TrainingResult,
)
from services.gateway.ports import StoredEvent
from shared.messaging.messages import (
    STAGES,
    Artifact,
    DrawnImage,
    DrawnSample,
    SavedCheckpoint,
    Stage,
)
from shared.ports import ObjectStore

LINK_SECONDS = 7 * 24 * 3600
NUMBERS = ("step", "steps", "epoch", "loss", "images_per_second", "eta_seconds")


class Presenter:
    """Jobs as clients see them; links are signed when they are shown."""

    def __init__(self, store: ObjectStore, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def status(self, job: Job, queue: QueuePosition | None = None) -> bytes:
        """The body of ``/status`` as JSON; ``delayTime`` and ``executionTime`` in milliseconds.

        ``queue``: a waiting job's place, where it is known.
        """
        body = await self._body(job)
        return msgspec.json.encode(body if queue is None else {**body, "queue": queue})

    async def _body(self, job: Job) -> JobStatus:
        now = self._clock()
        body: JobStatus = {
            "delayTime": delay_time(job, now),
            "executionTime": execution_time(job, now),
            "gpu": job.gpu,
            "id": job.id,
            "input": job.input,
            "output": await self.output(job),
            "status": job.status,
        }
        return body if job.error is None else {**body, "error": job.error}

    async def output(self, job: Job) -> Output:
        """The progress of a live job, the results of one that has ended."""
        if job.ended:
            return results(job, await self._links(job, artifacts(job)))
        return progress(job, await self._links(job, [each.artifact for each in job.samples]))

    async def _links(self, job: Job, shown: Iterable[Artifact]) -> dict[str, str]:
        """By store key: the URL in the user's bucket, or a signed one of ours."""
        return {each.key: await self._link(job, each.key, each.name) for each in shown}

    async def _link(self, job: Job, key: str, name: str) -> str:
        return job.urls.get(key) or await self._store.link(key, seconds=LINK_SECONDS, filename=name)

    async def event(self, job: Job, happened: StoredEvent) -> dict[str, Any]:
        """The data of something that happened; ``url`` stands for a file, as in ``/status``."""
        data = msgspec.json.decode(happened.data, type=dict[str, Any])
        key = data.pop("key", None)
        file = {} if key is None else {"url": await self._link(job, key, data["name"])}
        return {"at": iso(happened.at), **data, **file}


def summary(job: Job, now: float) -> JobSummary:
    """A job in a list: as in ``/status``, without what goes in and comes out; times in UTC."""
    shown: JobSummary = {
        "id": job.id,
        "status": job.status,
        "created_at": iso(job.created_at),
        "started_at": iso_or_null(job.started_at),
        "ended_at": iso_or_null(job.ended_at),
        "delayTime": delay_time(job, now),
        "executionTime": execution_time(job, now),
        "gpu": job.gpu,
    }
    return shown if job.error is None else {**shown, "error": job.error}


def output_digest(job: Job) -> str:
    """Tells one output from another, whatever signatures their links have; hexadecimal."""
    samples = [each.artifact for each in job.samples]
    links = {each.key: each.key for each in (*artifacts(job), *samples)}
    output: Output = results(job, links) if job.ended else progress(job, links)
    return sha256(msgspec.json.encode([job.run, job.ended, output])).hexdigest()


def progress(job: Job, links: dict[str, str]) -> Progress:
    """``output`` until the end: the newest numbers of the stage at work; unknown ones are null."""
    stage = stage_at_work(job)
    numbers = job.progress.get(stage, {}) if stage else {}
    shown = {"stage": stage, **dict.fromkeys(NUMBERS), **numbers}
    samples = [_sample(each, links) for each in job.samples]
    warnings = {"warnings": list(job.warnings)} if job.warnings else {}
    whole = {**shown, "dataset": job.report, "samples": samples, **warnings}
    return cast("Progress", whole)  # what workers count besides is shown, too


def latest_progress(job: Job) -> dict[str, Any] | None:
    """What the stage at work has told of itself last; None: nothing yet, or nobody works."""
    stage = stage_at_work(job)
    numbers = None if job.ended or stage is None else job.progress.get(stage)
    return {"stage": stage, **numbers} if numbers else None


def stage_at_work(job: Job) -> Stage | None:
    """The first open stage that somebody works on, else the first that waits for somebody."""
    waiting = [stage for stage in STAGES if stage in job.stages and job.stages[stage].open]
    claimed = [stage for stage in waiting if job.stages[stage].claim is not None]
    return next(iter((*claimed, *waiting)), None)


def results(job: Job, links: dict[str, str]) -> Results | CheckResult:
    """``output`` at the end: everything there is, however the job ended."""
    if job.checks:
        return {"dataset": job.report}
    shown: Results = {
        "train": _trained(job, links) if job.trains else None,
        "inference": [_image(each, links) for each in job.images],
        "artifacts": [_artifact(each, links) for each in artifacts(job)],
    }
    warnings = [] if job.trains else _warnings(job)
    return {**shown, "warnings": warnings} if warnings else shown


def _trained(job: Job, links: dict[str, str]) -> TrainingResult:
    warnings = _warnings(job)
    summed_up = {**job.summary, "warnings": warnings} if warnings else job.summary
    return {
        **cast("TrainingResult", summed_up),
        "checkpoint_url": links[job.checkpoint.key] if job.checkpoint else None,
        "checkpoints": [_checkpoint(each, links) for each in job.checkpoints],
        "samples": [_sample(each, links) for each in job.samples],
    }


def _warnings(job: Job) -> list[str]:
    return [*job.warnings, *job.summary.get("warnings", ())]


def artifacts(job: Job) -> list[Artifact]:
    """Every file of the result, the final checkpoint first, each key once."""
    final = [job.checkpoint] if job.checkpoint else []
    checkpoints = [each.artifact for each in job.checkpoints]
    images = [each.artifact for each in job.images if each.artifact]
    samples = [each.artifact for each in job.samples]
    every = [*final, *checkpoints, *images, *samples, *job.records]
    return list({each.key: each for each in every}.values())


def _checkpoint(saved: SavedCheckpoint, links: dict[str, str]) -> Checkpoint:
    shown: Checkpoint = {"step": saved.step, "epoch": saved.epoch, "url": links[saved.artifact.key]}
    if saved.validation_loss is None:
        return shown
    return {**shown, "validation_loss": saved.validation_loss, "best": saved.best}


def _image(drawn: DrawnImage, links: dict[str, str]) -> Image:
    parameters = msgspec.structs.asdict(drawn)
    artifact, error = parameters.pop("artifact"), parameters.pop("error")
    shown = cast("Image", {"image": links[artifact.key] if artifact else None, **parameters})
    return shown if error is None else {**shown, "error": error}


def _sample(drawn: DrawnSample, links: dict[str, str]) -> Sample:
    return {
        "step": drawn.step,
        "epoch": drawn.epoch,
        "prompt": drawn.prompt,
        "seed": drawn.seed,
        "image": links[drawn.artifact.key],
    }


def _artifact(artifact: Artifact, links: dict[str, str]) -> File:
    return {
        "name": artifact.name,
        "kind": artifact.kind,
        "bytes": artifact.bytes,
        "sha256": artifact.sha256,
        "url": links[artifact.key],
    }


def iso(moment: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def iso_or_null(moment: float | None) -> str | None:
    """The same of a moment that may not have come."""
    return None if moment is None else iso(moment)
