"""The training loss: predict the noise in a noisy latent (Ho et al. 2020), or its velocity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from services.trainer.order import TrainingOrder
from services.trainer.training.batches import Example, Inputs, LoadedBatch, captions_of
from services.trainer.training.latents import LatentCache
from services.trainer.training.recipe import Choices
from services.trainer.training.state import PRECISIONS, State
from shared.dataset.plan import Batch, seed_of
from shared.diffusion.noise import (
    add_noise,
    cumulative_alphas,
    min_snr_weights,
    offset_noise,
    pyramid_noise,
    seeded,
    target,
)
from shared.diffusion.text import encode, tokenize
from shared.errors import Refused
from shared.request import LossType, Train

TEXT_BYTES = 2**28
"""Bound of the hidden states that are kept of a frozen text encoder: 1,134 captions of SD 1.5."""


class DiffusionLoss:
    """The loss of a batch, and the inputs that it is made of."""

    def __init__(
        self, state: State, order: TrainingOrder, choices: Choices, latents: LatentCache
    ) -> None:
        self._parts = state.parts
        self._seed = order.seed
        self._train = order.train
        self._precision = PRECISIONS[choices.precision]
        self._latents = latents
        self._texts = TextCache() if order.train.disable_textenc_training else None
        self._alphas = cumulative_alphas(state.parts.scheduler_config)
        self._timesteps = timesteps_of(order.train, len(self._alphas))
        self._tokenizing = Lock()  # a tokenizer cannot be used by two threads at once

    def inputs(self, batch: Batch, examples: Sequence[Example], epoch: int) -> Inputs:
        """A batch's inputs, which follow from the seed, the epoch and the batch's place in it."""
        generator = seeded(seed_of(self._seed, epoch, batch.first, "noise"))
        shape = self._latent_shape(batch)
        spread = torch.randn(shape, generator=generator)
        noise = noise_of(shape, self._train, generator)
        timesteps = self._random_timesteps(shape[0], generator)
        scales = torch.tensor([example.picture.loss_scale for example in examples])
        weights = scales * self._snr_weights(timesteps)
        inputs = self._inputs(examples, spread, noise, timesteps, weights)
        return inputs._replace(places=self._places(examples, shape))

    def plain_inputs(
        self, batch: Batch, examples: Sequence[Example], generator: torch.Generator
    ) -> Inputs:
        """Inputs at plain noise and equal weights: comparable between options."""
        shape = self._latent_shape(batch)
        spread = torch.randn(shape, generator=generator)
        noise = torch.randn(shape, generator=generator)
        timesteps = self._random_timesteps(shape[0], generator)
        return self._inputs(examples, spread, noise, timesteps, torch.ones(shape[0]))

    def loss(self, loaded: LoadedBatch) -> Tensor:
        """The batch's mean error, less for a batch that repeats had to fill; a scalar."""
        inputs = loaded.inputs.to(self._latents.device)
        predicted, expected = self._predict(loaded, inputs)
        late = inputs.timesteps / len(self._alphas)
        kind, places = self._train.loss_type, inputs.places
        errors = image_errors(predicted, expected, kind, late, places)  # (B,)
        return (errors * inputs.weights).mean() * loaded.batch.loss_factor

    def plain_errors(self, loaded: LoadedBatch) -> Tensor:
        """Each image's mean squared error, (B,)."""
        predicted, expected = self._predict(loaded, loaded.inputs.to(self._latents.device))
        return (predicted - expected).square().mean(dim=(1, 2, 3))

    def _predict(self, loaded: LoadedBatch, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """The UNet's prediction and the right one, both (B, 4, H/8, W/8), fp32."""
        parts, device = self._parts, self._latents.device
        latents = self._sampled(loaded.examples, inputs.spread)
        noisy = add_noise(latents, inputs.noise, inputs.alphas)

        with torch.autocast(device.type, self._precision, enabled=self._precision != torch.float32):
            hidden = self._encode(loaded.captions, inputs.ids)  # (B, 77, C)
            predicted = parts.unet(noisy, inputs.timesteps, hidden).sample
        expected = target(parts.prediction_type, latents, inputs.noise, inputs.alphas)
        return predicted.float(), expected

    def _sampled(self, examples: Sequence[Example], spread: Tensor) -> Tensor:
        """Scaled latents (B, 4, H/8, W/8), sampled from the VAE's distribution of each image."""
        moments = torch.cat([self._moments(example) for example in examples])
        distribution = DiagonalGaussianDistribution(moments)
        sampled: Tensor = distribution.mean + distribution.std * spread
        return sampled * float(self._parts.vae.config.scaling_factor)

    def _moments(self, example: Example) -> Tensor:
        if example.is_encoded:
            return example.tensor.to(self._latents.device, non_blocking=True)
        return self._latents.encode(example.key, example.tensor)

    def _encode(self, captions: Sequence[str], ids: Tensor) -> Tensor:
        """The captions' hidden states (B, 77, C); those of a frozen encoder are kept."""
        encoder, clip_skip = self._parts.text_encoder, self._train.clip_skip
        if self._texts is None:
            return encode(encoder, ids, clip_skip)
        return self._texts.encoded(captions, lambda row: encode(encoder, ids[row, None], clip_skip))

    def _inputs(
        self,
        examples: Sequence[Example],
        spread: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        weights: Tensor,
    ) -> Inputs:
        with self._tokenizing:
            ids = tokenize(self._parts.tokenizer, captions_of(examples))
        return Inputs(ids, spread, noise, timesteps, self._alphas[timesteps], weights)

    def _places(self, examples: Sequence[Example], shape: Sequence[int]) -> Tensor | None:
        """How much each place of a latent counts (B, 1, H/8, W/8): its mask's mean over the place.

        What is masked out counts ``unmasked_weight``.
        """
        if not self._train.masked_loss or all(each.mask is None for each in examples):
            return None
        masks = [
            torch.ones(1, 1, *shape[2:])
            if each.mask is None
            else F.interpolate(each.mask[None], tuple(shape[2:]), mode="area")
            for each in examples
        ]
        least = self._train.unmasked_weight
        return least + (1.0 - least) * torch.cat(masks)

    def _latent_shape(self, batch: Batch) -> tuple[int, int, int, int]:
        vae = self._parts.vae.config
        scale = 2 ** (len(vae.block_out_channels) - 1)
        width, height = batch.size
        return len(batch.pictures), vae.latent_channels, height // scale, width // scale

    def _random_timesteps(self, images: int, generator: torch.Generator) -> Tensor:
        first, stop = self._timesteps.start, self._timesteps.stop
        return torch.randint(first, stop, (images,), generator=generator)

    def _snr_weights(self, timesteps: Tensor) -> Tensor:
        """(B,); ones where ``min_snr_gamma`` is not asked for."""
        gamma = self._train.min_snr_gamma
        if gamma is None:
            return torch.ones(len(timesteps))
        return min_snr_weights(self._parts.prediction_type, self._alphas[timesteps], gamma)


class TextCache:
    """Hidden states of captions by a frozen text encoder, each encoded by itself, on the device."""

    def __init__(self, max_bytes: int = TEXT_BYTES) -> None:
        self._room = max_bytes
        self._kept: dict[str, Tensor] = {}

    def encoded(self, captions: Sequence[str], encode_row: Callable[[int], Tensor]) -> Tensor:
        """(B, 77, C); ``encode_row`` gives that of one caption, (1, 77, C)."""
        return torch.cat([self._one(text, row, encode_row) for row, text in enumerate(captions)])

    @torch.no_grad()
    def _one(self, caption: str, row: int, encode_row: Callable[[int], Tensor]) -> Tensor:
        if (kept := self._kept.get(caption)) is not None:
            return kept
        hidden = encode_row(row)
        if hidden.nbytes <= self._room:
            self._room -= hidden.nbytes
            self._kept[caption] = hidden
        return hidden


def timesteps_of(train: Train, schedule: int) -> range:
    """The timesteps to train at, of a schedule with that many.

    Raises:
        Refused: the model's schedule ends before ``timestep_start``.
    """
    timesteps = range(train.timestep_start, min(train.timestep_end, schedule))
    if not timesteps:
        raise Refused(
            f"timestep_start is {train.timestep_start}, but the base model has only {schedule}"
            f" timesteps: expected 0 to {schedule - 1}"
        )
    return timesteps


def noise_of(shape: Sequence[int], train: Train, generator: torch.Generator) -> Tensor:
    """Normal noise of a shape (B, C, H, W), with the request's options."""
    noise = torch.randn(shape, generator=generator)
    if train.pyramid_noise_discount:
        noise = pyramid_noise(noise, train.pyramid_noise_discount, generator)
    if train.zero_frequency_noise_ratio:
        noise = offset_noise(noise, train.zero_frequency_noise_ratio, generator)
    return noise


def image_errors(
    predicted: Tensor,
    expected: Tensor,
    kind: LossType,
    late: Tensor,
    places: Tensor | None = None,
) -> Tensor:
    """Each image's mean error, (B,), by EveryDream2's kinds.

    ``late`` (B,) is the timestep as a share of the schedule: 0 hardly any noise, 1 only noise.
    ``places`` (B, 1, H/8, W/8) are factors of each place's error.
    ``mse_huber`` goes from Huber (delta 1) at 0 to squares at 1, ``huber_mse`` the other way.
    """

    def mean(errors: Tensor) -> Tensor:
        weighed = errors if places is None else errors * places
        return weighed.mean(dim=(1, 2, 3))

    squares = mean(F.mse_loss(predicted, expected, reduction="none"))
    if kind == "mse":
        return squares
    huber = mean(F.huber_loss(predicted, expected, reduction="none"))
    match kind:
        case "huber":
            return huber
        case "mse_huber":
            return squares * late + huber * (1 - late)
        case "huber_mse":
            return huber * late + squares * (1 - late)
