"""The parent's side of a child process, with a real child that follows a script."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from msgspec.structs import replace

from shared.child.parent import Child, ChildDied, start_ready
from shared.child.process import RecordWriter
from shared.child.records import (
    RECORD_BYTES,
    AnyRecord,
    Done,
    Failed,
    ImageFailed,
    Phase,
    Ready,
    Stopped,
)
from shared.errors import Passing, Refused, reason_of
from tests.support.scripted_child import Script

MODULE = "tests.support.scripted_child"
GPU_PAGE = Path(__file__).parents[3] / "docs" / "gpu.md"


@asynccontextmanager
async def started(**options: Any) -> AsyncIterator[Child]:
    child = await Child.start(MODULE, **options)
    try:
        yield child
    finally:
        await child.kill()


async def records_until_the_end(child: Child) -> tuple[list[AnyRecord], str]:
    said = []
    try:
        async with asyncio.timeout(30), aclosing(child.records()) as records:
            async for record in records:
                said.append(record)  # noqa: PERF401 - the records before the error count
    except ChildDied as error:
        return said, str(error)
    raise AssertionError


async def follow(child: Child, *steps: dict[str, Any]) -> tuple[list[AnyRecord], str]:
    await child.order(Script(list(steps)))
    return await records_until_the_end(child)


def say(record: str, **fields: Any) -> dict[str, Any]:
    return {"write": {"record": record, **fields}}


READY = Ready(gpu="scripted", unusable=("a library",))


async def test_what_a_child_says_of_its_device_is_kept() -> None:
    child = await start_ready("tests.support.scripted_child")
    await child.kill()
    assert (child.gpu, child.unusable) == (READY.gpu, READY.unusable)


async def test_records_come_in_order_and_an_early_end_is_reported() -> None:
    async with started() as child:
        said, end = await follow(child, say("phase", name="loading"), {"exit": 3})

    assert said == [READY, Phase(name="loading")]
    assert end == "the child ended with exit status 3 and without a last word"


async def test_a_killed_child_is_seen_at_once_with_the_signals_name() -> None:
    async with started() as child:
        _said, end = await follow(child, {"kill": int(signal.SIGKILL)})

    assert "SIGKILL" in end


async def test_a_living_grandchild_does_not_hide_the_death_and_is_ended_too() -> None:
    async with started() as child:
        _said, end = await follow(child, {"fork": 300}, {"kill": int(signal.SIGKILL)})
        group = child.pid
        assert "SIGKILL" in end

    async with asyncio.timeout(30):  # the kernel takes a moment to end killed processes
        while any(_alive_in(process, group) for process in psutil.process_iter()):
            await asyncio.sleep(0.01)


def _alive_in(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


async def test_a_grandchild_that_has_left_with_the_pipe_costs_us_no_descriptor() -> None:
    before = descriptors()
    async with started() as child:
        await follow(child, {"fork_away": 30}, {"exit": 0})

    async with asyncio.timeout(10):  # transports close in a later round of the loop
        while descriptors() != before:
            await asyncio.sleep(0.01)


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


async def test_a_child_gets_what_chooses_its_card_from_our_environment_and_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (listed,) = re.findall(r"reach the processes that compute:([^.]*)\.", GPU_PAGE.read_text())
    of_cards = re.findall(r"`(\w+)`", listed)
    for name in of_cards:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("EVERYDREAM_SECRET_KEY", "very secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very secret")
    async with started() as child:
        said, _end = await follow(child, {"environment": True}, {"exit": 0})

    assert isinstance(said[-1], Done)
    names = said[-1].summary["names"]
    assert {"PATH", "CUDA_DEVICE_ORDER", *of_cards} <= {*names}
    assert not [name for name in names if name.startswith(("EVERYDREAM", "AWS"))]


async def test_what_a_child_prints_is_bounded_and_looks_like_no_line_of_ours(
    capfd: pytest.CaptureFixture[str],
) -> None:
    forged = '{"event": "claim_lost"}\x1b[2J'
    async with started(log_bytes=1000) as child:
        said, _end = await follow(child, {"print": forged}, {"print": "x" * 3000}, {"exit": 0})
        assert child._logging
        await child._logging

    lines = capfd.readouterr().err.splitlines()
    assert said == [READY]
    assert lines[0] == '| {"event": "claim_lost"}?[2J'
    assert {line[:2] for line in lines} == {"| "}
    assert 900 < sum(map(len, lines)) < 1100


async def test_stop_asks_politely() -> None:
    async with started() as child, asyncio.timeout(30), aclosing(child.records()) as records:
        await child.order(Script([{"wait_for_stop": True}]))
        assert await anext(records) == READY
        child.stop()
        assert await anext(records) == Stopped()


async def test_a_child_serves_one_order_after_another() -> None:
    async with started() as child, asyncio.timeout(30):
        for name in ("first", "second"):
            await child.order(Script([say("phase", name=name)]))
        async with aclosing(child.records()) as records:
            names = [await anext(records) for _ in range(3)][1:]

    assert names == [Phase(name="first"), Phase(name="second")]


@pytest.mark.parametrize(("refused", "error"), [(True, Refused), (False, Passing)])
async def test_every_record_before_the_final_one_is_passed_on(
    *, refused: bool, error: type[Exception]
) -> None:
    seen = []

    async def on_record(record: AnyRecord) -> None:
        seen.append(record)

    async with started() as child, asyncio.timeout(30):
        failed = say("given_up", refused=refused, reason="why")
        await child.order(Script([say("phase", name="loading"), failed]))
        last = await child.final_record(on_record)

    assert seen == [READY, Phase(name="loading")]
    assert isinstance(last, Failed)
    assert isinstance(last.error(), error)


async def test_a_child_dies_with_its_parent() -> None:
    code = (
        "import asyncio, os, signal\n"
        "from shared.child.parent import Child\n"
        "async def main():\n"
        f"    child = await Child.start({MODULE!r})\n"
        "    await anext(child.records())\n"
        "    print(child.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await parent.communicate()
    async with asyncio.timeout(30):
        while psutil.pid_exists(int(output)) and not _is_zombie(int(output)):
            await asyncio.sleep(0.01)


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("letter", ["x", "あ", "\x01", "😀"])
@pytest.mark.parametrize(
    "kind", [Failed(refused=True, reason=""), ImageFailed(index=1, seed=2**63, reason="")]
)
def test_a_reason_is_shortened_until_its_record_is_atomic(
    kind: Failed | ImageFailed, letter: str
) -> None:
    read_end, write_end = os.pipe()
    reason = reason_of(Refused(f"the first: {letter * 5000}: the last"))

    with os.fdopen(read_end, "rb") as reader, os.fdopen(write_end, "wb"):
        RecordWriter(write_end).write(replace(kind, reason=reason))
        line = os.read(reader.fileno(), 2 * RECORD_BYTES)

    assert 2000 < len(line) <= RECORD_BYTES
    told = msgspec.json.decode(line, type=type(kind)).reason
    assert told.startswith(f"the first: {letter}")
    assert told.endswith(f"{letter}: the last")


def test_a_record_that_would_not_be_atomic_is_our_mistake_and_raises() -> None:
    with pytest.raises(ValueError, match="a record of"):
        RecordWriter(0).write(Phase(name="x" * 5000))


FREES = """
import ctypes, resource, sys
from shared.child.process import give_freed_memory_back, keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

libc, size = ctypes.CDLL(None), 40 << 20
libc.malloc.restype = ctypes.c_void_p
if sys.argv[1] == "keeps":
    keep_freed_memory()
before = faults()
for _ in range(10):
    block = ctypes.c_void_p(libc.malloc(size))
    ctypes.memset(block, 1, size)
    libc.free(block)
print((faults() - before) * resource.getpagesize() // size)
kept = resident()
give_freed_memory_back()
print(kept - resident() > size // 2)
"""


@pytest.mark.parametrize(
    ("does", "times", "given_back"), [("keeps", 1, "True"), ("as before", 10, "False")]
)
def test_memory_that_was_freed_is_taken_again_without_the_system(
    does: str, times: int, given_back: str
) -> None:
    """A block of 40 MiB is taken ten times: the system gives it once, or each time."""
    said = subprocess.run(
        [sys.executable, "-c", FREES, does], capture_output=True, text=True, check=True
    ).stdout.split()

    assert said == [str(times), given_back]
