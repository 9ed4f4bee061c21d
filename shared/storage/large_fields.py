"""Keep large fields of messages and records in the object store, in exchange for their keys.

A message or record has ``stored``: by the place of a field, the key of the object that holds its
JSON. The field itself is then empty, or ``"stored"`` if it is a text. So a message stays small, and
who does not need the field does not read it. Source: the claim check of "Enterprise Integration
Patterns" (Hohpe and Woolf).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from hashlib import sha256
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import FieldInfo, fields, replace

from shared.messaging.messages import LargeFact, LargeMessage, Message
from shared.ports import ObjectStore

LARGE = 64 * 1024
"""Most bytes of a field's JSON that stay in its message or record."""
LEFT: dict[type, Any] = {str: "stored", list: [], tuple: (), dict: {}}
"""What is left of a field, by its type."""

S = TypeVar("S", bound=Struct)
M = TypeVar("M", bound=Message)


async def put_value(store: ObjectStore, job: str, text: bytes, known: set[str]) -> str:
    """Put a field's JSON; its key, which is the same for the same text.

    Args:
        store: where it is put.
        job: the job's id, with whose objects it is deleted.
        text: the JSON.
        known: keys that are in the store already; the new one is added.

    Raises:
        Unavailable: the store does not answer.
    """
    key = f"jobs/{job}/values/{sha256(text).hexdigest()}.json"
    if key not in known:
        await store.put(key, text)
        known.add(key)
    return key


async def store_message(store: ObjectStore, message: M, known: set[str] | None = None) -> M:
    """The message with every large field, also of the parts in it, in the store.

    One of a type that cannot grow stays as it is.

    Raises:
        Unavailable: the store does not answer.
    """
    can_grow = isinstance(message, LargeMessage | LargeFact)
    if not can_grow or len(msgspec.json.encode(message)) <= LARGE:
        return message
    places = [*_places(message)]
    return await store_fields(store, message, message.job, places, known)


async def store_fields(
    store: ObjectStore,
    whole: S,
    job: str,
    places: Collection[str],
    known: set[str] | None = None,
) -> S:
    """A struct that has ``stored``, with those of these fields that are large in the store.

    Args:
        store: where they are put.
        whole: the message or record.
        job: its job's id.
        places: names of fields; of one in a part of the struct, ``part.field``.
        known: see :func:`put_value`.

    Raises:
        Unavailable: the store does not answer.
    """
    stored = {**whole.stored}  # type: ignore[attr-defined]
    known = set() if known is None else known
    for place in places:
        value = _value(whole, place)
        if len(text := msgspec.json.encode(value)) > LARGE:
            stored[place] = await put_value(store, job, text, known)
            whole = _with(whole, place, LEFT[type(value)])
    return replace(whole, stored=stored)


async def load_fields(store: ObjectStore, part: S, only: Collection[str] | None = None) -> S:
    """The same struct with its stored fields in their places; ``only``: just these.

    Raises:
        NotFound: its job is deleted.
        Unavailable: the store does not answer.
    """
    stored: dict[str, str] = getattr(part, "stored", {})
    for place in stored.keys() if only is None else stored.keys() & {*only}:
        value = await store.get(stored[place])
        part = _with(part, place, msgspec.json.decode(value, type=_field(part, place).type))
    left = {} if only is None else {place: stored[place] for place in stored.keys() - {*only}}
    return replace(part, stored=left) if left != stored else part


def _places(whole: Struct, prefix: str = "") -> Iterator[str]:
    """Every field that can be stored, also of the structs in it."""
    for field in fields(whole):
        value = getattr(whole, field.name)
        if isinstance(value, Struct):
            yield from _places(value, f"{prefix}{field.name}.")
        elif type(value) in LEFT and field.name != "stored":
            yield f"{prefix}{field.name}"


def _field(whole: Struct, place: str) -> FieldInfo:
    name, _, inner = place.partition(".")
    if inner:
        return _field(getattr(whole, name), inner)
    return next(field for field in fields(whole) if field.name == name)


def _value(whole: Struct, place: str) -> Any:
    name, _, inner = place.partition(".")
    value = getattr(whole, name)
    return _value(value, inner) if inner else value


def _with(whole: S, place: str, value: Any) -> S:
    name, _, inner = place.partition(".")
    value = _with(getattr(whole, name), inner, value) if inner else value
    return replace(whole, **{name: value})
