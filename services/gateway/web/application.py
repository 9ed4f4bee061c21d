"""The gateway's HTTP face: routes, bodies, and errors as JSON."""

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

from services.gateway.jobs.admission import Repeated
from services.gateway.jobs.repository import UnknownJob
from services.gateway.jobs.request_parser import Invalid, Unreachable, nearest, shown
from services.gateway.ports import BASES
from services.gateway.web.authentication import Keys
from services.gateway.web.authorization import CALLER, Authorizer
from services.gateway.web.routing import Handler, routes_of
from shared.concurrency import in_thread
from shared.errors import Full, Unavailable

ANSWER_SECONDS = 2.0
"""Clients give up after 3; what is given up must be put in order within the rest."""
RETRY_SECONDS = 5
HEAD_SECONDS = 75.0
"""How long a connection may stay without a whole head of a request."""
SILENT_SECONDS = 60.0
"""Between two pieces of a body."""
BODY_SECONDS = 300.0
"""For a whole body, however steadily it drips."""
LONG_BYTES = 1 << 16
"""A longer body is read as JSON beside the loop."""
MOST_BYTES = 20 * 1024 * 1024
"""Of any body that is read whole; RunPod's bound for ``/runsync``."""

log = structlog.get_logger()


def application(parts: Iterable[object], keys: Keys, authorizer: Authorizer) -> web.Application:
    """Everything that the gateway answers: all routes of these parts."""
    middlewares = [_errors_as_json, _uncompressed, _identified_by(keys)]
    app = web.Application(middlewares=middlewares, client_max_size=MOST_BYTES)
    app.on_response_prepare.append(_as_it_says)
    for part in parts:
        for method, path, handler in _addresses(part, authorizer):
            app.router.add_route(method, path, handler)
    return app


def _addresses(part: object, authorizer: Authorizer) -> Iterator[tuple[str, str, Handler]]:
    for name, route in routes_of(type(part)):
        own = getattr(part, name)
        handler = authorizer.guard(own, route.needs) if route.needs else own
        for base in BASES if route.versioned else ("",):
            for method in route.methods:
                yield method, f"{base}{route.path}", handler


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Invalid as invalid:
        status = 422 if isinstance(invalid, Unreachable) else 400
        return _error(status, str(invalid), mistakes=invalid.mistakes)
    except (Repeated, UnknownJob) as error:
        return _error(422 if isinstance(error, Repeated) else 404, str(error))
    except (Unavailable, TimeoutError) as error:
        return _later(request, error)
    except web.HTTPException as error:
        kept = ("Allow", "Retry-After", "Upload-Offset", "WWW-Authenticate")
        headers = {name: error.headers[name] for name in kept if name in error.headers}
        return _error(error.status, error.text or error.reason, headers=headers)
    except Exception:  # a mistake of ours is logged; the client gets JSON and no traceback
        log.exception("request_failed", path=request.path)
        return _error(500, "something went wrong here; it is in our log")


async def _as_it_says(_: web.Request, response: web.StreamResponse) -> None:
    """No browser takes an answer for another kind than the one that it names."""
    response.headers.setdefault("X-Content-Type-Options", "nosniff")


@web.middleware
async def _uncompressed(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A few bytes that grow into many are not even looked at."""
    coding = request.headers.get("Content-Encoding", "identity")
    if coding.strip().lower() not in ("", "identity"):
        raise web.HTTPUnsupportedMediaType(
            text="Content-Encoding: send the body as it is, not compressed"
        )
    return await handler(request)


def _later(request: web.Request, error: Unavailable | TimeoutError) -> web.Response:
    """What may be asked again: nothing was done, or what was begun can be gone on with."""
    headers = {"Retry-After": str(RETRY_SECONDS)}
    if isinstance(error, Full):
        log.warning("no_room", path=request.path, reason=str(error))
        return _error(507, "there is no room here for what was sent", headers=headers)
    log.warning("cannot_answer", path=request.path, reason=str(error) or "out of time")
    return _error(503, "the service cannot answer now; try again soon", headers=headers)


def _identified_by(keys: Keys) -> Middleware:
    @web.middleware
    async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
        headers = request.headers.getall("Authorization", [])
        if len(headers) == 1:  # of two, a proxy may have checked the other one
            async with asyncio.timeout(ANSWER_SECONDS):
                caller = await keys.caller(headers[0])
            if caller is not None:
                request[CALLER] = caller
        return await handler(request)

    return identify


def _error(
    status: int, text: str, *, headers: dict[str, str] | None = None, **more: Any
) -> web.Response:
    return web.json_response({"error": text, **more}, status=status, headers=headers)


async def json_body(request: web.Request, most: int) -> Any:
    """The request's body, decoded.

    Raises:
        Invalid: it is not JSON, or broke off.
        web.HTTPRequestEntityTooLarge: it has more than so many bytes.
        web.HTTPRequestTimeout: it does not come, or too slowly.
    """
    body = await _whole_body(request, most)
    return _decoded(body) if len(body) < LONG_BYTES else await in_thread(_decoded, body)


async def _whole_body(request: web.Request, most: int) -> bytes:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _joined(request, most)
    except TimeoutError:
        raise web.HTTPRequestTimeout(
            text=f"the body must come within {BODY_SECONDS:g} s, and not be silent for"
            f" {SILENT_SECONDS:g} s"
        ) from None
    except web.RequestPayloadError as error:
        raise Invalid([f"the request's body broke off: {error}"]) from None


async def _joined(request: web.Request, most: int) -> bytes:
    body = bytearray()
    _check_size(request.content_length or 0, most)
    while piece := await _next_piece(request):
        body += piece
        _check_size(len(body), most)
    return bytes(body)


async def _next_piece(request: web.Request) -> bytes:
    async with asyncio.timeout(SILENT_SECONDS):
        return await request.content.readany()


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise web.HTTPRequestEntityTooLarge(
            max_size=most,
            actual_size=size,
            text=f"the request is larger than {most} bytes; put the images behind data_url",
        )


def _decoded(body: bytes) -> Any:
    """By msgspec, which is strict; the other reader is there for what it passes over."""
    try:
        decoded = msgspec.json.decode(body)
        json.loads(body, object_pairs_hook=_without_twins)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Invalid([f"the request is not JSON: {error}"]) from None
    return decoded


def _without_twins(pairs: list[tuple[str, Any]]) -> None:
    """Two readers may take different ones of two fields with one name."""
    if len(dict(pairs)) < len(pairs):
        ((twin, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{shown(twin)} stands twice in one object")


def unknown_parameters(query: MultiMapping[str], known: Sequence[str]) -> list[str]:
    """A sentence for each parameter of a query that there is not."""
    return [
        f"{name}: no such parameter; {nearest(name, known)}"
        for name in dict.fromkeys(query)
        if name not in known
    ]


def json_response(body: bytes) -> web.Response:
    """An answer that is JSON already."""
    return web.Response(body=body, content_type="application/json")


def is_gone(request: web.Request) -> bool:
    """Whether the client has hung up."""
    return request.transport is None or request.transport.is_closing()
