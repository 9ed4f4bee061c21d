"""What happens to a job, told as it happens: server-sent events that a client can take up again."""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from typing import Annotated, Any, NamedTuple

import msgspec
import structlog
from aiohttp import web
from msgspec import Meta

from services.gateway.jobs.presenter import Presenter, newest_numbers
from services.gateway.jobs.record import Job
from services.gateway.jobs.repository import JobRepository, JobVersion, UnknownJob
from services.gateway.jobs.request_parser import Invalid
from services.gateway.ports import JobStore
from services.gateway.web.application import ANSWER_SECONDS, is_gone, unknown_parameters
from services.gateway.web.authorization import Authorizer
from services.gateway.web.routing import Answer, Parameter, route
from shared.errors import Unavailable

PAGE = 100
"""Events that are held in memory at once for one client."""
PROGRESS_SECONDS = 1.0
"""Between two ``progress`` events."""
HEARTBEAT_SECONDS = 15.0
"""Of silence, before a comment shows the client and what lies between that we are there."""
PATIENCE_SECONDS = 60.0
"""How long a client may leave what it is told unread."""
LAST_EVENT_ID, PARAMETER = "Last-Event-ID", "last_event_id"
EVENT_ID = re.compile(r"^([0-9]{1,9})(?:\.([0-9]{1,9}))?$")
EventId = Annotated[str, Meta(pattern=EVENT_ID.pattern)]
HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}

log = structlog.get_logger()


class Place(NamedTuple):
    """How far a client has read: everything up to this event."""

    version: int
    number: int


BEGINNING = Place(0, 0)
LAST_NUMBER = 2**31 - 1
"""Greater than any event's number: all of a version has been told."""


class EventRoutes:
    """``/events/{job}``, for as many as want to follow."""

    def __init__(
        self,
        *,
        authorizer: Authorizer,
        repository: JobRepository,
        jobs: JobStore,
        presenter: Presenter,
    ) -> None:
        self._authorizer = authorizer
        self._repository = repository
        self._jobs = jobs
        self._presenter = presenter

    @route(
        "GET",
        "/events/{job}",
        "Follow what happens to a job, as server-sent events",
        needs="stream",
        parameters=(
            Parameter(LAST_EVENT_ID, "header", EventId, "The last event that was read."),
            Parameter(PARAMETER, "query", EventId, f"The same; {LAST_EVENT_ID} goes first."),
        ),
        answers={
            200: Answer("All that has happened, then what comes.", media="text/event-stream"),
            204: Answer("The job has ended, and there is nothing new to tell."),
        },
        errors=(400,),
    )
    async def _events(self, request: web.Request, owner: str) -> web.StreamResponse:
        async with asyncio.timeout(ANSWER_SECONDS):
            current = await self._authorizer.job(request, owner)
            place = place_of(request, current.version)
            if await self._is_over(current.job, place):
                return web.Response(status=204, headers={"Cache-Control": "no-store"})
        response = web.StreamResponse(headers=HEADERS)
        await response.prepare(request)
        reader = Reader(response, self._jobs, self._presenter, place)
        await self._tell_all(request, reader, current.job.id)
        return response

    async def _is_over(self, job: Job, place: Place) -> bool:
        """Whether nothing is left to tell; 204 keeps EventSource from coming again."""
        return job.ended and not await self._jobs.events_after(job.id, *place, limit=1)

    async def _tell_all(self, request: web.Request, reader: Reader, job_id: str) -> None:
        """Until the end, or until the client is gone: one that comes again gets the rest."""
        try:
            await self._follow(request, reader, job_id)
        except ConnectionResetError:
            log.debug("reader_gone", job=job_id)
        except UnknownJob:
            log.debug("job_gone", job=job_id)
        except Unavailable as error:
            log.warning("events_cut_short", job=job_id, reason=str(error))
        except TimeoutError:
            log.warning("reader_too_slow", job=job_id)
            if request.transport is not None:
                request.transport.abort()

    async def _follow(self, request: web.Request, reader: Reader, job_id: str) -> None:
        async with aclosing(self._repository.versions(job_id)) as versions:
            async for current in versions:
                if is_gone(request):
                    return
                await reader.tell(current)
                if current.job.ended:
                    return
                await reader.show_life()


class Reader:
    """One client, who is told each event once and in order."""

    def __init__(
        self, response: web.StreamResponse, jobs: JobStore, presenter: Presenter, place: Place
    ) -> None:
        self._response = response
        self._jobs = jobs
        self._presenter = presenter
        self._place = place
        self._now = asyncio.get_running_loop().time
        self._written = self._now()
        self._numbers: dict[str, Any] | None = None
        self._numbers_at = float("-inf")

    async def tell(self, current: JobVersion) -> None:
        """Everything new of a job as it stood, a page at a time, then its newest numbers."""
        while page := await self._page(current):
            await self._write(b"".join(page))
        await self._tell_progress(current)

    async def show_life(self) -> None:
        """A comment, after a long silence."""
        if self._now() - self._written >= HEARTBEAT_SECONDS:
            await self._write(b":\n\n")

    async def _page(self, current: JobVersion) -> list[bytes]:
        """Later versions are left for the next look, which sees them as a whole."""
        rows = await self._jobs.events_after(current.job.id, *self._place, limit=PAGE)
        known = [row for row in rows if row.version <= current.version]
        if known:
            self._place = Place(known[-1].version, known[-1].number)
        job = current.job
        return [
            event(f"{row.version}.{row.number}", row.type, await self._presenter.event(job, row))
            for row in known
        ]

    async def _tell_progress(self, current: JobVersion) -> None:
        numbers, all_of_it = newest_numbers(current.job), Place(current.version, LAST_NUMBER)
        soon = self._now() - self._numbers_at < PROGRESS_SECONDS
        if numbers is None or numbers == self._numbers or soon or self._place >= all_of_it:
            return
        self._place, self._numbers, self._numbers_at = all_of_it, numbers, self._now()
        await self._write(event(str(current.version), "progress", numbers))

    async def _write(self, data: bytes) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._response.write(data)
        self._written = self._now()


def event(place: str, kind: str, data: dict[str, Any]) -> bytes:
    """One server-sent event; its data is JSON in one line.

    Source: the HTML standard, "Server-sent events".
    """
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (
        place.encode(),
        kind.encode(),
        msgspec.json.encode(data),
    )


def place_of(request: web.Request, version: int) -> Place:
    """Where the client wants to go on; without an id, at the beginning.

    Args:
        request: its header counts before its parameter, which a browser repeats as it was.
        version: the job's newest, which no place is beyond.

    Raises:
        Invalid: no id of an event of this job, or another parameter.
    """
    mistakes = unknown_parameters(request.query, [PARAMETER])
    given = {LAST_EVENT_ID: request.headers, PARAMETER: request.query}
    places = [
        _place(name, texts[name], version, mistakes)
        for name, texts in given.items()
        if name in texts
    ]
    if mistakes:
        raise Invalid(mistakes)
    return next(iter(places), BEGINNING)


def _place(name: str, text: str, version: int, mistakes: list[str]) -> Place:
    found = EVENT_ID.fullmatch(text)
    if found is None or int(found[1]) > version:
        mistakes.append(f"{name}: expected the id of an event of this job, got {text[:40]!r}")
        return BEGINNING
    return Place(int(found[1]), LAST_NUMBER if found[2] is None else int(found[2]))
