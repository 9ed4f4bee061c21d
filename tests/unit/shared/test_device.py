"""The device to compute on; the driver's answers are played."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.child.parent import device_variables
from shared.child.records import DEVICE, DEVICE_SETTING
from shared.diffusion.device import this_device
from shared.diffusion.memory import held_by_others, is_out_of_memory
from shared.errors import Passing, SettingsError
from shared.settings import DeviceSetting

DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Thu Jan 11 22:11:40 UTC 2026\n"
NO_KERNELS = "CUDA error: no kernel image is available for execution on the device\nmore"
FULL = "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"


@pytest.fixture(autouse=True)
def _nothing_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (DEVICE, DEVICE_SETTING, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda device: monkeypatch.setenv(DEVICE, device)


def raising(text: str) -> Callable[..., Any]:
    def act(*_: Any, **__: Any) -> Any:
        raise RuntimeError(text)

    return act


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine whose driver is too old for a torch that is built for CUDA 13."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", raising("driver too old (found 12020)\nx"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    file = tmp_path / "proc/driver/nvidia/version"
    file.parent.mkdir(parents=True)
    file.write_text(DRIVER.format("535.154.05"))
    return tmp_path


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Two cards; has the devices that something was computed on."""
    tried: list[torch.device] = []
    current: list[torch.device] = []

    def ones(*size: int, device: torch.device) -> torch.Tensor:
        assert current == [device], "what asks for no device by name means this one"
        tried.append(device)
        return torch.zeros(*size)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch, "ones", ones)
    return tried


def test_a_machine_without_a_card_computes_on_its_processor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert this_device(tmp_path) == torch.device("cpu")


@pytest.mark.parametrize(
    ("wanted", "device"), [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1")]
)
def test_the_card_that_is_asked_for_has_computed_something(
    two_cards: list[torch.device], asked: Callable[[str], None], wanted: str, device: str
) -> None:
    asked(wanted)
    assert this_device() == torch.device(device)
    assert two_cards == [torch.device(device)]


def test_the_processor_is_taken_if_it_is_asked_for_whatever_is_wrong_with_the_card(
    unseen: Path, asked: Callable[[str], None]
) -> None:
    asked("cpu")
    assert this_device(unseen) == torch.device("cpu")


def test_so_it_is_if_all_cards_are_hidden(unseen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert this_device(unseen) == torch.device("cpu")


def test_a_card_that_torch_does_not_see_is_never_passed_over_in_silence(unseen: Path) -> None:
    with pytest.raises(SettingsError) as refusal:
        this_device(unseen)

    text = str(refusal.value)
    assert text.startswith("this machine has an NVIDIA card, but torch (CUDA 13.0) finds none:")
    assert "driver too old (found 12020); its driver is 535, and must be 580 or newer" in text
    assert text.endswith("and EVERYDREAM_DEVICE=cpu does without the card")


def test_a_torch_without_cuda_beside_a_card_is_named(
    unseen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(SettingsError, match=r"this torch \(.*\) is built without CUDA"):
        this_device(unseen)


def test_a_card_that_is_asked_for_must_be_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: Callable[[str], None]
) -> None:
    asked("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="EVERYDREAM_DEVICE is cuda, but "):
        this_device(tmp_path)


def test_the_setting_that_asked_for_the_card_is_the_one_that_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in device_variables(DeviceSetting("cuda", "EVERYDREAM_TRAINER_DEVICE")).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(SettingsError) as refusal:
        this_device(tmp_path)

    assert refusal.value.reason.startswith("EVERYDREAM_TRAINER_DEVICE is cuda, but ")
    assert refusal.value.mend == (
        "docs/gpu.md says how to mend it, and EVERYDREAM_TRAINER_DEVICE=cpu does without the card"
    )


@pytest.mark.usefixtures("two_cards")
def test_a_card_beyond_the_last_is_refused(asked: Callable[[str], None]) -> None:
    asked("cuda:2")
    with pytest.raises(SettingsError, match="is cuda:2, but the cards are cuda:0 to cuda:1"):
        this_device()


@pytest.mark.usefixtures("two_cards")
def test_a_card_without_kernels_is_refused_with_its_capability(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "ones", raising(NO_KERNELS))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_120"])
    with pytest.raises(SettingsError, match=r"capability 6\.1, this torch has kernels for sm_75,"):
        this_device()


@pytest.mark.usefixtures("two_cards")
def test_a_card_that_others_have_filled_may_be_free_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "ones", raising(FULL))
    with pytest.raises(Passing, match="other processes have taken the memory of cuda:0"):
        this_device()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.AcceleratorError(FULL),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate"
                     " memory: you tried to allocate 1 bytes."),
        MemoryError(),
    ],
    ids=lambda error: str(error)[:50],
)  # fmt: skip
def test_every_way_to_say_that_memory_ran_out_is_known(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError(NO_KERNELS), ValueError("out of memory")])
def test_nothing_else_is_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("free", "text"),
    [(1 << 30, "; other processes have 21.0 of the card's 24.0 GiB"), (22 << 30, "")],
)
def test_who_has_the_memory_is_told(monkeypatch: pytest.MonkeyPatch, free: int, text: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 24 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 2 << 30)
    assert held_by_others() == text


def test_a_card_that_was_not_touched_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", raising("no card"))
    assert held_by_others() == ""
