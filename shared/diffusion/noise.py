"""The arithmetic of diffusion: how noise is added, and what the network is asked to predict.

With a_t the cumulative product of 1 - beta (Ho et al. 2020, "Denoising Diffusion Probabilistic
Models"): x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from shared.errors import Refused

PredictionType = Literal["epsilon", "v_prediction"]


def prediction_type(scheduler_config: Mapping[str, Any]) -> PredictionType:
    """What a network with this scheduler predicts; ``epsilon`` where the configuration is silent.

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


def add_noise(latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """x_t; latents and noise (B, C, H, W), alphas a_t of each image (B,)."""
    a = alphas.view(-1, 1, 1, 1)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


def target(kind: PredictionType, latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """What the network should say, (B, C, H, W).

    epsilon: the noise. v: sqrt(a_t) noise - sqrt(1 - a_t) x_0 (Salimans & Ho 2022, "Progressive
    Distillation for Fast Sampling of Diffusion Models").
    """
    if kind == "epsilon":
        return noise
    a = alphas.view(-1, 1, 1, 1)
    return a.sqrt() * noise - (1 - a).sqrt() * latents


def seeded(seed: int) -> torch.Generator:
    """A generator of its own on the CPU, so that draws are the same on every device."""
    return torch.Generator("cpu").manual_seed(seed)
