"""Room in the hub library's cache: what was used last stays, and what is the deployment's."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path

import pytest

from services.fetcher.models import hub_room
from services.fetcher.models.hub_room import make_room
from shared.disk import SPARE

SIZE = 10_000
"""Of each revision's own file."""


def commit(letter: str) -> str:
    return letter * 40


def add(
    cache: Path, model: str, letter: str, hours_ago: float, *, branch: str = "", shared: int = 0
) -> Path:
    """A revision as the library keeps it, last used so long ago; its snapshot."""
    folder = cache / f"models--org--{model}"
    snapshot = folder / "snapshots" / commit(letter)
    for below in (folder / "blobs", folder / "refs", snapshot):
        below.mkdir(parents=True, exist_ok=True)
    for name, size in ((f"own-{letter}", SIZE), ("shared", shared)):
        if size:
            (folder / "blobs" / name).write_bytes(b"x" * size)
            (snapshot / name).symlink_to(f"../../blobs/{name}")
    if branch:
        (folder / "refs" / branch).write_text(commit(letter))
    moment = time.time() - 3600 * hours_ago
    os.utime(snapshot, (moment, moment))
    return snapshot


def left(*snapshots: Path) -> list[bool]:
    return [each.exists() for each in snapshots]


def room(cache: Path, revisions: float, kept: Collection[str] = (), needed: int = SIZE) -> None:
    """Make room for one more where so many revisions have room."""
    make_room(cache, needed, kept, max_bytes=int(revisions * SIZE))


def test_the_revisions_used_least_recently_go_as_far_as_room_is_needed(tmp_path: Path) -> None:
    revisions = [
        add(tmp_path, model, letter, hours)
        for model, letter, hours in (("a", "1", 5), ("a", "2", 2), ("b", "3", 4), ("c", "4", 3))
    ]

    room(tmp_path, 5.5)
    assert left(*revisions) == [True, True, True, True]
    room(tmp_path, 3.5)
    assert left(*revisions) == [False, True, False, True]
    assert (tmp_path / "models--org--a/blobs/own-2").exists()
    assert not (tmp_path / "models--org--b").exists()


def test_what_was_used_within_the_hour_stays_however_little_room_there_is(tmp_path: Path) -> None:
    used, old = add(tmp_path, "a", "1", 0.9), add(tmp_path, "a", "2", 1.1)

    room(tmp_path, 0)

    assert left(used, old) == [True, False]


def test_the_deployments_own_stay_but_not_other_revisions_of_them(tmp_path: Path) -> None:
    pinned, other = add(tmp_path, "own", "1", 90), add(tmp_path, "own", "2", 80)
    newest, before = add(tmp_path, "base", "3", 70, branch="main"), add(tmp_path, "base", "4", 60)
    kept = (f"models--org--own/snapshots/{commit('1')}", "models--org--base/refs/main")

    room(tmp_path, 0, kept)

    assert left(pinned, other, newest, before) == [True, False, True, False]


def test_a_model_that_is_being_fetched_stays(tmp_path: Path) -> None:
    fetched, other = add(tmp_path, "a", "1", 9), add(tmp_path, "b", "2", 8)
    (tmp_path / "models--org--a/blobs/large.incomplete").write_bytes(b"x")

    room(tmp_path, 0)

    assert left(fetched, other) == [True, False]


def test_a_full_disk_takes_the_room_of_models_that_nobody_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revisions = [add(tmp_path, "a", letter, hours) for letter, hours in (("1", 5), ("2", 4))]
    monkeypatch.setattr(hub_room, "free_bytes", lambda _cache: SPARE)

    room(tmp_path, 1000)

    assert left(*revisions) == [False, True]


def test_files_that_revisions_share_are_counted_once_and_stay_with_the_last(tmp_path: Path) -> None:
    first = add(tmp_path, "a", "1", 5, shared=5 * SIZE)
    second = add(tmp_path, "a", "2", 4, shared=5 * SIZE)

    room(tmp_path, 7.5)

    assert left(first, second) == [False, True]
    assert (tmp_path / "models--org--a/blobs/shared").exists()


def test_a_cache_that_is_not_there_yet_has_room(tmp_path: Path) -> None:
    room(tmp_path / "nothing", 0)
