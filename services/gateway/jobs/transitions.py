"""A job's whole life: one record, and one pure function that says what each fact makes of it.

``advance(job, fact)`` is total: any fact in any state gives a record and what must be said. The
gateway writes both in one commit. The first end wins and is final for its run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from services.gateway.jobs.record import (
    BUCKET_STAGES,
    GPU_STAGES,
    Claim,
    Effect,
    Job,
    StageRecord,
    Step,
    WebhookTry,
    webhook_id,
    why_no_command,
)
from services.gateway.ports import Status
from shared import retry
from shared.messaging.messages import (
    STAGES,
    AnyMessage,
    Artifact,
    ArtifactsPublished,
    BucketChecked,
    BucketDue,
    CheckpointFinal,
    CheckpointSampled,
    CheckpointSaved,
    ClaimGranted,
    ClaimRefused,
    CommandIssued,
    DatasetStaged,
    DrawnSample,
    ImagesGenerated,
    Interruption,
    JobCancelled,
    JobCompleted,
    JobFailed,
    JobStarted,
    JobSubmitted,
    JobTimedOut,
    Message,
    ModelStaged,
    Progressed,
    ResumePointSaved,
    SamplesGenerated,
    SavedCheckpoint,
    Stage,
    StageFact,
    StageFailed,
    Started,
    WebhookDelivered,
    WebhookDue,
    WebhookFailed,
    claim_of,
    decode,
    encode,
    type_of,
)
from shared.messaging.topology import STAGE_QUEUES
from shared.request import Command, Request, WebhookEvent

TRIES_KEPT = 50
"""Deliveries of webhooks that a job remembers, the newest."""
RESULTS_OF_STAGE: dict[Stage, tuple[type[StageFact], ...]] = {
    "staging": (DatasetStaged, ModelStaged),
    "bucket_check": (BucketChecked,),
    "training": (CheckpointSampled, CheckpointSaved, ResumePointSaved, CheckpointFinal),
    "generation": (ImagesGenerated,),
    "model_publication": (ArtifactsPublished,),
    "image_publication": (ArtifactsPublished,),
}
"""What each stage may make."""
RESULTS = tuple({kind for kinds in RESULTS_OF_STAGE.values() for kind in kinds})
OUTPUT_SECONDS = 10.0
"""Between two ``output`` webhooks; what comes meanwhile is in the next."""
REFUSED_KEPT = 50
"""Claims that were refused and that a job remembers, the newest."""


# --- From the outside -------------------------------------------------------------------------


def admit(
    job_id: str,
    owner: str,
    request: Request,
    echo: dict[str, Any],
    *,
    sealed: str | None,
    now: float,
    digest: str = "",
    checks: bool = False,
) -> Step:
    """A new job, and the fact that asks for its staging; ``checks``: which is all there is."""
    submitted = JobSubmitted(
        job=job_id, run=1, train=request.train, model=request.model, inference=request.inference
    )
    job = Job(
        id=job_id,
        owner=owner,
        digest=digest,
        input=echo,
        policy=request.policy,
        webhook=request.webhook,
        webhook_events=request.webhook_events,
        warnings=request.warnings,
        s3=sealed,
        trains=request.train is not None,
        draws=bool(request.inference),
        checks=checks,
        created_at=now,
        stages={"staging": StageRecord(trigger=encode(submitted), due_at=now)},
    )
    step = Step(job, (Effect(message=submitted),))
    return step if sealed is None else _with_bucket_check(step, now)


def _with_bucket_check(step: Step, now: float) -> Step:
    """Have the user's bucket tried, beside the staging."""
    due = BucketDue(job=step.job.id, run=step.job.run)
    record = StageRecord(trigger=encode(due), due_at=now)
    return Step(_with(step.job, "bucket_check", record), (*step.effects, Effect(message=due)))


