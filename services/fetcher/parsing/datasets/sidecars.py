"""Read an image's sidecar files: captions, tags and training options, by EveryDream2's rules.

For an image ``a/b.png`` these files count, the nearest first: ``a/b.yaml``, ``.yml``, ``.caption``
and ``.txt``; ``a/local.yaml`` and single-value files such as ``a/multiply.txt``; ``global.yaml`` in
``a`` and in every parent folder. A caption is always text: it never names a file to read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, TypeVar

import yaml
from msgspec import Struct

from shared.dataset.captions import Caption, Tag, decode, from_name, merge, parse

T = TypeVar("T")

MAX_YAML_CHARACTERS = 4096
MAX_YAML_BRACKETS = 500
"""Parse time grows with the square of the nesting depth; this many take half a second."""
MAX_MULTIPLY = 1000.0
MAX_NAME_CHARACTERS = 100
"""Of a named batch's name."""
MAX_CAPTION_CHARACTERS = 8192
"""Longer captions are cut to this length."""
TRUE = frozenset({"true", "yes", "1", "on"})
FALSE = frozenset({"false", "no", "0", "off"})


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


SCALARS = tuple(name for name in ImageOptions.__struct_fields__ if name != "caption")
SIDECAR_SUFFIXES = (".yaml", ".yml", ".caption", ".txt")
"""Suffixes of the files that belong to one image, the highest priority first."""


class Sidecars:
    """All text files of an archive, by path."""

    def __init__(self, texts: Mapping[str, bytes]) -> None:
        self._texts = {_with_lower_suffix(name): raw for name, raw in texts.items()}
        self._parsed: dict[str, ImageOptions] = {}
        self.warnings: list[str] = []
        """One sentence with the file's name for each file that could not be parsed."""

    def options(self, image: str) -> tuple[ImageOptions, bool]:
        """An image's merged options, and whether its caption comes from a file, not its name."""
        layers = [self._options(name) for name in _sidecar_names(PurePosixPath(image))]
        captions = [layer.caption for layer in layers]
        from_file = any(caption.main for caption in captions)
        if not from_file:
            captions = [from_name(image), *captions]
        scalars = {name: _first_value(layers, name) for name in SCALARS}
        return ImageOptions(caption=merge(captions), **scalars), from_file

    def has_empty_caption_file(self, image: str) -> bool:
        """Whether one of the image's own caption files exists but is empty."""
        path = PurePosixPath(image)
        own = (self._texts.get(str(path.with_suffix(suffix))) for suffix in SIDECAR_SUFFIXES)
        return any(raw is not None and not decode(raw) for raw in own)

    def _options(self, name: str) -> ImageOptions:
        """Cached only for files that exist: there are far too many names that do not."""
        if name not in self._texts:
            return ImageOptions()
        if name not in self._parsed:
            self._parsed[name] = self._parse(name, self._texts[name])
        return self._parsed[name]

    def _parse(self, name: str, raw: bytes) -> ImageOptions:
        path, text = PurePosixPath(name), decode(raw)
        try:
            if path.suffix in (".yaml", ".yml"):
                return _from_yaml(text)
            if path.name in SINGLE_VALUE_FILES:
                return ImageOptions(**{path.stem: SCALAR_TYPES[path.stem](text)})
        except ValueError as error:
            self.warnings.append(f"{name}: {error}; left out")
            return ImageOptions()
        return ImageOptions(caption=parse(text))


def _with_lower_suffix(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_suffix(path.suffix.lower()))


def _sidecar_names(image: PurePosixPath) -> Iterator[str]:
    """Names of the files that may apply to an image, the nearest first."""
    for suffix in SIDECAR_SUFFIXES:
        yield str(image.with_suffix(suffix))
    for name in ("batch_id.txt", "loss_scale.txt", "local.yaml", "local.yml", *SINGLE_VALUE_FILES):
        yield str(image.parent / name)
    for folder in image.parents:
        yield str(folder / "global.yaml")
        yield str(folder / "global.yml")


