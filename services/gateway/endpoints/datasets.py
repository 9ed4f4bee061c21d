"""Look at the pictures of a job's dataset, and change those of a check before they are used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import UNSET, Meta

from services.gateway.jobs.budgets import Budgets
from services.gateway.jobs.presenter import Presenter
from services.gateway.jobs.record import Job, Step
from services.gateway.jobs.repository import JobRepository, UnknownJob
from services.gateway.jobs.request_parser import Invalid
from services.gateway.jobs.response_types import DatasetPage, DatasetPicture
from services.gateway.web.application import ANSWER_SECONDS, json_response, unknown_parameters
from services.gateway.web.authorization import Authorizer
from services.gateway.web.bodies import Bodies
from services.gateway.web.large_answers import LargeAnswers
from services.gateway.web.routing import JSON, Answer, Body, Parameter, route
from shared.dataset.edits import DatasetEdits, GivenEdit, PictureEdit
from shared.dataset.manifest import TrainedPicture
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
        async with asyncio.timeout(ANSWER_SECONDS):
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
        async with asyncio.timeout(ANSWER_SECONDS):
            job, version, *_ = await self._authorizer.job(request, owner)
        if not job.checks:
            raise web.HTTPConflict(text="only the dataset of a check can be changed")
        if version > MOST_CHANGES:
            raise web.HTTPConflict(text="it was changed too often: send more changes at a time")
        async with self._bodies.json(request, owner, EDITS_BYTES) as body:
            edits = edits_in(body)
            async with asyncio.timeout(ANSWER_SECONDS):
                change = partial(edited, edits, self._clock())
                size = left_in_store(change(await self._whole(job)))
                async with self._budgets.changed_check(owner, size):
                    now = await self._repository.change(
                        job.id, change, results=True, request_bytes=size
                    )
                if now is None:
                    raise UnknownJob
                page = page_of(edits[0].number)
        # Not in the body's block: it may hold the lock under which large answers are made.
        async with asyncio.timeout(ANSWER_SECONDS):
            job = (await self._authorizer.job(request, owner)).job
        return await self._answer(request, job, page)

    async def _answer(self, request: web.Request, job: Job, page: int) -> web.StreamResponse:
        async def make() -> bytes:
            async with asyncio.timeout(ANSWER_SECONDS):
                return msgspec.json.encode(await self._shown(await self._whole(job), page))

        if "edits" in job.stored:
            return await self._large_answers.send(request, job.owner, make)
        return json_response(await make())

    async def _whole(self, job: Job) -> Job:
        """The job with its changes and its report. Raises UnknownJob: it was removed meanwhile."""
        if (changed := await self._repository.with_edits(job)) is None:
            raise UnknownJob
        return await self._presenter.whole(changed, ["report"])

    async def _shown(self, job: Job, page: int) -> DatasetPage:
        if not job.pictures:
            raise web.HTTPConflict(text="there is no dataset to look at, or not yet")
        pages = max(1, ceil(pictures_of(job) / PAGE))
        if page > pages:
            raise Invalid([f"page: expected at most {pages}, got {page}"])
        try:
            text = await self._store.get(f"{job.pictures}/{page_name(page)}")
        except NotFound:
            raise web.HTTPConflict(text="what is told of its pictures is deleted") from None
        first = (page - 1) * PAGE + 1
        found = msgspec.json.decode(text, type=list[TrainedPicture])
        pictures = [
            await self._picture(job, number, each) for number, each in enumerate(found, start=first)
        ]
        return {"page": page, "pages": pages, "pictures": pictures}

    async def _picture(self, job: Job, number: int, picture: TrainedPicture) -> DatasetPicture:
        edit = job.edits.get(number, PictureEdit())
        key, name = f"{job.pictures}/{preview_name(number)}", preview_name(number)
        return {
            "number": number,
            "file": picture.file,
            "caption": picture.caption if edit.caption is None else edit.caption,
            "source": picture.source if edit.caption is None else "edit",
            "files": picture.files,
            "bucket": picture.bucket,
            "remarks": picture.remarks,
            "use": edit.use,
            "preview": await self._presenter.link(key, name) if number <= PREVIEWS else None,
        }


def edits_in(body: Any) -> list[GivenEdit]:
    """Raises Invalid."""
    try:
        return msgspec.convert(body, DatasetEdits).pictures
    except msgspec.ValidationError as error:
        raise Invalid([str(error)]) from None


def edited(given: Sequence[GivenEdit], now: float, job: Job) -> Step:
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
    return Step(msgspec.structs.replace(job, edits=edits))


def left_in_store(step: Step) -> int:
    """Bytes of all changes so far, if they are large enough to go into the store.

    A copy for a job that trains on them stays there until the check is deleted; the check's own is
    replaced by its next change.
    """
    size = len(msgspec.json.encode(step.job.edits))
    return size if size > LARGE else 0


def _changed(edit: PictureEdit, given: GivenEdit) -> PictureEdit:
    return PictureEdit(
        caption=edit.caption if given.caption is UNSET else given.caption,
        use=edit.use if given.use is UNSET else given.use,
    )


def pictures_of(job: Job) -> int:
    return int(job.report.get("images", 0)) + int(job.report.get("held_out", 0))
