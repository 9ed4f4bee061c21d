"""A user of the `runpod` package, by its asyncio API: every method, and what came of it as JSON.

Run by the clients' own interpreter, with the base URL, a key, and the requests as JSON.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import runpod
from runpod import AsyncioEndpoint
from runpod.http_client import AsyncClientSession

base, key, asked = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
runpod.endpoint_url_base = base
runpod.api_key = key


async def collected(chunks: AsyncIterator[Any]) -> list[Any]:
    return [chunk async for chunk in chunks]


async def error_of(call: Awaitable[Any]) -> str:
    try:
        await call
    except KeyError as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError(f"{call} went well")


async def cut_short(endpoint: Any, endless: Any, chunks: AsyncIterator[Any]) -> dict[str, Any]:
    """One job is cancelled while it trains, another while it waits behind it."""
    first = await anext(chunk async for chunk in chunks if chunk["step"])
    waiting = await endpoint.run(asked["small"])
    return {
        "first": first,
        "health": await endpoint.health(),
        "purged": await endpoint.purge_queue(),
        "waiting": await waiting.status(),
        "cancelled": await endless.cancel(),
        "status": await endless.status(),
    }


async def failed(endpoint: Any) -> dict[str, Any]:
    job = await endpoint.run(asked["failing"])
    return {"output": await job.output(timeout=60), "status": await job.status()}


async def completed(endpoint: Any) -> dict[str, Any]:
    # This API puts whatever it is given into an "input", also a request that has one.
    job = await endpoint.run(asked["small"]["input"])
    streamed = await collected(job.stream())
    return {
        "streamed": streamed,
        "status": await job.status(),
        "output": await job.output(timeout=60),
    }


async def refused(endpoint: Any, session: Any) -> dict[str, Any]:
    return {
        "wrong key": await error_of(AsyncioEndpoint("everydream-v1", session, "wrong").run({})),
        "mistake": await error_of(endpoint.run({"train": {}})),
    }


async def told(session: Any) -> dict[str, Any]:
    endpoint = AsyncioEndpoint("everydream-v1", session)
    endless = await endpoint.run(asked["endless"])
    chunks = endless.stream()
    story = {"cut short": await cut_short(endpoint, endless, chunks)}
    rest = asyncio.create_task(error_of(collected(chunks)))
    return {
        **story,
        "failed": await failed(endpoint),
        "completed": await completed(endpoint),
        "refused": await refused(endpoint, session),
        "rest of the stream": await rest,
    }


async def main() -> None:
    async with AsyncClientSession() as session:
        sys.stdout.write(json.dumps(await told(session)))


asyncio.run(main())
