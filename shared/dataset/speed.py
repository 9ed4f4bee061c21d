"""The deployment's training speed: measured by its last training, assumed before the first."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

SPEED_KEY = "cache/speed.json"
"""In the object store: the newest measured speed."""


class Speed(Struct, frozen=True, kw_only=True):
    """A GPU's training speed; a megapixel is a million pixels of training images."""

    gpu: str
    megapixels_per_second: Annotated[float, Meta(gt=0.0)]

    def __str__(self) -> str:
        return f"{self.megapixels_per_second:.3g} megapixels per second on {self.gpu}"


ASSUMED = Speed(gpu="a GPU of 24 GB", megapixels_per_second=1.0)
"""Four images of 512 x 512 per second with both networks trained; a guess, not measured."""
