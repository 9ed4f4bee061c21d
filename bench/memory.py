"""What ``everydream serve`` takes of the memory: ``python -m bench memory``.

Each of its processes with the tiny model: at rest, when all children are ready, and the most that
was seen while the small job of ``bench pipeline`` ran twice. A page that processes share counts in
each of them with its part. The rows are written into docs/performance.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
import psutil

from bench import rows
from bench.highest import highest
from bench.pipeline import KEY, one_job, serving
from bench.pure_compute import PICTURES, make_pictures
from everydream.client import Client
from everydream.photos import upload
from tests.support.measured_page import today

JOBS = 2
REST_SECONDS = 15.0
"""Until imports are done and caches at rest."""
LOOK_SECONDS = 0.2
MEBIBYTE = 1 << 20
HEAD = ("process", "at rest", "at most during a job", "measured on")
GATEWAY_AND_ALL = "gateway and the services' parents"
PROCESSES = {
    "services.fetcher.parsing": "fetcher's child",
    "services.trainer.training": "trainer's child",
    "services.inferencer.generation": "inferencer's child",
}
"""By the beginning of the module that a child runs."""
NAMES = (GATEWAY_AND_ALL, *PROCESSES.values(), "all together")


def main() -> None:
    """Measure, and write the rows."""
    with TemporaryDirectory(prefix="bench-memory-") as folder:
        asyncio.run(measure(Path(folder)))


async def measure(folder: Path) -> None:
    pictures = make_pictures(folder / "pictures", PICTURES)
    archive = Path(shutil.make_archive(str(folder / "data"), "zip", pictures))
    async with serving(folder / "home") as (url, _), aiohttp.ClientSession() as session:
        await asyncio.sleep(REST_SECONDS)
        rest = taken()
        client = Client(session, url, KEY)
        data_url = await upload(client, archive, lambda _done: None)
        async with highest(taken, every_seconds=LOOK_SECONDS) as most:
            for _ in range(JOBS):
                await one_job(client, session, url, data_url)
    for name in NAMES:
        figures = (f"{each.get(name, 0) / MEBIBYTE:,.0f} MiB" for each in (rest, most))
        rows.put("memory", HEAD, (name, *figures, today()), NAMES)


def taken() -> dict[str, int]:
    """Bytes by the name of a process, and of all together."""
    sizes: dict[str, int] = defaultdict(int)
    for name, size in _processes():
        sizes[name] += size
        sizes["all together"] += size
    return sizes


def _processes() -> Iterator[tuple[str, int]]:
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            command = " ".join(process.cmdline())
            size: int = process.memory_full_info().pss
            names = (name for module, name in PROCESSES.items() if f"-m {module}" in command)
            yield next(names, GATEWAY_AND_ALL), size


if __name__ == "__main__":
    main()
