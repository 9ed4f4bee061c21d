"""Check an unpacked archive's images, and build the manifest and the pre-flight report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from services.fetcher.parsing.datasets.archive import ImageFile, Unpacked
from services.fetcher.parsing.datasets.image_check import UnusableImage, inspect
from services.fetcher.parsing.datasets.sidecars import (
    MAX_CAPTION_CHARACTERS,
    ImageOptions,
    Sidecars,
)
from shared.dataset.buckets import Size, is_undersized
from shared.dataset.captions import MAX_TOKENS, SEPARATOR, bounded
from shared.dataset.manifest import (
    CAPTION_CHARACTERS,
    LISTED,
    Captions,
    Duplicate,
    Manifest,
    Picture,
    Report,
    Skipped,
    first_entries,
    first_names,
    short,
)
from shared.dataset.plan import (
    Batch,
    EpochConfig,
    Totals,
    bucket_of,
    plan_epoch,
    totals,
    totals_of_equal_epochs,
)
from shared.dataset.validation import split
from shared.errors import Refused
from shared.request import Train

T = TypeVar("T")

MAX_IMAGES_PER_EPOCH = 1_000_000
"""The sum of all multipliers."""
MAX_PLANNED_IMAGES = 2_000_000
"""Images of all epochs that are planned exactly for the report; takes less than a minute."""
REASONS_SHOWN = 3


class CheckedDataset(Struct, frozen=True, kw_only=True):
    """The images that can be trained on, and what the report says of the others."""

    pictures: list[Picture]
    captions: Captions
    empty: list[str]
    """Names of images whose caption file is empty."""
    skipped: list[Skipped]
    duplicates: list[Duplicate]
    warnings: list[str]


class Checker:
    """Checks images one by one."""

    def __init__(self, unpacked: Unpacked, folder: Path) -> None:
        self.pictures: list[Picture] = []
        self.skipped = list(unpacked.skipped)
        self.pixels = 0
        """Of all images that were decoded."""
        self._folder = folder
        self._sidecars = Sidecars(unpacked.texts)
        self._sources: Counter[str] = Counter()
        self._empty: list[str] = []
        self._duplicates: list[Duplicate] = []
        self._first: dict[str, str] = {}
        """By fingerprint: the name of the first image with these pixels."""

    def check(self, image: ImageFile) -> None:
        """Decode an image and find its caption; an unusable image is skipped and removed."""
        try:
            info = inspect(self._folder / image.file)
        except UnusableImage as error:
            self.skipped.append(Skipped.of(image.name, error))
            (self._folder / image.file).unlink()
            return
        self.pixels += info.size.width * info.size.height
        options, from_file = self._sidecars.options(image.name)
        picture = _picture(image, info.size, options)
        self._sources[_caption_source(picture, from_file=from_file)] += 1
        if self._sidecars.has_empty_caption_file(image.name):
            self._empty.append(image.name)
        if (first := self._first.setdefault(info.fingerprint, image.name)) != image.name:
            self._duplicates.append(Duplicate(file=short(image.name), same_as=short(first)))
        self.pictures.append(picture)

    def result(self) -> CheckedDataset:
        return CheckedDataset(
            pictures=self.pictures,
            captions=Captions(**self._sources, empty=len(self._empty)),
            empty=self._empty,
            skipped=self.skipped,
            duplicates=self._duplicates,
            warnings=self._sidecars.warnings,
        )


def check_images(
    unpacked: Unpacked,
    folder: Path,
    *,
    shown: str,
    pixels: int,
    reading: Callable[[str], None],
    checked: Callable[[int, int], None],
) -> CheckedDataset:
    """Decode every image and find its caption; unusable ones are skipped and removed.

    Args:
        unpacked: the archive's content.
        folder: where its images are.
        shown: the archive's name in messages.
        pixels: the most that all images may have together.
        reading: called with each image's name, before it is opened.
        checked: called with the number of images checked and of all images.

    Raises:
        Refused: no usable image, or too many pixels; names the archive and says why.
    """
    checker = Checker(unpacked, folder)
    for done, image in enumerate(unpacked.images, start=1):
        reading(image.name)
        checker.check(image)
        if checker.pixels > pixels:
            raise Refused(
                f"{shown}: its images have more than {pixels // 1_000_000} million pixels together,"
                " the most for an archive of so few bytes; make several, or save them smaller"
            )
        checked(done, len(unpacked.images))
    if not checker.pictures:
        raise Refused(_no_usable_image(shown, checker.skipped))
    return checker.result()


def _picture(image: ImageFile, size: Size, options: ImageOptions) -> Picture:
    caption = options.caption
    text = bounded(caption.text, caption.main_parts, MAX_CAPTION_CHARACTERS)
    parts = len(text.split(SEPARATOR))
    main_parts = min(caption.main_parts, parts)
    return Picture(
        file=image.file,
        name=image.name,
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


def _caption_source(picture: Picture, *, from_file: bool) -> str:
    if not picture.caption:
        return "missing"
    return "from_files" if from_file else "from_names"


def _no_usable_image(shown: str, skipped: list[Skipped]) -> str:
    first = "; ".join(f"{each.file}: {each.reason}" for each in skipped[:REASONS_SHOWN])
    reasons = f" ({first}{'; ...' if len(skipped) > REASONS_SHOWN else ''})" if skipped else ""
    return (
        f"{shown}: no usable image in the archive{reasons};"
        " it needs jpg, jpeg, jfif, png, bmp or webp files, in any folder"
    )


def build_report(
    checked: CheckedDataset, train: Train, seed: int, shown: str
) -> tuple[Manifest, Report]:
    """The manifest, and the report that ``/status`` shows before training begins.

    ``seed`` is the job's, at least 0. Fields that depend on the base model are added later.

    Raises:
        Refused: the multipliers give no image or too many, or the validation leaves no image to
            train on.
    """
    epoch_config = EpochConfig.of(train, seed=seed)
    parts = split(checked.pictures, train.validation)
    _check_multipliers(parts.training, shown)
    report = Report(
        images=len(parts.training),
        held_out=len(parts.held_out),
        **_file_fields(checked, epoch_config),
        **_plan_fields(parts.training, epoch_config),
    )
    return Manifest(pictures=tuple(checked.pictures)), report


def _file_fields(checked: CheckedDataset, epoch_config: EpochConfig) -> dict[str, Any]:
    """The report's fields about files, by name."""
    undersized = [
        picture.name
        for picture in checked.pictures
        if is_undersized(picture.width, picture.height, bucket_of(picture, epoch_config))
    ]
    return {
        "captions": checked.captions,
        "missing_captions": first_names(
            picture.name for picture in checked.pictures if not picture.caption
        ),
        "empty_captions": first_names(checked.empty),
        "skipped": first_entries(checked.skipped),
        "skipped_count": len(checked.skipped),
        "undersized": first_names(undersized),
        "undersized_count": len(undersized),
        "duplicates": first_entries(checked.duplicates),
        "duplicates_count": len(checked.duplicates),
        "warnings": first_names(checked.warnings),
    }


