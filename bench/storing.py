"""What a job of SD 1.5's size takes of the disk: ``python -m bench storing``.

``everydream serve`` on a CPU with a base model of random weights in half precision, three pictures,
one epoch at 256 pixels. The whole folder is looked at every half second, files that links share
counted once. The row is written into docs/performance.md.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp

from bench import rows
from bench.highest import highest
from bench.pairs import run_module
from bench.pipeline import KEY, one_job, serving
from bench.pure_compute import make_pictures
from everydream.client import Client
from everydream.photos import upload
from tests.support.measured_page import today

PICTURES = 3
LOOK_SECONDS = 0.5
GIGABYTE = 10**9
TRAIN = {
    "max_epochs": 1, "batch_size": 1, "resolution": 256, "useadam8bit": True,
    "sample_prompts": ["a wall"], "sample_steps": 1000,
}  # fmt: skip
INFERENCE = {"prompt": "a wall", "width": 256, "height": 256, "num_inference_steps": 5}
HEAD = ("base model", "peak", "kept beside the base", "POST to COMPLETED", "measured on")
NAME = "a folder of the user's"


def main() -> None:
    """Measure, and write the row."""
    with TemporaryDirectory(prefix="bench-storing-") as folder:
        asyncio.run(measure(Path(folder)))


async def measure(folder: Path) -> None:
    base = folder / "base"
    await asyncio.to_thread(run_module, "bench.sd15", "make the base model", str(folder))
    base_bytes = taken(base)
    pictures = make_pictures(folder / "pictures", PICTURES)
    archive = Path(shutil.make_archive(str(folder / "data"), "zip", pictures))
    async with (
        serving(folder / "home", base_model=str(base)) as (url, _),
        aiohttp.ClientSession() as session,
        highest(lambda: {NAME: taken(folder)}, every_seconds=LOOK_SECONDS) as peak,
    ):
        client = Client(session, url, KEY)
        data_url = await upload(client, archive, lambda _done: None)
        took = await one_job(client, session, url, data_url, TRAIN, INFERENCE)
        await asyncio.sleep(5)  # what is no longer needed goes
        kept = taken(folder) - base_bytes
    figures = (f"{peak[NAME] / GIGABYTE:.1f} GB", f"{kept / GIGABYTE:.1f} GB")
    rows.put("storing", HEAD, (NAME, *figures, f"{took.completed:.0f} s", today()), [NAME])


def taken(folder: Path) -> int:
    """Bytes of the disk that a folder's files take, each once."""
    inodes: dict[int, int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                found = (Path(parent) / name).lstat()
            except FileNotFoundError:  # it has just gone
                continue
            inodes[found.st_ino] = found.st_blocks * 512
    return sum(inodes.values())


if __name__ == "__main__":
    main()
