"""The deployment's base model: a folder, a file, ``tiny``, or a hub model, pinned if pulled.

A pin is the commit that a hub id stood for when ``everydream models pull`` fetched it. From then on
that commit is used without asking the hub.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from services.fetcher.limits import model_limits
from services.fetcher.model_files import lacks
from services.fetcher.models.hub import Fetched, hub_model, pull
from services.fetcher.models.hub_order import MAIN_BRANCH, HubModel, cached_folder, folder_of
from services.fetcher.models.local_file import LocalFile
from services.fetcher.order import ParsedModel, ParseModelFolder
from services.fetcher.parser import Reader
from services.fetcher.progress_meter import ProgressMeter
from shared.concurrency import in_thread
from shared.errors import Passing, SettingsError
from shared.settings import read_secret

TINY = "tiny"
TINY_FOLDER = Path(__file__).parents[3] / "shared" / "tiny"
PINS = "models.json"
"""The file with all pins, in the home folder."""
TOKENIZER_MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
"""Whose tokenizer a file gets: all of Stable Diffusion 1 and 2 have the same words."""
EXPECTED = (
    "the path of a diffusers folder, or of a .safetensors or .ckpt file, a hub id such as org/name,"
    f" or {TINY}"
)


class LocalModel(NamedTuple):
    """A model on the local disk: its folder, and the names of its files."""

    folder: Path
    files: list[str]
    warnings: tuple[str, ...]


class Pin(Struct, frozen=True, kw_only=True):
    """What a hub id stands for."""

    commit: str
    folder: str
    """Relative to the home folder."""


class Location(NamedTuple):
    """Where a configured model is on this machine, as far as can be told without the hub."""

    path: Path | None
    """Its folder, or the file; None: it is not here, or not whole."""
    model: HubModel | None = None
    """On the hub, at its pinned commit; None: it is a path."""
    pin: Pin | None = None


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
            self._checked[key] = LocalModel(folder, list(parsed.files), parsed.warnings)
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
    """Hub models on the local disk: the deployment's own, and those that were used last."""

    def __init__(self, home: Path, folders: ModelFolders, configured: str) -> None:
        self._home = home
        self._folders = folders
        self._configured = configured

    async def fetch(
        self, model: HubModel, meter: ProgressMeter, reader: Reader, *, token: str | None
    ) -> tuple[LocalModel, str]:
        """The model and its commit, fetched unless it is cached."""
        fetched = await self._pull(model, meter, token)
        return await self._folders.check(fetched.folder, str(model), meter, reader), fetched.commit

    async def fetch_any(
        self, model: HubModel, meter: ProgressMeter, reader: Reader, *, token: str | None
    ) -> LocalModel | Path:
        """The model, or the file that it is, which nobody has read yet; fetched unless cached."""
        fetched = await self._pull(model, meter, token, may_be_file=True)
        if fetched.file is not None:
            return fetched.file
        return await self._folders.check(fetched.folder, str(model), meter, reader)

    async def _pull(
        self,
        model: HubModel,
        meter: ProgressMeter,
        token: str | None,
        *,
        weights: bool = True,
        may_be_file: bool = False,
    ) -> Fetched:
        return await pull(
            model,
            cache_of(self._home, token),
            token=token,
            on_bytes=meter.bytes,
            weights=weights,
            may_be_file=may_be_file,
            kept=await in_thread(self._own),
        )

    def _own(self) -> set[str]:
        """The deployment's models, as the cache has them: those pulled, and what it is set to."""
        pins = (Path(pin.folder).parts[1:4] for pin in read_pins(self._home).values())
        own = {"/".join(parts) for parts in pins}
        for name in (self._configured, TOKENIZER_MODEL):
            if not local_path(name) and (model := hub_model(name)):
                own.add(f"{folder_of(model)}/refs/{model.revision or MAIN_BRANCH}")
                own.add(f"{folder_of(model)}/snapshots/{model.revision}")
        return own

    async def fetch_configs(self, model: HubModel, meter: ProgressMeter) -> Path:
        """The folder with a public model's configurations and tokenizer."""
        return (await self._pull(model, meter, None, weights=False)).folder


