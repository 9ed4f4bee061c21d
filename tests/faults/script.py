"""What a scripted child shall do: told inside the job itself, so that no side channel is needed.

The text stands in the caption of the data set's only picture, and in the prompt of the image.
"""

from __future__ import annotations

import base64
from typing import Literal

import msgspec
from msgspec import Struct

Child = Literal["trainer", "inferencer"]
How = Literal["exit", "kill", "hang", "passing", "refused"]
MARK = "script:"


class Mishap(Struct, frozen=True, kw_only=True):
    """Something goes wrong with a child, before it has done this step."""

    at: int
    """Step, from 1; of the inferencer: image, from 1."""
    how: How
    """Exit status 3; SIGKILL; silence for ever; giving up, for now or for good."""
    child: Child = "trainer"
    attempts: int = 1
    """The first so many attempts at the stage have it."""


class Script(Struct, frozen=True, kw_only=True):
    """One job's training and drawing."""

    steps: int = 4
    step_seconds: float = 0.02
    image_seconds: float = 0.02
    resume_every: int = 0
    """Steps between resume points; 0: none but on SIGTERM."""
    checkpoint_every: int = 0
    """Steps between intermediate checkpoints; 0: none."""
    bytes: int = 1000
    """Of each checkpoint, and of the model."""
    mishaps: tuple[Mishap, ...] = ()

    def mishap(self, child: Child, at: int, attempt: int) -> How | None:
        """What goes wrong before this step of this attempt (from 1)."""
        for mishap in self.mishaps:
            if (mishap.child, mishap.at) == (child, at) and attempt <= mishap.attempts:
                return mishap.how
        return None


def spell(script: Script) -> str:
    """The script as one word: a caption is split at its commas."""
    return MARK + base64.urlsafe_b64encode(msgspec.json.encode(script)).decode()


def read(text: str) -> Script:
    """The script in a caption or a prompt.

    Raises:
        ValueError: there is none.
    """
    if not text.startswith(MARK):
        raise ValueError(f"no script but {text[:80]!r}: scripted children take scripted jobs only")
    return msgspec.json.decode(base64.urlsafe_b64decode(text.removeprefix(MARK)), type=Script)
