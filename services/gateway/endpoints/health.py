"""Liveness and readiness, for whatever watches over the gateway or sends it requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

import structlog
from aiohttp import web
from msgspec import Struct

from services.gateway.background.supervisor import Supervisor
from services.gateway.jobs import response_types
from services.gateway.jobs.presenter import iso
from services.gateway.jobs.repository import JobRepository
from services.gateway.ports import LocalStore
from services.gateway.web.application import ANSWER_SECONDS, RETRY_SECONDS
from services.gateway.web.routing import Answer, route
from shared.errors import Unavailable
from shared.ports import ObjectStore

ROOM = 2**30
"""Bytes that the store's disk must have free: for a few uploads, or a small model."""
Part = Literal["database", "broker", "store"]

log = structlog.get_logger()


class Problem(Struct, frozen=True):
    """A part that is not as it should be, and since when."""

    reason: str
    since: float


class HealthRoutes:
    """``/healthz``: the database answers. ``/ready``: so does the broker, and the disk has room."""

    def __init__(
        self,
        repository: JobRepository,
        supervisor: Supervisor,
        store: ObjectStore,
        clock: Callable[[], float],
    ) -> None:
        self._repository = repository
        self._supervisor = supervisor
        self._store = store
        self._clock = clock
        self._lacks: dict[Part, Problem] = {}

    @route(
        ("GET", "HEAD"),
        "/healthz",
        "See whether requests can be answered: the database is asked",
        needs=None,
        versioned=False,
        answers={200: Answer("They can.", response_types.Liveness)},
        errors=(503,),
    )
    async def alive(self, _request: web.Request) -> web.Response:
        async with asyncio.timeout(ANSWER_SECONDS):
            await self._repository.get("")
        alive: response_types.Liveness = {"status": "ok"}
        return web.json_response(alive)

    @route(
        ("GET", "HEAD"),
        "/ready",
        "See whether everything is there that jobs need",
        needs=None,
        versioned=False,
        answers={
            200: Answer("It is.", response_types.Readiness),
            503: Answer(
                "Not all of it; jobs are accepted all the same while the database answers.",
                response_types.Readiness,
                headers={"Retry-After": "Seconds."},
            ),
        },
    )
    async def ready(self, _request: web.Request) -> web.Response:
        """The reasons are our own words: whoever asks has no key."""
        self._note("database", await self._database())
        self._note("broker", self._supervisor.broker_problem)
        self._note("store", await self._disk())
        lacking: list[response_types.UnreadyPart] = [
            {"part": part, "reason": lack.reason, "since": iso(lack.since)}
            for part, lack in self._lacks.items()
        ]
        if not lacking:
            return web.json_response(response_types.Readiness(status="ready", lacking=[]))
        body = response_types.Readiness(status="not ready", lacking=lacking)
        return web.json_response(body, status=503, headers={"Retry-After": str(RETRY_SECONDS)})

    def _note(self, part: Part, reason: str | None) -> None:
        """Remember since when; what is mended is forgotten."""
        known = self._lacks.pop(part, None)
        if reason is not None:
            self._lacks[part] = Problem(reason, known.since if known else self._clock())
            if known is None:
                log.warning("not_ready", part=part, reason=reason)

    async def _database(self) -> str | None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._repository.get("")
        except (Unavailable, TimeoutError):
            return "does not answer"
        return None

    async def _disk(self) -> str | None:
        """Of a store on this machine; another says itself when it is full."""
        if not isinstance(self._store, LocalStore):
            return None
        try:
            free = await asyncio.to_thread(self._store.free_bytes)
        except Unavailable:
            return "its folder cannot be read"
        return f"{free} bytes are free; {ROOM} are needed" if free < ROOM else None
