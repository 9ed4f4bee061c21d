"""Name a model on the hub, and fetch it by a child process.

The hub's library reads its settings at import and downloads in threads that cannot be stopped; a
child can be killed and has its own settings.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from services.fetcher.download import OnBytes
from services.fetcher.models.hub_order import HubModel, HubOrder, folder_of
from shared.child.parent import Child, ChildDied
from shared.child.records import AnyRecord, Done, Progress
from shared.errors import Passing, Refused

HUB_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
NAME = r"[A-Za-z0-9][\w.-]{0,95}"
HUB_ID = re.compile(rf"(?P<repository>{NAME}/{NAME})(@(?P<revision>[\w.-]{{1,100}}))?")
RENAMED = {"runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
"""Hub models by their former ids."""
POLL_SECONDS = 2.0
"""Between two measurements of how much has arrived."""
INHERITED_VARIABLES = re.compile(
    r"HF_(?!TOKEN)\w+|(https?|no|all)_proxy|SSL_CERT_\w+", re.IGNORECASE
)
"""Of the hub library and of HTTP; the token comes with those orders alone that may use it."""
LIBRARY_SETTINGS = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
}


def hub_model(text: str, subfolder: str | None = None) -> HubModel | None:
    """The model that a hub id or the URL of its page names; None: neither of the two.

    An id is ``org/name`` or ``org/name@revision``; a page is ``https://huggingface.co/org/name``,
    optionally with ``/tree/revision`` and a folder. ``subfolder`` overrides the page's folder. A
    model that was renamed there has its present name.

    Raises:
        Refused: the folder cannot be one.
    """
    page_folder = ""
    if (path := _hub_path(text)) is not None:
        text, page_folder = _parse_page(path)
    match = HUB_ID.fullmatch(text)
    if match is None:
        return None
    shown = "input.train.hf_repo_subfolder" if subfolder else "the page's folder"
    repository = match["repository"]
    return HubModel(
        repository=RENAMED.get(repository, repository),
        revision=match["revision"],
        subfolder=_subfolder(subfolder or page_folder, shown),
    )


def _hub_path(text: str) -> str | None:
    """The path of a hub URL, with or without ``https://``; None: not a hub URL."""
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
    except ValueError:
        return None
    is_hub = parts.scheme in ("http", "https") and parts.hostname in _hosts()
    return parts.path if is_hub else None


def file_url(url: str) -> str:
    """The download URL of a file; changes only the URL of a file's page on the hub."""
    parts = (_hub_path(url) or "").split("/")
    return url.replace("/blob/", "/resolve/", 1) if parts[3:4] == ["blob"] else url


def _subfolder(text: str, shown: str) -> str | None:
    parts = text.strip("/").split("/")
    if not all(re.fullmatch(NAME, part) for part in parts if text):
        raise Refused(f"{shown} is {text!r}; expected a folder such as v1/main")
    return "/".join(parts) or None


def _hosts() -> frozenset[str]:
    mirror = urlsplit(os.environ.get("HF_ENDPOINT", "")).hostname
    return HUB_HOSTS | {mirror} if mirror else HUB_HOSTS


def _parse_page(path: str) -> tuple[str, str]:
    """A page's hub id and folder; the path itself if it is not a model's page."""
    owner, name, *rest = [*path.strip("/").split("/"), ""]
    match [part for part in rest if part]:
        case []:
            return f"{owner}/{name}", ""
        case ["tree", revision, *folders]:
            return f"{owner}/{name}@{revision}", "/".join(folders)
    return path, ""


class Fetched(NamedTuple):
    """A hub model on the local disk."""

    folder: Path
    commit: str
    file: Path | None = None
    """The one that is the model; None: the folder is."""


async def pull(
    model: HubModel,
    cache: Path,
    *,
    token: str | None,
    on_bytes: OnBytes,
    weights: bool = True,
    may_be_file: bool = False,
    kept: Collection[str] = (),
) -> Fetched:
    """Fetch a model unless it is cached; its folder may lack files.

    Without ``weights`` only its configurations and its tokenizer; ``may_be_file``: a single file,
    where there is no folder of a model. Others in the cache that were
    used least recently may make room for it, but for those ``kept``: see
    :func:`.hub_room.make_room`.

    ``on_bytes`` hears of the progress, again whenever more has arrived.

    Raises:
        Refused: no such model or revision, or no access to it.
        Passing: the hub is unavailable and the model is not cached.
    """
    child = await Child.start("services.fetcher.models.hub_child")
    watcher = DownloadWatcher(cache / folder_of(model) / "blobs", on_bytes)
    watching = asyncio.create_task(watcher.run())
    try:
        await child.order(
            HubOrder(
                model=model,
                cache=str(cache),
                weights=weights,
                may_be_file=may_be_file,
                token=token,
                kept=tuple(kept),
                environment=_environment(),
            )
        )
        fetched = await _listen(child, model, watcher)
        await watcher.poll()
        return fetched
    finally:
        watching.cancel()
        await child.kill()


def _environment() -> dict[str, str]:
    inherited = {
        name: value for name, value in os.environ.items() if INHERITED_VARIABLES.fullmatch(name)
    }
    return inherited | LIBRARY_SETTINGS


async def _listen(child: Child, model: HubModel, watcher: DownloadWatcher) -> Fetched:
    async def on_record(record: AnyRecord) -> None:
        if isinstance(record, Progress):
            watcher.total = record.numbers["bytes_total"]

    try:
        last = await child.final_record(on_record)
    except ChildDied as error:
        raise Passing(f"fetching from the hub failed: {error}") from None
    if not isinstance(last, Done):
        raise last.error()
    folder = Path(last.summary["folder"])
    await asyncio.to_thread(os.utime, folder)  # it was used now
    file = last.summary.get("file")
    below = folder / (model.subfolder or "")
    return Fetched(below, folder.name, below / file if file else None)


class DownloadWatcher:
    """Watches a download's files grow, and reports it as a sign of life."""

    def __init__(self, folder: Path, on_bytes: OnBytes) -> None:
        self.total: int | None = None
        self._folder = folder
        self._on_bytes = on_bytes
        self._reported: tuple[int, int | None] | None = None

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            await self.poll()
            await asyncio.sleep(POLL_SECONDS)

    async def poll(self) -> None:
        """Report how much has arrived, if it has changed."""
        current = await asyncio.to_thread(_bytes_in, self._folder), self.total
        if current != self._reported:
            self._reported = current
            self._on_bytes(*current)


def _bytes_in(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        return sum(entry.stat().st_size for entry in entries)
