"""Tell a key what it may do."""

from __future__ import annotations

from collections.abc import Collection

from aiohttp import web

from services.gateway.jobs.response_types import KeyFacts
from services.gateway.web.authentication import SCOPES
from services.gateway.web.authorization import CALLER
from services.gateway.web.routing import Answer, route


class KeyRoutes:
    """``/key``."""

    @route(
        "GET",
        "/key",
        "Get the scopes of your key",
        needs="key",
        answers={200: Answer("What the key may do.", KeyFacts)},
    )
    async def _get(self, request: web.Request, _owner: str) -> web.Response:
        return web.json_response(key_facts(request[CALLER].scopes))


def key_facts(granted: Collection[str]) -> KeyFacts:
    """A key's scopes, in the order of what they allow."""
    return {"scopes": [scope for scope in SCOPES if scope in granted]}
