"""A job's events as server-sent events, which a client can resume; and what other streams need."""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from itertools import accumulate, takewhile
from time import monotonic
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
import structlog
from aiohttp import web
from msgspec import Meta

from services.gateway.jobs.presenter import Presenter, is_stored, latest_progress
from services.gateway.jobs.record import Job
from services.gateway.jobs.repository import JobRepository, JobVersion, UnknownJob
from services.gateway.jobs.request_parser import Invalid
from services.gateway.ports import JobStore, StoredEvent
from services.gateway.web.application import in_time, unknown_parameters
from services.gateway.web.authentication import Keys
from services.gateway.web.authorization import Authorizer
from services.gateway.web.large_answers import LargeAnswers
from services.gateway.web.request_scope import is_disconnected
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

T = TypeVar("T")


def last_read_by(event_id: Any) -> tuple[Parameter, ...]:
    """How a client names the last event that it has read; ``event_id`` is the type of its id."""
    return (
        Parameter(LAST_EVENT_ID, "header", event_id, "The last event that the client has read."),
        Parameter(PARAMETER, "query", event_id, f"The same; {LAST_EVENT_ID} takes precedence."),
    )


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
        parameters=last_read_by(EventId),
        answers={
            200: Answer("All events so far, then new ones.", media="text/event-stream"),
            204: Answer("The job has ended, and there are no new events."),
        },
        errors=(400,),
        waits=True,
    )
    async def _events(self, request: web.Request, owner: str) -> web.StreamResponse:
        async with in_time():
            current = await self._authorizer.job(request, owner)
            position = position_of(request, current)
            if await self._is_over(current.job, position):
                return web.Response(status=204, headers={"Cache-Control": "no-store"})
        response = web.StreamResponse(headers=HEADERS)
        writer = JobEventWriter(
            response,
            owner,
            presenter=self._presenter,
            large_answers=self._large_answers,
            jobs=self._jobs,
            position=position,
        )
        with ending(request, job=current.job.id):
            await response.prepare(request)
            await self._follow(request, writer, current.job)
        return response

    async def _is_over(self, job: Job, position: EventPosition) -> bool:
        """Whether nothing is left to send; the 204 keeps EventSource from reconnecting."""
        return job.ended and not await self._jobs.events_after(
            job.id, position.version, position.number, limit=1
        )

    async def _follow(self, request: web.Request, writer: JobEventWriter, job: Job) -> None:
        """Send until the job ends or the client is gone; a client that reconnects gets the rest."""
        async with (
            aclosing(self._repository.versions(job.id)) as versions,
            aclosing(while_valid(request, self._keys, job.owner, versions)) as valid,
        ):
            async for current in valid:
                await writer.send(current)
                if current.job.ended:
                    return
                await writer.keep_alive()


async def while_valid(
    request: web.Request, keys: Keys, owner: str, changes: AsyncGenerator[T, None]
) -> AsyncGenerator[T, None]:
    """The changes, until the client is gone or the owner's key is no longer valid.

    Raises Unavailable.
    """
    looked_at = monotonic()
    async for change in changes:
        if is_disconnected(request):
            return
        if monotonic() - looked_at >= KEY_SECONDS:
            if await keys.caller_of(owner) is None:
                return
            looked_at = monotonic()
        yield change


@contextmanager
def ending(request: web.Request, **about: str) -> Iterator[None]:
    """End the stream, instead of an answer that says why; ``about`` is logged."""
    try:
        yield
    except ConnectionResetError:
        log.debug("reader_gone", **about)
    except UnknownJob:
        log.debug("job_gone", **about)
    except Unavailable as error:
        log.warning("events_cut_short", reason=str(error), **about)
    except TimeoutError:
        log.warning("reader_too_slow", **about)
        if request.transport is not None:
            request.transport.abort()


