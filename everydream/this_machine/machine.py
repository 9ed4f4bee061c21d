"""The machine: its settings, the home folder, and what its card can do."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from everydream.outcome import reason_of
from shared.child.parent import device_variables
from shared.concurrency import cancelled
from shared.errors import SettingsError
from shared.release import release
from shared.settings import DeviceSetting, Settings, from_environment
from shared.telemetry import logs

CHILD = "services.trainer.training.device_facts"
"""Says what torch sees, as JSON; a child, because torch takes seconds and gigabytes."""
CHILD_SECONDS = 120.0


def package_version() -> str:
    """The version that is installed."""
    return release() or "unknown: not installed as a package"


def read_settings() -> Settings:
    """Read the settings; warnings go to stderr as plain lines.

    Raises:
        SettingsError: one is invalid.
    """
    logs.configure("everydream", logging.WARNING)
    structlog.configure(processors=[structlog.processors.add_log_level, _as_line])
    return from_environment()


def _as_line(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    """A log event as a line for people: ``everydream: warning: setting renamed, old=...``."""
    level, name = event.pop("level"), str(event.pop("event")).replace("_", " ")
    rest = [f"{key}={value}" for key, value in event.items() if value is not None]
    return f"everydream: {level}: {', '.join([name, *rest])}"


def make_home(settings: Settings) -> None:
    """Create the home folder, for its owner alone, and find out whether it can be written.

    Raises:
        SettingsError: it cannot.
    """
    try:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(_unwritable(settings, reason_of(error))) from None
    if not os.access(settings.home, os.W_OK | os.X_OK):
        raise SettingsError(_unwritable(settings, "permission denied"))


def _unwritable(settings: Settings, reason: str) -> str:
    return (
        f"EVERYDREAM_HOME is {settings.home}, which cannot be written ({reason});"
        " name another folder by it"
    )


async def device_facts(device: DeviceSetting) -> dict[str, Any]:
    """What torch sees on this machine, found out by a child; ``error`` if it cannot be told."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", CHILD, env={**os.environ, **device_variables(device)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    talk = asyncio.create_task(child.communicate())
    try:
        async with asyncio.timeout(CHILD_SECONDS):
            output, errors = await asyncio.shield(talk)
    except TimeoutError:
        return {"error": f"torch has not told within {CHILD_SECONDS:.0f} s"}
    finally:
        if child.returncode is None:
            child.kill()
        await cancelled(talk)
    try:
        facts: dict[str, Any] = json.loads(output)
    except ValueError:
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        return {"error": last or f"the child ended with status {child.returncode}"}
    return facts
