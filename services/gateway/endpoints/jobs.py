"""RunPod's operations of an endpoint: run, status, stream, cancel and the like."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import Meta

from services.gateway.endpoints.stream import OutputStreams
from services.gateway.jobs.admission import Admission, unwrap
from services.gateway.jobs.presenter import Presenter
from services.gateway.jobs.record import RESULT_FIELDS, Job, Step, why_no_command
from services.gateway.jobs.repository import JobRepository
from services.gateway.jobs.request_parser import Invalid, parse_request
from services.gateway.jobs.response_types import (
    Health,
    JobState,
    JobStatus,
    Piece,
    Purged,
    Stream,
)
from services.gateway.jobs.transitions import cancel, issue_command
from services.gateway.queue.capacity import Capacity
from services.gateway.queue.position import QueuePositions
from services.gateway.web.application import in_time, json_response
from services.gateway.web.authorization import Authorizer
from services.gateway.web.bodies import Bodies
from services.gateway.web.large_answers import LargeAnswers, send_large
from services.gateway.web.request_scope import is_disconnected
from services.gateway.web.routing import JSON, Answer, Body, Parameter, route
from shared.messaging.messages import stable_id
from shared.request import Command
from shared.settings import MAX_BODY

READ = ("GET", "POST")
"""RunPod's Go client uses POST where the others use GET."""
RUN_BYTES, RUNSYNC_BYTES = 10 << 20, MAX_BODY
"""RunPod's limits for bodies."""
MAX_WAIT, MAX_RUNSYNC_WAIT, RUNSYNC_WAIT = 90_000, 300_000, 90_000
"""Milliseconds."""
STORED_A_SECOND = 1 << 20
"""Bytes of a request that are stored in a second at least."""
SHORT_WAIT = 1_000
"""Default wait in milliseconds; prevents busy polling."""
IDEMPOTENCY_KEY = "Idempotency-Key"
MAX_KEY_LENGTH = 255
MOST_RUNS = 100
"""Of a job. Each leaves events that are kept with it."""
CANCELLED_STREAM_SECONDS = 10.0
"""Then a cancelled job's stream is 404; RunPod's Python client would poll it for ever."""
REQUEST = Body(JSON, {"$ref": "#/components/schemas/Request"}, "The request.")
TO_CHECK = Body(
    JSON, {"$ref": "#/components/schemas/RequestCheck"}, "The request whose dataset is checked."
)
IDEMPOTENCY = Parameter(
    IDEMPOTENCY_KEY,
    "header",
    Annotated[str, Meta(min_length=1, max_length=MAX_KEY_LENGTH)],
    "The same key with the same request gives the same job.",
)
STATE = {200: Answer("The job's id and status.", JobState)}
STATUS = {200: Answer("The job.", JobStatus)}


def wait_parameter(default: int, most: int) -> Parameter:
    """The ``wait`` parameter, in milliseconds."""
    text = f"Milliseconds, {default} by default; below 0 counts as 0, above {most} as {most}."
    return Parameter("wait", "query", int, text)


