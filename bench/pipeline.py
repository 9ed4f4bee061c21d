"""What a job takes beyond its computing: ``python -m bench pipeline``.

``everydream serve`` with the tiny model, in a process of its own: from its start to its first
answer; then the same small job again and again, the first at once, the others when all is warm.
Beside them stands what the training and the drawing of such a job take alone, in a process that has
done them before. The rows are written into docs/performance.md.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import aiohttp
from msgspec import json

from bench import rows
from bench.pairs import RESULT, ROOT, run_module
from bench.pure_compute import INFERENCE, PICTURES, TRAIN, make_pictures
from everydream.client import Client
from everydream.demo import free_port
from everydream.photos import upload
from tests.support.measured_page import today

JOBS = 5
KEY = "a-key-for-the-benchmark"
ANSWER_SECONDS = 60.0
HEAD = ("what", "seconds", "of it computing", "beyond it", "measured on")
NAMES = ("start to first answer", "first job", "warm job", "first sample of a warm job")


class Took(NamedTuple):
    """Seconds from the request."""

    completed: float
    sampled: float
    """Until its first sample was announced."""


def main() -> None:
    """Measure, and write the rows."""
    computing = pure_seconds()
    with TemporaryDirectory(prefix="bench-pipeline-") as folder:
        start, jobs = asyncio.run(measure(Path(folder)))
    first, warm = jobs[0], jobs[1:]
    put("start to first answer", start, None)
    put("first job", first.completed, computing)
    put("warm job", median(job.completed for job in warm), computing)
    put("first sample of a warm job", median(job.sampled for job in warm), None)


def put(name: str, seconds: float, computing: float | None) -> None:
    beyond = ("", "") if computing is None else (f"{computing:.2f}", f"{seconds - computing:.2f}")
    rows.put("pipeline", HEAD, (name, f"{seconds:.2f}", *beyond, today()), NAMES)


def pure_seconds() -> float:
    lines = run_module("bench.pure_compute").splitlines()
    (result,) = [line for line in lines if line.startswith(RESULT)]
    return json.decode(result.removeprefix(RESULT), type=float)


async def measure(folder: Path) -> tuple[float, list[Took]]:
    pictures = make_pictures(folder / "pictures", PICTURES)
    archive = Path(shutil.make_archive(str(folder / "data"), "zip", pictures))
    async with serving(folder / "home") as (url, start), aiohttp.ClientSession() as session:
        client = Client(session, url, KEY)
        data_url = await upload(client, archive, lambda _done: None)
        jobs = []
        for _ in range(JOBS):
            jobs.append(await one_job(client, session, url, data_url))
            await asyncio.sleep(3)  # children and caches come to rest
        return start, jobs


@asynccontextmanager
async def serving(home: Path, base_model: str = "tiny") -> AsyncIterator[tuple[str, float]]:
    """The address of a new ``everydream serve``, and the seconds until it answered."""
    port = free_port()
    url, began = f"http://127.0.0.1:{port}", time.perf_counter()
    environment = {**os.environ, "EVERYDREAM_API_KEYS": KEY, "EVERYDREAM_HOME": str(home)}
    with (home.parent / "log").open("w") as log:
        process = subprocess.Popen(  # noqa: ASYNC220, S603 - this interpreter, our own code
            [sys.executable, "-c", "from everydream.cli import main; main()", "serve",
             "--port", str(port), "--base-model", base_model],
            cwd=ROOT, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        async with asyncio.timeout(ANSWER_SECONDS), aiohttp.ClientSession() as session:
            await until_answered(session, url)
        yield url, time.perf_counter() - began
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait)


async def until_answered(session: aiohttp.ClientSession, url: str) -> None:
    while True:
        try:
            async with session.get(f"{url}/healthz") as answer:
                if answer.ok:
                    return
        except aiohttp.ClientConnectionError:
            await asyncio.sleep(0.02)


async def one_job(  # noqa: PLR0917 - both benchmarks of jobs give all of it
    client: Client,
    session: aiohttp.ClientSession,
    url: str,
    data_url: str,
    train: Mapping[str, Any] = TRAIN,
    inference: Mapping[str, Any] = INFERENCE,
) -> Took:
    request = {"input": {"train": {**train, "data_url": data_url}, "inference": {**inference}}}
    began = time.perf_counter()
    job = await client.run(request)
    sampled = 0.0
    headers = {"Authorization": f"Bearer {KEY}"}
    async with session.get(f"{url}/v1/everydream-v1/events/{job}", headers=headers) as events:
        async for line in events.content:
            if line.startswith(b"event: sample") and not sampled:
                sampled = time.perf_counter() - began
    completed = time.perf_counter() - began
    status = await client.status(job)
    if status["status"] != "COMPLETED":
        raise RuntimeError(f"the job is {status['status']}: {status.get('error')}")
    return Took(completed, sampled)


if __name__ == "__main__":
    main()