def cancel(job: Job, now: float) -> Step:
    """The user's wish; a job that has ended stays as it is."""
    return Step(job) if job.ended else _end(job, "CANCELLED", None, now)


def issue_command(job: Job, kind: Command) -> Step:
    """Something the user wants of the training at work.

    It stays one wish, however often it is repeated, until it is granted. A job that does not train
    stays as it is.
    """
    if why_no_command(job):
        return Step(job)
    granted = job.commands_done.get(kind, 0)
    job = replace(job, commands={**job.commands, kind: granted + 1})
    return Step(job, _commands_told(job))


RETRYABLE: tuple[Status, ...] = ("FAILED", "TIMED_OUT")
"""Ends after which a job may be run again."""


def rerun(job: Job, now: float) -> Step:
    """The next run of the same job, from the stages that did not get done.

    What a finished stage has made stays, the newest resume point too; wishes are
    forgotten. A job that has not failed stays as it is.
    """
    if job.status not in RETRYABLE:
        return Step(job)
    job = replace(
        job,
        run=job.run + 1,
        status="IN_QUEUE",
        created_at=now,
        started_at=None,
        ended_at=None,
        gpu="",
        error=None,
        stages={stage: _reopened(record) for stage, record in job.stages.items()},
        progress={},
        commands={},
        commands_done={},
        webhook_attempts=0,
        webhook_settled=False,
    )
    return _ask_all_again(job, STAGES, now)


def _reopened(record: StageRecord) -> StageRecord:
    if record.done:
        return record
    return msgspec.structs.replace(_released(record), failures=0, failed=None)


def _ask_all_again(job: Job, stages: Iterable[Stage], now: float) -> Step:
    """Those of the stages that are open."""
    step = Step(job)
    for stage in stages:
        if stage in job.stages and job.stages[stage].open:
            asked = requeue(step.job, stage, now=now)
            step = Step(asked.job, (*step.effects, *asked.effects))
    return step


def time_out(job: Job, reason: str, now: float) -> Step:
    return Step(job) if job.ended else _end(job, "TIMED_OUT", reason, now)


def lose_claim(job: Job, stage: Stage, claim: str, *, now: float, heartbeat: float) -> Step:
    """The supervisor has not heard of a claim for too long."""
    held = job.stages[stage].claim if job.holds(stage, claim) else None
    if held is None:
        return Step(job)
    reason = f"the worker {held.worker} was lost during {stage}"
    return _failure(_release(job, stage), stage, reason, now=now, heartbeat=heartbeat)


def requeue(job: Job, stage: Stage, *, now: float, delay: float = 0.0) -> Step:
    """Put a stage's asking fact on its queue once more."""
    record = job.stages[stage]
    job = _with(job, stage, msgspec.structs.replace(record, due_at=now + delay))
    message = decode(record.trigger)
    return Step(job, (Effect(message=message, queue=STAGE_QUEUES[stage].name, delay=delay),))


# --- Facts ------------------------------------------------------------------------------------


def advance(
    job: Job, fact: AnyMessage, *, reply_queue: str | None, now: float, heartbeat: float
) -> Step:
    """What a fact makes of a job.

    Args:
        job: the record before the fact.
        fact: anything a worker or the notifier said about this job.
        reply_queue: where the worker gets answers, for the answer (the delivery's ``reply_to``).
        now: seconds since the epoch, by the gateway's clock.
        heartbeat: seconds between heartbeats; retry delays are multiples of it.
    """
    return _with_output_told(job, _advance(job, fact, reply_queue, now, heartbeat), now)


def _advance(
    job: Job, fact: AnyMessage, reply_queue: str | None, now: float, heartbeat: float
) -> Step:
    match fact:
        case WebhookDelivered() | WebhookFailed():
            return _webhook(job, fact, now, heartbeat)
        case SamplesGenerated():
            return Step(_with_late_samples(job, fact))
        case StageFact() if isinstance(fact, Started):
            return _claim(job, fact, reply_queue, now)
        case StageFact() if not job.holds(fact.stage, fact.claim):
            reason = "the job has ended" if job.ended else "this claim is not the live one"
            return Step(job, _refusal(fact, reply_queue, reason))
        case StageFact():
            return _of_live_claim(_at(job, fact, reply_queue), fact, now, heartbeat)
    return Step(job)


