"""Held-out loss beside a plain loop's after the same steps: ``python -m bench learning``.

Both sides train the tiny model on the demo's two drawn concepts, in batches of two at a constant
rate, with 8-bit moments; pictures have pixels to spare, so that each is cropped at random. The
product measures both, by fixed noise on the pictures held out. What noise a seed happens to give
decides most; in the last two rows both have the same, and the same crops. The table goes into
docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from bench.crops import SIDE
from bench.held_out import HELD_OUT, draw, figures, validated
from bench.rows import put
from bench.training.plain_loop import GeneratorOf, learn
from bench.training.scene import TINY
from shared.dataset.plan import Batch, seed_of
from shared.diffusion.loading import load
from shared.diffusion.noise import seeded
from shared.diffusion.saving import save_folder
from tests.support.training import train_request

BUDGET: Mapping[str, Any] = {
    "batch_size": 2, "max_epochs": 40, "lr": 3e-4, "lr_scheduler": "constant", "useadam8bit": True
}  # fmt: skip
MANY, FEW = range(1, 21), range(1, 6)
HEAD = ("trained by", "held-out loss", "of each seed", "measured on")


class Way(NamedTuple):
    """One row."""

    loss: Callable[[Path, Path, int], float]
    """By a folder to write to, the pictures' folder, and the seed."""
    seeds: Sequence[int]


def main() -> None:
    with TemporaryDirectory(prefix="bench-learning-") as folder:
        data = draw(Path(folder) / "data", SIDE)
        for name, way in WAYS.items():
            losses = []
            for seed in way.seeds:
                with TemporaryDirectory(dir=folder) as out:
                    losses.append(way.loss(Path(out), data, seed))
                print(f"{name}, seed {seed}: {losses[-1]:.4f}", flush=True)
            put("learning", HEAD, (name, *figures(losses)), tuple(WAYS))


def by_the_product(out: Path, data: Path, seed: int, **options: Any) -> float:
    return validated(out, data, TINY, seed, {**BUDGET, **options}).last.loss


def by_the_loop(
    out: Path, data: Path, seed: int, *, generator_of: GeneratorOf | None = None
) -> float:
    parts = load(TINY)
    learn(parts, data, train_request(validation=HELD_OUT, **BUDGET), seed, generator_of)
    save_folder(parts, out / "learnt", dtype=torch.float32)
    return validated(out, data, out / "learnt", seed, {**BUDGET, "max_epochs": 1}).before.loss


def by_the_loop_on_the_same_noise(out: Path, data: Path, seed: int) -> float:
    def generator_of(epoch: int, batch: Batch) -> torch.Generator:
        return seeded(seed_of(seed, epoch, batch.first, "noise"))

    return by_the_loop(out, data, seed, generator_of=generator_of)


WAYS: Mapping[str, Way] = {
    "the product": Way(by_the_product, MANY),
    "the plain loop": Way(by_the_loop, MANY),
    "the product, with new crops in every epoch": Way(
        partial(by_the_product, crops_per_image=0), FEW
    ),
    "the plain loop, with that product's noise": Way(by_the_loop_on_the_same_noise, FEW),
}
