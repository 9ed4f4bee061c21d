"""A small web server with the manners, good and bad, of the ones out there."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from aiohttp import ClientConnectionResetError, web
from multidict import CIMultiDictProxy

from tests.support.servers.process import HOST


@dataclass(frozen=True)
class Seen:
    """A request, as it came."""

    method: str
    path: str
    headers: CIMultiDictProxy[str]
    body: bytes
    at: float = field(default_factory=monotonic)
    """When."""


@dataclass(frozen=True)
class Answer:
    """What a POST gets: a status after a while, or, without one, never a word."""

    status: int | None = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    after: float = 0


@dataclass(frozen=True)
class Page:
    """What a path gives, and how badly."""

    body: bytes | Path = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    announce: bool = True  # the length, beforehand
    cut_at: int | None = None  # bytes after which the connection is dropped
    piece: int = 0  # bytes at a time; 0 is all at once
    pause: float = 0  # seconds after each piece

    @property
    def is_plain(self) -> bool:
        return self.announce and self.cut_at is None and not self.piece


class Web:
    """Serves pages, answers POSTs by a script, and remembers every request."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.answered: list[tuple[Seen, int]] = []
        """POSTs, each with the status that it got."""
        self._pages: dict[str, Page] = {}
        self._scripts: dict[str, list[Answer]] = {}
        self._news = asyncio.Condition()
        self._root = ""

    # -- what the tests say

    def url(self, path: str = "/") -> str:
        return self._root + path

    def serve(self, path: str, page: bytes | Path | Page) -> str:
        """Put bytes, a file or a page with manners at a path, and return its address."""
        self._pages[path] = page if isinstance(page, Page) else Page(page)
        return self.url(path)

    def redirect(self, path: str, to: str, status: int = 302) -> str:
        """Send whoever asks for the path elsewhere, and return its address."""
        return self.serve(path, Page(status=status, headers={"Location": to}))

    def answer(self, *script: int | Answer, path: str = "") -> None:
        """Give the next POSTs these answers, one each; those after them get 200.

        With a path only those to it: they heed no other script.
        """
        answers = [Answer(entry) if isinstance(entry, int) else entry for entry in script]
        self._scripts.setdefault(path, []).extend(answers)

    @property
    def waiting_answers(self) -> int:
        """How many of the script are still to be given."""
        return sum(map(len, self._scripts.values()))

    def forget_answers(self) -> None:
        """Give all POSTs 200 from now on."""
        self._scripts.clear()

    @property
    def posts(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.method == "POST"]

    async def wait_for_posts(self, number: int, seconds: float = 60) -> list[Seen]:
        """Return the POSTs so far, once there are that many."""
        async with asyncio.timeout(seconds), self._news:
            await self._news.wait_for(lambda: len(self.posts) >= number)
        return self.posts

    # -- what the server does

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Web"]:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        # A handler that dawdles on purpose must not hold up the end of a test.
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, HOST, 0).start()
            self._root = f"http://{HOST}:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        seen = await self._remember(request)
        if request.method == "POST":
            return await self._next_answer(request.path, seen)
        page = self._pages.get(request.path, Page(status=404))
        return _plain(page) if page.is_plain else await _badly(page, request)

    async def _remember(self, request: web.Request) -> Seen:
        body = await request.read()
        seen = Seen(request.method, request.path_qs, request.headers, body)
        async with self._news:
            self.seen.append(seen)
            self._news.notify_all()
        return seen

    async def _next_answer(self, path: str, seen: Seen) -> web.Response:
        script = self._scripts.get(path, self._scripts.get("", []))
        answer = script.pop(0) if script else Answer()
        await asyncio.sleep(answer.after)
        if answer.status is None:
            await asyncio.Event().wait()
            raise AssertionError
        self.answered.append((seen, answer.status))
        return web.Response(status=answer.status, headers=answer.headers, body=answer.body)


@asynccontextmanager
async def running_web() -> AsyncIterator[Web]:
    """Run a web server on a port of its own, in this loop."""
    async with Web().running() as server:
        yield server


def _plain(page: Page) -> web.StreamResponse:
    if isinstance(page.body, Path):
        return web.FileResponse(page.body, status=page.status, headers=page.headers)
    return web.Response(body=page.body, status=page.status, headers=page.headers)


async def _badly(page: Page, request: web.Request) -> web.StreamResponse:
    body = page.body.read_bytes() if isinstance(page.body, Path) else page.body
    response = web.StreamResponse(status=page.status, headers=page.headers)
    if page.announce:
        response.content_length = len(body)
    await response.prepare(request)
    with suppress(ClientConnectionResetError):  # whoever asked has had enough
        await _trickle(response, body[: page.cut_at], page)
    if page.cut_at is not None and request.transport:
        request.transport.close()
    return response


async def _trickle(response: web.StreamResponse, body: bytes, page: Page) -> None:
    step = page.piece or len(body) or 1
    for start in range(0, len(body), step):
        await response.write(body[start : start + step])
        await asyncio.sleep(page.pause)
