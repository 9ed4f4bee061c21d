"""What a person changes in a dataset that was checked, before it is trained on."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from shared.dataset.captions import MAX_CHARACTERS
from shared.request import MAX_ITEMS, STORED

Caption = Annotated[str, Meta(max_length=MAX_CHARACTERS)]
EDITED = re.compile(rf"{STORED}jobs/(?P<check>[^/]+)/values/[0-9a-f]+\.json")
"""What a ``data_url`` becomes that is a check's id: the key of an :class:`EditedDataset`."""


class PictureEdit(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A change of one picture; what is left out stays as it was found."""

    caption: Caption | None = None
    """In place of the one that was found. None: that one."""
    use: bool = True
    """Whether it is trained on."""


class EditedDataset(Struct, frozen=True, kw_only=True):
    """A dataset to train on that a check has staged, as it was when the job was submitted."""

    dataset: str
    """Store prefix of its images, ``manifest.json`` and ``checked.json``."""
    edits: dict[int, PictureEdit]
    """By the picture's number, from 1 in the order of the manifest."""


class GivenEdit(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A change of the picture with this number; what is left out stays as it is."""

    number: Annotated[int, Meta(ge=1)]
    caption: Caption | UnsetType | None = UNSET
    """Null: the one that was found."""
    use: bool | UnsetType = UNSET


class DatasetEdits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Changes of a check's pictures."""

    pictures: Annotated[list[GivenEdit], Meta(min_length=1, max_length=MAX_ITEMS)]
