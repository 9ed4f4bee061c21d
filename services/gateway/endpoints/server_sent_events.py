"""A job's events as server-sent events, which a client can resume."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import aclosing
from itertools import accumulate, takewhile
from time import monotonic
from typing import Annotated, Any, NamedTuple

import msgspec
import structlog
from aiohttp import web
from msgspec import Meta

from services.gateway.jobs.presenter import Presenter, is_stored, latest_progress
from services.gateway.jobs.record import Job
from services.gateway.jobs.repository import JobRepository, JobVersion, UnknownJob
from services.gateway.jobs.request_parser import Invalid
from services.gateway.ports import JobStore, StoredEvent
from services.gateway.web.application import ANSWER_SECONDS, is_disconnected, unknown_parameters
from services.gateway.web.authentication import Keys
from services.gateway.web.authorization import Authorizer
from services.gateway.web.large_answers import LargeAnswers
from services.gateway.web.routing import Answer, Parameter, route
from shared.errors import Unavailable

PAGE, PAGE_BYTES = 100, 1 << 18
"""Events held in memory at once for one client, and about how many of their bytes."""
PROGRESS_SECONDS = 1.0
"""Between two ``progress`` events."""
HEARTBEAT_SECONDS = 15.0
"""After this silence a comment keeps the connection alive."""
KEY_SECONDS = 15.0
"""Between two looks whether the client's key is still valid."""
WRITE_SECONDS = 60.0
"""A client that does not read for so long is disconnected."""
LAST_EVENT_ID, PARAMETER = "Last-Event-ID", "last_event_id"
EVENT_ID = re.compile(r"^([0-9]{1,9})(?:\.([0-9]{1,9})|-([0-9]{1,9}))?$")
"""Of an event: version and number; of progress: version and sequence."""
EventId = Annotated[str, Meta(pattern=EVENT_ID.pattern)]
HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}

log = structlog.get_logger()


class EventPosition(NamedTuple):
    """What a client has read last."""

    version: int
    number: int
    sequence: int = 0
    """Of the progress; 0: none since the last event."""


BEGINNING = EventPosition(0, 0)
LAST_NUMBER = 2**31 - 1
"""Greater than any event's number: the whole version was sent."""


class EventRoutes:
    """``/events/{job}``."""

    def __init__(
        self,
        *,
        authorizer: Authorizer,
        keys: Keys,
        repository: JobRepository,
        jobs: JobStore,
        presenter: Presenter,
        large_answers: LargeAnswers,
    ) -> None:
        self._authorizer = authorizer
        self._keys = keys
        self._repository = repository
        self._jobs = jobs
        self._presenter = presenter
        self._large_answers = large_answers

    @route(
        "GET",
        "/events/{job}",
        "Follow a job's events, as server-sent events",
        needs="stream",
        parameters=(
            Parameter(LAST_EVENT_ID, "header", EventId, "The last event that the client has read."),
            Parameter(PARAMETER, "query", EventId, f"The same; {LAST_EVENT_ID} takes precedence."),
        ),
        answers={
            200: Answer("All events so far, then new ones.", media="text/event-stream"),
            204: Answer("The job has ended, and there are no new events."),
        },
        errors=(400,),
        waits=True,
    )
    async def _events(self, request: web.Request, owner: str) -> web.StreamResponse:
        async with asyncio.timeout(ANSWER_SECONDS):
            current = await self._authorizer.job(request, owner)
            position = position_of(request, current)
            if await self._is_over(current.job, position):
                return web.Response(status=204, headers={"Cache-Control": "no-store"})
        response = web.StreamResponse(headers=HEADERS)
        await response.prepare(request)
        writer = EventWriter(response, self._jobs, self._presenter, self._large_answers, position)
        await self._send_all(request, writer, current.job)
        return response

    async def _is_over(self, job: Job, position: EventPosition) -> bool:
        """Whether nothing is left to send; the 204 keeps EventSource from reconnecting."""
        return job.ended and not await self._jobs.events_after(
            job.id, position.version, position.number, limit=1
        )

    async def _send_all(self, request: web.Request, writer: EventWriter, job: Job) -> None:
        """Send until the job ends or the client is gone; a client that reconnects gets the rest."""
        try:
            await self._follow(request, writer, job)
        except ConnectionResetError:
            log.debug("reader_gone", job=job.id)
        except UnknownJob:
            log.debug("job_gone", job=job.id)
        except Unavailable as error:
            log.warning("events_cut_short", job=job.id, reason=str(error))
        except TimeoutError:
            log.warning("reader_too_slow", job=job.id)
            if request.transport is not None:
                request.transport.abort()

    async def _follow(self, request: web.Request, writer: EventWriter, job: Job) -> None:
        looked_at = monotonic()
        async with aclosing(self._repository.versions(job.id)) as versions:
            async for current in versions:
                if is_disconnected(request):
                    return
                if monotonic() - looked_at >= KEY_SECONDS:
                    if await self._keys.caller_of(job.owner) is None:
                        return
                    looked_at = monotonic()
                await writer.send(current)
                if current.job.ended:
                    return
                await writer.keep_alive()