def _fits(job: Job, fact: StageFact) -> bool:
    """A stage that is done with something else would leave its job with nothing to go on with."""
    if isinstance(fact, DatasetStaged | ModelStaged):
        return fact.stage == "staging" and isinstance(fact, DatasetStaged) == job.trains
    return not isinstance(fact, RESULTS) or isinstance(fact, RESULTS_OF_STAGE[fact.stage])


def _of_live_claim(job: Job, fact: StageFact, now: float, heartbeat: float) -> Step:  # noqa: C901, PLR0911
    if not _fits(job, fact):
        reason = f"{fact.worker} said {type_of(fact)}, which {fact.stage} of this job is not for"
        return _failure(_release(job, fact.stage), fact.stage, reason, now=now, heartbeat=heartbeat)
    match fact:
        case DatasetStaged():
            return _staged(_done(replace(job, report=fact.report), fact), fact, now)
        case ModelStaged():
            return _ask(_done(job, fact), "generation", fact, now)
        case BucketChecked():
            return _bucket_checked(job, fact, now)
        case CheckpointSampled() | CheckpointSaved() | ResumePointSaved():
            return Step(_kept(job, fact))
        case CheckpointFinal():
            return _trained(job, fact, now)
        case ImagesGenerated():
            job = _done(_drawn(job, fact), fact)
            return _settle(_ask(job, "image_publication", fact, now, when=job.published), now)
        case ArtifactsPublished():
            return _settle(Step(_done(replace(job, urls=job.urls | fact.urls), fact)), now)
        case StageFailed(kind="refused"):
            return _give_up(_release(job, fact.stage), fact.stage, fact.reason, now)
        case StageFailed():
            return _failure(
                _release(job, fact.stage), fact.stage, fact.reason, now=now, heartbeat=heartbeat
            )
    if isinstance(fact, Progressed):
        job = replace(job, progress={**job.progress, fact.stage: fact.progress})
        return Step(job, _commands_told(job))
    if isinstance(fact, Interruption):
        return requeue(_release(job, fact.stage), fact.stage, now=now)
    return Step(job)


def _claim(job: Job, fact: Started, reply_queue: str | None, now: float) -> Step:
    """Grant or refuse; the same claim gets the same answer again."""
    if job.holds(fact.stage, fact.claim):
        job = _at(job, fact, reply_queue)
        return Step(job, _grant(job, fact.stage))
    record = job.stages.get(fact.stage)
    if reason := _why_not(job, record, fact):
        return Step(_with_refused(job, fact.claim), _refusal(fact, reply_queue, reason))
    assert record is not None  # noqa: S101 - _why_not refuses what was not asked for
    claim = Claim(
        id=fact.claim,
        worker=fact.worker,
        reply_queue=reply_queue or "",
        attempt=record.attempts + 1,
    )
    record = msgspec.structs.replace(record, claim=claim, attempts=claim.attempt)
    step = _begin(_with(job, fact.stage, record), fact, now)
    return Step(step.job, (*step.effects, *_grant(step.job, fact.stage)))


def _why_not(job: Job, record: StageRecord | None, fact: Started) -> str | None:
    if job.ended:
        return "the job has ended"
    if record is None or not record.open:
        return "nothing is asked for"
    if record.claim is not None:
        return f"the worker {record.claim.worker} has it"
    if fact.stage in GPU_STAGES and _bucket_is_tried(job):
        return "the user's bucket is being tried"
    return _why_not_this_claim(job, record, fact)


