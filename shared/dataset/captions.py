"""Captions: a main prompt and tags, from a file's name or from texts beside it."""

from __future__ import annotations

import math
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import PurePosixPath
from random import Random

from msgspec import Struct

SEPARATOR = ", "
"""Between the parts of a caption; no tag has one inside."""


MAX_TOKENS = 75
"""Of a caption, as CLIP sees it: 77 with the marks of its beginning and its end."""


class Tag(Struct, frozen=True):
    """One part of a caption after the first comma."""

    text: str
    weight: float = 1.0
    """How early it tends to come: greater than 0."""


class Caption(Struct, frozen=True):
    """A main prompt, which always stays in front, and tags."""

    main: str = ""
    tags: tuple[Tag, ...] = ()

    @property
    def text(self) -> str:
        """The caption as it is trained on when nothing is shuffled."""
        return join((self.main, *(tag.text for tag in self.tags)))

    @property
    def main_parts(self) -> int:
        """How many parts of the text are the main prompt."""
        return self.main.count(SEPARATOR) + 1

    @property
    def weights(self) -> tuple[float, ...]:
        """One weight per tag, or nothing when all are alike."""
        weights = tuple(tag.weight for tag in self.tags)
        return weights if len(set(weights)) > 1 else ()


def join(parts: Iterable[str]) -> str:
    return SEPARATOR.join(parts)


def parse(text: str) -> Caption:
    """Split at commas: the first part is the main prompt, the others are tags, each once.

    ``"main,, t , t, u,"`` has the tags ``"", "t", "u"``.
    """
    main, *tags = (part.strip() for part in text.strip().split(","))
    return Caption(main, tuple(Tag(tag) for tag in dict.fromkeys(tags)))


def from_name(name: str) -> Caption:
    """The caption in a file's name: its stem up to the first underscore.

    ``"a photo of ted bennet, sitting_1.jpg"`` says ``a photo of ted bennet, sitting``;
    ``"_1.jpg"`` says nothing.
    """
    return parse(PurePosixPath(name).stem.split("_", 1)[0])


def decode(raw: bytes) -> str:
    """A caption file's text: UTF-8, else the Windows code page 1252, else Latin-1.

    UTF-16, which Windows calls Unicode, is known by the mark at its beginning.
    """
    marked = ("utf-16",) if raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else ()
    for encoding in (*marked, "utf-8-sig", "cp1252"):
        try:
            return raw.decode(encoding).strip()
        except UnicodeDecodeError:
            continue
    return raw.decode("latin-1").strip()


def merge(captions: Sequence[Caption]) -> Caption:
    """The first main prompt that says something, and every tag once, the heaviest first."""
    main = next((caption.main for caption in captions if caption.main), "")
    tags = {tag.text: tag for caption in reversed(captions) for tag in caption.tags}
    in_order = dict.fromkeys(tag.text for caption in captions for tag in caption.tags)
    heaviest_first = sorted((tags[text] for text in in_order), key=lambda tag: -tag.weight)
    return Caption(main, tuple(heaviest_first))


def shuffled(
    text: str,
    weights: Sequence[float],
    random: Random,
    *,
    main_parts: int = 1,
    keep_tags: int = 0,
) -> str:
    """The same caption with its tags in another order; the main prompt stays.

    Tags of different weights are drawn one after the other without being put back, each with a
    probability proportional to its weight. ``weights`` holds one per tag, or nothing. The first
    ``keep_tags`` tags stay where they are.
    """
    parts = text.split(SEPARATOR)
    kept, tags = parts[: main_parts + keep_tags], parts[main_parts + keep_tags :]
    if weights:
        keys = [_exponential(weight, random) for weight in weights[keep_tags:]]
        tags = [tag for _, tag in sorted(zip(keys, tags, strict=True))]
    else:
        random.shuffle(tags)
    return join((*kept, *tags))


def bounded(text: str, main_parts: int, most: int) -> str:
    """A caption of at most so many characters: it ends before the first tag that would overshoot.

    A main prompt that is too long by itself is cut.
    """
    if len(text) <= most:
        return text
    parts = text.split(SEPARATOR)
    ends = list(accumulate(len(part) + len(SEPARATOR) for part in parts))
    tags = sum(end - len(SEPARATOR) <= most for end in ends[main_parts:])
    return join(parts[: main_parts + tags])[:most]


def weighted_sample(weights: Sequence[float], count: int, random: Random) -> list[int]:
    """``count`` different indices, drawn one by one, each with probability proportional to weight.

    The smallest of independent exponential variables is the i-th with probability w_i / sum(w),
    and so on for the rest (Efraimidis and Spirakis, 2006), so the order of the keys is the order of
    the draws, exactly.
    """
    keys = [_exponential(weight, random) for weight in weights]
    return sorted(range(len(keys)), key=keys.__getitem__)[:count]


def _exponential(weight: float, random: Random) -> float:
    return -math.log(1.0 - random.random()) / weight
