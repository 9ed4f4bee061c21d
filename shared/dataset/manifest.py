"""What a dataset is once it is checked: its pictures, and the report that ``/status`` shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, field

from shared.errors import Refused

SHOWN_CHARACTERS = 200
"""Characters of a file's name or of a reason in the report."""

T = TypeVar("T")

MANIFEST = "manifest.json"
"""The manifest's name inside a dataset folder."""

LISTED = 50
"""How many entries a list in the report shows; its count tells the rest."""

CAPTION_CHARACTERS = 2048
"""EveryDream2's bound of a caption, unless the user says another; CLIP sees about the first 300."""


class Picture(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One training image. Sizes are upright: after the EXIF orientation is applied."""

    file: str
    """Its name in the dataset folder, a safe one of our own making."""
    caption: str
    """Parts joined by ``", "``; the first is the main prompt, the others are tags."""
    width: int
    height: int
    name: str = ""
    """What the user calls it: its path inside the archive."""
    weights: tuple[float, ...] = ()
    """One per tag, for the shuffle; empty: all alike."""
    multiply: float = 1.0
    """How many times it is seen in an epoch, on average."""
    rating: float = 1.0
    cond_dropout: float | None = None
    """Its own probability; None: the job's."""
    flip_p: float | None = None
    shuffle_tags: bool | None = None
    loss_scale: float = 1.0
    batch_id: str = ""
    """The named batch it belongs to; empty: none."""
    main_parts: int = 1
    """How many of the caption's parts are the main prompt: more where it has commas of its own."""
    max_caption_length: int = CAPTION_CHARACTERS
    """Characters; tags that would overshoot are left off."""


class Manifest(Struct, frozen=True, kw_only=True):
    """All that the trainer needs to know besides the pixels."""

    pictures: tuple[Picture, ...]

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` into the folder."""
        (folder / MANIFEST).write_bytes(msgspec.json.encode(self))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read ``manifest.json`` from the folder.

        Raises:
            Refused: it is missing, or is not what :meth:`write` wrote.
        """
        try:
            return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError) as error:
            raise Refused(f"the dataset's {MANIFEST} cannot be read: {error}") from None


class Skipped(Struct, frozen=True, kw_only=True):
    """A file of the archive that training does without, by the user's name for it."""

    file: str
    reason: str

    @classmethod
    def of(cls, file: str, reason: object) -> Skipped:
        """An entry of bounded length, whatever the archive calls its files."""
        return cls(file=short(file), reason=short(str(reason)))


class Captions(Struct, frozen=True, kw_only=True):
    """Where the captions came from, in images; the lists below show some of them by name."""

    from_names: int = 0
    from_files: int = 0
    missing: int = 0
    """Neither a file nor the image's name says anything: trained on without words."""
    empty: int = 0
    """A caption file is there, but without words: another file or the name counts."""
    over_long: int = 0
    """More than :data:`shared.dataset.captions.MAX_TOKENS` tokens: the rest is not seen."""


class Duplicate(Struct, frozen=True, kw_only=True):
    """Two images with the same pixels."""

    file: str
    same_as: str


class Estimate(Struct, frozen=True, kw_only=True):
    """What the job will take, roughly."""

    minutes: float
    """Of training alone."""
    rate: str
    """Where the minutes come from: a measured speed and its GPU, or an assumption."""
    bytes: int
    """All that the job will write to the store, at most: the sum of what follows."""
    checkpoints: int
    """Intermediate ones."""
    checkpoint_bytes: int
    """Of all of these."""
    model_bytes: int
    """The last checkpoint and the diffusers folder."""
    resume_point_bytes: int
    """The two that are kept while training goes on."""


class Report(Struct, frozen=True, kw_only=True):
    """The pre-flight report: plain numbers and lists, each list cut to :data:`LISTED`."""

    images: int
    """Used for training."""
    held_out: int = 0
    """Not trained on: the validation measures its loss on them."""
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
    """``"512x512"`` (width x height): pictures to train on whose shape falls into it."""
    short_buckets: dict[str, int] = field(default_factory=dict)
    """Buckets whose last batch is filled with repeats: how many real images that batch has."""
    repeats: int = 0
    """Made in an epoch to fill these."""
    named_batches: dict[str, int] = field(default_factory=dict)
    """By ``batch_id``: the batches of an epoch that hold its images alone."""
    steps_per_epoch: int = 0
    """Of the first epoch."""
    steps: int = 0
    """Of all epochs."""
    megapixels: float = 0.0
    """Of all steps."""
    estimate: Estimate | None = None
    warnings: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """The report as JSON's own types."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain


def short(text: str) -> str:
    """A text as the report shows it; of a long path the end says more."""
    return text if len(text) <= SHOWN_CHARACTERS else f"...{text[-SHOWN_CHARACTERS:]}"


def first_names(names: Iterable[str]) -> list[str]:
    """Some names of a list, as a report shows them."""
    return [short(name) for name in islice(names, LISTED)]


def first_entries(items: Sequence[T]) -> list[T]:
    """The first entries of a list, as many as a report shows."""
    return list(items[:LISTED])
