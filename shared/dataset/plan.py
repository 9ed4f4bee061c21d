"""The plan of an epoch: which pictures make which batch, and how each is drawn.

All of it is a pure function of the manifest, the seed and the epoch, the same in every process;
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

import msgspec
from msgspec import Struct

from shared.dataset.buckets import Box, Size, crop_box, middle_box, nearest
from shared.dataset.captions import bounded, shuffled, weighted_sample
from shared.dataset.manifest import Picture
from shared.dataset.packing import packed
from shared.request import Train

T = TypeVar("T")

SEEDS = 2**30
"""A drawn seed is below this, as the original's."""

SHORT_BATCH_POWER = 1.5
"""EveryDream2's exponent for the loss of batches that repeats had to fill."""


class EpochConfig(Struct, frozen=True, kw_only=True):
    """What a job asks of its epochs."""

    resolution: int
    batch_size: int
    seed: int
    epochs: int = 1
    rated_percent: int | None = None
    """1 to 100: how much of a rated dataset the last epoch aims at; None: not rated."""
    cond_dropout: float = 0.0
    flip_p: float = 0.0
    shuffle_tags: bool = False
    keep_tags: int = 0
    """With ``shuffle_tags``: how many tags after the main prompt stay where they are."""
    grad_accum: int = 1
    """Batches to an update; those of one named batch are put into the same update."""
    jitter: bool = True
    """False: every picture is cut in its middle, and no more than its shape asks."""

    @classmethod
    def of(cls, train: Train, *, seed: int) -> EpochConfig:
        """The part of a request that decides about epochs; ``seed`` as :func:`job_seed` says."""
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
        )


class Batch(Struct, frozen=True, kw_only=True):
    """Pictures of one shape that are trained on together."""

    pictures: tuple[int, ...]
    """Indices into the manifest's pictures; ``batch_size`` of them, repeats at the end."""
    size: Size
    real: int
    """How many of them are no fill-ins, 1 to ``batch_size``."""
    first: int
    """The position in the epoch of the batch's first picture: a multiple of ``batch_size``."""
    name: str = ""
    """The pictures' common ``batch_id``; empty: a default batch."""

    @property
    def loss_factor(self) -> float:
        """What the loss of this batch is multiplied by: 1 for a full one."""
        return float((self.real / len(self.pictures)) ** SHORT_BATCH_POWER)


class Augmentation(Struct, frozen=True, kw_only=True):
    """How one picture looks at one position of one epoch."""

    caption: str
    flip: bool
    crop: Box
    """Cut this from the upright image, then scale it to the batch's size, then flip."""


def seed_of(*parts: object) -> int:
    """63 bits that depend on the parts alone: the same in every process and version of Python."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def job_seed(job: str, train: Train) -> int:
    """The request's seed; for -1 one that is drawn with the job's id, the same in every attempt."""
    drawn = uuid.uuid5(uuid.NAMESPACE_OID, job).int % SEEDS
    return drawn if train.seed == -1 else train.seed


def random_of(*parts: object) -> Random:
    """A generator of its own for the parts."""
    return Random(seed_of(*parts))


def plan_epoch(pictures: Sequence[Picture], epoch_config: EpochConfig, epoch: int) -> list[Batch]:
    """The batches of an epoch (0, 1, ...), in order."""
    random = random_of(epoch_config.seed, epoch, "order")
    chosen = choose(pictures, epoch_config, epoch, random)
    random.shuffle(chosen)
    batches = _ordered(
        _batches(pictures, chosen, epoch_config, random), epoch_config.grad_accum, random
    )
    return [_at(batch, number * epoch_config.batch_size) for number, batch in enumerate(batches)]


class Totals(Struct, frozen=True, kw_only=True):
    """What all epochs have together."""

    steps: int
    pixels: int
    """Repeats that fill batches counted."""


def steps_per_epoch(pictures: Sequence[Picture], epoch_config: EpochConfig, epoch: int = 0) -> int:
    """How many batches an epoch has; only multipliers and ratings make epochs differ."""
    return len(plan_epoch(pictures, epoch_config, epoch))


def total_steps(pictures: Sequence[Picture], epoch_config: EpochConfig) -> int:
    """How many batches all epochs have together."""
    return totals(pictures, epoch_config).steps


def totals(pictures: Sequence[Picture], epoch_config: EpochConfig) -> Totals:
    """Steps and pixels of all epochs."""
    if epoch_config.rated_percent is None and all(picture.multiply == 1 for picture in pictures):
        return totals_of_equal_epochs(plan_epoch(pictures, epoch_config, 0), epoch_config)
    epochs = [
        _total(plan_epoch(pictures, epoch_config, epoch)) for epoch in range(epoch_config.epochs)
    ]
    return Totals(
        steps=sum(epoch.steps for epoch in epochs), pixels=sum(epoch.pixels for epoch in epochs)
    )


def totals_of_equal_epochs(batches: Sequence[Batch], epoch_config: EpochConfig) -> Totals:
    """What the epochs have together when each is like this one."""
    epoch = _total(batches)
    return Totals(
        steps=epoch_config.epochs * epoch.steps, pixels=epoch_config.epochs * epoch.pixels
    )


def _total(batches: Sequence[Batch]) -> Totals:
    pixels = sum(len(batch.pictures) * batch.size.width * batch.size.height for batch in batches)
    return Totals(steps=len(batches), pixels=pixels)


def choose(
    pictures: Sequence[Picture], epoch_config: EpochConfig, epoch: int, random: Random
) -> list[int]:
    """Which pictures an epoch has, by index: each as often as its multiplier says.

    From its third epoch on a rated dataset has fewer, better-rated ones, each once.
    """
    if rated_share(epoch_config, epoch) < 1:
        count = rated_count(len(pictures), epoch_config, epoch)
        return weighted_sample([picture.rating for picture in pictures], count, random)
    return multiplied([picture.multiply for picture in pictures], random)


def rated_count(images: int, epoch_config: EpochConfig, epoch: int) -> int:
    """How many images an epoch of a rated dataset has: its share of them, rounded up."""
    return ceil(images * rated_share(epoch_config, epoch))


def rated_share(epoch_config: EpochConfig, epoch: int) -> Fraction:
    """The share of a rated dataset that an epoch has: all, all, then steadily less.

    With E epochs and the share t to lose: (E - (epoch - 1) * t) / E, so that the last of many
    epochs ends just above the share aimed at.
    """
    if epoch_config.rated_percent is None:
        return Fraction(1)
    lost = max(epoch - 1, 0) * Fraction(100 - epoch_config.rated_percent, 100)
    return (epoch_config.epochs - lost) / epoch_config.epochs


def multiplied(multipliers: Sequence[float], random: Random) -> list[int]:
    """Indices, each as often as its multiplier's whole part, or once more by chance of the rest.

    As many in all as the multipliers' sum, rounded down: 4 x 2.5 is 10. Sums are exact, as the
    decimals are written: 10 x 0.1 is 1.
    """
    exact = [Fraction(str(multiplier)) for multiplier in multipliers]
    whole = [index for index, value in enumerate(exact) for _ in range(floor(value))]
    rests = {index: value % 1 for index, value in enumerate(exact) if value % 1}
    return whole + _systematic(rests, floor(sum(rests.values())), random)


def _systematic(shares: dict[int, Fraction], count: int, random: Random) -> list[int]:
    """``count`` different keys, each with a probability exactly proportional to its share below 1.

    Systematic sampling: the shares are laid end to end in a random order, and evenly spaced marks
    from a random start say which are taken.
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
    """How the picture at ``index`` looks at ``position`` of an epoch.

    Caption dropout, flip and crop differ with every position, the order of tags with every epoch.
    """
    random = random_of(epoch_config.seed, epoch, position, "draw")
    dropped = random.random() < _own(picture.cond_dropout, epoch_config.cond_dropout)
    flip = random.random() < _own(picture.flip_p, epoch_config.flip_p)
    crop = _crop(picture, size, epoch_config, random)
    caption = "" if dropped else caption_of(picture, index, epoch_config, epoch)
    return Augmentation(caption=caption, flip=flip, crop=crop)


