"""Captions: a main prompt and tags, from a file's name or from caption files."""

from __future__ import annotations

import math
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import PurePosixPath
from random import Random

from msgspec import Struct

SEPARATOR = ", "
"""Between the parts of a caption; a tag does not contain it."""

MAX_TOKENS = 75
"""Of a caption; CLIP's limit is 77 with the start and end tokens."""


class Tag(Struct, frozen=True):
    """One part of a caption after the first comma."""

    text: str
    weight: float = 1.0
    """Greater than 0; heavier tags tend to come earlier."""


class Caption(Struct, frozen=True):
    """A main prompt, which always comes first, and tags."""

    main: str = ""
    tags: tuple[Tag, ...] = ()

    @property
    def text(self) -> str:
        """The caption as it is trained on without shuffling."""
        return join((self.main, *(tag.text for tag in self.tags)))

    @property
    def main_parts(self) -> int:
        """How many parts of the text belong to the main prompt."""
        return self.main.count(SEPARATOR) + 1

    @property
    def weights(self) -> tuple[float, ...]:
        """One weight per tag, or nothing if all are equal."""
        weights = tuple(tag.weight for tag in self.tags)
        return weights if len(set(weights)) > 1 else ()


def join(parts: Iterable[str]) -> str:
    return SEPARATOR.join(parts)


def parse(text: str) -> Caption:
    """Split at commas: the first part is the main prompt, the others are tags without duplicates.

    ``"main,, t , t, u,"`` has the tags ``"", "t", "u"``.
    """
    main, *tags = (part.strip() for part in text.strip().split(","))
    return Caption(main, tuple(Tag(tag) for tag in dict.fromkeys(tags)))


def from_name(name: str) -> Caption:
    """The caption in a file's name: its stem up to the first underscore.

    ``"a photo of ted bennet, sitting_1.jpg"`` gives ``a photo of ted bennet, sitting``;
    ``"_1.jpg"`` gives an empty caption.
    """
    return parse(PurePosixPath(name).stem.split("_", 1)[0])


def decode(raw: bytes) -> str:
    """Decode a caption file: UTF-8, else Windows code page 1252, else Latin-1.

    UTF-16, which Windows calls Unicode, is recognised by its byte order mark.
    """
    marked = ("utf-16",) if raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else ()
    for encoding in (*marked, "utf-8-sig", "cp1252"):
        try:
            return raw.decode(encoding).strip()
        except UnicodeDecodeError:
            continue
    return raw.decode("latin-1").strip()


def merge(captions: Sequence[Caption]) -> Caption:
    """The first main prompt that is not empty, and all tags without duplicates, heaviest first."""
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
    """The caption with its tags shuffled; the main prompt and the first ``keep_tags`` tags stay.

    With ``weights``, one per tag or none at all, tags are drawn one by one without replacement,
    each with a probability proportional to its weight.
    """
    parts = text.split(SEPARATOR)
    kept, tags = parts[: main_parts + keep_tags], parts[main_parts + keep_tags :]
    if weights:
        keys = [_exponential(weight, random) for weight in weights[keep_tags:]]
        tags = [tag for _, tag in sorted(zip(keys, tags, strict=True))]
    else:
        random.shuffle(tags)
    return join((*kept, *tags))


def bounded(text: str, main_parts: int, limit: int) -> str:
    """Limit a caption's characters: it ends before the first tag that would exceed the limit.

    A main prompt that is too long is cut.
    """
    if len(text) <= limit:
        return text
    parts = text.split(SEPARATOR)
    ends = list(accumulate(len(part) + len(SEPARATOR) for part in parts))
    tags = sum(end - len(SEPARATOR) <= limit for end in ends[main_parts:])
    return join(parts[: main_parts + tags])[:limit]


def weighted_sample(weights: Sequence[float], count: int, random: Random) -> list[int]:
    """Draw ``count`` different indices one by one, with probabilities proportional to the weights.

    The smallest of independent exponential variables is the i-th with probability w_i / sum(w),
    and so on for the rest (Efraimidis and Spirakis, 2006), so sorting by these keys gives exactly
    the order of the draws.
    """
    keys = [_exponential(weight, random) for weight in weights]
    return sorted(range(len(keys)), key=keys.__getitem__)[:count]


def _exponential(weight: float, random: Random) -> float:
    return -math.log(1.0 - random.random()) / weight
