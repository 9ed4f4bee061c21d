"""A small client of the endpoint, for the command line, the demo and the tests."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from shared.request import Command

ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
PIECE = 1 << 20
"""Bytes read or written at a time."""
PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds between tries of what may yet go well."""
PASSING = frozenset({408, 409, 425, 429})
"""Refusals that may go away by themselves, beside those of 500 and above."""
Result = TypeVar("Result")


class Rejected(aiohttp.ClientResponseError):
    """The gateway's own words for what is wrong with a request."""

    def __init__(self, response: aiohttp.ClientResponse, answer: dict[str, Any]) -> None:
        text = str(answer["error"])
        super().__init__(response.request_info, (), status=response.status, message=text)
        self.mistakes: list[str] = answer.get("mistakes", [text])
        """All of them, one sentence each."""


class Damaged(aiohttp.ClientPayloadError):
    """What arrived is not what was stored."""


async def patiently(call: Callable[[], Awaitable[Result]]) -> Result:
    """Call again while the connection breaks or the gateway is away, with growing pauses.

    Raises:
        aiohttp.ClientError: it is the request's fault, or it went wrong to the last.
        TimeoutError: likewise.
    """
    for pause in PAUSES:
        try:
            return await call()
        except (aiohttp.ClientError, TimeoutError) as error:
            if not passes(error):
                raise
            await asyncio.sleep(pause)
    return await call()


def passes(error: Exception) -> bool:
    """Whether the same request may yet go well."""
    if not isinstance(error, aiohttp.ClientResponseError):
        return True
    return error.status >= HTTPStatus.INTERNAL_SERVER_ERROR or error.status in PASSING


class Client:
    """Talks to one gateway with one key.

    Args:
        session: the caller's session; it closes it.
        url: where the gateway answers, for example ``http://127.0.0.1:8080``.
        key: a bearer key.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str) -> None:
        self._session = session
        self.endpoint = f"{url}/v1/everydream-v1"
        self._headers: dict[str, str] = {}
        self.use_key(key)

    def use_key(self, key: str) -> None:
        """Send this key from now on."""
        self._headers["Authorization"] = f"Bearer {key}"

    async def run(
        self, request: dict[str, Any], *, operation: str = "/run", once: str | None = None
    ) -> str:
        """Submit a job and return its id.

        Args:
            request: the body.
            operation: ``/run``, or ``/dataset/check``.
            once: an idempotency key; asked again with the same one, it is the same job.

        Raises:
            Rejected: with the reason.
        """
        headers = {} if once is None else {"Idempotency-Key": once}
        async with self._asked("POST", operation, json=request, headers=headers) as response:
            return str((await response.json())["id"])

    async def status(self, job: str) -> dict[str, Any]:
        """What is known about a job now."""
        async with self._asked("GET", f"/status/{job}") as response:
            answer: dict[str, Any] = await response.json()
            return answer

    async def cancel(self, job: str) -> None:
        """Stop a job; one that has ended stays as it is."""
        async with self._asked("POST", f"/cancel/{job}"):
            pass

    async def want(self, job: str, command: Command) -> None:
        """``sample``, ``save`` or ``stop`` a training at work."""
        async with self._asked("POST", f"/jobs/{job}/{command}"):
            pass

    async def follow(self, job: str, *, every: float = 0.5) -> AsyncIterator[dict[str, Any]]:
        """The job's status every so many seconds, the last time when it has ended."""
        while True:
            status = await patiently(lambda: self.status(job))
            yield status
            if status["status"] in ENDS:
                return
            await asyncio.sleep(every)

    async def begin_upload(self, size: int, sha256: str) -> str:
        """The id of a new upload of so many bytes; its chunks follow."""
        headers = {"Upload-Length": str(size)}
        place = f"/uploads?sha256={sha256}"
        async with self._asked("POST", place, headers=headers) as response:
            return response.headers["Location"].rpartition("/")[2]

    async def upload_offset(self, upload: str) -> int:
        """How many of its bytes have arrived."""
        async with self._asked("HEAD", f"/uploads/{upload}") as response:
            return int(response.headers["Upload-Offset"])

    async def send_chunk(
        self, upload: str, path: Path, *, offset: int, size: int, on_bytes: Callable[[int], None]
    ) -> int:
        """Send so many bytes of a file from an offset on; how many have arrived of all.

        ``on_bytes`` is told the same number as it grows.
        """
        headers = {
            "Content-Length": str(size),
            "Content-Type": "application/offset+octet-stream",
            "Upload-Offset": str(offset),
        }
        data = _pieces(path, offset, size, on_bytes)
        place = f"/uploads/{upload}"
        async with self._asked("PATCH", place, data=data, headers=headers) as response:
            return int(response.headers["Upload-Offset"])

    async def upload_facts(self, upload: str) -> dict[str, Any]:
        """``id``, ``bytes``, ``received``, ``sha256`` and ``data_url`` of an upload."""
        async with self._asked("GET", f"/uploads/{upload}") as response:
            facts: dict[str, Any] = await response.json()
            return facts

    async def download(
        self,
        url: str,
        path: Path,
        *,
        sha256: str | None = None,
        on_bytes: Callable[[int], None] = lambda _bytes: None,
    ) -> None:
        """Fetch an artifact into a file, whole or not at all.

        ``on_bytes`` is told how many bytes have arrived.

        Raises:
            Damaged: its SHA-256 is another one.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        try:
            digest = await self._fetch(url, temporary, on_bytes)
            if sha256 not in (None, digest):
                raise Damaged(f"{path.name}: what arrived has sha256 {digest}, not {sha256}")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    async def _fetch(self, url: str, path: Path, on_bytes: Callable[[int], None]) -> str:
        digest, done = hashlib.sha256(), 0
        # A signed URL must not be quoted anew.
        exactly = URL(url, encoded=True)
        async with self._session.get(exactly, raise_for_status=True) as response:
            with path.open("wb") as file:
                async for piece in response.content.iter_chunked(PIECE):
                    digest.update(piece)
                    file.write(piece)
                    done += len(piece)
                    on_bytes(done)
        return digest.hexdigest()

    @asynccontextmanager
    async def _asked(
        self, method: str, place: str, *, headers: dict[str, str] | None = None, **more: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer, if it is a good one."""
        url, headers = f"{self.endpoint}{place}", {**self._headers, **(headers or {})}
        async with self._session.request(method, url, headers=headers, **more) as response:
            if not response.ok and response.content_type == "application/json" and method != "HEAD":
                raise Rejected(response, await response.json())
            response.raise_for_status()
            yield response


async def _pieces(
    path: Path, offset: int, size: int, on_bytes: Callable[[int], None]
) -> AsyncIterator[bytes]:
    end = offset + size
    with path.open("rb") as file:
        file.seek(offset)
        while offset < end:
            piece = await asyncio.to_thread(file.read, min(PIECE, end - offset))
            yield piece
            offset += len(piece)
            on_bytes(offset)
