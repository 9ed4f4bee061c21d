"""The curves of a training, while it runs and afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from math import inf
from typing import Annotated, Generic, NamedTuple, TypeVar

import msgspec
from aiohttp import web
from msgspec import Meta, Struct
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
from shared.storage.metrics import MetricsPiece, piece_key, stored_pieces

DEFAULT_POINTS, MAX_POINTS = 1000, 5000
MOST_DIGITS = 9
MAX_STEP = 10**MOST_DIGITS - 1
MOST_PIECES = 64
"""That are read for an answer, within its time: more than 100,000 reports."""
FEW_PIECES = 4
"""Not more are read without waiting for the room of large answers."""
READ_AT_ONCE = 16
T = TypeVar("T")


class Point(Struct, omit_defaults=True):
    """A line of the metrics, or several of one step."""

    step: int
    epoch: int
    time: float
    loss: float | None = None
    lr: float | None = None
    text_encoder_lr: float | None = None
    images_per_second: float | None = None
    validation_loss: float | None = None


class Wanted(NamedTuple):
    """Which points of a curve."""

    after: int
    points: int


class Read(NamedTuple):
    """A piece to read."""

    piece: MetricsPiece
    end: float
    """The first step of the next one."""


_decoder = msgspec.json.Decoder(Point)


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
        curve = Curve(wanted)
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


class Curve:
    """The points of an answer, gathered piece by piece; holds few of them, however many there are.

    Validations are thinned by themselves: they are rare, and each one counts.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._after = wanted.after
        self._reports = Thinned[Point](wanted.points)
        self._validations = Thinned[Point](wanted.points)
        self._last: Point | None = None

    @property
    def last_step(self) -> int | None:
        """The last step that was added, wanted or not."""
        return self._last.step if self._last else None

    def add(self, text: bytes, end: float) -> None:
        """Add a piece's lines of steps before ``end``."""
        for point in merged(_decoder.decode_lines(text)):
            if point.step >= end:
                return
            self._last = point
            if point.step > self._after:
                is_validation = point.validation_loss is not None
                (self._validations if is_validation else self._reports).add(point)

    def points(self) -> list[Point]:
        """The points, thinned, in order; the last one is among them."""
        kept = {each.step: each for each in (*self._reports.kept, *self._validations.kept)}
        if self._last and self._last.step > self._after:
            kept[self._last.step] = self._last
        return sorted(kept.values(), key=lambda each: each.step)


class Thinned(Generic[T]):
    """Of a series of unknown length at most ``most``, evenly: all, every second, every fourth."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._every = 1
        self._seen = 0
        self.kept: list[T] = []

    def add(self, item: T) -> None:
        if self._seen % self._every == 0:
            self.kept.append(item)
        if len(self.kept) > self._most:
            self.kept = self.kept[::2]
            self._every *= 2
        self._seen += 1


def merged(lines: Sequence[Point]) -> list[Point]:
    """One point for each step: a validation comes in a line of its own."""
    points: list[Point] = []
    for line in lines:
        if points and points[-1].step == line.step:
            for name in Point.__struct_fields__:
                if (number := getattr(line, name)) is not None:
                    setattr(points[-1], name, number)
        else:
            points.append(line)
    return points


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
