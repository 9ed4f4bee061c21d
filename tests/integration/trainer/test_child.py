"""The trainer's child by itself: what it says, and that it never outlives its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from services.gateway.jobs import transitions
from services.gateway.jobs.request_parser import parse_request
from services.trainer.training.child import ParentCallbacks, Stop, carry_out
from shared.child.parent import Child, ChildDied, start_ready
from shared.child.process import RecordWriter
from shared.child.records import DEVICE, AnyRecord, Done, Failed, Phase, Progress, Saved
from shared.errors import SettingsError
from shared.messaging.messages import (
    AnyMessage,
    DatasetStaged,
    StageFailed,
    StagingStarted,
    TrainingStarted,
)
from tests.support.models import make_random_model
from tests.support.training import make_dataset, train_request, training_order
from tests.support.workers import until_gone

CHILD = "services.trainer.training.child"
PARENT = """
import asyncio
from shared.child.parent import start_ready

async def main():
    child = await start_ready("services.trainer.training.child")
    print(child.pid, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


async def records_until_done(child: Child) -> list[AnyRecord]:
    written: list[AnyRecord] = []
    async with aclosing(child.records()) as records:
        async for record in records:
            written.append(record)
            if isinstance(record, Done):
                break
    return written


async def test_a_child_carries_out_an_order_announces_every_slow_thing_and_ends_when_asked_to(
    tmp_path: Path,
) -> None:
    order = training_order(
        tmp_path / "out",
        dataset=make_dataset(tmp_path / "data", images=2),
        base=make_random_model(tmp_path / "base"),
        max_epochs=1,
        resume_every=1e-6,
    )
    child = await start_ready(CHILD)

    try:
        await child.order(order)
        written = await records_until_done(child)
        child.stop()  # while it is idle
        async with asyncio.timeout(30):
            await _died(child.records())
        assert not child.alive
    finally:
        await child.kill()

    assert child.gpu == "cpu"
    phases = [record.name for record in written if isinstance(record, Phase)]
    assert phases[:3] == ["reading the dataset", "loading the base model", "training"]
    assert phases[-1] == "saving the trained model"
    (*_, last) = [record.numbers for record in written if isinstance(record, Progress)]
    assert (last["step"], last["steps"], last["epochs"], last["eta_seconds"]) == (2, 2, 1, 0)
    assert last["images_per_second"] > 0
    assert [record.step for record in written if isinstance(record, Saved)] == [1, 2]


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"batch_size": 4}, "batch_size 2 with grad_accum 2, gradient_checkpointing true"),
        (
            {"gradient_checkpointing": True},
            "choose a lower resolution, a LoRA (lora_rank 16), or a larger GPU",
        ),
        (
            {"gradient_checkpointing": True, "lora_rank": 4},
            "choose a lower resolution, or a larger GPU",
        ),
    ],
)
def test_a_job_that_runs_out_of_memory_ends_with_settings_that_would_fit(
    settings: dict[str, Any], advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr("services.trainer.training.train.train", train)
    order = training_order(tmp_path, dataset=tmp_path, base=tmp_path, **settings)

    given_up = carry_out(order, ParentCallbacks(RecordWriter(-1), Stop.__new__(Stop)))

    assert isinstance(given_up, Failed)
    error = error_of_a_job_whose_training(given_up)
    assert "out of memory" in error
    assert advice in error


def error_of_a_job_whose_training(given_up: Failed) -> str:
    """What the client reads when every attempt gives up like this."""
    body = {"input": {"train": {"data_url": "https://x.org/a.zip"}}}
    new = transitions.admit("j", "me", parse_request(body), body["input"], sealed=None, now=0.0)
    step = transitions.release(new.job, now=0.0)
    kind: Literal["refused", "passing"] = "refused" if given_up.refused else "passing"
    facts: list[AnyMessage] = [
        StagingStarted(job="j", stage="staging", claim="s"),
        DatasetStaged(
            job="j", stage="staging", claim="s", train=train_request(), dataset="d", base_model="b",
            report={},
        ),
    ]  # fmt: skip
    for claim in ("1", "2", "3"):
        facts.append(TrainingStarted(job="j", stage="training", claim=claim))
        facts.append(
            StageFailed(job="j", stage="training", claim=claim, kind=kind, reason=given_up.reason)
        )
    for fact in facts:
        step = transitions.advance(step.job, fact, reply_queue="c", now=1.0, heartbeat=1.0)
    assert step.job.status == "FAILED"
    assert step.job.error is not None
    return step.job.error


@pytest.mark.long
async def test_a_child_does_not_outlive_its_parent() -> None:
    parent = subprocess.Popen(  # noqa: ASYNC220 - its output is waited for in a thread
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(await asyncio.to_thread(parent.stdout.readline))

    parent.send_signal(signal.SIGKILL)
    await asyncio.to_thread(parent.wait)

    await until_gone(child)
    parent.stdout.close()


async def _died(records: AsyncGenerator[AnyRecord, None]) -> None:
    async with aclosing(records):
        try:
            async for record in records:
                raise AssertionError(f"an idle child wrote {record}")
        except ChildDied:
            return


@pytest.mark.long
async def test_a_child_without_the_device_that_is_asked_for_is_never_ready_and_says_why() -> None:
    with pytest.raises(SettingsError, match="EVERYDREAM_DEVICE is cuda:7, but "):
        await start_ready(CHILD, environment={**os.environ, DEVICE: "cuda:7"})
