"""Masks of pictures: ``NAME_mask.png`` beside ``NAME.jpg``, or the picture's own transparency.

White counts fully, black as little as ``unmasked_weight`` says. Each is stored anew as a grey PNG
of its picture's size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

from services.fetcher.parsing.datasets.archive import ImageFile
from shared.dataset.buckets import Size
from shared.dataset.manifest import named
from shared.disk import SPARE, require_room, translate_disk_full
from shared.words import counted

SUFFIX = "_mask"
"""Of a mask's name, before its type."""
WHITE = 255
HARDLY_ANYTHING = 0.01
"""Of a picture: nobody masks out more on purpose."""
ALIKE = 0.02
"""Shapes whose sides' ratios differ by less are the same but for rounding."""


class Masks:
    """Which files of an archive are masks, and of which pictures."""

    def __init__(self, images: Iterable[ImageFile]) -> None:
        images = list(images)
        self.pictures = [each for each in images if not _is_named_so(each)]
        self.files = [each for each in images if _is_named_so(each)]
        """Of all masks, as they came."""
        self.skipped: list[ImageFile] = []
        """Masks of nothing, and second ones of a picture."""
        self._masks: dict[str, ImageFile] = {}
        stems = _Stems(self.pictures)
        for each in self.files:
            of = stems.masked_by(each)
            if of is None or of in self._masks:
                self.skipped.append(each)
            else:
                self._masks[of] = each

    def of(self, picture: ImageFile) -> ImageFile | None:
        """The file of its mask, perhaps of other pictures of this name, too; None: it has none."""
        return self._masks.get(_stem(picture))


def like_masks(images: Iterable[ImageFile]) -> list[str]:
    """The names of those that would be masks, if masks were asked for."""
    images = list(images)
    stems = _Stems(images)
    return [each.name for each in images if _is_named_so(each) and stems.masked_by(each)]


class _Stems:
    """The paths of pictures without their types."""

    def __init__(self, pictures: Iterable[ImageFile]) -> None:
        self._folded: defaultdict[str, set[str]] = defaultdict(set)
        for each in pictures:
            self._folded[_stem(each).casefold()].add(_stem(each))

    def masked_by(self, mask: ImageFile) -> str | None:
        """What a mask belongs to: that of its name, else the only one in other capitals."""
        stem = _stem(mask)[: -len(SUFFIX)]
        alike = self._folded.get(stem.casefold(), set())
        return stem if stem in alike else next(iter(alike)) if len(alike) == 1 else None


def _stem(image: ImageFile) -> str:
    """Its path without the type."""
    return PurePosixPath(image.name).with_suffix("").as_posix()


def _is_named_so(image: ImageFile) -> bool:
    return _stem(image).lower().endswith(SUFFIX)


class StoredMask(NamedTuple):
    """What is found out about a mask."""

    kept: float
    """Its share of the picture, 0 to 1."""
    remark: str


def store_mask(
    mask: Image.Image, size: Size, path: Path, *, turn: Image.Transpose | None
) -> StoredMask:
    """Store it as a grey PNG of the picture's size.

    ``turn`` is what sets the picture upright by its EXIF orientation; None: it was upright. A mask
    that lies across it was drawn on the picture as it is stored.
    """
    grey = mask.convert("L")
    remarks = []
    if turn is not None and _lies_across(grey, size):
        grey = grey.transpose(turn)
        remarks.append("its mask is turned as it is itself, by its EXIF orientation")
    if grey.size != size:
        width, height = grey.size
        is_stretched = abs(width * size.height / (height * size.width) - 1) > ALIKE
        how = "of another shape, and stretched" if is_stretched else "scaled"
        remarks.append(f"its mask of {width} x {height} is {how} to its size")
        grey = grey.resize(size)
    doing = f"store {path.name}"
    require_room(path.parent, size.width * size.height + SPARE, doing)
    with translate_disk_full(doing):
        grey.save(path, "PNG")
    weighed = enumerate(grey.histogram())
    kept = sum(value * count for value, count in weighed) / (WHITE * size.width * size.height)
    return StoredMask(kept, "; ".join([f"its mask keeps {kept:.0%} of it", *remarks]))


def _lies_across(mask: Image.Image, size: Size) -> bool:
    return (mask.width - mask.height) * (size.width - size.height) < 0


def warnings_of(kept: dict[str, float]) -> Iterator[str]:
    """Of masks that hardly are any; ``kept`` is each one's share, by the picture's name."""
    if kept and all(share == 1 for share in kept.values()):
        yield "masked_loss has no effect: every mask is white all over"
    if black := [name for name, share in kept.items() if share < HARDLY_ANYTHING]:
        yield (
            f"{counted(len(black), 'mask')} of hardly anything but black, which counts"
            f" unmasked_weight alone (white counts fully): {named(black)}"
        )
