"""Download a user's URL to a file: each redirect is checked, the size is limited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from io import FileIO
from pathlib import Path
from urllib.parse import urljoin

import aiohttp

from shared.concurrency import in_thread
from shared.disk import SPARE, require_room, translate_disk_full
from shared.errors import Passing, Refused
from shared.network.addresses import shown_url
from shared.network.outbound import check_url, connection_failure, guarded_session, refusing

MAX_REDIRECTS = 5
CHUNK_BYTES = 1 << 18
RETRY_PAUSES = (0.5, 2.0)
"""Seconds before the second and the third attempt."""
DOWNLOAD_SECONDS = 6 * 3600.0
"""Most time for a whole download, with its redirects and attempts."""
MINUTE = 60.0
LEAST_BYTES = 1 << 20
"""Bytes that have to arrive in every minute, but for the last: 17 kB/s."""
REDIRECT_STATUS = frozenset({301, 302, 303, 307, 308})
TEMPORARY_STATUS = frozenset({408, 425, 429})
"""Client errors that may be temporary."""

OnBytes = Callable[[int, int | None], None]
"""Called with the bytes so far and the total, or None if the server did not announce it."""


class _Retryable(Exception):
    """A temporary failure; the text says what happened."""


async def download(
    url: str,
    path: Path,
    *,
    allowed: frozenset[str],
    limit: int,
    on_bytes: OnBytes | None = None,
    pauses: Sequence[float] = RETRY_PAUSES,
    read_seconds: float = 60.0,
    minute: float = MINUTE,
    seconds: float = DOWNLOAD_SECONDS,
) -> None:
    """Download a URL to a file of at most ``limit`` bytes; temporary failures are retried.

    Args:
        url: as the user gave it.
        path: the file; its folder exists.
        allowed: private hosts that may be reached.
        limit: the most bytes that are taken.
        on_bytes: hears of the progress.
        pauses: seconds before the second and every further attempt.
        read_seconds: the longest silence.
        minute: seconds in which each MiB has to arrive.
        seconds: the most for all attempts together.

    Raises:
        Refused: a forbidden address, 4xx, too many redirects or bytes, or it is too slow.
        Passing: the last attempt failed too: no connection, a timeout, a broken transfer or 5xx.
        Full: the disk has no room for it.
    """
    whole = asyncio.timeout(seconds)
    try:
        # Some servers let in behind a redirect only who brings its cookie.
        session = guarded_session(allowed, read=read_seconds, keeps_cookies=True)
        async with whole, session:
            transfer = _Transfer(
                session, path, allowed, limit, minute, on_bytes or _ignore_progress
            )
            for pause in pauses:
                try:
                    return await transfer.follow(url)
                except _Retryable:
                    await asyncio.sleep(pause)
            try:
                await transfer.follow(url)
            except _Retryable as error:
                raise Passing(f"{shown_url(url)}: {error}") from None
    except TimeoutError:
        if not whole.expired():
            raise
        raise Refused(
            f"{shown_url(url)}: not complete after {seconds / 3600:.3g} hours, the most that a"
            " download may take"
        ) from None


def _ignore_progress(_done: int, _total: int | None) -> None: ...


class _Pace:
    """The least throughput of one attempt and its redirects: a time-out that each MiB puts off."""

    def __init__(self, minute: float) -> None:
        self.bytes = 0
        self.counted = 0
        """Bytes when it was put off last."""
        self.timeout = asyncio.timeout(minute)
        self._minute = minute

    def arrived(self, size: int) -> None:
        self.bytes += size
        if self.bytes - self.counted >= LEAST_BYTES:
            self.counted = self.bytes
            self.timeout.reschedule(asyncio.get_running_loop().time() + self._minute)


@dataclass(frozen=True)
class _Transfer:
    """The attempts to download one URL to one file."""

    session: aiohttp.ClientSession
    path: Path
    allowed: frozenset[str]
    limit: int
    minute: float
    on_bytes: OnBytes

    async def follow(self, url: str) -> None:
        """One attempt."""
        pace = _Pace(self.minute)
        try:
            async with pace.timeout:
                await self._follow(url, pace)
        except TimeoutError:
            if not pace.timeout.expired():
                raise
            if pace.bytes == 0:
                raise _Retryable(_describe(TimeoutError())) from None
            raise Refused(
                f"{shown_url(url)}: too slow: {pace.bytes - pace.counted} bytes in the last"
                f" {self.minute:g} s, where at least {LEAST_BYTES} are expected; put the file on a"
                " faster server"
            ) from None

    async def _follow(self, url: str, pace: _Pace) -> None:
        """Following redirects."""
        current = url
        for _ in range(MAX_REDIRECTS + 1):
            check_url(current, self.allowed)
            location = await self._request(current, pace)
            if location is None:
                return
            current = _joined(current, location)
        raise Refused(f"{shown_url(url)}: more than {MAX_REDIRECTS} redirects")

    async def _request(self, url: str, pace: _Pace) -> str | None:
        """Where a redirect goes to; None: the file is downloaded."""
        headers = {"Accept-Encoding": "identity"}
        try:
            with refusing(url):
                async with self.session.get(
                    url, allow_redirects=False, headers=headers
                ) as response:
                    if (location := _redirect(response, url)) is None:
                        await self._save(response, url, pace)
                    return location
        except (aiohttp.InvalidURL, UnicodeError) as error:
            raise Refused(f"{shown_url(url)}: not a URL that can be fetched ({error})") from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _Retryable(_describe(error)) from None

    async def _save(self, response: aiohttp.ClientResponse, url: str, pace: _Pace) -> None:
        _check_status(response, url)
        is_packed = "Content-Encoding" in response.headers  # though we asked for the file itself
        announced = None if is_packed else response.content_length
        doing, done, came = f"download {shown_url(url)}", 0, 0
        _check_size(announced or 0, self.limit, url)
        require_room(self.path.parent, (announced or 0) + SPARE, doing)
        with translate_disk_full(doing), self.path.open("wb", buffering=0) as file:
            async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                done += len(chunk)
                pace.arrived(response.content.total_raw_bytes - came)  # before it is unpacked
                came = response.content.total_raw_bytes
                _check_size(done, self.limit, url)
                if announced is None:
                    require_room(self.path.parent, len(chunk) + SPARE, doing)
                await in_thread(_write_all, file, chunk)
                self.on_bytes(done, announced)


def _write_all(file: FileIO, chunk: bytes) -> None:
    """Write unbuffered, so that a full disk is noticed here and not when the file is closed."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]


