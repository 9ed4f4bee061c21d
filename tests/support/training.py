"""Small training jobs: a dataset of plain colours, an order, and callbacks that record calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from PIL import Image

from services.trainer.order import Outcome, TrainingOrder
from shared.dataset import buckets
from shared.dataset.manifest import Manifest, Picture
from shared.request import Command, Train
from shared.storage.manifest import SINGLE_FILE

SIDE, SMALL_SIDE = 256, 128
COLOURS = ("red", "blue", "green", "black")


@contextmanager
def small_sizes() -> Iterator[None]:
    """Let trainings of this process have pictures smaller than any that can be asked for.

    On a processor the pictures' size decides how long a step takes.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(buckets.LANDSCAPES, SMALL_SIDE, "192x64 256x64")
        yield
    buckets.sizes.cache_clear()
    buckets.nearest.cache_clear()


def make_dataset(folder: Path, images: int = 4, *, size: tuple[int, int] = (SIDE, SIDE)) -> Path:
    """Plain images of exactly the bucket's size, so that nothing is cropped unless requested."""
    folder.mkdir(parents=True)
    pictures = []
    for number in range(images):
        colour = COLOURS[number % len(COLOURS)]
        Image.new("RGB", size, colour).save(folder / f"{number}.png")
        pictures.append(
            Picture(
                file=f"{number}.png",
                caption=f"a {colour} wall, flat, bare, plain",
                width=size[0],
                height=size[1],
            )
        )
    Manifest(pictures=tuple(pictures)).write(folder)
    return folder


def train_request(**fields: Any) -> Train:
    small = {
        "resolution": min(buckets.LANDSCAPES), "batch_size": 1, "max_epochs": 2, "lr": 1e-3,
        "cond_dropout": 0.0,
        "useadam8bit": False,  # on a CPU it takes longer than all else in a step
    }  # fmt: skip
    return Train(data_url="https://example.com/x.zip", **{**small, **fields})


def training_order(
    out: Path,
    *,
    dataset: Path,
    base: Path,
    resume: Path | None = None,
    resume_every: float = 1e9,
    sample_every: int | None = None,
    sampled: tuple[int, ...] = (),
    **fields: Any,
) -> TrainingOrder:
    return TrainingOrder(
        job="job1",
        train=train_request(**fields),
        seed=555,
        dataset=str(dataset),
        base=str(base),
        resume=str(resume) if resume else None,
        out=str(out),
        sample_every=sample_every,
        sampled=sampled,
        resume_every=resume_every,
    )


def whole_model(outcome: Outcome) -> Path:
    """The finished model's folder as it comes out of the store: with the weights in it."""
    folder = Path(outcome.model)
    if not (weights := folder / SINGLE_FILE).exists():
        weights.hardlink_to(outcome.checkpoint)
    return folder


class RecordingCallbacks:
    """Records what the loop reports; may stop it before a step, and may issue commands."""

    def __init__(
        self,
        stop_when: Callable[[int], bool] = lambda _steps: False,
        commands: Mapping[Command, Sequence[int]] = MappingProxyType({}),
    ) -> None:
        """Set when to stop, and which commands to issue.

        Args:
            stop_when: whether to stop, by the number of started steps.
            commands: by kind, the numbers of started steps after each of which another is issued.
        """
        self.phases: list[str] = []
        self.reports: list[dict[str, Any]] = []
        self.saves: list[tuple[str, Path, int, int]] = []
        self.validation_losses: dict[int, float] = {}
        """By the checkpoint's step."""
        self.commands_done: list[tuple[str, int, int]] = []
        """For each save by a command: kind, step, and the command's number."""
        self._commands = commands
        self._stop_when = stop_when
        self.steps_begun = 0
        """How many steps were started, or would have been."""

    def phase(self, name: str) -> None:
        self.phases.append(name)

    def progress(self, numbers: dict[str, Any]) -> None:
        self.reports.append(numbers)

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
        self.saves.append((kind, path, step, epoch))
        if command:
            self.commands_done.append((kind, step, command))
        if validation_loss is not None:
            self.validation_losses[step] = validation_loss

    def should_stop(self) -> bool:
        if self._stop_when(self.steps_begun):
            return True
        self.steps_begun += 1
        return False

    def command(self, kind: Command) -> int:
        return sum(begun <= self.steps_begun for begun in self._commands.get(kind, ()))
