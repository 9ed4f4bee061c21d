"""Everything that changes while a model is trained."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from msgspec import Struct
from torch import Tensor

from services.trainer.order import Measured
from services.trainer.training.ema import Ema, ema_weights
from services.trainer.training.optimizer import make_optimizer, saved_weights
from services.trainer.training.recipe import Choices, Precision
from shared.dataset.optimizers import IN_32_BITS
from shared.diffusion.loading import Parts
from shared.diffusion.lora import Lora
from shared.errors import Refused
from shared.request import Train

PRECISIONS: dict[Precision, torch.dtype] = {
    "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16
}  # fmt: skip
RECENT = 100
"""The reported loss is the mean over this many steps."""


class Position(Struct, frozen=True, kw_only=True):
    """How far the run has come; always just after an update."""

    epoch: int = 0
    step_in_epoch: int = 0
    """Steps done in this epoch."""
    steps: int = 0
    """Steps done in all."""
    updates: int = 0
    skipped_updates: int = 0
    """Of one network at least, because a gradient was not finite; in fp16 only."""
    images: int = 0


class Losses:
    """The losses of the last steps, read from the device only when asked for."""

    def __init__(self, recent: list[float] | None = None) -> None:
        self._recent: deque[float] = deque(recent or (), maxlen=RECENT)
        self._unread: list[tuple[int, Tensor]] = []

    def add(self, losses: Sequence[Tensor], *, first_step: int) -> None:
        """The losses of steps in a row, the first numbered from 1; reading waits for the device."""
        self._unread.extend(enumerate(losses, first_step))

    def recent(self) -> list[float]:
        """The last losses, oldest first.

        Raises:
            Refused: one of them is not a finite number.
        """
        for step, loss in self._unread:
            self._recent.append(finite(step, float(loss)))
        self._unread.clear()
        return list(self._recent)

    def mean(self) -> float | None:
        recent = self.recent()
        return sum(recent) / len(recent) if recent else None


def finite(step: int, loss: float) -> float:
    if math.isfinite(loss):
        return loss
    raise Refused(
        f"the loss became {loss} at step {step}: the training has diverged. Try a lower lr,"
        " clip_grad_norm 1, amp false, or another base model"
    )


@dataclass
class State:
    """Networks, optimizers, position: what a resume point holds."""

    parts: Parts
    trained: dict[str, torch.nn.Module]
    """``unet`` and ``text_encoder``, or the one of them that is not frozen, or their LoRAs."""
    optimizers: dict[str, torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    loras: dict[str, Lora] = field(default_factory=dict)
    """By network, also those that are not trained; none where the networks are."""
    averages: dict[str, Ema] = field(default_factory=dict)
    """Moving averages of the trained networks, if ``ema_decay_rate`` is set: what gets saved."""
    position: Position = field(default_factory=Position)
    losses: Losses = field(default_factory=Losses)
    measured: list[Measured] = field(default_factory=list)
    """Every validation so far."""
    warnings: list[str] = field(default_factory=list)
    crops_per_image: int = 0
    """As the run began with it: a resume point of an older version has none."""


def prepare(
    parts: Parts,
    train: Train,
    choices: Choices,
    device: torch.device,
    *,
    loras: dict[str, Lora] | None = None,
) -> State:
    """Move a model to the device, freeze what is not trained, make optimizers for the rest.

    With ``loras`` they are what is trained, and the networks are kept in the precision that they
    compute in.
    """
    parts.to(device)
    networks = trained_networks(parts, train)
    trained = {name: (loras or {}).get(name, network) for name, network in networks.items()}
    learning = list(trained.values())
    for network in (parts.unet, parts.text_encoder, parts.vae, *(loras or {}).values()):
        network.to(device)
        network.requires_grad_(any(network is each for each in learning))
    for name in ("unet", "text_encoder"):
        network = getattr(parts, name).train(name in trained)
        if loras:
            network.to(PRECISIONS[choices.precision])
    _spare_memory(parts, train, choices)
    return State(
        parts=parts,
        trained=trained,
        optimizers={
            name: make_optimizer(choices.optimizer, network.parameters())
            for name, network in trained.items()
        },
        loras=loras or {},
        scaler=torch.amp.GradScaler(device.type, enabled=choices.precision == "fp16"),
        averages=_averages(trained, train.ema_decay_rate),
        warnings=_warnings(train, choices),
        crops_per_image=train.crops_per_image,
    )


def _warnings(train: Train, choices: Choices) -> list[str]:
    """Warnings about options that work as specified, but perhaps not as hoped."""
    named = train.optimizer
    if named in IN_32_BITS and choices.optimizer != named:
        lack = f"optimizer {named}: bitsandbytes, which it needs, does not work here"
        return [f"{lack}, so {IN_32_BITS[named]} has trained", *_of_zero_snr(train)]
    return _of_zero_snr(train)


def _of_zero_snr(train: Train) -> list[str]:
    if not train.enable_zero_terminal_snr:
        return []
    drawing = (
        "enable_zero_terminal_snr: draw with DDIM, DDPM, DPM-M, EULER-A, EULER-D or IPNDM;"
        " the other schedulers do not follow the rescaled betas"
    )
    weights = "min_snr_gamma gives the timestep without signal the weight 0"
    return [drawing] if train.min_snr_gamma is None else [drawing, weights]


def _averages(trained: dict[str, torch.nn.Module], decay: float | None) -> dict[str, Ema]:
    if decay is None:
        return {}
    return {name: Ema(network, decay) for name, network in trained.items()}


@contextmanager
def weights_to_save(state: State) -> Iterator[None]:
    """Within the block the trained weights are those that are saved, drawn with and validated.

    That is their average, where they have one.
    """
    with saved_weights(state.optimizers.values()), ema_weights(state.averages):
        yield


def trained_networks(parts: Parts, train: Train) -> dict[str, torch.nn.Module]:
    """Those that are not frozen."""
    trained: dict[str, torch.nn.Module] = {}
    if not train.disable_unet_training:
        trained["unet"] = parts.unet
    if not train.disable_textenc_training:
        trained["text_encoder"] = parts.text_encoder
    return trained


def _spare_memory(parts: Parts, train: Train, choices: Choices) -> None:
    if choices.attention == "xformers":
        parts.unet.enable_xformers_memory_efficient_attention()
    if train.gradient_checkpointing:
        parts.unet.train()  # the text encoder learns through it even when it is frozen itself
        parts.unet.enable_gradient_checkpointing()
        parts.text_encoder.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
