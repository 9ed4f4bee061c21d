"""The services' real children on one device: idle, drawing, both at work, and without memory."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from time import perf_counter
from typing import Any

import torch

from bench.card.findings import Findings
from bench.card.setting import Setting, mebibytes, memory_of
from services.inferencer.order import GenerationOrder, ImageRequest, Provenance
from shared.child.parent import Child, start_ready
from shared.child.records import Done, Failed
from shared.diffusion.device import this_device
from shared.errors import Passing, SettingsError
from shared.request import Inference
from tests.support.training import training_order

TRAINER = "services.trainer.training.child"
INFERENCER = "services.inferencer.generation.child"
IMAGES = 4
SAMPLED_EVERY = 0.05
LACK = ("out of memory", "memory of", "the processor")
"""One of these is in what is said when others have filled the card."""


class Meter:
    """Memory in use, beside what was in use at the start."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.children: list[Child] = []
        self._before = self._now()

    def says(self) -> str:
        return f"{mebibytes(self._now() - self._before)} more"

    @contextlib.asynccontextmanager
    async def highest(self, facts: dict[str, str], name: str) -> AsyncIterator[None]:
        """Write down the most that is in use in the block."""
        most = self._now()

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, self._now())
                await asyncio.sleep(SAMPLED_EVERY)

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()
            facts[name] = f"{mebibytes(most - self._before)} more at most"

    def _now(self) -> int:
        return memory_of([child.pid for child in self.children], self._device)


def idle_and_drawing(setting: Setting) -> Findings:
    """Before the children, with each of them idle, while one draws, and after."""
    return asyncio.run(_idle_and_drawing(setting))


async def _idle_and_drawing(setting: Setting) -> Findings:
    found, meter = Findings(facts={"counted": _counted(setting)}), Meter(this_device())
    async with children(setting, meter) as start:
        await start(TRAINER)
        found.facts["the trainer's child, idle"] = meter.says()
        inferencer = await start(INFERENCER)
        found.facts["both idle"] = meter.says()
        for name in ("the first time", "the second time"):
            async with meter.highest(found.facts, f"drawing {IMAGES} images, {name}"):
                await carried_out(inferencer, drawing(setting, name.split()[1]), found)
            found.facts[f"idle after it, {name}"] = meter.says()
    return found


def both_at_work(setting: Setting) -> Findings:
    """A training and a drawing at once: both must end well."""
    return asyncio.run(_both_at_work(setting))


async def _both_at_work(setting: Setting) -> Findings:
    found, meter = Findings(facts={"counted": _counted(setting)}), Meter(this_device())
    async with children(setting, meter) as start, meter.highest(found.facts, "both at work"):
        trainer, inferencer = await start(TRAINER), await start(INFERENCER)
        await asyncio.gather(
            carried_out(trainer, training(setting), found),
            carried_out(inferencer, drawing(setting, "together"), found),
        )
    return found


def filled_by_others(setting: Setting) -> Findings:
    """What is said when a third process has taken the memory: at the start, and while drawing."""
    return asyncio.run(_filled_by_others(setting))


async def _filled_by_others(setting: Setting) -> Findings:
    found, meter = Findings(), Meter(this_device())
    async with children(setting, meter) as start:
        inferencer = await start(INFERENCER)
        with filler(setting) as left:
            found.facts["left by the third process"] = left
            said = await _said_at_start(start)
            order = drawing(setting, "filled", images=1, steps=1)  # perhaps on the processor
            said |= {"a drawing": await last_word(inferencer, order)}
        found.facts |= said
        for name, text in said.items():
            if setting.is_card and not any(words in text for words in LACK):
                found.problems.append(f"{name} does not say that memory is lacking: {text}")
        after = await last_word(inferencer, drawing(setting, "afterwards"))
        found.facts["a drawing once it has gone"] = after
        if after != "done":
            found.problems.append(f"the memory is free again, yet: {after}")
    return found


async def _said_at_start(start: Any) -> dict[str, str]:
    try:
        await start(TRAINER)
    except (Passing, SettingsError) as error:
        return {"a trainer's child that starts": f"{type(error).__name__}: {error}"}
    return {"a trainer's child that starts": "nothing: it is ready"}


@contextlib.contextmanager
def filler(setting: Setting) -> Iterator[str]:
    """A third process that holds nearly all of the card's free memory; what it says of it."""
    command = [sys.executable, "-m", "bench.card.filler", setting.device]
    with subprocess.Popen(  # noqa: S603 - this interpreter, our own code
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=setting.environment,
    ) as process:
        assert process.stdin is not None  # noqa: S101 - opened as pipes
        assert process.stdout is not None  # noqa: S101
        if not (said := process.stdout.readline().strip()):
            raise RuntimeError("the third process has ended before it held any memory")
        yield said
        process.stdin.close()


@contextlib.asynccontextmanager
async def children(setting: Setting, meter: Meter) -> AsyncIterator[Any]:
    """Gives a function that starts a child of a service; all are ended after the block."""

    async def start(module: str) -> Child:
        child = await start_ready(module, environment=setting.environment)
        meter.children.append(child)
        return child

    try:
        yield start
    finally:
        for child in meter.children:
            await child.kill()


async def carried_out(child: Child, order: Any, found: Findings) -> None:
    """Have an order carried out; what it says if it fails is a problem."""
    begun, kind = perf_counter(), type(order).__name__
    said = await last_word(child, order)
    found.facts[f"{kind}, {perf_counter() - begun:.1f} s"] = said
    if said != "done":
        found.problems.append(f"{kind}: {said}")


async def last_word(child: Child, order: Any) -> str:
    """``done``, with the warnings, or the reason."""

    async def ignore(_record: Any) -> None:
        pass

    await child.order(order)
    last = await child.final_record(ignore)
    if isinstance(last, Done):
        return "; ".join(("done", *last.summary.get("warnings", ())))
    return last.reason if isinstance(last, Failed) else "stopped"


def drawing(
    setting: Setting, name: str, *, images: int = IMAGES, steps: int | None = None
) -> GenerationOrder:
    out = setting.folder / "drawn" / name
    out.mkdir(parents=True, exist_ok=True)
    steps = steps or (20 if setting.is_card else 2)
    inference = Inference(prompt="a red wall", num_outputs=images, num_inference_steps=steps)
    request = ImageRequest(inference=inference, seed=1, side=512 if setting.is_card else 128)
    return GenerationOrder(
        model=str(setting.base()), requests=(request,), clip_skip=0,
        provenance=Provenance(job="card"), out=str(out),
    )  # fmt: skip


def training(setting: Setting) -> Any:
    dataset = setting.dataset(8 if setting.is_card else 2)
    return training_order(
        setting.folder / "trained-beside", base=setting.base(), dataset=dataset,
        resolution=setting.side, max_epochs=1, useadam8bit=True, gradient_checkpointing=True,
    )  # fmt: skip


def _counted(setting: Setting) -> str:
    if setting.is_card:
        return "memory of the card that anybody has, beside what it was before"
    return "resident memory of the children"
