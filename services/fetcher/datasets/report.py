"""From an unpacked archive to a manifest and a pre-flight report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from services.fetcher.datasets.archive import Image, Unpacked
from services.fetcher.datasets.image_check import Unusable, inspect
from services.fetcher.datasets.sidecars import CAPTION_AT_MOST, ImageOptions, Sidecars
from shared.concurrency import in_thread
from shared.dataset.buckets import Size, is_undersized
from shared.dataset.captions import MOST_TOKENS, SEPARATOR, bounded
from shared.dataset.manifest import (
    CAPTION_CHARACTERS,
    LISTED,
    Captions,
    Duplicate,
    Manifest,
    Picture,
    Report,
    Skipped,
    listed,
    names_of,
    short,
)
from shared.dataset.plan import Batch, EpochConfig, Totals, alike, bucket_of, plan_epoch, totals
from shared.dataset.validation import split
from shared.errors import Refused
from shared.request import Train

T = TypeVar("T")

DRAWS_PER_EPOCH = 1_000_000
"""Images times multipliers."""
PLANNED_DRAWS = 2_000_000
"""Over all epochs, as many as are planned for the report: less than a minute's work."""
REASONS_SHOWN = 3


class Checked(Struct, frozen=True, kw_only=True):
    """Pictures that can be trained on, and what became of the others."""

    pictures: list[Picture]
    captions: Captions
    empty: list[str]
    """Names of images whose caption file is empty."""
    skipped: list[Skipped]
    duplicates: list[Duplicate]
    warnings: list[str]


class Checker:
    """Looks at images one by one."""

    def __init__(self, unpacked: Unpacked, folder: Path) -> None:
        self.pictures: list[Picture] = []
        self.skipped = list(unpacked.skipped)
        self._folder = folder
        self._sidecars = Sidecars(unpacked.texts)
        self._sources: Counter[str] = Counter()
        self._empty: list[str] = []
        self._duplicates: list[Duplicate] = []
        self._first: dict[str, str] = {}
        """By fingerprint: the name of the first image of these pixels."""

    def take(self, image: Image) -> None:
        """Decode an image and find its caption; an unusable one is left out and removed."""
        try:
            look = inspect(self._folder / image.file)
        except Unusable as error:
            self.skipped.append(Skipped.of(image.name, error))
            (self._folder / image.file).unlink()
            return
        options, from_file = self._sidecars.options(image.name)
        picture = _picture(image, look.size, options)
        self._sources[_source(picture, from_file=from_file)] += 1
        if self._sidecars.says_nothing(image.name):
            self._empty.append(image.name)
        if (first := self._first.setdefault(look.pixels, image.name)) != image.name:
            self._duplicates.append(Duplicate(file=short(image.name), same_as=short(first)))
        self.pictures.append(picture)

    def checked(self) -> Checked:
        return Checked(
            pictures=self.pictures,
            captions=Captions(**self._sources, empty=len(self._empty)),
            empty=self._empty,
            skipped=self.skipped,
            duplicates=self._duplicates,
            warnings=self._sidecars.warnings,
        )


async def check(
    unpacked: Unpacked, folder: Path, *, shown: str, keepalive: Callable[[int, int], None]
) -> Checked:
    """Decode every image and find its caption; unusable ones are left out and removed.

    ``keepalive`` is called with the images done and their number.

    Raises:
        Refused: no usable image; names the archive and the first reasons.
    """
    checker = Checker(unpacked, folder)
    for done, image in enumerate(unpacked.images, start=1):
        await in_thread(checker.take, image)
        keepalive(done, len(unpacked.images))
    if not checker.pictures:
        raise Refused(_nothing_left(shown, checker.skipped))
    return checker.checked()


def _picture(image: Image, size: Size, options: ImageOptions) -> Picture:
    caption = options.caption
    text = bounded(caption.text, caption.main_parts, CAPTION_AT_MOST)
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
        multiply=_or(options.multiply, 1.0),
        rating=_or(options.rating, 1.0),
        cond_dropout=options.cond_dropout,
        flip_p=options.flip_p,
        shuffle_tags=options.shuffle_tags,
        loss_scale=_or(options.loss_scale, 1.0),
        batch_id=_or(options.batch_id, ""),
        max_caption_length=_or(options.max_caption_length, CAPTION_CHARACTERS),
    )


def _or(value: T | None, otherwise: T) -> T:
    return otherwise if value is None else value


def _source(picture: Picture, *, from_file: bool) -> str:
    if not picture.caption:
        return "missing"
    return "from_files" if from_file else "from_names"


