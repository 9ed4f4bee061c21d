"""Why there is no answer, said in plain words."""

from __future__ import annotations

import aiohttp
import pytest

from everydream.client import why_unanswered
from tests.support.servers.process import HOST, free_port
from tests.support.servers.web import Web


async def reason(url: str) -> str:
    async with aiohttp.ClientSession() as session:
        with pytest.raises((aiohttp.ClientError, TimeoutError)) as caught:
            await session.get(url)
    assert isinstance(caught.value, aiohttp.ClientError | TimeoutError)
    return why_unanswered(caught.value)


async def test_a_server_that_is_not_there_is_called_so() -> None:
    said = await reason(f"http://{HOST}:{free_port()}")
    assert said == "nothing answers there (connection refused)"


async def test_a_host_that_nobody_knows_is_named() -> None:
    said = await reason("http://no-such-host.invalid")
    assert said == "there is no host named no-such-host.invalid"


async def test_a_server_without_tls_is_called_so(web: Web) -> None:
    url = web.url().replace("http://", "https://")
    assert (await reason(url)).startswith("it does not speak TLS as expected")
