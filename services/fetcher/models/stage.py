"""Stage a job's model: from the name or URL in the request to a folder in the store."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
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
from services.fetcher.models.hub import file_url, hub_model
from services.fetcher.models.hub_order import HubModel
from services.fetcher.models.lora_on_base import LoraFile, put_on_base
from services.fetcher.models.stored_model import StagedModel, lacks_files, stored_lora
from services.fetcher.order import ParsedModel, ParseModelFile
from services.fetcher.parser import Reader, check_left
from services.fetcher.progress_meter import ProgressMeter
from shared.concurrency import in_thread
from shared.errors import NotFound, Passing, Refused
from shared.network.addresses import shown_url
from shared.ports import ObjectStore
from shared.request import DEFAULT_BASE, STORED, is_http_url
from shared.storage.folders import (
    content_address,
    folder_exists,
    key_of,
    read_manifest,
    upload_folder,
)
from shared.storage.manifest import LORA, FolderManifest
from shared.storage.models import MODEL, base_of, is_whole, note_use, stored_model

ALIASES = frozenset({DEFAULT_BASE, DEFAULT_BASE.removesuffix(".ckpt")})
"""Names of the deployment's base model."""
STORING_ATTEMPTS = 3
"""A gateway may be deleting the model at the first, because nobody needed it for long."""
LINKS_FOLDER, MODEL_FOLDER, BASE = "selected", "model", "of-base"
"""Folders inside the scratch folder: links to the model's files, what the child has made of a file,
and the scratch folder of a LoRA's base model."""

log = structlog.get_logger()


