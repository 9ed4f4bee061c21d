"""Follows a job to its end, and fetches its results."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from everydream.access import Access, client_of
from everydream.client import ENDS, Client, NoGateway, is_temporary, with_retries
from everydream.results import RESULTS, Results, check_writable
from everydream.terminal.display import Display
from everydream.terminal.report import (
    dataset_lines,
    failure_line,
    files_lines,
    into_flag,
    lost_lines,
    next_steps,
    outcome_lines,
    warnings_of,
    while_it_runs,
)
from everydream.terminal.screen import Screen, View, screen_of
from shared.errors import Unavailable

POLL_SECONDS = 1.0
ANSWER_SECONDS = 35.0
"""A gateway may let a large status wait for 30 s."""
LOST_SECONDS = 600.0
"""How long a gateway may be away before a follower gives up."""


class Ended(NamedTuple):
    """A job whose results were fetched."""

    status: dict[str, Any]
    """Its last one."""
    folder: Path
    lost: list[str]
    """Names of files of the result that could not be had."""


class Announcer:
    """Says each thing of a job once: the report on its pictures, and its warnings."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._reported = False
        self._warned: set[str] = set()

    def see(self, status: dict[str, Any]) -> None:
        """Say what is new in a status."""
        report = (status.get("output") or {}).get("dataset")
        if report and not self._reported:
            self._reported = True
            self._warned |= {*report.get("warnings", ())}
            self._display.say("\n".join(dataset_lines(report)))
        for retry in (status.get("output") or {}).get("retries", ()):
            self._warn(failure_line(retry))
        if status["status"] in ENDS:
            return  # the outcome has all warnings
        for warning in warnings_of(status):
            self._warn(warning)

    def _warn(self, warning: str) -> None:
        if warning not in self._warned:
            self._warned.add(warning)
            self._display.say(f"warning: {warning}")


async def watch(
    client: Client,
    gateway: Access,
    job: str,
    display: Display,
    *,
    into: str = "",
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[dict[str, Any]]:
    """A job's status again and again, until and including its final one; shown all the while.

    ``into`` is the flag for its results' folder, which a further command needs.

    Raises:
        Unavailable: the gateway was away for too long.
        aiohttp.ClientError: it refuses.
    """
    newest: dict[str, Any] | None = None
    changed_at = clock()
    silent_since: float | None = None

    def screen_at(now: float) -> Screen:
        return screen_of(View(newest, changed_at, gateway.url, silent_since), now)

    while True:
        silent_since = silent_since or clock()
        display.show(screen_at)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                status = await client.status(job)
        except (aiohttp.ClientError, TimeoutError) as error:
            is_in_between = newest is not None and isinstance(error, NoGateway)
            if not is_temporary(error) and not is_in_between:
                raise
            if clock() - silent_since >= LOST_SECONDS:
                raise Unavailable(
                    f"no answer from {gateway.url} for {LOST_SECONDS / 60:.0f} minutes;"
                    f" the job is not affected:  everydream follow {job}{into}{gateway.flags}"
                ) from None
        else:
            if newest is None or _numbers(newest) != _numbers(status):
                changed_at = clock()
            newest, silent_since = status, None
            if status["status"] in ENDS:
                display.clear()
                yield status
                return
            display.show(screen_at)
            yield status
        await asyncio.sleep(POLL_SECONDS)


def _numbers(status: dict[str, Any]) -> dict[str, Any]:
    """What tells that a stage gets on; links are signed anew in each answer."""
    output = status.get("output") or {}
    return {name: value for name, value in output.items() if name not in ("samples", "dataset")}


async def follow(
    gateway: Access, job: str, output: Path | None, display: Display, announcer: Announcer
) -> Ended:
    """Show a job until it ends and download its results.

    Raises:
        Refused: there is no such job.
        Unavailable: the gateway does not answer.
    """

    async def watched(client: Client, results: Results) -> dict[str, Any]:
        status: dict[str, Any] = {}
        into = into_flag(output)
        with display.if_interrupted(while_it_runs(job, into, gateway.flags)):
            async for status in watch(client, gateway, job, display, into=into):
                announcer.see(status)
                await results.keep_samples(client, status.get("output") or {})
        return status

    return await _kept(gateway, job, output, display, watched)


async def fetch(gateway: Access, job: str, output: Path | None, display: Display) -> Ended:
    """Download what there is of a job's results, again if necessary.

    Raises:
        Refused: there is no such job.
        Unavailable: the gateway does not answer.
    """

    async def asked(client: Client, _results: Results) -> dict[str, Any]:
        return await with_retries(lambda: client.status(job))

    return await _kept(gateway, job, output, display, asked)


async def _kept(
    gateway: Access,
    job: str,
    output: Path | None,
    display: Display,
    last_status: Callable[[Client, Results], Awaitable[dict[str, Any]]],
) -> Ended:
    """Download the results of a job's last status."""
    folder = output or RESULTS / job
    check_writable(folder)
    results = Results(folder, display, is_own=output is None)
    results.say_whose(job)
    into = into_flag(output)
    async with client_of(gateway) as client:
        status = await last_status(client, results)
        again = f"everydream fetch {job}{into}{gateway.flags}"
        with display.if_interrupted(f"The rest of the results:  {again}"):
            artifacts = await results.keep(client, status)
    lines = [
        *outcome_lines(status), *files_lines(folder, artifacts, status),
        *lost_lines(results.lost, again), *next_steps(status, gateway.flags, into),
    ]  # fmt: skip
    display.say("\n".join(lines))
    return Ended(status, folder, results.lost)