def _first_value(layers: list[ImageOptions], name: str) -> Any:
    values = (getattr(layer, name) for layer in layers)
    return next((value for value in values if value is not None), None)


def _number(low: float, high: float, *, zero_is_one: bool = False) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not low <= number <= high:
            raise ValueError(f"{str(value)[:40]!r}: expected a number from {low:g} to {high:g}")
        return 1.0 if zero_is_one and number == 0 else number

    return read


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            shown = str(value)[:40]
            raise ValueError(f"{shown!r}: expected a whole number from {low} to {high}")
        return value

    return read


def _name(value: Any) -> str:
    name = _text(value)
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS:
        raise ValueError(f"{name[:40]!r}: expected a name of 1 to {MAX_NAME_CHARACTERS} characters")
    return name


def _boolean(value: Any) -> bool:
    text = str(value).strip().lower() if isinstance(value, bool | int | str) else ""
    if text not in TRUE | FALSE:
        raise ValueError(f"{str(value)[:40]!r}: expected true or false")
    return text in TRUE


SCALAR_TYPES: dict[str, Callable[[Any], Any]] = {
    "multiply": _number(0, MAX_MULTIPLY, zero_is_one=True),
    "rating": _number(0, 1e6, zero_is_one=True),
    "cond_dropout": _number(0, 1),
    "flip_p": _number(0, 1),
    "shuffle_tags": _boolean,
    "loss_scale": _number(-100, 100),
    "batch_id": _name,
    "max_caption_length": _integer(1, MAX_CAPTION_CHARACTERS),
}
SINGLE_VALUE_FILES = (
    "multiply.txt",
    "cond_dropout.txt",
    "flip_p.txt",
    "shuffle_tags.txt",
    "loss_scale.txt",
    "batch_id.txt",
)


def _from_yaml(text: str) -> ImageOptions:
    fields = _parse_mapping(text)
    nested = fields.get("caption")
    if isinstance(nested, dict):
        fields = {**fields, **nested}
    plain = Caption() if isinstance(nested, dict) else parse(_text(nested))
    structured = Caption(_text(fields.get("main_prompt")), tuple(_tags(fields.get("tags"))))
    scalars = {
        name: SCALAR_TYPES[name](fields[name]) for name in SCALARS if fields.get(name) is not None
    }
    return ImageOptions(caption=merge([structured, plain]), **scalars)


def _parse_mapping(text: str) -> dict[str, Any]:
    """Parse a YAML mapping; aliases are refused: with them a short text can grow enormous."""
    if len(text) > MAX_YAML_CHARACTERS or text.count("[") + text.count("{") > MAX_YAML_BRACKETS:
        raise ValueError(
            f"more than {MAX_YAML_CHARACTERS} characters or {MAX_YAML_BRACKETS} brackets of YAML"
        )
    try:
        events = list(yaml.parse(text, yaml.SafeLoader))
        has_alias = any(isinstance(event, yaml.AliasEvent) for event in events)
        document = None if has_alias else yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"not YAML that can be read ({str(error)[:200]})") from None
    if has_alias:
        raise ValueError("YAML aliases are not taken")
    if document is not None and not isinstance(document, dict):
        raise ValueError("expected a mapping such as main_prompt: a cat")
    return document or {}


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise ValueError("expected a text as caption or tag")  # noqa: TRY004 - the file's mistake
    return str(value).strip()


def _tags(value: Any) -> Iterator[Tag]:
    """Tags from a text, or from a list of texts and ``{tag, weight}``; commas separate tags."""
    if value is not None and not isinstance(value, str | list):
        raise ValueError("tags: expected a list")
    for entry in [value] if isinstance(value, str) else value or []:
        fields = entry if isinstance(entry, dict) else {"tag": entry}
        weight = SCALAR_TYPES["rating"](fields.get("weight", 1.0))
        texts = (text.strip() for text in _text(fields.get("tag")).split(","))
        yield from (Tag(text, weight) for text in texts if text)
