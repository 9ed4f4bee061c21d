"""The events of all of a key's jobs as server-sent events, which a client can resume."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Sequence
from contextlib import aclosing
from itertools import groupby
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from services.gateway.endpoints.server_sent_events import (
    HEADERS,
    LAST_EVENT_ID,
    PAGE,
    PARAMETER,
    PROGRESS_SECONDS,
    EventWriter,
    ending,
    event,
    last_read_by,
    sent_together,
    while_valid,
)
from services.gateway.jobs.presenter import Presenter, names_file
from services.gateway.jobs.repository import JobRepository
from services.gateway.jobs.request_parser import Invalid
from services.gateway.ports import EventPlace, EventStore, StoredEvent, StoredProgress
from services.gateway.web.application import in_time, unknown_parameters
from services.gateway.web.authentication import Keys
from services.gateway.web.large_answers import LargeAnswers
from services.gateway.web.routing import Answer, route
from shared.messaging.messages import STAGES

WINDOW_SECONDS = 30.0
"""An event that becomes visible so late is still sent; and how far gateways' clocks may differ."""
PLACES = 1000
"""Events that are found at once; their data is read ``PAGE`` by ``PAGE``."""
PAUSE_SECONDS = 0.2
"""Between two looks, however fast jobs change."""
ID_CHARACTERS = r"^[A-Za-z0-9_-]+={0,2}$"
EventId = Annotated[str, Meta(pattern=ID_CHARACTERS)]


class AllEventRoutes:
    """``/events``."""

    def __init__(
        self,
        *,
        keys: Keys,
        repository: JobRepository,
        events: EventStore,
        presenter: Presenter,
        large_answers: LargeAnswers,
        clock: Callable[[], float],
    ) -> None:
        self._keys = keys
        self._repository = repository
        self._store = events
        self._presenter = presenter
        self._large_answers = large_answers
        self._clock = clock

    @route(
        "GET",
        "/events",
        "Follow all your jobs, as server-sent events",
        needs="stream",
        parameters=last_read_by(EventId),
        answers={200: Answer("New events, without end.", media="text/event-stream")},
        errors=(400,),
        waits=True,
    )
    async def _events(self, request: web.Request, owner: str) -> web.StreamResponse:
        unsent = UnsentEvents(self._store, owner, self._clock, last_read(request))
        async with in_time():
            await unsent.begin()
        response = web.StreamResponse(headers=HEADERS)
        writer = AllEventWriter(
            response,
            owner,
            presenter=self._presenter,
            large_answers=self._large_answers,
            repository=self._repository,
            store=self._store,
        )
        with ending(request, owner=owner[:16]):
            await response.prepare(request)
            await self._follow(request, writer, owner, unsent)
        return response

    async def _follow(
        self, request: web.Request, writer: AllEventWriter, owner: str, unsent: UnsentEvents
    ) -> None:
        """Send until the client is gone, or its key is no longer valid."""
        async with (
            aclosing(self._repository.changes(owner)) as changes,
            aclosing(while_valid(request, self._keys, owner, changes)) as valid,
        ):
            async for _ in valid:
                while places := await unsent.next():
                    for start in range(0, len(places), PAGE):
                        await writer.send(await self._store.read(places[start : start + PAGE]))
                await writer.send_progress()
                await writer.keep_alive()
                await asyncio.sleep(PAUSE_SECONDS)


