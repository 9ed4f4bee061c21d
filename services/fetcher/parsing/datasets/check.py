"""Check an unpacked archive's images, one by one: decode each, and find its caption."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace
from PIL import Image

from services.fetcher.limits import BASE_STORED_BYTES
from services.fetcher.parsing.datasets.archive import IMAGES, ImageFile, Unpacked
from services.fetcher.parsing.datasets.camera_names import is_camera_name
from services.fetcher.parsing.datasets.checked import CheckedDataset, Notes
from services.fetcher.parsing.datasets.image_check import (
    UnusableImage,
    decoded_mask,
    inspect,
    transparency,
)
from services.fetcher.parsing.datasets.masks import (
    SUFFIX,
    Masks,
    like_masks,
    store_mask,
    warnings_of,
)
from services.fetcher.parsing.datasets.pages import Previews
from services.fetcher.parsing.datasets.sidecar_values import ImageOptions
from services.fetcher.parsing.datasets.sidecars import ImageTexts, Sidecars
from shared.dataset.buckets import Size
from shared.dataset.captions import MAX_CHARACTERS, SEPARATOR, bounded
from shared.dataset.manifest import (
    CAPTION_CHARACTERS,
    Duplicate,
    Picture,
    Skipped,
    line,
    named,
    short,
)
from shared.dataset.remarks import Doubt, same_pixels
from shared.errors import Refused
from shared.words import counted

T = TypeVar("T")

REASONS_SHOWN = 3
FILES_SHOWN = 10
"""Of the caption files of one picture."""


class Checker:
    """Checks images one by one."""

    def __init__(
        self,
        unpacked: Unpacked,
        folder: Path,
        masks: Masks | None = None,
        previews: Previews | None = None,
    ) -> None:
        """``masks`` and ``previews`` are None where none are asked for."""
        self._previews = previews
        self.pictures: list[Picture] = []
        self.skipped = list(unpacked.skipped)
        self._masks = masks
        self._broken_masks: dict[str, Skipped] = {}
        self._kept_by_masks: dict[str, float] = {}
        """By the picture's name: its share."""
        self.pixels = 0
        """Of all images that were decoded."""
        self.stored_bytes = 0
        """Of pictures and masks that are stored anew."""
        self._folder = folder
        self._sidecars = Sidecars(
            unpacked.texts,
            (image.name for image in (masks.pictures if masks else unpacked.images)),
            (each.file for each in unpacked.skipped),
        )
        self._notes: list[Notes] = []
        self._duplicates: list[Duplicate] = []
        self._first: dict[str, str] = {}
        """By fingerprint: the name of the first image with these pixels."""

    def check(self, image: ImageFile) -> None:
        """Decode an image and find its caption; an unusable image is skipped and removed."""
        try:
            transparent = transparency(self._folder / image.file) if self._masks else None
            is_shown = self._previews is not None and not self._previews.full
            info = inspect(self._folder / image.file, small=is_shown)
        except UnusableImage as error:
            self.skipped.append(Skipped.of(image.name, error))
            self._sidecars.leave_out(image.name)
            (self._folder / image.file).unlink()
            return
        self.pixels += info.size.width * info.size.height
        if info.file != image.file:
            self.stored_bytes += (self._folder / info.file).stat().st_size
        texts = self._sidecars.of(image.name)
        picture = _picture(image.name, info.file, info.size, texts.options)
        remarks = [*info.remarks, *texts.remarks]
        if self._masks and (mask := self._mask(image, transparent)) is not None:
            file = f"{Path(picture.file).stem}{SUFFIX}.png"
            stored = store_mask(mask, info.size, self._folder / file, turn=info.turn)
            self.stored_bytes += (self._folder / file).stat().st_size
            remarks.append(stored.remark)
            self._kept_by_masks[image.name] = stored.kept
            picture = replace(picture, mask=file)
        if self._previews and info.small:
            mask_file = self._folder / picture.mask if picture.mask else None
            self._previews.draw(info.small, mask_file)
        if (first := self._first.setdefault(info.fingerprint, image.name)) != image.name:
            self._duplicates.append(Duplicate(file=short(image.name), same_as=short(first)))
            remarks.append(same_pixels(first))
        self.pictures.append(picture)
        self._notes.append(
            Notes(
                source=texts.source,
                files=texts.files[:FILES_SHOWN],
                remarks=tuple(line(remark) for remark in remarks),
                doubts=tuple(_doubts(image, picture, texts)),
            )
        )

    def _mask(self, image: ImageFile, transparent: Image.Image | None) -> Image.Image | None:
        """The mask beside a picture, or else its transparency; a broken one is skipped."""
        assert self._masks is not None  # noqa: S101 - see check
        if (beside := self._masks.of(image)) is None:
            return transparent
        try:
            mask = decoded_mask(self._folder / beside.file)
        except UnusableImage as error:
            self._broken_masks[beside.name] = Skipped.of(beside.name, error)
            return transparent
        self.pixels += mask.width * mask.height
        return mask

    def result(self) -> CheckedDataset:
        return CheckedDataset(
            pictures=self.pictures,
            notes=self._notes,
            skipped=[*self.skipped, *self._broken_masks.values()],
            duplicates=self._duplicates,
            warnings=[
                *self._several_lines(),
                *self._repeated_tags(),
                *warnings_of(self._kept_by_masks),
                *self._sidecars.warnings,
                *self._sidecars.unused(),
            ],
        )

    def _several_lines(self) -> Iterator[str]:
        if several := self._sidecars.of_several_lines:
            yield (
                f"{counted(len(several), 'caption file')} of several lines: the lines are joined to"
                f" one caption: {named(several)}"
            )

    def _repeated_tags(self) -> Iterator[str]:
        if repeated := self._sidecars.of_repeated_tags:
            captions = "caption has" if len(repeated) == 1 else "captions have"
            yield f"{len(repeated)} {captions} a tag twice, which counts once: {named(repeated)}"


