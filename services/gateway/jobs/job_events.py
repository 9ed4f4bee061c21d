"""The events that a change of a job's record means for clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from services.gateway.jobs.presenter import retry_of
from services.gateway.jobs.record import Job, StageRecord
from shared.messaging.messages import Artifact, Stage

JobEvent = tuple[str, dict[str, Any]]
"""An event's type and data; ``key`` and ``thumbnail`` in the data are store keys."""


def job_events(before: Job | None, after: Job) -> list[JobEvent]:
    """All events between two records of a job, in the order that clients get them.

    Their types are ``status``, ``stage``, ``dataset``, ``checkpoint``, ``checkpoint_deleted``,
    ``sample`` and ``image``. Progress is not among them; only its newest state is shown.
    """
    return [
        *_stages(before, after),
        *_dataset(before, after),
        *_deleted_checkpoints(before, after),
        *_checkpoints(before, after),
        *_samples(before, after),
        *_images(before, after),
        *_status(before, after),
    ]


def _status(before: Job | None, after: Job) -> Iterator[JobEvent]:
    if before is None or (before.status, before.run) != (after.status, after.run):
        error = {} if after.error is None else {"error": after.error}
        yield "status", {"status": after.status, "run": after.run, **error}


def _stages(before: Job | None, after: Job) -> Iterator[JobEvent]:
    for stage, record in after.stages.items():
        known = before.stages.get(stage) if before else None
        if known is None or _state(known) != _state(record):
            yield "stage", _stage(stage, record)


def _state(record: StageRecord) -> tuple[str, int]:
    """The state, and the attempt, so that a new attempt is a change."""
    if record.failed is not None:
        return "failed", 0
    if record.done:
        return "done", 0
    return ("waiting", 0) if record.claim is None else ("at work", record.claim.attempt)


def _stage(stage: Stage, record: StageRecord) -> dict[str, Any]:
    data = {"stage": stage, "state": _state(record)[0], "attempt": record.attempts}
    if record.failed is not None:
        return {**data, "reason": record.failed}
    again = retry_of(stage, record)
    return {**data, "retry": again} if again else data


def _dataset(before: Job | None, after: Job) -> Iterator[JobEvent]:
    if after.report and (before is None or before.report != after.report):
        yield "dataset", after.report


def _deleted_checkpoints(before: Job | None, after: Job) -> Iterator[JobEvent]:
    """By request, or since a newer one is kept; a lost attempt's is only replaced."""
    names = {each.artifact.name for each in after.checkpoints}
    for each in before.checkpoints if before else ():
        if (name := each.artifact.name) not in names:
            yield "checkpoint_deleted", {"step": each.step, "epoch": each.epoch, "name": name}


def _checkpoints(before: Job | None, after: Job) -> Iterator[JobEvent]:
    known = {each.artifact.key for each in before.checkpoints} if before else set()
    for each in after.checkpoints:
        if each.artifact.key not in known:
            yield "checkpoint", {"step": each.step, "epoch": each.epoch, **_file(each.artifact)}
    if after.checkpoint is not None and (before is None or before.checkpoint is None):
        done = {
            name: after.summary.get(of) for name, of in (("step", "steps"), ("epoch", "epochs"))
        }
        yield "checkpoint", {**done, "final": True, **_file(after.checkpoint)}


def _samples(before: Job | None, after: Job) -> Iterator[JobEvent]:
    known = set(before.samples) if before else set()
    for each in after.samples:
        if each not in known:
            yield (
                "sample",
                {
                    "step": each.step,
                    "epoch": each.epoch,
                    "prompt": each.prompt,
                    "seed": each.seed,
                    **_drawn(each.artifact, each.thumbnail),
                },
            )


def _images(before: Job | None, after: Job) -> Iterator[JobEvent]:
    if before is None or before.images != after.images:
        for each in after.images:
            artifact, error = each.artifact, {"error": each.error}
            file = _drawn(artifact, each.thumbnail) if artifact else error
            yield "image", {"prompt": each.prompt, "seed": each.seed, **file}


def _drawn(artifact: Artifact, thumbnail: str | None) -> dict[str, Any]:
    return {**_file(artifact), **({"thumbnail": thumbnail} if thumbnail else {})}


def _file(artifact: Artifact) -> dict[str, Any]:
    return {"name": artifact.name, "key": artifact.key}
