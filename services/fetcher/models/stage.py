"""The base model of a job: from whatever the request names to a folder in the store."""

from __future__ import annotations

import asyncio
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import structlog

from services.fetcher.download import download
from services.fetcher.models.configured_model import (
    MOVED,
    ConfiguredModel,
    HubCache,
    Model,
    checked,
    hub_token,
)
from services.fetcher.models.diffusers_folder import choose_files, names_in
from services.fetcher.models.hub import HubModel, file_url, hub_model
from services.fetcher.models.pickle_reader import is_checkpoint
from services.fetcher.models.safetensors_file import looks_like_safetensors
from services.fetcher.models.single_file import stage_checkpoint, stage_safetensors
from services.fetcher.progress_meter import ProgressMeter
from services.fetcher.zip_reader import Unusable, checked_members, open_zip, write_member
from shared.concurrency import in_thread
from shared.errors import NotFound, Refused
from shared.network.addresses import shown_url
from shared.ports import ObjectStore
from shared.request import DEFAULT_BASE, STORED, is_http_url
from shared.storage.folders import content_address, folder_exists, upload_folder

ALIASES = frozenset({DEFAULT_BASE, DEFAULT_BASE.removesuffix(".ckpt")})
"""Names for the deployment's base model."""
MODEL_BYTES = 16 << 30
"""Of a download."""
RATIO = 50
"""Unpacked to packed, of a zipped model; weights hardly shrink."""
SELECTED = "selected"
"""In a search's scratch folder: links to the files that make the model."""

EXPECTED = (
    f"expected {DEFAULT_BASE}, a hub id such as org/name, or the URL of a hub page, a zipped"
    " diffusers folder, a .safetensors or a .ckpt file"
)

log = structlog.get_logger()


class Named(NamedTuple):
    """What a request names as its model, and in which of its fields."""

    source: str
    field: str
    subfolder: str | None = None


class Search(NamedTuple):
    """One request's search for its model."""

    named: Named
    scratch: Path
    """An empty folder of the search's own."""
    meter: ProgressMeter

    @property
    def asked(self) -> str:
        return self.named.source

    @property
    def shown(self) -> str:
        return shown_url(self.asked)


