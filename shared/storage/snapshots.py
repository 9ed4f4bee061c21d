"""Where snapshots and samples of a training are stored.

A snapshot is pending from its upload until its row of samples is drawn or skipped. The trainer
counts the pending ones, the inferencer draws from them and removes them.
"""

from __future__ import annotations

import re

from msgspec import Struct

from shared.ports import ObjectStore
from shared.storage.manifest import MANIFEST


class Snapshot(Struct, frozen=True, kw_only=True):
    """A complete snapshot in the store."""

    prefix: str
    step: int
    epoch: int


def snapshots_of(job: str) -> str:
    """The prefix of all snapshots of a job."""
    return f"jobs/{job}/snapshots/"


def snapshot_prefix(job: str, attempt: int, *, step: int, epoch: int) -> str:
    """The prefix of one snapshot; each attempt has its own."""
    return f"{snapshots_of(job)}{attempt}/ep{epoch:02}-gs{step:05}"


async def waiting_snapshots(store: ObjectStore, job: str) -> list[Snapshot]:
    """The snapshots that wait to be drawn, oldest step first. Raises Unavailable."""
    pattern = re.compile(rf"(.*/ep(\d+)-gs(\d+))/{re.escape(MANIFEST)}")
    found = [pattern.fullmatch(entry.key) async for entry in store.list(snapshots_of(job))]
    snapshots = [
        Snapshot(prefix=each[1], epoch=int(each[2]), step=int(each[3])) for each in found if each
    ]
    return sorted(snapshots, key=lambda snapshot: snapshot.step)


def sample_key(job: str, *, step: int, index: int) -> str:
    """The key of a sample; drawn again, it replaces itself."""
    return f"jobs/{job}/samples/sample-gs{step:05}-{index:03}.png"


async def drawn_steps(store: ObjectStore, job: str) -> list[int]:
    """The steps that have samples, in order. Raises Unavailable."""
    pattern = re.compile(r".*/sample-gs(\d+)-\d+\.png")
    found = [pattern.fullmatch(entry.key) async for entry in store.list(f"jobs/{job}/samples/")]
    return sorted({int(each[1]) for each in found if each})
