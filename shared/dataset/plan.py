"""The plan of an epoch: which pictures make which batch, and how each is drawn.

All of it is a pure function of the manifest, the seed and the epoch, the same in every process;
so a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from math import ceil, floor
from random import Random
from typing import TypeVar

import msgspec
from msgspec import Struct

from shared.dataset.buckets import Box, Size, crop_box, nearest
from shared.dataset.captions import shuffled, weighted_sample
from shared.dataset.manifest import Picture

T = TypeVar("T")

SHORT_BATCH_POWER = 1.5
"""EveryDream2's exponent for the loss of batches that repeats had to fill."""


class Course(Struct, frozen=True, kw_only=True):
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


class Batch(Struct, frozen=True, kw_only=True):
    """Pictures of one shape that are trained on together."""

    pictures: tuple[int, ...]
    """Indices into the manifest's pictures; ``batch_size`` of them, repeats at the end."""
    size: Size
    real: int
    """How many of them are no fill-ins, 1 to ``batch_size``."""
    first: int
    """The position in the epoch of the batch's first picture: a multiple of ``batch_size``."""

    @property
    def loss_factor(self) -> float:
        """What the loss of this batch is multiplied by: 1 for a full one."""
        return float((self.real / len(self.pictures)) ** SHORT_BATCH_POWER)


class Draw(Struct, frozen=True, kw_only=True):
    """How one picture looks at one position of one epoch."""

    caption: str
    flip: bool
    crop: Box
    """Cut this from the upright image, then scale it to the batch's size, then flip."""


def seed_of(*parts: object) -> int:
    """63 bits that depend on the parts alone: the same in every process and version of Python."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def random_of(*parts: object) -> Random:
    """A generator of its own for the parts."""
    return Random(seed_of(*parts))


def plan_epoch(pictures: Sequence[Picture], course: Course, epoch: int) -> list[Batch]:
    """The batches of an epoch (0, 1, ...), in order."""
    random = random_of(course.seed, epoch, "order")
    chosen = choose(pictures, course, epoch, random)
    random.shuffle(chosen)
    batches = _batches(pictures, chosen, course, random)
    random.shuffle(batches)
    return [_at(batch, number * course.batch_size) for number, batch in enumerate(batches)]


def steps_per_epoch(pictures: Sequence[Picture], course: Course, epoch: int = 0) -> int:
    """How many batches an epoch has; only multipliers and ratings make epochs differ."""
    return len(plan_epoch(pictures, course, epoch))


def total_steps(pictures: Sequence[Picture], course: Course) -> int:
    """How many batches all epochs have together."""
    if course.rated_percent is None and all(picture.multiply == 1 for picture in pictures):
        return course.epochs * steps_per_epoch(pictures, course)
    return sum(steps_per_epoch(pictures, course, epoch) for epoch in range(course.epochs))


def choose(pictures: Sequence[Picture], course: Course, epoch: int, random: Random) -> list[int]:
    """Which pictures an epoch has, by index: each as often as its multiplier says.

    A later epoch of a rated dataset has fewer, better-rated ones, each once.
    """
    count = rated_count(len(pictures), course, epoch)
    if count < len(pictures):
        return weighted_sample([picture.rating for picture in pictures], count, random)
    return multiplied([picture.multiply for picture in pictures], random)


def rated_count(images: int, course: Course, epoch: int) -> int:
    """How many images an epoch of a rated dataset has: all, all, then steadily fewer.

    With E epochs and the share t to lose: ceil(images * (E - (epoch - 1) * t) / E), so that the
    last of many epochs ends just above the share aimed at.
    """
    if course.rated_percent is None:
        return images
    lost = max(epoch - 1, 0) * Fraction(100 - course.rated_percent, 100)
    return ceil(images * (course.epochs - lost) / course.epochs)


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


def draw(
    picture: Picture, index: int, size: Size, course: Course, *, epoch: int, position: int
) -> Draw:
    """How the picture at ``index`` looks at ``position`` of an epoch.

    Caption dropout, flip and crop differ with every position, the order of tags with every epoch.
    """
    random = random_of(course.seed, epoch, position, "draw")
    dropped = random.random() < _own(picture.cond_dropout, course.cond_dropout)
    flip = random.random() < _own(picture.flip_p, course.flip_p)
    crop = crop_box(picture.width, picture.height, size, random)
    caption = "" if dropped else caption_of(picture, index, course, epoch)
    return Draw(caption=caption, flip=flip, crop=crop)


def caption_of(picture: Picture, index: int, course: Course, epoch: int) -> str:
    """A picture's caption in an epoch, its tags shuffled where that is asked for."""
    if not _own(picture.shuffle_tags, course.shuffle_tags):
        return picture.caption
    return shuffled(picture.caption, picture.weights, random_of(course.seed, epoch, index, "tags"))


def _own(own: T | None, common: T) -> T:
    return common if own is None else own


def _batches(
    pictures: Sequence[Picture], chosen: Sequence[int], course: Course, random: Random
) -> list[Batch]:
    groups: dict[Size, list[int]] = defaultdict(list)
    for index in chosen:
        picture = pictures[index]
        groups[nearest(picture.width, picture.height, course.resolution)].append(index)
    return [
        _filled(group[start : start + course.batch_size], size, course.batch_size, random)
        for size, group in groups.items()
        for start in range(0, len(group), course.batch_size)
    ]


def _filled(group: list[int], size: Size, batch_size: int, random: Random) -> Batch:
    """A batch of these pictures, with repeats of them where there are too few."""
    repeats = random.choices(group, k=batch_size - len(group))
    return Batch(pictures=(*group, *repeats), size=size, real=len(group), first=0)


def _at(batch: Batch, first: int) -> Batch:
    return msgspec.structs.replace(batch, first=first)