def _why_not_this_claim(job: Job, record: StageRecord, fact: Started) -> str | None:
    """An attempt that has ended may have asked for the next stage too, by a fact of its own."""
    if fact.claim in job.refused_claims:
        return "this claim was refused"
    if fact.claim in record.ended_claims:
        return "this claim has ended"
    if fact.asked_by not in (None, claim_of(decode(record.trigger))):
        return "it was asked for by an attempt that has ended"
    return None


def _with_refused(job: Job, claim: str) -> Job:
    """The worker has let go of it: granted later, it would be nobody's, and block its stage."""
    if claim in job.refused_claims:
        return job
    return replace(job, refused_claims=(*job.refused_claims, claim)[-REFUSED_KEPT:])


def _bucket_is_tried(job: Job) -> bool:
    record = job.stages.get("bucket_check")
    return record is not None and record.open


def _bucket_checked(job: Job, fact: BucketChecked, now: float) -> Step:
    """What was refused to the GPU workers meanwhile is asked for again."""
    if fact.warning is not None:
        job = replace(job, warnings=(*job.warnings, fact.warning))
    return _ask_all_again(_done(job, fact), GPU_STAGES, now)


def _begin(job: Job, fact: Started, now: float) -> Step:
    """The first GPU claim starts the job."""
    if fact.stage not in GPU_STAGES or job.started_at is not None:
        return Step(job)
    job = replace(job, status="IN_PROGRESS", started_at=now, gpu=fact.gpu)
    started = JobStarted(job=job.id, run=job.run, gpu=fact.gpu)
    step = Step(job, (Effect(message=started, mandatory=False),))
    return _webhook_due(step, "start", 0, now) if _wants(job, "start") else step


def _grant(job: Job, stage: Stage) -> tuple[Effect, ...]:
    claim = job.stages[stage].claim
    assert claim is not None  # noqa: S101 - the caller has just set or seen it
    grant = ClaimGranted(
        job=job.id,
        stage=stage,
        claim=claim.id,
        attempt=claim.attempt,
        resume_point=job.resume_point if stage == "training" else None,
        s3=job.s3 if stage in BUCKET_STAGES else None,
        samples=_sample_artifacts(job) if stage == "image_publication" else (),
        commands=_open_commands(job) if stage == "training" else {},
    )
    return _answer(grant, claim.reply_queue)


def _commands_told(job: Job) -> tuple[Effect, ...]:
    """To who trains; with each beat again, until nothing is left to grant."""
    record = job.stages.get("training")
    claim = record.claim if record else None
    commands = _open_commands(job)
    if claim is None or not commands:
        return ()
    asked = CommandIssued(job=job.id, stage="training", claim=claim.id, commands=commands)
    return _answer(asked, claim.reply_queue)


def _open_commands(job: Job) -> dict[Command, int]:
    return {
        kind: each for kind, each in job.commands.items() if each > job.commands_done.get(kind, 0)
    }


def _refusal(fact: StageFact, reply_queue: str | None, reason: str) -> tuple[Effect, ...]:
    refusal = ClaimRefused(job=fact.job, stage=fact.stage, claim=fact.claim, reason=reason)
    return _answer(refusal, reply_queue)


def refuse_unknown(fact: StageFact, reply_queue: str | None) -> tuple[Effect, ...]:
    """The answer to a worker that speaks of a job nobody knows."""
    return _refusal(fact, reply_queue, "no such job")


def _answer(message: Message, reply_queue: str | None) -> tuple[Effect, ...]:
    if not reply_queue:
        return ()
    return (Effect(message=message, queue=reply_queue, durable=False, mandatory=False),)


# --- Outcomes ---------------------------------------------------------------------------------


def _staged(job: Job, fact: DatasetStaged, now: float) -> Step:
    """Training is next, unless the report was all; a trainer that claims it then is refused."""
    return _end(job, "COMPLETED", None, now) if job.checks else _ask(job, "training", fact, now)


