"""Read one caption or option file: its values, and a line for each that is not taken as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Any

import yaml
from msgspec import Struct
from msgspec.structs import replace

from shared.dataset.captions import (
    MAX_CHARACTERS,
    Caption,
    Decoded,
    Tag,
    controls_in,
    decode,
    merge,
    parse,
    repeats_tags,
    unescaped,
    visible,
    without_controls,
)

MAX_YAML_DEPTH = 20
"""Lists and mappings in one another."""
MAX_MULTIPLY = 1000.0
MAX_NAME_CHARACTERS = 100
"""Of a named batch's name."""
MOST_DIGITS = 20
"""Of a whole number."""
SHOWN_VALUE = 60
"""Characters of a value in a line."""
NEAR = 0.6
"""How alike a key and a known one must be for the line to name it, 0 to 1."""
TRUE = frozenset({"true", "yes", "1", "on"})
FALSE = frozenset({"false", "no", "0", "off"})
NOTHING = frozenset({"", "~", "null"})
"""What stands for no value in YAML, if it is not quoted."""


class ImageOptions(Struct, frozen=True, kw_only=True):
    """Caption and options from one file, or merged from all; None: not given."""

    caption: Caption = Caption()
    multiply: float | None = None
    rating: float | None = None
    cond_dropout: float | None = None
    flip_p: float | None = None
    shuffle_tags: bool | None = None
    loss_scale: float | None = None
    batch_id: str | None = None
    max_caption_length: int | None = None


class TextFile(Struct, frozen=True, kw_only=True):
    """What one text file says."""

    options: ImageOptions = ImageOptions()
    remarks: tuple[str, ...] = ()
    """What of it is not taken, or not as it stands, without the file's name."""
    lines: int = 0
    """Of a plain caption that are not empty."""
    has_repeats: bool = False
    """A tag of a caption is there twice, and counts once."""
    is_empty: bool = False
    """It is there for a caption, and has none that anybody sees."""


SCALARS = tuple(name for name in ImageOptions.__struct_fields__ if name != "caption")
TEXT_KEYS = ("caption", "main_prompt", "tags")
CAPTION_KEYS = ("main_prompt", "tags", *SCALARS)
YAML_KEYS = ("caption", *CAPTION_KEYS)
TAG_KEYS = ("tag", "weight")
YAML_SUFFIXES = (".yaml", ".yml")


def read_text_file(name: str, raw: bytes) -> TextFile:
    """What a file says, by its name inside the archive; nothing that it says raises."""
    decoded = decode(raw)
    read = _read(PurePosixPath(name.lower()), without_controls(decoded.text).strip())
    return replace(read, remarks=(*_doubts(decoded), *read.remarks))


def _read(path: PurePosixPath, text: str) -> TextFile:
    remarks: list[str] = []
    if path.suffix in YAML_SUFFIXES:
        read = _from_yaml(text, remarks)
    elif path.name in SINGLE_VALUE_FILES:
        read = TextFile(options=_from_single_value(path.stem, text, remarks))
    else:
        caption, lines = parse(text), sum(bool(line.strip()) for line in text.splitlines())
        return TextFile(
            options=ImageOptions(caption=caption),
            lines=lines,
            has_repeats=repeats_tags(text),
            is_empty=not caption.text,
        )
    return replace(read, remarks=tuple(remarks))


def _doubts(decoded: Decoded) -> Iterator[str]:
    if decoded.is_doubtful:
        yield (
            f"its text may be garbage: read as {decoded.encoding}, it begins with"
            f" {decoded.text[:SHOWN_VALUE]!r}; save it as UTF-8"
        )
    elif decoded.rather:
        yield (
            f"its text is taken as it stands, and would be {decoded.rather[:SHOWN_VALUE]!r} in"
            " another encoding; save it as UTF-8 if that is meant"
        )
    if removed := controls_in(decoded.text):
        yield removed


def _from_single_value(option: str, text: str, remarks: list[str]) -> ImageOptions:
    if option == "shuffle_tags" and not text:
        return ImageOptions(shuffle_tags=True)  # by its presence, as in EveryDream2
    try:
        value = SCALAR_TYPES[option](text)
        remarks += _zero_counts_as_one(option, text)
        return ImageOptions(**{option: value})
    except ValueError as error:
        remarks.append(f"{_shown(text)}: {error}; left out")
        return ImageOptions()


# --- The values of options --------------------------------------------------------------------


def _number(low: float, high: float, *, zero_is_one: bool = False) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        try:
            number = float(value) if _is_written_plainly(value) else math.nan
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise ValueError(f"expected a number from {low:g} to {high:g}, such as 0.5")
        return 1.0 if zero_is_one and number == 0 else number

    return read


