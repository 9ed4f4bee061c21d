"""The deployment's base model as a file on the local disk.

It becomes a folder once, which is kept in the home folder for as long as the file does not change.
A single file has no tokenizer. It gets the one beside it, or else that of a model with the same
vocabulary: ``tiny``, or Stable Diffusion 1.5 on the hub, of which only the small files are fetched.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import msgspec
import structlog

from services.fetcher.limits import model_limits
from services.fetcher.model_files import VOCABULARIES
from services.fetcher.order import ParsedModel, ParseModelFile
from services.fetcher.parser import Reader, check_left
from services.fetcher.progress_meter import ProgressMeter
from shared.concurrency import in_thread
from shared.errors import Passing, Refused
from shared.scratch import scratch_folder

CONVERTED = "base-model"
"""In the home folder: the folder with the one converted file, by the file's identity."""
CONVERSION = 1
"""Another number makes every deployment convert its file anew."""
RESULT, FOLDER = "parsed.json", "model"
NEW, OLD = "new", "old"
"""In the scratch folder: what is to be kept, and what is no longer."""

log = structlog.get_logger()

FindTokenizer = Callable[[int], Awaitable[Path]]
"""A model's folder with a tokenizer of so many words."""


class LocalFile:
    """Converts one file."""

    def __init__(self, file: Path, home: Path, find_tokenizer: FindTokenizer) -> None:
        self._file = file
        self._home = home
        self._find_tokenizer = find_tokenizer
        self._shown = f"EVERYDREAM_BASE_MODEL ({file})"

    async def folder(self, meter: ProgressMeter, reader: Reader) -> tuple[Path, ParsedModel]:
        """The model's folder, converted unless it is there already.

        Raises:
            Refused: the file cannot be trained on.
            Passing: there is no tokenizer for it yet, or the disk has no room.
        """
        identity = await in_thread(_identity, self._file)
        kept = self._home / CONVERTED / identity
        if (parsed := await in_thread(_read, kept)) is None:
            async with scratch_folder(self._home / "scratch", CONVERTED) as scratch:
                new = scratch / NEW
                parsed = await self._convert(new / FOLDER, meter, reader)
                if await in_thread(_identity, self._file) != identity:
                    raise Passing(f"{self._shown}: it has changed while it was read")
                parsed = await in_thread(_keep, new, parsed, kept)
        return kept / FOLDER, parsed

    async def _convert(self, target: Path, meter: ProgressMeter, reader: Reader) -> ParsedModel:
        base = _beside(self._file)
        parsed = await self._parse(target, base, meter, reader)
        if parsed.is_lora:
            raise Refused(
                f"{self._shown}: a LoRA is no base model: jobs name it as resume_ckpt_url or model"
            )
        if parsed.needs_base:
            base = await self._base_of(parsed.vocab_size)
            parsed = await self._parse(target, base, meter, reader)
        await in_thread(check_left, target, parsed.files)
        return parsed

    async def _base_of(self, words: int) -> Path:
        try:
            return await self._find_tokenizer(words)
        except (Refused, Passing) as error:
            raise type(error)(
                f"{self._shown}: its tokenizer is neither beside it, in a folder tokenizer/ as in a"
                f" diffusers folder, nor on the hub ({error})"
            ) from None

    async def _parse(
        self, target: Path, base: Path | None, meter: ProgressMeter, reader: Reader
    ) -> ParsedModel:
        task = ParseModelFile(
            file=str(self._file),
            folder=str(target),
            base=str(base) if base else None,
            subfolder=None,
            shown=self._shown,
        )
        limits = model_limits((await in_thread(self._file.stat)).st_size)
        return await reader.parse(task, limits, ParsedModel, keepalive=meter.keepalive)


def _identity(file: Path) -> str:
    """Another content of the file has another."""
    at = file.stat()
    text = f"{CONVERSION} {file.resolve()} {at.st_ino} {at.st_size} {at.st_mtime_ns}"
    return sha256(text.encode()).hexdigest()[:32]


def _beside(file: Path) -> Path | None:
    """The file's folder, if it has a tokenizer like a diffusers folder; None: it has none."""
    has = any(all((file.parent / name).is_file() for name in names) for names in VOCABULARIES)
    return file.parent if has else None


def _read(kept: Path) -> ParsedModel | None:
    """What an earlier conversion has left; None: nothing that can be used."""
    try:
        parsed = msgspec.json.decode((kept / RESULT).read_bytes(), type=ParsedModel)
        check_left(kept / FOLDER, parsed.files)
    except (OSError, msgspec.DecodeError, Passing):
        return None
    return parsed


def _keep(new: Path, parsed: ParsedModel, kept: Path) -> ParsedModel:
    """Move a converted model to where it is kept, in place of all earlier ones; what is there then.

    Another fetcher of the same home may have been faster: its model stays, for it is in use.
    """
    (new / RESULT).write_bytes(msgspec.json.encode(parsed))
    with _locked(kept.parent):
        if there := _read(kept):
            return there
        old = new.with_name(OLD)  # removed with the scratch folder
        old.mkdir()
        for earlier in list(kept.parent.iterdir()):
            earlier.rename(old / earlier.name)
        new.rename(kept)
    log.info("base_model_converted", folder=str(kept))
    return parsed


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other processes from moving what is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
