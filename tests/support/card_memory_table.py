"""The tables of docs/models.md that say what fits a card: ``python -m`` this module writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec.structs import replace

from shared.dataset.card_memory import (
    GIB,
    SD1,
    SD2,
    USUAL,
    Kind,
    drawing_beside,
    in_gib,
    training_memory,
)
from shared.request import Train
from tests.support.measured_page import DOCS, table, write

PAGE = DOCS / "models.md"
CARDS = (8, 12, 16, 24, 48, 80)
USABLE = 0.9
"""Of what the box says: a driver, a desktop or error correction take a part."""
PARTS = {"what fits a card: Stable Diffusion 1": (SD1, 512, (512, 768, 1024)),
         "what fits a card: Stable Diffusion 2": (SD2, 768, (512, 768, 1024))}  # fmt: skip
SETTINGS: tuple[dict[str, Any], ...] = (
    {"batch_size": 8, "useadam8bit": False},
    {"batch_size": 4},
    {},
    {"gradient_checkpointing": True},
    {"gradient_checkpointing": True, "batch_size": 1},
    {"gradient_checkpointing": True, "disable_textenc_training": True},
    {"gradient_checkpointing": True, "disable_unet_training": True},
)
"""The first of these that fits is proposed."""
HEAD = ("card", "what to set", "needs", "largest `batch_size` so, at {}",
        "with `gradient_checkpointing` true", "live samples on the same card")  # fmt: skip
MOST = 1024


def rows(kind: Kind, resolution: int, resolutions: tuple[int, ...]) -> Iterator[tuple[str, ...]]:
    for card in CARDS:
        room = int(USABLE * card * GIB)
        for settings in SETTINGS:
            train = replace(USUAL, resolution=resolution, **settings)
            needed = needs(kind, train)
            if needed <= room:
                beside = needed + drawing_beside(kind.parameters, resolution**2) <= room
                checkpointing = replace(train, gradient_checkpointing=True)
                yield (f"{card} GB", words(settings), in_gib(needed),
                       largest(kind, train, resolutions, room),
                       largest(kind, checkpointing, resolutions, room),
                       "on the card" if beside else "on the processor")  # fmt: skip
                break
        else:
            yield f"{card} GB", "nothing fits: it draws, and does not train", "", "", "", ""


def words(settings: Mapping[str, Any]) -> str:
    shown = {True: "true", False: "false"}
    named = (f"`{name}` {shown.get(value, value)}" if isinstance(value, bool)
             else f"`{name}` {value}" for name, value in settings.items())  # fmt: skip
    return ", ".join(named) or "nothing: the defaults"


def needs(kind: Kind, train: Train) -> int:
    memory = training_memory(train, kind.parameters)
    assert memory is not None
    return memory.total


def largest(kind: Kind, train: Train, resolutions: tuple[int, ...], room: int) -> str:
    """For each resolution."""
    found = []
    for resolution in resolutions:
        sizes = range(1, MOST + 1)
        fitting = [
            size for size in sizes
            if needs(kind, replace(train, resolution=resolution, batch_size=size)) <= room
        ]  # fmt: skip
        found.append(str(max(fitting)) if fitting else "none")
    return " / ".join(found)


def text_of(part: str) -> str:
    kind, resolution, resolutions = PARTS[part]
    head = tuple(each.format(" / ".join(map(str, resolutions))) for each in HEAD)
    return table(head, rows(kind, resolution, resolutions))


if __name__ == "__main__":
    for each in PARTS:
        write(each, text_of(each), PAGE)
