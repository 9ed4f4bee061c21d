"""Finds out what this machine can do, and what is wrong with how to mend it; changes nothing."""

from __future__ import annotations

import asyncio
import os
import platform
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import aiohttp
import msgspec
import sqlalchemy as sa
from msgspec import Struct
from rich.console import Console
from rich.text import Text

from everydream.access import WHAT_TO_DO, address_of, http_url
from everydream.client import why_unanswered
from everydream.terminal.words import plain, size
from everydream.this_machine.base_models import base_model_state
from everydream.this_machine.greeting import OTHERS, device_line
from everydream.this_machine.machine import device_facts, package_version
from everydream.this_machine.only_server import running_server
from services.gateway.database.connection import Database
from services.gateway.web.authentication import CLIENT_FILE
from shared.adapters.rabbitmq import RabbitMQBus, quorum_of
from shared.adapters.stores import open_store
from shared.dataset.card_memory import (
    SD1,
    USUAL,
    drawing_beside,
    in_gib,
    smaller,
    usual_training,
)
from shared.disk import free_bytes
from shared.errors import EveryDreamError, Refused
from shared.service_process import closing
from shared.settings import Settings
from shared.words import counted

State = Literal["ok", "note", "wrong"]
MARKS: dict[State, str] = {"ok": "ok", "note": "note", "wrong": "WRONG"}
SECONDS = 10.0
"""For an answer of a broker, a database or a store."""
NEEDED_BYTES = 20 * 10**9
"""Free disk for Stable Diffusion 1.5 (4 GB) and one training of it: by a dataset report's estimate,
16 GB for two resume points and the model in both formats."""
NEEDED_MEMORY = 12 * 2**30
"""Main memory to train Stable Diffusion 1.5 on a processor; docs/sd15-on-cpu.md measured it."""
PROBE = "doctor/none"
"""A key that no store has."""


class Finding(Struct, frozen=True):
    """One thing that was looked at."""

    part: str
    state: State
    text: str
    mend: str = ""
    """What to do."""


async def examine(settings: Settings, url: str | None = None) -> dict[str, Any]:
    """Everything that was found: ``healthy``, ``device`` and ``findings``.

    ``url`` is the server's; None: the one that commands without flags ask.
    """
    devices = await _devices(settings)
    findings = [finding async for finding in _findings(settings, devices, url)]
    return {
        "healthy": all(finding.state != "wrong" for finding in findings),
        "version": package_version(),
        "device": devices["device"],
        "findings": [msgspec.structs.asdict(finding) for finding in findings],
    }


async def _devices(settings: Settings) -> dict[str, dict[str, Any]]:
    """What is known of the device of the trainer, and of the inferencer's if it is another."""
    devices = {"device": await device_facts(settings.trainers_device)}
    if settings.inferencers_device.value != settings.trainers_device.value:
        devices["inferencer"] = await device_facts(settings.inferencers_device)
    return devices


def print_findings(console: Console, examined: dict[str, Any]) -> None:
    """Print what was found, for people."""
    for each in examined["findings"]:
        console.print(
            Text(f"{MARKS[each['state']]:<6} {each['part']:<11} {plain(each['text'])}"),
            soft_wrap=True,
        )
        if each["mend"]:
            console.print(Text(f"{'':<18} -> {plain(each['mend'])}"), soft_wrap=True)
    wrong = sum(each["state"] == "wrong" for each in examined["findings"])
    console.print(f"{wrong} wrong" if wrong else "nothing is wrong")


async def _findings(
    settings: Settings, devices: dict[str, dict[str, Any]], url: str | None
) -> AsyncIterator[Finding]:
    system = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("version", "ok", f"everydream {package_version()}, {system}")
    for part, device in devices.items():
        yield device_finding(device, settings.base_model, part)
    for finding in card_findings(devices["device"], settings):
        yield finding
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    is_used = devices["device"].get("device") == "cpu" and settings.base_model != "tiny"
    yield memory_finding(total, NEEDED_MEMORY if is_used else 0)
    for finding in _home(settings):
        yield finding
    yield base_model_finding(settings)
    for finding in _served_model(settings):
        yield finding
    # At once: each that does not answer is waited for.
    for finding in await asyncio.gather(
        _broker(settings), _database(settings), _store(settings), _gateway(settings, url)
    ):
        yield finding


