"""Serve the console: a page that is one more client of the API."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

from services.gateway.web.routing import Answer, route
from shared.ports import ObjectStore

BUILT = Path(__file__).parents[2] / "console" / "dist"
"""What ``make console`` makes; the wheel carries it."""
INDEX, ASSETS = "index.html", "assets"
ASSET_PATH = f"/{ASSETS}/{{asset:[A-Za-z0-9_-][A-Za-z0-9._-]*}}"
MISSING = """<!doctype html><meta charset="utf-8"><title>EveryDream</title>
<h1>The console is not built</h1>
<p>The API works without it: see <a href="/docs">/docs</a>.</p>
<p>To build it, install Node.js 20 or newer, run <code>make console</code> in the checkout, and load
this page again.</p>
"""
FOREVER = "public, max-age=31536000, immutable"
"""For files whose names have a digest of their content."""


class ConsoleRoutes:
    """``/``, and the files that its page needs."""

    def __init__(self, store: ObjectStore, built: Path = BUILT) -> None:
        """``built`` is the folder of the page and its files."""
        self._store = store
        self._built = built

    @route(
        "GET",
        "/",
        "Get the console, or links to what is here",
        needs=None,
        versioned=False,
        answers={
            200: Answer("A browser gets the console, other clients the links.", dict[str, str])
        },
    )
    async def _root(self, request: web.Request) -> web.StreamResponse:
        if "text/html" not in request.headers.get("Accept", ""):
            links = {"console": "/", "docs": "/docs", "openapi": "/openapi.json",
                     "asyncapi": "/asyncapi.json", "ready": "/ready"}  # fmt: skip
            return web.json_response(links, headers={"Vary": "Accept"})
        link = await self._store.link("any", seconds=1)
        headers = {"Content-Security-Policy": policy(link), "Vary": "Accept",
                   "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"}  # fmt: skip
        page = self._built / INDEX
        if page.is_file():
            return web.FileResponse(page, headers=headers)
        return web.Response(text=MISSING, content_type="text/html", headers=headers)

    async def asset(self, request: web.Request) -> web.StreamResponse:
        """A file that the page loads; no operation of the API."""
        file = self._built / ASSETS / request.match_info["asset"]
        if not file.is_file():
            raise web.HTTPNotFound(text="there is no such file")
        return web.FileResponse(file, headers={"Cache-Control": FOREVER})


def policy(store_link: str) -> str:
    """The page's Content-Security-Policy: nothing from elsewhere but images in the store.

    The page shows them, and reads them when it puts several into one file.
    """
    parts = urlsplit(store_link)
    store = f"{parts.scheme}://{parts.netloc}"
    allowed = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": f"'self' {store}",
        "img-src": f"'self' blob: {store}",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {sources}" for name, sources in allowed.items())
