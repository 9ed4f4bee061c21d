"""Put LoRAs on their base model: a folder of the job, which shares the base model's files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from services.fetcher.limits import model_limits
from services.fetcher.models.stored_model import StagedModel
from services.fetcher.order import ParsedLora, ParseLora
from services.fetcher.parser import Reader, check_left
from shared.concurrency import in_thread
from shared.ports import ObjectStore
from shared.storage.folders import key_of, upload_folder
from shared.storage.manifest import LORA, LORA_SHAPE
from shared.storage.models import shared_files

CONFIGS = ("unet/config.json", "text_encoder/config.json")
"""They give the shapes of a model's layers."""


class LoraFile(NamedTuple):
    """A LoRA's file that nobody has read yet."""

    path: Path
    shown: str
    """In messages."""


def file_of(index: int) -> str:
    """The name of a model's LoRA in its folder, from 0."""
    return LORA if index == 0 else f"lora_{index + 1}.safetensors"


async def put_on_base(
    store: ObjectStore,
    base: StagedModel,
    loras: Sequence[LoraFile],
    prefix: str,
    *,
    scratch: Path,
    reader: Reader,
    keepalive: Callable[[], None],
) -> StagedModel:
    """Store a folder under ``prefix`` with the base model's files, and the LoRAs after its own.

    ``scratch`` is a folder without the names ``base``, ``own`` and ``read-0``, ``read-1`` ….

    Raises:
        Refused: a LoRA cannot be read, or is for another model; names it.
    """
    shared = await shared_files(store, base.prefix)
    configs = scratch / "base"
    for file in shared:
        if file.name in CONFIGS:
            await store.download(key_of(base.prefix, file), configs / file.name)
    own = scratch / "own"
    await in_thread(own.mkdir)
    shape, warnings = base.lora, list(base.warnings)
    for index, lora in enumerate(loras, start=base.loras):
        read = await _read(lora, configs, scratch / f"read-{index}", reader, keepalive)
        await in_thread((scratch / f"read-{index}" / LORA).rename, own / file_of(index))
        shape = shape or read.shape
        warnings += read.warnings
    if base.lora is None:
        await in_thread((own / LORA_SHAPE).write_bytes, msgspec.json.encode(shape))
    await upload_folder(store, own, prefix, stored=shared, keepalive=keepalive)
    return base._replace(
        prefix=prefix,
        lora=shape,
        loras=base.loras + len(loras),
        lora_base=base.lora_base or base.prefix,
        warnings=tuple(warnings),
    )


async def _read(
    lora: LoraFile, base: Path, target: Path, reader: Reader, keepalive: Callable[[], None]
) -> ParsedLora:
    """Have the child check the file, and write it into the new folder ``target``."""
    task = ParseLora(file=str(lora.path), folder=str(target), base=str(base), shown=lora.shown)
    limits = model_limits((await in_thread(lora.path.stat)).st_size)
    read = await reader.parse(task, limits, ParsedLora, keepalive=keepalive)
    await in_thread(check_left, target, [LORA])
    return read
