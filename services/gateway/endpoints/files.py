"""Files of a store on this machine, for whoever has a signed link."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

from services.gateway.ports import LocalStore
from services.gateway.web.routing import Answer, Parameter, route
from shared.errors import NotFound, Refused
from shared.keys import link_holds

POLICY = "default-src 'none'; sandbox"
"""Of every file: whatever a user has uploaded, no browser runs it as a page of ours."""


class FileRoutes:
    """Answers the links of a store that keeps files."""

    def __init__(self, store: LocalStore, link_key: str, clock: Callable[[], float]) -> None:
        """``link_key`` is the deployment's, which has signed the links."""
        self._store = store
        self._link_key = link_key
        self._clock = clock

    @route(
        ("GET", "HEAD"),
        "/files/{key:.+}",
        "Get a file by its signed link, where results are kept in a folder",
        needs=None,
        versioned=False,
        parameters=(
            Parameter("expires", "query", int, "As in the link: seconds since the epoch."),
            Parameter("signature", "query", str, "As in the link."),
            Parameter("filename", "query", str, "Under which name a browser saves it."),
        ),
        answers={
            200: Answer("The file.", media="*/*"),
            206: Answer("The range of it that was asked for.", media="*/*"),
            304: Answer("It is as it was."),
        },
        errors=(403, 412, 416),
    )
    async def answer(self, request: web.Request) -> web.StreamResponse:
        """A file, whole or a range of it."""
        key, query = request.match_info["key"], request.query
        expires, signature = _seconds(query.get("expires", "")), query.get("signature", "")
        if not link_holds(self._link_key, key, expires, signature, self._clock()):
            raise web.HTTPForbidden(text="this link is not one of ours, or it has ended")
        name = query.get("filename") or key.rpartition("/")[2]
        headers = {
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
            "Content-Security-Policy": POLICY,
        }
        return web.FileResponse(await self._path_of(key), headers=headers)

    async def _path_of(self, key: str) -> Path:
        try:
            return await asyncio.to_thread(self._store.path_of, key)
        except (NotFound, Refused):
            raise web.HTTPNotFound(text="there is no such file") from None


def _seconds(text: str) -> int:
    """A link's end; anything but a number has ended."""
    try:
        return int(text)
    except ValueError:
        return 0