def _plan_fields(pictures: Sequence[Picture], epoch_config: EpochConfig) -> dict[str, Any]:
    """The report's fields about batches and steps, by name."""
    batches = plan_epoch(pictures, epoch_config, 0)
    all_epochs = _all_epochs(pictures, batches, epoch_config)
    return {
        "buckets": _counts(str(bucket_of(picture, epoch_config)) for picture in pictures),
        "short_buckets": {
            str(batch.size): batch.real for batch in batches if batch.real < epoch_config.batch_size
        },
        "repeats": sum(len(batch.pictures) - batch.real for batch in batches),
        "named_batches": _counts(batch.name for batch in batches if batch.name),
        "steps_per_epoch": len(batches),
        "steps": all_epochs.steps,
        "megapixels": round(all_epochs.pixels / 1e6, 3),
    }


def captions_of(manifest: Manifest) -> list[str]:
    """Every image's caption as it is trained on without shuffling."""
    return [
        bounded(picture.caption, picture.main_parts, picture.max_caption_length)
        for picture in manifest.pictures
    ]


def with_tokens(report: Report, manifest: Manifest, tokens: Sequence[int]) -> Report:
    """Add the captions that are too long; ``tokens`` has the number of tokens of each image."""
    long = [
        picture.name
        for picture, count in zip(manifest.pictures, tokens, strict=True)
        if count > MAX_TOKENS
    ]
    captions = replace(report.captions, over_long=len(long))
    return replace(report, captions=captions, over_long_captions=first_names(long))


def _all_epochs(
    pictures: Sequence[Picture], batches: Sequence[Batch], epoch_config: EpochConfig
) -> Totals:
    """Exact totals; if planning would take long, as if all epochs were like the first."""
    images = epoch_config.epochs * len(batches) * epoch_config.batch_size
    if images <= MAX_PLANNED_IMAGES:
        return totals(pictures, epoch_config)
    return totals_of_equal_epochs(batches, epoch_config)


def _counts(names: Iterable[str]) -> dict[str, int]:
    """How often each name occurs, most frequent first, cut to :data:`LISTED`."""
    return {short(name): count for name, count in Counter(names).most_common(LISTED)}


def _check_multipliers(pictures: Sequence[Picture], shown: str) -> None:
    total = sum(Fraction(str(picture.multiply)) for picture in pictures)
    if total < 1:
        raise Refused(
            f"{shown}: the multipliers of all images add up to {float(total):g};"
            " at least 1 is needed"
        )
    if total > MAX_IMAGES_PER_EPOCH:
        raise Refused(
            f"{shown}: {float(total):.0f} images per epoch by their multipliers;"
            f" at most {MAX_IMAGES_PER_EPOCH}"
        )
