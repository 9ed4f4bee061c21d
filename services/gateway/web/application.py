"""The HTTP application: routes, request bodies, and errors as JSON."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware
from multidict import MultiMapping

from services.gateway.jobs.admission import IdReused
from services.gateway.jobs.repository import UnknownJob
from services.gateway.jobs.request_parser import (
    DisallowedAddress,
    Invalid,
    TooLarge,
    nearest,
    shown,
)
from services.gateway.ports import BASE_PATHS
from services.gateway.web.authentication import Keys
from services.gateway.web.authorization import CALLER, Authorizer
from services.gateway.web.routing import Handler, routes_of
from shared.concurrency import in_thread
from shared.errors import Full, Unavailable

ANSWER_SECONDS = 2.0
"""Clients time out after 3; the rest is for cleaning up."""
RETRY_SECONDS = 5
"""For the header ``Retry-After``."""
HEAD_SECONDS = 75.0
"""How long a connection may wait for the headers of a request."""
IDLE_SECONDS = 60.0
"""Most time between two pieces of a body."""
BODY_SECONDS = 300.0
"""Most time for a whole body."""
LONG_BYTES = 1 << 16
"""A body from this length on is parsed in a thread."""
MAX_BYTES = 20 * 1024 * 1024
"""The largest body that is held in memory; RunPod's limit for ``/runsync``."""

log = structlog.get_logger()


def application(parts: Iterable[object], keys: Keys, authorizer: Authorizer) -> web.Application:
    """The application with all routes of these objects."""
    middlewares = [_errors_as_json, _refuse_compressed, _authenticate(keys)]
    app = web.Application(middlewares=middlewares, client_max_size=MAX_BYTES)
    app.on_response_prepare.append(_forbid_sniffing)
    for part in parts:
        for method, path, handler in _handlers(part, authorizer):
            app.router.add_route(method, path, handler)
    return app


def _handlers(part: object, authorizer: Authorizer) -> Iterator[tuple[str, str, Handler]]:
    for name, route in routes_of(type(part)):
        own = getattr(part, name)
        handler = authorizer.guard(own, route.needs) if route.needs else own
        for base in BASE_PATHS if route.versioned else ("",):
            for method in route.methods:
                yield method, f"{base}{route.path}", handler


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Invalid as invalid:
        status = {DisallowedAddress: 422, TooLarge: 413}.get(type(invalid), 400)
        return _error(status, str(invalid), mistakes=invalid.mistakes)
    except (IdReused, UnknownJob) as error:
        return _error(422 if isinstance(error, IdReused) else 404, str(error))
    except (Unavailable, TimeoutError) as error:
        return _retry_later(request, error)
    except web.HTTPException as error:
        kept = ("Allow", "Retry-After", "Upload-Offset", "WWW-Authenticate")
        headers = {name: error.headers[name] for name in kept if name in error.headers}
        return _error(error.status, error.text or error.reason, headers=headers)
    except Exception:  # a bug: the client gets no traceback
        log.exception("request_failed", path=request.path)
        return _error(500, "something went wrong here; it is in our log")


async def _forbid_sniffing(_: web.Request, response: web.StreamResponse) -> None:
    """Keep browsers from guessing another content type."""
    response.headers.setdefault("X-Content-Type-Options", "nosniff")


@web.middleware
async def _refuse_compressed(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A small compressed body may be a very large one."""
    coding = request.headers.get("Content-Encoding", "identity")
    if coding.strip().lower() not in ("", "identity"):
        raise web.HTTPUnsupportedMediaType(
            text="Content-Encoding: send the body as it is, not compressed"
        )
    return await handler(request)


def _retry_later(request: web.Request, error: Unavailable | TimeoutError) -> web.Response:
    """Nothing was done, or what was begun can be continued."""
    headers = {"Retry-After": str(RETRY_SECONDS)}
    if isinstance(error, Full):
        log.warning("no_room", path=request.path, reason=str(error))
        return _error(507, "there is no room here for what was sent", headers=headers)
    log.warning("cannot_answer", path=request.path, reason=str(error) or "out of time")
    return _error(503, "the service cannot answer now; try again soon", headers=headers)


def _authenticate(keys: Keys) -> Middleware:
    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        headers = request.headers.getall("Authorization", [])
        if len(headers) == 1:  # with two, a proxy may have checked the other one
            async with asyncio.timeout(ANSWER_SECONDS):
                caller = await keys.caller(headers[0])
            if caller is not None:
                request[CALLER] = caller
        return await handler(request)

    return authenticate


def _error(
    status: int, text: str, *, headers: dict[str, str] | None = None, **more: Any
) -> web.Response:
    return web.json_response({"error": text, **more}, status=status, headers=headers)


async def json_body(request: web.Request, most: int) -> Any:
    """The request's body, decoded from JSON.

    Raises:
        Invalid: the body is not JSON, or incomplete.
        web.HTTPRequestEntityTooLarge: it has more than ``most`` bytes.
        web.HTTPRequestTimeout: it does not arrive in time.
    """
    body = await _whole_body(request, most)
    return _decoded(body) if len(body) < LONG_BYTES else await in_thread(_decoded, body)


async def _whole_body(request: web.Request, most: int) -> bytes:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _read_all(request, most)
    except TimeoutError:
        raise web.HTTPRequestTimeout(
            text=f"the body must come within {BODY_SECONDS:g} s, and not be silent for"
            f" {IDLE_SECONDS:g} s"
        ) from None
    except web.RequestPayloadError as error:
        raise Invalid([f"the request's body broke off: {error}"]) from None


async def _read_all(request: web.Request, most: int) -> bytes:
    body = bytearray()
    _check_size(request.content_length or 0, most)
    while True:
        async with asyncio.timeout(IDLE_SECONDS):
            piece = await request.content.readany()
        if not piece:
            return bytes(body)
        body += piece
        _check_size(len(body), most)


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise web.HTTPRequestEntityTooLarge(
            max_size=most,
            actual_size=size,
            text=f"the request is larger than {most} bytes; put the images behind data_url",
        )


def _decoded(body: bytes) -> Any:
    """Decode by msgspec, which is strict, and check by ``json`` for repeated names."""
    try:
        decoded = msgspec.json.decode(body)
        json.loads(body, object_pairs_hook=_refuse_repeated_names)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Invalid([f"the request is not JSON: {error}"]) from None
    return decoded


def _refuse_repeated_names(pairs: list[tuple[str, Any]]) -> None:
    """Different parsers take different ones of two fields with the same name."""
    if len(dict(pairs)) < len(pairs):
        ((repeated, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{shown(repeated)} stands twice in one object")


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


def is_disconnected(request: web.Request) -> bool:
    """Whether the client has closed the connection."""
    return request.transport is None or request.transport.is_closing()
