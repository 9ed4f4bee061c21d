"""The command line, run in a folder of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from everydream.cli import first_of
from shared.errors import SettingsError
from tests.support.services import environment_at, resolved

SECONDS = 120


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def typed(home: Path, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """The result of a command with these ``EVERYDREAM_*`` settings."""
    chosen = {f"EVERYDREAM_{name}": text for name, text in settings.items()}
    return subprocess.run(
        resolved(["everydream", *words]), cwd=home, env=environment_at(home) | chosen,
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip


def test_help_names_every_command(home: Path) -> None:
    done = typed(home, "--help")

    assert done.returncode == 0
    for command in ("serve", "service", "demo", "models"):
        assert command in done.stdout


@pytest.mark.parametrize("service", ["gateway", "fetcher", "trainer", "inferencer", "notifier"])
def test_a_wrong_setting_is_reported_in_one_line(home: Path, service: str) -> None:
    done = typed(home, "service", service, HEARTBEAT="fast")

    assert done.returncode == 1
    assert done.stderr == "everydream: EVERYDREAM_HEARTBEAT is 'fast', but takes a number above 0\n"


def test_so_is_one_that_is_found_out_only_while_all_five_run(home: Path) -> None:
    done = typed(home, "serve", HOST="192.0.2.1", BASE_MODEL="tiny")

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("everydream: cannot listen at EVERYDREAM_HOST=192.0.2.1")


def test_an_unknown_service_is_reported_with_the_nearest_name(home: Path) -> None:
    done = typed(home, "service", "gatewax")

    assert done.returncode == 2
    assert "gatewax" in done.stdout + done.stderr
    assert '"gateway"' in done.stdout + done.stderr


def test_pulling_what_is_not_on_the_hub_is_reported_in_one_line(home: Path) -> None:
    done = typed(home, "models", "pull", "tiny")

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("everydream: EVERYDREAM_BASE_MODEL is 'tiny'")


def test_of_nested_errors_the_first_is_reported() -> None:
    first, second = SettingsError("first"), SettingsError("second")
    errors: list[Any] = [ExceptionGroup("", [first]), second]

    assert first_of(ExceptionGroup("", errors)) is first


def test_a_key_is_made_listed_and_disabled(home: Path) -> None:
    made = typed(home, "keys", "make", "anna", "--scope", "submit", "--scope", "read")
    assert made.returncode == 0, made.stderr
    assert "Key 'anna' (read, submit), shown only now:" in made.stdout
    key = made.stdout.splitlines()[-1]
    assert key.startswith("ed_")

    again = typed(home, "keys", "make", "anna")
    assert (again.returncode, "another name" in again.stderr) == (1, True)

    listed = typed(home, "keys", "list", API_KEYS="one,two")
    assert "anna" in listed.stdout
    assert "let in" in listed.stdout
    assert "Besides, 2 from EVERYDREAM_API_KEYS" in listed.stdout
    assert key not in listed.stdout

    assert typed(home, "keys", "disable", "anna").returncode == 0
    assert "disabled" in typed(home, "keys", "list").stdout
    nobody = typed(home, "keys", "disable", "anna")
    assert nobody.stderr == "everydream: there is no key named 'anna' that is let in\n"


def test_an_old_setting_s_warning_stays_out_of_the_result(home: Path) -> None:
    made = typed(home, "keys", "make", "anna", PLACES="7")

    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines()[0] == "Key 'anna' (read, submit, admin), shown only now:"
    assert '"setting_renamed"' in made.stderr
    assert "EVERYDREAM_CONCURRENCY" in made.stderr
