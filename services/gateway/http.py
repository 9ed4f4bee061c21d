"""The endpoint over HTTP: what clients of the original send and expect."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic
from typing import Any, Protocol, runtime_checkable
from urllib.parse import quote

import msgspec
import structlog
from aiohttp import web

from services.gateway.admission import Admission
from services.gateway.auth import Keys
from services.gateway.ledger import Ledger
from services.gateway.limits import CANCEL, RUN, STATUS, Limit, Rate
from services.gateway.view import View
from shared.errors import NotFound, Refused, Unavailable
from shared.jobs import Job, cancel
from shared.keys import link_holds
from shared.ports import ObjectStore
from shared.request import Invalid

ENDPOINT = "everydream-v1"
VERSIONS = ("v1", "v2")
MOST_BYTES = 10 * 1024 * 1024
"""The largest request body, as RunPod has it."""
ANSWER_SECONDS = 2.5
"""Clients give up after 3."""
RETRY_SECONDS = 5

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = structlog.get_logger()


@runtime_checkable
class KeepsFiles(Protocol):
    """A store whose objects are files on this machine; the gateway serves its links."""

    def path_of(self, key: str) -> Path:
        """The object's file. Raises NotFound or Refused."""


class Endpoint:
    """The routes of one endpoint, under every version of its address."""

    def __init__(
        self,
        *,
        keys: Keys,
        admission: Admission,
        ledger: Ledger,
        view: View,
        store: ObjectStore,
        link_key: str,
        clock: Callable[[], float],
        run_rate: Rate = RUN,
        status_rate: Rate = STATUS,
        cancel_rate: Rate = CANCEL,
    ) -> None:
        self._keys = keys
        self._admission = admission
        self._ledger = ledger
        self._view = view
        self._store = store
        self._link_key = link_key
        self._clock = clock
        self._runs = Limit(run_rate, monotonic)
        self._looks = Limit(status_rate, monotonic)
        self._cancels = Limit(cancel_rate, monotonic)

    def app(self) -> web.Application:
        app = web.Application(middlewares=[_errors_as_json], client_max_size=MOST_BYTES)
        for root in (f"/{version}/{ENDPOINT}" for version in VERSIONS):
            app.router.add_post(f"{root}/run", self._run)
            app.router.add_get(f"{root}/status/{{job}}", self._status)
            app.router.add_post(f"{root}/status/{{job}}", self._status)
            app.router.add_post(f"{root}/cancel/{{job}}", self._cancel)
        app.router.add_get("/healthz", self._health)
        if isinstance(self._store, KeepsFiles):
            app.router.add_get("/files/{key:.+}", self._file)
        return app

    async def _run(self, request: web.Request) -> web.Response:
        owner = self._let_in(request, self._runs)
        body = _decoded(await _whole_body(request))
        async with asyncio.timeout(ANSWER_SECONDS):
            job = await self._admission.admit(str(uuid.uuid4()), owner, body)
        return web.json_response({"id": job.id, "status": job.status})

    async def _status(self, request: web.Request) -> web.Response:
        owner = self._let_in(request, self._looks)
        async with asyncio.timeout(ANSWER_SECONDS):
            job = await self._job(request, owner)
            return web.Response(body=await self._view.status(job), content_type="application/json")

    async def _cancel(self, request: web.Request) -> web.Response:
        owner = self._let_in(request, self._cancels)
        async with asyncio.timeout(ANSWER_SECONDS):
            job = await self._job(request, owner)
            after = await self._ledger.change(job.id, lambda job: cancel(job, self._clock()))
        return web.json_response({"id": job.id, "status": (after or job).status})

    async def _health(self, _request: web.Request) -> web.Response:
        """Whether requests can be answered: the database is asked."""
        async with asyncio.timeout(ANSWER_SECONDS):
            await self._ledger.get("")
        return web.json_response({"status": "ok"})

    async def _file(self, request: web.Request) -> web.StreamResponse:
        """A file of the store, whole or a range of it, for whoever has a signed link."""
        key, query = request.match_info["key"], request.query
        expires, signature = _seconds(query.get("expires", "")), query.get("signature", "")
        if not link_holds(self._link_key, key, expires, signature, self._clock()):
            raise web.HTTPForbidden(text="this link is not one of ours, or it has ended")
        headers = {"X-Content-Type-Options": "nosniff"}
        if name := query.get("filename"):
            headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
        return web.FileResponse(await self._path_of(key), headers=headers)

    async def _path_of(self, key: str) -> Path:
        assert isinstance(self._store, KeepsFiles)  # noqa: S101 - else there is no such route
        try:
            return await asyncio.to_thread(self._store.path_of, key)
        except (NotFound, Refused):
            raise web.HTTPNotFound(text="there is no such file") from None

    def _let_in(self, request: web.Request, limit: Limit) -> str:
        """The owner that the request's key stands for."""
        owner = self._keys.owner(request.headers.get("Authorization"))
        if owner is None:
            raise web.HTTPUnauthorized(
                text="invalid API key: send it as 'Authorization: Bearer KEY'",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if wait := limit.wait(owner):
            raise web.HTTPTooManyRequests(
                text="too many requests", headers={"Retry-After": str(math.ceil(wait))}
            )
        return owner

    async def _job(self, request: web.Request, owner: str) -> Job:
        """The job in the path; somebody else's is as unknown as one that never was."""
        job = await self._ledger.get(request.match_info["job"])
        if job is None or job.owner != owner:
            raise web.HTTPNotFound(text="there is no such job")
        return job


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Invalid as invalid:
        return _error(400, str(invalid), mistakes=invalid.mistakes)
    except (Unavailable, TimeoutError) as error:
        log.warning("cannot_answer", path=request.path, reason=str(error) or "out of time")
        away = {"Retry-After": str(RETRY_SECONDS)}
        return _error(503, "the service cannot answer now; try again soon", headers=away)
    except web.HTTPException as error:
        kept = ("Allow", "Retry-After", "WWW-Authenticate")
        headers = {name: error.headers[name] for name in kept if name in error.headers}
        return _error(error.status, error.text or error.reason, headers=headers)
    except Exception:  # a mistake of ours is logged; the client gets JSON and no traceback
        log.exception("request_failed", path=request.path)
        return _error(500, "something went wrong here; it is in our log")


def _error(
    status: int, text: str, *, headers: dict[str, str] | None = None, **more: Any
) -> web.Response:
    return web.json_response({"error": text, **more}, status=status, headers=headers)


async def _whole_body(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise web.HTTPRequestEntityTooLarge(
            max_size=MOST_BYTES,
            actual_size=request.content_length or MOST_BYTES,
            text=f"the request is larger than {MOST_BYTES} bytes; put the images behind data_url",
        ) from None


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid([f"the request is not JSON: {error}"]) from None


def _seconds(text: str) -> int:
    """A link's end; anything but a number has ended."""
    try:
        return int(text)
    except ValueError:
        return 0
