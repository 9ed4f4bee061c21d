"""Who works on what, and what waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple

from aiohttp import web

from services.gateway.background.supervisor import Supervisor
from services.gateway.endpoints.admin.page import page_in
from services.gateway.endpoints.admin.response_types import (
    BrokerQueue,
    BusyWorker,
    FreePlaces,
    LineQueue,
    Queues,
    Service,
    StageQueue,
    WorkerPage,
)
from services.gateway.jobs.rows import read
from services.gateway.ports import LINES
from services.gateway.system_ports import LineLoad, StageLoad, SystemStore, Work, WorkPlace
from services.gateway.turns.stale_cache import StaleCache
from services.gateway.web.application import in_time
from services.gateway.web.paging import PAGING, Position, encode_cursor
from services.gateway.web.routing import Answer, route
from shared.errors import Unavailable
from shared.messaging.messages import STAGES, Stage
from shared.messaging.topology import (
    FETCHER,
    INFERENCER_RESULTS,
    NOTIFIER_PUBLISH,
    QUEUES,
    STAGE_QUEUES,
    TRAINER,
    Queue,
)
from shared.ports import Bus
from shared.words import iso

BROKER_SECONDS = 0.5
"""How long the broker is waited for; without an answer its numbers are left out."""
SERVICE_QUEUES: dict[Service, Queue] = {
    "fetcher": FETCHER,
    "trainer": TRAINER,
    "inferencer": INFERENCER_RESULTS,
    "notifier": NOTIFIER_PUBLISH,
}
SERVICES: dict[Stage, Service] = {
    stage: service
    for stage, queue in STAGE_QUEUES.items()
    for service, its in SERVICE_QUEUES.items()
    if its == queue
}


class _Counted(NamedTuple):
    """What the broker says of a queue; None: nothing."""

    messages: int | None
    consumers: int | None


class AdminWorkRoutes:
    """``/admin/workers`` and ``/admin/queues``."""

    def __init__(
        self, bus: Bus, system: SystemStore, supervisor: Supervisor, clock: Callable[[], float]
    ) -> None:
        self._bus = bus
        self._system = system
        self._supervisor = supervisor
        self._clock = clock
        self._counted = StaleCache(self._count)

    @route(
        "GET",
        "/admin/workers",
        "List who works on what",
        needs="operate",
        parameters=PAGING,
        answers={200: Answer("A page of busy workers, and how many more would be.", WorkerPage)},
        errors=(400,),
    )
    async def _workers(self, request: web.Request, _owner: str) -> web.Response:
        page = page_in(request.query)
        async with in_time():
            found = await self._system.work(_place(page.after), page.limit + 1)
            counted = await self._count_all(SERVICE_QUEUES.values())
        shown, now = found[: page.limit], self._clock()
        free: list[FreePlaces] = [
            {"service": service, "places": counted[queue.name].consumers}
            for service, queue in SERVICE_QUEUES.items()
        ]
        body: WorkerPage = {
            "busy": [self._busy(work, now) for work in shown],
            "free": free,
            "next": encode_cursor(_position(shown[-1])) if len(found) > page.limit else None,
        }
        return web.json_response(body)

    @route(
        "GET",
        "/admin/queues",
        "Get what waits, and how long",
        needs="operate",
        answers={200: Answer("Of each stage, each line of jobs, and each queue.", Queues)},
    )
    async def _queues(self, _request: web.Request, _owner: str) -> web.Response:
        now = self._clock()
        async with in_time():
            stages = await self._system.stages(now)
            lines = await self._system.lines()
            counted = await self._count_all(QUEUES)
        broker: list[BrokerQueue] = [
            {"queue": name, "messages": each.messages, "consumers": each.consumers}
            for name, each in counted.items()
        ]
        body: Queues = {
            "stages": _stages(stages, now),
            "lines": _lines(lines, now),
            "broker": broker,
        }
        return web.json_response(body)

    def _busy(self, work: Work, now: float) -> BusyWorker:
        stage, job = work.stage.stage, read(work.job)
        record = job.stages.get(stage)
        claim = record.claim if record else None
        heard = self._supervisor.heard_at(work.stage.claim or "")
        return {
            "worker": claim.worker if claim else "",
            "service": SERVICES[stage],
            "job": job.id,
            "stage": stage,
            "attempt": claim.attempt if claim else 0,
            "claimed_at": iso(claim.at) if claim and claim.at else None,
            "silent_seconds": None if heard is None else max(now - heard, 0.0),
            "gpu": (claim.gpu or None) if claim else None,
            "version": (claim.version or None) if claim else None,
        }

    async def _count_all(self, queues: Iterable[Queue]) -> dict[str, _Counted]:
        names = [queue.name for queue in queues]
        counted = await asyncio.gather(*(self._counted.get(name) for name in names))
        return dict(zip(names, counted, strict=True))

    async def _count(self, name: str) -> _Counted:
        (queue,) = (each for each in QUEUES if each.name == name)
        messages, consumers = await asyncio.gather(
            _or_none(self._bus.depth(queue)), _or_none(self._bus.consumers(queue))
        )
        return _Counted(messages, consumers)


async def _or_none(count: Awaitable[int]) -> int | None:
    try:
        async with asyncio.timeout(BROKER_SECONDS):
            return await count
    except (Unavailable, TimeoutError):
        return None


def _position(work: Work) -> Position:
    return work.stage.due_at, f"{work.stage.stage} {work.stage.job}"


def _place(position: Position | None) -> WorkPlace | None:
    if position is None:
        return None
    name, _, job = position[1].partition(" ")
    (stage,) = [each for each in STAGES if each == name] or STAGES[:1]
    return position[0], job, stage


def _stages(loads: Sequence[StageLoad], now: float) -> list[StageQueue]:
    known = {load.stage: load for load in loads}
    every = [known.get(stage) or StageLoad(stage, 0, 0, 0, None) for stage in STAGES]
    return [
        {
            "stage": load.stage,
            "queue": STAGE_QUEUES[load.stage].name,
            "claimed": load.claimed,
            "waiting": load.waiting,
            "delayed": load.delayed,
            "oldest_seconds": None if load.oldest is None else now - load.oldest,
        }
        for load in every
    ]


def _lines(loads: Sequence[LineLoad], now: float) -> list[LineQueue]:
    known = {load.line: load for load in loads}
    return [
        {
            "line": line,
            "waiting": known[line].waiting if line in known else 0,
            "oldest_seconds": max(now - known[line].oldest, 0.0) if line in known else None,
        }
        for line in LINES
    ]
