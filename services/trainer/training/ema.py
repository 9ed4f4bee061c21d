"""The moving average of the weights (EMA): if it is asked for, it is what gets saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """The exponential moving average (EMA) of one network's weights, in their own precision.

    After each update: average = decay * average + (1 - decay) * weights; before the first it is
    the base model.
    """

    def __init__(self, network: torch.nn.Module, decay: float) -> None:
        self._network = network
        self._follow = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._weights = [each.detach().clone() for each in network.parameters()]

    def follow(self) -> None:
        """Move towards the network as it is now."""
        self._follow(self._weights, [each.detach() for each in self._network.parameters()], 1)

    def swap(self) -> None:
        """Exchange the network's weights for the averaged ones, or back; nothing is copied."""
        for number, weight in enumerate(self._network.parameters()):
            self._weights[number], weight.data = weight.data, self._weights[number]

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights by the network's names."""
        names = (name for name, _ in self._network.named_parameters())
        return dict(zip(names, self._weights, strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore :meth:`state_dict`. Raises KeyError or RuntimeError where it does not fit."""
        for name, weight in self.state_dict().items():
            weight.copy_(state[name])


@contextmanager
def ema_weights(averages: Mapping[str, Ema]) -> Iterator[None]:
    """Within the block the networks have their averaged weights."""
    for average in averages.values():
        average.swap()
    try:
        yield
    finally:
        for average in averages.values():
            average.swap()
