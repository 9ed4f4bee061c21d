"""The endpoint's twelve scheduler names, as schedulers that fit a Stable Diffusion model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import (
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

from shared.diffusion.noise import PredictionType, cumulative_alphas, prediction_type
from shared.request import Scheduler

FROM_PURE_NOISE = {"timestep_spacing": "trailing"}
"""Every spacing but this begins below the last training timestep, where no image is pure noise.

Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", table 2. The usual
"leading" begins at 1000 // steps * steps: at 667 of 1000 for 334 steps, and for one step at 0.
"""


def make_scheduler(name: Scheduler, config: Mapping[str, Any], steps: int) -> Any:
    """A fresh scheduler with the base model's betas and prediction type, set to so many steps."""
    scheduler = KINDS[name].from_config(dict(config), **FROM_PURE_NOISE, **CHANGES.get(name, {}))
    scheduler.set_timesteps(steps)
    return scheduler


class StablePNDM(PNDMScheduler):  # type: ignore[misc]
    """PNDM without its Runge-Kutta start (PLMS), for any number of steps and for velocities.

    The stock class goes down by 1000 // steps each time, whatever its timesteps are, and averages a
    network's answers of several timesteps as they come. Velocities of different timesteps cannot be
    averaged; this one makes noises of them: noise = sqrt(a) v + sqrt(1 - a) x.
    """

    _predicts: PredictionType

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **changes: Any) -> StablePNDM:
        scheduler: StablePNDM = super().from_config(
            {**config, "prediction_type": "epsilon"}, **changes
        )
        scheduler._predicts = prediction_type(config)
        return scheduler

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        return_dict: bool = True,  # noqa: FBT001, FBT002 - the stock signature
    ) -> Any:
        if self._predicts == "v_prediction":
            a = float(self.alphas_cumprod[timestep])
            model_output = a**0.5 * model_output + (1 - a) ** 0.5 * sample
        return super().step(model_output, timestep, sample, return_dict)

    def _get_prev_sample(
        self,
        sample: Tensor,
        timestep: int,  # noqa: ARG002 - the stock signature
        prev_timestep: int,  # noqa: ARG002
        model_output: Tensor,
    ) -> Tensor:
        """From this timestep of the list to the next; the first of them is gone down twice."""
        down = [*self.timesteps.unique().flip(0).tolist(), -1]
        to = max(self.counter, 1)
        before: Tensor = super()._get_prev_sample(sample, down[to - 1], down[to], model_output)
        return before


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


KINDS: dict[Scheduler, Any] = {
    "DDIM": DPMSolverMultistepScheduler,
    "DDPM": DDPMScheduler,
    "DPM-M": DPMSolverMultistepScheduler,
    "DPM-S": DPMSolverSinglestepScheduler,
    "EULER-A": EulerAncestralDiscreteScheduler,
    "EULER-D": EulerDiscreteScheduler,
    "HEUN": HeunDiscreteScheduler,
    "IPNDM": StableIPNDM,
    "KDPM2-A": KDPM2AncestralDiscreteScheduler,
    "KDPM2-D": KDPM2DiscreteScheduler,
    "PNDM": StablePNDM,
    "K-LMS": LMSDiscreteScheduler,
}

CHANGES: dict[Scheduler, dict[str, Any]] = {
    # The DPM-Solver of first order is DDIM (Lu et al. 2022, "DPM-Solver", section 4.1). The stock
    # DDIMScheduler goes down by 1000 // steps each time, whatever its timesteps are.
    "DDIM": {"solver_order": 1},
    # The Runge-Kutta start of PNDM takes more steps than were asked for, and fails at one.
    "PNDM": {"skip_prk_steps": True},
    # Latents are not bounded by 1.
    "DDPM": {"clip_sample": False},
}