class JobRoutes:
    """Submit, read, stream, command, cancel and retry jobs."""

    def __init__(
        self,
        *,
        authorizer: Authorizer,
        admission: Admission,
        repository: JobRepository,
        presenter: Presenter,
        streams: OutputStreams,
        bodies: Bodies,
        large_answers: LargeAnswers,
        capacity: Capacity,
        queue_positions: QueuePositions,
        clock: Callable[[], float],
    ) -> None:
        self._authorizer = authorizer
        self._admission = admission
        self._repository = repository
        self._presenter = presenter
        self._streams = streams
        self._bodies = bodies
        self._large_answers = large_answers
        self._capacity = capacity
        self._queue_positions = queue_positions
        self._clock = clock

    @route(
        "POST",
        "/run",
        "Submit a job, and get its id at once",
        needs="run",
        parameters=(IDEMPOTENCY,),
        body=REQUEST,
        answers=STATE,
        errors=(422,),
    )
    async def _run(self, request: web.Request, owner: str) -> web.Response:
        return web.json_response(await self._admit(request, owner, RUN_BYTES))

    @route(
        "POST",
        "/runsync",
        "Submit a job, and get its status when it ends or the time is over",
        needs="runsync",
        parameters=(wait_parameter(RUNSYNC_WAIT, MAX_RUNSYNC_WAIT), IDEMPOTENCY),
        body=REQUEST,
        answers=STATUS,
        errors=(404, 422),
        waits=True,
    )
    async def _runsync(self, request: web.Request, owner: str) -> web.StreamResponse:
        wait = partial(wait_of, request, RUNSYNC_WAIT, MAX_RUNSYNC_WAIT)
        state = await self._admit(request, owner, RUNSYNC_BYTES, wait)
        return await self._at_the_end(request, state["id"], wait())

    @route(
        "POST",
        "/dataset/check",
        "Submit a job that ends with the report on its dataset",
        needs="run",
        parameters=(IDEMPOTENCY,),
        body=TO_CHECK,
        answers=STATE,
        errors=(422,),
    )
    async def _check(self, request: web.Request, owner: str) -> web.Response:
        return web.json_response(await self._admit(request, owner, RUN_BYTES, checks=True))

    async def _admit(
        self,
        request: web.Request,
        owner: str,
        most: int,
        wait: Callable[[], float] = lambda: 0.0,
        *,
        checks: bool = False,
    ) -> JobState:
        """Mistakes in headers and parameters are reported together with those in the body.

        The job itself stays behind: who waits for its end would keep its input in memory.
        """
        async with self._bodies.json(request, owner, most) as body:
            if mistakes := mistakes_of(partial(job_id_for, request, owner), wait):
                raise Invalid([*mistakes, *mistakes_of(partial(parse_request, unwrap(body)))])
            job_id = job_id_for(request, owner)
            size = request.content_length or most
            async with in_time(size / STORED_A_SECOND):
                return state_of(await self._admission.admit(job_id, owner, body, checks=checks))

    @route(READ, "/status/{job}", "Get a job", needs="status", answers=STATUS)
    async def _status(self, request: web.Request, owner: str) -> web.StreamResponse:
        async with in_time():
            current = await self._authorizer.job(request, owner)
        return await self._shown(request, current.job)

    @route(
        READ,
        "/status-sync/{job}",
        "Get a job when it has ended or the time is over",
        needs="status",
        parameters=(wait_parameter(SHORT_WAIT, MAX_WAIT),),
        answers=STATUS,
        errors=(400,),
        waits=True,
    )
    async def _status_sync(self, request: web.Request, owner: str) -> web.StreamResponse:
        wait = wait_of(request, SHORT_WAIT, MAX_WAIT)
        async with in_time():
            current = await self._authorizer.job(request, owner)
        return await self._at_the_end(request, current.job.id, wait)

    async def _at_the_end(
        self, request: web.Request, job_id: str, wait: float
    ) -> web.StreamResponse:
        """The status when the job has ended, or after ``wait`` seconds."""
        job: Job | None = None
        async with aclosing(self._repository.versions(job_id, wait)) as versions:
            async for current in versions:
                job = current.job
                if job.ended or is_disconnected(request):
                    break
        assert job is not None  # noqa: S101 - the first version comes at once
        return await self._shown(request, job)

    async def _shown(self, request: web.Request, job: Job) -> web.StreamResponse:
        async def make() -> bytes:
            async with in_time():
                position = await self._queue_positions.position(job)
                return await self._presenter.status(job, position)

        if job.stored:
            return await self._large_answers.send(request, job.owner, make)
        return json_response(await make())

    @route(
        READ,
        "/stream/{job}",
        "Get new output of a job, each piece once",
        needs="stream",
        parameters=(wait_parameter(SHORT_WAIT, MAX_WAIT),),
        answers={200: Answer("The new output.", Stream)},
        errors=(400,),
        waits=True,
    )
    async def _stream(self, request: web.Request, owner: str) -> web.StreamResponse:
        wait = wait_of(request, SHORT_WAIT, MAX_WAIT)
        async with in_time():
            job = (await self._authorizer.job(request, owner)).job
        async with aclosing(self._repository.versions(job.id, wait)) as versions:
            async for current in versions:
                job = current.job
                if (answer := await self._next_piece(request, job)) is not None:
                    return answer
                if job.ended or is_disconnected(request):
                    break
        if self._is_long_cancelled(job):
            raise web.HTTPNotFound(text="the stream of this cancelled job has ended")
        return json_response(stream_of(job, []))

    async def _next_piece(self, request: web.Request, job: Job) -> web.StreamResponse | None:
        async def make() -> bytes | None:
            pieces = await self._streams.next(job)
            return stream_of(job, pieces) if pieces else None

        if job.stored.keys().isdisjoint(RESULT_FIELDS):
            body = await make()
            return json_response(body) if body else None
        async with self._large_answers.making(job.owner) as one_large:
            async with one_large:
                body = await make()
            return await send_large(request, body) if body else None

    def _is_long_cancelled(self, job: Job) -> bool:
        ended = job.ended_at or self._clock()
        return job.status == "CANCELLED" and self._clock() - ended > CANCELLED_STREAM_SECONDS

    @route("POST", "/cancel/{job}", "Cancel a job", needs="cancel", answers=STATE)
    async def _cancel(self, request: web.Request, owner: str) -> web.Response:
        async with in_time():
            job = (await self._authorizer.job(request, owner)).job
            after = await self._repository.change(job.id, partial(cancel, now=self._clock()))
        return web.json_response(state_of(after or job))

    @route(
        "POST",
        "/retry/{job}",
        "Retry a job that FAILED or TIMED_OUT, from where it stopped",
        needs="run",
        answers=STATE,
        errors=(400,),
    )
    async def _retry(self, request: web.Request, owner: str) -> web.Response:
        async with in_time():
            job = (await self._authorizer.job(request, owner)).job
            if job.run >= MOST_RUNS:
                raise Invalid([f"the job was run {MOST_RUNS} times already: submit it anew"])
            after = await self._admission.retry(job) or job
        if after.run == job.run:
            raise Invalid(
                [f"the job is {after.status}; only one that FAILED or TIMED_OUT can be retried"]
            )
        return web.json_response(state_of(after))

    @route(
        "POST",
        "/jobs/{job}/sample",
        "Generate a row of samples from a running training",
        needs="command",
        answers=STATE,
        errors=(409,),
    )
    async def _sample(self, request: web.Request, owner: str) -> web.Response:
        return await self._command(request, owner, "sample")

    @route(
        "POST",
        "/jobs/{job}/save",
        "Save a checkpoint of a running training now",
        needs="command",
        answers=STATE,
        errors=(409,),
    )
    async def _save(self, request: web.Request, owner: str) -> web.Response:
        return await self._command(request, owner, "save")

    @route(
        "POST",
        "/jobs/{job}/stop",
        "End a running training early, as if its last step were done",
        needs="command",
        answers=STATE,
        errors=(409,),
    )
    async def _stop(self, request: web.Request, owner: str) -> web.Response:
        return await self._command(request, owner, "stop")

    async def _command(self, request: web.Request, owner: str, kind: Command) -> web.Response:
        async with in_time():
            job = (await self._authorizer.job(request, owner)).job
            issue = partial(issue_command, kind=kind)
            after = await self._repository.change(job.id, issue) or job
        if reason := why_no_command(after, kind):
            raise web.HTTPConflict(text=reason)
        return web.json_response(state_of(after))

    @route(
        "POST",
        "/purge-queue",
        "Cancel your jobs that are IN_QUEUE",
        needs="purge",
        answers={200: Answer("How many were cancelled.", Purged)},
    )
    async def _purge(self, _request: web.Request, owner: str) -> web.Response:
        """Thousands take a while; it goes on to the end, also if the client does not wait."""
        removed = 0
        async with in_time():
            queued = await self._capacity.queued(owner)
        for job_id in queued:
            async with in_time():
                after = await self._repository.change(job_id, self._cancelled_if_queued)
            removed += after is not None and after.status == "CANCELLED"
        purged: Purged = {"removed": removed, "status": "completed"}
        return web.json_response(purged)

    @route(
        READ,
        "/health",
        "Count your jobs and the workers with a GPU",
        needs="status",
        answers={200: Answer("Jobs by state, and workers.", Health)},
    )
    async def _health(self, _request: web.Request, owner: str) -> web.Response:
        async with in_time():
            return web.json_response(await self._capacity.health(owner))

    def _cancelled_if_queued(self, job: Job) -> Step:
        return cancel(job, self._clock()) if job.status == "IN_QUEUE" else Step(job)


