"""How a job's record changes: one pure function for facts, and one for each request of a user.

``advance(job, fact)`` is total: any fact in any state gives a record and the messages it causes,
which the gateway writes in one commit. The first end of a run is final.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import msgspec

from services.gateway.jobs.outputs import (
    merged_checkpoints,
    with_asked_row,
    with_checkpoint,
    with_command_done,
    with_images,
    with_samples,
)
from services.gateway.jobs.record import (
    GPU_STAGES,
    PUBLICATIONS,
    WORKER_LOST,
    Claim,
    Effect,
    Job,
    KeptDataset,
    StagedModel,
    StageRecord,
    Step,
    is_open,
    why_no_command,
)
from services.gateway.jobs.webhook_schedule import (
    completed_webhook_due,
    wants,
    webhook_due,
    webhook_outcome,
    with_output_webhook,
)
from services.gateway.ports import Status
from services.gateway.turns.places import BUCKET_STAGES
from shared import retry
from shared.messaging.messages import (
    STAGES,
    AnyMessage,
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
    PublicationStarted,
    ResumePointSaved,
    SamplesGenerated,
    Stage,
    StageFact,
    StageFailed,
    StagingDue,
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
from shared.request import Command, Request

RESULTS_OF_STAGE: dict[Stage, tuple[type[StageFact], ...]] = {
    "staging": (DatasetStaged, ModelStaged),
    "bucket_check": (BucketChecked,),
    "training": (CheckpointSampled, CheckpointSaved, ResumePointSaved, CheckpointFinal),
    "generation": (ImagesGenerated,),
    "model_publication": (ArtifactsPublished,),
    "image_publication": (ArtifactsPublished,),
}
"""Result messages that a stage may publish."""
RESULTS = tuple({kind for kinds in RESULTS_OF_STAGE.values() for kind in kinds})
REFUSED_KEPT = 50
"""Refused claims kept in a record, the newest."""
KEPT_SECONDS = 24 * 3600.0
"""How long the dataset of a check is kept."""
RETRYABLE: tuple[Status, ...] = ("FAILED", "TIMED_OUT")
"""A job that ended so may be run again."""


# --- Requests of users and of the supervisor --------------------------------------------------


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
    """A new job, which waits for its turn, and the message that says so.

    ``echo`` is the request's ``input``, as ``/status`` shows it; ``sealed`` the encrypted
    ``s3Config``. With ``checks`` the job ends after staging, with the report on the dataset.
    """
    due = StagingDue(
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
        released_at=None,
        stages={"staging": StageRecord(trigger=encode(due))},
    )
    if sealed is not None:
        check = BucketDue(job=job_id, run=1)
        job = _with_stage(job, "bucket_check", StageRecord(trigger=encode(check)))
    submitted = JobSubmitted(**msgspec.structs.asdict(due))
    return Step(job, (Effect(message=submitted, mandatory=False),), due)


def release(job: Job, now: float, due: StagingDue | None = None) -> Step:
    """It is the turn of a job that waits for it: request its open stages.

    ``due`` is what requests staging, if it is at hand: it may be large, and is not decoded then.
    """
    if job.ended or job.released_at is not None:
        return Step(job)
    step = _requeue_open(replace(job, released_at=now), STAGES, now, due)
    return Step(step.job, tuple(_first_request(effect) for effect in step.effects))


def _first_request(effect: Effect) -> Effect:
    """Published, for whoever listens; what a worker's fact requested was published before."""
    is_ours = isinstance(effect.message, StagingDue | BucketDue)
    return Effect(message=effect.message) if is_ours else effect


def cancel(job: Job, now: float) -> Step:
    """End a job by request; one that has ended stays as it is."""
    return Step(job) if job.ended else _end(job, "CANCELLED", None, now)


def issue_command(job: Job, kind: Command) -> Step:
    """Order a sample, a checkpoint or the end of a running training.

    Repeated before it is done, it stays one command. A job that is not training stays as it is.
    """
    if why_no_command(job, kind):
        return Step(job)
    done = job.commands_done.get(kind, 0)
    job = replace(job, commands={**job.commands, kind: done + 1})
    return Step(job, _send_commands(job))


