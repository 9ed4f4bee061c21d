"""A worker without a broker: a granted order whose facts are kept in a list."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from shared.adapters.folder import FolderStore
from shared.messaging.messages import (
    AnyMessage,
    Artifact,
    ClaimGranted,
    DrawnSample,
    ImagesGenerated,
    Message,
    Stage,
)
from shared.request import Command
from shared.worker.order import Order


def files_of(drawn: ImagesGenerated) -> list[Artifact]:
    """The images' files, in order; those that failed have none."""
    return [image.artifact for image in drawn.images if image.artifact]


class Facts:
    """A bus that only records what is published."""

    source = "worker/test"

    def __init__(self) -> None:
        self.published: list[Message] = []

    async def publish(
        self, message: Message, *, reply_to: str | None = None, mandatory: bool = True
    ) -> None:
        del reply_to, mandatory
        self.published.append(message)


class ReplyQueue:
    address = "control"

    async def messages(self) -> AsyncIterator[AnyMessage]:
        await asyncio.Event().wait()
        yield ClaimGranted(stage="training", claim="", attempt=1)


def granted_order(
    message: AnyMessage,
    stage: Stage,
    facts: Facts,
    *,
    attempt: int = 1,
    resume_point: str | None = None,
    s3: str | None = None,
    commands: dict[Command, int] | None = None,
    drawn: tuple[DrawnSample, ...] = (),
) -> Order:
    store = folder_store(Path("never-written"))
    order = Order(facts, store, ReplyQueue(), message, stage)  # type: ignore[arg-type]
    order.receive(
        ClaimGranted(
            job=message.job,
            stage=stage,
            claim=order.claim,
            attempt=attempt,
            resume_point=resume_point,
            s3=s3,
            commands=commands or {},
            drawn=drawn,
        )
    )
    return order


def folder_store(folder: Path) -> FolderStore:
    return FolderStore(folder, public_url="http://127.0.0.1:1", key="k" * 32)


def is_gone(pid: int) -> bool:
    """Whether the process has ended; a zombie counts."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status.rsplit(")", 1)[1].split()[0] == "Z"


async def until_gone(pid: int, *, seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not is_gone(pid):
            await asyncio.sleep(0.05)
