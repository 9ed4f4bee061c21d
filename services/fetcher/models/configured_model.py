"""The deployment's own base model: a folder, ``tiny``, or one of the hub, pinned if it was pulled.

A pin is the commit that a name stood for when ``everydream models pull`` fetched it. From then on
that commit is used, and the hub is not asked again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from services.fetcher.models.diffusers_folder import validate_diffusers_folder
from services.fetcher.models.hub import HubModel, hub_model, pull
from services.fetcher.progress_meter import ProgressMeter
from shared.concurrency import in_thread
from shared.errors import SettingsError

TINY = "tiny"
TINY_FOLDER = Path(__file__).parents[3] / "shared" / "tiny"
MOVED = {"runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
"""Models that are on the hub under another name now."""
PINS = "models.json"
"""In the home folder: what was pulled."""
EXPECTED = f"a diffusers folder that exists, a hub id such as org/name, or {TINY}"


class Model(NamedTuple):
    """A local folder, and the files in it that make the model."""

    folder: Path
    files: list[str]


class Pin(Struct, frozen=True, kw_only=True):
    """What a name stands for."""

    commit: str
    folder: str
    """Inside the home folder."""


class HubCache:
    """Models of the hub on the local disk.

    What was fetched with a token lies apart: the hub's library would hand a cached model to anyone
    whom the hub itself turns away.
    """

    def __init__(self, home: Path) -> None:
        self._open, self._private = home / "hub", home / "hub-private"

    async def fetch(
        self, model: HubModel, meter: ProgressMeter, *, token: str | None
    ) -> tuple[Model, str]:
        """The model, fetched unless it is here, and its commit."""
        cache = self._private if token else self._open
        folder, commit = await pull(model, cache, token=token, keepalive=meter.bytes)
        return await in_thread(checked, folder, str(model)), commit


class ConfiguredModel:
    """Finds the configured base model; with the deployment's token where the hub has it."""

    def __init__(self, configured: str, home: Path) -> None:
        self._configured = configured
        self._home = home
        self._cache = HubCache(home)

    async def find(self, meter: ProgressMeter) -> Model:
        """The model on the local disk.

        Raises:
            Refused: it is no model that can be trained on.
            Passing: the hub is away.
            SettingsError: the setting names nothing.
        """
        if self._configured == TINY:
            return await in_thread(checked, TINY_FOLDER, TINY)
        if folder := await in_thread(_local_folder, self._configured):
            return await in_thread(checked, folder, f"EVERYDREAM_BASE_MODEL ({folder})")
        model = self._on_the_hub()
        pins = await in_thread(read_pins, self._home)
        if pin := pins.get(self._configured):
            model = replace(model, revision=pin.commit)
            if await in_thread((self._home / pin.folder).is_dir):
                return await in_thread(checked, self._home / pin.folder, str(model))
        found, _ = await self._cache.fetch(model, meter, token=hub_token())
        return found

    async def pull(self, revision: str | None, meter: ProgressMeter) -> Pin:
        """Fetch the model of the hub and pin its commit, whatever was pinned before.

        Raises:
            Refused: there is no such model or revision, or it cannot be trained on.
            Passing: the hub is away.
            SettingsError: the name is none of the hub's.
        """
        model = self._on_the_hub()
        asked = replace(model, revision=revision or model.revision)
        found, commit = await self._cache.fetch(asked, meter, token=hub_token())
        pin = Pin(commit=commit, folder=str(found.folder.relative_to(self._home)))
        await in_thread(write_pin, self._home, self._configured, pin)
        return pin

    def _on_the_hub(self) -> HubModel:
        model = hub_model(MOVED.get(self._configured, self._configured))
        if model is None:
            raise SettingsError(
                f"EVERYDREAM_BASE_MODEL is {self._configured!r}, but takes {EXPECTED}"
            )
        return model


def hub_token() -> str | None:
    """The deployment's token for the hub."""
    return os.environ.get("HF_TOKEN") or None


def checked(folder: Path, shown: str) -> Model:
    """A folder as a model; raises Refused where it is none."""
    return Model(folder, validate_diffusers_folder(folder, shown))


def read_pins(home: Path) -> dict[str, Pin]:
    """What was pulled into a home folder, by the name that was configured.

    Raises:
        SettingsError: the file is damaged.
    """
    file = home / PINS
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Pin])
    except FileNotFoundError:
        return {}
    except msgspec.DecodeError as error:
        raise SettingsError(
            f"{file} is damaged ({error}); remove it and pull the model again"
        ) from None


def write_pin(home: Path, name: str, pin: Pin) -> None:
    """Add a pin to those of a home folder."""
    text = msgspec.json.format(msgspec.json.encode({**read_pins(home), name: pin}))
    home.mkdir(parents=True, exist_ok=True)
    temporary = home / f".{PINS}.part"
    temporary.write_bytes(text + b"\n")
    temporary.replace(home / PINS)


def _local_folder(text: str) -> Path | None:
    folder = Path(text).expanduser()
    return folder if folder.is_dir() else None
