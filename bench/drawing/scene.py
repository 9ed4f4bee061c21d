"""What both sides draw: the same model, prompt, seeds and steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from shared.request import Inference, Scheduler, Side

SEED = 7
SCHEDULER: Scheduler = "DDIM"
PROMPT = "a photo of a red wall"


class Case(NamedTuple):
    """One size of the comparison."""

    images: int
    side: Side
    steps: int
    rounds: int


CASES = {
    "tiny, 1 image": Case(1, 256, 30, 5),
    "tiny, 4 images": Case(4, 256, 30, 5),
    "tiny, 10 images": Case(10, 256, 30, 5),
}
ON_CARD = {
    "1 image": Case(1, 512, 50, 1),
    "4 images": Case(4, 512, 50, 1),
    "10 images": Case(10, 512, 50, 1),
}
EVERY = {**CASES, **ON_CARD}


def inference(case: Case, steps: int) -> Inference:
    return Inference(
        prompt=PROMPT, num_outputs=case.images, width=case.side, height=case.side,
        num_inference_steps=steps, scheduler=SCHEDULER,
    )  # fmt: skip


def keep(images: Sequence[Image.Image], folder: Path) -> None:
    """Save them, to be compared with the other side's."""
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")


def largest_difference(one: Path, other: Path) -> int:
    """Of all pixels of all images in two folders: 0 to 255.

    Raises:
        ValueError: there are none, or not the same number.
    """
    names = sorted(file.name for file in one.glob("*.png"))
    if not names or names != sorted(file.name for file in other.glob("*.png")):
        raise ValueError(f"{one} and {other} have not the same images")
    return max(int(np.abs(pixels(one / name) - pixels(other / name)).max()) for name in names)


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image).astype(np.int16)
