"""A small client of the endpoint, for the command line, the demo and the tests."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
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
RETRY_DELAYS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds between retries."""
TEMPORARY = frozenset({408, 409, 425, 429})
"""Temporary statuses, besides those of 500 and above."""
PASSING_BUDGETS = ("body_bytes", "waiting_requests")
"""Budgets of which more is left soon; waiting does not free the others."""
Result = TypeVar("Result")


class Rejected(aiohttp.ClientResponseError):
    """The gateway has rejected a request; has its own text."""

    def __init__(self, response: aiohttp.ClientResponse, body: dict[str, Any]) -> None:
        text, mistakes = str(body["error"]), body.get("mistakes")
        super().__init__(response.request_info, (), status=response.status, message=text)
        self.mistakes = [str(each) for each in mistakes] if isinstance(mistakes, list) else [text]
        """All mistakes, one sentence each."""
        budget = body.get("budget")
        self.budget = str(budget.get("name")) if isinstance(budget, dict) else None
        """The key's budget that has not enough left; None: none is to blame."""


class NoGateway(aiohttp.ClientResponseError):
    """What has answered is no gateway."""

    def __init__(self, response: aiohttp.ClientResponse, expected: str) -> None:
        text = f"OK, but no gateway's answer: expected a JSON object with {expected!r}"
        super().__init__(response.request_info, (), status=response.status, message=text)


class Damaged(aiohttp.ClientPayloadError):
    """A download's SHA-256 is not the expected one."""


async def with_retries(call: Callable[[], Awaitable[Result]]) -> Result:
    """Retry, with growing pauses, while the connection breaks or the gateway does not answer.

    Raises:
        aiohttp.ClientError: the request is at fault, or the last retry failed.
        TimeoutError: the last retry failed.
    """
    for pause in RETRY_DELAYS:
        try:
            return await call()
        except (aiohttp.ClientError, TimeoutError) as error:
            if not is_temporary(error):
                raise
            await asyncio.sleep(pause)
    return await call()


