"""The twelve schedulers of the endpoint, for Stable Diffusion models."""

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

from shared.diffusion.noise import (
    FROM_PURE_NOISE,
    PredictionType,
    cumulative_alphas,
    prediction_type,
)
from shared.request import Scheduler


def make_scheduler(name: Scheduler, config: Mapping[str, Any], steps: int) -> Any:
    """A new scheduler with the base model's betas and prediction type, set to ``steps`` steps."""
    changes = {**FROM_PURE_NOISE, **CONFIG_CHANGES.get(name, {})}
    scheduler = SCHEDULER_CLASSES[name].from_config(dict(config), **changes)
    scheduler.set_timesteps(steps)
    return scheduler


class StablePNDM(PNDMScheduler):  # type: ignore[misc]
    """PNDM without its Runge-Kutta start (PLMS), for any number of steps and for v-prediction.

    The stock class steps down by 1000 // steps each time, whatever its timesteps are, and averages
    the network's outputs of several timesteps as they are. Velocities of different timesteps cannot
    be averaged; this class converts them to noise first: noise = sqrt(a) v + sqrt(1 - a) x.
    """

    _prediction: PredictionType
    _on_host: list[int]
    """Its timesteps, where reading them waits for nothing."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **changes: Any) -> StablePNDM:
        scheduler: StablePNDM = super().from_config(
            {**config, "prediction_type": "epsilon"}, **changes
        )
        scheduler._prediction = prediction_type(config)
        return scheduler

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        super().set_timesteps(num_inference_steps, device)
        self._on_host = self.timesteps.tolist()  # once, as the host waits here for a card

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        return_dict: bool = True,  # noqa: FBT001, FBT002 - the stock signature
    ) -> Any:
        if self._prediction == "v_prediction":
            a = float(self.alphas_cumprod[self._on_host[self.counter]])
            model_output = a**0.5 * model_output + (1 - a) ** 0.5 * sample
        return super().step(model_output, timestep, sample, return_dict)

    def _get_prev_sample(
        self,
        sample: Tensor,
        timestep: int,  # noqa: ARG002 - the stock signature
        prev_timestep: int,  # noqa: ARG002
        model_output: Tensor,
    ) -> Tensor:
        """Go to the next timestep of the list; the first step is taken twice."""
        timesteps = [*sorted({*self._on_host}, reverse=True), -1]
        index = max(self.counter, 1)
        previous: Tensor = super()._get_prev_sample(
            sample, timesteps[index - 1], timesteps[index], model_output
        )
        return previous


class StableIPNDM(IPNDMScheduler):  # type: ignore[misc]
    """The fourth-order method of IPNDM (Liu et al. 2022, formula 12) on the model's own schedule.

    The stock class has a cosine schedule built in, passes the network times from 0 to 1, and takes
    its output for a velocity. This class takes alphas and sigmas from the model's betas at evenly
    spaced training timesteps, and converts noise to a velocity: v = (noise - sigma x) / alpha.
    """

    def __init__(self, model_config: Mapping[str, Any]) -> None:
        self._cumulative = cumulative_alphas(model_config)
        self._prediction = prediction_type(model_config)
        super().__init__(len(self._cumulative))

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **changes: Any) -> StableIPNDM:
        return cls({**config, **changes})

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Evenly spaced from the last training timestep down; the last step ends without noise."""
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
        if self._prediction == "epsilon":
            index = 0 if self.step_index is None else self.step_index
            model_output = (model_output - self.betas[index] * sample) / self.alphas[index]
        return super().step(model_output, timestep, sample, return_dict)


SCHEDULER_CLASSES: dict[Scheduler, Any] = {
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

CONFIG_CHANGES: dict[Scheduler, dict[str, Any]] = {
    # The DPM-Solver of first order is DDIM (Lu et al. 2022, "DPM-Solver", section 4.1). The stock
    # DDIMScheduler steps down by 1000 // steps each time, whatever its timesteps are.
    "DDIM": {"solver_order": 1},
    # The Runge-Kutta start of PNDM takes more steps than requested, and fails with one.
    "PNDM": {"skip_prk_steps": True},
    # Latents are not bounded by 1.
    "DDPM": {"clip_sample": False},
}
