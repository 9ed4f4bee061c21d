"""What `everydream serve` says at its start."""

from __future__ import annotations

import asyncio
import contextlib
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import structlog

from everydream.terminal.words import size
from everydream.this_machine.base_models import ModelState, base_model_state
from everydream.this_machine.machine import device_facts, package_version
from services.gateway.web.authentication import CLIENT_FILE
from shared.concurrency import cancelled
from shared.settings import Settings

log = structlog.get_logger()
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared with
ONLY_HERE = ("127.0.0.1", "localhost", "::1")
OTHERS = stat.S_IRWXG | stat.S_IRWXO


@contextlib.asynccontextmanager
async def greet(settings: Settings, listening: asyncio.Event) -> AsyncIterator[None]:
    """Say, once the gateway listens, what runs here and how to reach it.

    On a terminal it is a few lines for people, with the device, which a child is asked for;
    elsewhere it is a log event.
    """
    task = asyncio.create_task(_greet(settings, listening))
    try:
        yield
    finally:
        await cancelled(task)


async def _greet(settings: Settings, listening: asyncio.Event) -> None:
    await listening.wait()
    state = base_model_state(settings)
    log.info(
        "serving",
        version=package_version(),
        url=settings.public_url,
        home=str(settings.home),
        base_model=settings.base_model,
        base_model_state=state.text,
    )
    if sys.stderr.isatty():
        device = await device_facts(settings.trainers_device)
        lines = greeting_lines(settings, state, device)
        sys.stderr.write("\n".join(["", *lines, ""]) + "\n")


def greeting_lines(settings: Settings, state: ModelState, device: dict[str, Any]) -> Iterator[str]:
    """What runs here, how to reach it, and what is missing, for people."""
    yield f"everydream {package_version()}"
    yield f"  open        {settings.public_url}"
    yield f"  API         {settings.public_url}/docs"
    yield f"  device      {device_line(device)}"
    yield f"  base model  {settings.base_model}: {state.text}"
    yield f"  folder      {settings.home}"
    yield f"  key         {_key_line(settings)}"
    yield "  try         everydream run my-photos/ --prompt ..."
    yield from (f"  note: {note}" for note in notes(settings, state, device))


def device_line(device: dict[str, Any]) -> str:
    """A device in words."""
    if "error" in device:
        return f"unknown: {device['error']}"
    memory = f", {size(device['memory_bytes'])}" if device.get("memory_bytes") else ""
    name = "the processor" if device["device"] == "cpu" else device["name"]
    return f"{name}{memory} (torch {device['torch']})"


def notes(settings: Settings, state: ModelState, device: dict[str, Any]) -> Iterator[str]:
    """What is missing or worth knowing, a sentence each."""
    if not state.present:
        yield state.mend
    if device.get("problem"):
        yield f"{device['problem']}; {device['mend']}"
    elif device.get("device") == "cpu" and settings.base_model != "tiny":
        yield (
            "no graphics card: training Stable Diffusion on a processor takes hours to days;"
            " --base-model tiny is quick, to try things"
        )
    if settings.host in EVERYWHERE and urlsplit(settings.public_url).hostname in ONLY_HERE:
        yield (
            f"links in answers begin with {settings.public_url}, which other machines cannot open;"
            " set EVERYDREAM_PUBLIC_URL"
        )
    if settings.home.exists() and settings.home.stat().st_mode & OTHERS:
        yield f"other users of this machine can look into {settings.home}: chmod 700 closes it"


def _key_line(settings: Settings) -> str:
    if settings.api_keys:
        return "one of EVERYDREAM_API_KEYS, as EVERYDREAM_API_KEY or --key"
    return f"in {settings.home / CLIENT_FILE}, where the command finds it"
