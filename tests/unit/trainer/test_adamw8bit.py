"""Packed updates are bitsandbytes' own, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.optim import optimizer as theirs_module
from bitsandbytes.optim.adamw import AdamW8bit
from torch import Tensor
from torch.nn import Parameter

from services.trainer.training import adamw8bit
from services.trainer.training.adamw8bit import PackedAdamW8bit
from services.trainer.training.optimizer import ADAM, load_state, make_optimizer, save_state

SHAPES = [(7,), (70, 60), (4095,), (33, 129), (1,), (64, 4, 3, 3, 3), (257, 17), (5000,)]
"""With moments of 32 and of 8 bits; most end in the middle of a block."""


def drawn(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) * 10 ** (-seed % 3) for shape in SHAPES]


def some_parameters() -> list[Parameter]:
    return [Parameter(each) for each in drawn(0)]


def step(optimizer: torch.optim.Optimizer, seed: int, *, without: Sequence[int] = ()) -> None:
    parameters = optimizer.param_groups[0]["params"]
    for number, (parameter, gradient) in enumerate(zip(parameters, drawn(seed), strict=True)):
        parameter.grad = None if number in without else gradient
    optimizer.step()


def assert_equal(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> None:
    pairs = zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True)
    for our, their in pairs:
        assert torch.equal(our, their)
        assert ours.state[our].keys() == theirs.state[their].keys()
        for name, value in theirs.state[their].items():
            assert torch.equal(torch.as_tensor(ours.state[our][name]), torch.as_tensor(value))


def theirs(parameters: Sequence[Parameter]) -> AdamW8bit:
    return AdamW8bit(parameters, **ADAM)


@pytest.mark.parametrize("pack", [2**22, 8192, 1])
def test_packed_updates_equal_those_of_single_tensors(
    pack: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adamw8bit, "PACK", pack)
    packed, single = make_optimizer("adamw8bit", some_parameters()), theirs(some_parameters())
    for seed in range(1, 6):
        step(packed, seed)
        step(single, seed)
    assert isinstance(packed, PackedAdamW8bit)
    assert_equal(packed, single)


def test_small_tensors_are_updated_together_and_no_device_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []
    ours = adamw8bit.update

    def counted(weights: Tensor, *others: Any) -> None:
        sizes.append(len(weights))
        ours(weights, *others)

    def wait(*_: Any) -> None:
        raise AssertionError("it waits for the device after each tensor, as bitsandbytes does")

    monkeypatch.setattr(adamw8bit, "update", counted)
    monkeypatch.setattr(theirs_module, "sync_gpu", wait)
    packed = make_optimizer("adamw8bit", some_parameters())

    step(packed, 1)

    assert len(sizes) == 2, "one call for the moments of 32 bits, one for those of 8"
    assert sum(sizes) >= sum(each.numel() for each in some_parameters())


def test_a_tensor_without_a_gradient_is_left_as_it_is_and_the_others_go_on() -> None:
    packed, single = PackedAdamW8bit(some_parameters(), **ADAM), theirs(some_parameters())
    for seed, without in enumerate([(0, 3), (), (1, 5), ()], start=1):
        step(packed, seed, without=without)
        step(single, seed, without=without)
        assert_equal(packed, single)


def test_a_state_that_bitsandbytes_has_written_is_gone_on_with(tmp_path: Path) -> None:
    single = theirs(some_parameters())
    step(single, 1)
    save_state(single, tmp_path / "state")
    packed = PackedAdamW8bit(
        [Parameter(each.detach().clone()) for each in single.param_groups[0]["params"]], **ADAM
    )

    load_state(packed, tmp_path / "state")

    for seed in (2, 3):
        step(packed, seed)
        step(single, seed)
    assert_equal(packed, single)


def test_weights_in_another_layout_of_memory_are_updated_too() -> None:
    def parameters() -> list[Parameter]:
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(64, 32, 3, 3, generator=generator) for _ in range(2)]
        return [Parameter(each.to(memory_format=torch.channels_last)) for each in weights]

    packed, single = PackedAdamW8bit(parameters(), **ADAM), theirs(parameters())
    for optimizer in (packed, single):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    pairs = zip(packed.param_groups[0]["params"], single.param_groups[0]["params"], strict=True)
    assert all(torch.equal(our, their) for our, their in pairs)
