"""The curves of a training, while it runs and afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from math import inf
from typing import Annotated, NamedTuple

import msgspec
from aiohttp import web
from msgspec import Meta
from multidict import MultiMapping

from services.gateway.jobs.repository import UnknownJob
from services.gateway.jobs.request_parser import Invalid
from services.gateway.jobs.response_types import Metrics
from services.gateway.web.application import in_time, json_response, unknown_parameters
from services.gateway.web.authorization import Authorizer
from services.gateway.web.large_answers import LargeAnswers
from services.gateway.web.routing import Answer, Parameter, route
from shared.concurrency import in_thread
from shared.errors import NotFound
from shared.ports import ObjectStore
from shared.storage.curve import Curve
from shared.storage.metrics import MetricsPiece, piece_key, stored_pieces

DEFAULT_POINTS, MAX_POINTS = 1000, 5000
MOST_DIGITS = 9
MAX_STEP = 10**MOST_DIGITS - 1
MOST_PIECES = 64
"""That are read for an answer, within its time: more than 100,000 reports."""
FEW_PIECES = 4
"""Not more are read without waiting for the room of large answers."""
READ_AT_ONCE = 16


class Wanted(NamedTuple):
    """Which points of a curve."""

    after: int
    points: int


class Read(NamedTuple):
    """A piece to read."""

    piece: MetricsPiece
    end: float
    """The first step of the next one."""


class MetricsRoutes:
    """``/jobs/{job}/metrics``."""

    def __init__(
        self, authorizer: Authorizer, store: ObjectStore, large_answers: LargeAnswers
    ) -> None:
        self._authorizer = authorizer
        self._store = store
        self._large_answers = large_answers

    @route(
        "GET",
        "/jobs/{job}/metrics",
        "Get the curves of a training, while it runs and afterwards",
        needs="status",
        parameters=(
            Parameter(
                "after",
                "query",
                Annotated[int, Meta(ge=0, le=MAX_STEP)],
                "Only steps after this one, such as ``last_step`` of the answer before.",
            ),
            Parameter(
                "points",
                "query",
                Annotated[int, Meta(ge=1, le=MAX_POINTS)],
                f"{DEFAULT_POINTS} by default. Of more reports some are left out, evenly, but for"
                " the last one. Those with a validation loss are counted apart.",
            ),
        ),
        answers={200: Answer("The curves so far; without a training there are none.", Metrics)},
        errors=(400,),
    )
    async def _metrics(self, request: web.Request, owner: str) -> web.StreamResponse:
        wanted = wanted_of(request.query)
        async with in_time():
            job = (await self._authorizer.job(request, owner)).job
            to_read = after_step(await stored_pieces(self._store, job.id), wanted.after)

        async def make() -> bytes:
            async with in_time():
                return await self._curve(job.id, to_read[:MOST_PIECES], wanted)

        if len(to_read) > FEW_PIECES:
            return await self._large_answers.send(request, owner, make)
        return json_response(await make())

    async def _curve(self, job: str, to_read: Sequence[Read], wanted: Wanted) -> bytes:
        curve = Curve(wanted.points, after=wanted.after)
        for first in range(0, len(to_read), READ_AT_ONCE):
            some = to_read[first : first + READ_AT_ONCE]
            keys = [piece_key(job, each.piece) for each in some]
            try:
                texts = await asyncio.gather(*(self._store.get(key) for key in keys))
            except NotFound:  # a job keeps its pieces as long as it is there
                raise UnknownJob(job) from None
            for read, text in zip(some, texts, strict=True):
                await in_thread(curve.add, text, read.end)
        return msgspec.json.encode({"points": curve.points(), "last_step": curve.last_step})


def after_step(pieces: Sequence[MetricsPiece], after: int) -> list[Read]:
    """The pieces that can have steps after this one, and always the last."""
    ends = [each.first_step for each in pieces[1:]] + [inf]
    return [Read(piece, end) for piece, end in zip(pieces, ends, strict=False) if end > after + 1]


def wanted_of(query: MultiMapping[str]) -> Wanted:
    """The query's parameters, checked.

    Raises:
        Invalid: with every mistake.
    """
    mistakes = unknown_parameters(query, ["after", "points"])
    wanted = Wanted(
        after=_integer(query, "after", range(MAX_STEP + 1), mistakes, default=-1),
        points=_integer(
            query, "points", range(1, MAX_POINTS + 1), mistakes, default=DEFAULT_POINTS
        ),
    )
    if mistakes:
        raise Invalid(mistakes)
    return wanted


def _integer(
    query: MultiMapping[str], name: str, allowed: range, mistakes: list[str], *, default: int
) -> int:
    if (text := query.get(name)) is None:
        return default
    is_number = text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS
    if is_number and int(text) in allowed:
        return int(text)
    wanted = f"an integer from {allowed[0]} to {allowed[-1]}"
    mistakes.append(f"{name}: expected {wanted}, got {text[:40]!r}")
    return default
