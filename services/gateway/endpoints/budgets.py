"""Tell a key what of its budgets is used."""

from __future__ import annotations

import msgspec
from aiohttp import web

from services.gateway.jobs import response_types
from services.gateway.jobs.budgets import BUDGETS, Budgets
from services.gateway.web.application import in_time, json_response
from services.gateway.web.routing import Answer, route


class BudgetRoutes:
    """``/budgets``."""

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets

    @route(
        "GET",
        "/budgets",
        "Get your budgets: what you use, and what you may",
        needs="status",
        answers={200: Answer("All budgets.", response_types.Budgets)},
    )
    async def _get(self, _request: web.Request, owner: str) -> web.Response:
        async with in_time():
            used = await self._budgets.used(owner)
        allowed = self._budgets.allowed
        budgets = {name: {"used": used[name], "allowed": allowed[name]} for name in BUDGETS}
        return json_response(msgspec.json.encode(msgspec.convert(budgets, response_types.Budgets)))
