"""What a job's record gains while it runs, and files that it loses by request or by time."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import accumulate
from pathlib import PurePosixPath

from msgspec.structs import replace

from services.gateway.jobs.record import Job, Preview, Step
from shared.messaging.messages import (
    CheckpointSampled,
    CheckpointSaved,
    DrawnImage,
    DrawnSample,
    SavedCheckpoint,
)
from shared.request import Command

MAX_SAMPLES_BYTES = 8 << 20
"""Of all samples in a record: each new row is read and written with all before it."""
SAMPLE_BYTES = 500
"""Of one sample without its prompt, roughly."""
LEFT_OUT = "there are more samples than a job can list: the newest are listed"


def with_checkpoint(job: Job, fact: CheckpointSaved) -> Job:
    """Add a checkpoint, once; the same one of a later attempt replaces that of a lost one."""
    known = {*(each.artifact.key for each in job.checkpoints), *job.deleted_checkpoints}
    if fact.artifact.key in known:
        return job
    saved = SavedCheckpoint(
        artifact=fact.artifact, step=fact.step, epoch=fact.epoch,
        validation_loss=fact.validation_loss,
    )  # fmt: skip
    kept = (
        each
        for each in job.checkpoints
        if each.artifact.key not in fact.replaced and each.artifact.name != saved.artifact.name
    )
    return replace(job, checkpoints=(*kept, saved))


def merged_checkpoints(job: Job, final: tuple[SavedCheckpoint, ...]) -> tuple[SavedCheckpoint, ...]:
    """Each checkpoint once, oldest first; an earlier, lost attempt may have saved some."""
    there = [each for each in final if each.artifact.key not in job.deleted_checkpoints]
    return tuple({each.artifact.name: each for each in (*job.checkpoints, *there)}.values())


def without_checkpoints(job: Job, keys: Collection[str]) -> Job:
    """The job without these intermediate checkpoints, whose files are to be deleted."""
    gone = tuple(each.artifact.key for each in job.checkpoints if each.artifact.key in keys)
    return replace(
        job,
        checkpoints=tuple(each for each in job.checkpoints if each.artifact.key not in gone),
        deleted_checkpoints=(*job.deleted_checkpoints, *gone),
        files_to_delete=(*job.files_to_delete, *map(_with_optimizers, gone)),
    )


def _with_optimizers(checkpoint: str) -> str:
    """The prefix of a checkpoint's file, and of the optimizers beside it if there are any."""
    return f"{checkpoint.removesuffix(PurePosixPath(checkpoint).suffix)}."


def keep_dataset(job: Job, until: float, now: float) -> Step:
    """Keep a check's dataset at least so long, unless its time is over."""
    if job.kept is None or job.kept.until < now or job.kept.until >= until:
        return Step(job)
    return Step(replace(job, kept=replace(job.kept, until=until)))


def forget_deleted(job: Job, prefixes: Collection[str]) -> Step:
    """These files are deleted. With a check's dataset goes what was changed of it."""
    left = tuple(each for each in job.files_to_delete if each not in prefixes)
    job = replace(job, files_to_delete=left)
    if job.kept is None:
        return Step(job)
    stored = {place: key for place, key in job.stored.items() if place != "edits"}
    if job.found_report or "found_report" in stored:
        stored.pop("report", None)
        if large := stored.pop("found_report", None):
            stored["report"] = large
        job = replace(job, report=job.found_report, found_report={})
    return Step(replace(job, kept=None, edits={}, stored=stored))


def with_samples(job: Job, samples: tuple[DrawnSample, ...]) -> Job:
    """One sample for each step and prompt; a new one replaces the file of the one before.

    The oldest go where there are too many.
    """
    rows = {(each.step, each.index): each for each in (*job.samples, *samples)}
    newest_first = [rows[position] for position in sorted(rows, reverse=True)]
    sizes = accumulate(SAMPLE_BYTES + len(each.prompt) for each in newest_first)
    listed = sum(size <= MAX_SAMPLES_BYTES for size in sizes)
    if listed < len(newest_first) and LEFT_OUT not in job.warnings:
        job = replace(job, warnings=(*job.warnings, LEFT_OUT))
    drawn = {each.step for each in samples}
    asked = tuple(step for step in job.asked_rows if step not in drawn)
    job = replace(job, samples=tuple(reversed(newest_first[:listed])), asked_rows=asked)
    newest = max((each.step for each in job.samples), default=0)
    return with_preview(job, (each for each in job.samples if each.step == newest))


def with_images(job: Job, images: tuple[DrawnImage, ...]) -> Job:
    """The job with the images of its results."""
    return with_preview(replace(job, images=images), images)


def with_preview(job: Job, drawn: Iterable[DrawnImage | DrawnSample]) -> Job:
    """The first of these that has a thumbnail stands for the job from now on."""
    for each in drawn:
        if each.artifact and each.thumbnail:
            preview = Preview(picture=each.artifact.key, thumbnail=each.thumbnail)
            return replace(job, preview=preview)
    return job


def with_asked_row(job: Job, fact: CheckpointSampled) -> Job:
    """Note the row of a command until it is drawn: it may come too late."""
    if fact.command <= job.commands_done.get("sample", 0):
        return job
    job = with_command_done(job, "sample", fact.command)
    return replace(job, asked_rows=(*job.asked_rows, fact.row.step))


def with_command_done(job: Job, kind: Command, number: int) -> Job:
    if number <= job.commands_done.get(kind, 0):
        return job
    return replace(job, commands_done={**job.commands_done, kind: number})
