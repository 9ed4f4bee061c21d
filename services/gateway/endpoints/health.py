"""Liveness and readiness, for monitoring and load balancers."""

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
from services.gateway.web.application import RETRY_SECONDS, in_time
from services.gateway.web.routing import Answer, route
from shared.errors import Unavailable
from shared.ports import LocalStore, ObjectStore
from shared.words import counted

NEEDED_BYTES = 2**30
"""Free space that a local store must have: for a few uploads, or a small model."""
NEEDED_FILES = 10_000
"""Files that it must have room for: a few results."""
Part = Literal["database", "broker", "store"]

log = structlog.get_logger()


class Problem(Struct, frozen=True):
    """Why a part is not ready, and since when (seconds since the epoch)."""

    reason: str
    since: float


class HealthRoutes:
    """``/healthz`` checks the database, ``/ready`` also the broker and the disk."""

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
        self._problems: dict[Part, Problem] = {}

    @route(
        ("GET", "HEAD"),
        "/healthz",
        "Check that requests can be answered: the database answers",
        needs=None,
        versioned=False,
        answers={200: Answer("Requests can be answered.", response_types.Liveness)},
        errors=(503,),
    )
    async def alive(self, _request: web.Request) -> web.Response:
        async with in_time():
            await self._repository.get("")
        alive: response_types.Liveness = {"status": "ok"}
        return web.json_response(alive)

    @route(
        ("GET", "HEAD"),
        "/ready",
        "Check that everything that jobs need is available",
        needs=None,
        versioned=False,
        answers={
            200: Answer("Everything is available.", response_types.Readiness),
            503: Answer(
                "Something is missing; jobs are accepted all the same while the database answers.",
                response_types.Readiness,
                headers={"Retry-After": "Seconds."},
            ),
        },
    )
    async def ready(self, _request: web.Request) -> web.Response:
        """Reasons are our own texts, never those of errors, because this needs no key."""
        self._note("database", await self._database())
        self._note("broker", self._supervisor.broker_problem)
        self._note("store", await self._disk())
        lacking: list[response_types.UnreadyPart] = [
            {"part": part, "reason": problem.reason, "since": iso(problem.since)}
            for part, problem in self._problems.items()
        ]
        if not lacking:
            return web.json_response(response_types.Readiness(status="ready", lacking=[]))
        body = response_types.Readiness(status="not ready", lacking=lacking)
        return web.json_response(body, status=503, headers={"Retry-After": str(RETRY_SECONDS)})

    def _note(self, part: Part, reason: str | None) -> None:
        """Record a problem with its first time, or remove one that is solved."""
        known = self._problems.pop(part, None)
        if reason is not None:
            self._problems[part] = Problem(reason, known.since if known else self._clock())
            if known is None:
                log.warning("not_ready", part=part, reason=reason)

    async def _database(self) -> str | None:
        try:
            async with in_time():
                await self._repository.get("")
        except (Unavailable, TimeoutError):
            return "does not answer"
        return None

    async def _disk(self) -> str | None:
        """Check a local disk; other stores report by themselves when they are full."""
        if not isinstance(self._store, LocalStore):
            return None
        try:
            free = await asyncio.to_thread(self._store.free_bytes)
            files = await asyncio.to_thread(self._store.free_files)
        except Unavailable:
            return "its folder cannot be read"
        if free < NEEDED_BYTES:
            return f"{free} bytes are free; {NEEDED_BYTES} are needed"
        if files is not None and files < NEEDED_FILES:
            room = counted(files, "more file")
            return f"there is room for {room} (inodes); {NEEDED_FILES} are needed"
        return None
