"""Whether a training fits into a card; the driver's answers are played."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from services.trainer.training.room import WAIT_SECONDS, find_room
from shared.dataset.card_memory import GIB, SD1
from shared.errors import Interrupted, Passing
from shared.request import Train
from tests.support.training import RecordingCallbacks

CARD, PROCESSOR = torch.device("cuda", 0), torch.device("cpu")
SD15 = cast("Any", SimpleNamespace(parameters=SD1.parameters))
TINY = cast("Any", SimpleNamespace(parameters=dict.fromkeys(SD1.parameters, 1000)))
Play = Callable[..., None]


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, slept: list[float]) -> Play:
    """Play a card of 24 GiB, or another, whose free memory is told answer by answer."""

    def play(*free: float, total: float = 24.0) -> None:
        def mem_get_info(*_: object) -> tuple[int, int]:
            return int(free[min(len(slept), len(free) - 1)] * GIB), int(total * GIB)

        answers: dict[str, Callable[..., Any]] = {
            "is_initialized": lambda: True, "mem_get_info": mem_get_info,
            "memory_reserved": lambda *_: 0, "memory_allocated": lambda *_: 0,
            "get_device_name": lambda *_: "RTX 3090",
        }  # fmt: skip
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, answer)

    return play


def found(
    callbacks: RecordingCallbacks | None = None, *, parts: Any = SD15, has_8bit: bool = True,
    **settings: Any,
) -> list[str]:  # fmt: skip
    train, callbacks = Train(data_url="u", **settings), callbacks or RecordingCallbacks()
    return find_room(parts, train, CARD, callbacks, has_8bit=has_8bit)


def test_where_a_training_fits_nothing_is_said_or_waited_for(
    driver: Play, slept: list[float]
) -> None:
    driver(23.2)

    assert found() == []
    assert slept == []


def test_a_card_that_cannot_hold_what_lasts_is_refused_before_the_model_is_moved_there(
    driver: Play,
) -> None:
    driver(7.0, total=7.6)
    mend = r"with lora_rank 16 it needs about 5\.6 GiB"

    with pytest.raises(
        Passing, match=rf"about 11\.0 GiB of memory, and RTX 3090 has 7\.6 GiB: {mend}"
    ):
        found()


def test_what_another_process_gives_back_soon_is_waited_for(
    driver: Play, slept: list[float]
) -> None:
    driver(5.0, 5.0, 20.0)
    callbacks = RecordingCallbacks()

    assert found(callbacks) == []
    assert len(slept) == 2
    assert callbacks.phases == [
        "waiting for memory of the card, which other processes have",
        "loading the base model",
    ]


def test_what_another_process_keeps_is_not_waited_for_long_and_warned_of(
    driver: Play, slept: list[float]
) -> None:
    driver(3.0)

    (warning,) = found(batch_size=4)

    assert warning == (
        "this training needs about 13.4 GiB of memory, and 3.5 GiB of RTX 3090 are free; other"
        " processes have 21.0 of the card's 24.0 GiB: no settings make it fit into that;"
        " docs/models.md says what fits which card"
    )
    assert sum(slept) == WAIT_SECONDS


def test_a_stop_ends_the_waiting(driver: Play, slept: list[float]) -> None:
    driver(5.0)

    with pytest.raises(Interrupted):
        found(RecordingCallbacks(stop_when=lambda _: True))
    assert len(slept) == 1


def test_for_what_the_whole_card_is_too_small_nothing_is_waited_but_it_is_warned_of(
    driver: Play, slept: list[float]
) -> None:
    driver(23.2)

    (warning,) = found(batch_size=16)

    assert "23.7 GiB of RTX 3090 are free: with gradient_checkpointing true it needs" in warning
    assert slept == []


def test_a_machine_without_bitsandbytes_counts_the_optimizer_that_it_has(driver: Play) -> None:
    driver(14.0, total=15.0)

    assert found() == []
    assert "about 16.5 GiB" in found(has_8bit=False)[0]


def test_of_a_processor_and_of_networks_that_were_not_counted_nothing_is_said(
    driver: Play,
) -> None:
    driver(0.1, total=1.0)

    assert found(parts=TINY) == []
    callbacks, train = RecordingCallbacks(), Train(data_url="u")
    assert find_room(SD15, train, PROCESSOR, callbacks, has_8bit=True) == []