def _nothing_left(shown: str, skipped: list[Skipped]) -> str:
    reasons = "; ".join(f"{each.file}: {each.reason}" for each in skipped[:REASONS_SHOWN])
    why = f" ({reasons}{'; ...' if len(skipped) > REASONS_SHOWN else ''})" if skipped else ""
    return (
        f"{shown}: no usable image in the archive{why};"
        " it needs jpg, jpeg, jfif, png, bmp or webp files, in any folder"
    )


def report_on(checked: Checked, train: Train, seed: int, shown: str) -> tuple[Manifest, Report]:
    """The manifest, and the numbers that ``/status`` shows before training begins.

    ``seed`` is the job's, at least 0. What depends on the base model is not in it yet.

    Raises:
        Refused: the multipliers leave no image, or ask for far too many; or the validation leaves
            none to train on.
    """
    epoch_config = EpochConfig.of(train, seed=seed)
    parts = split(checked.pictures, train.validation)
    _check_multipliers(parts.training, shown)
    report = Report(
        images=len(parts.training),
        held_out=len(parts.held_out),
        **_found(checked, epoch_config),
        **_planned(parts.training, epoch_config),
    )
    return Manifest(pictures=tuple(checked.pictures)), report


def _found(checked: Checked, epoch_config: EpochConfig) -> dict[str, Any]:
    """The report's fields about files, by name."""
    small = [one.name for one in checked.pictures if _is_small(one, epoch_config)]
    return {
        "captions": checked.captions,
        "missing_captions": names_of(one.name for one in checked.pictures if not one.caption),
        "empty_captions": names_of(checked.empty),
        "skipped": listed(checked.skipped),
        "skipped_count": len(checked.skipped),
        "undersized": names_of(small),
        "undersized_count": len(small),
        "duplicates": listed(checked.duplicates),
        "duplicates_count": len(checked.duplicates),
        "warnings": names_of(checked.warnings),
    }


def _planned(pictures: Sequence[Picture], epoch_config: EpochConfig) -> dict[str, Any]:
    """The report's fields about batches and steps, by name."""
    batches = plan_epoch(pictures, epoch_config, 0)
    sums = _sums(pictures, batches, epoch_config)
    return {
        "buckets": _counts(str(bucket_of(one, epoch_config)) for one in pictures),
        "short_buckets": {
            str(batch.size): batch.real for batch in batches if batch.real < epoch_config.batch_size
        },
        "repeats": sum(len(batch.pictures) - batch.real for batch in batches),
        "named_batches": _counts(batch.name for batch in batches if batch.name),
        "steps_per_epoch": len(batches),
        "steps": sums.steps,
        "megapixels": round(sums.pixels / 1e6, 3),
    }


def captions_of(manifest: Manifest) -> list[str]:
    """Every picture's caption as it is trained on when nothing is shuffled."""
    return [
        bounded(one.caption, one.main_parts, one.max_caption_length) for one in manifest.pictures
    ]


def with_tokens(report: Report, manifest: Manifest, tokens: Sequence[int]) -> Report:
    """The report with the captions that are too long, by each picture's number of tokens."""
    long = [
        picture.name
        for picture, count in zip(manifest.pictures, tokens, strict=True)
        if count > MOST_TOKENS
    ]
    captions = replace(report.captions, over_long=len(long))
    return replace(report, captions=captions, over_long_captions=names_of(long))


def _sums(
    pictures: Sequence[Picture], batches: Sequence[Batch], epoch_config: EpochConfig
) -> Totals:
    """Exact, unless planning every epoch would take long: then as if all were like the first."""
    draws = epoch_config.epochs * len(batches) * epoch_config.batch_size
    return (
        totals(pictures, epoch_config) if draws <= PLANNED_DRAWS else alike(batches, epoch_config)
    )


def _is_small(picture: Picture, epoch_config: EpochConfig) -> bool:
    return is_undersized(picture.width, picture.height, bucket_of(picture, epoch_config))


def _counts(names: Iterable[str]) -> dict[str, int]:
    """How often each name comes, the commonest first, as many as a report shows."""
    return {short(name): count for name, count in Counter(names).most_common(LISTED)}


def _check_multipliers(pictures: Sequence[Picture], shown: str) -> None:
    total = sum(Fraction(str(picture.multiply)) for picture in pictures)
    if total < 1:
        raise Refused(
            f"{shown}: the multipliers of all images add up to {float(total):g};"
            " at least 1 is needed"
        )
    if total > DRAWS_PER_EPOCH:
        raise Refused(
            f"{shown}: {float(total):.0f} images per epoch by their multipliers;"
            f" at most {DRAWS_PER_EPOCH}"
        )