def rerun(job: Job, now: float) -> Step:
    """The next run of a failed job, with the stages that are not done; it waits for its turn.

    Results of finished stages and the newest resume point stay; commands are dropped. A job that
    has not failed stays as it is.
    """
    if job.status not in RETRYABLE:
        return Step(job)
    job = replace(
        job,
        run=job.run + 1,
        status="IN_QUEUE",
        created_at=now,
        released_at=None,
        started_at=None,
        ended_at=None,
        gpu="",
        error=None,
        stages={stage: _reopened(record) for stage, record in job.stages.items()},
        commands={},
        commands_done={},
        asked_rows=(),
        webhook_attempts=0,
        webhook_settled=False,
    )
    return Step(job)


def _reopened(record: StageRecord) -> StageRecord:
    if record.done:
        return record
    return msgspec.structs.replace(_released(record), failures=0, failed=None, last_failure=None)


def _requeue_open(
    job: Job, stages: Iterable[Stage], now: float, due: StagingDue | None = None
) -> Step:
    step = Step(job)
    for stage in stages:
        if stage in job.stages and job.stages[stage].open:
            message = due if stage == "staging" else None
            requeued = requeue(step.job, stage, now=now, message=message)
            step = Step(requeued.job, (*step.effects, *requeued.effects))
    return step


def give_up_message(job: Job, message: Message, reason: str, now: float) -> Step:
    """The broker refuses a message of the job for good.

    A webhook's try has failed; without any other message the job cannot go on.
    """
    if isinstance(message, WebhookDue):
        failed = WebhookFailed(
            job=job.id, run=message.run, attempt=message.attempt, webhook_id=message.webhook_id,
            reason=reason, permanent=True,
        )  # fmt: skip
        return webhook_outcome(job, failed, now, heartbeat=0.0)  # permanent: nothing is scheduled
    return Step(job) if job.ended else _end(job, "FAILED", reason, now)


def time_out(job: Job, reason: str, now: float) -> Step:
    return Step(job) if job.ended else _end(job, "TIMED_OUT", reason, now)


def lose_claim(job: Job, stage: Stage, claim: str, *, now: float, heartbeat: float) -> Step:
    """A claim showed no sign of life for too long."""
    held = job.stages[stage].claim if job.holds(stage, claim) else None
    if held is None:
        return Step(job)
    reason = f"{WORKER_LOST}{stage}"
    return _fail_attempt(job, stage, reason, now=now, heartbeat=heartbeat)


def requeue(
    job: Job,
    stage: Stage,
    *,
    now: float,
    delay: float = 0.0,
    message: Message | None = None,
) -> Step:
    """Put the message that requested a stage on the stage's queue again.

    ``message`` is that message, where it is known; else it is decoded.
    """
    record = job.stages[stage]
    job = _with_stage(job, stage, msgspec.structs.replace(record, due_at=now + delay))
    message = message or decode(record.trigger)
    return Step(job, (Effect(message=message, queue=STAGE_QUEUES[stage].name, delay=delay),))


# --- Facts ------------------------------------------------------------------------------------


def advance(
    job: Job,
    fact: AnyMessage,
    *,
    reply_queue: str | None,
    now: float,
    heartbeat: float,
    crowding: Collection[str] = (),
) -> Step:
    """Apply a fact to a job.

    Args:
        job: the record before the fact.
        fact: any message that a worker or the notifier published about this job.
        reply_queue: the worker's (the delivery's ``reply_to``).
        now: seconds since the epoch, by the gateway's clock.
        heartbeat: seconds between heartbeats; retry delays are multiples of it.
        crowding: owners who have to wait before they claim another upload to a bucket.
    """
    if isinstance(fact, PublicationStarted) and job.owner in crowding:
        return _put_off(job, fact, reply_queue, now=now, delay=heartbeat)
    return with_output_webhook(job, _advance(job, fact, reply_queue, now, heartbeat), now)


