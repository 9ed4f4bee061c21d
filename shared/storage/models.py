"""Models in the store that jobs start from, each content once."""

from __future__ import annotations

import re

from shared.ports import ObjectStore

MODELS = "cache/"
"""Below it also lies what trainers measure."""
MODEL = re.compile(rf"{MODELS}[0-9a-f]{{64}}(?=/)")
"""The prefix of a model's folder, at the beginning of its objects' keys."""
USE = "used"
"""An object beside the folder's; the time when it was written is that of the last use."""


def stored_model(address: str) -> str:
    """The prefix of a model's folder; ``address`` is the sha256 (hex) of its content."""
    return f"{MODELS}{address}"


async def note_use(store: ObjectStore, prefix: str) -> None:
    """Note that a model is about to be used: then it stays for an hour, whatever else is there."""
    await store.put(f"{prefix}/{USE}", b"")
