"""Render a job for ``/status``, webhooks, streams and events."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from hashlib import sha256
from typing import Any, cast

import msgspec
import structlog

from services.gateway.jobs.record import (
    RESULT_FIELDS,
    Job,
    StageRecord,
    delay_time,
    execution_time,
    unfulfilled,
    unpublished,
)
from services.gateway.jobs.response_types import (
    Advance,
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
    Retry,
    Sample,
    TrainingResult,
)
from services.gateway.ports import StoredEvent
from shared.errors import NotFound
from shared.messaging.messages import (
    STAGES,
    Artifact,
    DrawnImage,
    DrawnSample,
    SavedCheckpoint,
    Stage,
)
from shared.ports import ObjectStore
from shared.retry import FAILURES_ALLOWED
from shared.storage.large_fields import load_fields
from shared.words import iso

LINK_SECONDS = 7 * 24 * 3600
WARNING_FIELDS = {"report", "summary", "warnings"}
"""Fields of a record that have warnings."""
NUMBERS = ("step", "steps", "epoch", "loss", "images_per_second", "eta_seconds")

log = structlog.get_logger()


class Presenter:
    """Renders jobs; links to files are signed anew each time."""

    def __init__(self, store: ObjectStore, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def status(self, job: Job, queue: QueuePosition | None = None) -> bytes:
        """The body of ``/status`` as JSON; ``queue`` is shown if it is known."""
        now = self._clock()
        body: JobStatus = {
            "delayTime": delay_time(job, now),
            "executionTime": execution_time(job, now),
            "gpu": job.gpu,
            "id": job.id,
            "input": await self._input(job),
            "output": await self.output(job),
            "status": job.status,
        }
        if job.error is not None:
            body["error"] = job.error
        if queue is not None:
            body["queue"] = queue
        return msgspec.json.encode(body)

    async def summary(self, job: Job, queue: QueuePosition | None = None) -> JobSummary:
        """A job in a list, from its record alone; ``queue`` is shown if it is known."""
        now = self._clock()
        shown: JobSummary = {
            "id": job.id,
            "kind": job.line,
            "draws": job.draws,
            "status": job.status,
            "created_at": iso(job.created_at),
            "started_at": iso_or_null(job.started_at),
            "ended_at": iso_or_null(job.ended_at),
            "delayTime": delay_time(job, now),
            "executionTime": execution_time(job, now),
            "gpu": job.gpu,
        }
        if job.error is not None:
            shown["error"] = job.error
        if queue is not None:
            shown["queue"] = queue
        if not job.ended:
            shown["progress"] = cast("Advance", _numbers(job))
        if job.preview and "urls" not in job.stored and job.preview.picture not in job.urls:
            shown["preview"] = await self._small_link(job.preview.thumbnail)
        if not job.stored.keys() & WARNING_FIELDS and (warnings := len(_warnings(job))):
            shown["warnings"] = warnings
        return shown

    async def output(self, job: Job) -> Output:
        """The progress of a live job, or the results of one that has ended."""
        job = await self.whole(job)
        if job.ended:
            return results(job, await self._links(job, artifacts(job)))
        return progress(job, await self._links(job, [each.artifact for each in job.samples]))

    async def whole(self, job: Job, only: Collection[str] = RESULT_FIELDS) -> Job:
        """The job with these of its large fields; one that the store has lost stays empty.

        Raises:
            Unavailable: the store does not answer.
        """
        for place in job.stored.keys() & {*only}:
            try:
                job = await load_fields(self._store, job, [place])
            except NotFound:
                log.warning("large_field_lost", job=job.id, field=place)
                left = {name: key for name, key in job.stored.items() if name != place}
                job = msgspec.structs.replace(job, stored=left)
        return job

    async def _input(self, job: Job) -> dict[str, Any]:
        """If it is large, as it is stored: it need not be understood to be shown."""
        if "input" not in job.stored:
            return job.input
        return cast("dict[str, Any]", msgspec.Raw(await self._text(job.id, job.stored["input"])))

    async def _text(self, job_id: str, key: str) -> bytes:
        """The JSON of an object; an empty object if the store has lost it."""
        try:
            return await self._store.get(key)
        except NotFound:
            log.warning("large_field_lost", job=job_id, field=key)
            return b"{}"

    async def _links(self, job: Job, shown: Iterable[Artifact]) -> dict[str, str]:
        """By store key, with thumbnails: the URL in the user's bucket, or a signed link."""
        links = {
            each.key: job.urls.get(each.key) or await self.link(each.key, each.name)
            for each in shown
        }
        return links | {key: await self._small_link(key) for key in thumbnails(job)}

    async def link(self, key: str, name: str) -> str:
        """A signed link to an object, under a name for people."""
        return await self._store.link(key, seconds=LINK_SECONDS, filename=name)

    async def _small_link(self, thumbnail: str) -> str:
        return await self.link(thumbnail, thumbnail.rpartition("/")[2])

    async def event(self, stored: StoredEvent, urls: Mapping[str, str]) -> dict[str, Any]:
        """An event's data, with a ``url`` in place of a store key, and a thumbnail's link.

        ``urls`` are the job's; they matter only if the event :func:`names_file`.
        """
        data = msgspec.json.decode(stored.data, type=dict[str, Any])
        if large := data.get("stored"):
            data = msgspec.json.decode(await self._text(stored.job, large), type=dict[str, Any])
        key = data.pop("key", None)
        file = {} if key is None else {"url": urls.get(key) or await self.link(key, data["name"])}
        if (small := data.pop("thumbnail", None)) and key not in urls:
            file["thumbnail"] = await self._small_link(small)
        return {"at": iso(stored.at), **data, **file}