def _trained(job: Job, fact: CheckpointFinal, now: float) -> Step:
    job = replace(
        _done(job, fact),
        checkpoint=fact.checkpoint,
        model=fact.model,
        checkpoints=_united(job.checkpoints, fact.checkpoints),
        summary=fact.summary,
        records=fact.records,
    )
    step = _ask(job, "generation", fact, now, when=job.draws or fact.row is not None)
    return _settle(_ask(step.job, "model_publication", fact, now, when=job.published), now)


def _drawn(job: Job, fact: ImagesGenerated) -> Job:
    warnings = [*job.summary.get("warnings", ()), *fact.warnings]
    summary = {**job.summary, "warnings": warnings} if warnings else job.summary
    return replace(_with_samples(job, fact.samples), images=fact.images, summary=summary)


def _ask(job: Job, stage: Stage, fact: StageFact, now: float, *, when: bool = True) -> Step:
    """A fact asks for a stage by its own routing; the record remembers it."""
    if when and stage not in job.stages:
        job = _with(job, stage, StageRecord(trigger=encode(fact), due_at=now))
    return Step(job)


def _failure(job: Job, stage: Stage, reason: str, *, now: float, heartbeat: float) -> Step:
    """A passing failure: again after a backoff, until there were too many in a row."""
    record = job.stages[stage]
    failures = record.failures + 1
    job = _with(job, stage, msgspec.structs.replace(record, failures=failures))
    if failures >= retry.FAILURES_ALLOWED:
        return _give_up(job, stage, f"{stage} failed {failures} times in a row: {reason}", now)
    return requeue(job, stage, now=now, delay=retry.delay(failures, heartbeat))


def _give_up(job: Job, stage: Stage, reason: str, now: float) -> Step:
    record = msgspec.structs.replace(job.stages[stage], failed=reason)
    return _settle(Step(_with(job, stage, record)), now)


def _settle(step: Step, now: float) -> Step:
    """End the job when nothing is left to do, or when a stage was given up.

    A model on its way to the user's bucket is let through first: no failed generation loses it.
    """
    job = step.job
    failed = [record.failed for record in job.stages.values() if record.failed is not None]
    still_open = [stage for stage, record in job.stages.items() if record.open]
    if failed and "model_publication" not in still_open:
        end = _end(job, "FAILED", failed[0], now)
    elif not still_open and (job.checkpoint is not None or job.images):
        end = _end(job, "COMPLETED", None, now)
    else:
        return step
    return Step(end.job, (*step.effects, *end.effects))


def _end(job: Job, status: Status, error: str | None, now: float) -> Step:
    live = [record.claim for record in job.stages.values() if record.claim is not None]
    wiped = status in ("COMPLETED", "CANCELLED")
    job = replace(
        job, status=status, error=error, ended_at=now, s3=None if wiped else job.s3,
        webhook_settled=not _wants(job, "completed")
        or (status == "CANCELLED" and not job.webhook_events),
    )  # fmt: skip
    stops = [
        effect
        for stage, record in job.stages.items()
        if record.claim in live and record.claim is not None
        for effect in _answer(
            ClaimRefused(
                job=job.id, stage=stage, claim=record.claim.id, reason="the job has ended"
            ),
            record.claim.reply_queue,
        )
    ]
    said = Effect(message=_end_fact(job), mandatory=False)
    step = Step(job, (said, *stops))
    return step if job.webhook_settled else _end_due(step, now)


def _end_fact(job: Job) -> Message:
    match job.status:
        case "COMPLETED":
            output = {"dataset": job.report} if job.checks else job.summary
            return JobCompleted(job=job.id, run=job.run, output=output)
        case "CANCELLED":
            return JobCancelled(job=job.id, run=job.run)
        case "TIMED_OUT":
            return JobTimedOut(job=job.id, run=job.run, error=job.error or "")
    return JobFailed(job=job.id, run=job.run, error=job.error or "")


# --- The webhook ------------------------------------------------------------------------------


