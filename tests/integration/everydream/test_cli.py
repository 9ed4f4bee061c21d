"""The command line, run in a folder of its own."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest

from everydream.cli import first_of
from services.gateway.database.connection import Database
from shared.errors import SettingsError
from shared.keys import webhook_secret
from tests.support.servers.process import free_port
from tests.support.services import environment_at, resolved
from tests.support.warm.process import WarmProcess

SECONDS = 120


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def typed(home: Path, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """The result of a command with these ``EVERYDREAM_*`` settings."""
    chosen = {f"EVERYDREAM_{name}": text for name, text in settings.items()}
    command = resolved(["tests.support.warm.command", *words])
    with TemporaryFile("w+b") as output, TemporaryFile("w+b") as errors:
        process = WarmProcess(command, home, environment_at(home) | chosen, output, errors)
        try:
            status = process.wait(SECONDS)
        finally:
            process.kill()
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(
            command, status, output.read().decode(), errors.read().decode()
        )


def test_help_names_every_command(home: Path) -> None:
    done = subprocess.run(
        resolved(["everydream", "--help"]), cwd=home, env=environment_at(home),
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip

    assert done.returncode == 0
    for command in ("run", "draw", "stop", "serve", "service", "demo", "models", "completion"):
        assert f" {command} " in done.stdout


def test_the_version_is_the_package_s(home: Path) -> None:
    assert typed(home, "--version").stdout.strip() == version("everydream-service")


def test_a_shell_s_completion_is_installed_where_the_shell_finds_it(home: Path) -> None:
    done = typed(home, "completion", "bash", "--install")

    (path,) = home.rglob("completions/everydream")
    assert f"written to {path}" in done.stdout


NOBODY = "http://127.0.0.1:9"


def test_exit_statuses_tell_a_wrong_word_a_refusal_and_a_gateway_that_is_away(home: Path) -> None:
    (home / "photos").mkdir()
    (home / "photos" / "ted_1.png").write_bytes(b"a picture")
    at = ("--url", NOBODY, "--key", "k")

    unknown = typed(home, "run", "photos", "--colour", "red")
    misused = typed(home, "run", "photos", "--set", "lr")
    refused = typed(home, "run", "photos", "--set", "max_epoch=5", *at)
    away = typed(home, "show", "7b1c", *at)

    assert [unknown.returncode, misused.returncode, refused.returncode, away.returncode] == [
        2, 2, 1, 3,
    ]  # fmt: skip
    assert "--set lr: expected name=value" in misused.stderr
    assert refused.stderr == (
        "everydream: the request is refused:\n"
        "  - input.train.max_epoch: no such field; did you mean max_epochs?\n"
    )
    assert away.stderr.startswith(f"everydream: {NOBODY}: nothing answers there (connection ref")


def test_an_error_is_a_document_for_programs_too(home: Path) -> None:
    done = typed(home, "show", "7b1c", "--url", NOBODY, "--key", "k", "--json")

    assert done.returncode == 3
    assert list(json.loads(done.stdout)) == ["error"]
    assert json.loads(done.stdout)["error"] in done.stderr


def test_a_results_folder_that_cannot_be_written_is_found_before_the_gateway_is_asked(
    home: Path,
) -> None:
    (home / "file").write_text("in the way")
    (home / "photos").mkdir()
    (home / "photos" / "ted_1.png").write_bytes(b"a picture")

    done = typed(home, "run", "photos", "--output", "file/results", "--url", NOBODY, "--key", "k")

    assert done.returncode == 1
    assert done.stderr.startswith("everydream: results cannot be written: ")
    assert "give another folder by --output" in done.stderr


@pytest.mark.parametrize(
    "words", [("serve", "--base-model", "tiny"), ("keys", "list"), ("models", "pull")]
)
def test_a_home_that_cannot_be_written_is_reported_in_one_line(
    home: Path, words: tuple[str, ...]
) -> None:
    (home / "file").write_text("in the way")

    done = typed(home, *words, HOME=str(home / "file" / "home"))

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"everydream: EVERYDREAM_HOME is {home}/file/home, which cannot be")


def test_so_is_one_that_a_single_service_cannot_write(home: Path) -> None:
    (home / "file").write_text("in the way")

    done = typed(home, "service", "gateway", HOME=str(home / "file" / "home"))

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"everydream: {home}/file/home: Not a directory;"
        " EVERYDREAM_HOME names the folder that is written to"
    )
    assert "Traceback" not in done.stderr


def test_a_setting_that_there_is_not_is_named_with_the_nearest(home: Path) -> None:
    done = typed(home, "models", "list", PROT="8081")

    assert done.returncode == 0
    assert done.stderr == (
        "everydream: warning: setting unknown, name=EVERYDREAM_PROT, nearest=EVERYDREAM_PORT\n"
    )


def test_the_models_of_the_machine_are_listed(home: Path) -> None:
    listed = typed(home, "models", "list", "--json", BASE_MODEL="tiny")

    (tiny,) = json.loads(listed.stdout)["models"]
    assert (tiny["name"], tiny["is_base_model"], tiny["commit"]) == ("tiny", True, None)
    assert tiny["bytes"] > 1_000_000


def test_the_doctor_says_what_the_machine_can_do(home: Path) -> None:
    done = typed(home, "doctor", "--json", BASE_MODEL="tiny", PORT=str(free_port()))

    examined = json.loads(done.stdout)
    found = {each["part"]: each for each in examined["findings"]}
    assert done.returncode == 0, done.stdout
    assert examined["healthy"]
    assert examined["device"]["torch"].startswith("2.")
    assert found.keys() >= {"device", "memory", "folder", "disk", "base model", "broker",
                            "database", "store", "server"}  # fmt: skip
    assert not (home / ".everydream").exists(), "nothing is changed"


def test_the_doctor_says_what_is_wrong_and_how_to_mend_it(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = typed(
            home, "doctor", BASE_MODEL="no/such/folder", PORT=str(taken.getsockname()[1]),
            AMQP_URL="amqp://user:pass@127.0.0.1:9/", DATABASE_URL="postgresql://u:secret@127.0.0.1:9/d",
        )  # fmt: skip

    assert done.returncode == 1
    wrong = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("WRONG")]
    assert wrong == ["base", "broker", "database", "server"]
    assert done.stdout.count(" -> ") >= 4
    assert "pass" not in done.stdout
    assert "secret" not in done.stdout


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


@contextmanager
def served(home: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server that is ready."""
    environment = environment_at(home) | {
        "EVERYDREAM_BASE_MODEL": "tiny", "EVERYDREAM_PORT": str(port),
    }  # fmt: skip
    command = resolved(["everydream", "serve"])
    with (
        (home / "log").open("wb") as log,
        subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            deadline = time.monotonic() + SECONDS
            # Its address is in client.toml only then: a port listens a moment before.
            while "listening" not in (said := (home / "log").read_text()):
                assert process.poll() is None, said
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield process
        finally:
            process.kill()


def test_a_second_server_of_a_home_folder_is_refused_and_leaves_the_first_s_address(
    home: Path,
) -> None:
    first, second = free_port(), free_port()
    with served(home, first) as process:
        (kept,) = home.rglob("client.toml")
        refused = typed(home, "serve", BASE_MODEL="tiny", PORT=str(second))

        assert refused.returncode == 1
        assert refused.stderr.splitlines()[-1] == (
            f"everydream: a server of {kept.parent} runs already at http://127.0.0.1:{first}"
            f" (process {process.pid}); stop it, or give this one a folder of its own by --home or"
            " EVERYDREAM_HOME"
        )
        assert f'url = "http://127.0.0.1:{first}"' in kept.read_text()
    with served(home, second):  # although the first was killed
        assert f'url = "http://127.0.0.1:{second}"' in kept.read_text()


@pytest.mark.parametrize("words", [("serve",), ("service", "fetcher")])
@pytest.mark.parametrize("model", ["/no/such/model.safetensors", "not a model", "."])
def test_a_base_model_that_is_none_stops_the_process_with_one_line(
    home: Path, words: tuple[str, ...], model: str
) -> None:
    done = typed(home, *words, BASE_MODEL=model)

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"everydream: EVERYDREAM_BASE_MODEL is {model!r}, which is ")
    assert "expected the path of a diffusers folder, or of a .safetensors or .ckpt" in done.stderr
    assert done.stdout == ""


