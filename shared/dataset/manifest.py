"""A checked dataset: the manifest of its images, and the report that ``/status`` shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, field

from shared.errors import Refused
from shared.words import counted

SHOWN_CHARACTERS = 200
"""Of a file's name or of a reason in the report."""

LINE_CHARACTERS = 600
"""Of a warning, and of a caption in the report."""

T = TypeVar("T")

MANIFEST = "manifest.json"
"""The manifest's name inside a dataset folder."""

MANIFEST_BYTES = 64 << 20
"""The most that it takes; whoever reads it reads no more."""

LISTED = 50
"""Entries in a list of the report; a count beside it has the full number."""

NAMED = 5
"""Files that a sentence names."""

CAPTION_CHARACTERS = 2048
"""EveryDream2's default limit of a caption; CLIP reads only about the first 300."""


class Picture(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One training image. Width and height are after the EXIF orientation is applied."""

    file: str
    """Its generated name in the dataset folder, which is safe."""
    caption: str
    """Parts joined by ``", "``; the first is the main prompt, the others are tags."""
    width: int
    height: int
    name: str = ""
    """The user's name for it: its path inside the archive."""
    weights: tuple[float, ...] = ()
    """One per tag, for shuffling; empty: all equal."""
    multiply: float = 1.0
    """How often it is trained on per epoch, on average."""
    rating: float = 1.0
    cond_dropout: float | None = None
    """Overrides the job's probability; None: the job's."""
    flip_p: float | None = None
    shuffle_tags: bool | None = None
    loss_scale: float = 1.0
    batch_id: str = ""
    """The named batch that it belongs to; empty: none."""
    main_parts: int = 1
    """How many of the caption's parts are the main prompt, which may contain commas."""
    max_caption_length: int = CAPTION_CHARACTERS
    """In characters; tags beyond it are left out."""
    mask: str = ""
    """The file of its mask in the dataset folder, grey and of its size; empty: it has none."""


class Manifest(Struct, frozen=True, kw_only=True):
    """All that the trainer needs besides the image files."""

    pictures: tuple[Picture, ...]

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` into the folder."""
        (folder / MANIFEST).write_bytes(msgspec.json.encode(self))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read ``manifest.json`` from the folder.

        Raises:
            Refused: it is missing, damaged or larger than a fetcher writes it.
        """
        try:
            with (folder / MANIFEST).open("rb") as file:
                data = file.read(MANIFEST_BYTES + 1)
            if len(data) > MANIFEST_BYTES:
                raise Refused(f"the dataset's {MANIFEST} takes more than {MANIFEST_BYTES} bytes")
            return msgspec.json.decode(data, type=cls)
        except (OSError, msgspec.DecodeError) as error:
            raise Refused(f"the dataset's {MANIFEST} cannot be read: {error}") from None


class Skipped(Struct, frozen=True, kw_only=True):
    """A file of the archive that is not used for training, by the user's name for it."""

    file: str
    reason: str

    @classmethod
    def of(cls, file: str, reason: object) -> Skipped:
        """An entry with a bounded length, however long the file's name is."""
        return cls(file=short(file), reason=short(str(reason)))


class Captions(Struct, frozen=True, kw_only=True):
    """Where the captions come from, in numbers of images; other lists name some of the images."""

    from_names: int = 0
    from_files: int = 0
    edited: int = 0
    """Written by a person who looked at the report of a check."""
    missing: int = 0
    """Neither a file nor the image's name has a caption: trained on with an empty one."""
    empty: int = 0
    """The caption file is empty: another file or the image's name is used."""
    over_long: int = 0
    """More than :data:`shared.dataset.captions.MAX_TOKENS` tokens: the rest is ignored."""


class Duplicate(Struct, frozen=True, kw_only=True):
    """Two images with the same pixels."""

    file: str
    same_as: str


class TrainedPicture(Struct, frozen=True, kw_only=True):
    """How one image is trained on."""

    number: int = 0
    """By which it is changed after a check, from 1; 0: an earlier version wrote the report."""
    file: str
    caption: str
    """As it is trained on, without shuffling; cut to :data:`LINE_CHARACTERS`."""
    source: str
    """Where the main prompt is from: ``name``, ``text``, ``yaml``, ``folder``, ``missing``, or
    ``edit``, if a person has changed it after a check."""
    files: list[str] = field(default_factory=list)
    """The caption and option files that apply to it, the nearest first."""
    bucket: str
    """The size at which it is trained on, such as ``"512x512"``."""
    max_caption_length: int = CAPTION_CHARACTERS
    """In characters; tags beyond it are left out."""
    multiply: float = 1.0
    """How often it is trained on per epoch, on average."""
    remarks: list[str] = field(default_factory=list)
    """Whatever of it is not used as it was given."""


class Estimate(Struct, frozen=True, kw_only=True):
    """A rough estimate of the job's time and storage."""

    minutes: float | None
    """Of training alone; null: not known yet."""
    rate: str
    """What the minutes are based on, as a measured speed and its GPU, or why there are none."""
    bytes: int
    """At most what the job will write to the store: the sum of the following."""
    checkpoints: int
    """Intermediate ones."""
    checkpoint_bytes: int
    """Of all intermediate checkpoints."""
    model_bytes: int
    """The last checkpoint and the diffusers folder."""
    resume_point_bytes: int
    """Of the two that are kept during training."""


class Report(Struct, frozen=True, kw_only=True):
    """The pre-flight report; each list is cut to :data:`LISTED` entries."""

    images: int
    """Used for training."""
    held_out: int = 0
    """Not trained on; used for the validation loss."""
    captions: Captions
    missing_captions: list[str] = field(default_factory=list)
    empty_captions: list[str] = field(default_factory=list)
    over_long_captions: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    skipped_count: int = 0
    undersized: list[str] = field(default_factory=list)
    """Smaller than their bucket: they are enlarged."""
    undersized_count: int = 0
    duplicates: list[Duplicate] = field(default_factory=list)
    duplicates_count: int = 0
    buckets: dict[str, int] = field(default_factory=dict)
    """By bucket, such as ``"512x512"`` (width x height): the number of training images."""
    short_buckets: dict[str, int] = field(default_factory=dict)
    """Buckets whose last batch is filled with repeats: how many real images that batch has."""
    repeats: int = 0
    """Images repeated in an epoch to fill these batches."""
    named_batches: dict[str, int] = field(default_factory=dict)
    """By ``batch_id``: batches of an epoch with images of this id only."""
    steps_per_epoch: int = 0
    """Of the first epoch."""
    steps: int = 0
    """Of all epochs."""
    megapixels: float = 0.0
    """Of all steps."""
    pictures: list[TrainedPicture] = field(default_factory=list)
    """Those with remarks come first, then those with a multiplier."""
    estimate: Estimate | None = None
    warnings: list[str] = field(default_factory=list)
    """Whatever the job does not take as it was given; the last line counts what is cut off."""
    warnings_count: int = 0

    def plain(self) -> dict[str, Any]:
        """The report as JSON types."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain


def is_inconspicuous(picture: TrainedPicture) -> tuple[bool, bool]:
    """A key to sort by: pictures with remarks come first, then those with a multiplier."""
    return not picture.remarks, picture.multiply == 1


def short(text: str) -> str:
    """A text as the report shows it; a long one keeps its end, which says more in a path."""
    return text if len(text) <= SHOWN_CHARACTERS else f"...{text[-SHOWN_CHARACTERS:]}"


def line(text: str) -> str:
    """A sentence as the report shows it; a long one keeps its beginning."""
    return text if len(text) <= LINE_CHARACTERS else f"{text[:LINE_CHARACTERS]}..."


def first_lines(lines: Sequence[str], count: int | None = None) -> list[str]:
    """The first sentences of a list; if there are more, the last one says how many.

    ``count`` is how many there are, if ``lines`` are only the first.
    """
    count = len(lines) if count is None else count
    shown = [line(each) for each in lines[: LISTED if count <= LISTED else LISTED - 1]]
    more = count - len(shown)
    rest = counted(more, "more warning")
    return [*shown, f"and {rest}; mend these, and check again"] if more else shown


def named(names: Sequence[str], count: int | None = None) -> str:
    """The first few of some names, and how many there are more.

    ``count`` is how many there are, if ``names`` are only the first.
    """
    count = len(names) if count is None else count
    shown = ", ".join(short(name) for name in names[:NAMED])
    return shown if count <= NAMED else f"{shown} and {count - NAMED} more"


def first_names(names: Iterable[str]) -> list[str]:
    """The first names of a list, as the report shows them."""
    return [short(name) for name in islice(names, LISTED)]


def first_entries(items: Sequence[T]) -> list[T]:
    """The first entries of a list, as many as the report shows."""
    return list(items[:LISTED])
