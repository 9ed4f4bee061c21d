"""When things happened to a job, from its submission on; as a page, where one is asked for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

from shared.adapters.rabbitmq import RabbitMQBus
from shared.messaging.messages import (
    AnyMessage,
    CheckpointSampled,
    SamplesGenerated,
    TrainingProgressed,
)
from shared.service_process import closing

PAGE = "LIVE_SAMPLES_PAGE"
"""The environment variable that names the file of the page; none by default."""
HEARD = ("training.*", "checkpoint.*", "samples.generated", "images.generated")
EVERY = 5
"""Steps between those that are noted, at least."""
HEAD = """# Samples while a job trains

Made by `make pages`: the times of one job with the tiny model, with the five services in separate
processes over RabbitMQ. Trainer and inferencer share two CPU cores. A row of samples is requested
at step 0 and every 20 steps; training does not wait for it.

| seconds since submission | what happened | where it was seen |
|---|---|---|
"""


class Diary:
    """What was heard on the topic, and what ``/status`` showed."""

    def __init__(self) -> None:
        self._begin = monotonic()
        self._next = 0
        self._lines: list[tuple[float, str, str]] = []
        self.drawn: dict[int, float] = {}
        """By step: when ``samples.generated`` was heard."""
        self.shown: dict[int, float] = {}
        """By step: when ``/status`` showed the row first."""
        self.trained_at = 0.0
        """When the last word of the training was heard."""

    def hear(self, message: AnyMessage) -> None:
        match message:
            case TrainingProgressed(progress={"step": int(step)}) if step >= self._next:
                self._next = step + EVERY
                self._note(f"training step {step}", "topic")
            case CheckpointSampled(row=row):
                self._note(f"snapshot of step {row.step} stands in the store", "topic")
            case SamplesGenerated(samples=samples):
                step = samples[0].step
                self.drawn[step] = self._note(f"row of step {step} is drawn", "topic")
        if message.__struct_config__.tag == "checkpoint.final":
            self.trained_at = self._note("training is done", "topic")

    def see(self, output: dict[str, Any]) -> None:
        for sample in output.get("samples", ()):
            if sample["step"] not in self.shown:
                where = f"/status, stage {output['stage']}, step {output.get('step')}"
                self.shown[sample["step"]] = self._note(
                    f"row of step {sample['step']} is shown", where
                )

    def write(self) -> None:
        """The page, if one is asked for."""
        if file := os.environ.get(PAGE):
            rows = "".join(f"| {at:.2f} | {what} | {where} |\n" for at, what, where in self._lines)
            Path(file).write_text(HEAD + rows)

    def _note(self, what: str, where: str) -> float:
        at = monotonic() - self._begin
        self._lines.append((at, what, where))
        return at


@asynccontextmanager
async def diary(amqp_url: str) -> AsyncIterator[Diary]:
    """One that begins now, and hears what is said on the topic."""
    kept = Diary()
    opening = RabbitMQBus.open(amqp_url, source="diary", heartbeat=0.5)
    async with closing(await opening) as bus, bus.reply_queue(HEARD) as reply_queue:

        async def listen() -> None:
            async for message in reply_queue.messages():
                kept.hear(message)

        listening = asyncio.create_task(listen())
        try:
            yield kept
        finally:
            listening.cancel()
            await asyncio.wait([listening])
