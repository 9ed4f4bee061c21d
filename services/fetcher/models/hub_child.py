"""The child process that fetches a model's files from the hub: one order, then the end.

``python -m services.fetcher.models.hub_child DESCRIPTOR PARENT``, started by
:func:`services.fetcher.models.hub.pull`. Only the files of a Stable Diffusion are fetched.
"""

from __future__ import annotations

import os
from pathlib import Path

from services.fetcher.model_files import REQUIRED, SUFFIXES, TOKENIZER, WEIGHTS
from services.fetcher.models.hub import HubModel, HubOrder
from shared.child.process import RecordWriter, begin, read_order
from shared.child.records import AnyRecord, Done, Failed, Progress
from shared.errors import reason_of

MAIN_BRANCH = "main"
"""The default branch."""


def main() -> None:
    """Run one order."""
    writer = begin()
    order: HubOrder = read_order(HubOrder)
    os.environ.update(order.environment)
    writer.write(_run(order, writer))


def _run(order: HubOrder, writer: RecordWriter) -> AnyRecord:
    from huggingface_hub import errors  # noqa: PLC0415 - it reads the environment at import

    from services.fetcher.models.hub_answers import (  # noqa: PLC0415 - likewise
        AnswerTooLarge,
        bound_answers,
    )

    bound_answers()
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
    except AnswerTooLarge as error:
        return Failed(refused=True, reason=f"{order.model}: {error}")
    except Exception as error:  # noqa: BLE001 - the parent must learn of any error
        return Failed(refused=False, reason=f"{order.model}: {reason_of(error)}")


def _snapshot(order: HubOrder, writer: RecordWriter) -> str:
    """Fetch configurations and full-precision weights, or else half-precision weights."""
    folder = ""
    for suffix in SUFFIXES:
        weights = [stem + suffix for stem in WEIGHTS.values()]
        patterns = [*REQUIRED, *TOKENIZER, *weights]
        writer.write(Progress(numbers={"bytes_total": _total_bytes(order, patterns)}))
        folder = _fetch(order, patterns)
        model_folder = Path(folder) / (order.model.subfolder or "")
        if all((model_folder / name).exists() for name in weights):
            break
    return folder


def _total_bytes(order: HubOrder, patterns: list[str]) -> int | None:
    """Total size of the files; None: the hub does not answer, and the download will say why."""
    from httpx2 import HTTPError  # noqa: PLC0415 - the hub library's own
    from huggingface_hub import HfApi  # noqa: PLC0415 - it reads the environment

    wanted = {_path_in_repository(order.model, pattern) for pattern in patterns}
    try:
        info = HfApi(token=order.token or False).model_info(
            order.model.repository,
            revision=order.model.revision or MAIN_BRANCH,
            files_metadata=True,
        )
    except (HTTPError, OSError, ValueError):  # ValueError: not a valid repository name
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
        allow_patterns=[_path_in_repository(order.model, pattern) for pattern in patterns],
    )


def _path_in_repository(model: HubModel, name: str) -> str:
    """A file's name in the repository."""
    return f"{model.subfolder}/{name}" if model.subfolder else name


if __name__ == "__main__":
    main()