def device_finding(device: dict[str, Any], base_model: str, part: str = "device") -> Finding:
    """Whether there is a device that trains, or draws, in useful time."""
    if "error" in device:
        mend = "install the project with its trainer: pip install -c constraints.txt -e '.[all]'"
        return Finding(part, "wrong", f"torch does not work: {device['error']}", mend)
    built = f"CUDA {device['cuda']}" if device["cuda"] else "no CUDA"
    text = f"{device_line(device)}, built for {built}"
    if problem := device.get("problem"):
        return Finding(part, "wrong", f"{text}; {problem}", device["mend"])
    if device["device"] == "cpu" and base_model != "tiny":
        mend = "use a machine with a card, or EVERYDREAM_BASE_MODEL=tiny to try things"
        slow = "training takes hours to days" if part == "device" else "an image takes minutes"
        return Finding(part, "note", f"{text}; {slow}", mend)
    return Finding(part, "ok", text)


def card_findings(device: dict[str, Any], settings: Settings) -> Iterator[Finding]:
    """Whether the card has memory for a usual training, and for samples beside it."""
    if device.get("device") != "cuda" or settings.base_model == "tiny":
        return
    total, needed = device["memory_bytes"], usual_training().total
    text = f"{in_gib(total)}, {in_gib(device['free_bytes'])} of them free"
    usual = f"a usual training needs about {in_gib(needed)}"
    if total < needed:
        less = smaller(USUAL, SD1.parameters, total)
        mend = (
            f"{less.changes(USUAL)} needs about {in_gib(less.needed)}"
            if less
            else "use a larger card; docs/models.md says what fits which"
        )
        yield Finding("card memory", "note" if less else "wrong", f"{text}; {usual}", mend)
        return
    beside = needed + drawing_beside(SD1.parameters)
    is_shared = settings.trainers_device.value == settings.inferencers_device.value
    if is_shared and total < beside:
        text = f"{text}; {usual}, {in_gib(beside)} with live samples beside it"
        mend = "live samples are drawn on the processor; docs/models.md says what needs less"
        yield Finding("card memory", "note", text, mend)
        return
    yield Finding("card memory", "ok", f"{text}; {usual}")


def memory_finding(total: int, needed: int) -> Finding:
    """Whether the main memory suffices; both in bytes."""
    text = f"{size(total)}, {counted(len(os.sched_getaffinity(0)), 'core')}"
    if total < needed:
        mend = f"training on a processor needs {size(needed)}: use a machine with more, or a card"
        return Finding("memory", "wrong", text, mend)
    return Finding("memory", "ok", text)