class BaseModels:
    """Stages base models, each content once; knows the deployment's own."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        configured: str,
        home: Path,
        allowed: frozenset[str],
        private: frozenset[str] = frozenset(),
    ) -> None:
        """``configured``: a folder, a hub id or ``tiny``; the hub's models are kept in ``home``.

        ``private``: hub ids, or ``org/*``, that users may name though only our token opens them.
        """
        self._store = store
        self._own = ConfiguredModel(configured, home)
        self._cache = HubCache(home)
        self._allowed = allowed
        self._private = private
        self._addresses: dict[tuple[object, ...], str] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def stage(self, named: Named, scratch: Path, meter: ProgressMeter) -> str:
        """The store prefix of the model that the request names; ``scratch`` must be empty.

        Raises:
            Refused: nothing that can be trained on; names it and says what is expected.
            Passing: a server is away.
        """
        search = Search(named, scratch, meter)
        if search.asked.startswith(STORED):
            return await self._ours(search)
        return await self._store_once(await self._find(search), search)

    async def _ours(self, search: Search) -> str:
        """A model that is in our store already, or a file there that may be one."""
        key = search.asked.removeprefix(STORED)
        if await folder_exists(self._store, key):
            return key
        file = search.scratch / "download"
        try:
            await self._store.download(key, file, keepalive=search.meter.keepalive)
        except NotFound:
            raise Refused(
                f"{search.named.field}: this model ({key}) is not in the store any more"
            ) from None
        return await self._store_once(await self._open(file, search), search)

    async def _find(self, search: Search) -> Model:
        asked = search.asked
        if asked in ALIASES:
            return await self._own.find(search.meter)
        if model := hub_model(MOVED.get(asked, asked), search.named.subfolder):
            token = self._token_for(model)
            return (await self._cache.fetch(model, search.meter, token=token))[0]
        if is_http_url(asked):
            file, url = search.scratch / "download", file_url(asked)
            await download(
                url, file, allowed=self._allowed, limit=MODEL_BYTES, on_bytes=search.meter.bytes
            )
            return await self._open(file, search)
        raise Refused(f"{search.named.field} is {search.shown!r}; {EXPECTED}")

    def _token_for(self, model: HubModel) -> str | None:
        """Ours, for what it may open to users; it would open all that we can see otherwise."""
        organisation = f"{model.repository.partition('/')[0]}/*"
        return hub_token() if {model.repository, organisation} & self._private else None

    async def _open(self, file: Path, search: Search) -> Model:
        """A file's content, not its name, decides what it is."""
        if await in_thread(looks_like_safetensors, file):
            return await self._stage_single(stage_safetensors, file, search)
        with await in_thread(_open_zip, file, search.shown) as zipped:
            if is_checkpoint(zipped):
                await in_thread(checked_members, zipped, file, search.shown, ratio=RATIO)
                return await self._stage_single(stage_checkpoint, zipped, search)
            folder = await in_thread(_unpack, zipped, file, search)
        return await in_thread(checked, folder, search.shown)

    async def _stage_single(
        self, stage: Callable[..., None], source: Path | zipfile.ZipFile, search: Search
    ) -> Model:
        base, target = await self._own.find(search.meter), search.scratch / "staged"
        await in_thread(stage, source, base.folder, target, search.shown, search.meter.keepalive)
        return Model(target, await in_thread(names_in, target))

    async def _address(self, model: Model, selected: Path, search: Search) -> str:
        """The content's sha256, remembered for models that stay where they are."""
        mark = await in_thread(_mark, model)
        if mark in self._addresses:
            return self._addresses[mark]
        address = await content_address(selected, keepalive=search.meter.keepalive)
        if not model.folder.is_relative_to(search.scratch):
            self._addresses[mark] = address
        return address

    async def _store_once(self, model: Model, search: Search) -> str:
        """Upload under the content's address, unless it is there."""
        keepalive, selected = search.meter.keepalive, search.scratch / SELECTED
        await in_thread(_link, model, selected)
        prefix = f"cache/{await self._address(model, selected, search)}"
        async with self._locks[prefix]:
            if not await folder_exists(self._store, prefix):
                await upload_folder(self._store, selected, prefix, keepalive=keepalive)
                log.info("base_model_stored", prefix=prefix, model=search.shown)
        return prefix


def _link(model: Model, target: Path) -> None:
    """A folder of links to the files that make the model, and to nothing else."""
    for name in model.files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).symlink_to((model.folder / name).resolve())


def _mark(model: Model) -> tuple[object, ...]:
    """What changes when a folder's content does, known without reading it all."""
    stats = ((name, (model.folder / name).stat()) for name in model.files)
    return (
        model.folder,
        *((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats),
    )


def _open_zip(file: Path, shown: str) -> zipfile.ZipFile:
    try:
        return open_zip(file, shown)
    except Refused as error:
        raise Refused(
            f"{error}; a model must be a zipped diffusers folder, a .safetensors file, or a .ckpt"
            " file in torch's zip format (torch 1.6 or later)"
        ) from None


def _unpack(zipped: zipfile.ZipFile, file: Path, search: Search) -> Path:
    """Take the files of a diffusers folder, wherever in the zip it lies; where they are now."""
    members = {
        PurePosixPath(member.name): member
        for member in checked_members(zipped, file, search.shown, ratio=RATIO)
    }
    root = _root(list(members), search)
    names = {
        path.relative_to(root).as_posix(): member
        for path, member in members.items()
        if path.is_relative_to(root)
    }
    target = search.scratch / "unpacked"
    for name in choose_files(names.keys(), search.shown):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            write_member(zipped, names[name], target / name)
        except Unusable as error:
            raise Refused(f"{search.shown}: {name}: {error}") from None
        search.meter.keepalive()
    return target


def _root(paths: list[PurePosixPath], search: Search) -> PurePosixPath:
    """The folder of the least deep ``model_index.json``, inside the subfolder asked for if any."""
    wanted = PurePosixPath(search.named.subfolder or "").parts
    roots = [path.parent for path in paths if path.name == "model_index.json"]
    fitting = [root for root in roots if root.parts[len(root.parts) - len(wanted) :] == wanted]
    if not fitting:
        where = f" in a folder {'/'.join(wanted)}" if wanted else ""
        raise Refused(f"{search.shown}: no model_index.json{where} in the zip; {EXPECTED}")
    return min(fitting, key=lambda root: (len(root.parts), root))