def _doubts(image: ImageFile, picture: Picture, texts: ImageTexts) -> Iterator[Doubt]:
    """What of its caption is not as somebody would want it."""
    if not picture.caption:
        yield "no_caption"
    if texts.has_empty_file:
        yield "empty_file"
    if texts.source == "name" and is_camera_name(image.name):
        yield "camera_name"
    if texts.source == "name" and image.is_name_unreadable:
        yield "unreadable_name"
    if len(texts.options.caption.text) > picture.max_caption_length:
        yield "cut"


def check_images(
    unpacked: Unpacked,
    folder: Path,
    *,
    shown: str,
    pixels: int,
    stored_bytes: int = BASE_STORED_BYTES,
    masked: bool = False,
    previews: Previews | None = None,
    reading: Callable[[str], None],
    checked: Callable[[int, int], None],
) -> CheckedDataset:
    """Decode every image and find its caption; unusable ones are skipped and removed.

    Args:
        unpacked: the archive's content.
        folder: where its images are.
        shown: the archive's name in messages.
        pixels: the most that all images may have together.
        stored_bytes: the most that those may take that are stored anew.
        masked: whether ``NAME_mask`` is the mask of ``NAME``, and so is an image's transparency.
        previews: draws the pictures small, if that is wanted.
        reading: called with each image's name, before it is opened.
        checked: called with the number of images checked and of all images.

    Raises:
        Refused: no usable image, or a limit is met; names the archive and says why.
        Full: the disk has no room for an image that is stored anew.
    """
    masks = Masks(unpacked.images) if masked else None
    images = masks.pictures if masks else unpacked.images
    checker = Checker(unpacked, folder, masks, previews)
    for done, image in enumerate(images, start=1):
        reading(image.name)
        checker.check(image)
        if checker.pixels > pixels:
            raise Refused(
                f"{shown}: its images have more than {pixels // 1_000_000} million pixels together,"
                " the most for an archive of so few bytes; make several, or save them smaller"
            )
        if checker.stored_bytes > stored_bytes:
            raise Refused(
                f"{shown}: its HEIC and AVIF images take more than {stored_bytes // 1_000_000} MB"
                " as PNG, in which they are kept, the most for an archive of so few bytes; make"
                " several, or save them as JPEG"
            )
        checked(done, len(images))
    for each in masks.skipped if masks else ():
        checker.skipped.append(Skipped.of(each.name, "a mask of no picture beside it"))
    for each in masks.files if masks else ():  # they are stored anew, and several pictures may
        (folder / each.file).unlink()  # have one
    if not checker.pictures:
        raise Refused(_no_usable_image(shown, checker.skipped))
    found = checker.result()
    if not masked and (alike := like_masks(unpacked.images)):
        warning = (
            f"{counted(len(alike), 'picture')} named like a mask of another: trained on as a"
            f" picture, as masked_loss is not set: {named(alike)}"
        )
        found = replace(found, warnings=[warning, *found.warnings])
    return found


def _picture(name: str, file: str, size: Size, options: ImageOptions) -> Picture:
    caption = options.caption
    text = bounded(caption.text, caption.main_parts, MAX_CHARACTERS)
    parts = len(text.split(SEPARATOR))
    main_parts = min(caption.main_parts, parts)
    return Picture(
        file=file,
        name=name,
        caption=text,
        main_parts=main_parts,
        weights=caption.weights[: parts - main_parts],
        width=size.width,
        height=size.height,
        multiply=_default(options.multiply, 1.0),
        rating=_default(options.rating, 1.0),
        cond_dropout=options.cond_dropout,
        flip_p=options.flip_p,
        shuffle_tags=options.shuffle_tags,
        loss_scale=_default(options.loss_scale, 1.0),
        batch_id=_default(options.batch_id, ""),
        max_caption_length=_default(options.max_caption_length, CAPTION_CHARACTERS),
    )


def _default(value: T | None, default: T) -> T:
    return default if value is None else value


def _no_usable_image(shown: str, skipped: list[Skipped]) -> str:
    first = "; ".join(f"{each.file}: {each.reason}" for each in skipped[:REASONS_SHOWN])
    reasons = f" ({first}{'; ...' if len(skipped) > REASONS_SHOWN else ''})" if skipped else ""
    return (
        f"{shown}: no usable image in the archive{reasons};"
        f" it needs images ({IMAGES}), in any folder"
    )
