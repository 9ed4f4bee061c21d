"""The plan of an epoch: which images make which batch, and how each is augmented.

Everything is a pure function of the manifest, the seed and the epoch, the same in every process;
so a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter, defaultdict
from collections.abc import Sequence
from fractions import Fraction
from math import ceil, floor
from random import Random
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from shared.dataset.buckets import Box, Size, crop_box, middle_box, nearest
from shared.dataset.captions import bounded, shuffled, weighted_sample
from shared.dataset.manifest import Picture
from shared.dataset.packing import packed
from shared.request import Train

T = TypeVar("T")

SEED_LIMIT = 2**30
"""Random seeds are below this, as in EveryDream2."""

SHORT_BATCH_POWER = 1.5
"""EveryDream2's exponent for the loss of batches that are filled with repeats."""


class EpochConfig(Struct, frozen=True, kw_only=True):
    """The options of a job that decide about its epochs."""

    resolution: int
    batch_size: int
    seed: int
    epochs: int = 1
    rated_percent: int | None = None
    """1 to 100: the share of a rated dataset that the last epoch aims at; None: not rated."""
    cond_dropout: float = 0.0
    flip_p: float = 0.0
    shuffle_tags: bool = False
    keep_tags: int = 0
    """With ``shuffle_tags``: how many tags after the main prompt keep their places."""
    grad_accum: int = 1
    """Batches per update; those with the same name are put into the same update."""
    jitter: bool = True
    """False: every image gets the largest possible centre crop."""
    crops_per_image: int = 0
    """After so many epochs an image's crops come again; 0: every crop is a new one."""

    @property
    def crops_recur(self) -> bool:
        return not self.jitter or self.crops_per_image > 0

    @classmethod
    def of(cls, train: Train, *, seed: int) -> EpochConfig:
        """The config for a request; ``seed`` is from :func:`job_seed`."""
        rated = train.rated_dataset_target_dropout_percent if train.rated_dataset else None
        return cls(
            resolution=train.resolution,
            batch_size=train.batch_size,
            seed=seed,
            epochs=train.max_epochs,
            rated_percent=rated,
            cond_dropout=train.cond_dropout,
            flip_p=train.flip_p,
            shuffle_tags=train.shuffle_tags,
            keep_tags=train.keep_tags,
            grad_accum=train.grad_accum,
            crops_per_image=train.crops_per_image,
        )


class Batch(Struct, frozen=True, kw_only=True):
    """Images of one size that are trained on together."""

    pictures: tuple[int, ...]
    """Indices into the manifest; ``batch_size`` of them, repeats at the end."""
    size: Size
    real: int
    """How many of them are not repeats, 1 to ``batch_size``."""
    first: int
    """The position in the epoch of the batch's first image: a multiple of ``batch_size``."""
    name: str = ""
    """The images' common ``batch_id``; empty: a default batch."""

    @property
    def loss_factor(self) -> float:
        """Scales the batch's loss; 1 for a full batch."""
        return float((self.real / len(self.pictures)) ** SHORT_BATCH_POWER)


class Augmentation(Struct, frozen=True, kw_only=True):
    """How an image is changed at one position of one epoch."""

    caption: str
    flip: bool
    crop: Box
    """Cut from the upright image, then scaled to the batch's size, then flipped."""


def seed_of(*parts: object) -> int:
    """63 bits that depend only on the parts: the same in every process and version of Python."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def job_seed(job: str, train: Train) -> int:
    """The request's seed; for -1 one derived from the job's id, the same in every attempt."""
    derived = uuid.uuid5(uuid.NAMESPACE_OID, job).int % SEED_LIMIT
    return derived if train.seed == -1 else train.seed


def random_of(*parts: object) -> Random:
    """A random generator, seeded by the parts."""
    return Random(seed_of(*parts))


def plan_epoch(pictures: Sequence[Picture], epoch_config: EpochConfig, epoch: int) -> list[Batch]:
    """The batches of an epoch (0, 1, ...), in order."""
    random = random_of(epoch_config.seed, epoch, "order")
    chosen = choose(pictures, epoch_config, epoch, random)
    random.shuffle(chosen)
    batches = _order_batches(
        _make_batches(pictures, chosen, epoch_config, random), epoch_config.grad_accum, random
    )
    return [
        replace(batch, first=number * epoch_config.batch_size)
        for number, batch in enumerate(batches)
    ]


class Totals(Struct, frozen=True, kw_only=True):
    """Totals over several batches."""

    steps: int
    pixels: int
    """Including repeats."""


def steps_per_epoch(pictures: Sequence[Picture], epoch_config: EpochConfig, epoch: int = 0) -> int:
    """The number of an epoch's batches; only multipliers and ratings make epochs differ."""
    return len(plan_epoch(pictures, epoch_config, epoch))