def resend_webhook(job: Job, webhook: str, now: float) -> Step:
    """Try one more time now, whatever the schedule does; an id that is not known says nothing."""
    known = [each for each in job.webhook_tries if each.id == webhook]
    return _try(Step(job), known[-1], now) if known else Step(job)


def _wants(job: Job, event: WebhookEvent) -> bool:
    return job.webhook is not None and event in (job.webhook_events or ("completed",))


def _webhook_due(
    step: Step, event: WebhookEvent, number: int, now: float, delay: float = 0.0
) -> Step:
    job = step.job
    first = WebhookTry(
        id=webhook_id(job, event, number), event=event, run=job.run, attempt=1, at=now
    )
    return _try(step, first, now, delay)


def _try(step: Step, webhook: WebhookTry, now: float, delay: float = 0.0) -> Step:
    """One more, or the first. The body is filled in when it leaves: links in it are signed."""
    job = step.job
    attempts = [each.attempt for each in job.webhook_tries if each.id == webhook.id]
    tried = WebhookTry(
        id=webhook.id, event=webhook.event, run=webhook.run,
        attempt=max(attempts, default=0) + 1, at=now + delay,
    )  # fmt: skip
    due = WebhookDue(
        job=job.id, run=tried.run, attempt=tried.attempt, url=job.webhook or "",
        webhook_id=tried.id, event=tried.event, body="",
    )  # fmt: skip
    job = replace(job, webhook_tries=(*job.webhook_tries, tried)[-TRIES_KEPT:])
    return Step(job, (*step.effects, Effect(message=due, delay=delay)))


def _end_due(step: Step, now: float, delay: float = 0.0) -> Step:
    """The only webhook that is tried by a schedule."""
    step = _webhook_due(step, "completed", 0, now, delay)
    awaited = step.job.webhook_tries[-1].attempt
    return Step(replace(step.job, webhook_awaited=awaited), step.effects)


def _with_output_told(before: Job, step: Step, now: float) -> Step:
    """The end tells the last output itself."""
    job = step.job
    soon = now - job.webhook_output_at < OUTPUT_SECONDS
    if job.ended or soon or _output(job) == _output(before) or not _wants(job, "output"):
        return step
    job = replace(job, webhook_outputs=job.webhook_outputs + 1, webhook_output_at=now)
    return _webhook_due(Step(job, step.effects), "output", job.webhook_outputs, now)


def _output(job: Job) -> tuple[object, ...]:
    return (job.samples, job.checkpoints, job.checkpoint)


def _webhook(
    job: Job, fact: WebhookDelivered | WebhookFailed, now: float, heartbeat: float
) -> Step:
    """On record; the end's also settled, or due again by the schedule, if it was waited for."""
    job = _with_outcome(job, fact, now)
    awaited = (webhook_id(job, "completed", 0), job.webhook_awaited)
    if (fact.webhook_id, fact.attempt) != awaited or not job.ended or job.webhook_settled:
        return Step(job)
    job = replace(job, webhook_attempts=job.webhook_attempts + 1)
    wait = retry.webhook_delay(job.webhook_attempts, heartbeat)
    if isinstance(fact, WebhookDelivered) or fact.permanent or wait is None:
        return Step(replace(job, webhook_settled=True))
    return _end_due(Step(job), now, max(wait, fact.retry_after or 0.0))


def _with_outcome(job: Job, fact: WebhookDelivered | WebhookFailed, now: float) -> Job:
    """The first outcome of a try counts: a try that is made twice is the same."""
    outcome: dict[str, Any] = (
        {"status": fact.status} if isinstance(fact, WebhookDelivered) else {"reason": fact.reason}
    )
    place = (fact.webhook_id, fact.attempt, None, None)
    tries = (
        msgspec.structs.replace(each, at=now, **outcome)
        if (each.id, each.attempt, each.status, each.reason) == place
        else each
        for each in job.webhook_tries
    )
    return replace(job, webhook_tries=tuple(tries))


