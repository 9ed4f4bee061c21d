"""A model on the hub, where its files are cached, and the order to the child that fetches them.

The child imports this: little else is, so that it starts soon.
"""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

MAIN_BRANCH = "main"
"""The default branch."""


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
    """The child's order: fetch one model."""

    model: HubModel
    cache: str
    weights: bool
    """False: only configurations and tokenizer."""
    may_be_file: bool = False
    """Whether a file is taken where there is no folder of a model, as of a LoRA."""
    token: str | None
    kept: tuple[str, ...]
    """The deployment's own models, which make no room: see :func:`.hub_room.make_room`."""
    environment: dict[str, str]


def cached_folder(model: HubModel, cache: Path) -> Path | None:
    """Where the hub's library keeps a model that it has fetched, perhaps in part; None: nowhere."""
    kept, revision = cache / folder_of(model), model.revision or MAIN_BRANCH
    ref = kept / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    folder = kept / "snapshots" / commit / (model.subfolder or "")
    return folder if folder.is_dir() else None


def folder_of(model: HubModel) -> str:
    """The hub library's name for a model's folder in its cache."""
    return "models--" + model.repository.replace("/", "--")
