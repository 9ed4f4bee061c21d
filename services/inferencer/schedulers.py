"""The endpoint's twelve scheduler names, as schedulers that fit a Stable Diffusion model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
)
from torch import Tensor

from shared.diffusion.noise import cumulative_alphas, prediction_type
from shared.request import Scheduler

FROM_PURE_NOISE = {"timestep_spacing": "trailing"}
"""A single step must start from pure noise; the usual spacings would start it at the end."""


def make_scheduler(name: Scheduler, config: Mapping[str, Any], steps: int) -> Any:
    """A fresh scheduler with the base model's betas and prediction type.

    ``steps`` is how many will be asked for: the spacing of one step differs.
    """
    spacing = FROM_PURE_NOISE if steps == 1 else {}
    return _KINDS[name].from_config(dict(config), **spacing, **_EXTRAS.get(name, {}))


class StableIPNDM(IPNDMScheduler):  # type: ignore[misc]
    """The fourth-order method of IPNDM (Liu et al. 2022, formula 12) on the model's own schedule.

    The stock class has a cosine schedule built in, hands the network times from 0 to 1, and takes
    its answer for a velocity. This one takes alphas and sigmas at evenly spaced training timesteps
    from the model's betas, and makes a velocity of a noise: v = (noise - sigma x) / alpha.
    """

    def __init__(self, model_config: Mapping[str, Any]) -> None:
        self._cumulative = cumulative_alphas(model_config)
        self._predicts = prediction_type(model_config)
        super().__init__(len(self._cumulative))

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **changes: Any) -> StableIPNDM:
        return cls({**config, **changes})

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Evenly spaced from the last training timestep down; after the last comes no noise."""
        self.num_inference_steps = num_inference_steps
        last = len(self._cumulative) - 1
        timesteps = torch.linspace(last, 0, num_inference_steps + 1)[:-1].round().long()
        cumulative = torch.cat([self._cumulative[timesteps], torch.ones(1)])
        self.alphas, self.betas = cumulative.sqrt(), (1 - cumulative).sqrt()
        self.timesteps = timesteps.to(device)
        self.ets: list[Tensor] = []
        self._step_index = None
        self._begin_index = None

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        return_dict: bool = True,  # noqa: FBT001, FBT002 - the stock signature
    ) -> Any:
        if self._predicts == "epsilon":
            index = 0 if self.step_index is None else self.step_index
            model_output = (model_output - self.betas[index] * sample) / self.alphas[index]
        return super().step(model_output, timestep, sample, return_dict)


_KINDS: dict[Scheduler, Any] = {
    "DDIM": DDIMScheduler,
    "DDPM": DDPMScheduler,
    "DPM-M": DPMSolverMultistepScheduler,
    "DPM-S": DPMSolverSinglestepScheduler,
    "EULER-A": EulerAncestralDiscreteScheduler,
    "EULER-D": EulerDiscreteScheduler,
    "HEUN": HeunDiscreteScheduler,
    "IPNDM": StableIPNDM,
    "KDPM2-A": KDPM2AncestralDiscreteScheduler,
    "KDPM2-D": KDPM2DiscreteScheduler,
    "PNDM": PNDMScheduler,
    "K-LMS": LMSDiscreteScheduler,
}

_EXTRAS: dict[Scheduler, dict[str, Any]] = {
    # The Runge-Kutta start of PNDM takes more steps than were asked for, and fails at one.
    "PNDM": {"skip_prk_steps": True},
    # Latents are not bounded by 1.
    "DDPM": {"clip_sample": False},
    "DDIM": {"clip_sample": False},
}
