"""The rude key's own process: its servers, and all its acts at once.

Says on a line where its servers are, is told on a line whom to annoy, says every second what it
has got, and after one more line cleans up behind itself and says what it has done.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import aiohttp
import msgspec

from tests.end_to_end.story import dataset
from tests.hostile.acts import ACTS, Act
from tests.hostile.client import Caller, Stock, Target
from tests.hostile.materials import LETTERS, captioned, slow_pictures, tokenizer_bomb
from tests.support.servers.hostile import PIECE, Hostile, head, hostile
from tests.support.servers.web import Answer, Page, running_web

SEED = 7
PAUSE_SECONDS, TELL_SECONDS = 0.05, 1.0
SILENCES = 100_000
"""Webhooks that are never answered."""
LENGTH = "Content-Length: 1099511627776"


class Deeds(msgspec.Struct, frozen=True):
    """What came of each act."""

    answers: dict[str, dict[str, int]]
    jobs: dict[str, list[str]] = {}
    """Only in the end."""


@asynccontextmanager
async def stocked() -> AsyncIterator[Stock]:
    """Servers with all that jobs can name."""
    async with running_web() as web, hostile(_endlessly) as bucket:
        web.answer(*[Answer(None)] * SILENCES, path="/silent")
        yield Stock(
            small=web.serve("/small.zip", dataset(1)),
            missing=web.serve("/missing.zip", Page(status=404)),
            bomb=web.serve("/bomb.zip", tokenizer_bomb()),
            bomb_dataset=web.serve("/letters.zip", captioned("a" * LETTERS)),
            slow_pictures=web.serve("/slow.zip", await asyncio.to_thread(slow_pictures)),
            dripping=web.serve("/dripping.zip", Page(bytes(1 << 20), piece=2, pause=5)),
            silent_webhook=web.url("/silent"),
            endless_bucket=bucket.url,
        )


async def _endlessly(server: Hostile, _request: str) -> None:
    await server.send(head(400, LENGTH))
    await server.for_ever(PIECE)


async def misbehave(callers: dict[Act, Caller]) -> None:
    """For ever."""
    async with asyncio.TaskGroup() as group:
        for act, caller in callers.items():
            for _ in range(act.at_once):
                group.create_task(_repeat(act, caller))


async def _repeat(act: Act, caller: Caller) -> None:
    while True:
        await act.do(caller)
        await asyncio.sleep(PAUSE_SECONDS)


async def end_jobs(caller: Caller) -> None:
    """Cancel what has not ended, so that what is left can be looked at."""
    while True:
        await caller.ask("POST", "/purge-queue")
        status, body = await caller.ask("GET", "/jobs?status=IN_QUEUE,IN_PROGRESS&limit=100")
        if status == "200" and not (jobs := msgspec.json.decode(body)["jobs"]):
            return
        if status == "200" and jobs:
            await asyncio.gather(*(caller.ask("POST", f"/cancel/{job['id']}") for job in jobs[:20]))
        await asyncio.sleep(2 * TELL_SECONDS)


def answers_of(callers: dict[Act, Caller]) -> dict[str, dict[str, int]]:
    return {act.name: dict(caller.answers) for act, caller in callers.items()}


def tell(words: msgspec.Struct) -> None:
    print(msgspec.json.encode(words).decode(), flush=True)  # noqa: T201


async def main() -> None:
    async with stocked() as stock:
        tell(stock)
        line = await asyncio.to_thread(sys.stdin.readline)
        target = msgspec.json.decode(line, type=Target)
        over = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            chosen = [act for act in ACTS if is_chosen(act, target)]
            callers = {act: Caller(session, target, stock, Random(SEED)) for act in chosen}
            misbehaving = asyncio.create_task(misbehave(callers))
            while not over.done():
                tell(Deeds(answers_of(callers)))
                await asyncio.wait(
                    (over, misbehaving), timeout=TELL_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if misbehaving.done():
                    misbehaving.result()
            misbehaving.cancel()
            await asyncio.wait((misbehaving,))
            jobs = {act.name: caller.jobs for act, caller in callers.items()}
            deeds = Deeds(answers_of(callers), jobs)
            await end_jobs(Caller(session, target, stock, Random(SEED)))
            tell(deeds)


def is_chosen(act: Act, target: Target) -> bool:
    return not target.only or any(word in act.name for word in target.only)


if __name__ == "__main__":
    asyncio.run(main())
