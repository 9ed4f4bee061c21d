"""What belongs to one request: its id, its trace, its line in the access log."""

from __future__ import annotations

import re
import uuid
from time import monotonic

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from services.gateway.web.routing import Handler, method_of, template_of
from shared.telemetry import tracing

REQUEST_ID = "X-Request-Id"
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+/=-]{0,127}")
"""Of a client's own; another is replaced."""
UNTRACED = ("/healthz", "/livez", "/ready", "/readyz")
"""Asked every few seconds by machines."""
BUG = 500
CLIENT_GONE = 499
"""nginx's word for it; nobody gets to see it."""
SCOPE = web.RequestKey("request_scope", dict[str, str])

log = structlog.get_logger()


def scoped(*, access_log: bool) -> Middleware:
    """Give each request its id and its trace, in every line that is logged for it.

    It is the outermost. With ``access_log`` the end of each request is a line, too.
    """

    @web.middleware
    async def in_scope(request: web.Request, handler: Handler) -> web.StreamResponse:
        states = ",".join(request.headers.getall("tracestate", ()))
        parent = tracing.parse(request.headers.get("traceparent"), states)
        request_id = _id_of(request, parent)
        about = {"job": job} if (job := request.match_info.get("job")) else {}
        with structlog.contextvars.bound_contextvars(request_id=request_id, **about):
            if request.path in UNTRACED:
                with tracing.within(parent):
                    return await _answered(request, handler, request_id, access_log=access_log)
            route, method = template_of(request) or "unknown", method_of(request)
            with tracing.span(
                f"{method} {route}", parent=parent, kind="server",
                http__request__method=method, http__route=route,
                everydream__request_id=request_id,
            ) as span:  # fmt: skip
                response = await _answered(request, handler, request_id, access_log=access_log)
                span.set(http__response__status_code=response.status)
                if response.status >= BUG:
                    span.fail(str(response.status))
                return response

    return in_scope


async def tell_ids(request: web.Request, response: web.StreamResponse) -> None:
    """Answer with the request's id and the context of its trace."""
    response.headers.update(request.get(SCOPE, {}))


async def _answered(
    request: web.Request, handler: Handler, request_id: str, *, access_log: bool
) -> web.StreamResponse:
    headers = {REQUEST_ID: request_id}
    if current := tracing.context():
        headers.update(current.headers)
    request[SCOPE] = headers
    begun, status, size = monotonic(), 0, 0
    try:
        response = await handler(request)
        status, size = response.status, response.content_length or response.body_length
    except ConnectionResetError:
        if not is_disconnected(request):
            raise
        response = web.Response(status=CLIENT_GONE)  # aiohttp calls what is raised an error
    finally:
        if access_log:  # 0: nothing was answered, because the client was gone
            log.info(
                "request", method=request.method, path=request.path, status=status, bytes=size,
                seconds=round(monotonic() - begun, 4), client=request.remote,
            )  # fmt: skip
    return response


def is_disconnected(request: web.Request) -> bool:
    """Whether the client has closed the connection."""
    return request.transport is None or request.transport.is_closing()


def _id_of(request: web.Request, parent: tracing.Context | None) -> str:
    given = request.headers.get(REQUEST_ID, "")
    if ID.fullmatch(given):
        return given
    return parent.trace_id if parent else uuid.uuid4().hex
