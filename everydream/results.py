"""Downloads the files of a job."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from everydream.client import Client, why_unanswered, with_retries
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
    """The folder for a job's results."""

    def __init__(self, folder: Path, display: Display) -> None:
        self.folder = folder
        self._display = display
        self._failed: set[str] = set()
        """Samples whose download has failed; said once."""

    async def keep_samples(self, client: Client, output: dict[str, Any]) -> list[dict[str, Any]]:
        """Download new samples and say where they are, or that one could not be had.

        That is tried again with the other results when the job has ended. Returns all that are
        there, as artifacts.
        """
        for sample in output.get("samples", ()):
            url, prompt = sample["image"], sample["prompt"]
            path = self.folder / FOLDERS["sample"] / urlsplit(url).path.rpartition("/")[2]
            if path.exists() or path.name in self._failed:
                continue
            try:
                await client.download(url, path)
                self._display.say(f"sample saved at {path}: {prompt}")
                self._display.picture(path)
            except (aiohttp.ClientError, TimeoutError) as error:
                self._failed.add(path.name)
                reason = why_unanswered(error)
                self._display.say(f"warning: sample {path.name} was not fetched: {reason}")
        there: dict[str, Any] = {"kind": "sample"}
        return [there] * (len(output.get("samples", ())) - len(self._failed))

    async def keep(self, client: Client, status: dict[str, Any]) -> list[dict[str, Any]]:
        """Download every file of the result and write the status beside them.

        Returns the artifacts that are there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        output = status.get("output") or {}
        artifacts = [*output.get("artifacts", ())]
        for artifact in artifacts:
            await self._download(client, artifact)
        if not artifacts:
            artifacts = await self.keep_samples(client, output)
        text = json.dumps(status, indent=2, ensure_ascii=False)
        (self.folder / SUMMARY).write_text(text + "\n", encoding="utf-8")
        return artifacts

    async def _download(self, client: Client, artifact: dict[str, Any]) -> None:
        path, digest = path_of(artifact, self.folder), artifact["sha256"]
        if path.exists() and await sha256_of(path) == digest:
            return
        heading = f"fetching {fit(plain(path.name), NAME_WIDTH)}"
        with self._display.transfer(heading, artifact["bytes"]) as on_bytes:
            download = partial(
                client.download, artifact["url"], path, sha256=digest, on_bytes=on_bytes
            )
            await with_retries(download)


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