def is_stored(event: StoredEvent) -> bool:
    """Whether the event's data is in the object store, because it is large."""
    return event.data.startswith(b'{"stored":')


def names_file(event: StoredEvent) -> bool:
    """Whether the event's data may have a store key."""
    return b'"key":' in event.data


def output_digest(job: Job) -> str:
    """A hexadecimal digest of the output, which does not depend on the signatures of links."""
    files = (*artifacts(job), *(each.artifact for each in job.samples))
    links = {key: key for key in (*(each.key for each in files), *thumbnails(job))}
    output: Output = results(job, links) if job.ended else progress(job, links)
    return sha256(msgspec.json.encode([job.run, job.ended, output])).hexdigest()


def progress(job: Job, links: dict[str, str]) -> Progress:
    """``output`` until the end: the newest numbers of the current stage; unknown ones are null."""
    samples = [_sample(each, links) for each in job.samples]
    every, again = _warnings(job), retries(job)
    warnings = {"warnings": every} if every else {}
    tried = {"retries": again} if again else {}
    whole = {**_numbers(job), "dataset": job.report, "samples": samples, **tried, **warnings}
    return cast("Progress", whole)  # workers may report more numbers, which are shown, too


def _numbers(job: Job) -> dict[str, Any]:
    stage = current_stage(job)
    numbers = job.progress.get(stage, {}) if stage else {}
    return {"stage": stage, **dict.fromkeys(NUMBERS), **numbers}


def retries(job: Job) -> list[Retry]:
    """The stages that failed and are tried again, in the order of the work."""
    if job.ended:
        return []
    found = [retry_of(stage, job.stages[stage]) for stage in STAGES if stage in job.stages]
    return [each for each in found if each is not None]


def retry_of(stage: Stage, record: StageRecord) -> Retry | None:
    """The next try of a stage whose last one failed; None: it did not, or there is none."""
    if not record.open or record.failures == 0:
        return None
    return {
        "stage": stage,
        "number": record.failures + 1,
        "tries": FAILURES_ALLOWED,
        "reason": record.last_failure,
        "next_at": iso(record.due_at) if record.claim is None else None,
    }


def latest_progress(job: Job) -> dict[str, Any] | None:
    """The last progress of the current stage; None: none yet, or the job has ended."""
    stage = current_stage(job)
    numbers = None if job.ended or stage is None else job.progress.get(stage)
    return {"stage": stage, **numbers} if numbers else None


def current_stage(job: Job) -> Stage | None:
    """The first open stage that is claimed, else the first that waits for a worker."""
    waiting = [stage for stage in STAGES if stage in job.stages and job.stages[stage].open]
    claimed = [stage for stage in waiting if job.stages[stage].claim is not None]
    return next(iter((*claimed, *waiting)), None)


