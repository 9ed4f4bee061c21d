"""The arithmetic of diffusion: how noise is added, and what the network shall predict.

With a_t the cumulative product of 1 - beta (Ho et al. 2020, "Denoising Diffusion Probabilistic
Models"): x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor

from shared.errors import Refused

PredictionType = Literal["epsilon", "v_prediction"]

FROM_PURE_NOISE = {"timestep_spacing": "trailing"}
"""Any other spacing begins below the last training timestep, where an image is not yet pure noise.

Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", table 2. The usual
"leading" begins at 1000 // steps * steps: at 667 of 1000 for 334 steps, and for one step at 0.
"""
LAYERS = 10
"""Maximum number of layers in pyramid noise."""


def prediction_type(scheduler_config: Mapping[str, Any]) -> PredictionType:
    """What a network with this scheduler predicts; ``epsilon`` if it is not configured.

    Raises:
        Refused: neither epsilon nor v-prediction.
    """
    match str(scheduler_config.get("prediction_type", "epsilon")).replace("-", "_"):
        case "epsilon":
            return "epsilon"
        case "v_prediction":
            return "v_prediction"
        case other:
            raise Refused(
                f"the base model's scheduler_config.json has prediction_type {other!r};"
                " expected epsilon or v_prediction"
            )


def cumulative_alphas(scheduler_config: Mapping[str, Any]) -> Tensor:
    """a_t for every training timestep: shape (T,), float32, falling from nearly 1 to nearly 0."""
    alphas: Tensor = DDPMScheduler.from_config(dict(scheduler_config)).alphas_cumprod
    return alphas.float()


def with_zero_terminal_snr(scheduler_config: Mapping[str, Any]) -> dict[str, Any]:
    """The same scheduler with betas rescaled so that the last timestep has no signal at all.

    Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed": sqrt(a_t) is
    shifted and stretched so that it ends at 0 and begins where it was. Sampling must begin at that
    last timestep, as it does with trailing spacing; of the usual schedulers DDIM supports both.

    Raises:
        Refused: the network predicts noise.
    """
    if prediction_type(scheduler_config) == "epsilon":
        raise Refused(
            "enable_zero_terminal_snr needs a base model with prediction_type v_prediction; this"
            " one predicts the noise (epsilon), which tells nothing of the image where there is"
            " nothing but noise. Leave the option out, or choose another base model"
        )
    return {
        **scheduler_config,
        "_class_name": "DDIMScheduler",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "clip_sample": False,
    }


def offset_noise(noise: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """Noise (B, C, H, W) plus ``ratio`` times one random number for each image and channel.

    It teaches a network to move the mean, and with it very dark and bright images (Guttenberg
    2023, "Diffusion with Offset Noise"); the standard deviation becomes sqrt(1 + ratio^2).
    """
    return noise + ratio * torch.randn(*noise.shape[:2], 1, 1, generator=generator)


def pyramid_noise(noise: Tensor, discount: float, generator: torch.Generator) -> Tensor:
    """Noise (B, C, H, W) plus coarser layers, scaled to unit deviation in each image.

    Layer i has the weight ``discount ** i`` (Whitaker 2023, "Multi-Resolution Noise for Diffusion
    Model Training"). As in EveryDream2, whose discounts so mean the same here, layer 0 is as fine
    as the noise, and layer i is r^i times coarser than the one before, with r from 2 to 4.
    """
    height, width = noise.shape[-2:]
    size = [height, width]
    total = noise + torch.randn(noise.shape, generator=generator)
    for layer in range(1, LAYERS):
        ratio = 2.0 + 2.0 * float(torch.rand((), generator=generator))
        size = [max(1, int(side / ratio**layer)) for side in size]
        coarse = torch.randn(*noise.shape[:2], *size, generator=generator)
        total = total + discount**layer * F.interpolate(coarse, (height, width), mode="bilinear")
        if 1 in size:
            break
    return total / total.std(dim=(1, 2, 3), keepdim=True)


def min_snr_weights(kind: PredictionType, alphas: Tensor, gamma: float) -> Tensor:
    """Factors for the images' losses, (B,), at a_t (B,): smaller where the task is easy.

    Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", with
    SNR = a_t / (1 - a_t): min(SNR, gamma) / SNR for epsilon, min(SNR, gamma) / (SNR + 1) for v.
    """
    snr = alphas / (1 - alphas)
    if kind == "epsilon":
        return (gamma / snr).clamp(max=1.0)  # also 1 where the SNR is 0
    return snr.clamp(max=gamma) / (snr + 1)


def add_noise(latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """x_t; latents and noise (B, C, H, W), alphas a_t of each image (B,)."""
    a = alphas.view(-1, 1, 1, 1)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


def target(kind: PredictionType, latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """What the network should predict, (B, C, H, W).

    epsilon: the noise. v: sqrt(a_t) noise - sqrt(1 - a_t) x_0 (Salimans & Ho 2022, "Progressive
    Distillation for Fast Sampling of Diffusion Models").
    """
    if kind == "epsilon":
        return noise
    a = alphas.view(-1, 1, 1, 1)
    return a.sqrt() * noise - (1 - a).sqrt() * latents


def seeded(seed: int) -> torch.Generator:
    """A new generator on the CPU, so that its numbers are the same on every device."""
    return torch.Generator("cpu").manual_seed(seed)
