"""The live display of a terminal, and its plain lines elsewhere."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from everydream.terminal.pictures import encoder_for
from everydream.terminal.screen import Screen, transfer_screen
from everydream.terminal.words import plain, wrapped

REFRESHES = 4
"""A second."""
PRINT_SECONDS = 5.0
"""Between two lines of the same phase if the output is not a terminal."""
MOST_COLUMNS = 10_000
"""What a table is measured for."""


def print_lines(console: Console, text: str) -> None:
    """Print a text line by line, without what would steer a terminal.

    A terminal gets lines that end between words, if it is no narrower than a word; a file as it is.
    """
    lines = [plain(line) for line in text.split("\n")]
    if console.is_terminal:
        lines = [part for line in lines for part in wrapped(line, console.width)]
    console.print(Text("\n".join(lines)), soft_wrap=True)


def print_table(console: Console, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows as a table, or as lines where the terminal is too narrow for its words."""
    table = Table(*heads)
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    wanted = console.measure(table, options=console.options.update(max_width=MOST_COLUMNS)).maximum
    if wanted <= console.width:
        console.print(table)
        return
    for first, *others in rows:
        cells = (
            f"{head} {cell}".strip() for head, cell in zip(heads[1:], others, strict=True) if cell
        )
        print_lines(console, f"{first}: {', '.join(cells)}")


class Display:
    """Shows what is going on below what is said for good.

    On a terminal a few lines at its bottom are drawn again and again; elsewhere a line is printed
    for each phase and every few seconds, and never the same twice.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.time) -> None:
        self._console = console
        self._clock = clock
        self._screen_at: Callable[[float], Screen] | None = None
        self._heading = ""
        self._printed: set[str] = set()
        self._printed_at = 0.0
        self._live = Live(
            get_renderable=self._render,
            console=console,
            refresh_per_second=REFRESHES,
            transient=True,
            vertical_overflow="crop",
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()
        self._live.stop()

    def show(self, screen_at: Callable[[float], Screen]) -> None:
        """Show this from now on, as it is at each moment."""
        self._screen_at = screen_at
        self.tick()

    def tick(self) -> None:
        """Print a line if one is due; a terminal needs no help."""
        if self._console.is_terminal or self._screen_at is None:
            return
        now = self._clock()
        screen = self._screen_at(now)
        is_due = screen.heading != self._heading or now - self._printed_at >= PRINT_SECONDS
        if is_due and (line := screen.line()) not in self._printed:
            self._heading, self._printed_at = screen.heading, now
            self._printed.add(line)
            self.say(line)

    def clear(self) -> None:
        """Show nothing more of what was going on."""
        self._screen_at = None

    def say(self, text: str) -> None:
        """Print a text for good, above what is going on."""
        print_lines(self._console, text)

    def picture(self, png: Path) -> None:
        """Show a PNG file above what is going on, if the terminal can."""
        encode = encoder_for(os.environ) if self._console.is_terminal else None
        if encode is None:
            return
        is_live = self._live.is_started
        self._live.stop()  # it would draw its lines over the picture
        self._console.file.write(encode(png.read_bytes()) + "\n")
        self._console.file.flush()
        if is_live:
            self._live.start()

    @contextmanager
    def if_interrupted(self, text: str) -> Iterator[None]:
        """Say a text if Ctrl-C ends the block."""
        try:
            yield
        except asyncio.CancelledError:
            self.say(text)
            raise

    @contextmanager
    def transfer(self, heading: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a transfer of ``total`` bytes; yields the function that takes how many are done."""
        began, done = time.monotonic(), 0

        def on_bytes(number: int) -> None:
            nonlocal done
            done = number
            self.tick()

        def screen_at(_now: float) -> Screen:
            return transfer_screen(heading, done, total, time.monotonic() - began)

        self.show(screen_at)
        try:
            yield on_bytes
        finally:
            self.clear()

    def _render(self) -> Text:
        if self._screen_at is None:
            return Text("")
        lines = self._screen_at(self._clock()).lines(self._console.width)
        return Text("\n".join(lines), no_wrap=True, overflow="crop")
