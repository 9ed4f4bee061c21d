"""The HTTP sessions of S3 clients: where they connect to, and how much of an answer they read.

botocore reads errors and small answers whole, and parses them. An endpoint that a user names may
answer without end, or very slowly.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from aiobotocore.httpsession import AIOHTTPSession
from botocore.exceptions import (
    BotoCoreError,
    ConnectionClosedError,
    ReadTimeoutError,
)
from yarl import URL

from shared.adapters.s3_errors import REDIRECTS, REGION, AnswerTooLarge, Redirected
from shared.network.outbound import Blocked, Guard, GuardedResolver, was_blocked

REQUEST_SECONDS = 600.0
"""For one request with its answer, but for an object's content; it sends at most one part."""
ERROR = 300
"""Status codes from here on have a body that is read whole, also where an object was asked for."""


def bounded_session(answer_bytes: int, guard: Guard | None = None) -> type[AIOHTTPSession]:
    """A session class that reads at most ``answer_bytes`` of an answer, objects' content aside.

    With a ``guard`` it opens only the connections that this allows. aiobotocore's own setting takes
    only a resolver, which an IP address in the URL bypasses.
    """

    class BoundedSession(AIOHTTPSession):  # type: ignore[misc]  # it ships no types
        def __init__(self, **arguments: Any) -> None:
            if guard is not None:
                connector = {
                    "resolver": GuardedResolver(guard),
                    "socket_factory": guard.open_socket,
                    "use_dns_cache": False,
                }
                given = arguments.pop("connector_args", None) or {}
                arguments["connector_args"] = given | connector
            super().__init__(**arguments)

        async def _get_session(self, proxy_url: str | None) -> Any:
            return _NotFollowing(await super()._get_session(proxy_url))

        async def send(self, request: Any) -> Any:
            """Send a request, and read its answer unless it is an object's content.

            Raises:
                Blocked: unwrapped, because botocore would retry it as a network failure.
                AnswerTooLarge: likewise.
                Redirected: likewise; without a region botocore would ask for one, and be sent
                    elsewhere for ever.
            """
            wants_stream = request.stream_output
            request.stream_output = True  # leaves the answer to us
            try:
                async with asyncio.timeout(REQUEST_SECONDS):
                    response = await super().send(request)
                    if response.status_code in REDIRECTS and REGION not in response.headers:
                        response.raw.close()
                        place = response.headers.get("Location", "")
                        raise Redirected(response.status_code, _origin_of(place))
                    if not wants_stream or response.status_code >= ERROR:
                        body = await _read(response.raw, answer_bytes, request)
                        response._content = body  # noqa: SLF001 - as its own reading sets it
                    return response
            except TimeoutError as error:
                raise ReadTimeoutError(endpoint_url=request.url, error=error) from error
            except BotoCoreError as error:
                if was_blocked(error):
                    raise Blocked(str(error)) from error
                raise
            finally:
                request.stream_output = wants_stream

    return BoundedSession


class _NotFollowing:
    """An aiohttp session that follows no redirect: it is signed for one host, and a PUT that
    becomes a GET seems to have stored something.
    """  # noqa: D205 - one sentence

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def request(self, method: str, **arguments: Any) -> aiohttp.ClientResponse:
        return await self._session.request(method, allow_redirects=False, **arguments)


def _origin_of(url: str) -> str:
    """Scheme, host and port of a URL; empty if it is none, or has a user name or password."""
    try:
        return str(URL(url).origin()) if "@" not in url else ""
    except ValueError:
        return ""


async def _read(response: aiohttp.ClientResponse, limit: int, request: Any) -> bytes:
    """The whole body. The connection is closed unless it has come whole."""
    body = bytearray()
    try:
        while piece := await response.content.read(limit + 1 - len(body)):
            body += piece
            if len(body) > limit:
                raise AnswerTooLarge(
                    f"answered {response.status} with more than {limit} bytes, which is no answer"
                    " of an S3 service"
                )
    except aiohttp.ClientError as error:
        raise ConnectionClosedError(
            error=error, request=request, endpoint_url=request.url
        ) from error
    finally:
        if not response.content.at_eof():
            response.close()
    return bytes(body)
