"""The pictures of a report: as many thumbnails of samples and images as one file may hold."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from shared.errors import NotFound
from shared.messaging.messages import DrawnImage, DrawnSample
from shared.ports import ObjectStore

MOST_SAMPLES = 240
MOST_COLUMNS = 24
SAMPLES_BYTES = 2_500_000
"""As data: URLs they take a third more."""
MOST_IMAGES = 60
IMAGES_BYTES = 1_000_000
READ_AT_ONCE = 16

Row = dict[int, DrawnSample]
"""The samples of a step by the index of their prompt."""


class Cell(NamedTuple):
    """A sample, or where one is missing."""

    sample: DrawnSample | None
    url: str | None


class Grid(NamedTuple):
    """The samples that are shown."""

    columns: list[tuple[int, str]]
    """Indices and prompts."""
    rows: list[tuple[int, list[Cell]]]
    """Steps, the newest first."""
    rows_left_out: int
    columns_left_out: int


class Shown(NamedTuple):
    """An image of the results."""

    image: DrawnImage
    url: str | None


class Images(NamedTuple):
    """The images that are shown."""

    shown: list[Shown]
    left_out: int


async def grid_of(
    store: ObjectStore, samples: Iterable[DrawnSample], keepalive: Callable[[], None]
) -> Grid:
    """A row for each step and a column for each prompt.

    Of too many rows the first and the last are shown and some between them, evenly. Raises
    Unavailable.
    """
    by_step: dict[int, Row] = {}
    prompts: dict[int, str] = {}
    for each in samples:
        by_step.setdefault(each.step, {})[each.index] = each
        prompts[each.index] = each.prompt
    columns = sorted(prompts.items())[:MOST_COLUMNS]
    steps = evenly(sorted(by_step), max(2, MOST_SAMPLES // max(1, len(columns))))
    urls: dict[str, str] = {}
    while True:
        shown = [
            [by_step[step].get(index) for index, _ in columns] for step in reversed(steps)
        ]  # newest first
        wanted = [each.thumbnail for row in shown for each in row if each and each.thumbnail]
        urls |= await _read(store, [key for key in wanted if key not in urls], keepalive)
        if len(steps) <= 1 or sum(len(urls[key]) for key in wanted if key in urls) <= _as_url(
            SAMPLES_BYTES
        ):
            break
        steps = evenly(steps, max(1, len(steps) // 2))
    rows = [
        (step, [Cell(each, urls.get(each.thumbnail or "") if each else None) for each in row])
        for step, row in zip(reversed(steps), shown, strict=True)
    ]
    return Grid(columns, rows, len(by_step) - len(rows), len(prompts) - len(columns))


async def images_of(
    store: ObjectStore, images: Sequence[DrawnImage], keepalive: Callable[[], None]
) -> Images:
    """The first images of the results, those that could not be drawn among them.

    Raises Unavailable.
    """
    first = images[:MOST_IMAGES]
    keys = [each.thumbnail for each in first if each.thumbnail]
    urls = await _read(store, keys, keepalive)
    shown, size = [], 0
    for each in first:
        url = urls.get(each.thumbnail or "")
        size += len(url or "")
        if size > _as_url(IMAGES_BYTES):
            break
        shown.append(Shown(each, url))
    return Images(shown, len(images) - len(shown))


def evenly(steps: Sequence[int], most: int) -> list[int]:
    """At most so many of them, the first and the last among them, if it may be two."""
    if len(steps) <= most:
        return [*steps]
    if most == 1:
        return [steps[-1]]
    return [steps[round(number * (len(steps) - 1) / (most - 1))] for number in range(most)]


async def _read(
    store: ObjectStore, keys: Sequence[str], keepalive: Callable[[], None]
) -> dict[str, str]:
    """``data:`` URLs by keys; one that is gone has none."""
    urls: dict[str, str] = {}
    for first in range(0, len(keys), READ_AT_ONCE):
        some = keys[first : first + READ_AT_ONCE]
        texts = await asyncio.gather(*(_get(store, key) for key in some))
        keepalive()
        urls |= {
            key: f"data:image/webp;base64,{b64encode(text).decode()}"
            for key, text in zip(some, texts, strict=True)
            if text is not None
        }
    return urls


async def _get(store: ObjectStore, key: str) -> bytes | None:
    try:
        return await store.get(key)
    except NotFound:
        return None


def _as_url(size: int) -> int:
    return size * 4 // 3
