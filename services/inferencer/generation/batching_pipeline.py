"""A model ready to draw: the stock pipeline, whose images do not depend on their company.

Each row of a batch is computed by itself, yet a library may take another kernel for another number
of rows, and rounds differently then. On a CPU the layers that see one row for each image do, and
the autoencoder: so the first are given one row and the second one image at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from shared.diffusion.loading import Parts
from shared.diffusion.saving import pipeline

Size = tuple[int, int]
"""Width and height, pixels."""

MOST = {"cuda": 8, "cpu": 4}
"""Images at a time, to begin with. On a CPU more bring nothing but for the smallest sizes, and from
16 rows of the network (8 images with guidance) on its matrix products round differently."""


@dataclass
class Model:
    """The parts of a model, and the pipeline that draws with them."""

    parts: Parts
    pipe: StableDiffusionPipeline
    make_room: Callable[[], bool] = lambda: False
    """Lets go of memory that the drawing does not need; whether there was any."""
    _most: dict[Size, int] = field(default_factory=dict)

    def most(self, size: Size) -> int:
        """How many images of a size to draw at a time."""
        return self._most.get(size, MOST[self.pipe.device.type])

    def shrink_batch(self, size: Size, count: int) -> bool:
        """Memory ran out at ``count`` images: whether there is more now, or fewer will be tried."""
        if self.make_room():
            return True
        self._most[size] = max(1, count // 2)
        return count > 1


def ready(parts: Parts) -> Model:
    """A model of these parts, which are changed for it: do not train them."""
    pipe = pipeline(parts)
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.enable_slicing()
    for name, module in pipe.unet.named_modules():
        if name.rpartition(".")[2] in {"time_embedding", "time_emb_proj"}:
            _compute_one_row(module)
    return Model(parts, pipe)


def _compute_one_row(module: torch.nn.Module) -> None:
    """All images of a batch are at the same timestep, so all rows of its embedding are alike."""
    forward = module.forward

    def of_one_row(rows: Tensor, *others: Any) -> Tensor:
        result: Tensor = forward(rows[:1], *others)
        return result.expand(len(rows), *result.shape[1:])

    module.forward = of_one_row
