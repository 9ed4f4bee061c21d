"""Write the pages on which people look at every picture of a dataset, and previews."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace
from PIL import Image

from shared.dataset.manifest import Picture, TrainedPicture
from shared.dataset.pages import PAGE, PREVIEWS, page_name, page_of, preview_name
from shared.dataset.pixels import as_trained, open_image
from shared.disk import translate_disk_full
from shared.thumbnail import SIDE, shrink, write_thumbnail

VEIL = 0.75
"""How much of what a mask leaves out is grey in a preview."""
QUALITY, EFFORT = 70, 0
"""Of a preview: some 8 KB. The least effort takes three quarters of the time, and a fifth more."""


def write_pages(folder: Path, pictures: Sequence[TrainedPicture]) -> list[str]:
    """Write every page into a folder; returns their names."""
    firsts = range(0, len(pictures), PAGE)
    names = [page_name(number) for number in range(1, len(firsts) + 1)]
    with translate_disk_full("write the report on the pictures"):
        for name, first in zip(names, firsts, strict=True):
            (folder / name).write_bytes(msgspec.json.encode(pictures[first : first + PAGE]))
    return names


def add_remark(folder: Path, numbers: Collection[int], remark: str) -> None:
    """Add a remark to some pictures on pages that are written; they are counted from 1."""
    for page in {page_of(number) for number in numbers}:
        file = folder / page_name(page)
        found = msgspec.json.decode(file.read_bytes(), type=list[TrainedPicture])
        first = (page - 1) * PAGE + 1
        pictures = [
            replace(each, remarks=[*each.remarks, remark]) if number in numbers else each
            for number, each in enumerate(found, start=first)
        ]
        file.write_bytes(msgspec.json.encode(pictures))


class Previews:
    """Draws the first pictures small, into a folder."""

    def __init__(self, folder: Path) -> None:
        self.names: list[str] = []
        """Of the files, in the order of the pictures."""
        self._folder = folder

    @property
    def full(self) -> bool:
        return len(self.names) == PREVIEWS

    def draw(self, picture: Image.Image, mask: Path | None) -> None:
        """Draw the next picture, which becomes as small itself."""
        shrink(picture)
        if mask:
            picture = _veiled(picture, mask)
        self.names.append(preview_name(len(self.names) + 1))
        with translate_disk_full("draw the previews"):
            write_thumbnail(picture, self._folder / self.names[-1], quality=QUALITY, effort=EFFORT)


def write_previews(
    folder: Path, dataset: Path, pictures: Sequence[Picture], reading: Callable[[str], None]
) -> list[str]:
    """Draw a dataset's first pictures; returns the files' names. ``reading`` gets the pictures'."""
    previews = Previews(folder)
    for picture in pictures[:PREVIEWS]:
        reading(picture.name)
        with open_image(dataset / picture.file) as image:
            image.draft("RGB", (SIDE, SIDE))  # a JPEG is decoded small
            small = as_trained(image)
        previews.draw(small, dataset / picture.mask if picture.mask else None)
    return previews.names


def _veiled(picture: Image.Image, mask: Path) -> Image.Image:
    """With what a mask leaves out in grey."""
    with open_image(mask) as opened:
        counted = opened.convert("L").resize(picture.size)
    grey = Image.new("RGB", picture.size, "grey")
    return Image.composite(picture, Image.blend(picture, grey, VEIL), counted)