def _advance(
    job: Job, fact: AnyMessage, reply_queue: str | None, now: float, heartbeat: float
) -> Step:
    match fact:
        case WebhookDelivered() | WebhookFailed():
            return webhook_outcome(job, fact, now, heartbeat)
        case SamplesGenerated():
            return Step(_with_late_samples(job, fact))
        case StageFact() if isinstance(fact, Started):
            return _grant_or_refuse(job, fact, reply_queue, now)
        case StageFact() if not job.holds(fact.stage, fact.claim):
            reason = "the job has ended" if job.ended else "this claim is not the live one"
            return Step(job, _refusal(fact, reply_queue, reason))
        case StageFact():
            return _advance_claimed(_with_reply_queue(job, fact, reply_queue), fact, now, heartbeat)
    return Step(job)


def is_expected(job: Job, fact: StageFact) -> bool:
    """Whether the stage may publish this; a wrong result would leave the next stages no input."""
    if isinstance(fact, DatasetStaged | ModelStaged):
        return fact.stage == "staging" and isinstance(fact, DatasetStaged) == job.trains
    return not isinstance(fact, RESULTS) or isinstance(fact, RESULTS_OF_STAGE[fact.stage])


def _advance_claimed(job: Job, fact: StageFact, now: float, heartbeat: float) -> Step:  # noqa: C901, PLR0911
    if not is_expected(job, fact):
        reason = f"its worker gave a result of another kind ({type_of(fact)})"
        return _fail_attempt(job, fact.stage, reason, now=now, heartbeat=heartbeat)
    match fact:
        case DatasetStaged():
            return _staged(_done(job, fact), fact, now)
        case ModelStaged():
            job = replace(
                job,
                warnings=(*job.warnings, *fact.warnings),
                staged_model=StagedModel(
                    prefix=fact.lora_base or fact.model, bytes=fact.model_bytes
                ),
            )
            return Step(_with_next(_done(job, fact), "generation", fact, now))
        case BucketChecked():
            return _bucket_checked(job, fact, now)
        case CheckpointSampled() | CheckpointSaved() | ResumePointSaved():
            return Step(_with_saved(job, fact))
        case CheckpointFinal():
            return _trained(job, fact, now)
        case ImagesGenerated():
            return _generated(job, fact, now)
        case ArtifactsPublished():
            return _end_if_done(_done(replace(job, urls=job.urls | fact.urls), fact), now)
        case StageFailed(kind="refused"):
            return _fail_stage(_release(job, fact.stage), fact.stage, fact.reason, now)
        case StageFailed():
            return _fail_attempt(job, fact.stage, fact.reason, now=now, heartbeat=heartbeat)
    if isinstance(fact, Progressed):
        return Step(job, _send_commands(job))
    if isinstance(fact, Interruption):
        return requeue(_release(job, fact.stage), fact.stage, now=now)
    return Step(job)


def _grant_or_refuse(job: Job, fact: Started, reply_queue: str | None, now: float) -> Step:
    """The same claim always gets the same reply."""
    if job.holds(fact.stage, fact.claim):
        job = _with_reply_queue(job, fact, reply_queue)
        return Step(job, _grant(job, fact.stage))
    record = job.stages.get(fact.stage)
    if reason := _why_refused(job, record, fact):
        return Step(_with_refused(job, fact.claim), _refusal(fact, reply_queue, reason))
    assert record is not None  # noqa: S101 - else _why_refused gives a reason
    claim = Claim(
        id=fact.claim,
        worker=fact.worker,
        reply_queue=reply_queue or "",
        attempt=record.attempts + 1,
        at=now,
        gpu=fact.gpu,
        version=fact.version,
    )
    record = msgspec.structs.replace(record, claim=claim, attempts=claim.attempt)
    step = _start_job(_with_stage(job, fact.stage, record), fact, now)
    return Step(step.job, (*step.effects, *_grant(step.job, fact.stage)))


