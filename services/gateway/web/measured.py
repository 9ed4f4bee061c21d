"""How long each request takes, by its route and not its path: a path has ids in it."""

from __future__ import annotations

import asyncio
from time import monotonic

from aiohttp import hdrs, web

from services.gateway import metrics
from services.gateway.web.routing import Handler
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
        labels = (_method(request), _route(request), code)
        metrics.HTTP.labels(*labels).observe(monotonic() - began)


def _method(request: web.Request) -> str:
    """Anybody may make up methods."""
    return request.method if request.method in hdrs.METH_ALL else "other"


def _route(request: web.Request) -> str:
    """The template, without the base paths, which are names of the same; ``none``: no such path."""
    resource = request.match_info.route.resource
    if resource is None:
        return "none"
    path = resource.canonical
    return next((path.removeprefix(base) for base in BASE_PATHS if path.startswith(base)), path)
