"""bitsandbytes' 8-bit AdamW, which updates many tensors at a call.

bitsandbytes updates one tensor at a time and waits for the device after each: hundreds of times an
update. Here small tensors are packed into a few buffers. Each begins at a block of its own, so that
its moments are the same bits as if it were updated alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import bitsandbytes.functional as kernels
import torch
from bitsandbytes.optim.adamw import AdamW8bit
from torch import Tensor
from torch.nn import Parameter

BLOCK = 256
"""Elements that share a scale, in bitsandbytes' kernels."""
PACK = 2**22
"""Elements of a pack: 16 MiB of weights, and as much of gradients, are copied for each call. A
tensor as large is updated alone and in place."""

State = dict[str, Any]


@dataclass(frozen=True)
class Pack:
    """Tensors of one parameter group that are updated by one call."""

    group: int
    numbers: Sequence[int]
    """Their places in the group."""
    parameters: list[Tensor]
    states: Sequence[State]
    """The optimizer's; the moments of several tensors are views of these buffers:"""
    buffers: State

    @property
    def goes_as_one(self) -> bool:
        return (
            len(self.parameters) > 1
            and all(each.grad is not None for each in self.parameters)
            and len({state["step"] for state in self.states}) == 1
        )


class PackedAdamW8bit(AdamW8bit):
    """AdamW with 8-bit moments (Dettmers et al. 2022), its state laid out as bitsandbytes does.

    Tensors of less than 4,096 elements have 32-bit moments, as there.
    """

    def __init__(self, parameters: Iterable[Parameter], **options: Any) -> None:
        super().__init__(parameters, **options)
        self._packs: list[Pack] = []

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every tensor that has a gradient; ``closure`` as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._pack_the_new()
        for pack in self._packs:
            if pack.goes_as_one:
                self._update(pack)
                continue
            for number, parameter in zip(pack.numbers, pack.parameters, strict=True):
                if parameter.grad is not None:
                    self.update_step(self.param_groups[pack.group], parameter, pack.group, number)
        return loss

    def load_state_dict(self, state_dict: State, move_to_device: bool = True) -> None:  # noqa: FBT001, FBT002 - its parent's
        """Restore what this or bitsandbytes' own optimizer has written."""
        super().load_state_dict(state_dict, move_to_device)
        self._packs = []

    def _pack_the_new(self) -> None:
        """Pack what has its first gradient: nearly all at the first update, and nothing later."""
        packed = {id(each) for pack in self._packs for each in pack.parameters}
        for index, group in enumerate(self.param_groups):
            new: dict[torch.dtype, list[int]] = {torch.float32: [], torch.uint8: []}
            for number, parameter in enumerate(group["params"]):
                if parameter.grad is None or id(parameter) in packed:
                    continue
                if not self.state[parameter]:
                    self.init_state(group, parameter, index, number)
                new[self.state[parameter]["state1"].dtype].append(number)
            for numbers in new.values():
                for some in in_packs(numbers, group["params"]):
                    self._packs.append(self._pack(index, some))

    def _pack(self, group: int, numbers: Sequence[int]) -> Pack:
        """Move the tensors' moments into common buffers."""
        parameters = [self.param_groups[group]["params"][number] for number in numbers]
        states = [self.state[each] for each in parameters]
        blocks = [blocks_of(each) for each in parameters]
        buffers: State = {}
        if len(numbers) == 1:
            return Pack(group, numbers, parameters, states, buffers)
        for name, codes in (("state1", "qmap1"), ("state2", "qmap2")):
            zero = code_of_zero(states[0][codes]) if codes in states[0] else 0
            buffers[name] = states[0][name].new_full((sum(blocks) * BLOCK,), zero)
            move(states, name, views(buffers[name], parameters))
        for name in ("absmax1", "absmax2"):
            if name in states[0]:
                buffers[name] = states[0][name].new_zeros(sum(blocks))
                move(states, name, torch.split(buffers[name], blocks))
        return Pack(group, numbers, parameters, states, buffers)

    def _update(self, pack: Pack) -> None:
        options = self.param_groups[pack.group]
        size = len(pack.buffers["state1"])
        weights = pack.parameters[0].new_empty(size)
        gradients = pack.parameters[0].new_zeros(size)  # zeros between tensors leave moments at 0
        weights_of, gradients_of = (views(each, pack.parameters) for each in (weights, gradients))
        torch._foreach_copy_(weights_of, pack.parameters)
        torch._foreach_copy_(
            gradients_of, [each.grad for each in pack.parameters if each.grad is not None]
        )
        for state in pack.states:
            state["step"] += 1
        update(weights, gradients, pack.buffers, pack.states[0], options)
        torch._foreach_copy_(pack.parameters, weights_of)


def update(
    weights: Tensor, gradients: Tensor, buffers: State, state: State, options: State
) -> None:
    """Update weights and moments in place, all (N,), by bitsandbytes' kernels."""
    (beta1, beta2), step = options["betas"], state["step"]
    eps, lr, decay = options["eps"], options["lr"], options["weight_decay"]
    if "absmax1" not in buffers:
        kernels.optimizer_update_32bit(
            "adam",
            gradients,
            weights,
            buffers["state1"],
            beta1,
            eps,
            step,
            lr,
            state2=buffers["state2"],
            beta2=beta2,
            weight_decay=decay,
        )
        return
    kernels.optimizer_update_8bit_blockwise(
        "adam",
        gradients,
        weights,
        buffers["state1"],
        buffers["state2"],
        beta1,
        beta2,
        0.0,
        0.0,
        eps,
        step,
        lr,
        state["qmap1"],
        state["qmap2"],
        buffers["absmax1"],
        buffers["absmax2"],
        decay,
    )


def in_packs(numbers: Sequence[int], parameters: Sequence[Tensor]) -> Iterator[list[int]]:
    """The numbers in their order, so many together as fit a pack."""
    some: list[int] = []
    room = 0
    for number in numbers:
        size = blocks_of(parameters[number]) * BLOCK
        if some and size > room:
            yield some
            some, room = [], 0
        room = (room if some else PACK) - size
        some.append(number)
    if some:
        yield some


def code_of_zero(codes: Tensor) -> int:
    """Which of the 256 values of an 8-bit moment is 0."""
    return int((codes == 0).nonzero()[0])


def blocks_of(parameter: Tensor) -> int:
    return -(-parameter.numel() // BLOCK)


def views(buffer: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor's own part of the buffer, in its shape."""
    starts = torch.split(buffer, [blocks_of(each) * BLOCK for each in parameters])
    return [
        start[: each.numel()].view(each.shape)
        for start, each in zip(starts, parameters, strict=True)
    ]


def move(states: Sequence[State], name: str, places: Sequence[Tensor]) -> None:
    for state, place in zip(states, places, strict=True):
        place.copy_(state[name])
        state[name] = place
