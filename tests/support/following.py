"""Follow a job by asking for its status again and again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from everydream.client import ENDS, Client, with_retries


async def followed(
    client: Client, job: str, *, every: float = 0.5
) -> AsyncIterator[dict[str, Any]]:
    """The job's status every ``every`` seconds, until and including its final one."""
    while True:
        status = await with_retries(lambda: client.status(job))
        yield status
        if status["status"] in ENDS:
            return
        await asyncio.sleep(every)