def _is_written_plainly(value: Any) -> bool:
    """Python's own numbers may have digits of any alphabet, and underscores as in ``1_0``."""
    return isinstance(value, str) and value.isascii() and "_" not in value


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        text = value.strip() if isinstance(value, str) else ""
        is_number = text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS
        if not (is_number and low <= int(text) <= high):
            raise ValueError(f"expected a whole number from {low} to {high}")
        return int(text)

    return read


def _name(value: Any) -> str:
    name = _text(value)
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS or len(name.splitlines()) > 1:
        raise ValueError(f"expected a name of 1 to {MAX_NAME_CHARACTERS} characters on one line")
    return name


def _boolean(value: Any) -> bool:
    text = value.strip().lower() if isinstance(value, str) else ""
    if text not in TRUE | FALSE:
        raise ValueError("expected true or false")
    return text in TRUE


def _zero_counts_as_one(field: str, given: Any) -> Iterator[str]:
    """A line on a valid value of zero, by which somebody may mean to leave an image or tag out."""
    if field.endswith(("multiply", "rating", "weight")) and float(given) == 0:
        yield f"{field}: 0 counts as 1; to leave the image or tag out, take it out of the zip"


SCALAR_TYPES: dict[str, Callable[[Any], Any]] = {
    "multiply": _number(0, MAX_MULTIPLY, zero_is_one=True),
    "rating": _number(0, 1e6, zero_is_one=True),
    "cond_dropout": _number(0, 1),
    "flip_p": _number(0, 1),
    "shuffle_tags": _boolean,
    "loss_scale": _number(-100, 100),
    "batch_id": _name,
    "max_caption_length": _integer(1, MAX_CHARACTERS),
}
SINGLE_VALUE_FILES = (
    "multiply.txt",
    "cond_dropout.txt",
    "flip_p.txt",
    "shuffle_tags.txt",
    "loss_scale.txt",
    "batch_id.txt",
)


def _shown(value: Any) -> str:
    """A value as a line shows it."""
    text = repr(value)
    return text if len(text) <= SHOWN_VALUE else f"{text[:SHOWN_VALUE]}..."


# --- YAML -------------------------------------------------------------------------------------


def _from_yaml(text: str, remarks: list[str]) -> TextFile:
    """The fields of a YAML file; one that is wrong is left out alone, with a remark."""
    try:
        fields = _known(_parse_mapping(text, remarks), YAML_KEYS, "", remarks)
    except ValueError as error:
        remarks.append(f"{error}; the whole file is left out")
        return TextFile()
    if isinstance(nested := fields.get("caption"), dict):
        inner = _known(nested, CAPTION_KEYS, "caption.", remarks)
        remarks += [
            f"{key}: left out, because caption.{key} is given too" for key in inner if key in fields
        ]
        fields = {**fields, "caption": None, **inner}
    text = _one_text(fields.get("caption"), "caption", remarks)
    plain = parse(text)
    main = unescaped(_one_text(fields.get("main_prompt"), "main_prompt", remarks))
    if main and plain.main and main != plain.main:
        remarks.append(
            f"caption: {_shown(plain.main)} is left out, because main_prompt says {_shown(main)};"
            " write one of them"
        )
    structured = Caption(main, _each_once(list(_tags(fields.get("tags"), remarks)), remarks))
    caption = merge([structured, plain])
    is_repeated = len(caption.tags) < len(structured.tags) + len(plain.tags)
    return TextFile(
        options=ImageOptions(caption=caption, **_scalars(fields, remarks)),
        has_repeats=is_repeated or repeats_tags(text),
        is_empty=not caption.text and (not fields or any(key in fields for key in TEXT_KEYS)),
    )


def _scalars(fields: dict[str, Any], remarks: list[str]) -> dict[str, Any]:
    read = {}
    for name in SCALARS:
        if fields.get(name) is None:
            continue
        try:
            read[name] = SCALAR_TYPES[name](fields[name])
            remarks += _zero_counts_as_one(name, fields[name])
        except ValueError as error:
            remarks.append(f"{name}: {_shown(fields[name])}: {error}; left out")
    return read


def _known(
    fields: dict[str, Any], known: tuple[str, ...], where: str, remarks: list[str]
) -> dict[str, Any]:
    """The known keys; another one gets a remark, with the nearest known name.

    A key that is known but for its capitals is taken, unless the plain one is there too.
    """
    taken = {key: value for key, value in fields.items() if key in known}
    for key, value in fields.items():
        if key in known:
            continue
        if (plain := key.strip().lower()) in known and plain not in taken:
            taken[plain] = value
            remarks.append(f"{where}{key}: read as {plain}; write it so")
            continue
        near = get_close_matches(key.lower(), known, 1, NEAR)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        remarks.append(f"{where}{_shown(key)[1:-1]}: no option of this name, left out; {hint}")
    return taken


