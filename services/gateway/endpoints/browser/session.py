"""Sign a browser in and out."""

from __future__ import annotations

from aiohttp import web

from services.gateway.endpoints.key import key_facts
from services.gateway.jobs.response_types import KeyFacts
from services.gateway.web.authorization import CALLER
from services.gateway.web.routing import Answer, route
from services.gateway.web.sessions import PROTECTION, SESSION_SECONDS, Sessions


class SessionRoutes:
    """``/session``."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    @route(
        "POST",
        "/session",
        "Begin a browser's session, in which a cookie stands for the key",
        needs="key",
        versioned=False,
        answers={
            200: Answer(
                f"The cookie is HttpOnly and SameSite=Strict, and ends after"
                f" {SESSION_SECONDS // 86_400} days, or with the key. Requests that change anything"
                f" by it need a header {PROTECTION}, whatever its value.",
                KeyFacts,
            )
        },
    )
    async def _begin(self, request: web.Request, owner: str) -> web.Response:
        response = _session_of(request)
        self._sessions.begin(response, owner)
        return response

    @route(
        "GET",
        "/session",
        "Get what this browser's session may do",
        needs=None,
        versioned=False,
        answers={200: Answer("The key's scopes; none without a valid key.", KeyFacts)},
    )
    async def _get(self, request: web.Request) -> web.Response:
        return _session_of(request)

    @route(
        "DELETE",
        "/session",
        "End a browser's session",
        needs=None,
        versioned=False,
        answers={204: Answer("The browser forgets its cookie.")},
    )
    async def _end(self, _request: web.Request) -> web.Response:
        response = web.Response(status=204)
        self._sessions.end(response)
        return response


def _session_of(request: web.Request) -> web.Response:
    caller = request.get(CALLER)
    return web.json_response(key_facts(caller.scopes if caller else ()))
