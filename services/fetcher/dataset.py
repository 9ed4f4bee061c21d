"""From an unpacked archive to a manifest and a pre-flight report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from services.fetcher.archive import Image, Unpacked
from services.fetcher.pictures import Unusable, inspect
from services.fetcher.sidecars import Sidecars
from shared.concurrency import in_thread
from shared.dataset.buckets import Size, is_undersized, nearest
from shared.dataset.manifest import Captions, Manifest, Picture, Report, Skipped, listed, short
from shared.dataset.plan import Course, plan_epoch
from shared.errors import Refused
from shared.request import Train

DRAWS_PER_EPOCH = 1_000_000
"""Images times multipliers."""
REASONS_SHOWN = 3
CAPTION_CHARACTERS = 2048
"""EveryDream2's bound; a text encoder sees about the first 300."""


class Checked(Struct, frozen=True, kw_only=True):
    """Pictures that can be trained on, and what became of the others."""

    pictures: list[Picture]
    captions: Captions
    skipped: list[Skipped]
    warnings: list[str]


async def check(
    unpacked: Unpacked, folder: Path, *, shown: str, heard: Callable[[int, int], None]
) -> Checked:
    """Decode every image and find its caption; unusable ones are left out and removed.

    ``heard`` is called with the images done and their number.

    Raises:
        Refused: no usable image; names the archive and the first reasons.
    """
    sidecars, pictures, skipped = Sidecars(unpacked.texts), [], list(unpacked.skipped)
    sources: Counter[str] = Counter()
    for done, image in enumerate(unpacked.images, start=1):
        try:
            size = await in_thread(inspect, folder / image.file)
        except Unusable as error:
            skipped.append(Skipped.of(image.name, error))
            (folder / image.file).unlink()
            continue
        finally:
            heard(done, len(unpacked.images))
        picture, from_file = await in_thread(_picture, image, size, sidecars)
        sources[_source(picture, from_file=from_file)] += 1
        pictures.append(picture)
    if not pictures:
        raise Refused(_nothing_left(shown, skipped))
    captions = Captions(**sources)
    return Checked(
        pictures=pictures, captions=captions, skipped=skipped, warnings=sidecars.warnings
    )


def _picture(image: Image, size: Size, sidecars: Sidecars) -> tuple[Picture, bool]:
    wishes, from_file = sidecars.wishes(image.name)
    picture = Picture(
        file=image.file,
        name=image.name,
        caption=wishes.caption.text[:CAPTION_CHARACTERS],
        weights=wishes.caption.weights,
        width=size.width,
        height=size.height,
        multiply=_or_one(wishes.multiply),
        rating=_or_one(wishes.rating),
        cond_dropout=wishes.cond_dropout,
        flip_p=wishes.flip_p,
        shuffle_tags=wishes.shuffle_tags,
        loss_scale=_or_one(wishes.loss_scale),
    )
    return picture, from_file


def _or_one(value: float | None) -> float:
    return 1.0 if value is None else value


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


def course_of(train: Train) -> Course:
    """The part of a request that decides about epochs."""
    return Course(
        resolution=train.resolution,
        batch_size=train.batch_size,
        seed=train.seed,
        epochs=train.max_epochs,
        rated_percent=train.rated_dataset_target_dropout_percent if train.rated_dataset else None,
        cond_dropout=train.cond_dropout,
        flip_p=train.flip_p,
        shuffle_tags=train.shuffle_tags,
    )


def report_on(checked: Checked, course: Course, shown: str) -> tuple[Manifest, Report]:
    """The manifest, and the numbers that ``/status`` shows before training begins.

    Raises:
        Refused: the multipliers leave no image, or ask for far too many.
    """
    pictures = checked.pictures
    _check_multipliers(pictures, shown)
    buckets = [nearest(one.width, one.height, course.resolution) for one in pictures]
    small = [
        one.name
        for one, bucket in zip(pictures, buckets, strict=True)
        if is_undersized(one.width, one.height, bucket)
    ]
    batches = plan_epoch(pictures, course, 0)
    report = Report(
        images=len(pictures),
        captions=checked.captions,
        skipped=listed(checked.skipped),
        skipped_count=len(checked.skipped),
        undersized=[short(name) for name in listed(small)],
        undersized_count=len(small),
        buckets={str(size): count for size, count in Counter(buckets).most_common()},
        short_buckets={
            str(batch.size): batch.real for batch in batches if batch.real < course.batch_size
        },
        steps_per_epoch=len(batches),
        warnings=[short(text) for text in listed(checked.warnings)],
    )
    return Manifest(pictures=tuple(pictures)), report


def _check_multipliers(pictures: list[Picture], shown: str) -> None:
    total = sum(picture.multiply for picture in pictures)
    if total < 1:
        raise Refused(
            f"{shown}: the multipliers of all images add up to {total:g}; at least 1 is needed"
        )
    if total > DRAWS_PER_EPOCH:
        raise Refused(
            f"{shown}: {total:.0f} images per epoch by their multipliers; at most {DRAWS_PER_EPOCH}"
        )