def _put_off(job: Job, fact: Started, reply_queue: str | None, *, now: float, delay: float) -> Step:
    """Refuse a claim that would be granted, and request the stage again a little later."""
    record = job.stages.get(fact.stage)
    if job.holds(fact.stage, fact.claim) or _why_refused(job, record, fact):
        return _grant_or_refuse(job, fact, reply_queue, now)
    step = requeue(_with_refused(job, fact.claim), fact.stage, now=now, delay=delay)
    reason = "its owner has enough uploads under way"
    return Step(step.job, (*step.effects, *_refusal(fact, reply_queue, reason)))


def _why_refused(job: Job, record: StageRecord | None, fact: Started) -> str | None:
    if job.ended:
        return "the job has ended"
    if record is None or not record.open:
        return "nothing is asked for"
    if job.released_at is None:
        return "the job waits for its turn"
    if record.claim is not None:
        return f"the worker {record.claim.worker} has it"
    bucket_check = job.stages.get("bucket_check")
    if fact.stage in GPU_STAGES and bucket_check is not None and bucket_check.open:
        return "the user's bucket is being tried"
    return _why_claim_refused(job, record, fact)


def _why_claim_refused(job: Job, record: StageRecord, fact: Started) -> str | None:
    if fact.claim in job.refused_claims:
        return "this claim was refused"
    if fact.claim in record.ended_claims:
        return "this claim has ended"
    # An attempt that has ended may have requested the next stage too, by its own message.
    if fact.asked_by not in (None, claim_of(decode(record.trigger))):
        return "it was asked for by an attempt that has ended"
    return None


def _with_refused(job: Job, claim: str) -> Job:
    """Granting a refused claim later would block its stage: its worker has dropped it."""
    if claim in job.refused_claims:
        return job
    return replace(job, refused_claims=(*job.refused_claims, claim)[-REFUSED_KEPT:])


def _bucket_checked(job: Job, fact: BucketChecked, now: float) -> Step:
    """Requeue GPU stages, whose claims were refused during the check."""
    if fact.warning is not None:
        job = replace(job, warnings=(*job.warnings, fact.warning))
    return _requeue_open(_done(job, fact), GPU_STAGES, now)


def _start_job(job: Job, fact: Started, now: float) -> Step:
    """The first GPU claim starts the job."""
    if fact.stage not in GPU_STAGES or job.started_at is not None:
        return Step(job)
    job = replace(job, status="IN_PROGRESS", started_at=now, gpu=fact.gpu)
    started = JobStarted(job=job.id, run=job.run, gpu=fact.gpu)
    step = Step(job, (Effect(message=started, mandatory=False),))
    return webhook_due(step, "start", 0, now) if wants(job, "start") else step


def _grant(job: Job, stage: Stage) -> tuple[Effect, ...]:
    claim = job.stages[stage].claim
    assert claim is not None  # noqa: S101 - every caller has checked or set it
    grant = ClaimGranted(
        job=job.id,
        stage=stage,
        claim=claim.id,
        attempt=claim.attempt,
        resume_point=job.resume_point if stage == "training" else None,
        **_for_report(job, stage),
        s3=job.s3 if stage in BUCKET_STAGES else None,
        samples=tuple(s.artifact for s in job.samples) if stage == "image_publication" else (),
        commands=_open_commands(job) if stage == "training" else {},
        traceparent=job.traceparent,
        tracestate=job.tracestate,
    )
    return _reply(grant, claim.reply_queue)


def _for_report(job: Job, stage: Stage) -> dict[str, Any]:
    """What the worker puts into the job's report."""
    if not job.trains or stage not in GPU_STAGES:
        return {}
    return {
        "submitted_at": job.created_at,
        "started_at": job.started_at or 0.0,
        "warnings": job.warnings,
        "drawn": job.samples if stage == "generation" else (),
    }


def _send_commands(job: Job) -> tuple[Effect, ...]:
    """Send open commands to the trainer; repeat every heartbeat."""
    record = job.stages.get("training")
    claim = record.claim if record else None
    commands = _open_commands(job)
    if claim is None or not commands:
        return ()
    issued = CommandIssued(job=job.id, stage="training", claim=claim.id, commands=commands)
    return _reply(issued, claim.reply_queue)


