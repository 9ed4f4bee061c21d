"""A service that is a fork is to its starter what one is that was started cold."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import TimeoutExpired

import pytest

from tests.support.warm.process import WarmProcess
from tests.support.workers import until_gone

SAY = """import json, os, sys
print(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ), os.getsid(0), sys.stdin.read()]))"""


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[WarmProcess]:
    process = warm(tmp_path, "http.server", "0", "--bind", "127.0.0.1")
    yield process
    process.kill()
    process.wait(60)


def warm(folder: Path, *command: str) -> WarmProcess:
    with (folder / "log").open("ab") as log:
        return WarmProcess([sys.executable, "-m", *command], folder, {"NAME": "value"}, log)


def test_it_has_the_arguments_folder_environment_and_log_that_it_was_given(tmp_path: Path) -> None:
    once = ("timeit", "-n", "1", "-r", "1", SAY)

    process = warm(tmp_path, *once)

    assert process.wait(60) == 0, (tmp_path / "log").read_text()
    said, *_ = (tmp_path / "log").read_text().splitlines()
    arguments, folder, environment, session, stdin = json.loads(said)
    assert arguments == [*once[1:]]
    assert folder == str(tmp_path)
    assert environment == {"NAME": "value"}
    assert session == process.pid
    assert not stdin


def test_it_ends_with_the_status_of_what_it_runs(tmp_path: Path) -> None:
    process = warm(tmp_path, "json.tool", "no-such-file")

    assert process.wait(60) == 2
    assert process.poll() == 2
    process.kill()  # too late, and no error


def test_it_runs_until_a_signal_ends_it(serving: WarmProcess) -> None:
    assert serving.poll() is None
    with pytest.raises(TimeoutExpired):
        serving.wait(0)

    serving.send_signal(signal.SIGTERM)

    assert serving.wait(60) == -signal.SIGTERM


async def test_it_does_not_outlive_its_starter(serving: WarmProcess) -> None:
    os.kill(serving.pid, signal.SIGSTOP)

    serving._line.close()  # as when the starter is killed

    await until_gone(serving.pid)
    serving.returncode = -signal.SIGKILL
