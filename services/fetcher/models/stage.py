"""Stage a job's model: from the name or URL in the request to a folder in the store."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import structlog

from services.fetcher.download import download
from services.fetcher.limits import model_limits
from services.fetcher.model_files import EXPECTED, MAX_MODEL_BYTES
from services.fetcher.models.configured_model import (
    ConfiguredModel,
    HubCache,
    LocalModel,
    ModelFolders,
    hub_token,
)
from services.fetcher.models.hub import HubModel, file_url, hub_model
from services.fetcher.models.stored_model import has_lora, lacks_files, stored_lora
from services.fetcher.order import ParsedModel, ParseModelFile
from services.fetcher.parser import Reader, check_left
from services.fetcher.progress_meter import ProgressMeter
from shared.concurrency import in_thread
from shared.errors import NotFound, Passing, Refused
from shared.network.addresses import shown_url
from shared.ports import ObjectStore
from shared.request import DEFAULT_BASE, STORED, LoraShape, is_http_url
from shared.storage.folders import (
    content_address,
    folder_exists,
    read_manifest,
    upload_folder,
)
from shared.storage.models import MODEL, base_of, is_whole, note_use, stored_model

ALIASES = frozenset({DEFAULT_BASE, DEFAULT_BASE.removesuffix(".ckpt")})
"""Names of the deployment's base model."""
STORING_ATTEMPTS = 3
"""A gateway may be deleting the model at the first, because nobody needed it for long."""
LINKS_FOLDER = "selected"
"""A folder inside the scratch folder: links to the model's files."""

log = structlog.get_logger()


class StagedModel(NamedTuple):
    """A model in the store."""

    prefix: str
    """Of its diffusers folder."""
    bytes: int = 0
    """Of the folder, if the request named the model by a URL or a hub id."""
    warnings: tuple[str, ...] = ()
    lora: LoraShape | None = None
    """Of the LoRA that it comes with."""


class ModelReference(NamedTuple):
    """The model that a job names, and the field that names it."""

    source: str
    field: str
    subfolder: str | None = None


class Staging(NamedTuple):
    """One model that is being staged."""

    reference: ModelReference
    scratch: Path
    """An empty folder for this model alone."""
    meter: ProgressMeter
    reader: Reader

    @property
    def source(self) -> str:
        return self.reference.source

    @property
    def shown(self) -> str:
        return shown_url(self.source)


