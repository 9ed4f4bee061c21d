"""Peak memory and speed of real trainings, by the settings that decide about memory."""

from __future__ import annotations

import gc
import resource
from time import perf_counter
from typing import Any

import torch

from bench.card.findings import Findings
from bench.card.setting import Setting, mebibytes
from services.trainer.training.train import train
from shared.dataset.card_memory import CONTEXT, SD1, training_memory
from shared.diffusion.device import this_device
from shared.errors import Passing
from shared.request import Train
from tests.support.training import RecordingCallbacks, training_order

CONFIGS: dict[str, dict[str, Any]] = {
    "8-bit AdamW, checkpointing": {"useadam8bit": True, "gradient_checkpointing": True},
    "8-bit AdamW": {"useadam8bit": True},
    "fused AdamW": {},
    "8-bit AdamW, EMA": {"useadam8bit": True, "ema_decay_rate": 0.999},
    "8-bit AdamW, fp32": {"useadam8bit": True, "amp": False},
}
BATCH = 2
KIBI = 1024


class TimedSteps(RecordingCallbacks):
    """Remembers when each step began."""

    def __init__(self) -> None:
        super().__init__()
        self.began: list[float] = []

    def should_stop(self) -> bool:
        self.began.append(perf_counter())
        return super().should_stop()


def peaks_of_training(setting: Setting) -> Findings:
    """One short training for each setting, in one process."""
    device = this_device()
    found = Findings(facts={"model": f"{setting.geometry}, {setting.side} pixels, batch {BATCH}"})
    for name, fields in CONFIGS.items():
        try:
            found.facts[name], problem = _trained(setting, name, fields, device)
        except (torch.OutOfMemoryError, Passing):
            found.facts[name], problem = "does not fit", ""
        if problem:
            found.problems.append(f"{name}: {problem}")
    return found


def _trained(
    setting: Setting, name: str, fields: dict[str, Any], device: torch.device
) -> tuple[str, str]:
    """What a training takes, and what is wrong with the table."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    order = training_order(
        setting.folder / "peaks" / name.replace(" ", "-"), base=setting.base(),
        dataset=setting.dataset(8 if setting.is_card else 4), resolution=setting.side,
        batch_size=BATCH, max_epochs=1, **fields,
    )  # fmt: skip
    steps = TimedSteps()
    outcome = train(order, steps)
    between = [after - before for before, after in zip(steps.began, steps.began[1:], strict=False)]
    text = (
        f"{_peak(device)}; {min(between) * 1000:.0f} ms a step;"
        f" {outcome.precision}, {outcome.optimizer}, {outcome.attention}"
    )
    if device.type != "cuda":
        return text, ""
    counted, problem = against_table(order.train, torch.cuda.max_memory_reserved(device))
    return f"{text}; {counted}", problem


def against_table(train: Train, taken: int) -> tuple[str, str]:
    """What was counted for a training of SD 1.5, and whether what it took is more."""
    memory = training_memory(train, SD1.parameters)
    assert memory is not None  # noqa: S101 - it was counted for SD 1
    counted = memory.total
    text = f"counted {mebibytes(counted)}, context included"
    return text, f"takes more than was {text}" if taken + CONTEXT > counted else ""


def _peak(device: torch.device) -> str:
    if device.type == "cuda":
        allocated, reserved = (
            torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        )  # fmt: skip
        return f"peak {mebibytes(allocated)} in use, {mebibytes(reserved)} taken"
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBI
    return f"{mebibytes(highest)} resident at most so far"
