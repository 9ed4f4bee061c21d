"""Serve the files of a local store by signed links."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import PurePosixPath
from urllib.parse import quote

import msgspec
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.hdrs import ACCEPT_ENCODING, CONTENT_DISPOSITION, CONTENT_RANGE

from services.gateway.web.routing import JSON, Answer, Parameter, route
from shared.errors import NotFound, Refused
from shared.keys import link_holds
from shared.ports import LocalStore

GONE = "there is no such file"
ETAG = {"ETag": "Another one means that the file has changed."}
KINDS = {".png": "image/png", ".webp": "image/webp"}
"""Of what pages show: which others are known depends on the machine."""
POLICY = "default-src 'none'; sandbox"
"""For every file: no browser runs an uploaded file as a page of this host."""


class FileRoutes:
    """``/files/{key}``."""

    def __init__(self, store: LocalStore, link_key: str, clock: Callable[[], float]) -> None:
        """``link_key`` is the deployment's secret key, which signs links."""
        self._store = store
        self._link_key = link_key
        self._clock = clock

    @route(
        ("GET", "HEAD"),
        "/files/{key:.+}",
        "Get a file by its signed link, where results are stored in a folder",
        needs=None,
        versioned=False,
        parameters=(
            Parameter("expires", "query", int, "As in the link: seconds since the epoch."),
            Parameter("signature", "query", str, "As in the link."),
            Parameter("filename", "query", str, "The name under which a browser saves it."),
            Parameter("Range", "header", str, "A part of the file, as ``bytes=FIRST-LAST``."),
            Parameter("If-None-Match", "header", str, "The ``ETag`` of a copy."),
        ),
        answers={
            200: Answer("The file.", media="*/*", headers=ETAG),
            206: Answer(
                "The requested range of it.",
                media="*/*",
                headers={**ETAG, "Content-Range": "``bytes FIRST-LAST/SIZE``."},
            ),
            304: Answer("It has not changed.", headers=ETAG),
        },
        errors=(403, 412, 416),
    )
    async def answer(self, request: web.Request) -> web.StreamResponse:
        key, query = request.match_info["key"], request.query
        expires, signature = _seconds(query.get("expires", "")), query.get("signature", "")
        if not link_holds(self._link_key, key, expires, signature, self._clock()):
            raise web.HTTPForbidden(text="this link is not one of ours, or it has ended")
        name = query.get("filename") or key.rpartition("/")[2]
        headers = {
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
            "Content-Security-Policy": POLICY,
            "Cache-Control": "private",
        }
        if kind := KINDS.get(PurePosixPath(key).suffix):
            headers["Content-Type"] = kind
        try:
            path = await asyncio.to_thread(self._store.path_of, key)
        except (NotFound, Refused):
            raise web.HTTPNotFound(text=GONE) from None
        return _ThisFile(path, headers=headers)


class _ErrorInJson(web.StreamResponse):
    """Gives the errors of aiohttp's file response the body that every error has."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        if self.status < 400 or self.prepared:  # noqa: PLR2004 - the first error status
            return await super().prepare(request)
        body = msgspec.json.encode({"error": self._reason_in_full()})
        self.content_type, self.content_length = JSON, len(body)
        self.headers.pop(CONTENT_DISPOSITION)
        writer = await super().prepare(request)
        if request.method != "HEAD":
            await self.write(body)
        return writer

    def _reason_in_full(self) -> str:
        if self.status == web.HTTPPreconditionFailed.status_code:
            return "the file is not the one that If-Match or If-Unmodified-Since expects"
        if self.status == web.HTTPRequestRangeNotSatisfiable.status_code:
            size = self.headers[CONTENT_RANGE].rpartition("/")[2]
            return f"Range: expected bytes=FIRST-LAST within the file's {size} bytes"
        return GONE  # a moment ago


class _ThisFile(web.FileResponse, _ErrorInJson):
    """The file itself, never a compressed one beside it, which is another object."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        kept = [(name, text) for name, text in request.headers.items() if name != ACCEPT_ENCODING]
        return await super().prepare(request.clone(headers=kept))


def _seconds(text: str) -> int:
    """When a link expires; anything but a number counts as expired."""
    try:
        return int(text)
    except ValueError:
        return 0
