"""A step reads no number from the device: on a card the host would wait there for all before it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from services.trainer.training.train import train
from tests.support.models import make_random_model
from tests.support.training import RecordingCallbacks, make_dataset, training_order

READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select"}
"""Operations whose result the host needs before it goes on."""
READ_AT_THE_END = 2
"""At least: the losses of the last steps."""


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what this thread reads; not what the thread that reads images does on the CPU."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += func._schema.name in READS
        return func(*args, **(kwargs or {}))


class CountedSteps(RecordingCallbacks):
    """Remembers how much had been read when each step began."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads
        self.counts: list[int] = []

    def should_stop(self) -> bool:
        self.counts.append(self.reads.count)
        return super().should_stop()


@pytest.mark.usefixtures("one_thread", "models_in_memory", "small_pictures")
@pytest.mark.parametrize(
    "fields",
    [
        {
            "grad_accum": 2,
            "clip_grad_norm": 1.0,
            "ema_decay_rate": 0.9,
            "clip_skip": 2,
            "pyramid_noise_discount": 0.3,
            "min_snr_gamma": 5.0,
            "loss_type": "mse_huber",
        },
        {"disable_textenc_training": True, "lora_rank": 4},
    ],
    ids=["whole networks", "LoRA"],
)
def test_between_two_reports_no_step_waits_for_the_device(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    base = make_random_model(tmp_path / "base")
    data = make_dataset(tmp_path / "data", images=4)
    order = training_order(tmp_path / "out", base=base, dataset=data, max_epochs=3, **fields)

    with Reads() as reads:  # type: ignore[no-untyped-call]
        steps = CountedSteps(reads)
        train(order, steps, clock=lambda: 0.0)  # no time goes by in which a report is due

    first, *later = steps.counts[1:]
    assert later, "there are several steps"
    assert set(later) == {first}, "a step has read a number"
    assert reads.count >= first + READ_AT_THE_END, "reading is noticed"
