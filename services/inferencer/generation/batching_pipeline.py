"""A pipeline that generates each image of a batch exactly as it generates it alone.

The rows of a batch are computed independently, but libraries choose kernels by the number of rows,
and other kernels round differently. On a CPU this affects the layers that have one row for each
image, and the autoencoder. So the former compute one row only, and the latter decodes one image at
a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from shared.diffusion.loading import Parts
from shared.diffusion.lora import Lora
from shared.diffusion.saving import stock_pipeline

Size = tuple[int, int]
"""Width and height in pixels."""

BATCH_SIZES = {"cuda": 8, "cpu": 4}
"""Images at a time, to begin with. On a CPU more are faster for the smallest sizes only, and from
16 rows of the network (8 images with guidance) on its matrix products round differently."""

ONE_ROW = ("time_embedding", "time_emb_proj")
"""The UNet's layers that have a row for each image, all alike."""


@dataclass
class BatchingPipeline:
    """A model's parts, and the stock pipeline over them."""

    parts: Parts
    pipe: StableDiffusionPipeline
    free_memory: Callable[[], bool] = lambda: False
    """Frees memory that this pipeline does not need; returns whether there was any."""
    room_for: Callable[[Size, int], int] = lambda _size, most: most
    """How many images of a size, at most so many, what is free now has room for."""
    loras: list[list[Lora]] = field(default_factory=list)
    """What is added to the networks: for each of the model's LoRAs, what it adds to each."""
    _batch_sizes: dict[Size, int] = field(default_factory=dict)
    _vae_dtype: torch.dtype | None = None
    """Of the weights as they were loaded, if decoding has to be done in fp32."""

    @classmethod
    def from_parts(cls, parts: Parts) -> BatchingPipeline:
        """Build a pipeline over these parts. It modifies them: do not train them afterwards."""
        pipe = stock_pipeline(parts)
        pipe.set_progress_bar_config(disable=True)
        pipe.vae.enable_slicing()
        for name, module in pipe.unet.named_modules():
            if name.endswith(ONE_ROW):
                compute_one_row(module)
        return cls(parts, pipe)

    def weigh(self, weights: Sequence[float]) -> None:
        """Let each LoRA count so much; empty: fully."""
        for networks, weight in zip(self.loras, weights or [1.0] * len(self.loras), strict=True):
            for lora in networks:
                lora.weigh(weight)

    def batch_size(self, size: Size) -> int:
        """How many images of this size to generate at a time."""
        most = self._batch_sizes.get(size, BATCH_SIZES[self.pipe.device.type])
        fitting = self.room_for(size, most)
        return self.room_for(size, most) if fitting < most and self.free_memory() else fitting

    def decode(self, latents: Tensor) -> list[Tensor]:
        """Decode latents (B, 4, H / 8, W / 8) to the pixels (3, H, W) of each image, from 0 to 1.

        Some VAEs overflow in half precision, from sound latents (huggingface/diffusers#3999): what
        has overflowed is decoded again in fp32, and all that comes from then on.
        """
        if self._vae_dtype is not None:
            self.pipe.vae.to(torch.float32)  # memory may have run out halfway
        decoded = self._decode(latents)
        pixels = self._pixels(decoded)
        if self.pipe.vae.dtype != torch.float16:
            return pixels
        overflowed = _are_finite(latents) & ~_are_finite(decoded)
        if overflowed.any():
            self.decode_in_fp32()
            again = iter(self._pixels(self._decode(latents[overflowed])))
            pixels = [
                next(again) if is_anew else each
                for each, is_anew in zip(pixels, overflowed.tolist(), strict=True)
            ]
        return pixels

    def decode_in_fp32(self) -> None:
        """From now on, for as long as the VAE has these weights."""
        self._vae_dtype = self.pipe.vae.dtype
        self.pipe.vae.to(torch.float32)

    def forget_overflow(self) -> bool:
        """Prepare the VAE for other weights, which may not overflow; returns whether these did."""
        if self._vae_dtype is None:
            return False
        self.pipe.vae.to(self._vae_dtype)
        self._vae_dtype = None
        return True

    def _decode(self, latents: Tensor) -> Tensor:
        """As the stock pipeline does."""
        vae = self.pipe.vae
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor
        decoded: Tensor = vae.decode(scaled, return_dict=False)[0]
        return decoded

    def _pixels(self, decoded: Tensor) -> list[Tensor]:
        return list(self.pipe.image_processor.postprocess(decoded, output_type="pt"))

    def shrink_batch(self, size: Size, count: int) -> bool:
        """Respond to a lack of memory at ``count`` images.

        Returns whether to try again, with more memory or with fewer images.
        """
        if self.free_memory():
            return True
        self._batch_sizes[size] = max(1, count // 2)
        return count > 1


def _are_finite(rows: Tensor) -> Tensor:
    """For each image of a batch, whether it is."""
    return torch.isfinite(rows).flatten(1).all(1)


def compute_one_row(module: torch.nn.Module) -> None:
    """Compute the first row only: a batch has one timestep, so all rows of its embedding agree."""
    forward = module.forward

    def forward_one_row(rows: Tensor, *others: Any) -> Tensor:
        result: Tensor = forward(rows[:1], *others)
        return result.expand(len(rows), *result.shape[1:])

    module.forward = forward_one_row
