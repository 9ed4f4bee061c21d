"""The deployment's base model: a folder, ``tiny``, or a hub model, pinned if it was pulled.

A pin is the commit that a hub id stood for when ``everydream models pull`` fetched it. From then on
that commit is used without asking the hub.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from services.fetcher.limits import model_limits
from services.fetcher.models.hub import HubModel, hub_model, pull
from services.fetcher.order import ParsedModel, ParseModelFolder
from services.fetcher.parser import Reader
from services.fetcher.progress_meter import ProgressMeter
from shared.concurrency import in_thread
from shared.errors import Passing, SettingsError
from shared.settings import read_secret

TINY = "tiny"
TINY_FOLDER = Path(__file__).parents[3] / "shared" / "tiny"
RENAMED_ON_HUB = {"runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
"""Hub models by their former ids."""
PINS = "models.json"
"""The file with all pins, in the home folder."""
EXPECTED = f"a diffusers folder that exists, a hub id such as org/name, or {TINY}"


class LocalModel(NamedTuple):
    """A model on the local disk: its folder, and the names of its files."""

    folder: Path
    files: list[str]


class Pin(Struct, frozen=True, kw_only=True):
    """What a hub id stands for."""

    commit: str
    folder: str
    """Relative to the home folder."""


class ModelFolders:
    """Checks folders on the local disk, each content once."""

    def __init__(self) -> None:
        self._checked: dict[tuple[object, ...], LocalModel] = {}

    async def check(
        self, folder: Path, shown: str, meter: ProgressMeter, reader: Reader
    ) -> LocalModel:
        """The model in a folder.

        Raises:
            Refused: it is not one that can be trained on.
        """
        found = await in_thread(_look, folder)
        key = (folder, *found.items())
        if key not in self._checked:
            task = ParseModelFolder(folder=str(folder), shown=shown)
            limits = model_limits(sum(each.bytes for each in found.values()))
            parsed = await reader.parse(task, limits, ParsedModel, keepalive=meter.keepalive)
            if unknown := set(parsed.files) - found.keys():
                raise Passing(f"the parsing child names files that are not there: {unknown}")
            self._checked[key] = LocalModel(folder, list(parsed.files))
        return self._checked[key]


class _Seen(NamedTuple):
    """Of a file; another content has another of these."""

    inode: int
    bytes: int
    modified: int


def _look(folder: Path) -> dict[str, _Seen]:
    """The files of a folder, by name, without reading them."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    stats = ((path.relative_to(folder).as_posix(), path.stat()) for path in files)
    return {name: _Seen(at.st_ino, at.st_size, at.st_mtime_ns) for name, at in stats}


class HubCache:
    """Hub models on the local disk.

    Models fetched with a token have a cache of their own: the hub's library returns a cached model
    even to users whom the hub refuses.
    """

    def __init__(self, home: Path, folders: ModelFolders) -> None:
        self._open, self._private = home / "hub", home / "hub-private"
        self._folders = folders

    async def fetch(
        self, model: HubModel, meter: ProgressMeter, reader: Reader, *, token: str | None
    ) -> tuple[LocalModel, str]:
        """The model and its commit, fetched unless it is cached."""
        cache = self._private if token else self._open
        folder, commit = await pull(model, cache, token=token, keepalive=meter.bytes)
        return await self._folders.check(folder, str(model), meter, reader), commit


class ConfiguredModel:
    """Finds the configured base model; the hub is asked with the deployment's token."""

    def __init__(self, configured: str, home: Path, folders: ModelFolders) -> None:
        self._configured = configured
        self._home = home
        self._folders = folders
        self._cache = HubCache(home, folders)

    async def find(self, meter: ProgressMeter, reader: Reader) -> LocalModel:
        """The model on the local disk.

        Raises:
            Refused: it cannot be trained on.
            Passing: the hub is unavailable.
            SettingsError: the setting names no model.
        """
        if self._configured == TINY:
            return await self._folders.check(TINY_FOLDER, TINY, meter, reader)
        if folder := await in_thread(_local_folder, self._configured):
            return await self._folders.check(
                folder, f"EVERYDREAM_BASE_MODEL ({folder})", meter, reader
            )
        model = self._hub_model()
        pins = await in_thread(read_pins, self._home)
        if pin := pins.get(self._configured):
            model = replace(model, revision=pin.commit)
            if await in_thread((self._home / pin.folder).is_dir):
                return await self._folders.check(self._home / pin.folder, str(model), meter, reader)
        local, _ = await self._cache.fetch(model, meter, reader, token=hub_token())
        return local

    async def pull(self, revision: str | None, meter: ProgressMeter, reader: Reader) -> Pin:
        """Fetch the hub model and pin its commit, replacing an earlier pin.

        Raises:
            Refused: there is no such model or revision, or it cannot be trained on.
            Passing: the hub is unavailable.
            SettingsError: the setting is not a hub id.
        """
        model = self._hub_model()
        model = replace(model, revision=revision or model.revision)
        local, commit = await self._cache.fetch(model, meter, reader, token=hub_token())
        pin = Pin(commit=commit, folder=str(local.folder.relative_to(self._home)))
        await in_thread(write_pin, self._home, self._configured, pin)
        return pin

    def _hub_model(self) -> HubModel:
        model = hub_model(RENAMED_ON_HUB.get(self._configured, self._configured))
        if model is None:
            raise SettingsError(
                f"EVERYDREAM_BASE_MODEL is {self._configured!r}, but takes {EXPECTED}"
            )
        return model


def hub_token() -> str | None:
    """The deployment's token for the hub, by the hub library's own variables.

    Raises:
        SettingsError: both are set, or the file cannot be read.
    """
    return read_secret(os.environ, "HF_TOKEN", "HF_TOKEN_PATH") or None


def read_pins(home: Path) -> dict[str, Pin]:
    """All pins of a home folder, by the configured name.

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
    """Add a pin to a home folder, or replace it."""
    text = msgspec.json.format(msgspec.json.encode({**read_pins(home), name: pin}))
    home.mkdir(parents=True, exist_ok=True)
    temporary = home / f".{PINS}.part"
    temporary.write_bytes(text + b"\n")
    temporary.replace(home / PINS)


def _local_folder(text: str) -> Path | None:
    folder = Path(text).expanduser()
    return folder if folder.is_dir() else None