class ConfiguredModel:
    """Finds the configured base model; the hub is asked with the deployment's token."""

    def __init__(self, configured: str, home: Path, folders: ModelFolders) -> None:
        self._configured = configured
        self._home = home
        self._folders = folders
        self._cache = HubCache(home, folders, configured)
        self._converting = asyncio.Lock()

    async def find(self, meter: ProgressMeter, reader: Reader) -> LocalModel:
        """The model on the local disk.

        Raises:
            Refused: it cannot be trained on.
            Passing: the hub is unavailable.
            SettingsError: the setting names no model.
        """
        path, model, pin = await in_thread(locate, self._configured, self._home)
        if model is not None and not (pin and path):  # what is not pinned may be newer on the hub
            return (await self._cache.fetch(model, meter, reader, token=hub_token()))[0]
        assert path is not None  # noqa: S101 - only a hub model may be elsewhere
        if await in_thread(path.is_file):
            return await self._from_file(path, meter, reader)
        shown = f"EVERYDREAM_BASE_MODEL ({path})" if model is None else str(model)
        return await self._folders.check(path, shown, meter, reader)

    async def _from_file(self, file: Path, meter: ProgressMeter, reader: Reader) -> LocalModel:
        async def find_tokenizer(words: int) -> Path:
            tiny = await in_thread((TINY_FOLDER / "text_encoder/config.json").read_bytes)
            if words == msgspec.json.decode(tiny)["vocab_size"]:
                return TINY_FOLDER
            model, pin = await in_thread(_pinned, TOKENIZER_MODEL, self._home)
            if pin and not await in_thread(lacks, self._home / pin.folder, weights=False):
                return self._home / pin.folder
            return await self._cache.fetch_configs(model, meter)

        async with self._converting:
            folder, parsed = await LocalFile(file, self._home, find_tokenizer).folder(meter, reader)
        return LocalModel(folder, list(parsed.files), parsed.warnings)

    async def pull(self, revision: str | None, meter: ProgressMeter, reader: Reader) -> Pin:
        """Fetch the hub model and pin its commit, replacing an earlier pin.

        Raises:
            Refused: there is no such model or revision, or it cannot be trained on.
            Passing: the hub is unavailable.
            SettingsError: the setting is not a hub id.
        """
        model = _expect_hub_model(self._configured)
        model = replace(model, revision=revision or model.revision)
        local, commit = await self._cache.fetch(model, meter, reader, token=hub_token())
        pin = Pin(commit=commit, folder=str(local.folder.relative_to(self._home)))
        await in_thread(write_pin, self._home, self._configured, pin)
        return pin


def locate(configured: str, home: Path) -> Location:
    """Where the configured model is, without asking the hub.

    Raises:
        SettingsError: the setting names no model; or the file with the pins is damaged.
    """
    if configured == TINY:
        return Location(TINY_FOLDER)
    if path := local_path(configured):
        return Location(path)
    model, pin = _pinned(configured, home)
    folder = home / pin.folder if pin else cached_folder(model, cache_of(home, hub_token()))
    return Location(None if folder is None or lacks(folder) else folder, model, pin)


def _pinned(configured: str, home: Path) -> tuple[HubModel, Pin | None]:
    """The hub model, at its pinned commit if it is pinned. Raises SettingsError."""
    model, pin = _expect_hub_model(configured), read_pins(home).get(configured)
    return (replace(model, revision=pin.commit) if pin else model), pin


def _expect_hub_model(configured: str) -> HubModel:
    if model := hub_model(configured):
        return model
    raise SettingsError(f"EVERYDREAM_BASE_MODEL is {configured!r}, but takes {EXPECTED}")


def cache_of(home: Path, token: str | None) -> Path:
    """The hub library's cache of models that are fetched with a token, or without one.

    The library returns a cached model even to users whom the hub refuses.
    """
    return home / ("hub-private" if token else "hub")


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
            f"{file}, which names the models that were pulled, is damaged ({error})",
            "remove it and pull them again: `everydream models pull`",
        ) from None


def write_pin(home: Path, name: str, pin: Pin) -> None:
    """Add a pin to a home folder, or replace it."""
    text = msgspec.json.format(msgspec.json.encode({**read_pins(home), name: pin}))
    home.mkdir(parents=True, exist_ok=True)
    temporary = home / f".{PINS}.part"
    temporary.write_bytes(text + b"\n")
    temporary.replace(home / PINS)


def local_path(text: str) -> Path | None:
    """The folder or file that the setting names; None: there is none."""
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # this ~ stands for no folder
        return None
    return path if path.exists() else None
