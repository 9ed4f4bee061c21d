"""The trainer's child by itself: what it says, and that it never outlives its parent."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from shared.child import AnyRecord, Child, ChildDied, Done, Phase, Progress, Saved, start_ready
from tests.models import make_random_model
from tests.training import make_dataset, training_order
from tests.workers import until_gone

CHILD = "services.trainer.child"
PARENT = """
import asyncio
from shared.child import start_ready

async def main():
    child = await start_ready("services.trainer.child")
    print(child.pid, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


async def said_until_done(child: Child) -> list[AnyRecord]:
    said: list[AnyRecord] = []
    async with aclosing(child.records()) as records:
        async for record in records:
            said.append(record)
            if isinstance(record, Done):
                break
    return said


async def test_an_order_is_carried_out_and_every_slow_thing_announced(tmp_path: Path) -> None:
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
        said = await said_until_done(child)
    finally:
        await child.kill()

    assert child.gpu == "cpu"
    phases = [record.name for record in said if isinstance(record, Phase)]
    assert phases[:3] == ["reading the dataset", "loading the base model", "training"]
    assert phases[-1] == "saving the trained model"
    (*_, last) = [record.numbers for record in said if isinstance(record, Progress)]
    assert (last["step"], last["steps"], last["epochs"], last["eta_seconds"]) == (2, 2, 1, 0)
    assert last["images_per_second"] > 0
    assert [record.step for record in said if isinstance(record, Saved)] == [1, 2]


async def test_an_idle_child_ends_when_it_is_asked_to() -> None:
    child = await start_ready(CHILD)

    child.stop()

    async with asyncio.timeout(30):
        await _died(child.records())
    assert not child.alive


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
                raise AssertionError(f"an idle child said {record}")
        except ChildDied:
            return
