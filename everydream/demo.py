"""The demo: teaches the tiny model two new concepts through the real endpoint over HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from rich.console import Console

from everydream import drawings
from everydream.access import Access
from everydream.all_in_one import AllInOne
from everydream.client import Client
from everydream.following import Announcer, watch
from everydream.results import path_of
from everydream.terminal.display import Display
from everydream.terminal.report import outcome_lines
from shared.settings import Settings, from_environment

KEY = "demo-key"
RECIPE = {
    "resolution": 256,
    "batch_size": 4,
    "max_epochs": 65,
    "lr": 1e-3,
    "lr_scheduler": "cosine",
    "lr_decay_steps": 195,
    "lr_warmup_steps": 10,
    "clip_grad_norm": 1.0,
    "useadam8bit": False,
}
"""How the tiny model is trained; all else is the endpoint's default."""
DRAWING = {"width": 256, "height": 256, "num_inference_steps": 15, "guidance_scale": 4.0}
PROMPTS = tuple(concept.captions[0] for concept in drawings.CONCEPTS)
console = Console(stderr=True)


def request_for(files: str) -> dict[str, Any]:
    """A request in the endpoint's JSON that trains the tiny model on the two concepts.

    Args:
        files: the URL of the server that serves the zip and receives the webhook.
    """
    return {
        "input": {
            "train": {
                "data_url": f"{files}/dataset.zip",
                "sample_prompts": list(PROMPTS),
                **RECIPE,
            },
            "inference": [
                {"prompt": prompt, "seed": 0, "num_outputs": 4, **DRAWING} for prompt in PROMPTS
            ],
        },
        "webhook": f"{files}/webhook",
    }


async def run_demo(output: Path) -> int:
    """Run the job and put its results into ``output``; returns the command's exit status."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="everydream-demo-") as home:
        async with AsyncExitStack() as stack:
            files = await stack.enter_async_context(file_server(Path(home)))
            settings = demo_settings(Path(home), files.host)
            await stack.enter_async_context(serving(settings))
            session = await stack.enter_async_context(aiohttp.ClientSession())
            client = Client(session, settings.public_url, KEY)
            console.print(f"[bold]everydream[/] answers on {settings.public_url}")
            job = await client.run(request_for(files.url))
            console.print(f"POST /v1/everydream-v1/run -> job {job}")
            status = await _watched(client, Access(settings.public_url, KEY), job)
            if status["status"] != "COMPLETED":
                console.print(f"[red]{status['status']}[/]: {status.get('error')}")
                return 1
            await files.webhook.wait()
            await save_results(client, status, output)
    console.print(f"{time.monotonic() - began:.0f} s in all; see [bold]{output}/[/]")
    return 0


def demo_settings(home: Path, files: str) -> Settings:
    """Default settings, whatever the environment, with the tiny model and the demo's own zip."""
    own = {"EVERYDREAM_HOME": str(home / "home"), "EVERYDREAM_PORT": str(free_port())}
    return dataclasses.replace(
        from_environment(own),
        api_keys=(KEY,),
        base_model="tiny",
        heartbeat=2.0,
        allowed_private_hosts=frozenset({files}),
    )


def free_port() -> int:
    """A port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclasses.dataclass
class FileServer:
    """Serves the zip and receives the webhook."""

    host: str
    webhook: asyncio.Event

    @property
    def url(self) -> str:
        return f"http://{self.host}"


@asynccontextmanager
async def file_server(folder: Path) -> AsyncIterator[FileServer]:
    """A local web server, in place of a user's own."""
    archive = folder / "dataset.zip"
    archive.write_bytes(await asyncio.to_thread(zipped_dataset, folder / "dataset"))
    webhook_received = asyncio.Event()

    async def take_webhook(request: web.Request) -> web.Response:
        status = (await request.json())["status"]
        console.print(f"webhook {request.headers['webhook-id']}: {status}")
        webhook_received.set()
        return web.Response()

    async def serve_zip(_request: web.Request) -> web.FileResponse:
        return web.FileResponse(archive)

    app = web.Application()
    app.add_routes([web.get("/dataset.zip", serve_zip), web.post("/webhook", take_webhook)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    try:
        await site.start()
        yield FileServer(f"127.0.0.1:{runner.addresses[0][1]}", webhook_received)
    finally:
        await runner.cleanup()


def zipped_dataset(folder: Path) -> bytes:
    """The demo's captioned images, drawn into a folder and zipped."""
    drawings.draw_dataset(folder)
    return drawings.zip_dataset(folder)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[None]:
    """Run the whole product during the block."""
    service = AllInOne(settings)
    stop = asyncio.Event()
    running = asyncio.create_task(service.run(stop))
    listening = asyncio.create_task(service.listening.wait())
    await asyncio.wait((running, listening), return_when=asyncio.FIRST_COMPLETED)
    listening.cancel()
    try:
        yield
    finally:
        stop.set()
        await running


async def _watched(client: Client, gateway: Access, job: str) -> dict[str, Any]:
    """The job's last status; shown until then."""
    status: dict[str, Any] = {}
    with Display(console) as display:
        announcer = Announcer(display)
        async for status in watch(client, gateway, job, display):
            announcer.see(status)
    return status


def summary(status: dict[str, Any]) -> str:
    """A summary in a few lines of Markdown."""
    entries = status["output"]["inference"]
    images = (f"  - `{each['prompt']}`, seed {each['seed']}" for each in entries)
    lines = (f"- {line}" for line in outcome_lines(status))
    return "\n".join([f"# Job {status['id']}: {status['status']}", "", *lines, *images]) + "\n"


async def save_results(client: Client, status: dict[str, Any], output: Path) -> None:
    """Download every artifact and write a summary for people and one for programs.

    Removes the artifacts of an earlier demo.
    """
    summary_file = output / "summary.json"
    if summary_file.exists():
        for artifact in json.loads(summary_file.read_text())["output"]["artifacts"]:
            path_of(artifact, output).unlink(missing_ok=True)
    for artifact in status["output"]["artifacts"]:
        await client.download(artifact["url"], path_of(artifact, output))
    summary_file.write_text(json.dumps(status, indent=2) + "\n")
    (output / "summary.md").write_text(summary(status))
    console.print(summary(status))
