"""Fetch a model's files from the hub, in a child process that can be killed.

The hub's library reads its settings when it is imported and downloads in threads that cannot be
stopped; a child of its own solves both. Only the files that a Stable Diffusion needs are fetched.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from msgspec import Struct

from services.fetcher.models.diffusers_folder import NEEDED, SUFFIXES, TOKENIZER, WEIGHTS
from shared.child.parent import Child, ChildDied
from shared.child.process import RecordWriter, begin, read_order
from shared.child.records import AnyRecord, Done, Failed, Progress
from shared.errors import Passing, Refused, reason_of

HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
NAME = r"[A-Za-z0-9][\w.-]{0,95}"
HUB_ID = re.compile(rf"(?P<repository>{NAME}/{NAME})(@(?P<revision>[\w.-]{{1,100}}))?")
MAIN = "main"
"""The branch that is meant where none is named."""
LOOK_SECONDS = 2.0
"""Between two looks at how much has arrived."""
PASSED_ON = re.compile(r"(HF_|HUGGING_FACE_)\w+|(https?|no|all)_proxy|SSL_CERT_\w+", re.IGNORECASE)
QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
}


class HubModel(Struct, frozen=True, kw_only=True):
    """A model on the hub."""

    repository: str
    """``organisation/name``."""
    revision: str | None = None
    """A branch, tag or full commit; None: the main branch."""
    subfolder: str | None = None

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        below = f", folder {self.subfolder}" if self.subfolder else ""
        return f"{self.repository}{at}{below} on the hub"


class HubOrder(Struct, frozen=True, kw_only=True):
    """What the child is to do."""

    model: HubModel
    cache: str
    token: str | None
    environment: dict[str, str]


def hub_model(text: str, subfolder: str | None = None) -> HubModel | None:
    """The model that an id or the URL of a page names; None: it names none.

    An id is ``org/name`` or ``org/name@revision``; a page ``https://huggingface.co/org/name``, with
    ``/tree/revision`` and then a folder if need be. A ``subfolder`` wins over the page's.
    """
    below = ""
    if (path := _on_the_hub(text)) is not None:
        text, below = _page(path)
    found = HUB_ID.fullmatch(text)
    if found is None:
        return None
    called = "input.train.hf_repo_subfolder" if subfolder else "the page's folder"
    return HubModel(**found.groupdict(), subfolder=_subfolder(subfolder or below, called))


def _on_the_hub(text: str) -> str | None:
    """The path of a URL of the hub, whose ``https://`` may be missing; None: it is none."""
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
    except ValueError:
        return None
    is_ours = parts.scheme in ("http", "https") and parts.hostname in _hosts()
    return parts.path if is_ours else None


def file_url(url: str) -> str:
    """Where a file's bytes are, of which this may be the hub's page."""
    parts = (_on_the_hub(url) or "").split("/")
    return url.replace("/blob/", "/resolve/", 1) if parts[3:4] == ["blob"] else url


def _subfolder(text: str, called: str) -> str | None:
    parts = text.strip("/").split("/")
    if not all(re.fullmatch(NAME, part) for part in parts if text):
        raise Refused(f"{called} is {text!r}; expected a folder such as v1/main")
    return "/".join(parts) or None


def _hosts() -> frozenset[str]:
    ours = urlsplit(os.environ.get("HF_ENDPOINT", "")).hostname
    return HOSTS | {ours} if ours else HOSTS


def _page(path: str) -> tuple[str, str]:
    """The id and the folder that a page shows; the page of a single file is none of a model."""
    owner, name, *rest = [*path.strip("/").split("/"), ""]
    match [part for part in rest if part]:
        case []:
            return f"{owner}/{name}", ""
        case ["tree", revision, *folders]:
            return f"{owner}/{name}@{revision}", "/".join(folders)
    return path, ""


class Fetched(NamedTuple):
    """A model of the hub on the local disk."""

    folder: Path
    commit: str


async def pull(
    model: HubModel,
    cache: Path,
    *,
    token: str | None,
    keepalive: Callable[[int, int | None], None],
) -> Fetched:
    """The local folder of a model, fetched unless it is in the cache; it may lack files.

    ``keepalive`` is called with the bytes that have arrived, and those of the whole where they are
    known, whenever more have.

    Raises:
        Refused: no such model or revision, or not for us.
        Passing: the hub is away and the cache does not have it.
    """
    child = await Child.start("services.fetcher.models.hub")
    watch = Watch(cache / _folder(model) / "blobs", keepalive)
    watching = asyncio.create_task(watch.run())
    try:
        await child.order(_order(model, cache, token))
        fetched = await _listen(child, model, watch)
        await watch.look()
        return fetched
    finally:
        watching.cancel()
        await child.kill()


