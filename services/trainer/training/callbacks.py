"""What the training loop calls: progress out, stop and commands in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from shared.request import Command

Clock = Callable[[], float]
"""Monotonic seconds."""


class Callbacks(Protocol):
    """How the loop reports, and learns what is wanted of it."""

    def phase(self, name: str) -> None:
        """Something slow begins; also a sign of life."""

    def progress(self, numbers: dict[str, Any]) -> None:
        """A report: step, steps, epoch, epochs, loss, lr, images_per_second, eta_seconds.

        Of a validation: step, epoch, validation_loss.
        """

    def saved(
        self,
        kind: str,
        path: Path,
        step: int,
        epoch: int,
        validation_loss: float | None = None,
        *,
        command: int = 0,
    ) -> None:
        """A ``checkpoint`` file, ``resume_point`` or ``snapshot`` folder is complete on disk.

        ``command`` is the number of the newest command of its kind that it carries out; 0: none.
        """

    def should_stop(self) -> bool:
        """Whether to save a resume point and end; asked before every step."""

    def command(self, kind: Command) -> int:
        """The number of the user's newest command of a kind; it never falls. 0: there is none."""
