"""Pictures within a terminal: what is written can be taken apart to the file that was shown."""

from __future__ import annotations

import io
import re
from base64 import b64decode
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from everydream.terminal.display import Display
from everydream.terminal.pictures import encoder_for, for_iterm2, for_kitty

KITTY = re.compile(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\")
ITERM2 = re.compile(r"\x1b\]1337;File=([^:]*):([^\a]*)\a")


@pytest.fixture
def png(tmp_path: Path) -> Path:
    """More than one chunk."""
    path = tmp_path / "sample.png"
    Image.effect_noise((64, 64), 100).save(path)
    return path


def terminal(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> io.StringIO:
    """What is written to a terminal that sets these variables."""
    for name in ("TERM", "TERM_PROGRAM", "LC_TERMINAL", "KITTY_WINDOW_ID", "TMUX", "STY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return io.StringIO()


def shown(text: str) -> bytes:
    """The file that a terminal would have shown."""
    parts = KITTY.findall(text) or ITERM2.findall(text)
    return b64decode("".join(data for _, data in parts))


@pytest.mark.parametrize(
    ("environment", "encode"),
    [
        ({"TERM": "xterm-kitty"}, for_kitty),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, for_kitty),
        ({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}, for_kitty),
        ({"TERM_PROGRAM": "iTerm.app"}, for_iterm2),
        ({"TERM_PROGRAM": "WezTerm"}, for_iterm2),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, for_iterm2),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM_PROGRAM": "Apple_Terminal"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "a socket,1,0"}, None),
        ({"TERM_PROGRAM": "iTerm.app", "STY": "1.pts-0"}, None),
        ({}, None),
    ],
)
def test_a_terminal_is_known_by_the_variables_that_it_sets(
    environment: dict[str, str], encode: object
) -> None:
    assert encoder_for(environment) is encode


def test_kitty_gets_the_file_in_chunks_that_it_takes(png: Path) -> None:
    parts = KITTY.findall(text := for_kitty(png.read_bytes()))

    assert shown(text) == png.read_bytes()
    assert len(parts) > 1
    assert max(len(data) for _, data in parts) == 4096
    assert [keys.rpartition("m=")[2] for keys, _ in parts] == ["1"] * (len(parts) - 1) + ["0"]
    assert parts[0][0].startswith("a=T,f=100,q=2,r=10,")


def test_iterm2_gets_the_file_with_its_size(png: Path) -> None:
    ((keys, _),) = ITERM2.findall(text := for_iterm2(png.read_bytes()))

    assert shown(text) == png.read_bytes()
    assert f"size={len(png.read_bytes())};" in keys


@pytest.mark.parametrize("environment", [{"TERM": "xterm-kitty"}, {"TERM_PROGRAM": "iTerm.app"}])
def test_a_saved_sample_is_shown_above_what_goes_on(
    monkeypatch: pytest.MonkeyPatch, png: Path, environment: dict[str, str]
) -> None:
    file = terminal(monkeypatch, environment)
    with Display(Console(file=file, force_terminal=True)) as display:
        display.say("sample saved")
        display.picture(png)
        display.say("what follows")

    before, after = file.getvalue().split("sample saved", 1)[1].split("what follows", 1)
    assert shown(before) == png.read_bytes()
    assert shown(after) == b""


@pytest.mark.parametrize(
    ("is_terminal", "environment"),
    [(False, {"TERM": "xterm-kitty"}), (True, {"TERM": "xterm-256color"})],
)
def test_a_pipe_and_other_terminals_get_no_picture(
    monkeypatch: pytest.MonkeyPatch,
    png: Path,
    is_terminal: bool,  # noqa: FBT001 - a parameter
    environment: dict[str, str],
) -> None:
    file = terminal(monkeypatch, environment)
    with Display(Console(file=file, force_terminal=is_terminal)) as display:
        display.picture(png)

    assert "\x1b_G" not in file.getvalue()
    assert "\x1b]1337" not in file.getvalue()
