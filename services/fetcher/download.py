"""Download a user's URL to a file: guarded at every hop, capped, and with a clear reason."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from io import FileIO
from pathlib import Path
from urllib.parse import urljoin

import aiohttp
from msgspec import Struct

from shared.concurrency import in_thread
from shared.disk import SPARE, require_room, told_when_full
from shared.errors import Passing, Refused
from shared.network.addresses import shown_url
from shared.network.outbound import check_url, guarded_session, refusing

REDIRECTS = 5
PIECE = 1 << 18
"""Bytes written at a time."""
PAUSES = (0.5, 2.0)
"""Seconds before the second and the third try."""
DOWNLOAD_SECONDS = 6 * 3600.0
REDIRECT_STATUS = frozenset({301, 302, 303, 307, 308})
PASSING_STATUS = frozenset({408, 425, 429})
"""Client errors that may go away by themselves."""

OnBytes = Callable[[int, int | None], None]
"""Called with the bytes so far and, where the server announced it, the total."""


class Downloaded(Struct, frozen=True, kw_only=True):
    """A file that arrived whole."""

    path: Path
    bytes: int
    content_type: str
    """As the server called it, for messages; nobody relies on it."""


class _Again(Exception):
    """Worth another try now; the text says what happened."""


async def download(
    url: str,
    path: Path,
    *,
    allowed: frozenset[str],
    limit: int,
    on_bytes: OnBytes | None = None,
    pauses: Sequence[float] = PAUSES,
    read_seconds: float = 60.0,
) -> Downloaded:
    """Fetch a URL into a file of at most ``limit`` bytes, trying again where that may help.

    Raises:
        Refused: a forbidden address, 4xx, too many redirects or too many bytes.
        Passing: the server is away, slow, breaks off or says 5xx, also at the last try.
        Full: the disk has no room for it.
    """
    async with guarded_session(allowed, total=DOWNLOAD_SECONDS, read=read_seconds) as session:
        transfer = _Transfer(session, path, allowed, limit, on_bytes or _unheard)
        for pause in pauses:
            try:
                return await transfer.follow(url)
            except _Again:
                await asyncio.sleep(pause)
        try:
            return await transfer.follow(url)
        except _Again as error:
            raise Passing(f"{shown_url(url)}: {error}") from None


def _unheard(_done: int, _total: int | None) -> None: ...


@dataclass(frozen=True)
class _Transfer:
    """One try or several of one URL into one file."""

    session: aiohttp.ClientSession
    path: Path
    allowed: frozenset[str]
    limit: int
    on_bytes: OnBytes

    async def follow(self, url: str) -> Downloaded:
        """One try, through as many redirects as are allowed."""
        here = url
        for _ in range(REDIRECTS + 1):
            check_url(here, self.allowed)
            found = await self._request(here)
            if isinstance(found, Downloaded):
                return found
            here = urljoin(here, found)
        raise Refused(f"{shown_url(url)}: more than {REDIRECTS} redirects")

    async def _request(self, url: str) -> Downloaded | str:
        """The file, or where the server sends us instead."""
        plain = {"Accept-Encoding": "identity"}
        try:
            with refusing(url):
                async with self.session.get(url, allow_redirects=False, headers=plain) as response:
                    location = _redirect(response, url)
                    return location or await self._save(response, url)
        except aiohttp.InvalidURL as error:
            raise Refused(f"{shown_url(url)}: not a URL that can be fetched ({error})") from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _Again(_in_words(error)) from None

    async def _save(self, response: aiohttp.ClientResponse, url: str) -> Downloaded:
        _check_status(response, url)
        announced, doing, done = response.content_length, f"download {shown_url(url)}", 0
        _check_size(announced or 0, self.limit, url)
        require_room(self.path.parent, (announced or 0) + SPARE, doing)
        with told_when_full(doing), self.path.open("wb", buffering=0) as file:
            async for piece in response.content.iter_chunked(PIECE):
                done += len(piece)
                _check_size(done, self.limit, url)
                if announced is None:
                    require_room(self.path.parent, len(piece) + SPARE, doing)
                await in_thread(_write_all, file, piece)
                self.on_bytes(done, announced)
        return Downloaded(path=self.path, bytes=done, content_type=response.content_type)


def _write_all(file: FileIO, piece: bytes) -> None:
    """Unbuffered, so that a full disk is noticed here and not when the file is closed."""
    left = memoryview(piece)
    while left:
        left = left[file.write(left) :]


def _redirect(response: aiohttp.ClientResponse, url: str) -> str | None:
    if response.status not in REDIRECT_STATUS:
        return None
    location = response.headers.get("Location")
    if not location:
        raise Refused(f"{shown_url(url)}: answers {response.status}, but does not say where to go")
    return location


def _check_status(response: aiohttp.ClientResponse, url: str) -> None:
    status = f"{response.status} {response.reason}"
    if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR or response.status in PASSING_STATUS:
        raise _Again(f"the server answers {status}")
    if response.status != HTTPStatus.OK:
        raise Refused(
            f"{shown_url(url)}: the server answers {status}; the URL must be publicly accessible"
        )


def _check_size(size: int, limit: int, url: str) -> None:
    if size > limit:
        raise Refused(f"{shown_url(url)}: more than {limit / 1e9:.3g} GB, the most that is taken")


def _in_words(error: Exception) -> str:
    match error:
        case aiohttp.ClientPayloadError():
            return "the connection broke off in the middle of the file"
        case TimeoutError():
            return "the server does not answer in time"
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            return f"no secure connection: {error}"
        case aiohttp.ClientConnectorDNSError():
            return f"the name {error.host} cannot be resolved"
        case aiohttp.ClientConnectorError():
            return f"no connection to {error.host}:{error.port} ({error.os_error.strerror})"
    return f"the connection failed ({type(error).__name__}: {error})"
