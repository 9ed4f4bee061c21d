"""List a key's jobs, newest first, page by page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple, get_args

import msgspec
from aiohttp import web
from msgspec import Meta
from multidict import MultiMapping

from services.gateway.jobs.presenter import Presenter
from services.gateway.jobs.record import Job
from services.gateway.jobs.request_parser import Invalid
from services.gateway.jobs.response_types import JobPage
from services.gateway.jobs.rows import read, with_progress
from services.gateway.ports import JobStore, Status, StoredJob, StoredProgress
from services.gateway.queue.position import QueuePositions
from services.gateway.web.application import in_time, json_response, unknown_parameters
from services.gateway.web.paging import PAGING, Position, encode_cursor, limit_in, position_in
from services.gateway.web.routing import Answer, Parameter, route

PARAMETERS = ("status", "id", "limit", "cursor")
STATUSES: tuple[Status, ...] = get_args(Status)
IdBeginning = Annotated[str, Meta(pattern="^[0-9a-f-]{1,36}$")]


class Filter(NamedTuple):
    """Which jobs to list."""

    statuses: tuple[str, ...]
    """Empty: any."""
    id_begins: str
    limit: int
    before: Position | None
    """(created_at, id) of the last job of the previous page."""


class JobListRoutes:
    """``/jobs``."""

    def __init__(
        self, jobs: JobStore, presenter: Presenter, queue_positions: QueuePositions
    ) -> None:
        self._jobs = jobs
        self._presenter = presenter
        self._queue_positions = queue_positions

    @route(
        "GET",
        "/jobs",
        "List your jobs, newest first",
        needs="status",
        parameters=(
            Parameter(
                "status", "query", list[Status], "Only these; repeated, or separated by commas."
            ),
            Parameter("id", "query", IdBeginning, "Only jobs whose id begins with this."),
            *PAGING,
        ),
        answers={200: Answer("A page of jobs.", JobPage)},
        errors=(400,),
    )
    async def _list(self, request: web.Request, owner: str) -> web.Response:
        wanted = filter_of(request.query)
        async with in_time():
            rows = await self._jobs.newest(
                owner=owner, statuses=wanted.statuses, before=wanted.before,
                id_begins=wanted.id_begins, limit=wanted.limit + 1,
            )  # fmt: skip
            page = await self._page(rows, wanted.limit)
        return json_response(msgspec.json.encode(page))

    async def _page(self, rows: Sequence[StoredJob], limit: int) -> JobPage:
        """One row more than ``limit`` means that there is another page."""
        shown = rows[:limit]
        last = (shown[-1].created_at, shown[-1].id) if len(rows) > limit else None
        jobs = await self._with_progress([read(row) for row in shown])
        queue = await self._queue_positions.positions(jobs)
        return {
            "jobs": [await self._presenter.summary(job, queue.get(job.id)) for job in jobs],
            "next": encode_cursor(last) if last else None,
        }

    async def _with_progress(self, jobs: Sequence[Job]) -> list[Job]:
        numbers: dict[str, list[StoredProgress]] = {job.id: [] for job in jobs if not job.ended}
        if numbers:
            for row in await self._jobs.progress_of([*numbers]):
                numbers[row.job].append(row)
        return [with_progress(job, numbers.get(job.id, ())) for job in jobs]


def filter_of(query: MultiMapping[str]) -> Filter:
    """The query's parameters, checked.

    Raises:
        Invalid: with every mistake.
    """
    mistakes = unknown_parameters(query, PARAMETERS)
    wanted = Filter(
        _statuses(query, mistakes), _id_beginning(query, mistakes), limit_in(query, mistakes),
        position_in(query, mistakes),
    )  # fmt: skip
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


def _id_beginning(query: MultiMapping[str], mistakes: list[str]) -> str:
    text = query.get("id", "")
    try:
        return msgspec.convert(text, IdBeginning) if "id" in query else ""
    except msgspec.ValidationError:
        mistakes.append(
            f"id: expected the first of a job id's characters 0-9, a-f and -, got {text[:40]!r}"
        )
        return ""
