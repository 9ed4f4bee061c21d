"""Training speeds: measured by trainings, estimated from a short test of the device before."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Annotated

from msgspec import Meta, Struct

from shared.words import counted

DEVICE_KEY = "cache/device.json"
"""In the object store: the device of the trainer that started last."""
FLOP_PER_PARAMETER = 9_300.0
"""To train on a megapixel, for each parameter of the UNet: 8 TFLOP for Stable Diffusion 1.5."""
OF_TESTED = 1 / 3
"""What a training achieves of the rate at which the device multiplies matrices; a guess."""


Rate = Annotated[float, Meta(ge=1e-9, le=1e9)]
"""No device is slower or faster by far; of another number what is estimated is none."""


class Speed(Struct, frozen=True, kw_only=True):
    """A device's training speed; a megapixel is a million pixels of training images."""

    gpu: str
    megapixels_per_second: Rate

    def __str__(self) -> str:
        return f"{counted(self.megapixels_per_second, 'megapixel')} per second on {self.gpu}"


class ProbedDevice(Struct, frozen=True, kw_only=True):
    """A device, and how fast it multiplied matrices in a short test."""

    gpu: str
    teraflops: Rate
    memory_bytes: Annotated[int, Meta(ge=0, le=2**50)] = 0
    """Of a card; 0: it is none, or was not asked."""

    def speed(self, parameters: Mapping[str, int]) -> Speed | None:
        """Its training speed, estimated; None: the model has no UNet that is known."""
        if not (unet := parameters.get("unet", 0)):
            return None
        rate = self.teraflops * 1e12 * OF_TESTED / (FLOP_PER_PARAMETER * unet)
        return Speed(gpu=self.gpu, megapixels_per_second=rate)


ASSUMED = Speed(gpu="a GPU of 24 GB", megapixels_per_second=1.0)
"""Four images of 512 x 512 per second with both networks trained; a guess, not measured, for how
many checkpoints must find room where nothing better is known."""


def speed_key(gpu: str, base_model: str, *, lora: bool = False) -> str:
    """In the object store: the speed of the last training from this base model on this device.

    That of a LoRA is another one.
    """
    what = "\nLoRA" if lora else ""
    digest = sha256(f"{gpu}\n{base_model}{what}".encode()).hexdigest()[:16]
    return f"cache/speed/{digest}.json"
