"""Whether the gateway can answer at all, for whoever watches over it."""

from __future__ import annotations

import asyncio

from aiohttp import web

from services.gateway.jobs import response_types
from services.gateway.jobs.repository import Ledger
from services.gateway.web.application import ANSWER_SECONDS
from services.gateway.web.routing import Answer, route


class Alive:
    """``/healthz``."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    @route(
        ("GET", "HEAD"),
        "/healthz",
        "See whether requests can be answered: the database is asked",
        needs=None,
        versioned=False,
        answers={200: Answer("They can.", response_types.Alive)},
        errors=(503,),
    )
    async def answer(self, _request: web.Request) -> web.Response:
        async with asyncio.timeout(ANSWER_SECONDS):
            await self._ledger.get("")
        alive: response_types.Alive = {"status": "ok"}
        return web.json_response(alive)
