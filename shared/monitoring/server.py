"""The port for those who operate a process: its metrics, and the answers to probes.

It is for the deployment's own network: it asks for no key and answers anybody who reaches it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import monotonic

import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from shared.concurrency import cancelled
from shared.errors import SettingsError
from shared.monitoring.health import Problem, process_problems
from shared.monitoring.registry import BUILD, READY, REGISTRY
from shared.release import release
from shared.settings import Settings
from shared.words import iso

Refresh = Callable[[], Awaitable[None]]
"""Sets gauges to what is so now; called before they are shown."""

FRESH_SECONDS = 1.0
"""For which they are shown as they are, however many ask."""
RETRY_SECONDS = 5
"""For the header ``Retry-After``."""
SHUTDOWN_SECONDS = 1.0

log = structlog.get_logger()


class _Refresher:
    """Refreshes for all who ask at a time once, and has ended when what it reads is closed."""

    def __init__(self, refresh: Refresh) -> None:
        self._refresh = refresh
        self._task: asyncio.Task[None] | None = None
        self._at: float | None = None

    async def refresh(self) -> None:
        if self._at is not None and monotonic() - self._at < FRESH_SECONDS:
            return
        task = self._task = self._task or asyncio.create_task(self._run())
        await asyncio.wait((task,))
        if not task.cancelled():
            task.result()

    async def _run(self) -> None:
        try:
            await self._refresh()
            self._at = monotonic()
        finally:
            self._task = None

    async def close(self) -> None:
        if self._task:
            await cancelled(self._task)


_refreshing: list[_Refresher] = []


@asynccontextmanager
async def refreshed(refresh: Refresh) -> AsyncIterator[None]:
    """Have this called before the metrics of this process are shown, within the block."""
    refresher = _Refresher(refresh)
    _refreshing.append(refresher)
    try:
        yield
    finally:
        _refreshing.remove(refresher)
        await refresher.close()


@asynccontextmanager
async def monitored(service: str, settings: Settings) -> AsyncIterator[int | None]:
    """Serve metrics and health within the block, if the deployment has set a port for them.

    Yields the port.

    Raises:
        SettingsError: the address cannot be bound.
    """
    BUILD.labels(service=service, version=release()).set(1)
    if settings.metrics_port is None:
        yield None
        return
    runner = web.AppRunner(_application(), access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        await _bind(runner, settings.metrics_host, settings.metrics_port)
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _application() -> web.Application:
    app = web.Application()
    for path, handler in (
        ("/metrics", _metrics),
        ("/livez", _live),
        ("/healthz", _healthy),
        ("/readyz", _ready),
        ("/ready", _ready),
    ):
        app.router.add_get(path, handler)
    return app


async def _bind(runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise SettingsError(
            f"cannot listen at EVERYDREAM_METRICS_HOST={host} EVERYDREAM_METRICS_PORT={port}:"
            f" {error}",
            "processes on one machine need a port each",
        ) from error
    log.info("metrics_listening", host=host, port=runner.addresses[0][1])


async def _metrics(_request: web.Request) -> web.Response:
    refreshing = (each.refresh() for each in _refreshing)
    problems, *_ = await asyncio.gather(process_problems(), *refreshing)
    READY.set(not problems)
    return web.Response(
        body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4}
    )


async def _live(_request: web.Request) -> web.Response:
    """The process runs, and its event loop has time; asks nothing else."""
    return web.json_response({"status": "ok"})


async def _healthy(_request: web.Request) -> web.Response:
    """What a process needs to answer at all is there."""
    if problems := await process_problems(essential=True):
        return readiness(problems)
    return web.json_response({"status": "ok"})


async def _ready(_request: web.Request) -> web.Response:
    """All that its work needs is there."""
    return readiness(await process_problems())


def readiness(problems: list[Problem]) -> web.Response:
    """The answer that says whether all is there, and what is lacking."""
    lacking = [
        {"part": each.part, "reason": each.reason, "since": iso(each.since)} for each in problems
    ]
    body = {"status": "not ready" if lacking else "ready", "lacking": lacking}
    if not problems:
        return web.json_response(body)
    return web.json_response(body, status=503, headers={"Retry-After": str(RETRY_SECONDS)})
