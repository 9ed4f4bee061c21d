"""Sign a browser in and out."""

from __future__ import annotations

from aiohttp import web

from services.gateway.jobs.response_types import Session
from services.gateway.web.authentication import SCOPES
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
        needs="status",
        versioned=False,
        answers={
            200: Answer(
                f"The cookie is HttpOnly and SameSite=Strict, and ends after"
                f" {SESSION_SECONDS // 86_400} days, or with the key. Requests that change anything"
                f" by it need a header {PROTECTION}, whatever its value.",
                Session,
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
        "Get what your key, or the session of this browser, may do",
        needs=None,
        versioned=False,
        answers={200: Answer("The key's scopes; none without a valid key.", Session)},
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
    session: Session = {"scopes": [each for each in SCOPES if caller and each in caller.scopes]}
    return web.json_response(session)
