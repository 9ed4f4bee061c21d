"""What a report says of a training, as the trainer knows it at the end."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from shared.messaging.messages import Artifact, SavedCheckpoint
from shared.request import STORED, Train
from shared.storage.curve import Point

SHOWN_CHARACTERS = 500
"""Of a setting, a prompt or a warning."""
ADDRESSES = ("data_url", "resume_ckpt_url")
"""Settings that may be links; what signs one is a secret."""


class Setting(Struct, frozen=True, kw_only=True):
    """A field of ``train``, as it is shown."""

    name: str
    value: str
    is_default: bool


class TrainingFacts(Struct, frozen=True, kw_only=True):
    """All that a report says without pictures; bounded, and without secrets."""

    job: str
    ended_at: float
    """When the training ended; seconds since the epoch."""
    gpu: str
    settings: list[Setting]
    dataset: dict[str, Any]
    """The pre-flight report."""
    summary: dict[str, Any]
    """See :attr:`shared.messaging.messages.CheckpointFinal.summary`."""
    checkpoint: Artifact
    checkpoints: tuple[SavedCheckpoint, ...]
    """Intermediate ones, oldest first."""
    merged: tuple[Artifact, ...] = ()
    """A LoRA merged into its base model."""
    points: list[Point]
    """Of the curves, thinned."""


def settings_of(train: Train) -> list[Setting]:
    """Every field as the training took it; of addresses only the host and the file's name."""
    defaults = msgspec.to_builtins(Train(data_url="none"))
    return [
        Setting(
            name=name,
            value=short_address(value) if name in ADDRESSES else shown(value),
            is_default=value == defaults[name],
        )
        for name, value in msgspec.to_builtins(train).items()
    ]


def short_address(text: str) -> str:
    """An address without its query and folders, which may hold secrets; a name stays as it is."""
    if text.startswith(STORED):
        return "from this server's store"
    if not re.match("https?://", text, re.IGNORECASE):
        return clipped(text)
    parts = urlsplit(text)
    name = parts.path.rpartition("/")[2]
    host = parts.hostname or ""
    return clipped(f"{host}/…/{name}" if name else host)


def shown(value: object) -> str:
    """A setting's value for people."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case dict():
            return clipped(", ".join(f"{name} {shown(each)}" for name, each in value.items()))
        case list():
            return clipped(" · ".join(map(str, value))) or "none"
        case float():
            return f"{value:g}"
    return clipped(str(value))


def clipped(text: str) -> str:
    """A text that is too long to be shown without its end."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
