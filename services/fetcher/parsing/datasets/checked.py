"""A checked dataset: its pictures, and what there is to say of each, before it is planned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from services.fetcher.parsing.datasets import sidecars
from shared.dataset.captions import has_empty_tag
from shared.dataset.manifest import LISTED, Captions, Duplicate, Picture, Skipped
from shared.dataset.remarks import Doubt, summaries
from shared.errors import Refused

CHECKED = "checked.json"
"""The file's name inside a dataset folder."""

Source = Literal[sidecars.Source, "edit"]
"""Where a main prompt is from; the last: from a person who looked at the report."""


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
        return [
            picture
            for picture, notes in every
            if doubt in notes.doubts
            or (doubt == "empty_tag" and has_empty_tag(picture.caption, picture.main_parts))
        ]

    def summaries(self) -> Iterator[str]:
        """One line for each kind of trouble with images and captions."""
        return summaries(
            [(each.file, each.reason) for each in self.skipped[:LISTED]],
            len(self.skipped),
            lambda doubt: [(each.name, each.caption) for each in self.doubtful(doubt)],
        )

    def write(self, folder: Path) -> None:
        (folder / CHECKED).write_bytes(msgspec.json.encode(self))

    @classmethod
    def read(cls, folder: Path) -> CheckedDataset:
        """Raises Refused: it is missing or damaged."""
        try:
            return msgspec.json.decode((folder / CHECKED).read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError) as error:
            raise Refused(f"the dataset's {CHECKED} cannot be read: {error}") from None