class ModelStager:
    """Stages models, each content once."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        configured: str,
        home: Path,
        allowed: frozenset[str],
        private: frozenset[str] = frozenset(),
    ) -> None:
        """``configured``: a path, a hub id or ``tiny``; hub models are cached in ``home``.

        ``private``: hub ids, or ``org/*``, for which users may use the deployment's token.
        """
        self._store = store
        folders = ModelFolders()
        self._configured = ConfiguredModel(configured, home, folders)
        self._cache = HubCache(home, folders, configured)
        self._allowed = allowed
        self._private = private
        self._addresses: dict[tuple[object, ...], str] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def stage(
        self, reference: ModelReference, scratch: Path, meter: ProgressMeter, reader: Reader
    ) -> StagedModel:
        """Stage a model; ``scratch`` must be empty.

        Raises:
            Refused: it cannot be trained on; names it and says what is expected.
            Passing: a server is unavailable.
        """
        staging = Staging(reference, scratch, meter, reader)
        if staging.source.startswith(STORED):
            return await self._stage_stored(staging)
        return await self._store_once(await self._fetch(staging), staging)

    async def _stage_stored(self, staging: Staging) -> StagedModel:
        """Stage a model folder that is in our store already, or a model file from there."""
        key = staging.source.removeprefix(STORED)
        if await folder_exists(self._store, key):
            return await self._stage_folder(key, staging)
        file = staging.scratch / "download"
        try:
            await self._store.download(key, file, keepalive=staging.meter.keepalive)
        except NotFound:
            raise Refused(
                f"{staging.reference.field}: this model ({key}) is not in the store any more"
            ) from None
        return await self._store_once(await self._open(file, staging), staging)

    async def _stage_folder(self, prefix: str, staging: Staging) -> StagedModel:
        """A model that a job has trained; what it shares with its base model must be there."""
        manifest = await read_manifest(self._store, prefix)
        if not has_lora(manifest):
            return StagedModel(prefix)
        base = base_of(manifest)
        if MODEL.match(f"{base}/"):
            await note_use(self._store, base)
        if await lacks_files(self._store, prefix, manifest):
            raise Refused(
                f"{staging.reference.field}: the base model of this LoRA is not in the store any"
                " more: train it again, or draw with its file and that base model elsewhere"
            )
        return StagedModel(prefix, lora=await stored_lora(self._store, prefix))

    async def _fetch(self, staging: Staging) -> LocalModel:
        source = staging.source
        if source in ALIASES:
            return await self._configured.find(staging.meter, staging.reader)
        if model := hub_model(source, staging.reference.subfolder):
            token = self._token_for(model)
            return (await self._cache.fetch(model, staging.meter, staging.reader, token=token))[0]
        if is_http_url(source):
            file, url = staging.scratch / "download", file_url(source)
            await download(
                url,
                file,
                allowed=self._allowed,
                limit=MAX_MODEL_BYTES,
                on_bytes=staging.meter.bytes,
            )
            return await self._open(file, staging)
        raise Refused(f"{staging.reference.field} is {staging.shown!r}; {EXPECTED}")

    def _token_for(self, model: HubModel) -> str | None:
        """The deployment's token where users may use it; else they could read all that it opens."""
        organisation = f"{model.repository.partition('/')[0]}/*"
        return hub_token() if {model.repository, organisation} & self._private else None

    async def _open(self, file: Path, staging: Staging) -> LocalModel:
        """Open a model file; a single file gets the tokenizer of the deployment's base model."""
        if (opened := await self._parse(file, staging, base=None)) is None:
            base = await self._configured.find(staging.meter, staging.reader)
            opened = await self._parse(file, staging, base=base.folder)
        if opened is None:
            raise Passing("the parsing child asks for a base model that it has")
        return opened

    async def _parse(self, file: Path, staging: Staging, base: Path | None) -> LocalModel | None:
        """The model's files; None: it needs a base model."""
        target = staging.scratch / "model"
        task = ParseModelFile(
            file=str(file),
            folder=str(target),
            base=str(base) if base else None,
            subfolder=staging.reference.subfolder,
            shown=staging.shown,
        )
        limits = model_limits((await in_thread(file.stat)).st_size)
        parsed = await staging.reader.parse(
            task, limits, ParsedModel, keepalive=staging.meter.keepalive
        )
        if parsed.needs_base:
            return None
        await in_thread(check_left, target, parsed.files)
        return LocalModel(target, list(parsed.files), parsed.warnings)

    async def _address(self, model: LocalModel, selected: Path, staging: Staging) -> str:
        """The content's sha256, cached for models outside the scratch folder."""
        fingerprint = await in_thread(_fingerprint, model)
        if fingerprint in self._addresses:
            return self._addresses[fingerprint]
        address = await content_address(selected, keepalive=staging.meter.keepalive)
        if not model.folder.is_relative_to(staging.scratch):
            self._addresses[fingerprint] = address
        return address

    async def _store_once(self, model: LocalModel, staging: Staging) -> StagedModel:
        """Upload under the content's address, unless it is stored already."""
        keepalive, selected = staging.meter.keepalive, staging.scratch / LINKS_FOLDER
        await in_thread(_link_files, model, selected)
        prefix = stored_model(await self._address(model, selected, staging))
        async with self._locks[prefix]:
            await note_use(self._store, prefix)
            # What the child has made it could still change: it is copied.
            is_the_childs = model.folder.is_relative_to(staging.scratch)
            tries = 0
            while not await is_whole(self._store, prefix):
                if (tries := tries + 1) > STORING_ATTEMPTS:
                    raise Passing(f"the store does not keep all files of {staging.shown}")
                await upload_folder(
                    self._store, selected, prefix, keepalive=keepalive, immutable=not is_the_childs
                )
                log.info("base_model_stored", prefix=prefix, model=staging.shown)
        size = 0 if staging.source in ALIASES else await in_thread(_bytes_of, model)
        return StagedModel(prefix, size, model.warnings)


def _link_files(model: LocalModel, target: Path) -> None:
    """Fill a folder with links to the model's files."""
    for name in model.files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).symlink_to((model.folder / name).resolve())


def _bytes_of(model: LocalModel) -> int:
    return sum((model.folder / name).stat().st_size for name in model.files)


def _fingerprint(model: LocalModel) -> tuple[object, ...]:
    """Changes when the folder's content does; made without reading the files."""
    stats = ((name, (model.folder / name).stat()) for name in model.files)
    return (
        model.folder,
        *((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats),
    )
