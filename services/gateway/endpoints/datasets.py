"""Look at the pictures of a job's dataset, and change those of a check before they are used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from typing import Annotated, cast

import msgspec
from aiohttp import web
from msgspec import UNSET, Meta
from msgspec.structs import asdict, replace

from services.gateway.jobs.budgets import Budgets
from services.gateway.jobs.presenter import Presenter
from services.gateway.jobs.record import Job, Step, validation_of
from services.gateway.jobs.repository import JobRepository, UnknownJob
from services.gateway.jobs.request_parser import Invalid, parse_edits
from services.gateway.jobs.response_types import DatasetPage, DatasetPicture
from services.gateway.web.application import in_time, json_response, unknown_parameters
from services.gateway.web.authorization import Authorizer
from services.gateway.web.bodies import Bodies
from services.gateway.web.large_answers import LargeAnswers
from services.gateway.web.room import FairLock
from services.gateway.web.routing import JSON, Answer, Body, Parameter, route
from shared.concurrency import in_thread
from shared.dataset.edited_report import edited_picture, edited_report, split_of
from shared.dataset.edits import GivenEdit, PictureEdit
from shared.dataset.manifest import Report, TrainedPicture
from shared.dataset.pages import PAGE, PREVIEWS, page_name, page_of, preview_name
from shared.errors import NotFound
from shared.ports import ObjectStore
from shared.storage.large_fields import LARGE

EDITS_BYTES = 10 << 20
MOST_LETTERS = 1 << 20
"""Of all captions that are changed."""
MOST_CHANGES = 300
"""Of a check: the sum of their bytes, which the database keeps in 32 bits, cannot overflow."""
MOST_DIGITS = 9
READ_AT_ONCE = 16
"""Pages of the store."""
PAGES_A_SECOND = 50


class DatasetRoutes:
    """``/jobs/{job}/dataset``."""

    def __init__(
        self,
        *,
        authorizer: Authorizer,
        repository: JobRepository,
        presenter: Presenter,
        budgets: Budgets,
        store: ObjectStore,
        bodies: Bodies,
        large_answers: LargeAnswers,
        clock: Callable[[], float],
    ) -> None:
        self._authorizer = authorizer
        self._repository = repository
        self._presenter = presenter
        self._budgets = budgets
        self._store = store
        self._bodies = bodies
        self._large_answers = large_answers
        self._clock = clock
        self._one_change = FairLock()
        """Held while all pages of a check are in memory."""

    @route(
        "GET",
        "/jobs/{job}/dataset",
        "Look at every picture of a job's dataset, page by page",
        needs="status",
        parameters=(
            Parameter("page", "query", Annotated[int, Meta(ge=1)], "Of 50 pictures; 1 by default."),
        ),
        answers={200: Answer("The pictures of a page.", DatasetPage)},
        errors=(400, 409),
    )
    async def _page(self, request: web.Request, owner: str) -> web.StreamResponse:
        mistakes = unknown_parameters(request.query, ["page"])
        text = request.query.get("page", "1")
        is_number = text.isdecimal() and len(text) <= MOST_DIGITS and int(text) > 0
        if mistakes or not is_number:
            raise Invalid(mistakes or [f"page: expected a number of at least 1, got {text[:20]!r}"])
        async with in_time():
            job = (await self._authorizer.job(request, owner)).job
        return await self._answer(request, job, int(text))

    @route(
        "PATCH",
        "/jobs/{job}/dataset",
        "Change captions of a check's dataset, or leave pictures out, before it is trained on",
        needs="command",
        body=Body(JSON, {"$ref": "#/components/schemas/DatasetEdits"}, "The changes."),
        answers={200: Answer("The page with the first of the changed pictures.", DatasetPage)},
        errors=(409,),
    )
    async def _edit(self, request: web.Request, owner: str) -> web.StreamResponse:
        async with in_time():
            job, version, *_ = await self._authorizer.job(request, owner)
        if not job.checks:
            raise web.HTTPConflict(text="only the dataset of a check can be changed")
        if version > MOST_CHANGES:
            raise web.HTTPConflict(text="it was changed too often: send more changes at a time")
        async with self._bodies.json(request, owner, EDITS_BYTES) as body:
            edits = parse_edits(body)
            async with in_time():
                whole = await self._whole(job)
                # Mistakes are found before any page is read.
                edited(edits, self._clock(), whole)
            async with (
                in_time(pages_of(whole) / PAGES_A_SECOND),
                self._one_change.hold(owner),
            ):
                found = await self._found(whole)
                whole = await self._whole((await self._authorizer.job(request, owner)).job)
                made = await in_thread(edited_with_report, edits, self._clock(), found, whole)
                size = left_in_store(made)
                async with self._budgets.changed_check(owner, size):
                    now = await self._repository.change(
                        job.id,
                        partial(take_over, made, whole),
                        results=True,
                        request_bytes=size,
                    )
                if now is None:
                    raise UnknownJob(job.id)
                page = page_of(edits[0].number)
        # Not in the body's block: it may hold the lock under which large answers are made.
        async with in_time():
            job = (await self._authorizer.job(request, owner)).job
        return await self._answer(request, job, page)

    async def _answer(self, request: web.Request, job: Job, page: int) -> web.StreamResponse:
        async def make() -> bytes:
            async with in_time():
                return msgspec.json.encode(await self._shown(await self._whole(job), page))

        if "edits" in job.stored:
            return await self._large_answers.send(request, job.owner, make)
        return json_response(await make())

    async def _whole(self, job: Job) -> Job:
        """The job with its changes and its report. Raises UnknownJob: it was removed meanwhile."""
        if (changed := await self._repository.with_edits(job)) is None:
            raise UnknownJob(job.id)
        return await self._presenter.whole(changed, ["report", "found_report"])

    async def _found(self, job: Job) -> list[TrainedPicture]:
        """Every picture as the check has found it."""
        pages = range(1, pages_of(job) + 1)
        found: list[TrainedPicture] = []
        for first in range(0, len(pages), READ_AT_ONCE):
            some = pages[first : first + READ_AT_ONCE]
            for pictures in await asyncio.gather(*(self._found_on(job, page) for page in some)):
                found += pictures
        return found

    async def _found_on(self, job: Job, page: int) -> list[TrainedPicture]:
        try:
            text = await self._store.get(f"{job.pictures}/{page_name(page)}")
        except NotFound:
            raise web.HTTPConflict(text="what is told of its pictures is deleted") from None
        first = (page - 1) * PAGE + 1
        pictures = msgspec.json.decode(text, type=list[TrainedPicture])
        return [replace(each, number=number) for number, each in enumerate(pictures, start=first)]

    async def _shown(self, job: Job, page: int) -> DatasetPage:
        if not job.pictures:
            raise web.HTTPConflict(text="there is no dataset to look at, or not yet")
        if page > (pages := pages_of(job)):
            raise Invalid([f"page: expected at most {pages}, got {page}"])
        found = await self._found_on(job, page)
        if job.edits:
            report = msgspec.convert(job.report, Report)
            split = split_of(pictures_of(job), job.edits, validation_of(job))
            found = [
                edited_picture(each, job.edits.get(each.number, PictureEdit()), report, split)
                for each in found
            ]
        pictures = [await self._picture(job, each) for each in found]
        return {"page": page, "pages": pages, "pictures": pictures}

    async def _picture(self, job: Job, picture: TrainedPicture) -> DatasetPicture:
        number = picture.number
        key, name = f"{job.pictures}/{preview_name(number)}", preview_name(number)
        shown = {
            **asdict(picture),
            "use": job.edits.get(number, PictureEdit()).use,
            "preview": await self._presenter.link(key, name) if number <= PREVIEWS else None,
        }
        return cast("DatasetPicture", shown)


def edited(given: Sequence[GivenEdit], now: float, job: Job) -> Job:
    """The check with these changes.

    Raises:
        Invalid: there is no such picture, or none is left; or the captions are too long together.
        web.HTTPConflict: the dataset is not kept, or not yet.
    """
    if job.kept is None or job.kept.until < now:
        raise web.HTTPConflict(
            text="the check has not completed, or its dataset is not kept any more: check it again"
        )
    pictures = pictures_of(job)
    edits = {**job.edits}
    for each in given:
        if each.number > pictures:
            raise Invalid([f"pictures: there are {pictures}, and none with number {each.number}"])
        edits[each.number] = _changed(edits.get(each.number, PictureEdit()), each)
    if sum(not edit.use for edit in edits.values()) == pictures:
        raise Invalid(["pictures: at least one must be used"])
    if sum(len(edit.caption or "") for edit in edits.values()) > MOST_LETTERS:
        raise Invalid([f"pictures: expected at most {MOST_LETTERS} letters of captions in all"])
    return replace(job, edits=edits)


def edited_with_report(
    given: Sequence[GivenEdit], now: float, found: Sequence[TrainedPicture], job: Job
) -> Job:
    """The check with these changes, and with the report on what is trained on then."""
    job = edited(given, now, job)
    before = job.found_report or job.report
    report = edited_report(
        msgspec.convert(before, Report), found, job.edits, validation_of(job)
    ).plain()
    return replace(job, found_report=before, report=report)


def take_over(made: Job, before: Job, job: Job) -> Step:
    """The job with the changes of ``made``, which was ``before``.

    Raises:
        web.HTTPConflict: another gateway has changed its pictures meanwhile.
    """
    if job.edits != before.edits:
        raise web.HTTPConflict(text="its pictures were just changed by another request: try again")
    return Step(replace(job, edits=made.edits, found_report=made.found_report, report=made.report))


def left_in_store(job: Job) -> int:
    """Bytes of all changes so far and of the report, if they are large enough for the store.

    A copy of the changes for a job that trains on them stays there until the check is deleted, as
    every report does; the check's own is replaced by its next change.
    """
    sizes = (len(msgspec.json.encode(each)) for each in (job.edits, job.report))
    return sum(size for size in sizes if size > LARGE)


def _changed(edit: PictureEdit, given: GivenEdit) -> PictureEdit:
    return PictureEdit(
        caption=edit.caption if given.caption is UNSET else given.caption,
        use=edit.use if given.use is UNSET else given.use,
    )


def pictures_of(job: Job) -> int:
    """How many there are, also of those that are left out."""
    report = job.found_report or job.report
    return int(report.get("images", 0)) + int(report.get("held_out", 0))


def pages_of(job: Job) -> int:
    return max(1, ceil(pictures_of(job) / PAGE))
