"""What is asked of a card's libraries before they are used; the card and xformers are played."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, patch

import pytest
import torch
from diffusers.models import attention_processor
from structlog.testing import capture_logs
from torch import Tensor
from torch.nn import functional

from services.trainer.training import device as tried
from services.trainer.training.device import probe, unusable, why_not
from services.trainer.work import TrainerWork

CPU, CARD = torch.device("cpu"), torch.device("cuda:0")
FULL = "CUDA error: out of memory"
NOT_LOADED = "xFormers can't load C++/CUDA extensions. Built for:\n  PyTorch 2.10.0+cu128"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _nothing_is_remembered() -> None:
    probe.cache_clear()


def raising(error: Exception) -> Callable[..., Any]:
    def act(*_: Any, **__: Any) -> Any:
        raise error

    return act


@dataclass
class PlayedXformers:
    """Attention that is PyTorch's own; has what was asked of it."""

    fails: Callable[[torch.dtype, int], bool] = lambda _dtype, _channels: False
    forward: set[tuple[torch.dtype, int, int]] = field(default_factory=set)
    """Type, channels of a head, and tokens that are attended to."""
    backward: set[tuple[torch.dtype, int, int]] = field(default_factory=set)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        asked = (query.dtype, query.shape[-1], key.shape[1])
        if self.fails(*asked[:2]):
            raise NotImplementedError("No operator found for:\n   query")
        self.forward.add(asked)
        attended = functional.scaled_dot_product_attention(query, key, value)
        if attended.requires_grad:
            attended.register_hook(  # type: ignore[no-untyped-call]
                lambda _: self.backward.add(asked)
            )
        return attended


@pytest.fixture
def xformers(monkeypatch: pytest.MonkeyPatch) -> PlayedXformers:
    """A card on the CPU, with an xformers that loads."""
    played = PlayedXformers()
    ops = SimpleNamespace(memory_efficient_attention=played.attention)
    module = ModuleType("xformers")
    library = SimpleNamespace(_cpp_library_load_exception=None)
    monkeypatch.setattr(module, "_cpp_lib", library, raising=False)
    monkeypatch.setitem(sys.modules, "xformers", module)
    monkeypatch.setattr(attention_processor, "xformers", SimpleNamespace(ops=ops))
    monkeypatch.setattr(attention_processor, "is_xformers_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    make = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *size, **_: make(*size))
    return played


def test_xformers_is_asked_all_that_a_training_will_ask(xformers: PlayedXformers) -> None:
    assert why_not(lambda: tried._attend(CPU, bf16=True), CPU) is None

    kinds = (torch.float32, torch.float16, torch.bfloat16)
    asked = set(product(kinds, (40, 80, 160), (64, 77)))
    assert xformers.backward == asked
    of_diffusers = {(torch.float32, 40, 2)}
    assert xformers.forward == asked | of_diffusers


def test_a_card_without_bf16_is_not_asked_for_it(xformers: PlayedXformers) -> None:
    assert why_not(lambda: tried._attend(CPU, bf16=False), CPU) is None
    assert {kind for kind, *_ in xformers.backward} == {torch.float32, torch.float16}


@pytest.mark.parametrize(
    "fails",
    [lambda kind, _: kind == torch.float32, lambda _, channels: channels == 160],
    ids=["no fp32, as beyond capability 9.0", "no heads of 160 channels"],
)
def test_xformers_that_cannot_do_all_of_it_is_not_used(
    xformers: PlayedXformers, fails: Callable[[torch.dtype, int], bool]
) -> None:
    xformers.fails = fails
    assert why_not(lambda: tried._attend(CPU, bf16=True), CPU) == "No operator found for: query"


@pytest.mark.usefixtures("xformers")
def test_an_xformers_that_does_not_load_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = sys.modules["xformers"]._cpp_lib
    monkeypatch.setattr(library, "_cpp_library_load_exception", OSError(NOT_LOADED))
    why = why_not(lambda: tried._attend(CPU, bf16=True), CPU)
    assert why == f"its library does not load. {' '.join(NOT_LOADED.split())}"


def test_a_library_that_is_not_installed_is_not_complained_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = ModuleNotFoundError("No module named 'xformers'", name="xformers")
    assert why_not(raising(missing), CPU) == ""
    needed = ModuleNotFoundError("No module named 'triton'", name="triton")
    assert why_not(raising(needed), CPU) == "No module named 'triton'"

    play_card(monkeypatch)
    monkeypatch.setattr(tried, "_attend", raising(missing))
    found = probe(CARD)
    assert (found.xformers, found.bitsandbytes, found.unusable) == (False, True, ())


def test_a_library_that_cannot_be_used_is_named_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    play_card(monkeypatch)
    monkeypatch.setattr(tried, "_attend", raising(ImportError("no\nlibrary")))
    assert not probe(CARD).xformers
    assert unusable(CARD) == ("xformers is not used: no library",)


def test_a_library_that_fails_for_lack_of_memory_is_not_said_not_to_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert why_not(raising(RuntimeError("no kernel image")), CPU) == "no kernel image"
    with pytest.raises(RuntimeError, match="out of memory"):
        why_not(raising(RuntimeError(FULL)), CPU)

    play_card(monkeypatch)
    monkeypatch.setattr(tried, "_attend", raising(RuntimeError(FULL)))
    assert unusable(CARD) == ()


def test_a_library_works_only_once_the_card_has_done_what_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", raising(RuntimeError("no kernel image")))
    assert why_not(lambda: None, CARD) == "no kernel image"


async def test_what_the_children_cannot_use_is_logged_once_and_not_by_each(tmp_path: Path) -> None:
    store: Any = None
    work = TrainerWork(store, scratch=tmp_path, cache=tmp_path, resume_every=1.0)
    child = SimpleNamespace(
        gpu="a card", uuid="", teraflops=0.0, unusable=("xformers is not used: x",)
    )
    with patch.object(work._standby, "ready", AsyncMock(return_value=child)), capture_logs() as log:
        for _ in range(3):
            await work.prepare()

    entry = {"event": "library_unusable", "gpu": "a card", "reason": "xformers is not used: x"}
    assert log == [entry | {"log_level": "warning"}]


def play_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card on which all but xformers works."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(tried, "device_name", lambda _: "a card")
    monkeypatch.setattr(tried, "_optimize", lambda *_: None)
