"""What earlier versions have written, and what it means to understand it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect as types

FIXTURES = Path(__file__).parents[1] / "fixtures"
"""A folder for each version."""


def each(pattern: str) -> list[Any]:
    """A parameter for every file or folder of this kind, whatever version wrote it."""
    found = sorted(FIXTURES.glob(f"*/{pattern}"))
    assert found, f"no version has {pattern}"
    return [pytest.param(path, id=path.relative_to(FIXTURES).as_posix()) for path in found]


def json_in(path: Path) -> Any:
    return msgspec.json.decode(path.read_bytes())


def forgotten(text: bytes, kind: Any) -> list[str]:
    """Where a JSON text of the past says something that is lost once it is read and written."""
    understood = msgspec.json.decode(text, type=kind)
    return [*lost(msgspec.json.decode(text), msgspec.json.decode(msgspec.json.encode(understood)))]


def lost(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """Where the new document does not say what the old one does; it may say more."""
    match old, new:
        case dict(), dict():
            for name, value in old.items():
                inner = f"{place}.{name}"
                yield from lost(value, new[name], inner) if name in new else [inner]
        case list(), list() if len(old) == len(new):
            for number, (before, after) in enumerate(zip(old, new, strict=True)):
                yield from lost(before, after, f"{place}[{number}]")
        case _ if old != new:
            yield place


def unseen(kind: Any, documents: Iterable[Any]) -> list[str]:
    """Fields of a type, and of all types in it, that none of the documents has."""
    seen: dict[type, set[str]] = {}
    known = types.type_info(kind)
    wanted = dict(_structs(known, set()))
    for document in documents:
        _look(known, document, seen)
    return sorted(
        f"{struct.__name__}.{name}"
        for struct, names in wanted.items()
        for name in names - seen.get(struct, set())
    )


def _structs(kind: types.Type, known: set[type]) -> Iterator[tuple[type, set[str]]]:
    if isinstance(kind, types.StructType):
        if kind.cls in known:
            return
        known.add(kind.cls)
        yield kind.cls, {field.encode_name for field in kind.fields}
    for part in _parts(kind):
        yield from _structs(part, known)


def _parts(kind: types.Type) -> Sequence[types.Type]:
    match kind:
        case types.StructType(fields=fields):
            return [field.type for field in fields]
        case types.UnionType(types=members):
            return members
        case types.DictType(value_type=inner) | types.CollectionType(item_type=inner):
            return [inner]
    return []


def _look(kind: types.Type, document: Any, seen: dict[type, set[str]]) -> None:
    match kind, document:
        case types.StructType(tag_field=str(field), tag=tag), {} if document.get(field) != tag:
            return
        case types.StructType(cls=struct, fields=fields), {}:
            there = {one.encode_name: one for one in fields if one.encode_name in document}
            seen.setdefault(struct, set()).update(there)
            for name, one in there.items():
                _look(one.type, document[name], seen)
        case types.UnionType(types=members), _:
            for member in members:
                _look(member, document, seen)
        case types.DictType(value_type=inner), {}:
            for value in document.values():
                _look(inner, value, seen)
        case types.CollectionType(item_type=inner), [*items]:
            for item in items:
                _look(inner, item, seen)
