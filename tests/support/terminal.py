"""A command in a real terminal, whose screen can be read."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pexpect
import pyte

from tests.support.services import resolved

ROWS = 50
READ_SECONDS = 0.05


class Terminal:
    """A command and what its terminal shows."""

    def __init__(
        self, words: Sequence[str], *, columns: int, folder: Path, environment: Mapping[str, str]
    ) -> None:
        program, *arguments = resolved(words)
        self._screen = pyte.Screen(columns, ROWS)
        self._stream = pyte.ByteStream(self._screen)
        self._process: pexpect.spawn[bytes] = pexpect.spawn(
            program, arguments, cwd=str(folder), env={**environment, "TERM": "xterm-256color"},
            dimensions=(ROWS, columns), timeout=None,
        )  # fmt: skip

    @property
    def columns(self) -> int:
        return self._screen.columns

    @property
    def lines(self) -> list[str]:
        """What is on the screen, without what is empty."""
        shown = (line.rstrip() for line in self._screen.display)
        return [line for line in shown if line]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def resize(self, columns: int) -> None:
        """Make the window narrower or wider."""
        self._screen.resize(ROWS, columns)
        self._process.setwinsize(ROWS, columns)

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._process.sendintr()

    async def read(self) -> bool:
        """Take what has been written since; False: the command has ended."""
        try:
            data = await asyncio.to_thread(self._process.read_nonblocking, 65536, READ_SECONDS)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self._stream.feed(data)
        return True

    async def until(
        self, happened: Callable[[list[str]], object], seconds: float, see: Callable[[], None]
    ) -> None:
        """Read until something is on the screen; ``see`` is called at each look.

        Raises:
            AssertionError: the command ended before, or it took too long.
        """
        deadline = time.monotonic() + seconds
        while not happened(self.lines):
            going_on = await self.read()
            see()
            assert going_on or happened(self.lines), f"it ended:\n{self.text}"
            assert time.monotonic() < deadline, f"too late:\n{self.text}"

    async def end(self, seconds: float, see: Callable[[], None]) -> int | None:
        """Read to the command's end; its exit status."""
        deadline = time.monotonic() + seconds
        while await self.read():
            see()
            assert time.monotonic() < deadline, f"too late:\n{self.text}"
        await asyncio.to_thread(self._process.wait)
        return self._process.exitstatus

    async def kill(self) -> None:
        """End it, whatever it does."""
        if self._process.isalive():
            self._process.kill(signal.SIGKILL)
            await asyncio.to_thread(self._process.wait)
        self._process.close()


@asynccontextmanager
async def terminal(
    words: Sequence[str], *, columns: int, folder: Path, environment: Mapping[str, str]
) -> AsyncIterator[Terminal]:
    """A command in a terminal, gone at the end of the block."""
    shown = Terminal(words, columns=columns, folder=folder, environment=environment)
    try:
        yield shown
    finally:
        await shown.kill()
