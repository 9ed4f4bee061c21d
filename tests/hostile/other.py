"""The other key: ten ordinary jobs, one by its producer, and how long all of it takes."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import Any

import aiohttp
import msgspec

from everydream.client import ENDS
from tests.end_to_end.story import User
from tests.hostile.client import Event
from tests.hostile.direct import submit

JOBS = 10
LOOK_SECONDS = 0.1
"""Between two looks at jobs, whether or not the last has been answered."""
ANSWER_SECONDS = 30.0
AGAIN_SECONDS = 1.0
"""Before a job that was not accepted is sent again."""
WEBHOOK_SECONDS = 120.0
"""How long is waited for the last of them."""


@dataclass
class Run:
    """What came of the ten."""

    began: float = field(default_factory=monotonic)
    submitted: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    """When, by the process's clock."""
    ends: Counter[str] = field(default_factory=Counter)
    looks: list[float] = field(default_factory=list)
    """Seconds until ``/status`` answered."""
    unanswered: Counter[str] = field(default_factory=Counter)
    """What it said instead, or what went wrong."""
    webhooks: dict[str, float] = field(default_factory=dict)
    """Seconds from the end of a job until its webhook came."""

    @property
    def seconds(self) -> float:
        """From the first request to the last end."""
        return max(self.ended.values(), default=monotonic()) - self.began


async def ten_jobs(
    user: User, s3: dict[str, str], producer: str, event: Event, seconds: float, run: Run
) -> None:
    """Submit them, look at them until all have ended, and wait for their webhooks.

    Args:
        user: who submits them.
        s3: the bucket for their results.
        producer: the address of the broker with the login of the user's other program.
        event: what that program sends.
        seconds: after which they are given up.
        run: filled with what comes of them.
    """
    await submit(producer, event, user.request())
    request = user.request(s3=s3)
    await asyncio.gather(*(_submit(user, request, seconds, run) for _ in range(JOBS)))
    async with asyncio.TaskGroup() as looks:
        for number in count():
            waiting = [job for job in run.submitted if job not in run.ended]
            if not waiting or monotonic() - run.began > seconds:
                break
            looks.create_task(_look(user, waiting[number % len(waiting)], run))
            await asyncio.sleep(LOOK_SECONDS)
    deadline = monotonic() + WEBHOOK_SECONDS
    while len(came := _webhooks(user, run)) < len(run.ended) and monotonic() < deadline:
        await asyncio.sleep(LOOK_SECONDS)
    run.webhooks = came


async def _submit(user: User, request: dict[str, Any], seconds: float, run: Run) -> None:
    """Until it is accepted; every other answer is counted."""
    once = str(uuid.uuid4())
    while monotonic() - run.began < seconds:
        job = await _answer(run, lambda: user.client.run(request, once=once))
        if job is not None:
            run.submitted[job] = monotonic()
            return
        await asyncio.sleep(AGAIN_SECONDS)


async def _look(user: User, job: str, run: Run) -> None:
    began = monotonic()
    status = await _answer(run, lambda: user.client.status(job))
    run.looks.append(monotonic() - began)
    if status and status["status"] in ENDS and job not in run.ended:
        run.ended[job] = monotonic()
        run.ends[status["status"]] += 1


async def _answer(run: Run, call: Callable[[], Any]) -> Any:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await call()
    except aiohttp.ClientResponseError as error:
        run.unanswered[str(error.status)] += 1
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        run.unanswered[type(error).__name__] += 1
    return None


def _webhooks(user: User, run: Run) -> dict[str, float]:
    came = {msgspec.json.decode(seen.body)["id"]: seen.at for seen in reversed(user.web.posts)}
    return {job: max(came[job] - at, 0.0) for job, at in run.ended.items() if job in came}


def fresh_event(login: str, queue: str) -> Event:
    return Event(source="/other", id=str(uuid.uuid4()), queue=queue, login=login)