def is_temporary(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if not isinstance(error, aiohttp.ClientResponseError):
        return True
    if isinstance(error, Rejected) and error.budget not in (None, *PASSING_BUDGETS):
        return False
    return error.status >= HTTPStatus.INTERNAL_SERVER_ERROR or error.status in TEMPORARY


def why_unanswered(error: aiohttp.ClientError | TimeoutError) -> str:
    """Why there is no answer, or not the one that was asked for, in plain words."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            return f"there is no host named {error.host}"
        case aiohttp.ClientConnectorCertificateError():
            return f"its certificate is not trusted ({error.certificate_error})"
        case aiohttp.ClientSSLError():
            return f"it does not speak TLS as expected ({error.os_error})"
        case aiohttp.ClientConnectorError():
            number = error.os_error.errno
            reason = os.strerror(number).lower() if number else str(error.os_error)
            return f"nothing answers there ({reason})"
        case aiohttp.ClientResponseError():
            return f"{error.status} {error.message}"
        case _:
            is_late = isinstance(error, TimeoutError) or not str(error)
            return "no answer in time" if is_late else str(error)


class Client:
    """Talks to one gateway with one key.

    Args:
        session: the caller's, who closes it.
        url: where the gateway answers, for example ``http://127.0.0.1:8080``.
        key: a bearer key.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str) -> None:
        self._session = session
        self._url = url
        self.endpoint = f"{url}/v1/everydream-v1"
        self._headers = {"Authorization": f"Bearer {key}"}

    async def run(
        self, request: dict[str, Any], *, operation: str = "/run", once: str | None = None
    ) -> str:
        """Submit a job and return its id.

        Args:
            request: the body.
            operation: ``/run``, or ``/dataset/check``.
            once: an idempotency key; a repeated request with the same key gets the same job.

        Raises:
            Rejected: with the reason.
        """
        headers = {} if once is None else {"Idempotency-Key": once}
        body = await self._answer("POST", operation, "id", json=request, headers=headers)
        return str(body["id"])

    async def status(self, job: str) -> dict[str, Any]:
        """The job's status."""
        return await self._answer("GET", f"/status/{job}", "status")

    async def scopes(self) -> list[str]:
        """What the key may do: ``read``, ``submit``, ``admin``; nothing if it is not let in."""
        answer = await self._answer("GET", "/session", "scopes", root=self._url)
        return [*answer["scopes"]]

    async def health(self) -> dict[str, Any]:
        """The key's jobs by state, and the workers."""
        return await self._answer("GET", "/health", "workers")

    async def jobs(
        self, statuses: Sequence[str] = (), *, limit: int = 20, cursor: str | None = None
    ) -> dict[str, Any]:
        """A page of the key's jobs, newest first; ``next`` is the cursor of the next page."""
        query = {"limit": str(limit)}
        query |= {"status": ",".join(statuses)} if statuses else {}
        query |= {"cursor": cursor} if cursor else {}
        return await self._answer("GET", "/jobs", "jobs", params=query)

    async def cancel(self, job: str) -> dict[str, Any]:
        """Stop a job; one that has ended stays as it is. Returns its id and status."""
        return await self._answer("POST", f"/cancel/{job}", "status")

    async def retry(self, job: str) -> dict[str, Any]:
        """Run a job that has failed again; returns its id and status."""
        return await self._answer("POST", f"/retry/{job}", "status")

    async def delete(self, job: str) -> dict[str, Any]:
        """Remove a job and all its files for good."""
        return await self._answer("DELETE", f"/jobs/{job}", "deleted")

    async def delete_checkpoint(self, job: str, step: int) -> dict[str, Any]:
        """Remove an intermediate checkpoint of a job for good."""
        return await self._answer("DELETE", f"/jobs/{job}/checkpoints/{step}", "deleted")

    async def send_command(self, job: str, command: Command) -> None:
        """Order a running training to ``sample``, ``save`` or ``stop``."""
        async with self._request("POST", f"/jobs/{job}/{command}"):
            pass

    async def pictures(self, job: str) -> list[dict[str, Any]]:
        """Every picture of a job's dataset, by its number."""
        page, every = 0, []
        while True:
            page += 1
            found = await self._answer(
                "GET", f"/jobs/{job}/dataset", "pictures", params={"page": str(page)}
            )
            every += found["pictures"]
            if page >= found["pages"]:
                return every

    async def edit(self, check: str, pictures: Sequence[dict[str, Any]]) -> None:
        """Change pictures of a check: each has its ``number``, and ``caption`` or ``use``."""
        body = {"pictures": list(pictures)}
        async with self._request("PATCH", f"/jobs/{check}/dataset", json=body):
            pass

    async def begin_upload(self, size: int, sha256: str) -> str:
        """Begin an upload of ``size`` bytes; returns its id."""
        headers = {"Upload-Length": str(size)}
        route = f"/uploads?sha256={sha256}"
        async with self._request("POST", route, headers=headers) as response:
            return response.headers["Location"].rpartition("/")[2]

    async def upload_offset(self, upload: str) -> int:
        """How many bytes have arrived."""
        async with self._request("HEAD", f"/uploads/{upload}") as response:
            return int(response.headers["Upload-Offset"])

    async def send_chunk(
        self, upload: str, path: Path, *, offset: int, size: int, on_bytes: Callable[[int], None]
    ) -> int:
        """Send ``size`` bytes of a file from an offset on; returns how many of all have arrived.

        ``on_bytes`` is called with that number as it grows.
        """
        headers = {
            "Content-Length": str(size),
            "Content-Type": "application/offset+octet-stream",
            "Upload-Offset": str(offset),
        }
        data = _pieces(path, offset, size, on_bytes)
        route = f"/uploads/{upload}"
        async with self._request("PATCH", route, data=data, headers=headers) as response:
            return int(response.headers["Upload-Offset"])

    async def upload_facts(self, upload: str) -> dict[str, Any]:
        """``id``, ``bytes``, ``received``, ``sha256`` and ``data_url`` of an upload."""
        return await self._answer("GET", f"/uploads/{upload}", "data_url")

    async def uploads(self, *, limit: int = 20, cursor: str | None = None) -> dict[str, Any]:
        """A page of the key's uploads, newest first; ``next`` is the cursor of the next page."""
        query = {"limit": str(limit)} | ({"cursor": cursor} if cursor else {})
        return await self._answer("GET", "/uploads", "uploads", params=query)

    async def delete_upload(self, upload: str) -> None:
        """Delete an upload that no job has yet to fetch."""
        async with self._request("DELETE", f"/uploads/{upload}"):
            pass

    async def download(
        self,
        url: str,
        path: Path,
        *,
        sha256: str | None = None,
        on_bytes: Callable[[int], None] = lambda _bytes: None,
    ) -> None:
        """Download an artifact into a file, whole or not at all.

        ``on_bytes`` is called with the number of bytes that have arrived.

        Raises:
            Damaged: its SHA-256 is not ``sha256``.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        try:
            digest = await self._stream_to_file(url, temporary, on_bytes)
            if sha256 not in (None, digest):
                raise Damaged(f"{path.name}: what arrived has sha256 {digest}, not {sha256}")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    async def _stream_to_file(self, url: str, path: Path, on_bytes: Callable[[int], None]) -> str:
        digest, done = hashlib.sha256(), 0
        as_signed = URL(url, encoded=True)  # quoting it again would break the signature
        async with self._session.get(as_signed, raise_for_status=True) as response:
            with path.open("wb") as file:
                async for piece in response.content.iter_chunked(PIECE):
                    digest.update(piece)
                    file.write(piece)
                    done += len(piece)
                    on_bytes(done)
        return digest.hexdigest()

    async def _answer(
        self, method: str, route: str, expected: str, **options: Any
    ) -> dict[str, Any]:
        """The JSON object of the response, which has the field ``expected``."""
        async with self._request(method, route, **options) as response:
            body = await _object_in(response)
            if expected not in body:
                raise NoGateway(response, expected)
            return body

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        route: str,
        *,
        headers: dict[str, str] | None = None,
        root: str | None = None,
        **options: Any,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response, if it is a success; ``root`` is the endpoint unless it is given."""
        url, headers = f"{root or self.endpoint}{route}", {**self._headers, **(headers or {})}
        async with self._session.request(method, url, headers=headers, **options) as response:
            if not response.ok and response.content_type == "application/json" and method != "HEAD":
                body = await _object_in(response)
                if "error" in body:
                    raise Rejected(response, body)
            response.raise_for_status()
            yield response


async def _object_in(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """The JSON object of a response; an empty one if there is none, as from other servers."""
    try:
        body = await response.json(content_type=None)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


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