def test_the_webhook_s_secret_is_printed_whoever_made_it(home: Path) -> None:
    """Run where a notifier runs, so that nothing but the settings and the folder is known."""
    chosen = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    key = "a secret key of thirty-two letters or more"

    assert typed(home, "webhook-secret", WEBHOOK_SECRET=chosen).stdout == f"{chosen}\n"
    derived = typed(home, "webhook-secret", SECRET_KEY=key)
    assert derived.stdout == f"{webhook_secret(None, key)}\n"
    made = typed(home, "webhook-secret")
    (kept,) = home.rglob("secret.key")
    assert made.stdout == f"{webhook_secret(None, kept.read_text())}\n"
    assert (made.returncode, made.stderr) == (0, "")


def test_a_service_whose_work_is_not_jobs_takes_no_number_of_them(home: Path) -> None:
    done = typed(home, "service", "notifier", "--jobs", "1")
    assert done.returncode == 1
    assert "--jobs is for a fetcher, trainer, inferencer" in done.stderr


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

    disabled = typed(home, "keys", "disable", "anna")
    assert disabled.stdout == "Key 'anna' is let in no more; its jobs go on.\n"
    (anna,) = json.loads(typed(home, "keys", "list", "--json").stdout)["keys"]
    assert (anna["scopes"], anna["last_used_at"]) == (["read", "submit"], None)
    assert anna["disabled_at"] > anna["created_at"]
    assert stat.S_IMODE((home / ".everydream").stat().st_mode) == 0o700
    nobody = typed(home, "keys", "disable", "anna")
    assert nobody.stderr == "everydream: there is no key named 'anna' that is let in\n"


def test_an_old_setting_s_warning_stays_out_of_the_result(home: Path) -> None:
    made = typed(home, "keys", "make", "anna", PLACES="7")

    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines()[0] == "Key 'anna' (read, submit, admin), shown only now:"
    assert "everydream: warning: setting renamed" in made.stderr
    assert "EVERYDREAM_CONCURRENCY" in made.stderr


async def test_nobody_else_reads_the_database_and_the_folder_that_is_made_for_it(
    tmp_path: Path,
) -> None:
    file = tmp_path / "home" / "everydream.db"
    for _ in range(2):
        database = Database.open(f"sqlite:///{file}")
        await database.migrate()
        assert {stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()} == {0o600}
        await database.close()
        file.chmod(0o644)  # as an earlier version has left it
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_command_whose_reader_has_enough_ends_without_a_traceback(home: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        ended = subprocess.run(
            resolved(["everydream", "completion", "zsh"]), cwd=home, env=environment_at(home),
            stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip

    assert ended.returncode == 1
    assert ended.stderr == ""
