"""Numbers and texts as people read them."""

from __future__ import annotations

import pytest

from everydream.terminal.words import duration, fit, plain, size, wrapped
from shared.words import counted


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "a moment"), (45.9, "45 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h"),
        (4320, "1 h 12 min"), (86400, "1 d"), (2 * 86400 + 3 * 3600, "2 d 3 h"), (-5, "a moment"),
    ],
)  # fmt: skip
def test_a_time_span_has_its_two_largest_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(1, "1 byte"), (999, "999 bytes"), (1500, "1.5 kB"), (48_213, "48 kB"), (4.1e9, "4.1 GB"),
     (5e15, "5000 TB")],
)  # fmt: skip
def test_bytes_have_a_unit(number: float, words: str) -> None:
    assert size(number) == words


def test_one_is_no_plural() -> None:
    assert [counted(1, "picture"), counted(0, "picture"), counted(2, "entry", "entries")] == [
        "1 picture", "0 pictures", "2 entries",
    ]  # fmt: skip


def test_a_text_cannot_steer_the_terminal_and_keeps_its_letters() -> None:
    assert plain("a\x1b[2Jred\ncät \u753b") == "a?[2Jred cät \u753b"


def test_a_long_text_is_cut_with_dots() -> None:
    assert [fit("abcdef", 6), fit("abcdefg", 6), fit("abcdefg", 2)] == ["abcdef", "abc...", ".."]


def test_a_line_is_parted_between_words_and_keeps_its_indent_and_wide_letters() -> None:
    assert wrapped("  a photo of ted", 9) == ["  a photo", "  of ted"]
    assert wrapped("\u753b\u753b \u753b\u753b", 8) == ["\u753b\u753b", "\u753b\u753b"]
    assert wrapped("", 9) == [""]


@pytest.mark.parametrize("width", [20, 60, 80])
def test_a_command_stays_on_one_line_however_long_it_is(width: int) -> None:
    words = "watch it again, and fetch its results:"
    command = f"everydream follow {'7' * 36} --output 'my results/of today' --url http://box:8080"

    *said, whole = wrapped(f"  {words}  {command}", width)

    assert whole.strip() == command
    assert " ".join(part.strip() for part in said) == words
    assert wrapped(f"  {command}", width) == [f"  {command}"]


def test_a_short_command_stays_beside_its_words() -> None:
    assert wrapped("end it:  everydream cancel 7", 40) == ["end it:  everydream cancel 7"]


def test_a_text_is_cut_after_a_word_unless_that_is_much_shorter() -> None:
    assert fit("the last one failed: the host is away", 30) == "the last one failed: the..."
    assert fit("a verylongwordwithoutanyblankinit", 20) == "a verylongwordwit..."