class UnsentEvents:
    """Finds what one client was not sent, although events become visible out of order.

    What stands in the window behind the newest is looked at again. Each time the places are read as
    of one moment, so that each job's events come in their order.
    """

    def __init__(
        self,
        store: EventStore,
        owner: str,
        clock: Callable[[], float],
        last: EventPlace | None,
    ) -> None:
        """``last`` is what the client has read last; None: it begins now."""
        self._store = store
        self._owner = owner
        self._clock = clock
        self._last = last
        self._after = min(last.at if last else clock(), clock()) - WINDOW_SECONDS
        self._sent: set[EventPlace] = set()
        """Of those after this moment; also what the client had before."""
        self._newest = 0.0

    async def begin(self) -> None:
        """Leave out what there is already, unless the client resumes. Raises Unavailable."""
        if self._last is None:
            self._note(await self._store.places(self._owner, self._after))

    async def next(self) -> list[EventPlace]:
        """The next to send, in order; none: there is nothing new. Raises Unavailable."""
        counted = await self._store.count(self._owner, self._after)
        if counted == (len(self._sent), self._newest):
            return []
        limit = len(self._sent) + PLACES
        places = await self._store.places(self._owner, self._after, limit)
        if len(places) < limit:
            self._sent.intersection_update(places)  # the others were deleted
        unsent = [each for each in places if each not in self._sent and not self._was_read(each)]
        self._note(places)
        return unsent

    def _was_read(self, place: EventPlace) -> bool:
        """Of the job that the client has read last, nothing up to there comes again."""
        return self._last is not None and place.job == self._last.job and place <= self._last

    def _note(self, places: Sequence[EventPlace]) -> None:
        self._sent.update(places)
        self._newest = max((each.at for each in self._sent), default=0.0)
        if self._sent:
            # A clock that is fast must not leave behind what others write meanwhile.
            behind = min(self._newest, self._clock()) - WINDOW_SECONDS
            self._after = max(self._after, behind)
            self._sent = {each for each in self._sent if each.at > self._after}


class AllEventWriter(EventWriter):
    """Sends one client events of all jobs of an owner."""

    def __init__(
        self,
        response: web.StreamResponse,
        owner: str,
        *,
        presenter: Presenter,
        large_answers: LargeAnswers,
        repository: JobRepository,
        store: EventStore,
    ) -> None:
        super().__init__(response, owner, presenter=presenter, large_answers=large_answers)
        self._repository = repository
        self._store = store
        self._progress: dict[str, StoredProgress] = {}
        self._progress_at = float("-inf")

    async def send(self, rows: Sequence[StoredEvent]) -> None:
        """Send these; the record of a job is read only for the links to its files."""
        for job_id, group in groupby(rows, lambda row: row.job if names_file(row) else ""):
            job = await self._repository.get(job_id) if job_id else None
            left = [] if job_id and job is None else [*group]  # its files were deleted with it
            while some := sent_together(left):
                await self.write_rows(some, job)
                left = left[len(some) :]

    def shown(self, row: StoredEvent, data: dict[str, Any]) -> bytes:
        place = EventPlace(row.at, row.job, row.version, row.number)
        return event(id_of(place), row.type, {"job": row.job, **data})

    async def send_progress(self) -> None:
        """Send the numbers that have changed, at most once a second; they are not kept."""
        if self._now() - self._progress_at < PROGRESS_SECONDS:
            return
        self._progress_at = self._now()
        newest: dict[str, StoredProgress] = {}
        rows = await self._store.progress(self._owner)
        for row in sorted(rows, key=lambda row: STAGES.index(row.stage)):
            newest.setdefault(row.job, row)
        changed = [row for job, row in newest.items() if self._progress.get(job) != row]
        self._progress = newest
        if changed:
            await self.write(b"".join(map(progress_event, changed)))


def progress_event(row: StoredProgress) -> bytes:
    """The newest numbers of a stage; without an id, because they are not kept."""
    numbers = msgspec.json.decode(row.numbers, type=dict[str, Any])
    return event(None, "progress", {"job": row.job, "stage": row.stage, **numbers})


def id_of(place: EventPlace) -> str:
    """An event's id, opaque to clients."""
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode()


def place_of(text: str) -> EventPlace | None:
    """The place in an id; None: it is no id."""
    try:
        decoded = base64.b64decode(text, altchars=b"-_", validate=True)
        return msgspec.json.decode(decoded, type=EventPlace)
    except (ValueError, msgspec.DecodeError):
        return None


def last_read(request: web.Request) -> EventPlace | None:
    """The event that the client resumes after; None: it begins now.

    Raises:
        Invalid: what it gives is no id of an event, or there is another parameter.
    """
    mistakes = unknown_parameters(request.query, [PARAMETER])
    sources = ((LAST_EVENT_ID, request.headers), (PARAMETER, request.query))
    given = {name: texts[name] for name, texts in sources if name in texts}
    places = {name: place_of(text) for name, text in given.items()}
    mistakes += [
        f"{name}: expected the id of an event of this stream, got {given[name][:40]!r}"
        for name, place in places.items()
        if place is None
    ]
    if mistakes:
        raise Invalid(mistakes)
    return next(iter(places.values()), None)