def total_steps(pictures: Sequence[Picture], epoch_config: EpochConfig) -> int:
    """The number of batches of all epochs."""
    return totals(pictures, epoch_config).steps


def totals(pictures: Sequence[Picture], epoch_config: EpochConfig) -> Totals:
    """Steps and pixels of all epochs."""
    if epoch_config.rated_percent is None and all(picture.multiply == 1 for picture in pictures):
        return totals_of_equal_epochs(plan_epoch(pictures, epoch_config, 0), epoch_config)
    epochs = [
        _epoch_totals(plan_epoch(pictures, epoch_config, epoch))
        for epoch in range(epoch_config.epochs)
    ]
    return Totals(
        steps=sum(epoch.steps for epoch in epochs), pixels=sum(epoch.pixels for epoch in epochs)
    )


def totals_of_equal_epochs(batches: Sequence[Batch], epoch_config: EpochConfig) -> Totals:
    """Steps and pixels of all epochs, if each has the same batches."""
    epoch = _epoch_totals(batches)
    return Totals(
        steps=epoch_config.epochs * epoch.steps, pixels=epoch_config.epochs * epoch.pixels
    )


def _epoch_totals(batches: Sequence[Batch]) -> Totals:
    pixels = sum(len(batch.pictures) * batch.size.width * batch.size.height for batch in batches)
    return Totals(steps=len(batches), pixels=pixels)


def choose(
    pictures: Sequence[Picture], epoch_config: EpochConfig, epoch: int, random: Random
) -> list[int]:
    """Indices of an epoch's images, each as often as its multiplier says.

    From the third epoch on, a rated dataset has fewer images, better-rated ones, each once.
    """
    if rated_share(epoch_config, epoch) < 1:
        count = rated_count(len(pictures), epoch_config, epoch)
        return weighted_sample([picture.rating for picture in pictures], count, random)
    return multiplied([picture.multiply for picture in pictures], random)


def rated_count(images: int, epoch_config: EpochConfig, epoch: int) -> int:
    """The number of images in an epoch of a rated dataset, rounded up."""
    return ceil(images * rated_share(epoch_config, epoch))


def rated_share(epoch_config: EpochConfig, epoch: int) -> Fraction:
    """The share of a rated dataset in an epoch: all in the first two, then steadily less.

    With E epochs and the share t to drop: (E - (epoch - 1) * t) / E, so that the last of many
    epochs ends just above ``rated_percent``.
    """
    if epoch_config.rated_percent is None:
        return Fraction(1)
    dropped = max(epoch - 1, 0) * Fraction(100 - epoch_config.rated_percent, 100)
    return (epoch_config.epochs - dropped) / epoch_config.epochs


def multiplied(multipliers: Sequence[float], random: Random) -> list[int]:
    """Indices, each as often as its multiplier's integer part, plus one with the fraction's chance.

    Their number is the multipliers' sum, rounded down: 4 x 2.5 is 10. Sums are exact decimals:
    10 x 0.1 is 1.
    """
    exact = [Fraction(str(multiplier)) for multiplier in multipliers]
    whole = [index for index, value in enumerate(exact) for _ in range(floor(value))]
    rests = {index: value % 1 for index, value in enumerate(exact) if value % 1}
    return whole + _systematic_sample(rests, floor(sum(rests.values())), random)


def _systematic_sample(shares: dict[int, Fraction], count: int, random: Random) -> list[int]:
    """Draw ``count`` different keys, with probabilities exactly proportional to shares below 1.

    Systematic sampling: the shares are laid end to end in a random order, and evenly spaced marks
    from a random start select the keys.
    """
    keys = list(shares)
    random.shuffle(keys)
    spacing = sum(shares.values()) / max(count, 1)
    mark = spacing * Fraction(random.random())
    reached = Fraction(0)
    taken: list[int] = []
    for key in keys:
        reached += shares[key]
        if reached > mark and len(taken) < count:
            taken.append(key)
            mark += spacing
    return taken


