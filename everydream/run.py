"""Trains on a folder of photos: uploads, submits, watches, downloads the results."""

from __future__ import annotations

import asyncio
import json
import tomllib
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from everydream.client import Client, Rejected, with_retries
from everydream.photos import as_zip, upload
from everydream.showing import FOLDERS, path_of, show, summary
from services.gateway.web.authentication import CLIENT_FILE
from shared.errors import Refused, Unavailable
from shared.request import is_http_url
from shared.settings import Settings
from shared.storage.folders import sha256_of

TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=300)
"""In seconds. A transfer may take any time, but not stall."""
RESULTS = Path("everydream-results")
"""Holds a folder for each job."""


class Access(NamedTuple):
    """The gateway's URL, and a key for it."""

    url: str
    key: str


def access(url: str | None, key: str | None, settings: Settings) -> Access:
    """URL and key as given, or as the gateway's first start has written them to the home folder.

    The key written there is sent only to the gateway that it belongs to.

    Raises:
        Refused: there is no key.
    """
    kept = settings.home / CLIENT_FILE
    if key is None and url is None and kept.exists():
        stored = tomllib.loads(kept.read_text())
        return Access(str(stored["url"]), str(stored["key"]))
    if key is None:
        raise Refused(
            f"no key: give --key or EVERYDREAM_API_KEY (both are in {kept}, for no other URL)"
        )
    return Access((url or settings.public_url).rstrip("/"), key)


class JobSpec(NamedTuple):
    """What a job shall do."""

    data: str
    """A folder, a zip, or a URL."""
    config: Path | None = None
    """A JSON file: a whole ``input``, or its ``train``."""
    changes: Sequence[str] = ()
    """``name=value`` for fields of ``train``."""
    prompts: Sequence[str] = ()
    check: bool = False
    """Only report on the dataset."""

    def request(self, data_url: str) -> dict[str, Any]:
        """The body of ``/run``.

        Raises:
            Refused: the file or one of the changes is invalid.
        """
        given = self._read_config()
        inputs = given if "train" in given else {"train": given}
        changes = dict(change_in(text) for text in self.changes)
        train = {**inputs["train"], **changes, "data_url": data_url}
        entries = inputs.get("inference") or []
        entries = entries if isinstance(entries, list) else [entries]
        inference = [*entries, *({"prompt": prompt} for prompt in self.prompts)]
        return {"input": {**inputs, "train": train, "inference": inference}}

    def _read_config(self) -> dict[str, Any]:
        if self.config is None:
            return {}
        try:
            given = json.loads(self.config.read_text())
        except (OSError, ValueError) as error:
            raise Refused(f"{self.config}: {error}") from None
        if not isinstance(given, dict) or not isinstance(given.get("train", {}), dict):
            raise Refused(f"{self.config}: expected an object: a whole input, or its train")
        return given


def change_in(text: str) -> tuple[str, Any]:
    """A field and its value, which is JSON or else plain text. Raises Refused."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise Refused(f"--set {text}: expected name=value")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


@asynccontextmanager
async def client_of(gateway: Access) -> AsyncIterator[Client]:
    """A client of the gateway.

    Raises:
        Refused: the gateway rejects a request; names every mistake.
        Unavailable: it does not answer.
    """
    try:
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
            yield Client(session, gateway.url, gateway.key)
    except Rejected as error:
        raise Refused("\n  - ".join([f"{gateway.url} says:", *error.mistakes])) from None
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unavailable(f"{gateway.url}: {str(error) or 'no answer in time'}") from None


async def submit(gateway: Access, spec: JobSpec, console: Console) -> str:
    """Upload the data if necessary, submit the job, and return its id.

    Raises:
        Refused: the job is invalid, by our checks or the gateway's.
        Unavailable: the gateway does not answer.
    """
    spec.request("")  # before a long upload
    async with client_of(gateway) as client:
        request = spec.request(await data_url_of(client, spec.data, console))
        operation, once = "/dataset/check" if spec.check else "/run", str(uuid.uuid4())
        job = await with_retries(lambda: client.run(request, operation=operation, once=once))
    console.print(f"job {job}", highlight=False, soft_wrap=True)
    return job


async def data_url_of(client: Client, data: str, console: Console) -> str:
    """A URL as it is; that of a folder or zip once uploaded."""
    if urlsplit(data).scheme in ("http", "https") and is_http_url(data):
        return data
    with as_zip(Path(data)) as archive, bar(console, "upload", archive.stat().st_size) as on_bytes:
        return await upload(client, archive, on_bytes)


async def follow(gateway: Access, job: str, output: Path | None, console: Console) -> int:
    """Show a job until it ends and download its results; returns the command's exit status.

    Raises:
        Refused: there is no such job.
        Unavailable: the gateway does not answer.
    """
    results = Results(output or RESULTS / job, console)
    async with client_of(gateway) as client:

        async def on_status(status: dict[str, Any]) -> None:
            await results.keep_samples(client, status["output"] or {})

        try:
            status = await show(client, job, console, on_status)
            await results.keep(client, status)
        except asyncio.CancelledError:
            console.print(
                f"The job goes on. See it again: everydream follow {job}\n"
                f"Stop it: everydream cancel {job}",
                highlight=False,
                soft_wrap=True,
            )
            raise
    return 0 if status["status"] == "COMPLETED" else 1


async def cancel(gateway: Access, job: str) -> str:
    """Cancel a job; returns its status. Raises Refused or Unavailable."""
    async with client_of(gateway) as client:
        await client.cancel(job)
        return str((await client.status(job))["status"])


class Results:
    """The folder for a job's results."""

    def __init__(self, folder: Path, console: Console) -> None:
        self._folder = folder
        self._console = console

    async def keep_samples(self, client: Client, output: dict[str, Any]) -> None:
        """Download new samples and print where they are."""
        for sample in output.get("samples", ()):
            url, prompt = sample["image"], sample["prompt"]
            path = self._folder / FOLDERS["sample"] / urlsplit(url).path.rpartition("/")[2]
            if not path.exists():
                await with_retries(partial(client.download, url, path))
                self._print(f"{path}: {prompt}")

    async def keep(self, client: Client, status: dict[str, Any]) -> None:
        """Download every file of the result and write the final status beside them."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for artifact in (status["output"] or {}).get("artifacts", ()):
            await self._download(client, artifact)
        summary_file = self._folder / "summary.json"
        summary_file.write_text(json.dumps(status, indent=2) + "\n")
        self._print(outcome_of(status))
        self._print(f"see {self._folder}/")

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    async def _download(self, client: Client, artifact: dict[str, Any]) -> None:
        path, digest = path_of(artifact, self._folder), artifact["sha256"]
        if path.exists() and await sha256_of(path) == digest:
            return
        with bar(self._console, path.name, artifact["bytes"]) as on_bytes:
            await with_retries(
                lambda: client.download(artifact["url"], path, sha256=digest, on_bytes=on_bytes)
            )


def outcome_of(status: dict[str, Any]) -> str:
    """The job's outcome as text."""
    if status["status"] != "COMPLETED":
        return f"{status['status']}: {status.get('error') or 'it was stopped'}"
    if "train" in status["output"]:
        return summary(status)
    return json.dumps(status["output"]["dataset"], indent=2)


@contextmanager
def bar(console: Console, name: str, size: int) -> Iterator[Callable[[int], None]]:
    """A progress bar for a transfer of ``size`` bytes; yields the function that updates it."""
    columns = (TextColumn("{task.description:>12}"), BarColumn(), DownloadColumn(),
               TransferSpeedColumn())  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=size)
        yield lambda done: progress.update(task, completed=done)
