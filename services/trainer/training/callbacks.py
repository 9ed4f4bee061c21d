"""What the training loop asks of its surroundings: somebody to tell and to ask, and a clock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from shared.request import Command

Clock = Callable[[], float]
"""Seconds that only go forward."""


class Callbacks(Protocol):
    """Who is told how training goes, and may want something of it."""

    def phase(self, name: str) -> None:
        """Something slow begins."""

    def progress(self, numbers: dict[str, Any]) -> None:
        """step, steps, epoch, epochs, loss, lr, images_per_second, eta_seconds.

        Or, of a validation: step, epoch, validation_loss.
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

        ``command`` is the newest number that :meth:`wished` gave before it was begun.
        """

    def should_stop(self) -> bool:
        """Whether to save a resume point and end; asked before every step."""

    def command(self, kind: Command) -> int:
        """The number of the user's newest wish of a kind, which never falls; 0: there is none."""