def _redirect(response: aiohttp.ClientResponse, url: str) -> str | None:
    if response.status not in REDIRECT_STATUS:
        return None
    location = response.headers.get("Location")
    if not location:
        raise Refused(f"{shown_url(url)}: answers {response.status}, but does not say where to go")
    return location


def _joined(url: str, location: str) -> str:
    """Where a redirect goes to."""
    try:
        return urljoin(url, location)
    except ValueError:
        raise Refused(
            f"{shown_url(url)}: redirects to {shown_url(location)}, which is not a URL"
        ) from None


def _check_status(response: aiohttp.ClientResponse, url: str) -> None:
    status = f"{response.status} {response.reason}"
    if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR or response.status in TEMPORARY_STATUS:
        raise _Retryable(f"the server answers {status}")
    if response.status != HTTPStatus.OK:
        raise Refused(
            f"{shown_url(url)}: the server answers {status}; the URL must be publicly accessible"
        )


def _check_size(size: int, limit: int, url: str) -> None:
    if size > limit:
        raise Refused(f"{shown_url(url)}: more than {limit / 1e9:.3g} GB, the most that is taken")


def _describe(error: Exception) -> str:
    match error:
        case aiohttp.ClientPayloadError():
            return "the connection broke off in the middle of the file"
        case TimeoutError():
            return "the server does not answer in time"
    return connection_failure(error)
