"""Masks of pictures: ``NAME_mask.png`` beside ``NAME.jpg``, or the picture's own transparency.

White counts fully, black as little as ``unmasked_weight`` says. Each is stored anew as a grey PNG
of its picture's size.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from PIL import Image

from services.fetcher.parsing.datasets.archive import ImageFile
from shared.dataset.buckets import Size
from shared.disk import SPARE, require_room, translate_disk_full

SUFFIX = "_mask"
"""Of a mask's name, before its type."""
WHITE = 255


class Masks:
    """Which files of an archive are masks, and of which pictures."""

    def __init__(self, images: Iterable[ImageFile]) -> None:
        images = list(images)
        pictures = {_stem(each) for each in images if not _is_named_so(each)}
        self.pictures: list[ImageFile] = []
        self.skipped: list[ImageFile] = []
        """Masks of nothing, and second ones of a picture."""
        self._masks: dict[str, ImageFile] = {}
        for each in images:
            of = _stem(each).removesuffix(SUFFIX)
            if not _is_named_so(each):
                self.pictures.append(each)
            elif of in pictures and of not in self._masks:
                self._masks[of] = each
            else:
                self.skipped.append(each)

    def of(self, picture: ImageFile) -> ImageFile | None:
        """The file of its mask; None: it has none."""
        return self._masks.get(_stem(picture))


def like_masks(images: Iterable[ImageFile]) -> list[str]:
    """The names of those that would be masks, if masks were asked for."""
    images = list(images)
    stems = {_stem(each) for each in images}
    named = (each for each in images if _is_named_so(each))
    return [each.name for each in named if _stem(each).removesuffix(SUFFIX) in stems]


def _stem(image: ImageFile) -> str:
    """Its path without the type; a mask's suffix in small letters."""
    stem = PurePosixPath(image.name).with_suffix("").as_posix()
    return stem[: -len(SUFFIX)] + SUFFIX if stem.lower().endswith(SUFFIX) else stem


def _is_named_so(image: ImageFile) -> bool:
    return _stem(image).endswith(SUFFIX)


def store_mask(mask: Image.Image, size: Size, path: Path) -> str:
    """Store it as a grey PNG of the picture's size; what there is to say of it."""
    grey = mask.convert("L")
    remarks = []
    if grey.size != size:
        remarks.append(f"its mask of {grey.width} x {grey.height} is scaled to its size")
        grey = grey.resize(size)
    doing = f"store {path.name}"
    require_room(path.parent, size.width * size.height + SPARE, doing)
    with translate_disk_full(doing):
        grey.save(path, "PNG")
    weighed = enumerate(grey.histogram())
    share = sum(value * count for value, count in weighed) / (WHITE * size.width * size.height)
    return "; ".join([f"its mask keeps {share:.0%} of it", *remarks])
