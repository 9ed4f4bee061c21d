"""What both sides train on: the same model, pictures and settings."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from shared.dataset.manifest import Manifest, Picture
from shared.request import Resolution, Train

TINY = Path(__file__).parents[2] / "shared" / "tiny"
SHAPES = ((300, 300), (340, 260), (260, 340), (420, 240), (240, 420))
"""Five aspect ratios, with pixels to spare, so that all of them are cropped at random."""
SEED = 555


class Case(NamedTuple):
    """One size of the comparison."""

    pictures: int
    epochs: int
    batch_size: int
    resolution: Resolution
    rounds: int
    train: Mapping[str, Any] = {}
    """Further fields of the request."""


CASES = {
    "tiny": Case(12, 12, 2, 256, 5),
    "sd15": Case(4, 4, 1, 256, 1),
}
LORA = {"lora_rank": 16}
LORAS = {
    "tiny-lora": CASES["tiny"]._replace(train=LORA),
    "sd15-lora": CASES["sd15"]._replace(train=LORA),
}
"""Each beside the whole model's training of the same name without ``-lora``."""
ON_CARD = {
    "batch 2": Case(48, 4, 2, 512, 1),
    "batch 16": Case(96, 4, 16, 512, 1),
    "batch 2, gradient_checkpointing": Case(48, 4, 2, 512, 1, {"gradient_checkpointing": True}),
    "batch 16, gradient_checkpointing": Case(96, 4, 16, 512, 1, {"gradient_checkpointing": True}),
    "batch 2, LoRA": Case(48, 4, 2, 512, 1, LORA),
}
"""Of UNet and text encoder; the first two beside the plain loop."""
EVERY = {**CASES, **LORAS, **ON_CARD}


def request(case: Case) -> Train:
    return Train(
        data_url="https://example.org/x.zip",
        resolution=case.resolution,
        batch_size=case.batch_size,
        max_epochs=case.epochs,
        lr=1e-5,
        useadam8bit=True,
        cond_dropout=0.0,
        ckpt_every_n_minutes=None,
        **case.train,
    )


def make_pictures(folder: Path, count: int) -> None:
    """Drawn pictures with their manifest, the same each time."""
    folder.mkdir(parents=True)
    drawn = random.Random(SEED)
    pictures = []
    for number in range(count):
        width, height = SHAPES[number % len(SHAPES)]
        image = Image.effect_noise((width, height), 40).convert("RGB")
        pen = ImageDraw.Draw(image)
        for _ in range(8):
            left, top = drawn.randrange(width), drawn.randrange(height)
            colour = tuple(drawn.randrange(256) for _ in range(3))
            pen.ellipse((left, top, left + 60, top + 60), fill=colour)
        image.save(folder / f"{number}.png")
        pictures.append(
            Picture(
                file=f"{number}.png",
                caption=f"a red wall, flat, number {number}",
                width=width,
                height=height,
            )
        )
    Manifest(pictures=tuple(pictures)).write(folder)
