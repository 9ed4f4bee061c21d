"""The HTTP application: routes, request bodies, and errors as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import structlog
from aiohttp import HttpVersion11, web
from aiohttp.typedefs import Middleware
from multidict import MultiMapping

from services.gateway.jobs.admission import IdReused
from services.gateway.jobs.budgets import BudgetExceeded
from services.gateway.jobs.fields.names import nearest
from services.gateway.jobs.repository import UnknownJob
from services.gateway.jobs.request_parser import (
    DisallowedAddress,
    Invalid,
)
from services.gateway.request_owner import answering
from services.gateway.web import cross_origin, request_scope
from services.gateway.web.authentication import Keys, owner_of
from services.gateway.web.authorization import CALLER, Authorizer
from services.gateway.web.measured import measured
from services.gateway.web.routing import Handler, routes_of
from services.gateway.web.sessions import Sessions
from services.gateway.web.wrong_paths import suggest_path
from shared.errors import Full, Unavailable
from shared.monitoring.server import RETRY_SECONDS
from shared.request import BASE_PATHS
from shared.settings import MAX_BODY

ANSWER_SECONDS = 2.0
"""Clients time out after 3; the rest is for cleaning up."""
HEAD_SECONDS = 75.0
"""How long a connection may wait for the headers of a request."""
OVER_BUDGET_SECONDS = 1.0
"""Until a key hears that a budget is used up: a client that tries again at once sends the whole
body each time, which is read and dropped, so that it hears the answer."""

log = structlog.get_logger()


def application(
    parts: Iterable[object],
    keys: Keys,
    sessions: Sessions,
    authorizer: Authorizer,
    origins: Collection[str] = (),
    *,
    access_log: bool = False,
) -> web.Application:
    """The application with all routes of these objects; pages of ``origins`` may use it."""
    middlewares = [
        request_scope.scoped(access_log=access_log),
        measured,
        cross_origin.preflight(origins),
        _errors_as_json,
        suggest_path,
        _refuse_compressed,
        _authenticate(keys, sessions),
    ]
    app = web.Application(middlewares=middlewares, client_max_size=MAX_BODY)
    app.on_response_prepare.append(_protect)
    app.on_response_prepare.append(request_scope.tell_ids)
    cross_origin.allow(app, origins)
    for part in parts:
        for method, path, handler in _handlers(part, authorizer):
            app.router.add_route(method, path, handler, expect_handler=_expect)
    return app


def _handlers(part: object, authorizer: Authorizer) -> Iterator[tuple[str, str, Handler]]:
    for name, route in routes_of(type(part)):
        own = getattr(part, name)
        handler = authorizer.guard(own, route.needs, waits=route.waits) if route.needs else own
        for base in BASE_PATHS if route.versioned else ("",):
            for method in route.methods:
                yield method, f"{base}{route.path}", handler


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Invalid as invalid:
        status = 422 if isinstance(invalid, DisallowedAddress) else 400
        return _error(status, str(invalid), mistakes=invalid.mistakes)
    except (IdReused, UnknownJob) as error:
        return _error(422 if isinstance(error, IdReused) else 404, str(error))
    except (BudgetExceeded, Unavailable, TimeoutError) as error:
        return await _retry_later(request, error)
    except web.HTTPException as error:
        kept = ("Allow", "Retry-After", "Upload-Offset", "WWW-Authenticate")
        headers = {name: error.headers[name] for name in kept if name in error.headers}
        return _error(error.status, _text_of(request, error), headers=headers)
    except ConnectionResetError:
        raise  # the client is gone: nobody is there to be answered
    except Exception:  # a bug: the client gets no traceback
        log.exception("request_failed", path=request.path)
        return _error(500, "something went wrong here; it is in our log")


def _text_of(request: web.Request, error: web.HTTPException) -> str:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = " or ".join(sorted(error.allowed_methods))
        return f"{request.method} is not taken here: send {allowed}"
    return error.text or error.reason


async def _protect(_: web.Request, response: web.StreamResponse) -> None:
    """Keep browsers from guessing another content type, and caches from keeping one key's data."""
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Cache-Control", "no-store")


async def _expect(request: web.Request) -> web.Response | None:
    """Answer where the handler of aiohttp fails: for a header that is no text."""
    if request.headers["Expect"].lower() != "100-continue":
        return _error(417, "Expect: only 100-continue is known")
    if request.version == HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # of the answer itself
    return None


@web.middleware
async def _refuse_compressed(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A small compressed body may be a very large one."""
    coding = request.headers.get("Content-Encoding", "identity")
    if coding.strip().lower() not in ("", "identity"):
        raise web.HTTPUnsupportedMediaType(
            text="Content-Encoding: send the body as it is, not compressed"
        )
    return await handler(request)


async def _retry_later(
    request: web.Request, error: BudgetExceeded | Unavailable | TimeoutError
) -> web.Response:
    """Nothing was done, or what was begun can be continued."""
    headers = {"Retry-After": str(RETRY_SECONDS)}
    if isinstance(error, BudgetExceeded):
        await asyncio.sleep(OVER_BUDGET_SECONDS)
        budget = {"name": error.name, "used": error.used, "allowed": error.allowed}
        return _error(429, str(error), headers=headers, budget=budget)
    if isinstance(error, Full):
        log.warning("no_room", path=request.path, reason=str(error))
        return _error(507, "there is no room here for what was sent", headers=headers)
    log.warning("cannot_answer", path=request.path, reason=str(error) or "out of time")
    return _error(503, "the service cannot answer now; try again soon", headers=headers)


def _authenticate(keys: Keys, sessions: Sessions) -> Middleware:
    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        headers = request.headers.getall("Authorization", [])
        if len(headers) > 1:  # a proxy may have checked the other one
            return await handler(request)
        owner = owner_of(headers[0]) if headers else sessions.owner(request)
        if owner is None:
            return await handler(request)
        with answering(owner):
            async with in_time():
                caller = await keys.caller_of(owner)
            if caller is not None:
                request[CALLER] = caller
            return await handler(request)

    return authenticate


def in_time(more: float = 0.0) -> asyncio.Timeout:
    """End the block so that the client still hears of it; ``more`` seconds are for its size."""
    return asyncio.timeout(ANSWER_SECONDS + more)


def _error(
    status: int, text: str, *, headers: dict[str, str] | None = None, **more: Any
) -> web.Response:
    return web.json_response({"error": text, **more}, status=status, headers=headers)


def unknown_parameters(query: MultiMapping[str], known: Sequence[str]) -> list[str]:
    """A sentence for each unknown parameter of a query."""
    return [
        f"{name}: no such parameter; {nearest(name, known)}"
        for name in dict.fromkeys(query)
        if name not in known
    ]


def json_response(body: bytes) -> web.Response:
    """A response with a body that is JSON already."""
    return web.Response(body=body, content_type="application/json")
