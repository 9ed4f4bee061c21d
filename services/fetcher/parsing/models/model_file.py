"""Open a model file: a zipped diffusers folder, or all weights in one file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

from services.fetcher.model_files import EXPECTED
from services.fetcher.parsing.models.diffusers_folder import (
    OpenedModel,
    choose_files,
    names_in,
    validate_diffusers_folder,
)
from services.fetcher.parsing.models.lora import is_lora
from services.fetcher.parsing.models.pickle_reader import is_checkpoint
from services.fetcher.parsing.models.safetensors_file import looks_like_safetensors, read_header
from services.fetcher.parsing.models.single_file import stage_checkpoint, stage_safetensors
from services.fetcher.parsing.zip_reader import (
    Member,
    UnusableEntry,
    checked_members,
    open_zip,
    write_member,
)
from shared.errors import Refused

MAX_RATIO = 50
"""Unpacked to packed, of a zipped model; weights compress badly."""

Reading = Callable[[str], None]
"""Called with each file's name, before it is opened."""


class IsLora(Exception):
    """The file is a LoRA, which is read beside its base model."""


def open_model(
    file: Path, target: Path, *, base: Path | None, subfolder: str, shown: str, reading: Reading
) -> OpenedModel:
    """Write a model into the new folder ``target``.

    The content decides the format, not the name. ``base`` is a diffusers folder, whose tokenizer a
    single file gets.

    Raises:
        IsLora: it is one.
        NeedsBase: it is a single file that can be used, and ``base`` is None.
        Refused: it cannot be trained on; names ``shown``.
    """
    reading(shown)
    unused = [f"hf_repo_subfolder {subfolder} has no effect: {shown} is a single file"]
    if looks_like_safetensors(file):
        if is_lora(read_header(file, shown)):
            raise IsLora
        opened = _stage_single(partial(stage_safetensors, file), target, base, shown, reading)
        return opened._replace(warnings=opened.warnings + unused * bool(subfolder))
    with _open_zip(file, shown) as zipped:
        if not is_checkpoint(zipped):
            members = _members(zipped, file, subfolder, shown)
            _unpack(zipped, members, target, shown, reading)
            return validate_diffusers_folder(target, shown, reading)
        checked_members(zipped, file, shown, ratio=MAX_RATIO)
        opened = _stage_single(partial(stage_checkpoint, zipped), target, base, shown, reading)
        return opened._replace(warnings=opened.warnings + unused * bool(subfolder))


def _stage_single(
    stage: Callable[..., list[str]], target: Path, base: Path | None, shown: str, reading: Reading
) -> OpenedModel:
    warnings = stage(base, target, shown, partial(reading, shown))
    return OpenedModel(names_in(target), warnings)


def _open_zip(file: Path, shown: str) -> zipfile.ZipFile:
    try:
        return open_zip(file, shown)
    except Refused as error:
        raise Refused(
            f"{error}; a model must be a zipped diffusers folder, a .safetensors file, or a .ckpt"
            " file in torch's zip format (torch 1.6 or later)"
        ) from None


def _members(zipped: zipfile.ZipFile, file: Path, subfolder: str, shown: str) -> dict[str, Member]:
    """The entries of a diffusers folder, which may be anywhere in the zip, by name inside it."""
    members = {
        PurePosixPath(member.name): member
        for member in checked_members(zipped, file, shown, ratio=MAX_RATIO)
    }
    root = _find_root(list(members), subfolder, shown)
    return {
        path.relative_to(root).as_posix(): member
        for path, member in members.items()
        if path.is_relative_to(root)
    }


def _unpack(
    zipped: zipfile.ZipFile,
    members: Mapping[str, Member],
    target: Path,
    shown: str,
    reading: Reading,
) -> None:
    for name in choose_files(members.keys(), shown):
        reading(name)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            write_member(zipped, members[name], target / name)
        except UnusableEntry as error:
            raise Refused(f"{shown}: {name}: {error}") from None


def _find_root(paths: list[PurePosixPath], subfolder: str, shown: str) -> PurePosixPath:
    """The least deep folder with a ``model_index.json``; its path must end in the subfolder."""
    wanted = PurePosixPath(subfolder).parts
    roots = [path.parent for path in paths if path.name == "model_index.json"]
    matching = [root for root in roots if root.parts[len(root.parts) - len(wanted) :] == wanted]
    if not matching:
        where = f" in a folder {'/'.join(wanted)}" if wanted else ""
        raise Refused(f"{shown}: no model_index.json{where} in the zip; {EXPECTED}")
    return min(matching, key=lambda root: (len(root.parts), root))