def _folder(model: HubModel) -> str:
    """The hub library's name for a model's folder in its cache."""
    return "models--" + model.repository.replace("/", "--")


def _order(model: HubModel, cache: Path, token: str | None) -> HubOrder:
    environment = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
    return HubOrder(model=model, cache=str(cache), token=token, environment=environment | QUIET)


async def _listen(child: Child, model: HubModel, watch: Watch) -> Fetched:
    async def on_record(record: AnyRecord) -> None:
        if isinstance(record, Progress):
            watch.total = record.numbers["bytes_total"]

    try:
        last = await child.last_word(on_record)
    except ChildDied as error:
        raise Passing(f"fetching from the hub failed: {error}") from None
    if not isinstance(last, Done):
        raise last.error()
    folder = Path(last.summary["folder"])
    return Fetched(folder / (model.subfolder or ""), folder.name)


class Watch:
    """Growing files are the sign that a download lives."""

    def __init__(self, folder: Path, keepalive: Callable[[int, int | None], None]) -> None:
        self.total: int | None = None
        self._folder = folder
        self._heard = keepalive
        self._before: tuple[int, int | None] | None = None

    async def run(self) -> None:
        """Look again and again."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Tell how much there is, if that is news."""
        now = await asyncio.to_thread(_bytes_in, self._folder), self.total
        if now != self._before:
            self._before = now
            self._heard(*now)


def _bytes_in(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        return sum(entry.stat().st_size for entry in entries)


# --- The child --------------------------------------------------------------------------------


def main() -> None:
    """Carry out one order."""
    writer = begin()
    order: HubOrder = read_order(HubOrder)
    os.environ.update(order.environment)
    writer.write(_carry_out(order, writer))


def _carry_out(order: HubOrder, writer: RecordWriter) -> AnyRecord:
    from huggingface_hub import errors  # noqa: PLC0415 - it reads the environment at import

    missing = (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.HFValidationError,
    )
    try:
        return Done(summary={"folder": _snapshot(order, writer)})
    except errors.GatedRepoError:
        reason = f"{order.model}: access must be asked for; use a model that is open to everybody"
        return Failed(refused=True, reason=reason)
    except missing:
        return Failed(refused=True, reason=f"{order.model}: no such model, or a private one")
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent must know
        return Failed(refused=False, reason=f"{order.model}: {reason_of(error)}")


def _snapshot(order: HubOrder, writer: RecordWriter) -> str:
    """Configurations and the plain weights; the half-precision ones where there are no others."""
    folder = ""
    for suffix in SUFFIXES:
        weights = [stem + suffix for stem in WEIGHTS.values()]
        patterns = [*NEEDED, *TOKENIZER, *weights]
        writer.write(Progress(numbers={"bytes_total": _size(order, patterns)}))
        folder = _fetch(order, patterns)
        below = Path(folder) / (order.model.subfolder or "")
        if all((below / name).exists() for name in weights):
            break
    return folder


def _size(order: HubOrder, patterns: list[str]) -> int | None:
    """Bytes of all that is to be had; None: the hub does not say, and the download tells why."""
    from httpx2 import HTTPError  # noqa: PLC0415 - the hub library's own
    from huggingface_hub import HfApi  # noqa: PLC0415 - it reads the environment

    wanted = {_below(order.model, pattern) for pattern in patterns}
    try:
        info = HfApi(token=order.token or False).model_info(
            order.model.repository, revision=order.model.revision or MAIN, files_metadata=True
        )
    except (HTTPError, OSError, ValueError):  # the last: a name that can be none
        return None
    files = info.siblings or []
    return sum(file.size or 0 for file in files if file.rfilename in wanted) or None


def _fetch(order: HubOrder, patterns: list[str]) -> str:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - it reads the environment

    return snapshot_download(
        order.model.repository,
        revision=order.model.revision,
        cache_dir=order.cache,
        token=order.token or False,
        allow_patterns=[_below(order.model, pattern) for pattern in patterns],
    )


def _below(model: HubModel, name: str) -> str:
    """A file's name in the repository."""
    return f"{model.subfolder}/{name}" if model.subfolder else name


if __name__ == "__main__":
    main()