class EventWriter:
    """Sends one client each event once, in order."""

    def __init__(
        self,
        response: web.StreamResponse,
        jobs: JobStore,
        presenter: Presenter,
        large_answers: LargeAnswers,
        position: EventPosition,
    ) -> None:
        self._response = response
        self._jobs = jobs
        self._presenter = presenter
        self._large_answers = large_answers
        self._position = position
        self._now = asyncio.get_running_loop().time
        self._written_at = self._now()
        self._progress: dict[str, Any] | None = None
        self._progress_at = float("-inf")

    async def send(self, current: JobVersion) -> None:
        """Send all new events up to this version, page by page, then the newest progress."""
        while rows := await self._next_rows(current):
            self._position = EventPosition(rows[-1].version, rows[-1].number)
            if "urls" in current.job.stored or is_stored(rows[0]):
                await self._write_large(current.job, rows)
            else:
                await self._write(await self._shown(current.job, rows))
        await self._send_progress(current)

    async def keep_alive(self) -> None:
        """Send a comment, after a long silence."""
        if self._now() - self._written_at >= HEARTBEAT_SECONDS:
            await self._write(b":\n\n")

    async def _next_rows(self, current: JobVersion) -> list[StoredEvent]:
        """The next events up to this version; one whose data is in the store comes alone."""
        read = self._position
        rows = await self._jobs.events_after(current.job.id, read.version, read.number, limit=PAGE)
        known = [row for row in rows if row.version <= current.version]
        small = list(takewhile(lambda row: not is_stored(row), known))
        ends = accumulate(len(row.data) for row in small)
        return small[: sum(end <= PAGE_BYTES for end in ends)] or known[:1]

    async def _write_large(self, job: Job, rows: Sequence[StoredEvent]) -> None:
        async with self._large_answers.making(job.owner) as one_large:
            async with one_large:
                data = await self._shown(job, rows)
            await self._write(data)

    async def _shown(self, job: Job, rows: Sequence[StoredEvent]) -> bytes:
        job = await self._presenter.whole(job, ["urls"])
        return b"".join(
            [
                event(
                    f"{row.version}.{row.number}", row.type, await self._presenter.event(job, row)
                )
                for row in rows
            ]
        )

    async def _send_progress(self, current: JobVersion) -> None:
        progress = latest_progress(current.job)
        position = EventPosition(current.version, LAST_NUMBER, current.sequence)
        too_soon = self._now() - self._progress_at < PROGRESS_SECONDS
        if progress is None or progress == self._progress:
            return
        if too_soon or self._position >= position:
            return
        self._position, self._progress, self._progress_at = position, progress, self._now()
        await self._write(event(f"{current.version}-{current.sequence}", "progress", progress))

    async def _write(self, data: bytes) -> None:
        async with asyncio.timeout(WRITE_SECONDS):
            await self._response.write(data)
        self._written_at = self._now()


def event(event_id: str, kind: str, data: dict[str, Any]) -> bytes:
    """One server-sent event; its data is JSON in one line.

    Source: the HTML standard, "Server-sent events".
    """
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (
        event_id.encode(),
        kind.encode(),
        msgspec.json.encode(data),
    )


def position_of(request: web.Request, newest: JobVersion) -> EventPosition:
    """The position that the client resumes from; without one, the beginning.

    Args:
        request: its header precedes its parameter, which a browser repeats unchanged.
        newest: the job; later positions are mistakes.

    Raises:
        Invalid: the position is no id of an event of this job, or there is another parameter.
    """
    mistakes = unknown_parameters(request.query, [PARAMETER])
    given = {LAST_EVENT_ID: request.headers, PARAMETER: request.query}
    positions = [
        _position(name, texts[name], newest, mistakes)
        for name, texts in given.items()
        if name in texts
    ]
    if mistakes:
        raise Invalid(mistakes)
    return next(iter(positions), BEGINNING)


def _position(name: str, text: str, newest: JobVersion, mistakes: list[str]) -> EventPosition:
    found = EVENT_ID.fullmatch(text)
    if found is None or int(found[1]) > newest.version:
        mistakes.append(f"{name}: expected the id of an event of this job, got {text[:40]!r}")
        return BEGINNING
    number = LAST_NUMBER if found[2] is None else int(found[2])
    return EventPosition(int(found[1]), number, int(found[3] or 0))
