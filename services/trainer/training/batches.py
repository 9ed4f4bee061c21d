"""Batches in the plan's order, made ready in a thread while the one before is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor

from services.trainer.training.latents import Key, LatentCache
from shared.dataset.buckets import Size
from shared.dataset.manifest import Picture
from shared.dataset.pixels import as_trained, open_image
from shared.dataset.plan import Augmentation, Batch, EpochConfig, augment
from shared.errors import Refused


@dataclass(frozen=True)
class Example:
    """One image of a batch."""

    picture: Picture
    augmentation: Augmentation
    key: Key | None
    """None: its crop does not come again."""
    tensor: Tensor
    """(3, H, W): pixels from -1 to 1. Or if it was kept, what the VAE made of them."""
    is_encoded: bool
    mask: Tensor | None = None
    """(1, H, W): what counts, from 0 to 1; None: all of it."""


class Inputs(NamedTuple):
    """What is made of captions and random numbers, on the CPU for every device alike."""

    ids: Tensor
    """(B, 77): the captions' tokens."""
    spread: Tensor
    """(B, 4, H/8, W/8): where in the VAE's distribution the latents are."""
    noise: Tensor
    """(B, 4, H/8, W/8)"""
    timesteps: Tensor
    """(B,)"""
    alphas: Tensor
    """(B,): a_t at the timesteps."""
    weights: Tensor
    """(B,): factors of the images' losses."""
    places: Tensor | None = None
    """(B, 1, H/8, W/8): factors of the losses within the images; None: all places count alike."""

    def to(self, device: torch.device) -> Inputs:
        """On a device; the host does not wait for those that are pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Inputs:
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        changed: Any = (each if each is None else change(each) for each in self)
        return Inputs(*changed)


@dataclass(frozen=True)
class LoadedBatch:
    """A batch that is ready to be trained on."""

    batch: Batch
    examples: tuple[Example, ...]
    inputs: Inputs

    @property
    def captions(self) -> list[str]:
        return captions_of(self.examples)

    def pinned(self) -> LoadedBatch:
        """In memory from which a card copies while the host goes on."""
        examples = (replace(each, tensor=each.tensor.pin_memory()) for each in self.examples)
        return LoadedBatch(self.batch, tuple(examples), self.inputs.pinned())


def captions_of(examples: Sequence[Example]) -> list[str]:
    return [example.augmentation.caption for example in examples]


MakeInputs = Callable[[Batch, Sequence[Example]], Inputs]


class BatchLoader:
    """Reads images, looks for their latents, and has their inputs made."""

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

    def ahead(
        self, batches: Sequence[Batch], epoch: int, make_inputs: MakeInputs
    ) -> Iterator[LoadedBatch]:
        """The batches of an epoch in order, each made ready while the one before is in use.

        Raises:
            Refused: an image cannot be read; names it.
        """
        with ThreadPoolExecutor(1, "reader") as thread:
            ahead = None
            for batch in batches:
                current, ahead = ahead, thread.submit(self.load, batch, epoch, make_inputs)
                if current:
                    yield current.result()
            if ahead:
                yield ahead.result()

    def load(self, batch: Batch, epoch: int, make_inputs: MakeInputs) -> LoadedBatch:
        """One batch. Raises Refused where an image cannot be read."""
        examples = tuple(
            self._example(index, batch.size, epoch, batch.first + place)
            for place, index in enumerate(batch.pictures)
        )
        loaded = LoadedBatch(batch, examples, make_inputs(batch, examples))
        return loaded.pinned() if self._latents.device.type == "cuda" else loaded

    def _example(self, index: int, size: Size, epoch: int, position: int) -> Example:
        picture, config = self._pictures[index], self._epoch_config
        augmentation = augment(picture, index, size, config, epoch=epoch, position=position)
        mask, key = None, None
        if picture.mask:
            mask = read_mask(self._folder / picture.mask, augmentation, size, picture.name)
        if config.crops_recur or augmentation.crop == (0, 0, picture.width, picture.height):
            key = Key(picture.file, augmentation.crop, size, augmentation.flip)
            if (moments := self._latents.find(key)) is not None:
                return Example(picture, augmentation, key, moments, is_encoded=True, mask=mask)
        pixels = read_pixels(self._folder / picture.file, augmentation, size, picture.name)
        return Example(picture, augmentation, key, pixels, is_encoded=False, mask=mask)


def read_pixels(path: Path, augmentation: Augmentation, size: Size, name: str = "") -> Tensor:
    """An image as it is trained on: upright, cropped, scaled, perhaps flipped; (3, H, W), -1 to 1.

    Raises:
        Refused: it cannot be read.
    """
    values = torch.from_numpy(_read(path, augmentation, size, name)).permute(2, 0, 1)
    return values.float() / 127.5 - 1.0


def read_mask(path: Path, augmentation: Augmentation, size: Size, name: str = "") -> Tensor:
    """A mask, cropped, scaled and flipped as its image; (1, H, W), 0 to 1.

    Raises:
        Refused: it cannot be read.
    """
    return torch.from_numpy(_read(path, augmentation, size, name)[None, :, :, 0]).float() / 255


def _read(path: Path, augmentation: Augmentation, size: Size, name: str) -> Any:
    """(H, W, 3), 0 to 255."""
    try:
        with open_image(path) as file:
            upright = as_trained(file)
    except (OSError, ValueError, SyntaxError) as error:
        raise Refused(f"the image {name or path.name} cannot be read: {error}") from error
    scaled = upright.resize(size, box=augmentation.crop)
    return np.array(ImageOps.mirror(scaled) if augmentation.flip else scaled)
