"""The commands as they are offered: help and completion."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from everydream.cli import COMMANDS, app
from everydream.image_options import Drawing
from services.gateway.web.authentication import SCOPES

SINGLE = [
    (name,) for modules in COMMANDS.values() for functions in modules.values() for name in functions
]
KEYS, MODELS = ("make", "list", "disable"), ("pull", "list")
EVERY = [
    *SINGLE,
    ("uploads",),
    ("uploads", "delete"),
    *(("keys", name) for name in KEYS),
    *(("models", name) for name in MODELS),
]
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("run", "photos", "of ted"),
            "'of ted': more than `everydream run` takes",
        ),
        (("jobs", "extra"), "extra: more than `everydream jobs` takes"),
        (("keys", "list", "x"), "x: more than `everydream keys list` takes"),
        (("cancel",), "`everydream cancel` needs JOB"),
        (("draw", "7b1c", "--prompt"), "--prompt needs a value"),
        (("jobs", "--limit", "abc"), "--limit: expected a whole number, got 'abc'"),
        (("draw", "7b1c", "--guidance", "x"), "--guidance: expected a number, got 'x'"),
        (("run", "photos", "--limt", "3"), "Unknown option: --limt"),
    ],
)
def test_a_wrong_word_is_said_in_plain_words(words: tuple[str, ...], said: str) -> None:
    file = io.StringIO()
    with pytest.raises(SystemExit) as end:
        app(words, error_console=Console(file=file, width=200))

    assert end.value.code == 2
    assert said in file.getvalue()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_s_completion_knows_every_command(shell: str) -> None:
    script = app.generate_completion(shell=shell)  # type: ignore[arg-type]

    assert all(word in script for words in EVERY for word in words)
    if (program := shutil.which(shell)) is not None:
        subprocess.run([program, "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_shell_offers_files_for_the_data(command: str, tmp_path: Path) -> None:
    (tmp_path / "photos-of-ted").mkdir()
    script = tmp_path / "completion"
    script.write_text(app.generate_completion(shell="bash"))  # noqa: S604 - no call of a shell
    asked = (
        f"source {script}; COMP_WORDS=(everydream {command} pho); COMP_CWORD=2; _everydream;"
        ' echo "${COMPREPLY[@]}"'
    )

    done = subprocess.run(
        ["/bin/bash", "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert done.stdout == "photos-of-ted\n"


def test_an_address_of_data_stays_as_it_was_typed() -> None:
    _, bound, _ = app.parse_args(["run", "https://example.com//photos.zip"])

    assert bound.arguments["data"] == "https://example.com//photos.zip"


def test_a_value_after_a_space_is_said_to_belong_to_its_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        app(["run", "photos", "--set", "max_epochs", "3"])

    assert ended.value.code == 2
    said = " ".join(re.sub(r"[^ -~]", " ", capsys.readouterr().err).split())
    assert "--set max_epochs: expected name=value in one word, such as --set max_epochs=1" in said


@pytest.mark.parametrize("words", [("cancel",), ("delete",), ("delete", "--checkpoint", "40")])
def test_what_is_lost_for_good_needs_yes_where_nobody_can_be_asked(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())

    with pytest.raises(SystemExit) as ended:
        app([*words, "7b1c", "--url", "http://127.0.0.1:9", "--key", "k"])

    assert ended.value.code == 2
    assert "There is no terminal to ask on: give --yes" in capsys.readouterr().err


def test_what_is_lost_for_good_is_asked_about_on_a_terminal(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    at = ("--url", "http://127.0.0.1:9", "--key", "k")
    for answer, status, text in (
        (interrupted, 130, "[y/N]"),
        (lambda: "n", 1, "nothing was changed"),
        (lambda: "y", 3, "nothing answers there"),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO())
        monkeypatch.setattr("sys.stdin.isatty", lambda: True)
        monkeypatch.setattr("builtins.input", answer)
        with pytest.raises(SystemExit) as ended:
            app(["delete", "7b1c", *at])
        said = capsys.readouterr().err
        code = ended.value.code
        assert (1 if isinstance(code, str) else code) == status
        assert text in said + str(code)


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
