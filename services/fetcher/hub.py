"""Fetch a model's files from the hub, in a child process that can be killed.

The hub's library reads its settings when it is imported and downloads in threads that cannot be
stopped; a child of its own solves both. Only the files that a Stable Diffusion needs are fetched.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import Struct

from services.fetcher.diffusers_folder import NEEDED, SUFFIXES, TOKENIZER, WEIGHTS
from shared.child import AnyRecord, Child, ChildDied, Done, GivenUp, begin, read_order, shorten
from shared.errors import Passing, Refused

HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
NAME = r"[A-Za-z0-9][\w.-]{0,95}"
HUB_ID = re.compile(rf"(?P<repository>{NAME}/{NAME})(@(?P<revision>[\w.-]{{1,100}}))?")
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
    """The model that an id or the URL of a page names: ``org/name``, ``org/name@revision``,
    ``https://huggingface.co/org/name`` or ``…/tree/revision``; None: it names none.
    """  # noqa: D205 - one list
    parts = urlsplit(text)
    if parts.scheme in ("http", "https") and parts.hostname in _hosts():
        repository, _, rest = _page(parts.path)
        text = f"{repository}@{rest}" if rest else repository
    found = HUB_ID.fullmatch(text)
    return HubModel(**found.groupdict(), subfolder=_subfolder(subfolder)) if found else None


def _subfolder(text: str | None) -> str | None:
    parts = (text or "").strip("/").split("/")
    if not all(re.fullmatch(NAME, part) for part in parts if text):
        raise Refused(
            f"input.train.hf_repo_subfolder is {text!r}; expected a folder such as v1/main"
        )
    return "/".join(parts) or None


def _hosts() -> frozenset[str | None]:
    return HOSTS | {urlsplit(os.environ.get("HF_ENDPOINT", "")).hostname}


def _page(path: str) -> tuple[str, str, str]:
    """A page's repository and revision; the page of a single file is none of a model."""
    parts = path.strip("/").split("/")
    repository, rest = "/".join(parts[:2]), parts[2:]
    if rest[:1] == ["tree"] and len(rest) == 2:  # noqa: PLR2004 - tree/revision
        return repository, "tree", rest[1]
    return ("/".join(parts) if rest else repository), "", ""


async def pull(
    model: HubModel, cache: Path, *, token: str | None, heard: Callable[[int], None]
) -> Path:
    """The local folder of a model, fetched unless it is in the cache; it may lack files.

    ``heard`` is called with the bytes that have arrived, whenever more have.

    Raises:
        Refused: no such model or revision, or not for us.
        Passing: the hub is away and the cache does not have it.
    """
    child = await Child.start("services.fetcher.hub")
    watching = asyncio.create_task(_watch(cache / _folder(model), heard))
    try:
        await child.order(_order(model, cache, token))
        return _result(model, await _last_word(child))
    finally:
        watching.cancel()
        await child.kill()


def _folder(model: HubModel) -> str:
    """The hub library's name for a model's folder in its cache."""
    return "models--" + model.repository.replace("/", "--")


def _order(model: HubModel, cache: Path, token: str | None) -> HubOrder:
    environment = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
    return HubOrder(model=model, cache=str(cache), token=token, environment=environment | QUIET)


async def _last_word(child: Child) -> AnyRecord:
    try:
        async with aclosing(child.records()) as records:
            return await anext(records)
    except ChildDied as error:
        raise Passing(f"fetching from the hub failed: {error}") from None


def _result(model: HubModel, record: AnyRecord) -> Path:
    match record:
        case Done(summary={"folder": folder}):
            return Path(folder) / (model.subfolder or "")
        case GivenUp(refused=True, reason=reason):
            raise Refused(reason)
        case GivenUp(reason=reason):
            raise Passing(reason)
    raise Passing(f"the hub's child said {type(record).__name__}")


async def _watch(folder: Path, heard: Callable[[int], None]) -> None:
    """Growing files are the sign that a download lives."""
    before = None
    while True:
        now = await asyncio.to_thread(_bytes_in, folder / "blobs")
        if now != before:
            heard(now)
        before = now
        await asyncio.sleep(LOOK_SECONDS)


def _bytes_in(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        return sum(entry.stat().st_size for entry in entries)


# --- The child --------------------------------------------------------------------------------


def main() -> None:
    """Carry out one order."""
    mouth = begin()
    order: HubOrder = read_order(HubOrder)
    os.environ.update(order.environment)
    mouth.say(_carry_out(order))


def _carry_out(order: HubOrder) -> AnyRecord:
    from huggingface_hub import errors  # noqa: PLC0415 - it reads the environment at import

    missing = (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.HFValidationError,
    )
    try:
        return Done(summary={"folder": _snapshot(order)})
    except errors.GatedRepoError:
        reason = f"{order.model}: access must be asked for; use a model that is open to everybody"
        return GivenUp(refused=True, reason=reason)
    except missing:
        return GivenUp(refused=True, reason=f"{order.model}: no such model, or a private one")
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent must know
        reason = f"{order.model}: {type(error).__name__}: {error}"
        return GivenUp(refused=False, reason=shorten(reason, 1000))


def _snapshot(order: HubOrder) -> str:
    """Configurations and the plain weights; the half-precision ones where there are no others."""
    folder = ""
    for suffix in SUFFIXES:
        weights = [stem + suffix for stem in WEIGHTS.values()]
        folder = _fetch(order, [*NEEDED, *TOKENIZER, *weights])
        below = Path(folder) / (order.model.subfolder or "")
        if all((below / name).exists() for name in weights):
            break
    return folder


def _fetch(order: HubOrder, patterns: list[str]) -> str:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - it reads the environment

    prefix = f"{order.model.subfolder}/" if order.model.subfolder else ""
    return snapshot_download(
        order.model.repository,
        revision=order.model.revision,
        cache_dir=order.cache,
        token=order.token or False,
        allow_patterns=[prefix + pattern for pattern in patterns],
    )


if __name__ == "__main__":
    main()
