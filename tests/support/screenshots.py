"""Pictures of the console's screens, light, dark and on a phone: ``make screenshots``."""

from __future__ import annotations

import asyncio
import io
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image
from playwright.async_api import Browser, Page

from everydream import drawings
from tests.end_to_end.story import API_KEY, User, served
from tests.support.browser import Visit, browser, sign_in, visit
from tests.support.following import followed
from tests.support.servers.web import running_web

FOLDER = Path(__file__).parents[2] / "docs" / "images"
WINDOWS: dict[str, dict[str, Any]] = {
    "": {"viewport": {"width": 1280, "height": 800}},
    "-dark": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"},
    "-phone": {"viewport": {"width": 390, "height": 780}, "device_scale_factor": 2},
}
"""By the end of the pictures' names."""
QUALITY = 80
SETTLED_MS = 1200
"""Until thumbnails and curves are drawn."""
PROMPTS = [concept.captions[0] for concept in drawings.CONCEPTS[:2]]
DRAWN = {"prompt": PROMPTS[0], "width": 256, "height": 256, "num_inference_steps": 8}


async def main() -> None:
    """Take every picture, from one server with a few jobs."""
    FOLDER.mkdir(exist_ok=True)
    async with running_web() as web, served(web) as (process, user), browser() as chromium:
        jobs = await some_jobs(user)
        with tempfile.TemporaryDirectory() as folder:
            pictures = await asyncio.to_thread(some_pictures, Path(folder))
            for name, window in WINDOWS.items():
                await take(chromium, process.url, name, window, jobs)
            for name, window in WINDOWS.items():  # last, since each is a check in the list
                await take_new_job(chromium, process.url, name, window, pictures)


async def some_jobs(user: User) -> str:
    """One of each kind that a list may show; the id of the training that is shown alone."""
    train: dict[str, Any] = {"sample_prompts": PROMPTS, "lr": 3e-4, "save_every_n_epochs": 40}
    validation = {"val_split_proportion": 0.25, "every_n_epochs": 10}
    shown = user.request(
        max_epochs=120, sample_steps=30, validation=validation, **train
    )  # fmt: skip
    shown["input"]["inference"] = [{**DRAWN, "prompt": each, "num_outputs": 2} for each in PROMPTS]
    job = await ended(user, shown)
    broken = user.request()
    broken["input"]["train"]["data_url"] = user.web.url("/nothing.zip")
    await ended(user, broken)
    await ended(user, {"input": {"model": job, "inference": [{**DRAWN, "num_outputs": 3}]}})
    running = await user.client.run(user.request(max_epochs=100_000, sample_steps=100, **train))
    async for status in followed(user.client, running, every=0.5):
        if len(status["output"]["samples"]) >= 2 * len(PROMPTS):
            break
    await user.client.run(user.request(max_epochs=10, **train))
    return job


async def ended(user: User, request: dict[str, Any]) -> str:
    job = await user.client.run(request)
    await user.finished(job)
    return job


def some_pictures(folder: Path) -> list[Path]:
    """Some that can be trained on, and one that cannot."""
    paths = []
    for number, concept in enumerate(drawings.CONCEPTS * 2):
        path = folder / f"{concept.captions[0]}_{number}.png"
        drawings.draw_concept(concept, Random(number), 256).save(path)
        paths.append(path)
    broken = folder / "IMG_2041.jpg"
    broken.write_bytes(paths[0].read_bytes()[:500])
    return [*paths, broken]


async def take(chromium: Browser, url: str, name: str, window: dict[str, Any], job: str) -> None:
    async with visit(chromium, url, **window) as one:
        page = await one.page()
        await page.get_by_label("API key").wait_for()
        await shot(page, f"sign-in{name}")
        await sign_in(page, API_KEY)
        for screen, path in {
            "jobs": "/", "job": f"/jobs/{job}", "draw": f"/draw?model={job}", "gallery": "/gallery",
            "system": "/system",
        }.items():  # fmt: skip
            await open_screen(one, page, path)
            await shot(page, f"{screen}{name}")


async def take_new_job(
    chromium: Browser, url: str, name: str, window: dict[str, Any], pictures: list[Path]
) -> None:
    async with visit(chromium, url, **window) as one:
        page = await one.page("/new")
        await sign_in(page, API_KEY, heading="New job")
        await page.get_by_label("Choose pictures").set_input_files(pictures)
        await page.locator(".facts").first.wait_for()
        await shot(page, f"new{name}")


async def open_screen(one: Visit, page: Page, path: str) -> None:
    await page.goto(f"{one.url}/#{path}")
    await page.locator("h1").wait_for()


async def shot(page: Page, name: str) -> None:
    await page.mouse.move(0, 0)
    await page.wait_for_timeout(SETTLED_MS)
    picture = Image.open(io.BytesIO(await page.screenshot()))
    picture.convert("RGB").save(FOLDER / f"{name}.webp", "WEBP", quality=QUALITY, method=6)


if __name__ == "__main__":
    asyncio.run(main())