# --- Parts of a record ------------------------------------------------------------------------


def replace(job: Job, **changes: Any) -> Job:
    """The record with some fields changed."""
    return msgspec.structs.replace(job, **changes)


def _with(job: Job, stage: Stage, record: StageRecord) -> Job:
    return replace(job, stages={**job.stages, stage: record})


def _at(job: Job, fact: StageFact, reply_queue: str | None) -> Job:
    """Remember the worker's newest control queue; a lost connection gives it a new one."""
    record = job.stages[fact.stage]
    if not reply_queue or record.claim is None or record.claim.reply_queue == reply_queue:
        return job
    claim = msgspec.structs.replace(record.claim, reply_queue=reply_queue)
    return _with(job, fact.stage, msgspec.structs.replace(record, claim=claim))


def _release(job: Job, stage: Stage) -> Job:
    """Take the live claim away; it is never granted again."""
    return _with(job, stage, _released(job.stages[stage]))


def _released(record: StageRecord) -> StageRecord:
    ended = (*record.ended_claims, record.claim.id) if record.claim else record.ended_claims
    return msgspec.structs.replace(record, claim=None, ended_claims=ended)


def _done(job: Job, fact: StageFact) -> Job:
    job = _release(job, fact.stage)
    return _with(job, fact.stage, msgspec.structs.replace(job.stages[fact.stage], done=True))


def _kept(job: Job, fact: CheckpointSampled | CheckpointSaved | ResumePointSaved) -> Job:
    """Something of a training at work was kept, perhaps because the user wanted it."""
    match fact:
        case CheckpointSampled():
            return _granting(job, "sample", fact.command)
        case CheckpointSaved():
            return _granting(_with_checkpoint(job, fact), "save", fact.command)
        case ResumePointSaved():
            return _with_resume_point(job, fact)


def _with_checkpoint(job: Job, fact: CheckpointSaved) -> Job:
    if any(each.artifact.key == fact.artifact.key for each in job.checkpoints):
        return job
    saved = SavedCheckpoint(
        artifact=fact.artifact, step=fact.step, epoch=fact.epoch,
        validation_loss=fact.validation_loss,
    )  # fmt: skip
    kept = (each for each in job.checkpoints if each.artifact.key not in fact.replaced)
    return replace(job, checkpoints=(*kept, saved))


def _united(
    known: tuple[SavedCheckpoint, ...], told: tuple[SavedCheckpoint, ...]
) -> tuple[SavedCheckpoint, ...]:
    """Each checkpoint once, oldest first: an attempt that died may have saved some of its own."""
    return tuple({each.artifact.key: each for each in (*known, *told)}.values())


def _with_late_samples(job: Job, fact: SamplesGenerated) -> Job:
    """Samples are welcome until the images are there: what is published then is complete."""
    generation = job.stages.get("generation")
    closed = job.ended or (generation is not None and not generation.open)
    return job if closed else _with_samples(job, fact.samples)


def _with_samples(job: Job, samples: tuple[DrawnSample, ...]) -> Job:
    """Each (step, prompt) once: drawn again it lies under the same key, so the newest is right."""
    rows = {(each.step, each.index): each for each in (*job.samples, *samples)}
    return replace(job, samples=tuple(rows[place] for place in sorted(rows)))


def _sample_artifacts(job: Job) -> tuple[Artifact, ...]:
    return tuple(each.artifact for each in job.samples)


def _granting(job: Job, kind: Command, number: int) -> Job:
    if number <= job.commands_done.get(kind, 0):
        return job
    return replace(job, commands_done={**job.commands_done, kind: number})


def _with_resume_point(job: Job, fact: ResumePointSaved) -> Job:
    record = msgspec.structs.replace(job.stages[fact.stage], failures=0)
    return _with(replace(job, resume_point=fact.prefix), fact.stage, record)