class ModelReference(NamedTuple):
    """The model that a job names, and the field that names it."""

    source: str
    field: str
    subfolder: str | None = None
    base: str | None = None
    """The model that a LoRA is put on; None: the one that it comes with, or the deployment's."""
    base_field: str = ""


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
        self,
        reference: ModelReference,
        scratch: Path,
        meter: ProgressMeter,
        reader: Reader,
        *,
        own: str,
    ) -> StagedModel:
        """Stage a model; ``scratch`` must be empty.

        A LoRA gets a folder of the job's own, under ``own``.

        Raises:
            Refused: it cannot be trained on; names it and says what is expected.
            Passing: a server is unavailable.
        """
        staging = Staging(reference, scratch, meter, reader)
        found = await self._find(staging, as_lora=reference.base is not None)
        if isinstance(found, LoraFile):
            of_base = ModelReference(reference.base or DEFAULT_BASE, reference.base_field)
            await in_thread((scratch / BASE).mkdir)
            base = await self.stage(of_base, scratch / BASE, meter, reader, own=own)
            if base.lora:
                raise Refused(f"{of_base.field}: it is a LoRA, too; expected a whole model")
            return await self._put_on(base, [found], staging, own)
        if reference.base is not None:
            idle = f"{reference.base_field} has no effect: {staging.shown} is a whole model"
            return found._replace(warnings=(*found.warnings, idle))
        return found

    async def stage_together(
        self,
        reference: ModelReference,
        others: Sequence[ModelReference],
        scratch: Path,
        meter: ProgressMeter,
        reader: Reader,
        *,
        own: str,
    ) -> StagedModel:
        """Stage a model and further LoRAs on its base model; ``scratch`` must be empty.

        Raises:
            Refused: as :meth:`stage`, or another than the first is a whole model.
        """
        model = await self.stage(reference, scratch, meter, reader, own=own)
        loras = []
        for number, other in enumerate(others, start=2):
            place = scratch / f"{number}"
            await in_thread(place.mkdir)
            staging = Staging(other, place, meter, reader)
            found = await self._find(staging, as_lora=True)
            if not isinstance(found, LoraFile):
                raise Refused(
                    f"{other.field}: {staging.shown} is a whole model; expected a LoRA, because"
                    " only the first of input.model may be whole"
                )
            loras.append(found)
        together = Staging(reference, scratch / "together", meter, reader)
        await in_thread(together.scratch.mkdir)
        return await self._put_on(model, loras, together, own) if loras else model

    async def _put_on(
        self, base: StagedModel, loras: Sequence[LoraFile], staging: Staging, own: str
    ) -> StagedModel:
        return await put_on_base(
            self._store,
            base,
            loras,
            own,
            scratch=staging.scratch,
            reader=staging.reader,
            keepalive=staging.meter.keepalive,
        )

    async def _find(self, staging: Staging, *, as_lora: bool) -> StagedModel | LoraFile:
        """The model, in the store; or a LoRA's file.

        ``as_lora``: a LoRA of a job's is not used on the base model that it comes with.
        """
        if staging.source.startswith(STORED):
            return await self._find_stored(staging, as_lora=as_lora)
        found = await self._fetch(staging)
        return found if isinstance(found, LoraFile) else await self._store_once(found, staging)

    async def _find_stored(self, staging: Staging, *, as_lora: bool) -> StagedModel | LoraFile:
        """A model folder that is in our store already, or a model file from there."""
        key, file = staging.source.removeprefix(STORED), staging.scratch / "download"
        if await folder_exists(self._store, key):
            manifest = await read_manifest(self._store, key)
            lora = next((each for each in manifest.files if each.name == LORA), None)
            if lora is None:
                return StagedModel(key)
            if not as_lora:
                return await self._stage_folder(key, manifest, staging)
            key = key_of(key, lora)
        try:
            await self._store.download(key, file, keepalive=staging.meter.keepalive)
        except NotFound:
            raise Refused(
                f"{staging.reference.field}: this model ({key}) is not in the store any more"
            ) from None
        found = await self._open(file, staging)
        return found if isinstance(found, LoraFile) else await self._store_once(found, staging)

    async def _stage_folder(
        self, prefix: str, manifest: FolderManifest, staging: Staging
    ) -> StagedModel:
        """A LoRA that a job has trained; what it shares with its base model must be there."""
        base = base_of(manifest)
        if MODEL.match(f"{base}/"):
            await note_use(self._store, base)
        if await lacks_files(self._store, prefix, manifest):
            raise Refused(
                f"{staging.reference.field}: the base model of this LoRA is not in the store any"
                " more: name one like it with base, or train this LoRA again"
            )
        shape = await stored_lora(self._store, prefix)
        return StagedModel(prefix, lora=shape, loras=1, lora_base=base)

    async def _fetch(self, staging: Staging) -> LocalModel | LoraFile:
        source = staging.source
        if source in ALIASES:
            return await self._configured.find(staging.meter, staging.reader)
        if model := hub_model(source, staging.reference.subfolder):
            token = self._token_for(model)
            found = await self._cache.fetch_any(model, staging.meter, staging.reader, token=token)
            return await self._open(found, staging) if isinstance(found, Path) else found
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

    async def _open(self, file: Path, staging: Staging) -> LocalModel | LoraFile:
        """Open a model file; a single file gets the tokenizer of the deployment's base model."""
        parsed = await self._parse(file, staging, base=None)
        if parsed.is_lora:
            return LoraFile(file, staging.shown)
        if parsed.needs_base:
            base = await self._configured.find(staging.meter, staging.reader)
            parsed = await self._parse(file, staging, base=base.folder)
        target = staging.scratch / MODEL_FOLDER
        await in_thread(check_left, target, parsed.files)
        return LocalModel(target, list(parsed.files), parsed.warnings)

    async def _parse(self, file: Path, staging: Staging, base: Path | None) -> ParsedModel:
        task = ParseModelFile(
            file=str(file),
            folder=str(staging.scratch / MODEL_FOLDER),
            base=str(base) if base else None,
            subfolder=None if hub_model(staging.source) else staging.reference.subfolder,
            shown=staging.shown,
        )
        limits = model_limits((await in_thread(file.stat)).st_size)
        return await staging.reader.parse(
            task, limits, ParsedModel, keepalive=staging.meter.keepalive
        )

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
        return StagedModel(prefix, size, model.warnings, links=selected)


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