def augment(
    picture: Picture,
    index: int,
    size: Size,
    epoch_config: EpochConfig,
    *,
    epoch: int,
    position: int,
) -> Augmentation:
    """The augmentation of the image at ``index``, used at ``position`` of an epoch.

    Caption dropout and flip differ at every position, the order of tags in every epoch. So does the
    crop; but with ``crops_per_image`` it comes again, so that its latents can be kept.
    """
    random = random_of(epoch_config.seed, epoch, position, "draw")
    dropped = random.random() < _own_or_default(picture.cond_dropout, epoch_config.cond_dropout)
    flip = random.random() < _own_or_default(picture.flip_p, epoch_config.flip_p)
    if epoch_config.crops_per_image:
        number = epoch % epoch_config.crops_per_image
        random = random_of(epoch_config.seed, index, number, "crop")
    crop = _crop(picture, size, epoch_config, random)
    caption = "" if dropped else caption_of(picture, index, epoch_config, epoch)
    return Augmentation(caption=caption, flip=flip, crop=crop)


def caption_of(picture: Picture, index: int, epoch_config: EpochConfig, epoch: int) -> str:
    """An image's caption in an epoch, with its tags shuffled if configured."""
    if not _own_or_default(picture.shuffle_tags, epoch_config.shuffle_tags):
        return bounded(picture.caption, picture.main_parts, picture.max_caption_length)
    random = random_of(epoch_config.seed, epoch, index, "tags")
    text = shuffled(
        picture.caption,
        picture.weights,
        random,
        main_parts=picture.main_parts,
        keep_tags=epoch_config.keep_tags,
    )
    return bounded(text, picture.main_parts, picture.max_caption_length)


def bucket_of(picture: Picture, epoch_config: EpochConfig) -> Size:
    """The size at which an image is trained on."""
    return nearest(picture.width, picture.height, epoch_config.resolution)


def _crop(picture: Picture, size: Size, epoch_config: EpochConfig, random: Random) -> Box:
    if not epoch_config.jitter:
        return middle_box(picture.width, picture.height, size)
    return crop_box(picture.width, picture.height, size, random)


def _own_or_default(own: T | None, default: T) -> T:
    return default if own is None else own


def _make_batches(
    pictures: Sequence[Picture], chosen: Sequence[int], epoch_config: EpochConfig, random: Random
) -> list[Batch]:
    return [
        _fill_batch(
            group[start : start + epoch_config.batch_size],
            size,
            epoch_config.batch_size,
            random,
            name,
        )
        for (name, size), group in _group(pictures, chosen, epoch_config).items()
        for start in range(0, len(group), epoch_config.batch_size)
    ]


def _group(
    pictures: Sequence[Picture], chosen: Sequence[int], epoch_config: EpochConfig
) -> dict[tuple[str, Size], list[int]]:
    """Indices by batch name and size; the rest of a name goes to the default group of its size.

    All groups keep the order of ``chosen``, so that such a rest is no likelier than others to end
    in a short batch.
    """
    keys = [
        (pictures[index].batch_id, bucket_of(pictures[index], epoch_config)) for index in chosen
    ]
    counts = Counter(keys)
    groups: dict[tuple[str, Size], list[int]] = defaultdict(list)
    for index, key in zip(chosen, keys, strict=True):
        in_full_batches = counts[key] // epoch_config.batch_size * epoch_config.batch_size
        group = key if len(groups.get(key, ())) < in_full_batches else ("", key[1])
        groups[group].append(index)
    return groups


def _fill_batch(group: list[int], size: Size, batch_size: int, random: Random, name: str) -> Batch:
    """A batch of these images, filled up with random repeats."""
    repeats = random.choices(group, k=batch_size - len(group))
    return Batch(pictures=(*group, *repeats), size=size, real=len(group), first=0, name=name)


def _order_batches(batches: list[Batch], grad_accum: int, random: Random) -> list[Batch]:
    """Batches in random order; those of one name together in as few updates as possible."""
    random.shuffle(batches)
    by_name: dict[str, list[Batch]] = defaultdict(list)
    for batch in batches:
        by_name[batch.name].append(batch)
    default = by_name.pop("", [])
    if not by_name or grad_accum == 1:
        return batches
    updates = packed(list(by_name.values()), grad_accum, default)
    short = [updates.pop()] if len(updates[-1]) < grad_accum else []
    random.shuffle(updates)
    return [batch for update in (*updates, *short) for batch in update]
