"""What a dataset is once it is checked: its pictures, and the report that ``/status`` shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, field

from shared.errors import Refused

SHOWN = 200
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
    """Where the captions came from, in images."""

    from_names: int = 0
    from_files: int = 0
    missing: int = 0


class Report(Struct, frozen=True, kw_only=True):
    """The pre-flight report: plain numbers and lists, each list cut to :data:`LISTED`."""

    images: int
    """Used for training."""
    captions: Captions
    skipped: list[Skipped] = field(default_factory=list)
    skipped_count: int = 0
    undersized: list[str] = field(default_factory=list)
    """Smaller than their bucket: they are enlarged."""
    undersized_count: int = 0
    buckets: dict[str, int] = field(default_factory=dict)
    """``"512x512"`` (width x height): pictures whose shape falls into it."""
    short_buckets: dict[str, int] = field(default_factory=dict)
    """Buckets whose last batch is filled with repeats: how many real images that batch has."""
    steps_per_epoch: int = 0
    warnings: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """The report as JSON's own types."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain


def short(text: str) -> str:
    """A text as the report shows it; of a long path the end says more."""
    return text if len(text) <= SHOWN else f"...{text[-SHOWN:]}"


def listed(items: Sequence[T]) -> list[T]:
    """The first entries of a list, as many as a report shows."""
    return list(items[:LISTED])
