"""A checked dataset: its pictures, and what there is to say of each, before it is planned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from services.fetcher.parsing.datasets import sidecars
from services.fetcher.parsing.datasets.sidecar_values import MAX_CAPTION_CHARACTERS
from shared.dataset.manifest import Captions, Duplicate, Picture, Skipped, named, short
from shared.errors import Refused
from shared.words import counted

CHECKED = "checked.json"
"""The file's name inside a dataset folder."""

Source = Literal[sidecars.Source, "edit"]
"""Where a main prompt is from; the last: from a person who looked at the report."""
Doubt = Literal["no_caption", "empty_file", "camera_name", "unreadable_name", "cut"]


class Notes(Struct, frozen=True, kw_only=True):
    """What the report says of one picture besides its bucket."""

    source: Source
    files: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    doubts: tuple[Doubt, ...] = ()
    """About its caption."""


class CheckedDataset(Struct, frozen=True, kw_only=True):
    """The images that can be trained on, and what the report says of the others."""

    pictures: list[Picture]
    notes: list[Notes]
    """One for each picture."""
    skipped: list[Skipped]
    duplicates: list[Duplicate]
    warnings: list[str]
    """About the caption files."""

    @property
    def captions(self) -> Captions:
        sources = Counter(note.source for note in self.notes)
        return Captions(
            from_names=sources["name"],
            from_files=sources["text"] + sources["yaml"] + sources["folder"],
            edited=sources["edit"],
            missing=sources["missing"],
            empty=len(self.doubtful("empty_file")),
        )

    def doubtful(self, doubt: Doubt) -> list[Picture]:
        """The pictures of whose captions there is this doubt."""
        every = zip(self.pictures, self.notes, strict=True)
        return [picture for picture, notes in every if doubt in notes.doubts]

    def summaries(self) -> Iterator[str]:
        """One line for each kind of trouble with images and captions."""
        if self.skipped:
            files = [f"{each.file} ({each.reason})" for each in self.skipped]
            yield f"not used, {counted(len(files), 'file')}: {named(files)}"
        if names := _with_captions(self.doubtful("camera_name")):
            yield (
                f"{counted(len(names), 'caption')} from a name that a camera or a counter"
                " gave: the model learns that word, not what is shown. Name the pictures by what"
                " they show (a photo of ted_1.jpg), or put a text beside each (IMG_1.txt for"
                f" IMG_1.jpg): {named(names)}"
            )
        if names := _with_captions(self.doubtful("unreadable_name")):
            yield (
                f"{counted(len(names), 'caption')} from a name in an unknown encoding,"
                " perhaps garbage; make the zip with names in UTF-8, or put a text beside each"
                f" picture: {named(names)}"
            )
        if cut := [picture.name for picture in self.doubtful("cut")]:
            yield f"{counted(len(cut), 'caption')} cut to max_caption_length: {named(cut)}"

    def write(self, folder: Path) -> None:
        (folder / CHECKED).write_bytes(msgspec.json.encode(self))

    @classmethod
    def read(cls, folder: Path) -> CheckedDataset:
        """Raises Refused: it is missing or damaged."""
        try:
            return msgspec.json.decode((folder / CHECKED).read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError) as error:
            raise Refused(f"the dataset's {CHECKED} cannot be read: {error}") from None


def same_pixels(name: str) -> str:
    """The remark on a picture that is the same as an earlier one."""
    return f"the same pixels as {short(name)}"


def remark_on(doubt: Doubt, picture: Picture) -> str:
    """What the report says of a doubt, beside the picture."""
    match doubt:
        case "no_caption":
            return "no caption: trained on without words"
        case "empty_file":
            return "its caption file is empty"
        case "camera_name":
            return "its caption is the name that a camera or a counter gave"
        case "unreadable_name":
            return "its name is in an unknown encoding, and its caption may be garbage"
        case "cut":
            limit = min(picture.max_caption_length, MAX_CAPTION_CHARACTERS)
            return f"its caption is cut to {counted(limit, 'character')}"


def _with_captions(pictures: Sequence[Picture]) -> list[str]:
    return [f"{short(picture.name)} ({picture.caption[:40]!r})" for picture in pictures]
