"""List a key's jobs, newest first, page by page."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, NamedTuple, TypeVar, get_args

import msgspec
from aiohttp import web
from msgspec import Meta
from multidict import MultiMapping

from services.gateway.jobs.presenter import Presenter
from services.gateway.jobs.record import Job
from services.gateway.jobs.request_parser import Invalid
from services.gateway.jobs.response_types import JobPage
from services.gateway.jobs.rows import read, with_progress
from services.gateway.ports import LINES, JobStore, Line, Status, StoredJob, StoredProgress
from services.gateway.queue.position import QueuePositions
from services.gateway.web.application import in_time, json_response, unknown_parameters
from services.gateway.web.paging import PAGING, Position, encode_cursor, limit_in, position_in
from services.gateway.web.routing import Answer, Parameter, route

PARAMETERS = ("status", "kind", "id", "limit", "cursor")
STATUSES: tuple[Status, ...] = get_args(Status)
_Name = TypeVar("_Name", bound=str)
IdBeginning = Annotated[str, Meta(pattern="^[0-9a-f-]{1,36}$")]


class Filter(NamedTuple):
    """Which jobs to list."""

    statuses: Sequence[str]
    kinds: Sequence[Line]
    """Of both: empty: any."""
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
            Parameter("kind", "query", list[Line], "Only these; repeated, or separated by commas."),
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
                owner=owner, statuses=wanted.statuses, lines=wanted.kinds, before=wanted.before,
                id_begins=wanted.id_begins, limit=wanted.limit + 1,
            )  # fmt: skip
            page = await self._page(rows, wanted)
        return json_response(msgspec.json.encode(page))

    async def _page(self, rows: Sequence[StoredJob], wanted: Filter) -> JobPage:
        """One row more than the limit means that there is another page."""
        shown = rows[: wanted.limit]
        last = (shown[-1].created_at, shown[-1].id) if len(rows) > wanted.limit else None
        read_jobs = [read(row) for row in shown]
        # Of rows of 0.1.0 the record alone tells the kind.
        of_kinds = [job for job in read_jobs if job.line in (wanted.kinds or LINES)]
        jobs = await self._with_progress(of_kinds)
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
        _several(query, "status", STATUSES, mistakes), _several(query, "kind", LINES, mistakes),
        _id_beginning(query, mistakes), limit_in(query, mistakes), position_in(query, mistakes),
    )  # fmt: skip
    if mistakes:
        raise Invalid(mistakes)
    return wanted


def _several(
    query: MultiMapping[str], parameter: str, known: Collection[_Name], mistakes: list[str]
) -> Sequence[_Name]:
    named = {name for text in query.getall(parameter, []) for name in text.split(",")}
    expected = ", ".join(known)
    mistakes += [
        f"{parameter}: expected one of {expected}, got {name[:40]!r}"
        for name in sorted(named.difference(known))
    ]
    return [each for each in known if each in named]


def _id_beginning(query: MultiMapping[str], mistakes: list[str]) -> str:
    text = query.get("id", "")
    try:
        return msgspec.convert(text, IdBeginning) if "id" in query else ""
    except msgspec.ValidationError:
        mistakes.append(
            f"id: expected the first of a job id's characters 0-9, a-f and -, got {text[:40]!r}"
        )
        return ""
