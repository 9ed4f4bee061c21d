"""Batches in the plan's order: pixels read ahead in a thread, latents cached where that pays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import ImageOps
from torch import Tensor

from shared.dataset.buckets import Size
from shared.dataset.manifest import Picture
from shared.dataset.pixels import as_trained, open_image
from shared.dataset.plan import Augmentation, Batch, EpochConfig, augment
from shared.errors import Refused

CACHE_BYTES = 2**30
"""Bound of the cached latents: 8,192 images of 512 x 512."""

Key = tuple[int, Size, bool]
"""What a latent depends on besides the crop: picture, size, flip."""


@dataclass(frozen=True)
class Example:
    """One image of a batch."""

    picture: Picture
    key: Key
    augmentation: Augmentation
    pixels: Tensor | None
    """(3, H, W) from -1 to 1; None: its latents are cached."""

    @property
    def is_whole(self) -> bool:
        """Nothing is cropped away, so every epoch sees the same pixels."""
        return self.augmentation.crop == (0, 0, self.picture.width, self.picture.height)


@dataclass(frozen=True)
class LoadedBatch:
    """A batch with its pixels."""

    batch: Batch
    examples: tuple[Example, ...]

    @property
    def captions(self) -> list[str]:
        return [example.augmentation.caption for example in self.examples]

    @property
    def loss_scales(self) -> Tensor:
        """One factor per image, (B,)."""
        return torch.tensor([example.picture.loss_scale for example in self.examples])


class LatentCache:
    """Latents of images, encoded one at a time: a batch changes nothing of its images."""

    def __init__(self, vae: AutoencoderKL, max_bytes: int = CACHE_BYTES) -> None:
        self._vae = vae
        self._room = max_bytes
        self._cached: dict[Key, Tensor] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._cached

    def sample(self, loaded: LoadedBatch, generator: torch.Generator) -> Tensor:
        """Scaled latents (B, 4, H/8, W/8), sampled from the VAE's distribution of each image."""
        moments = torch.cat([self._moments(example) for example in loaded.examples])
        sampled: Tensor = DiagonalGaussianDistribution(moments).sample(generator)
        return sampled * float(self._vae.config.scaling_factor)

    @torch.no_grad()
    def _moments(self, example: Example) -> Tensor:
        """Mean and log variance on the channels, (1, 8, H/8, W/8), float32."""
        if example.pixels is None:
            return self._cached[example.key].to(self._vae.device)
        pixels = example.pixels[None].to(self._vae.device)
        moments: Tensor = self._vae.encode(pixels).latent_dist.parameters.float()
        if example.is_whole and moments.nbytes <= self._room:
            self._room -= moments.nbytes
            self._cached[example.key] = moments.cpu()
        return moments


class PrefetchLoader:
    """Reads each batch of an epoch in a thread while the one before is trained on."""

    def __init__(
        self,
        folder: Path,
        pictures: Sequence[Picture],
        epoch_config: EpochConfig,
        latents: LatentCache,
    ) -> None:
        self._folder = folder
        self._pictures = pictures
        self._epoch_config = epoch_config
        self._latents = latents

    def read(self, batches: Sequence[Batch], epoch: int) -> Iterator[LoadedBatch]:
        """The batches in order.

        Raises:
            Refused: an image cannot be read; names it.
        """
        with ThreadPoolExecutor(1, "reader") as thread:
            ahead = None
            for batch in batches:
                current, ahead = ahead, thread.submit(self._load, batch, epoch)
                if current:
                    yield current.result()
            if ahead:
                yield ahead.result()

    def _load(self, batch: Batch, epoch: int) -> LoadedBatch:
        examples = (
            self._example(index, batch.size, epoch, batch.first + place)
            for place, index in enumerate(batch.pictures)
        )
        return LoadedBatch(batch, tuple(examples))

    def _example(self, index: int, size: Size, epoch: int, position: int) -> Example:
        picture = self._pictures[index]
        augmentation = augment(
            picture, index, size, self._epoch_config, epoch=epoch, position=position
        )
        example = Example(picture, (index, size, augmentation.flip), augmentation, None)
        if example.is_whole and example.key in self._latents:
            return example
        pixels = read_pixels(self._folder / picture.file, augmentation, size, picture.name)
        return Example(picture, example.key, augmentation, pixels)


def read_pixels(path: Path, augmentation: Augmentation, size: Size, name: str = "") -> Tensor:
    """An image as it is trained on: upright, cropped, scaled, perhaps flipped; (3, H, W), -1 to 1.

    Raises:
        Refused: it cannot be read.
    """
    try:
        with open_image(path) as file:
            upright = as_trained(file)
    except (OSError, ValueError, SyntaxError) as error:
        raise Refused(f"the image {name or path.name} cannot be read: {error}") from error
    scaled = upright.resize(size, box=augmentation.crop)
    flipped = ImageOps.mirror(scaled) if augmentation.flip else scaled
    values = torch.from_numpy(np.array(flipped)).permute(2, 0, 1)
    return values.float() / 127.5 - 1.0
