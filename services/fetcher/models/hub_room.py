"""Make room in the hub library's cache: what was used last stays, and what is the deployment's."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from shared.disk import CACHE_BYTES, KEPT_SECONDS, SPARE, free_bytes


def make_room(
    cache: Path, needed: int, kept: Collection[str], *, max_bytes: int = CACHE_BYTES
) -> None:
    """Delete the least recently used revisions until ``needed`` bytes more have room.

    There is room if the cache has no more than ``max_bytes`` then, and the disk keeps some free. A
    revision that was used within the past hour stays, and so do those of a repository that is
    being fetched.

    Args:
        cache: of the hub's library.
        needed: bytes.
        kept: what stays in any case, below ``cache``: ``models--org--name/snapshots/COMMIT``, or
            ``models--org--name/refs/BRANCH``.
        max_bytes: of the whole cache.
    """
    from huggingface_hub import scan_cache_dir  # noqa: PLC0415 - it reads the environment

    if not cache.is_dir():
        return
    found = scan_cache_dir(cache)
    missing = max(found.size_on_disk + needed - max_bytes, needed + SPARE - free_bytes(cache))
    gone: list[str] = []
    for used_at, commit in sorted(_unused(found, kept)):
        if found.delete_revisions(*gone).expected_freed_size >= missing:
            break
        if time.time() - used_at > KEPT_SECONDS:
            gone.append(commit)
    found.delete_revisions(*gone).execute()


def _unused(found: Any, kept: Collection[str]) -> list[tuple[float, str]]:
    """When each revision was last used that may go, and its commit."""
    revisions = []
    for repository in found.repos:
        if _is_being_fetched(repository.repo_path):
            continue
        for each in repository.revisions:
            names = (f"snapshots/{each.commit_hash}", *(f"refs/{ref}" for ref in each.refs))
            if not {f"{repository.repo_path.name}/{name}" for name in names} & {*kept}:
                revisions.append((each.snapshot_path.stat().st_mtime, each.commit_hash))
    return revisions


def _is_being_fetched(repository: Path) -> bool:
    """Whether bytes have arrived of late."""
    parts = repository.glob("blobs/*.incomplete")
    return any(time.time() - part.stat().st_mtime < KEPT_SECONDS for part in parts)