def mistakes_of(*checks: Callable[[], object]) -> list[str]:
    """The mistakes that all of these checks find."""
    mistakes: list[str] = []
    for check in checks:
        try:
            check()
        except Invalid as invalid:
            mistakes += invalid.mistakes
    return mistakes


def state_of(job: Job) -> JobState:
    return {"id": job.id, "status": job.status}


def stream_of(job: Job, pieces: list[Piece]) -> bytes:
    stream: Stream = {**state_of(job), "stream": pieces}
    return msgspec.json.encode(stream)


def wait_of(request: web.Request, default: int, most: int) -> float:
    """The ``wait`` parameter in seconds.

    Raises:
        Invalid: it is no integer.
    """
    text = request.query.get("wait", str(default))
    if not re.fullmatch(r"-?\d{1,15}", text, re.ASCII):
        raise Invalid([f"wait: expected milliseconds from 0 to {most}, got {text[:40]!r}"])
    return min(max(int(text), 0), most) / 1000


def job_id_for(request: web.Request, owner: str) -> str:
    """The id that belongs to the request's idempotency key, or a new one.

    Raises:
        Invalid: the key is empty, too long, or no UTF-8.
    """
    key = request.headers.get(IDEMPOTENCY_KEY)
    if key is None:
        return str(uuid.uuid4())
    if any("\ud800" <= letter <= "\udfff" for letter in key):
        raise Invalid([f"{IDEMPOTENCY_KEY}: expected a text in UTF-8, got other bytes"])
    if not 1 <= len(key) <= MAX_KEY_LENGTH:
        wanted = f"1 to {MAX_KEY_LENGTH} letters"
        raise Invalid([f"{IDEMPOTENCY_KEY}: expected {wanted}, got {len(key)}"])
    return stable_id("idempotency", owner, key)
