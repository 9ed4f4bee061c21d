"""The product's side: ``python -m bench.training.ours CASE FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

from bench.pairs import Figures, report
from bench.peak import peak_bytes
from bench.shares import Shares
from bench.training.scene import EVERY, SEED, request
from services.trainer.order import TrainingOrder
from services.trainer.training import train as loop
from services.trainer.training.latents import LatentCache
from shared.child.process import keep_freed_memory


class Watch:
    """The training's callbacks: when the loop began, its first step ended, and it was over."""

    def __init__(self) -> None:
        self.began = self.first = self.ended = 0.0
        self.steps = 0

    def phase(self, name: str) -> None:
        if name == "training" and not self.began:
            self.began = perf_counter()
        if name == "saving the trained model":
            self.ended = perf_counter()

    def progress(self, _numbers: dict[str, Any]) -> None: ...

    def saved(self, *_: Any, **__: Any) -> None: ...

    def should_stop(self) -> bool:
        """Asked before each step."""
        if self.steps == 1:
            self.first = perf_counter()
        self.steps += 1
        return False

    def command(self, _kind: str) -> int:
        return 0


def main(name: str, folder: Path) -> None:
    case, watch, shares = EVERY[name], Watch(), Shares()
    if not torch.cuda.is_available():
        keep_freed_memory()  # as the trainer's child does
    shares.measure(LatentCache, "encode", "encoding")
    shares.measure(loop, "update", "optimizer")
    with TemporaryDirectory(prefix="bench-train-") as out:
        outcome = loop.train(
            TrainingOrder(
                job="bench", train=request(case), seed=SEED, dataset=str(folder / "data"),
                base=str(folder / "base"), out=out, resume_every=1e9,
            ),
            watch,
        )  # fmt: skip
    report(
        Figures(
            seconds=watch.ended - watch.began, images=outcome.images,
            first_step_seconds=watch.first - watch.began, peak_bytes=peak_bytes(),
            shares=shares.seconds,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