def caption_of(picture: Picture, index: int, epoch_config: EpochConfig, epoch: int) -> str:
    """A picture's caption in an epoch, its tags shuffled where that is asked for."""
    if not _own(picture.shuffle_tags, epoch_config.shuffle_tags):
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
    """The size at which a picture is trained."""
    return nearest(picture.width, picture.height, epoch_config.resolution)


def _crop(picture: Picture, size: Size, epoch_config: EpochConfig, random: Random) -> Box:
    if not epoch_config.jitter:
        return middle_box(picture.width, picture.height, size)
    return crop_box(picture.width, picture.height, size, random)


def _own(own: T | None, common: T) -> T:
    return common if own is None else own


def _batches(
    pictures: Sequence[Picture], chosen: Sequence[int], epoch_config: EpochConfig, random: Random
) -> list[Batch]:
    return [
        _filled(
            group[start : start + epoch_config.batch_size],
            size,
            epoch_config.batch_size,
            random,
            name,
        )
        for (name, size), group in _groups(pictures, chosen, epoch_config).items()
        for start in range(0, len(group), epoch_config.batch_size)
    ]


def _groups(
    pictures: Sequence[Picture], chosen: Sequence[int], epoch_config: EpochConfig
) -> dict[tuple[str, Size], list[int]]:
    """Indices by named batch and size; what fills no named batch goes to its size's default group.

    Everywhere the order is that of ``chosen``, so that a leftover is no likelier than others to end
    in a short batch.
    """
    keys = [
        (pictures[index].batch_id, bucket_of(pictures[index], epoch_config)) for index in chosen
    ]
    found = Counter(keys)
    groups: dict[tuple[str, Size], list[int]] = defaultdict(list)
    for index, key in zip(chosen, keys, strict=True):
        room = found[key] // epoch_config.batch_size * epoch_config.batch_size
        own = key if len(groups.get(key, ())) < room else ("", key[1])
        groups[own].append(index)
    return groups


def _filled(group: list[int], size: Size, batch_size: int, random: Random, name: str) -> Batch:
    """A batch of these pictures, with repeats of them where there are too few."""
    repeats = random.choices(group, k=batch_size - len(group))
    return Batch(pictures=(*group, *repeats), size=size, real=len(group), first=0, name=name)


def _ordered(batches: list[Batch], grad_accum: int, random: Random) -> list[Batch]:
    """Batches in random order; those of one name together in as few updates as can be."""
    random.shuffle(batches)
    named: dict[str, list[Batch]] = defaultdict(list)
    for batch in batches:
        named[batch.name].append(batch)
    default = named.pop("", [])
    if not named or grad_accum == 1:
        return batches
    updates = packed(list(named.values()), grad_accum, default)
    short = [updates.pop()] if len(updates[-1]) < grad_accum else []
    random.shuffle(updates)
    return [batch for update in (*updates, *short) for batch in update]


def _at(batch: Batch, first: int) -> Batch:
    return msgspec.structs.replace(batch, first=first)