PLAIN_TAGS = frozenset(
    {"str", "seq", "map", "null", "bool", "int", "float", "timestamp", "merge", "value"}
)
"""What YAML itself finds in a value, or a person may say of it without a difference."""


class _Loader(yaml.SafeLoader):
    """Composes at most so many levels; aliases are refused: they make a short text enormous."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("YAML aliases are not taken")
        self.depth += 1
        if self.depth > MAX_YAML_DEPTH:
            raise ValueError(f"more than {MAX_YAML_DEPTH} levels of YAML")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _parse_mapping(text: str, remarks: list[str]) -> dict[str, Any]:
    """Parse a YAML mapping of texts, lists and mappings."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        document = None if node is None else _plain(node, "", remarks)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(
            f"not YAML that can be read ({' '.join(str(error).split())[:200]});"
            " put a text with ': ' or ' #' in quotes"
        ) from None
    if document is not None and not isinstance(document, dict):
        raise ValueError("expected a mapping such as main_prompt: a cat")
    return document or {}


def _plain(node: yaml.Node, where: str, remarks: list[str]) -> Any:
    """A node's value: texts stay texts, so that 007, no and 16:9 are captions, not numbers."""
    if (tag := node.tag.removeprefix("tag:yaml.org,2002:")) not in PLAIN_TAGS:
        remarks.append(
            f"{where.removesuffix('.') or 'the whole'}: the YAML tag {_shown(tag)[1:-1]} means"
            " nothing here; the value is read as it stands"
        )
    if isinstance(node, yaml.SequenceNode):
        return [_plain(each, where, remarks) for each in node.value]
    if isinstance(node, yaml.MappingNode):
        return _pairs(node, where, remarks)
    given = str(node.value)
    if removed := controls_in(given):
        remarks.append(f"{where.removesuffix('.')}: {removed}")
    text = without_controls(given)
    is_bare = isinstance(node, yaml.ScalarNode) and node.style is None
    return None if is_bare and text.lower() in NOTHING else text


def _pairs(node: yaml.MappingNode, where: str, remarks: list[str]) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "a list"
        if key in pairs:
            remarks.append(f"{where}{key}: given twice; the last one is used")
        pairs[key] = _plain(value_node, f"{where}{key}.", remarks)
    return pairs


def _text(value: Any) -> str:
    return visible(value) if isinstance(value, str) else ""


def _one_text(value: Any, field: str, remarks: list[str]) -> str:
    """A text, or the first of a list."""
    if value is None or isinstance(value, str):
        return _text(value)
    first = next((_text(each) for each in value if _text(each)), "")
    if first and isinstance(value, list):
        remarks.append(f"{field}: {_shown(value)}: expected a text; its first, {first!r}, is used")
        return first
    remarks.append(f"{field}: {_shown(value)}: expected a text; left out")
    return ""


def _tags(value: Any, remarks: list[str]) -> Iterator[Tag]:
    """Tags from a text, or from a list of texts and ``{tag, weight}``; commas separate tags."""
    if isinstance(value, dict):
        remarks.append(f"tags: {_shown(value)}: expected a list; left out")
        return
    for number, entry in enumerate([value] if isinstance(value, str) else value or []):
        where = f"tags[{number}]"
        fields = entry if isinstance(entry, dict) else {"tag": entry}
        fields = _known(fields, TAG_KEYS, f"{where}.", remarks)
        text = fields.get("tag")
        if not isinstance(text, str):
            remarks.append(
                f"{where}: {_shown(entry)}: expected a text or {{tag, weight}}; left out"
            )
            continue
        weight = _weight(fields.get("weight"), where, remarks)
        parts = (visible(part) for part in unescaped(text).split(","))
        yield from (Tag(part, weight) for part in parts if part)


def _each_once(tags: Sequence[Tag], remarks: list[str]) -> tuple[Tag, ...]:
    """The tags without those that are there again, which get a remark."""
    once: dict[str, Tag] = {}
    for tag in tags:
        if tag.text in once:
            remarks.append(
                f"tags: {_shown(tag.text)} is given twice; weight {tag.weight:g} is used"
            )
        once[tag.text] = tag
    return tuple(once.values())


def _weight(value: Any, where: str, remarks: list[str]) -> float:
    """A tag's weight; 1 for one that is left out."""
    if value is None:
        return 1.0
    try:
        weight = float(SCALAR_TYPES["rating"](value))
    except ValueError as error:
        remarks.append(f"{where}.weight: {_shown(value)}: {error}; 1 is used")
        return 1.0
    remarks += _zero_counts_as_one(f"{where}.weight", value)
    return weight
