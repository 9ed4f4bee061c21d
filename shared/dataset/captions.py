"""Captions: a main prompt and tags, from a file's name or from caption files."""

from __future__ import annotations

import math
import re
import unicodedata
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import PurePosixPath
from random import Random
from typing import NamedTuple

from msgspec import Struct

SEPARATOR = ", "
"""Between the parts of a caption; a tag does not contain it."""

MAX_CHARACTERS = 8192
"""Of a caption; one in a file is cut, another one refused."""
MAX_TOKENS = 75
"""Of a caption; CLIP's limit is 77 with the start and end tokens."""


BYTE_ORDER_MARKS = {
    BOM_UTF8: "utf-8-sig",
    BOM_UTF32_LE: "utf-32",  # begins with UTF-16's mark, so it comes first
    BOM_UTF32_BE: "utf-32",
    BOM_UTF16_LE: "utf-16",
    BOM_UTF16_BE: "utf-16",
}
MAX_PLANE = 0x10
"""Of Unicode: the third byte of a character in UTF-32."""
MAX_LETTERS_TOGETHER = 2
"""Non-ASCII letters in a row in a text of a western language, as in "größer"."""
QUOTES = frozenset("‘’‚“”„–—…«»‹›")  # noqa: RUF001
"""They may stand before or after any letter."""
SIGNS = frozenset("•€£¥¢©®™°¿¡´·×÷±§¶ºª²³¹½¼¾µ¨¸ˆ˜\u00a0")  # noqa: RUF001
"""What else a western text has besides letters."""
CONTROLS_NAMED = 5
FEW_NULS = 5
"""Up to one NUL in so many bytes is no sign of UTF-16."""
ESCAPE = b"\x1b"
ESCAPING = ("iso2022_jp_ext", "iso2022_jp_2", "iso2022_jp_2004", "iso2022_kr")
"""Encodings in ASCII's bytes that switch alphabets by an escape character, as Japanese mail did."""
IN_ASCII = {
    "utf-7": re.compile(r"\+(?![a-z]+\b|[A-Z][a-z]*\b)[A-Za-z0-9+/]{3,}"),
    "hz": re.compile(r"~\{[!-}]{2,}~\}"),
}
"""Encodings in ASCII's letters and signs, and what their texts have; others may have it too."""
UNASSIGNED = frozenset({"Cn", "Co", "Cs", "Cc"})
_ESCAPED = re.compile(r"(?<!\\)\\+([()])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""Control characters except tabs and line breaks."""
UNSEEN = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})
"""Categories of controls, of zero-width characters and marks of direction, and of blanks."""
FILLERS = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Invisible characters that Unicode counts as letters, marks or signs."""


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


def unescaped(text: str) -> str:
    r"""The text with ``\(`` and ``\)`` as plain parentheses, as prompts are read.

    Tools that write captions escape them, because prompts give parentheses a meaning.
    """
    return _ESCAPED.sub(r"\1", text)


def parse(text: str) -> Caption:
    """Split at commas: the first part is the main prompt, the others are tags without duplicates.

    ``"main,, t , t, u,"`` has the tags ``"", "t", "u"``. A text of which nothing is seen but commas
    is an empty caption.
    """
    main, *tags = _parts(text)
    if not main and not any(tags):
        return Caption()
    return Caption(main, tuple(Tag(tag) for tag in dict.fromkeys(tags)))


def repeats_tags(text: str) -> bool:
    """Whether :func:`parse` leaves a tag out, because it is there before."""
    tags = [tag for tag in _parts(text)[1:] if tag]
    return len(set(tags)) < len(tags)


def has_empty_tag(caption: str, main_parts: int) -> bool:
    """Whether a caption that is trained on has a tag without words, as between two commas."""
    return not all(caption.split(SEPARATOR)[main_parts:])


def _parts(text: str) -> list[str]:
    return [visible(part) for part in unescaped(without_controls(text)).split(",")]


def visible(text: str) -> str:
    """The text without blanks at its ends; nothing, if only invisible characters are left."""
    shown = FILLERS.sub("", text)
    return "" if all(unicodedata.category(each) in UNSEEN for each in shown) else text.strip()


def without_controls(text: str) -> str:
    """The text without control characters; one that separates words becomes a blank."""
    return _CONTROLS.sub(lambda found: " " if found[0].isspace() else "", text)


def controls_in(text: str) -> str:
    """A line that names a text's control characters, which are taken out; empty: it has none."""
    found = sorted(set(_CONTROLS.findall(text)))
    names = ", ".join(f"U+{ord(each):04X}" for each in found[:CONTROLS_NAMED])
    more = ", ..." if len(found) > CONTROLS_NAMED else ""
    return f"control characters are taken out: {names}{more}" if found else ""