class EventWriter(ABC):
    """Writes events to one client; what is large only when there is room for it."""

    def __init__(
        self,
        response: web.StreamResponse,
        owner: str,
        *,
        presenter: Presenter,
        large_answers: LargeAnswers,
    ) -> None:
        self._response = response
        self._owner = owner
        self._presenter = presenter
        self._large_answers = large_answers
        self._now = asyncio.get_running_loop().time
        self._written_at = self._now()

    async def keep_alive(self) -> None:
        """Send a comment, after a long silence."""
        if self._now() - self._written_at >= HEARTBEAT_SECONDS:
            await self.write(b":\n\n")

    async def write_rows(self, rows: Sequence[StoredEvent], job: Job | None) -> None:
        """Send these, which :func:`sent_together` gave.

        Args:
            rows: the events.
            job: the one that has happened to; None: no event names a file.
        """
        if not is_stored(rows[0]) and (job is None or "urls" not in job.stored):
            await self.write(await self._shown(rows, job))
            return
        async with self._large_answers.making(self._owner) as one_large:
            async with one_large:
                data = await self._shown(rows, job)
            await self.write(data)

    async def _shown(self, rows: Sequence[StoredEvent], job: Job | None) -> bytes:
        urls = (await self._presenter.whole(job, ["urls"])).urls if job else {}
        return b"".join([self.shown(row, await self._presenter.event(row, urls)) for row in rows])

    @abstractmethod
    def shown(self, row: StoredEvent, data: dict[str, Any]) -> bytes:
        """An event with its data, as it is sent."""

    async def write(self, data: bytes) -> None:
        """Raises ConnectionResetError, or TimeoutError: the client does not read."""
        async with asyncio.timeout(WRITE_SECONDS):
            await self._response.write(data)
        self._written_at = self._now()


class JobEventWriter(EventWriter):
    """Sends one client each event of a job once, in order."""

    def __init__(
        self,
        response: web.StreamResponse,
        owner: str,
        *,
        presenter: Presenter,
        large_answers: LargeAnswers,
        jobs: JobStore,
        position: EventPosition,
    ) -> None:
        super().__init__(response, owner, presenter=presenter, large_answers=large_answers)
        self._jobs = jobs
        self._position = position
        self._progress: dict[str, Any] | None = None
        self._progress_at = float("-inf")

    async def send(self, current: JobVersion) -> None:
        """Send all new events up to this version, page by page, then the newest progress."""
        while rows := await self._next_rows(current):
            self._position = EventPosition(rows[-1].version, rows[-1].number)
            await self.write_rows(rows, current.job)
        await self._send_progress(current)

    def shown(self, row: StoredEvent, data: dict[str, Any]) -> bytes:
        return event(f"{row.version}.{row.number}", row.type, data)

    async def _next_rows(self, current: JobVersion) -> list[StoredEvent]:
        read = self._position
        rows = await self._jobs.events_after(current.job.id, read.version, read.number, limit=PAGE)
        return sent_together([row for row in rows if row.version <= current.version])

    async def _send_progress(self, current: JobVersion) -> None:
        progress = latest_progress(current.job)
        position = EventPosition(current.version, LAST_NUMBER, current.sequence)
        too_soon = self._now() - self._progress_at < PROGRESS_SECONDS
        if progress is None or progress == self._progress:
            return
        if too_soon or self._position >= position:
            return
        self._position, self._progress, self._progress_at = position, progress, self._now()
        await self.write(event(f"{current.version}-{current.sequence}", "progress", progress))


def sent_together(rows: Sequence[StoredEvent]) -> list[StoredEvent]:
    """As many of the first events as are sent at once; one whose data is in the store alone."""
    small = list(takewhile(lambda row: not is_stored(row), rows))
    ends = accumulate(len(row.data) for row in small)
    return small[: sum(end <= PAGE_BYTES for end in ends)] or [*rows[:1]]


def event(event_id: str | None, kind: str, data: dict[str, Any]) -> bytes:
    """One server-sent event; its data is JSON in one line. None: clients do not resume from it.

    Source: the HTML standard, "Server-sent events".
    """
    line = b"" if event_id is None else b"id: %b\n" % event_id.encode()
    return b"%bevent: %b\ndata: %b\n\n" % (line, kind.encode(), msgspec.json.encode(data))


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
