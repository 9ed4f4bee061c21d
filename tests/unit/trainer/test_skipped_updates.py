"""In fp16 an update is skipped if a gradient is not finite: what then changes, and what not."""

from __future__ import annotations

import math

import pytest
import torch

from services.trainer.training.recipe import Choices
from services.trainer.training.state import Position, State, prepare
from services.trainer.training.train import after, update
from tests.support.models import random_parts
from tests.support.training import train_request

FP16 = Choices(precision="fp16", optimizer="adamw", attention="sdpa")
LRS = {"unet": 1e-3, "text_encoder": 1e-3}
Weights = dict[str, list[torch.Tensor]]


@pytest.fixture(scope="module")
def state() -> State:
    return prepare(random_parts(), train_request(ema_decay_rate=0.5), FP16, torch.device("cpu"))


def weights_of(state: State) -> Weights:
    return {
        name: [each.detach().clone() for each in network.parameters()]
        for name, network in state.trained.items()
    }


def averages_of(state: State) -> Weights:
    return {
        name: [each.clone() for each in average.state_dict().values()]
        for name, average in state.averages.items()
    }


def same(before: Weights, now: Weights, name: str) -> bool:
    return all(map(torch.equal, before[name], now[name]))


def give_gradients(state: State, *, unet: float) -> None:
    """One for every weight; the UNet's last one is another."""
    state.scaler.scale(torch.ones(()))  # as the loss of a step
    for network in state.trained.values():
        for weight in network.parameters():
            weight.grad = torch.full_like(weight, state.scaler.get_scale())
    last = list(state.trained["unet"].parameters())[-1]
    assert last.grad is not None
    last.grad[-1] *= unet


def test_a_network_whose_gradients_overflow_stays_as_it_is_and_so_does_its_average(
    state: State,
) -> None:
    weights, averages, scale = weights_of(state), averages_of(state), state.scaler.get_scale()
    give_gradients(state, unet=math.inf)

    assert update(state, lrs=LRS, clip=None) is False

    assert same(weights, weights_of(state), "unet")
    assert same(averages, averages_of(state), "unet")
    assert not same(weights, weights_of(state), "text_encoder")
    assert not same(averages, averages_of(state), "text_encoder")
    assert state.scaler.get_scale() == scale / 2


def test_the_next_update_changes_all_again(state: State) -> None:
    weights, averages = weights_of(state), averages_of(state)
    give_gradients(state, unet=1.0)

    assert update(state, lrs=LRS, clip=None) is True

    for name in LRS:
        assert not same(weights, weights_of(state), name)
        assert not same(averages, averages_of(state), name)


def test_skipped_updates_are_counted() -> None:
    position = after(Position(), [], range(0), skipped=True)
    position = after(position, [], range(0), skipped=False)
    assert (position.updates, position.skipped_updates) == (2, 1)
