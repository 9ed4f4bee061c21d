"""The child process that fetches a model's files from the hub: one order, then the end.

``python -m services.fetcher.models.hub_child DESCRIPTOR PARENT``, started by
:func:`services.fetcher.models.hub.pull`. Only the files of a Stable Diffusion are fetched, or the
one of a LoRA.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from services.fetcher.model_files import (
    LORA_FILE,
    MAX_MODEL_BYTES,
    REQUIRED,
    SUFFIXES,
    TOKENIZER,
    WEIGHTS,
    lacks,
)
from services.fetcher.models.hub_order import MAIN_BRANCH, HubModel, HubOrder, cached_folder
from services.fetcher.models.hub_room import make_room
from shared.child.process import RecordWriter, begin, read_order
from shared.child.records import AnyRecord, Done, Failed, Progress
from shared.disk import SPARE, require_room
from shared.errors import Refused


class Listing(NamedTuple):
    """A repository's files."""

    bytes: dict[str, int]
    """By name."""
    commit: str | None = None


def main() -> None:
    """Run one order."""
    writer = begin()
    order: HubOrder = read_order(HubOrder)
    os.environ.update(order.environment)
    writer.write(_run(order, writer))


def _run(order: HubOrder, writer: RecordWriter) -> AnyRecord:
    # Both read the environment at import.
    from services.fetcher.models.hub_answers import (  # noqa: PLC0415
        AnswerTooLarge,
        bound_answers,
    )
    from services.fetcher.models.hub_errors import failed  # noqa: PLC0415

    bound_answers()
    try:
        return Done(summary=_fetched(order, writer))
    except (AnswerTooLarge, Refused) as error:
        return Failed(refused=True, reason=f"{order.model}: {error}")
    except Exception as error:  # noqa: BLE001 - the parent must learn of any error
        return failed(error, order.model)


def _fetched(order: HubOrder, writer: RecordWriter) -> dict[str, str]:
    """Where the model is, by the names that :func:`services.fetcher.models.hub.pull` reads."""
    listing, away = _listing(order)
    if (file := _single_file(order, listing)) is None:
        return {"folder": _snapshot(order, writer, listing, away)}
    name = _path_in_repository(order.model, file)
    return {"folder": str(_arrived(order, writer, listing, [name])), "file": file}


def _single_file(order: HubOrder, listing: Listing) -> str | None:
    """The file in the model's folder that is taken, if it may be one: a LoRA's, or the only one.

    None: it is to be a folder.
    """
    if not order.may_be_file:
        return None
    start = _path_in_repository(order.model, "")
    names = {name.removeprefix(start) for name in listing.bytes if name.startswith(start)}
    if not listing.bytes and (cached := cached_folder(order.model, Path(order.cache))):
        names = {path.name for path in cached.iterdir()}
    if "model_index.json" in names:
        return None
    files = [name for name in names if name.endswith(SUFFIXES[0]) and "/" not in name]
    return LORA_FILE if LORA_FILE in files else files[0] if len(files) == 1 else None


def _snapshot(
    order: HubOrder, writer: RecordWriter, listing: Listing, away: Exception | None
) -> str:
    """Fetch configurations and full-precision weights, or else half-precision weights.

    An order without weights gets the configurations alone. If the hub does not answer, its library
    returns what the cache has: a file that is missing there may be in the repository.
    """
    folder = Path()
    for suffix in SUFFIXES:
        weights = [stem + suffix for stem in WEIGHTS.values()] if order.weights else []
        weights = [_path_in_repository(order.model, name) for name in weights]
        configs = [_path_in_repository(order.model, name) for name in (*REQUIRED, *TOKENIZER)]
        folder = _arrived(order, writer, listing, [*configs, *weights])
        if all((folder / name).exists() for name in weights):
            break
    if away is not None and lacks(folder / (order.model.subfolder or ""), weights=order.weights):
        raise away
    return str(folder)


def _arrived(order: HubOrder, writer: RecordWriter, listing: Listing, names: list[str]) -> Path:
    """Fetch those of these files that there are; the repository's folder."""
    total = sum(listing.bytes.get(name, 0) for name in names)
    require_room_for(order, listing, names)
    writer.write(Progress(numbers={"bytes_total": total or None}))
    folder = Path(_fetch(order, names))
    expected = [name for name in names if name in listing.bytes]
    if missing := [name for name in expected if not (folder / name).exists()]:
        raise FileNotFoundError(f"{missing[0]} has not arrived")
    return folder


def require_room_for(order: HubOrder, listing: Listing, names: list[str]) -> None:
    """Check the size of these files, and make room for them, before any is fetched.

    Raises:
        Refused: it is more than is taken of a model.
        Full: the disk has no room for those that are not cached.
    """
    if (total := sum(listing.bytes.get(name, 0) for name in names)) > MAX_MODEL_BYTES:
        raise Refused(
            f"its files take {total / 1e9:.3g} GB; at most {MAX_MODEL_BYTES / 1e9:.3g} GB are taken"
        )
    cache, model = Path(order.cache), replace(order.model, revision=listing.commit, subfolder=None)
    cached = cached_folder(model, cache) or cache
    missing = sum(listing.bytes.get(name, 0) for name in names if not (cached / name).exists())
    if missing:
        make_room(cache, missing, order.kept)
        require_room(cache, missing + SPARE, "fetch it")


def _listing(order: HubOrder) -> tuple[Listing, Exception | None]:
    """The repository's files, and why they are not known, if they are not."""
    from httpx2 import HTTPError  # noqa: PLC0415 - the hub library's own
    from huggingface_hub import HfApi  # noqa: PLC0415 - it reads the environment

    try:
        info = HfApi(token=order.token or False).model_info(
            order.model.repository,
            revision=order.model.revision or MAIN_BRANCH,
            files_metadata=True,
        )
    except (HTTPError, OSError, ValueError) as error:  # ValueError: not a valid repository name
        return Listing({}), error
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    return Listing(sizes, info.sha), None


def _fetch(order: HubOrder, names: list[str]) -> str:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - it reads the environment

    return snapshot_download(
        order.model.repository,
        revision=order.model.revision,
        cache_dir=order.cache,
        token=order.token or False,
        allow_patterns=names,
    )


def _path_in_repository(model: HubModel, name: str) -> str:
    """A file's name in the repository."""
    return f"{model.subfolder}/{name}" if model.subfolder else name


if __name__ == "__main__":
    main()
