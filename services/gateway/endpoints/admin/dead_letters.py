"""List dead letters; put one back on its queue, or delete it."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import msgspec
import structlog
from aiohttp import web

from services.gateway.endpoints.admin.page import page_in
from services.gateway.endpoints.admin.response_types import (
    DeadLetterItem,
    DeadLetterPage,
    SettledDeadLetter,
)
from services.gateway.ports import Outgoing
from services.gateway.system_ports import DeadLetterStore, StoredDeadLetter
from services.gateway.web.application import in_time
from services.gateway.web.paging import PAGING, encode_cursor
from services.gateway.web.routing import Answer, route
from shared.messaging.messages import WorkStarted, decode
from shared.messaging.topology import QUEUES
from shared.ports import DeadLetter
from shared.words import iso

EXCERPT = (
    "run", "stage", "claim", "attempt", "worker", "gpu", "version", "kind", "event", "webhook_id",
    "step", "epoch", "status", "permanent", "retry_after", "gateway", "number",
)  # fmt: skip
"""Fields of messages whose values are the services' own, and no user's."""
EXCERPT_LENGTH = 200
"""Letters of one value."""

log = structlog.get_logger()


class AdminDeadLetterRoutes:
    """``/admin/dead-letters``."""

    def __init__(
        self,
        dead_letters: DeadLetterStore,
        clock: Callable[[], float],
        on_due: Callable[[], None],
    ) -> None:
        """``on_due`` is called after a row was added to the outbox."""
        self._dead_letters = dead_letters
        self._clock = clock
        self._on_due = on_due

    @route(
        "GET",
        "/admin/dead-letters",
        "List the messages that could not be handled or published",
        needs="operate",
        parameters=PAGING,
        answers={200: Answer("A page of dead letters.", DeadLetterPage)},
        errors=(400,),
    )
    async def _list(self, request: web.Request, _owner: str) -> web.Response:
        page = page_in(request.query)
        async with in_time():
            found = await self._dead_letters.newest(page.after, page.limit + 1)
        shown = found[: page.limit]
        last = (shown[-1].at, shown[-1].id) if len(found) > page.limit else None
        body: DeadLetterPage = {
            "dead_letters": [_shown(each) for each in shown],
            "next": encode_cursor(last) if last else None,
        }
        return web.json_response(body)

    @route(
        "POST",
        "/admin/dead-letters/{letter}/requeue",
        "Put a dead letter back on its queue",
        needs="operate",
        answers={200: Answer("It will be delivered again.", SettledDeadLetter)},
        errors=(409,),
    )
    async def _requeue(self, request: web.Request, _owner: str) -> web.Response:
        async with in_time():
            found = await self._find(request)
            if problem := why_not_requeued(found.letter):
                raise web.HTTPConflict(text=f"this dead letter cannot be requeued: {problem}")
            message = Outgoing(
                id=f"{found.letter.job}/dead/{found.id}",
                message=found.letter.body,
                queue=found.letter.queue,
                due_at=self._clock(),
            )
            if not await self._dead_letters.requeue(found.id, message):
                raise _no_such(found.id)
        self._on_due()
        log.info("dead_letter_requeued", id=found.id, queue=found.letter.queue)
        body: SettledDeadLetter = {"id": found.id, "done": "requeued"}
        return web.json_response(body)

    @route(
        "DELETE",
        "/admin/dead-letters/{letter}",
        "Delete a dead letter for good",
        needs="operate",
        answers={200: Answer("The dead letter was deleted.", SettledDeadLetter)},
    )
    async def _delete(self, request: web.Request, _owner: str) -> web.Response:
        async with in_time():
            found = await self._find(request)
            if not await self._dead_letters.delete(found.id):
                raise _no_such(found.id)
        log.info("dead_letter_deleted", id=found.id, queue=found.letter.queue)
        body: SettledDeadLetter = {"id": found.id, "done": "deleted"}
        return web.json_response(body)

    async def _find(self, request: web.Request) -> StoredDeadLetter:
        letter_id = request.match_info["letter"]
        found = None if "\0" in letter_id else await self._dead_letters.find(letter_id)
        if found is None:
            raise _no_such(letter_id)
        return found


def _no_such(letter_id: str) -> web.HTTPNotFound:
    return web.HTTPNotFound(text=f"there is no dead letter {letter_id[:80]!r}")


def _shown(each: StoredDeadLetter) -> DeadLetterItem:
    letter = each.letter
    return {
        "id": each.id,
        "at": iso(each.at),
        "queue": letter.queue,
        "reason": letter.reason,
        "type": letter.type or None,
        "job": letter.job or None,
        "length": letter.length,
        "sha256": letter.sha256,
        "excerpt": excerpt_of(letter.body),
        "requeue": why_not_requeued(letter),
    }


def excerpt_of(body: bytes) -> dict[str, str | int | float]:
    """Fields of a message that name a worker, a stage or a number; nothing of its user."""
    if not body:
        return {}
    message: dict[str, Any] = msgspec.json.decode(body)
    return {
        name: value[:EXCERPT_LENGTH] if isinstance(value, str) else value
        for name in EXCERPT
        if isinstance(value := message.get(name), str | int | float)
    }


def why_not_requeued(letter: DeadLetter) -> str | None:
    """Why a message cannot be put back on its queue; None: it can be."""
    if not letter.body:
        return "its body was not kept: it could not be read, or might hold a user's secrets"
    bindings = [key for queue in QUEUES if queue.name == letter.queue for key in queue.bindings]
    if not any(fnmatchcase(letter.type, key) for key in bindings):
        return "no queue of that name takes messages of its type"
    if isinstance(decode(letter.body), WorkStarted):
        return "a worker that still wants the work asks for it by itself"
    return None
