"""Liveness and readiness, for monitoring and load balancers."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from services.gateway.web.health_types import Liveness, Readiness
from services.gateway.web.routing import Answer, route
from shared.monitoring.health import Health
from shared.monitoring.server import RETRY_SECONDS, readiness

UNREADY: dict[str, Any] = {"Retry-After": "Seconds."}
ANSWERS = {
    200: Answer("Everything is available.", Readiness),
    503: Answer(
        "Something is missing; jobs are accepted all the same while the database answers.",
        Readiness,
        headers=UNREADY,
    ),
}


class HealthRoutes:
    """``/livez`` asks nothing, ``/healthz`` the database, ``/readyz`` also broker and store.

    Reasons are our own texts, never those of errors, because these need no key.
    """

    def __init__(self, health: Health) -> None:
        self._health = health

    @route(
        ("GET", "HEAD"),
        "/livez",
        "Check that the gateway runs, whatever else is away",
        needs=None,
        versioned=False,
        answers={200: Answer("It runs.", Liveness)},
    )
    async def live(self, _request: web.Request) -> web.Response:
        return web.json_response(Liveness(status="ok"))

    @route(
        ("GET", "HEAD"),
        "/healthz",
        "Check that requests can be answered: the database answers",
        needs=None,
        versioned=False,
        answers={200: Answer("Requests can be answered.", Liveness)},
        errors=(503,),
    )
    async def alive(self, _request: web.Request) -> web.Response:
        if await self._health.problems(essential=True):
            headers = {"Retry-After": str(RETRY_SECONDS)}
            error = {"error": "the service cannot answer now; try again soon"}
            return web.json_response(error, status=503, headers=headers)
        return web.json_response(Liveness(status="ok"))

    @route(
        ("GET", "HEAD"),
        "/readyz",
        "Check that everything that jobs need is available",
        needs=None,
        versioned=False,
        answers=ANSWERS,
    )
    async def readyz(self, _request: web.Request) -> web.Response:
        return readiness(await self._health.problems())

    @route(
        ("GET", "HEAD"),
        "/ready",
        "The same as /readyz, by its former name",
        needs=None,
        versioned=False,
        answers=ANSWERS,
    )
    async def ready(self, request: web.Request) -> web.Response:
        return await self.readyz(request)