def _home(settings: Settings) -> Iterator[Finding]:
    home = settings.home
    existing = next(each for each in (home, *home.parents) if each.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        mend = "name another folder by EVERYDREAM_HOME, or make this one writable"
        yield Finding("folder", "wrong", f"{home} cannot be written", mend)
    elif existing == home and home.stat().st_mode & OTHERS:
        yield Finding("folder", "note", f"{home}: others can look into it", f"chmod 700 {home}")
    else:
        yield Finding("folder", "ok", str(home) + ("" if existing == home else ", not made yet"))
    free = free_bytes(home)
    if free < NEEDED_BYTES and settings.base_model != "tiny":
        mend = f"one training takes up to {size(NEEDED_BYTES)}; free some, or lower"
        yield Finding("disk", "wrong", f"{size(free)} free", f"{mend} EVERYDREAM_KEEP_DAYS")
    else:
        yield Finding("disk", "ok", f"{size(free)} free")


def base_model_finding(settings: Settings) -> Finding:
    """Whether the base model is here."""
    state = base_model_state(settings)
    text = f"{settings.base_model}: {state.text}"
    if state.present:
        return Finding("base model", "ok", text)
    return Finding("base model", "wrong" if state.wrong else "note", text, state.mend)


async def _broker(settings: Settings) -> Finding:
    if not any(os.environ.get(f"EVERYDREAM_AMQP_URL{end}") for end in ("", "_FILE")):
        return Finding("broker", "ok", "none is set; `everydream serve` needs none")
    shown = _without_secrets(settings.amqp_url)
    try:
        async with asyncio.timeout(SECONDS):
            bus = await RabbitMQBus.open(
                settings.amqp_url, source="doctor", heartbeat=SECONDS, quorum=quorum_of(settings)
            )
            await bus.close()
    except (EveryDreamError, TimeoutError) as error:
        return _unreached("broker", shown, error, "EVERYDREAM_AMQP_URL")
    return Finding("broker", "ok", f"{shown} answers")


async def _database(settings: Settings) -> Finding:
    shown = _without_secrets(settings.database_url)
    if settings.database_url.startswith("sqlite") and not _sqlite_file(settings).exists():
        return Finding("database", "ok", f"{shown}, not made yet")
    try:
        async with asyncio.timeout(SECONDS), closing(Database.open(settings.database_url)) as it:
            await it.all(sa.text("SELECT 1"))
    except (EveryDreamError, TimeoutError, ValueError) as error:
        return _unreached("database", shown, error, "EVERYDREAM_DATABASE_URL")
    return Finding("database", "ok", f"{shown} answers")


async def _store(settings: Settings) -> Finding:
    shown = settings.store_url
    if shown.startswith("file://") and not _folder_of(shown).exists():
        return Finding("store", "ok", f"{shown}, not made yet")
    try:
        async with asyncio.timeout(SECONDS), closing(open_store(settings, "x" * 32)) as store:
            await store.exists(PROBE)
    except (EveryDreamError, TimeoutError) as error:
        return _unreached("store", shown, error, "EVERYDREAM_STORE_URL, and the AWS_ variables")
    return Finding("store", "ok", f"{shown} answers")


def _served_model(settings: Settings) -> Iterator[Finding]:
    """The base model of this home's server, which may have been started with other settings."""
    server = running_server(settings.home)
    if server is not None and server.base_model != settings.base_model:
        text = f"the server at {server.url} uses {server.base_model}, not {settings.base_model}"
        mend = "start it anew to change that; EVERYDREAM_BASE_MODEL here changes other commands"
        yield Finding("base model", "note", text, mend)


async def _gateway(settings: Settings, given: str | None) -> Finding:
    """Whether the server that commands ask runs, or could run here."""
    try:
        url = http_url(given) if given else address_of(settings)
    except Refused as error:
        return Finding("server", "wrong", str(error), "mend or remove that, or give --url")
    try:
        timeout = aiohttp.ClientTimeout(total=SECONDS)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{url}/ready") as answer,
        ):
            if answer.ok:
                return Finding("server", "ok", f"{url} is ready")
            text = (await answer.text())[:300]
            mend = "see docs/operations.md"
            return Finding("server", "wrong", f"{url} is not ready: {text}", mend)
    except (aiohttp.ClientError, TimeoutError) as error:
        if given and given != os.environ.get("EVERYDREAM_URL"):
            return Finding("server", "wrong", f"{url}: {why_unanswered(error)}", WHAT_TO_DO)
    return _absent(settings, url)


def _absent(settings: Settings, url: str) -> Finding:
    """There is no server where commands without flags ask; whether one could run here."""
    if _is_taken(settings.host, settings.port):
        return Finding(
            "server", "wrong", f"another program uses port {settings.port}", "give --port to serve"
        )
    if url == settings.public_url:
        return Finding("server", "ok", f"none at {url}; `everydream serve` starts one")
    is_set = bool(os.environ.get("EVERYDREAM_URL"))
    source = "EVERYDREAM_URL" if is_set else settings.home / CLIENT_FILE
    return Finding(
        "server", "wrong" if is_set else "note", f"none at {url}, where {source} says that it is",
        "start it there, or say where it is by EVERYDREAM_URL or --url;"
        f" `everydream serve` here is at {settings.public_url}",
    )  # fmt: skip


def _is_taken(host: str, port: int) -> bool:
    """Whether a server could not listen there."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family):
            return False
    except OSError:
        return True


def _unreached(part: str, shown: str, error: Exception, setting: str) -> Finding:
    reason = str(error) or f"no answer within {SECONDS:.0f} s"
    return Finding(part, "wrong", f"{shown}: {reason}", f"is it up? is {setting} right?")


def _sqlite_file(settings: Settings) -> Path:
    return Path(settings.database_url.partition("///")[2])


def _folder_of(store_url: str) -> Path:
    return Path(unquote(store_url.removeprefix("file://")))


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
