"""The commands as they are offered: help and completion."""

from __future__ import annotations

import io
import re
import shutil
import subprocess

import pytest
from rich.console import Console

from everydream.cli import COMMANDS, app
from everydream.image_options import Drawing
from services.gateway.web.authentication import SCOPES

SINGLE = [
    (name,) for modules in COMMANDS.values() for functions in modules.values() for name in functions
]
KEYS, MODELS = ("make", "list", "disable"), ("pull", "list")
EVERY = [*SINGLE, *(("keys", name) for name in KEYS), *(("models", name) for name in MODELS)]
WITHOUT_RESULT = {"serve", "service", "demo"}


def help_of(*words: str) -> str:
    file = io.StringIO()
    app.help_print(list(words), console=Console(file=file, width=120))
    return file.getvalue()


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_no_help_offers_a_flag_that_means_nothing(words: tuple[str, ...]) -> None:
    text = help_of(*words)

    assert f"Usage: everydream {' '.join(words)}" in text
    assert not re.search(r"--(empty|no)-(?!wait)", text), text
    assert "()" not in text
    assert "default: False" not in text


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_every_command_with_a_result_has_one_for_programs(words: tuple[str, ...]) -> None:
    assert ("--json" in help_of(*words)) is (words[0] not in WITHOUT_RESULT)


def test_the_help_names_every_command_with_a_line_on_it() -> None:
    text = help_of()
    for (name,) in SINGLE:
        assert re.search(rf"\u2502 {name} +[A-Z]", text), name


def test_the_help_of_keys_names_every_scope() -> None:
    assert all(f"{scope}:" in help_of("keys", "make") for scope in SCOPES)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_s_completion_knows_every_command(shell: str) -> None:
    script = app.generate_completion(shell=shell)  # type: ignore[arg-type]

    assert all(word in script for words in EVERY for word in words)
    if (program := shutil.which(shell)) is not None:
        subprocess.run([program, "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("words", [("run", "photos"), ("draw", "org/name")])
def test_how_to_draw_is_said_alike_wherever_anything_is_drawn(words: tuple[str, ...]) -> None:
    options = ("--prompt", "one", "--prompt", "two", "--negative", "blurry", "--count", "4",
               "--size", "512x768", "--steps", "20", "--guidance", "5", "--scheduler", "DDIM",
               "--seed", "7")  # fmt: skip

    _, bound, _ = app.parse_args([*words, *options])

    assert bound.arguments["drawing"] == Drawing(
        ("one", "two"), "blurry", count=4, size="512x768", steps=20, guidance=5.0,
        scheduler="DDIM", seed=7,
    )  # fmt: skip
    assert all(option in help_of(words[0]) for option in options if option.startswith("--"))


def test_drawing_nothing_is_a_wrong_word(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        app(["draw", "org/name", "--url", "nowhere", "--key", "k"])

    assert ended.value.code == 2
    assert capsys.readouterr().err == "everydream: nothing is to be drawn: give --prompt\n"
