"""A service's process: its imports, and its end."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from shared.child.process import importing


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_imports_are_not_searched_for_garbage_and_all_that_comes_later_is() -> None:
    gc.unfreeze()
    with importing():
        searched = gc.isenabled()

    assert not searched
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0


SERVICE = """
import asyncio, threading, time
from shared import service_process

service_process.STOP_SECONDS = {stop_seconds}
service_process.LEAVE_SECONDS = 0.1

async def main():
    stop = service_process.stop_on_signals()
    {work}
    print("ready", flush=True)
    await stop.wait()
    print("stopped", flush=True)

service_process.run(main())
"""
A_THREAD = "asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)"
ALL_THREADS = "[asyncio.ensure_future(asyncio.to_thread(time.sleep, 60)) for _ in range(64)]"
A_TASK = """
    async def stubborn():
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                pass
    kept = asyncio.create_task(stubborn())
"""
BUSY = """
    import re
    def busy():
        print("busy", flush=True)
        {loop}
    asyncio.get_running_loop().call_later(0.01, busy)
"""
A_BUSY_LOOP = BUSY.format(loop="any(_ for _ in iter(int, 1))")
HEAVY_REGEX = BUSY.format(loop="re.match('(a*)*b', 'a' * 40)")


TWO_THAT_TAKE_LONGER = """
    told = stop
    class Work:
        async def wait(self):
            await told.wait()
            with service_process.exit_put_off({seconds}):
                with service_process.exit_put_off(0.1):
                    pass
                await asyncio.sleep(1.5)
    stop = Work()
"""


def ended_by_sigterm(
    work: str, stop_seconds: float = 28.0, *, at: str = "ready"
) -> tuple[int, str, float]:
    """Exit status, output and seconds from the signal, which comes at that word, to the end."""
    script = SERVICE.format(work=work.strip(), stop_seconds=stop_seconds)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        assert f"{at}\n" in iter(process.stdout.readline, "")
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        try:
            output = process.communicate(timeout=20)[0]
        finally:
            process.kill()
        return process.returncode, output, time.monotonic() - began


@pytest.mark.parametrize("work", ["", A_THREAD, ALL_THREADS, A_TASK])
def test_a_service_that_is_done_does_not_wait_for_what_cannot_be_stopped(work: str) -> None:
    status, output, seconds = ended_by_sigterm(work)
    assert status == 0
    assert "stopped" in output
    assert ("threads_left_running" in output) == bool(work)
    assert seconds < 10


@pytest.mark.parametrize("work", [A_BUSY_LOOP, HEAVY_REGEX])
def test_a_service_that_hears_nothing_ends_all_the_same_and_says_what_it_did(work: str) -> None:
    status, output, _seconds = ended_by_sigterm(work, stop_seconds=0.5, at="busy")
    assert status == 1
    assert "Timeout" in output
    assert "stopped" not in output


@pytest.mark.parametrize(("seconds", "status"), [(60.0, 0), (0.2, 1)])
def test_work_that_said_that_it_takes_longer_is_given_the_time_whatever_else_ends(
    seconds: float, status: int
) -> None:
    work = TWO_THAT_TAKE_LONGER.format(seconds=seconds)
    ended, output, _seconds = ended_by_sigterm(work, stop_seconds=0.5)
    assert ended == status, output
    assert ("stopped" in output) == (status == 0)
