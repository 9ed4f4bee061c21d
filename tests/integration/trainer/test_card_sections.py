"""The sections of `make card`, run on the processor; what only a driver knows is played."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.card import children, drawn, machine, peaks, precision, resuming
from bench.card.setting import Setting, mebibytes
from services.trainer.training.recipe import Device
from shared.dataset.card_memory import CONTEXT, SD1, training_memory
from shared.request import Train
from tests.support.models import make_random_model

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting("cpu", tmp_path_factory.mktemp("card"))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that is smaller than the one that ships, in its place."""
    model = make_random_model(tmp_path / "model")
    monkeypatch.setattr(Setting, "base", lambda _: model)
    for module in (drawn, resuming):
        monkeypatch.setattr(module, "TINY", model)
    return model


@pytest.fixture
def turing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver's answers: a card of capability 7.5."""
    facts = {"torch": "2.10.0", "device": "cuda", "name": "T4", "problem": None}
    monkeypatch.setattr(machine, "device_facts", lambda: facts)
    monkeypatch.setattr(machine, "this_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (14 << 30, 15 << 30))
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    said = SimpleNamespace(stdout="name, driver_version\nT4, 570.10\n", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: said)


@pytest.mark.usefixtures("turing")
def test_the_machine_is_what_driver_and_torch_say(setting: Setting) -> None:
    found = machine.machine(Setting("cuda", setting.folder))
    assert found.facts["nvidia-smi"] == "name, driver_version\nT4, 570.10"
    assert found.facts["capability"] == "7.5"
    assert found.facts["kernels"] == "sm_75 sm_80"
    assert found.problems == []
    assert "nvidia-smi" not in machine.machine(setting).facts


@pytest.mark.usefixtures("turing")
@pytest.mark.parametrize("bf16", [False, True])
def test_a_choice_that_the_capability_does_not_allow_is_a_problem(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, *, bf16: bool
) -> None:
    device = Device(kind="cuda", name="T4", bf16=bf16, bitsandbytes=True, fused=True)
    monkeypatch.setattr(machine, "probe", lambda _: device)
    found = machine.probing(Setting("cuda", setting.folder))
    assert found.facts["free memory"] == "14,336 MiB of 15,360 MiB"
    assert found.problems == (["expected fp16, adamw8bit, sdpa"] if bf16 else [])


def test_gradients_are_compared_in_each_precision(
    setting: Setting, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del small
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    monkeypatch.setattr(precision, "KINDS", kinds)  # in fp16 a CPU is slow
    found = precision.gradients_in_three_precisions(setting)
    assert "error 0.00%" in found.facts["fp32, sdpa"]
    assert "bf16, sdpa" in found.facts
    assert found.problems == []

    monkeypatch.setattr(precision, "BOUNDS", {"fp32": 0.02, "bf16": 0.0})
    found = precision.gradients_in_three_precisions(setting)
    assert [text.partition(":")[0] for text in found.problems] == ["bf16, sdpa"]


def test_peaks_are_those_of_real_trainings(
    setting: Setting, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del small
    monkeypatch.setattr(peaks, "CONFIGS", {"fused AdamW": {}})
    found = peaks.peaks_of_training(setting)
    assert found.facts["fused AdamW"].endswith("ms a step; fp32, adamw_fused, sdpa")
    assert "resident at most" in found.facts["fused AdamW"]


def test_a_training_that_takes_more_than_was_counted_is_a_problem() -> None:
    train = Train(data_url="https://example.org/x.zip")
    memory = training_memory(train, SD1.parameters)
    assert memory
    counted = memory.total
    text, problem = peaks.against_table(train, counted - CONTEXT)
    assert (text, problem) == (f"counted {mebibytes(counted)}, context included", "")
    assert peaks.against_table(train, counted)[1] == f"takes more than was {text}"


def test_what_does_not_fit_is_said_and_the_next_is_tried(
    setting: Setting, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del small

    def train(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(peaks, "train", train)
    found = peaks.peaks_of_training(setting)
    assert {found.facts[name] for name in peaks.CONFIGS} == {"does not fit"}


@pytest.mark.long
def test_every_scheduler_draws_in_both_precisions(
    setting: Setting, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del small
    monkeypatch.setattr(drawn, "STEPS", 2)
    found = drawn.schedulers_in_half_precision(setting)
    assert len(found.facts) == 12
    assert found.problems == []


def test_images_that_differ_or_are_not_drawn_are_problems() -> None:
    black, white = torch.zeros(4).numpy(), torch.full((4,), 255.0).numpy()
    assert drawn.compared(black, black) == ("mean difference 0.00 of 255", "")
    assert drawn.compared(black, white)[1] == "mean difference 255.00 of 255"
    assert drawn.compared("not-a-number", black)[1] == "fp16: not-a-number"


@pytest.mark.long
def test_a_resumed_training_ends_where_the_whole_one_did(setting: Setting, small: Path) -> None:
    del small
    found = resuming.resumed_against_whole(setting)
    assert found.facts["resumed against whole"].startswith("0.00%")
    assert found.problems == []


@pytest.mark.usefixtures("warm_children")
def test_the_childrens_memory_is_told_idle_and_at_work(
    setting: Setting, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del small
    monkeypatch.setattr(children, "TRAINER", "tests.support.warm.trainer")
    monkeypatch.setattr(children, "INFERENCER", "tests.support.warm.inferencer")
    idle = children.idle_and_drawing(setting)
    assert "both idle" in idle.facts
    assert idle.facts["drawing 4 images, the first time"].endswith("MiB more at most")
    assert idle.problems == []

    both = children.both_at_work(setting)
    done = {name.partition(",")[0] for name, text in both.facts.items() if text == "done"}
    assert done == {"GenerationOrder", "TrainingOrder"}
    assert both.problems == []

    filled = children.filled_by_others(setting)
    assert "nothing was filled" in filled.facts["left by the third process"]
    assert filled.facts["a drawing once it has gone"] == "done"
    assert filled.problems == []