def from_name(name: str) -> Caption:
    """The caption in a file's name: its stem up to the first underscore.

    ``"a photo of ted bennet, sitting_1.jpg"`` gives ``a photo of ted bennet, sitting``;
    ``"_1.jpg"`` gives an empty caption.
    """
    return parse(caption_part(name))


def caption_part(name: str) -> str:
    """What of a file's name is its caption."""
    return PurePosixPath(name).stem.split("_", 1)[0]


class Decoded(NamedTuple):
    """A caption file's text, without blanks at its ends."""

    text: str
    encoding: str
    """Python's name for it."""
    is_doubtful: bool
    """The encoding is a guess, and the text does not look like what somebody wrote."""
    rather: str = ""
    """What it would be in an encoding that it may be in, which it is not taken for."""


def decode(raw: bytes) -> Decoded:
    """Decode a caption file: UTF-8, UTF-16 or UTF-32, else Windows code page 1252, else Latin-1.

    UTF-16, which Windows calls Unicode, and UTF-32 are recognised by their byte order mark, or by
    their NULs; ISO 2022 by its escape characters.
    """
    if raw.isascii() and b"\0" not in raw:
        if escaped := _from_escapes(raw):
            return escaped
        text = raw.decode().strip()
        return Decoded(text, "utf-8", b"\x1b$" in raw, _rather(text))
    has_mark = raw.startswith(tuple(BYTE_ORDER_MARKS))
    for encoding in (*_unicode_encodings(raw), "utf-8", "cp1252"):
        try:
            text = raw.decode(encoding).strip()
        except UnicodeDecodeError:
            continue
        is_guess = encoding == "cp1252"
        doubtful = "\ufffd" in text or (has_controls(text) and not encoding.startswith("utf-8"))
        doubtful = doubtful or (is_guess and (has_mark or not looks_western(text)))
        return Decoded(text, encoding, doubtful)
    return Decoded(raw.decode("latin-1").strip(), "latin-1", is_doubtful=True)


def _from_escapes(raw: bytes) -> Decoded | None:
    """A text in an encoding that escape characters show, if they all make sense in one."""
    for encoding in ESCAPING if ESCAPE in raw else ():
        try:
            text = raw.decode(encoding).strip()
        except UnicodeDecodeError:
            continue
        if not (text.isascii() or has_controls(text)):
            return Decoded(text, encoding, is_doubtful=False)
    return None


def _rather(text: str) -> str:
    """What a text of ASCII alone would be in another encoding, if it may well be in that."""
    for encoding, sign in IN_ASCII.items():
        if sign.search(text):
            try:
                other = text.encode().decode(encoding)
            except UnicodeDecodeError:
                continue
            if not other.isascii() and UNASSIGNED.isdisjoint(map(unicodedata.category, other)):
                return other
    return ""


def _unicode_encodings(raw: bytes) -> Iterator[str]:
    """The encodings that a byte order mark or NULs speak for."""
    yield from (name for mark, name in BYTE_ORDER_MARKS.items() if raw.startswith(mark))
    plain = raw.rstrip(b"\0")
    if b"\0" not in raw or (len(plain) > 1 and b"\0" not in plain and plain.isascii()):
        return  # without NULs, or with some behind it, as programs in C write a text
    if raw.count(0) * FEW_NULS < len(raw) and _is_utf_8(raw):
        return  # UTF-16 has more of them, or letters whose bytes are no UTF-8
    if len(raw) % 4 == 0:
        if not any(raw[3::4]) and max(raw[2::4]) <= MAX_PLANE:
            yield "utf-32-le"
        if not any(raw[::4]) and max(raw[1::4]) <= MAX_PLANE:
            yield "utf-32-be"
    if len(raw) % 2 == 0:
        yield "utf-16-le" if raw[1::2].count(0) >= raw[::2].count(0) else "utf-16-be"


def _is_utf_8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def has_controls(text: str) -> bool:
    """Whether it has control or replacement characters, which nobody writes into a caption."""
    return any(
        letter == "\ufffd" or (unicodedata.category(letter) == "Cc" and letter not in "\t\n\r")
        for letter in text
    )


def looks_western(text: str) -> bool:
    """Whether a text that was decoded by a code page of western languages is in one of them.

    Other code pages give letters of many alphabets, drawing characters, and long runs of accents.
    """
    run = 0
    for letter in text:
        if letter in QUOTES:
            continue
        run = 0 if letter.isascii() else run + 1
        is_known = run == 0 or letter in SIGNS or unicodedata.name(letter, "").startswith("LATIN ")
        if run > MAX_LETTERS_TOGETHER or not is_known:
            return False
    return not has_controls(text)


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
