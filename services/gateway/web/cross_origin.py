"""CORS: which sites' pages may send requests here and read the answers.

Source: the Fetch standard, https://fetch.spec.whatwg.org/#http-cors-protocol. The cookie of a
session is never sent with them: a page can do no more than the key allows that its user gave it.
"""

from __future__ import annotations

from collections.abc import Collection

from aiohttp import web
from aiohttp.typedefs import Middleware

from services.gateway.web.routing import Handler

ANY = "*"
METHODS = "GET, HEAD, POST, PATCH, DELETE"
ACCEPTED = (
    "Authorization, Content-Type, Idempotency-Key, If-None-Match, If-Range, Last-Event-ID, Range,"
    " Tus-Resumable, Upload-Length, Upload-Metadata, Upload-Offset, X-Request-Id, traceparent,"
    " tracestate"
)
READABLE = (
    "Accept-Ranges, Content-Disposition, Content-Range, ETag, Location, Retry-After, Tus-Resumable,"
    " Tus-Version, Tus-Extension, Tus-Max-Size, Upload-Length, Upload-Offset, WWW-Authenticate,"
    " X-Request-Id, traceparent, tracestate"
)
"""Headers of answers that a script may see, besides those that it always may."""
PREFLIGHT_SECONDS = 7200
"""How long a browser keeps the permission; none keeps it longer."""


def preflight(origins: Collection[str]) -> Middleware:
    """Answer what browsers ask before they send a request of a page from one of these sites."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        asks = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        if not asks or _allowed(request, origins) is None:
            return await handler(request)
        headers = {
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Allow-Headers": ACCEPTED,
            "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
        }
        return web.Response(status=204, headers=headers)

    return answer


def allow(app: web.Application, origins: Collection[str]) -> None:
    """Let pages from these sites read every answer, errors too; ``*`` stands for any site."""

    async def say_so(request: web.Request, response: web.StreamResponse) -> None:
        if ANY not in origins:
            response.headers.add("Vary", "Origin")
        if (origin := _allowed(request, origins)) is not None:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = READABLE

    if origins:
        app.on_response_prepare.append(say_so)


def _allowed(request: web.Request, origins: Collection[str]) -> str | None:
    origin = request.headers.get("Origin")
    if origin is not None and ANY in origins:
        return ANY
    return origin if origin in origins else None
