"""Downloads the files of a job."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from everydream.client import Client, is_temporary, why_unanswered, with_retries
from everydream.outcome import reason_of
from everydream.terminal.display import Display
from everydream.terminal.words import fit, plain
from shared.errors import Refused
from shared.storage.folders import sha256_of

RESULTS = Path("everydream-results")
"""Holds a folder for each job."""
FOLDERS = {"image": "images", "sample": "samples"}
"""Subfolders for kinds of artifacts; others lie beside the summary."""
NAME_WIDTH = 40
SUMMARY = "summary.json"


class Results:
    """The folder for a job's results; a file that cannot be had is said, and holds up no other.

    Args:
        folder: need not be there yet.
        display: where files are said.
        is_own: no other job's files are in it.
    """

    def __init__(self, folder: Path, display: Display, *, is_own: bool) -> None:
        self.folder = folder
        self.lost: list[str] = []
        """Names of the files that could not be fetched or written."""
        self._display = display
        self._is_own = is_own
        self._tried: set[str] = set()
        """Names of samples; each is said once."""
        self._failing: set[str] = set()
        """Hosts that have failed every retry: the next file is asked for once."""

    def say_whose(self, job: str) -> None:
        """Warn of another job's results in the folder."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            other = json.loads((self.folder / SUMMARY).read_text(encoding="utf-8"))["id"]
            if other != job:
                self._display.say(
                    f"warning: {self.folder} has the results of job {other}: files with the same"
                    " names are replaced"
                )

    async def keep_samples(self, client: Client, output: dict[str, Any]) -> list[dict[str, Any]]:
        """Download new samples and say where they are, or that one could not be had.

        That is tried again with the other results when the job has ended. Returns all that are
        there, as artifacts.
        """
        names = []
        for sample in output.get("samples", ()):
            url, prompt = sample["image"], sample["prompt"]
            path = self.folder / FOLDERS["sample"] / urlsplit(url).path.rpartition("/")[2]
            names.append(path.name)
            if path.name in self._tried:
                continue
            self._tried.add(path.name)
            if self._is_own and path.exists():
                continue
            if await self._is_had(path, url, partial(client.download, url, path)):
                self._display.say(f"sample saved at {path}: {prompt}")
                self._display.picture(path)
        return [{"kind": "sample"} for name in names if name not in self.lost]

    async def keep(self, client: Client, status: dict[str, Any]) -> list[dict[str, Any]]:
        """Download every file of the result and write the status beside them.

        Returns the artifacts that are there.
        """
        self._tried -= {*self.lost}
        self.lost.clear()
        output = status.get("output") or {}
        there = [
            artifact
            for artifact in output.get("artifacts", ())
            if await self._is_had(
                path_of(artifact, self.folder),
                artifact["url"],
                partial(self._download, client, artifact),
            )
        ]
        if not output.get("artifacts"):
            there = await self.keep_samples(client, output)
        self._write_summary(status)
        return there

    async def _is_had(self, path: Path, url: str, fetch: Callable[[], Awaitable[None]]) -> bool:
        """Fetch a file; if it cannot be had, say why."""
        try:
            await fetch()
        except (aiohttp.ClientError, TimeoutError) as error:
            host = urlsplit(url).netloc
            self._lose(path.name, f"was not fetched from {host}: {why_unanswered(error)}")
        except OSError as error:
            self._lose(path.name, f"was not written: {reason_of(error)}")
        else:
            return True
        return False

    def _lose(self, name: str, reason: str) -> None:
        self.lost.append(name)
        self._display.say(f"warning: {name} {reason}")

    async def _download(self, client: Client, artifact: dict[str, Any]) -> None:
        path, digest, url = path_of(artifact, self.folder), artifact["sha256"], artifact["url"]
        if path.exists() and await sha256_of(path) == digest:
            return
        heading = f"fetching {fit(plain(path.name), NAME_WIDTH)}"
        with self._display.transfer(heading, artifact["bytes"]) as on_bytes:
            download = partial(client.download, url, path, sha256=digest, on_bytes=on_bytes)
            if (host := urlsplit(url).netloc) in self._failing:
                await download()
                return
            try:
                await with_retries(download)
            except (aiohttp.ClientError, TimeoutError) as error:
                self._failing |= {host} if is_temporary(error) else set()
                raise

    def _write_summary(self, status: dict[str, Any]) -> None:
        text = json.dumps(status, indent=2, ensure_ascii=False)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / SUMMARY).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            self._lose(SUMMARY, f"was not written: {reason_of(error)}")


def path_of(artifact: dict[str, Any], output: Path) -> Path:
    """Where an artifact is saved."""
    name = str(artifact["name"]).rsplit("/", 1)[-1]
    return output / FOLDERS.get(artifact["kind"], "") / name


def check_writable(folder: Path) -> None:
    """Find out whether results can be written, before there are any; makes no folder.

    Raises:
        Refused: they cannot.
    """
    try:
        existing = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(existing))
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise Refused(
            f"results cannot be written: {reason_of(error)}; give another folder by --output"
        ) from None
