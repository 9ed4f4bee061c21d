"""A client without manners: asks, counts what is answered, and never gives up."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

ENDPOINT = "/v1/everydream-v1"
NOTHING = "no answer"
"""The connection broke, was closed, or time was up."""
ASK_SECONDS = 60.0


class Event(msgspec.Struct, frozen=True):
    """What the other's producer has sent, and where it wants to hear of it."""

    source: str
    id: str
    queue: str
    login: str


class Target(msgspec.Struct, frozen=True):
    """Whom the rude key is to annoy, and what it knows of the other."""

    url: str
    key: str
    amqp_url: str
    """With its own login of a producer."""
    other: Event
    links: tuple[str, ...]
    """Signed, to files of its own."""
    sibling: str
    """What lies beside each of these files under the same name and ``.gz``."""
    seconds: float
    only: tuple[str, ...] = ()
    """Acts with any of these words; empty: all."""


class Stock(msgspec.Struct, frozen=True):
    """URLs of what the rude key has put on servers of its own."""

    small: str
    missing: str
    bomb: str
    bomb_dataset: str
    slow_pictures: str
    dripping: str
    silent_webhook: str
    endless_bucket: str

    @property
    def hosts(self) -> str:
        return f"{urlsplit(self.small).netloc},{urlsplit(self.endless_bucket).netloc}"


@dataclass
class Caller:
    """One act's client."""

    session: aiohttp.ClientSession
    target: Target
    stock: Stock
    random: Random
    answers: Counter[str] = field(default_factory=Counter)
    """How often it got each status, or what else came."""
    jobs: list[str] = field(default_factory=list)
    """Accepted ones."""
    began: float = field(default_factory=monotonic)

    async def ask(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **options: Any
    ) -> tuple[str, bytes]:
        """The status and the body of the answer to a request of the endpoint."""
        url = f"{self.target.url}{ENDPOINT}{path}"
        own = {"Authorization": f"Bearer {self.target.key}", **(headers or {})}
        try:
            async with asyncio.timeout(ASK_SECONDS):
                async with self.session.request(method, url, headers=own, **options) as answer:
                    body = await answer.read()
                    status = str(answer.status)
        except (aiohttp.ClientError, OSError, TimeoutError):
            status, body = NOTHING, b""
        self.answers[status] += 1
        return status, body

    async def submit(self, body: dict[str, Any] | bytes, path: str = "/run") -> str | None:
        """The job's id; None: it was not accepted."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, answer = await self.ask("POST", path, data=data)
        if status != "200":
            return None
        job = str(json.loads(answer)["id"])
        self.jobs.append(job)
        return job

    async def submit_and_cancel(
        self, body: dict[str, Any], *, within: tuple[float, float], path: str = "/run"
    ) -> None:
        """Cancel the job at some moment of that time, in seconds, unless it has ended before."""
        if (job := await self.submit(body, path)) is None:
            return
        wait = int(1000 * self.random.uniform(*within))
        await self.ask("GET", f"/status/{job}?wait={wait}")
        await self.ask("POST", f"/cancel/{job}")

    def head(self, first: str, *lines: str) -> bytes:
        """Of a request with the key, by hand."""
        every = (f"{first} HTTP/1.1", "Host: x", f"Authorization: Bearer {self.target.key}", *lines)
        return "\r\n".join((*every, "", "")).encode("utf-8", "surrogateescape")

    async def send(self, *pieces: bytes, seconds: float) -> None:
        """Send bytes on a connection of their own, and wait so long for an answer."""
        said = b""
        try:
            async with asyncio.timeout(seconds), self.connected() as (reader, writer):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                said = await reader.readline()
        except (OSError, TimeoutError):
            pass
        finally:  # it counts as well when all is over
            words = said.decode("latin-1").split()
            self.answers[words[1] if len(words) > 1 else NOTHING] += 1

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A bare connection to the gateway, which is broken off at the end."""
        address = urlsplit(self.target.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()
