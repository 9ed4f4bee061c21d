"""Validation: images held out of training, whose loss shows overfitting.

Everything is a pure function of the manifest and the request, the same in every process.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import ceil

from msgspec import Struct
from msgspec.structs import replace

from shared.dataset.buckets import sizes
from shared.dataset.manifest import Picture
from shared.dataset.plan import Batch, EpochConfig, bucket_of, random_of
from shared.errors import Refused
from shared.request import Validation
from shared.words import counted


class Split(Struct, frozen=True, kw_only=True):
    """A dataset in two parts, each in the manifest's order."""

    training: tuple[Picture, ...]
    """At least one."""
    held_out: tuple[Picture, ...]
    """Without augmentation: once each, never flipped, captions neither dropped nor shuffled."""


def split(pictures: Sequence[Picture], validation: Validation | None) -> Split:
    """Hold out a random share of the images, rounded up, by the validation's seed; None: nothing.

    Raises:
        Refused: no image would be left to train on; says what to change.
    """
    if validation is None:
        return Split(training=tuple(pictures), held_out=())
    count = held_out_count(len(pictures), validation)
    if count >= len(pictures):
        raise Refused(
            f"input.train.validation: val_split_proportion {validation.val_split_proportion:g}"
            f" holds out {count} of {counted(len(pictures), 'image')} and leaves none to train on;"
            " lower it, add images, or leave validation out"
        )
    chosen = held_out_indices(len(pictures), validation)
    return Split(
        training=tuple(one for index, one in enumerate(pictures) if index not in chosen),
        held_out=tuple(_without_augmentation(pictures[index]) for index in sorted(chosen)),
    )


def held_out_indices(images: int, validation: Validation) -> frozenset[int]:
    """Which of the images are held out, by their indices; all, if there are too few."""
    count = min(held_out_count(images, validation), images)
    return frozenset(random_of(validation.seed, "held out").sample(range(images), count))


def held_out_count(images: int, validation: Validation) -> int:
    """max(1, ceil(proportion * images)), computed in exact decimals: 0.15 of 20 is 3."""
    return max(1, ceil(Fraction(str(validation.val_split_proportion)) * images))


def held_out_config(epoch_config: EpochConfig, validation: Validation) -> EpochConfig:
    """The config for held-out images: no randomness, centre crops, unchanged captions."""
    return replace(
        epoch_config,
        seed=validation.seed,
        epochs=1,
        rated_percent=None,
        cond_dropout=0.0,
        flip_p=0.0,
        shuffle_tags=False,
        jitter=False,
    )


def plan_held_out(held_out: Sequence[Picture], epoch_config: EpochConfig) -> list[Batch]:
    """Batches of the held-out images, each image once, the same in every epoch.

    Indices count the held-out images. There are no repeats: a batch may be shorter than
    ``batch_size``, and its loss is not scaled.
    """
    buckets = [bucket_of(one, epoch_config) for one in held_out]
    groups = {
        size: tuple(index for index, bucket in enumerate(buckets) if bucket == size)
        for size in sizes(epoch_config.resolution)
    }
    parts = [
        (size, group[start : start + epoch_config.batch_size])
        for size, group in groups.items()
        for start in range(0, len(group), epoch_config.batch_size)
    ]
    return [
        Batch(pictures=part, size=size, real=len(part), first=number * epoch_config.batch_size)
        for number, (size, part) in enumerate(parts)
    ]


def _without_augmentation(picture: Picture) -> Picture:
    """The image without options that are for training only."""
    return replace(
        picture,
        multiply=1.0,
        rating=1.0,
        cond_dropout=0.0,
        flip_p=0.0,
        shuffle_tags=False,
        loss_scale=1.0,
        batch_id="",
    )
