"""A small client of the endpoint, for the command line, the demo and the tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")


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

    async def run(self, request: dict[str, Any]) -> str:
        """Submit a job and return its id. Raises aiohttp.ClientResponseError with the reason."""
        async with self._session.post(
            f"{self.endpoint}/run", json=request, headers=self._headers
        ) as response:
            answer = await response.json()
            if not response.ok:
                raise aiohttp.ClientResponseError(
                    response.request_info, (), status=response.status, message=str(answer["error"])
                )
            return str(answer["id"])

    async def status(self, job: str) -> dict[str, Any]:
        """What is known about a job now."""
        async with self._session.get(
            f"{self.endpoint}/status/{job}", headers=self._headers, raise_for_status=True
        ) as response:
            answer: dict[str, Any] = await response.json()
            return answer

    async def cancel(self, job: str) -> None:
        """Stop a job; one that has ended stays as it is."""
        url = f"{self.endpoint}/cancel/{job}"
        async with self._session.post(url, headers=self._headers, raise_for_status=True):
            pass

    async def follow(self, job: str, *, every: float = 0.5) -> AsyncIterator[dict[str, Any]]:
        """The job's status every so many seconds, the last time when it has ended."""
        while True:
            status = await self.status(job)
            yield status
            if status["status"] in ENDS:
                return
            await asyncio.sleep(every)

    async def download(self, url: str, path: Path) -> None:
        """Fetch an artifact into a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        async with self._session.get(url, raise_for_status=True) as response:
            with path.open("wb") as file:
                async for chunk in response.content.iter_chunked(1 << 20):
                    file.write(chunk)