def _open_commands(job: Job) -> dict[Command, int]:
    return {kind: number for kind, number in job.commands.items() if is_open(job, kind)}


def _refusal(fact: StageFact, reply_queue: str | None, reason: str) -> tuple[Effect, ...]:
    refusal = ClaimRefused(job=fact.job, stage=fact.stage, claim=fact.claim, reason=reason)
    return _reply(refusal, reply_queue)


def refuse_unknown(fact: StageFact, reply_queue: str | None) -> tuple[Effect, ...]:
    """The reply to a fact about a job that does not exist."""
    return _refusal(fact, reply_queue, "no such job")


def _reply(message: Message, reply_queue: str | None) -> tuple[Effect, ...]:
    if not reply_queue:
        return ()
    return (Effect(message=message, queue=reply_queue, durable=False, mandatory=False),)


# --- Outcomes ---------------------------------------------------------------------------------


def _staged(job: Job, fact: DatasetStaged, now: float) -> Step:
    """Training is next, unless only the report was requested; then its claims are refused."""
    job = replace(
        job,
        report=fact.report,
        pictures=fact.pictures,
        pictures_bytes=fact.pictures_bytes,
        staged_model=StagedModel(prefix=fact.lora_base or fact.base_model, bytes=fact.model_bytes),
    )
    if job.checks and fact.pictures:  # an earlier version's fetcher leaves none, and no remarks
        kept = KeptDataset(dataset=fact.dataset, bytes=fact.dataset_bytes, until=now + KEPT_SECONDS)
        job = replace(job, kept=kept)
    if job.checks:
        return _end(job, "COMPLETED", None, now)
    return Step(_with_next(job, "training", fact, now))


def _trained(job: Job, fact: CheckpointFinal, now: float) -> Step:
    job = replace(
        _done(job, fact),
        checkpoint=fact.checkpoint,
        model=fact.model,
        lora_base=fact.lora_base,
        checkpoints=merged_checkpoints(job, fact.checkpoints),
        summary=fact.summary,
        records=fact.records,
        html_report=fact.html_report,
    )
    if job.draws or fact.row is not None:
        job = _with_next(job, "generation", fact, now)
    if job.published:
        job = _with_next(job, "model_publication", fact, now)
    return _end_if_done(job, now)


def _generated(job: Job, fact: ImagesGenerated, now: float) -> Step:
    warnings = [*job.summary.get("warnings", ()), *fact.warnings]
    summary = {**job.summary, "warnings": warnings} if warnings else job.summary
    job = replace(
        with_images(with_samples(job, fact.samples), fact.images),
        summary=summary,
        html_report=fact.html_report,
    )
    job = _done(job, fact)
    if job.published:
        job = _with_next(job, "image_publication", fact, now)
    return _end_if_done(job, now)


def _with_next(job: Job, stage: Stage, fact: StageFact, now: float) -> Job:
    """Record a stage that this fact requests; the broker has routed it to the stage's queue."""
    if stage in job.stages:
        return job
    return _with_stage(job, stage, StageRecord(trigger=encode(fact), due_at=now))


def _fail_attempt(job: Job, stage: Stage, reason: str, *, now: float, heartbeat: float) -> Step:
    """A temporary failure: retry after a backoff, unless there were too many in a row."""
    record = _released(job.stages[stage])
    failures = record.failures + 1
    record = msgspec.structs.replace(record, failures=failures, last_failure=reason)
    job = _with_stage(job, stage, record)
    if failures >= retry.FAILURES_ALLOWED:
        return _fail_stage(job, stage, f"{stage} failed {failures} times in a row: {reason}", now)
    return requeue(job, stage, now=now, delay=retry.delay(failures, heartbeat))


def _fail_stage(job: Job, stage: Stage, reason: str, now: float) -> Step:
    record = msgspec.structs.replace(job.stages[stage], failed=reason)
    return _end_if_done(_with_stage(job, stage, record), now)


