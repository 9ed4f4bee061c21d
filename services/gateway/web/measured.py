"""How long each request takes, by its route and not its path: a path has ids in it."""

from __future__ import annotations

import asyncio
from time import monotonic

from aiohttp import web

from services.gateway import metrics
from services.gateway.web.routing import Handler, method_of, template_of
from shared.request import BASE_PATHS

CLOSED = "closed"
"""In place of a status: the client has gone before the answer was whole."""


@web.middleware
async def measured(request: web.Request, handler: Handler) -> web.StreamResponse:
    began, code = monotonic(), "500"
    try:
        response = await handler(request)
        code = str(response.status)
    except (ConnectionResetError, asyncio.CancelledError):
        code = CLOSED
        raise
    else:
        return response
    finally:
        labels = (method_of(request), _route(request), code)
        metrics.HTTP.labels(*labels).observe(monotonic() - began)


def _route(request: web.Request) -> str:
    """The template, without the base paths, which are names of the same; ``none``: no such path."""
    path = template_of(request) or "none"
    return next((path.removeprefix(base) for base in BASE_PATHS if path.startswith(base)), path)
