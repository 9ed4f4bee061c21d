"""Folders for one piece of work: gone with it, and not lost to others."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from shared import scratch
from shared.scratch import (
    LEFTOVER_SECONDS,
    locked_folder,
    remove_abandoned,
    remove_old,
    scratch_folder,
)

SECONDS = 30
HOLDER = """
import sys, time
from pathlib import Path
from shared.scratch import locked_folder
with locked_folder(Path(sys.argv[1]), "job") as folder:
    (folder / "file").write_bytes(b"x")
    print(folder, flush=True)
    time.sleep(60)
"""


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_a_folder_is_new_and_empty_and_gone_after_the_block(tmp_path: Path) -> None:
    parent = tmp_path / "s"
    async with scratch_folder(parent, "job") as one, scratch_folder(parent, "job") as two:
        assert one != two
        (one / "sub").mkdir()
        (one / "sub" / "file").write_bytes(b"x")
        assert [path for path in two.iterdir() if path.name != scratch.LOCK] == []
    assert names_in(parent) == []


def test_a_killed_process_s_folder_is_removed_and_a_live_one_s_is_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        theirs = Path(holder.stdout.readline().strip())
        with locked_folder(tmp_path, "ours") as ours:
            remove_abandoned(tmp_path)
            assert (theirs / "file").exists()
            holder.send_signal(signal.SIGKILL)
            holder.wait(SECONDS)
            remove_abandoned(tmp_path)
            assert names_in(tmp_path) == [ours.name]


def test_a_folder_whose_removal_was_cut_short_is_removed(tmp_path: Path) -> None:
    with locked_folder(tmp_path, "job") as folder:
        kept = shutil.copytree(folder, tmp_path / f"{scratch.PREFIX}other")
        (kept / scratch.LOCK).unlink()
    remove_abandoned(tmp_path)
    assert names_in(tmp_path) == []


def test_what_has_no_lock_is_left_alone_until_nothing_in_it_changed_for_a_day(
    tmp_path: Path,
) -> None:
    past = time.time() - LEFTOVER_SECONDS - 60
    for name in ("job-training-1", "job-training-2"):
        (tmp_path / name / "out").mkdir(parents=True)
        (tmp_path / name / "out" / "metrics").write_bytes(b"x")
        for path in (tmp_path / name / "out", tmp_path / name):
            os.utime(path, (past, past))
    os.utime(tmp_path / "job-training-1" / "out" / "metrics", (past, past))
    (tmp_path / "file").touch()
    os.utime(tmp_path / "file", (past, past))
    with locked_folder(tmp_path, "old") as ours:
        for path in (ours / scratch.LOCK, ours):
            os.utime(path, (past, past))
        remove_abandoned(tmp_path)
        remove_old(tmp_path)
        assert names_in(tmp_path) == [ours.name, "job-training-2"]


async def test_neither_one_cancellation_nor_another_leaves_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, removing, go_on = asyncio.Event(), threading.Event(), threading.Event()
    remove = shutil.rmtree

    def slowly(*arguments: object, **options: object) -> None:
        removing.set()
        go_on.wait(SECONDS)
        remove(*arguments, **options)  # type: ignore[arg-type]

    async def work() -> None:
        async with scratch_folder(tmp_path, "job") as folder:
            (folder / "file").write_bytes(b"x")
            begun.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(shutil, "rmtree", slowly)
    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    await asyncio.to_thread(removing.wait, SECONDS)
    task.cancel()
    await asyncio.wait((task,), timeout=0.05)
    assert not task.done()
    go_on.set()
    await asyncio.wait((task,), timeout=SECONDS)
    assert task.cancelled()
    assert names_in(tmp_path) == []
