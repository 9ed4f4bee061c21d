"""Upload what the child saves while it trains on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from shared.child.records import Saved
from shared.concurrency import cancelled


class UploadQueue:
    """Uploads one after the other, in the order in which the child has saved."""

    def __init__(
        self,
        upload: Callable[[Saved], Awaitable[None]],
        *,
        afterwards: Callable[[], Awaitable[None]] | None = None,
        every: float | None = None,
    ) -> None:
        """``afterwards`` is called after each upload, and every so many seconds in between."""
        self._upload = upload
        self._afterwards = afterwards
        self._every = every
        self._waiting: asyncio.Queue[Saved] = asyncio.Queue()
        self._task = asyncio.create_task(self._run())

    def add(self, saved: Saved) -> None:
        """Upload this in its turn. Raises what an earlier upload has raised."""
        if self._task.done():
            self._task.result()
        self._waiting.put_nowait(saved)

    async def finished(self) -> None:
        """Wait until everything is uploaded. Raises what an upload has raised."""
        waiting = asyncio.create_task(self._waiting.join())
        await asyncio.wait((waiting, self._task), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._task.done():
            self._task.result()

    async def cancel(self) -> None:
        """Stop; what is not uploaded yet will not be."""
        await cancelled(self._task)

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._every):
                    saved = await self._waiting.get()
            except TimeoutError:
                pass
            else:
                await self._upload(saved)
                self._waiting.task_done()
            if self._afterwards is not None:
                await self._afterwards()
