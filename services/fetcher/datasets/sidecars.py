"""What the files beside an image say about it: captions, tags and wishes, by EveryDream2's rules.

For an image ``a/b.png`` these count, the nearest first: ``a/b.yaml``, ``.yml``, ``.caption`` and
``.txt``; ``a/local.yaml`` and one-value files such as ``a/multiply.txt``; ``global.yaml`` in ``a``
and in every folder above. A caption is text, whatever it says: it never names a file to read.
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

YAML_CHARACTERS = 4096
YAML_BRACKETS = 500
"""Reading takes a time that grows with the square of their depth: half a second for these."""
MULTIPLY_AT_MOST = 1000.0
NAME_CHARACTERS = 100
"""Of a named batch."""
CAPTION_AT_MOST = 8192
"""Characters of a caption that are kept at all."""
TRUE = frozenset({"true", "yes", "1", "on"})
FALSE = frozenset({"false", "no", "0", "off"})


class ImageOptions(Struct, frozen=True, kw_only=True):
    """What one file, or all of them together, ask for; None: nothing is said."""

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
OWN = (".yaml", ".yml", ".caption", ".txt")
"""Suffixes of the files that are an image's alone, the weightiest first."""


class Sidecars:
    """Every text file of an archive, by its path."""

    def __init__(self, texts: Mapping[str, bytes]) -> None:
        self._texts = {_with_lower_suffix(name): raw for name, raw in texts.items()}
        self._read: dict[str, ImageOptions] = {}
        self.warnings: list[str] = []
        """What could not be understood, one sentence each, with the file's name."""

    def options(self, image: str) -> tuple[ImageOptions, bool]:
        """All that is asked for an image, and whether a file, not its name, gave the caption."""
        layers = [self._options(name) for name in _names(PurePosixPath(image))]
        captions = [layer.caption for layer in layers]
        from_file = any(caption.main for caption in captions)
        if not from_file:
            captions = [from_name(image), *captions]
        scalars = {name: _first(layers, name) for name in SCALARS}
        return ImageOptions(caption=merge(captions), **scalars), from_file

    def says_nothing(self, image: str) -> bool:
        """Whether a caption file of the image's own is there, but empty."""
        own = (self._texts.get(str(PurePosixPath(image).with_suffix(suffix))) for suffix in OWN)
        return any(raw is not None and not decode(raw) for raw in own)

    def _options(self, name: str) -> ImageOptions:
        """Remembered for files that are there: of those that are not there are far too many."""
        if name not in self._texts:
            return ImageOptions()
        if name not in self._read:
            self._read[name] = self._understand(name, self._texts[name])
        return self._read[name]

    def _understand(self, name: str, raw: bytes) -> ImageOptions:
        path, text = PurePosixPath(name), decode(raw)
        try:
            if path.suffix in (".yaml", ".yml"):
                return _from_yaml(text)
            if path.name in ONE_VALUE:
                return ImageOptions(**{path.stem: SCALAR_TYPES[path.stem](text)})
        except ValueError as error:
            self.warnings.append(f"{name}: {error}; left out")
            return ImageOptions()
        return ImageOptions(caption=parse(text))


def _with_lower_suffix(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_suffix(path.suffix.lower()))


def _names(image: PurePosixPath) -> Iterator[str]:
    """Names of the files that may say something about an image, the nearest first."""
    for suffix in OWN:
        yield str(image.with_suffix(suffix))
    for name in ("batch_id.txt", "loss_scale.txt", "local.yaml", "local.yml", *ONE_VALUE):
        yield str(image.parent / name)
    for folder in image.parents:
        yield str(folder / "global.yaml")
        yield str(folder / "global.yml")


def _first(layers: list[ImageOptions], name: str) -> Any:
    said = (getattr(layer, name) for layer in layers)
    return next((value for value in said if value is not None), None)


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


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            shown = str(value)[:40]
            raise ValueError(f"{shown!r}: expected a whole number from {low} to {high}")
        return value

    return read


def _name(value: Any) -> str:
    name = _text(value)
    if not 1 <= len(name) <= NAME_CHARACTERS:
        raise ValueError(f"{name[:40]!r}: expected a name of 1 to {NAME_CHARACTERS} characters")
    return name


def _flag(value: Any) -> bool:
    text = str(value).strip().lower() if isinstance(value, bool | int | str) else ""
    if text not in TRUE | FALSE:
        raise ValueError(f"{str(value)[:40]!r}: expected true or false")
    return text in TRUE


SCALAR_TYPES: dict[str, Callable[[Any], Any]] = {
    "multiply": _number(0, MULTIPLY_AT_MOST, zero_is_one=True),
    "rating": _number(0, 1e6, zero_is_one=True),
    "cond_dropout": _number(0, 1),
    "flip_p": _number(0, 1),
    "shuffle_tags": _flag,
    "loss_scale": _number(-100, 100),
    "batch_id": _name,
    "max_caption_length": _whole(1, CAPTION_AT_MOST),
}
ONE_VALUE = (
    "multiply.txt",
    "cond_dropout.txt",
    "flip_p.txt",
    "shuffle_tags.txt",
    "loss_scale.txt",
    "batch_id.txt",
)


def _from_yaml(text: str) -> ImageOptions:
    said = _mapping(text)
    nested = said.get("caption")
    if isinstance(nested, dict):
        said = {**said, **nested}
    whole = Caption() if isinstance(nested, dict) else parse(_text(nested))
    own = Caption(_text(said.get("main_prompt")), tuple(_tags(said.get("tags"))))
    caption = merge([own, whole])
    given = {name: said[name] for name in SCALARS if said.get(name) is not None}
    return ImageOptions(
        caption=caption, **{name: SCALAR_TYPES[name](value) for name, value in given.items()}
    )


def _mapping(text: str) -> dict[str, Any]:
    """A YAML document that is a mapping; without aliases, by which a short text grows enormous."""
    if len(text) > YAML_CHARACTERS or text.count("[") + text.count("{") > YAML_BRACKETS:
        raise ValueError(
            f"more than {YAML_CHARACTERS} characters or {YAML_BRACKETS} brackets of YAML"
        )
    try:
        events = list(yaml.parse(text, yaml.SafeLoader))
        said = None if any(map(_is_alias, events)) else yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"not YAML that can be read ({str(error)[:200]})") from None
    if any(map(_is_alias, events)):
        raise ValueError("YAML aliases are not taken")
    if said is not None and not isinstance(said, dict):
        raise ValueError("expected a mapping such as main_prompt: a cat")
    return said or {}


def _is_alias(event: Any) -> bool:
    return isinstance(event, yaml.AliasEvent)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise ValueError("expected a text as caption or tag")  # noqa: TRY004 - the file's mistake
    return str(value).strip()


def _tags(value: Any) -> Iterator[Tag]:
    """Tags as a text, or a list of texts and of ``{tag, weight}``; a comma ends a tag."""
    if value is not None and not isinstance(value, str | list):
        raise ValueError("tags: expected a list")
    for entry in [value] if isinstance(value, str) else value or []:
        said = entry if isinstance(entry, dict) else {"tag": entry}
        weight = SCALAR_TYPES["rating"](said.get("weight", 1.0))
        texts = (text.strip() for text in _text(said.get("tag")).split(","))
        yield from (Tag(text, weight) for text in texts if text)
