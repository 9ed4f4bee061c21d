"""List a key's jobs, newest first, page by page."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple, get_args

import msgspec
from aiohttp import web
from msgspec import Meta
from multidict import MultiMapping

from services.gateway.jobs.presenter import summary
from services.gateway.jobs.repository import read
from services.gateway.jobs.request_parser import Invalid
from services.gateway.jobs.response_types import JobPage
from services.gateway.ports import JobStore, Status, StoredJob
from services.gateway.web.application import ANSWER_SECONDS, json_response, unknown_parameters
from services.gateway.web.routing import Answer, Parameter, route

PARAMETERS = ("status", "limit", "cursor")
STATUSES: tuple[Status, ...] = get_args(Status)
DEFAULT_LIMIT, MAX_LIMIT = 20, 100


class Filter(NamedTuple):
    """Which jobs to list."""

    statuses: tuple[str, ...]
    """Empty: any."""
    limit: int
    before: tuple[float, str] | None
    """(created_at, id) of the last job of the previous page."""


class JobListRoutes:
    """``/jobs``."""

    def __init__(self, jobs: JobStore, clock: Callable[[], float]) -> None:
        self._jobs = jobs
        self._clock = clock

    @route(
        "GET",
        "/jobs",
        "List your jobs, newest first",
        needs="status",
        parameters=(
            Parameter(
                "status", "query", list[Status], "Only these; repeated, or separated by commas."
            ),
            Parameter(
                "limit",
                "query",
                Annotated[int, Meta(ge=1, le=MAX_LIMIT)],
                f"{DEFAULT_LIMIT} by default.",
            ),
            Parameter("cursor", "query", str, "``next`` of the previous page."),
        ),
        answers={200: Answer("A page of jobs.", JobPage)},
        errors=(400,),
    )
    async def _list(self, request: web.Request, owner: str) -> web.Response:
        wanted = filter_of(request.query)
        async with asyncio.timeout(ANSWER_SECONDS):
            rows = await self._jobs.newest(
                owner=owner, statuses=wanted.statuses, before=wanted.before, limit=wanted.limit + 1
            )
        return json_response(msgspec.json.encode(self._page(rows, wanted.limit)))

    def _page(self, rows: Sequence[StoredJob], limit: int) -> JobPage:
        """One row more than ``limit`` means that there is another page."""
        now, shown = self._clock(), rows[:limit]
        return {
            "jobs": [summary(read(row), now) for row in shown],
            "next": encode_cursor(shown[-1]) if len(rows) > limit else None,
        }


def filter_of(query: MultiMapping[str]) -> Filter:
    """The query's parameters, checked.

    Raises:
        Invalid: with every mistake.
    """
    mistakes = unknown_parameters(query, PARAMETERS)
    wanted = Filter(_statuses(query, mistakes), _limit(query, mistakes), _before(query, mistakes))
    if mistakes:
        raise Invalid(mistakes)
    return wanted


def _statuses(query: MultiMapping[str], mistakes: list[str]) -> tuple[str, ...]:
    named = [name for text in query.getall("status", []) for name in text.split(",")]
    wrong = [name for name in named if name not in STATUSES]
    mistakes += [
        f"status: expected one of {', '.join(STATUSES)}, got {name[:40]!r}" for name in wrong
    ]
    return tuple(dict.fromkeys(named))


def _limit(query: MultiMapping[str], mistakes: list[str]) -> int:
    text = query.get("limit", str(DEFAULT_LIMIT))
    if text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= MAX_LIMIT:
        return int(text)
    mistakes.append(f"limit: expected an integer from 1 to {MAX_LIMIT}, got {text[:40]!r}")
    return DEFAULT_LIMIT


def _before(query: MultiMapping[str], mistakes: list[str]) -> tuple[float, str] | None:
    text = query.get("cursor")
    position = None if text is None else decode_cursor(text)
    if text is not None and position is None:
        mistakes.append(f"cursor: expected what a page gave as next, got {text[:40]!r}")
    return position


def encode_cursor(row: StoredJob) -> str:
    """The position after a row, opaque to clients."""
    return base64.urlsafe_b64encode(msgspec.json.encode([row.created_at, row.id])).decode()


def decode_cursor(text: str) -> tuple[float, str] | None:
    """(created_at, id) in a cursor; None: it is not valid."""
    try:
        decoded = base64.b64decode(text, altchars=b"-_", validate=True)
        position = msgspec.json.decode(decoded, type=tuple[float, str])
    except (ValueError, msgspec.DecodeError):
        return None
    return position if position[1].isprintable() else None