def _end_if_done(job: Job, now: float) -> Step:
    """End the job when all stages are done, or one has failed for good.

    The upload of a model to the user's bucket is finished first, so that a failed generation
    does not lose the model. An upload that failed for good does not fail the job: what it should
    have uploaded is in our store, and :func:`.record.unpublished` says so.
    """
    failed = [
        record.failed
        for stage, record in job.stages.items()
        if record.failed is not None and stage not in PUBLICATIONS
    ]
    still_open = [stage for stage, record in job.stages.items() if record.open]
    if failed and "model_publication" not in still_open:
        return _end(job, "FAILED", failed[0], now)
    if not still_open and (job.checkpoint is not None or job.images):
        return _end(job, "COMPLETED", None, now)
    return Step(job)


def _end(job: Job, status: Status, error: str | None, now: float) -> Step:
    may_be_retried = status in RETRYABLE
    job = replace(
        job, status=status, error=error, ended_at=now, s3=job.s3 if may_be_retried else None,
        webhook_settled=not wants(job, "completed")
        or (status == "CANCELLED" and not job.webhook_events),
    )  # fmt: skip
    refusals = [
        effect
        for stage, record in job.stages.items()
        if record.claim is not None
        for effect in _reply(
            ClaimRefused(
                job=job.id, stage=stage, claim=record.claim.id, reason="the job has ended"
            ),
            record.claim.reply_queue,
        )
    ]
    step = Step(job, (Effect(message=_end_fact(job), mandatory=False), *refusals))
    return step if job.webhook_settled else completed_webhook_due(step, now)


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


# --- Parts of a record ------------------------------------------------------------------------


def replace(job: Job, **changes: Any) -> Job:
    """A copy of the record with some fields changed."""
    return msgspec.structs.replace(job, **changes)


def _with_stage(job: Job, stage: Stage, record: StageRecord) -> Job:
    return replace(job, stages={**job.stages, stage: record})


def _with_reply_queue(job: Job, fact: StageFact, reply_queue: str | None) -> Job:
    """Update the worker's reply queue; it gets a new one after a lost connection."""
    record = job.stages[fact.stage]
    if not reply_queue or record.claim is None or record.claim.reply_queue == reply_queue:
        return job
    claim = msgspec.structs.replace(record.claim, reply_queue=reply_queue)
    return _with_stage(job, fact.stage, msgspec.structs.replace(record, claim=claim))


def _release(job: Job, stage: Stage) -> Job:
    """End the live claim of a stage."""
    return _with_stage(job, stage, _released(job.stages[stage]))


def _released(record: StageRecord) -> StageRecord:
    ended = (*record.ended_claims, record.claim.id) if record.claim else record.ended_claims
    return msgspec.structs.replace(record, claim=None, ended_claims=ended)


def _done(job: Job, fact: StageFact) -> Job:
    job = _release(job, fact.stage)
    return _with_stage(job, fact.stage, msgspec.structs.replace(job.stages[fact.stage], done=True))


def _with_saved(job: Job, fact: CheckpointSampled | CheckpointSaved | ResumePointSaved) -> Job:
    """Training saved something, either by schedule or by a command."""
    match fact:
        case CheckpointSampled():
            return with_asked_row(job, fact)
        case CheckpointSaved():
            return with_command_done(with_checkpoint(job, fact), "save", fact.command)
        case ResumePointSaved():
            return _with_resume_point(job, fact)


def _with_late_samples(job: Job, fact: SamplesGenerated) -> Job:
    """Add samples until generation is done: later ones would not be published."""
    generation = job.stages.get("generation")
    closed = job.ended or (generation is not None and not generation.open)
    if closed:
        return job
    new = [each for each in fact.warnings if each not in job.warnings]
    return with_samples(replace(job, warnings=(*job.warnings, *new)), fact.samples)


def _with_resume_point(job: Job, fact: ResumePointSaved) -> Job:
    record = msgspec.structs.replace(job.stages[fact.stage], failures=0, last_failure=None)
    return _with_stage(replace(job, resume_point=fact.prefix), fact.stage, record)
