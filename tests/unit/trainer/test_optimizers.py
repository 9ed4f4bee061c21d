"""Each optimizer by name: it learns, and goes on from its saved state as if nothing had been."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch.nn import Parameter

from services.trainer.training.optimizer import (
    load_state,
    make_optimizer,
    save_state,
    saved_weights,
    set_lr,
)
from services.trainer.training.recipe import Device, choose
from shared import request
from shared.dataset.optimizers import HABITS, chosen_optimizer, state_bytes, usual_lr
from shared.request import Train

NAMES: tuple[request.Optimizer, ...] = get_args(request.Optimizer)
SHAPES = ((64, 96), (64,), (8, 4, 3, 3))


def asked(**fields: object) -> Train:
    return Train(data_url="u", **fields)  # type: ignore[arg-type]


class Learning:
    """Weights that are to become a target, by one optimizer."""

    def __init__(self, name: request.Optimizer) -> None:
        generator = torch.Generator().manual_seed(3)
        drawn = [torch.randn(shape, generator=generator) * 0.02 for shape in SHAPES]
        self.weights = [Parameter(each) for each in drawn]
        self.target = [torch.randn(shape, generator=generator) * 0.02 for shape in SHAPES]
        self.optimizer = make_optimizer(name, self.weights)
        self.lr = usual_lr(asked(optimizer=name, lora_rank=16))
        self.noise = torch.Generator().manual_seed(5)

    def step(self, times: int) -> None:
        for _ in range(times):
            set_lr(self.optimizer, self.lr)
            for weight, target in zip(self.weights, self.target, strict=True):
                noise = 0.01 * torch.randn(weight.shape, generator=self.noise)
                weight.grad = weight.detach() - target + noise
            self.optimizer.step()
            self.optimizer.zero_grad()

    @property
    def distance(self) -> float:
        pairs = zip(self.weights, self.target, strict=True)
        return sum(float((weight.detach() - target).square().sum()) for weight, target in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_at_its_usual_rate(name: request.Optimizer) -> None:
    learning = Learning(name)
    before = learning.distance

    learning.step(60)

    assert learning.distance < 0.98 * before


@pytest.mark.parametrize("name", NAMES)
def test_it_goes_on_from_its_saved_state_to_the_last_bit(
    name: request.Optimizer, tmp_path: Path
) -> None:
    whole, first, second = (Learning(name) for _ in range(3))
    whole.step(9)
    first.step(4)
    save_state(first.optimizer, tmp_path / "state.safetensors")

    for there, weight in zip(second.weights, first.weights, strict=True):
        there.data.copy_(weight.data)
    load_state(second.optimizer, tmp_path / "state.safetensors")
    second.noise.set_state(first.noise.get_state())
    second.step(5)

    assert all(map(torch.equal, second.weights, whole.weights))


def test_of_a_schedule_free_one_the_average_is_saved_as_if_training_had_not_been_interrupted(
    tmp_path: Path,
) -> None:
    learning, other, next_job = (Learning("schedule_free") for _ in range(3))
    learning.step(5)
    other.step(5)
    trained = [each.detach().clone() for each in learning.weights]

    with saved_weights([learning.optimizer]):
        averaged = [each.detach().clone() for each in learning.weights]
        save_state(learning.optimizer, tmp_path / "state.safetensors")
    learning.step(3)
    other.step(3)

    assert not any(map(torch.equal, averaged, trained))
    assert all(map(torch.equal, learning.weights, other.weights))
    for weight, average in zip(next_job.weights, averaged, strict=True):
        weight.data.copy_(average)
    load_state(next_job.optimizer, tmp_path / "state.safetensors")
    assert all(map(torch.allclose, next_job.weights, trained))
    next_job.step(1)


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_no_state_of_another(name: request.Optimizer, tmp_path: Path) -> None:
    learning = Learning(name)
    learning.step(1)
    save_state(learning.optimizer, tmp_path / "state.safetensors")

    for other in {*NAMES} - {name}:
        with pytest.raises(ValueError, match="belongs to another kind of optimizer"):
            load_state(Learning(other).optimizer, tmp_path / "state.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_what_it_keeps_for_each_weight_is_known(name: request.Optimizer) -> None:
    weight = Parameter(torch.ones(64, 64))
    optimizer = make_optimizer(name, [weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()

    (kept,) = optimizer.state.values()
    found = sum(each.nbytes for each in kept.values() if isinstance(each, torch.Tensor))
    expected = state_bytes(asked(optimizer=name)) * weight.numel()
    code_books = 4 * 256 * int(HABITS[name].state_bytes) if name.endswith("8bit") else 0
    assert found - code_books == pytest.approx(expected, rel=0.05)


def test_where_8_bit_optimizers_do_not_work_the_same_in_32_bits_takes_their_place() -> None:
    card = Device(kind="cuda")

    assert chosen_optimizer(asked()) == "adamw8bit"
    assert choose(asked(), card).optimizer == "adamw"
    assert choose(asked(optimizer="lion8bit"), card).optimizer == "lion"
    assert choose(asked(optimizer="prodigy", useadam8bit=True), card).optimizer == "prodigy"