def results(job: Job, links: dict[str, str]) -> Results | CheckResult:
    """``output`` at the end: all results there are, however the job ended."""
    warnings = _warnings(job)
    if job.checks:
        return (
            {"dataset": job.report, "warnings": warnings} if warnings else {"dataset": job.report}
        )
    shown: Results = {
        "train": _trained(job, links) if job.trains else None,
        "inference": [_image(each, links) for each in job.images],
        "artifacts": [_artifact(each, links) for each in artifacts(job)],
    }
    if job.trains:
        shown["dataset"] = job.report
    return {**shown, "warnings": warnings} if warnings and not job.trains else shown


def _trained(job: Job, links: dict[str, str]) -> TrainingResult:
    warnings = _warnings(job)
    summary = {**job.summary, "warnings": warnings} if warnings else job.summary
    return {
        **cast("TrainingResult", summary),
        "checkpoint_url": links[job.checkpoint.key] if job.checkpoint else None,
        "checkpoints": [_checkpoint(each, links) for each in job.checkpoints],
        "samples": [_sample(each, links) for each in job.samples],
    }


def _warnings(job: Job) -> list[str]:
    """What the request, the dataset and the workers are said of; each sentence once."""
    every = (
        *(*job.warnings, *unpublished(job), *unfulfilled(job)),
        *(*job.report.get("warnings", ()), *job.summary.get("warnings", ())),
    )
    return list(dict.fromkeys(every))


def artifacts(job: Job) -> list[Artifact]:
    """Every file of the results, the final checkpoint first, each key once."""
    final = [job.checkpoint] if job.checkpoint else []
    checkpoints = [each.artifact for each in job.checkpoints]
    images = [each.artifact for each in job.images if each.artifact]
    samples = [each.artifact for each in job.samples]
    report = [job.html_report] if job.html_report else []
    every = [*final, *checkpoints, *images, *samples, *job.records, *report]
    return list({each.key: each for each in every}.values())


def thumbnails(job: Job) -> list[str]:
    """Those of pictures that are in no bucket of the user's, where links are the user's alone."""
    drawn: list[DrawnImage | DrawnSample] = [*job.images, *job.samples]
    return [
        each.thumbnail
        for each in drawn
        if each.thumbnail and each.artifact and each.artifact.key not in job.urls
    ]


def _checkpoint(saved: SavedCheckpoint, links: dict[str, str]) -> Checkpoint:
    shown: Checkpoint = {"step": saved.step, "epoch": saved.epoch, "url": links[saved.artifact.key]}
    if saved.validation_loss is None:
        return shown
    return {**shown, "validation_loss": saved.validation_loss, "best": saved.best}


def _image(drawn: DrawnImage, links: dict[str, str]) -> Image:
    parameters = msgspec.structs.asdict(drawn)
    artifact, error = parameters.pop("artifact"), parameters.pop("error")
    small = _thumbnail(parameters.pop("thumbnail"), links)
    image = links[artifact.key] if artifact else None
    shown = cast("Image", {"image": image, **small, **parameters})
    return shown if error is None else {**shown, "error": error}


def _thumbnail(key: str | None, links: dict[str, str]) -> dict[str, str]:
    return {"thumbnail": links[key]} if key in links else {}


def _sample(drawn: DrawnSample, links: dict[str, str]) -> Sample:
    shown = {
        "step": drawn.step,
        "epoch": drawn.epoch,
        "prompt": drawn.prompt,
        "seed": drawn.seed,
        "image": links[drawn.artifact.key],
        **_thumbnail(drawn.thumbnail, links),
    }
    return cast("Sample", shown)


def _artifact(artifact: Artifact, links: dict[str, str]) -> File:
    return {
        "name": artifact.name,
        "kind": artifact.kind,
        "bytes": artifact.bytes,
        "sha256": artifact.sha256,
        "url": links[artifact.key],
    }


def iso_or_null(moment: float | None) -> str | None:
    """The same for a moment that may be None."""
    return None if moment is None else iso(moment)
