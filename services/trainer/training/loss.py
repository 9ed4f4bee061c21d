"""The training loss: predict the noise in a noisy latent (Ho et al. 2020), or its velocity."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from services.trainer.order import TrainingOrder
from services.trainer.training.batches import LatentCache, LoadedBatch
from services.trainer.training.recipe import Choices
from services.trainer.training.state import State
from shared.dataset.plan import seed_of
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

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class DiffusionLoss:
    """The loss as a function of a batch and the epoch."""

    def __init__(
        self, state: State, order: TrainingOrder, choices: Choices, latents: LatentCache
    ) -> None:
        self._parts = state.parts
        self._seed = order.seed
        self._train = order.train
        self._precision = PRECISIONS[choices.precision]
        self._latents = latents
        self._alphas = cumulative_alphas(state.parts.scheduler_config)
        self._timesteps = timesteps_of(order.train, len(self._alphas))

    def loss(self, loaded: LoadedBatch, epoch: int) -> Tensor:
        """The batch's mean error, less for a batch that repeats had to fill; a scalar."""
        generator = seeded(seed_of(self._seed, epoch, loaded.batch.first, "noise"))
        latents = self._latents.sample(loaded, generator)  # (B, 4, H/8, W/8)
        noise = noise_like(latents, self._train, generator)
        timesteps = self._random_timesteps(len(latents), generator)  # (B,)

        predicted, expected = self._predict(loaded.captions, latents, noise, timesteps)
        late = (timesteps / len(self._alphas)).to(predicted.device)
        errors = image_errors(predicted, expected, self._train.loss_type, late)  # (B,)
        weights = loaded.loss_scales * self._snr_weights(timesteps)
        return (errors * weights.to(predicted.device)).mean() * loaded.batch.loss_factor

    def plain_errors(self, loaded: LoadedBatch, generator: torch.Generator) -> Tensor:
        """Each image's mean squared error at plain noise, (B,): comparable between options."""
        latents = self._latents.sample(loaded, generator)
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        timesteps = self._random_timesteps(len(latents), generator)
        predicted, expected = self._predict(loaded.captions, latents, noise, timesteps)
        return (predicted - expected).square().mean(dim=(1, 2, 3))

    def _predict(
        self, captions: list[str], latents: Tensor, noise: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The UNet's prediction and the right one, both (B, 4, H/8, W/8), fp32."""
        parts, device = self._parts, self._parts.unet.device
        alphas = self._alphas[timesteps].to(device)
        noisy = add_noise(latents, noise, alphas)

        with torch.autocast(device.type, self._precision, enabled=self._precision != torch.float32):
            ids = tokenize(parts.tokenizer, captions)  # (B, 77)
            hidden = encode(parts.text_encoder, ids, self._train.clip_skip)  # (B, 77, C)
            predicted = parts.unet(noisy, timesteps.to(device), hidden).sample
        return predicted.float(), target(parts.prediction_type, latents, noise, alphas)

    def _random_timesteps(self, images: int, generator: torch.Generator) -> Tensor:
        first, stop = self._timesteps.start, self._timesteps.stop
        return torch.randint(first, stop, (images,), generator=generator)

    def _snr_weights(self, timesteps: Tensor) -> Tensor:
        """(B,); ones where ``min_snr_gamma`` is not asked for."""
        gamma = self._train.min_snr_gamma
        if gamma is None:
            return torch.ones(len(timesteps))
        return min_snr_weights(self._parts.prediction_type, self._alphas[timesteps], gamma)


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


def noise_like(latents: Tensor, train: Train, generator: torch.Generator) -> Tensor:
    """Normal noise of the latents' shape (B, C, H, W), on their device, with its options."""
    noise = torch.randn(latents.shape, generator=generator)
    if train.pyramid_noise_discount:
        noise = pyramid_noise(noise, train.pyramid_noise_discount, generator)
    if train.zero_frequency_noise_ratio:
        noise = offset_noise(noise, train.zero_frequency_noise_ratio, generator)
    return noise.to(latents.device)


def image_errors(predicted: Tensor, expected: Tensor, kind: LossType, late: Tensor) -> Tensor:
    """Each image's mean error, (B,), by EveryDream2's kinds.

    ``late`` (B,) is the timestep as a share of the schedule: 0 hardly any noise, 1 only noise.
    ``mse_huber`` goes from Huber (delta 1) at 0 to squares at 1, ``huber_mse`` the other way.
    """
    squares = F.mse_loss(predicted, expected, reduction="none").mean(dim=(1, 2, 3))
    if kind == "mse":
        return squares
    huber = F.huber_loss(predicted, expected, reduction="none").mean(dim=(1, 2, 3))
    match kind:
        case "huber":
            return huber
        case "mse_huber":
            return squares * late + huber * (1 - late)
        case "huber_mse":
            return huber * late + squares * (1 - late)
