"""The display where the output is not a terminal; tests of real terminals are integration tests."""

from __future__ import annotations

import io
from functools import partial

import pytest
from rich.console import Console

from everydream.terminal.display import Display, print_lines, print_table
from everydream.terminal.screen import Screen


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def always(screen: Screen, _now: float) -> Screen:
    return screen


def shown_by(clock: Clock) -> tuple[Display, io.StringIO]:
    file = io.StringIO()
    return Display(Console(file=file, highlight=False), clock), file


def test_a_new_phase_is_printed_at_once_and_the_same_one_every_few_seconds() -> None:
    clock = Clock()
    display, file = shown_by(clock)
    with display:
        for second in range(12):
            clock.now = 100.0 + second
            screen = Screen("reading" if second < 2 else "training", numbers=(f"step {second}",))
            display.show(partial(always, screen))

    assert file.getvalue().splitlines() == [
        "reading: step 0", "training: step 2", "training: step 7",
    ]  # fmt: skip


def test_no_line_is_printed_twice() -> None:
    clock = Clock()
    display, file = shown_by(clock)
    with display:
        for second in range(100):
            clock.now = 100.0 + second
            display.show(partial(always, Screen(f"waiting, number {second % 7 % 2}")))

    assert file.getvalue().splitlines() == ["waiting, number 0", "waiting, number 1"]


def test_what_is_said_is_not_wrapped_and_not_read_as_markup() -> None:
    display, file = shown_by(Clock())
    with display:
        display.say("[red]a[/] " + "long " * 50 + "\nnext \x1b[2J")

    assert file.getvalue() == "[red]a[/] " + "long " * 50 + "\nnext ?[2J\n"


LONG = (
    "warning: 2 captions from a name that a camera or a counter gave: the model learns that word,"
    " not what is shown: a/very/long/folder/with/no/blank/in/its/name/that/is/wider/than/it.jpg"
)


@pytest.mark.parametrize("width", [60, 80, 140])
def test_on_a_terminal_lines_end_between_words(width: int) -> None:
    file = io.StringIO()
    print_lines(Console(file=file, width=width, force_terminal=True, color_system=None), LONG)

    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert " ".join(lines) == LONG
    assert all(len(line) <= width or " " not in line for line in lines)


@pytest.mark.parametrize(("width", "is_table"), [(60, False), (80, False), (140, True)])
def test_a_table_breaks_no_word_of_a_narrow_terminal(width: int, *, is_table: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    heads, row = (
        ("job", "status", "made"),
        ("0" * 36, "IN_PROGRESS", "[b]2026-01-02 12:34[/] or so"),
    )
    print_table(console, heads, [row])

    shown = file.getvalue()
    assert "IN_PROGRESS" in shown
    assert ("job" in shown) == is_table
    if not is_table:
        assert " ".join(line.rstrip() for line in shown.splitlines()) == (
            f"{row[0]}: status {row[1]}, made {row[2]}"
        )


def test_a_transfer_is_shown_while_it_lasts() -> None:
    clock = Clock()
    display, file = shown_by(clock)
    with display, display.transfer("uploading", 100) as on_bytes:
        clock.now += 10
        on_bytes(50)
    display.tick()

    first, second = file.getvalue().splitlines()
    assert first == "uploading: 100 bytes"
    assert second.startswith("uploading: 50 bytes of 100 bytes")


def test_an_error_within_a_display_is_not_hidden() -> None:
    display, _ = shown_by(Clock())
    with pytest.raises(RuntimeError), display:
        raise RuntimeError
