"""A warm child is to its parent what one is that was started cold."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest

from shared.child.parent import Child, ChildDied, start_ready
from tests.support.workers import until_gone

PARENT = """
import asyncio
from shared.child.parent import start_ready

async def main():
    child = await start_ready("tests.support.warm.trainer")
    print(child.pid, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("warm_children")]  # tests of the tests


@pytest.fixture
async def child() -> AsyncIterator[Child]:
    child = await start_ready("tests.support.warm.trainer")
    yield child
    await child.kill()


def fork_for(stand_in: int) -> int:
    """The process that works in its place: the only other one that reads its stdin."""
    (fork,) = (pid for pid in psutil.pids() if pid != stand_in and reads_from(pid, stand_in))
    return fork


def reads_from(pid: int, other: int) -> bool:
    try:
        return Path(f"/proc/{pid}/fd/0").readlink() == Path(f"/proc/{other}/fd/0").readlink()
    except OSError:  # it is gone
        return False


async def end_of(child: Child) -> str:
    async with aclosing(child.records()) as records:
        with pytest.raises(ChildDied) as died:
            await anext(records)
    return str(died.value)


async def test_what_ends_it_ends_the_fork(child: Child) -> None:
    fork = fork_for(child.pid)

    await child.kill()

    await until_gone(fork)


async def test_what_ends_its_parent_ends_both() -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    stand_in = int(await parent.stdout.readline())
    fork = fork_for(stand_in)
    os.kill(fork, signal.SIGSTOP)  # so that it does not see the end of its stdin

    parent.kill()

    await until_gone(stand_in)
    await until_gone(fork)
    await parent.wait()


async def test_it_ends_by_the_signal_that_the_fork_ends_by(child: Child) -> None:
    os.kill(fork_for(child.pid), signal.SIGSEGV)

    assert "killed by SIGSEGV" in await end_of(child)


async def test_a_stop_is_passed_on_and_an_idle_fork_ends_well(child: Child) -> None:
    child.stop()

    assert "exit status 0" in await end_of(child)


async def test_an_error_that_nobody_catches_ends_it_as_it_would_end_an_interpreter(
    child: Child,
) -> None:
    assert child._process.stdin
    child._process.stdin.write(b"no order\n")

    assert "exit status 1" in await end_of(child)
