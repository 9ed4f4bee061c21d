"""The base models of this machine; one is fetched in advance, so that no job waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from everydream.terminal.display import print_table
from everydream.terminal.words import size
from services.fetcher.models.base_setting import check_base_model
from services.fetcher.models.configured_model import (
    TINY,
    ConfiguredModel,
    ModelFolders,
    Pin,
    locate,
    read_pins,
)
from services.fetcher.parser import Parser
from services.fetcher.progress_meter import ProgressMeter
from shared.errors import SettingsError
from shared.service_process import closing
from shared.settings import Settings


async def pull_model(
    settings: Settings, name: str | None, revision: str | None, console: Console
) -> Pin:
    """Download a model from the hub into the home folder and pin its commit there.

    Raises:
        Refused: there is no such model or revision, or it cannot be trained.
        Passing: the hub does not answer.
        SettingsError: it is not a model of the hub, so there is nothing to pull.
    """
    configured = name or settings.base_model
    model = ConfiguredModel(configured, settings.home, ModelFolders())
    async with closing(Parser(settings.scratch)) as parser, parser.reader() as reader:
        with _progress_bar(configured, console) as meter:
            pin = await model.pull(revision, meter, reader)
    console.print(f"{configured} is commit {pin.commit} from now on,", soft_wrap=True)
    console.print(f"in {settings.home / pin.folder}", soft_wrap=True)
    if configured != settings.base_model:
        console.print(f"It is used with EVERYDREAM_BASE_MODEL={configured}", soft_wrap=True)
    return pin


@contextmanager
def _progress_bar(name: str, console: Console) -> Iterator[ProgressMeter]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
               TransferSpeedColumn())  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"pulling {name}", total=None)

        def update(**numbers: Any) -> None:
            progress.update(task, completed=numbers["bytes"], total=numbers["bytes_total"])

        yield ProgressMeter("pulling", update, lambda: None)


class ModelState(NamedTuple):
    """Whether the base model is on this machine."""

    present: bool
    text: str
    mend: str = ""
    """What to do if it is not."""
    wrong: bool = False
    """Whether no job can be trained before that is done."""


def base_model_state(settings: Settings) -> ModelState:
    """Whether the configured base model is here, and how large; the hub is not asked."""
    if settings.base_model == TINY:
        return ModelState(present=True, text="comes with the project, for trying things only")
    try:
        check_base_model(settings)
        path, model, pin = locate(settings.base_model, settings.home)
    except SettingsError as error:
        text = error.reason if error.mend else "no model"
        return ModelState(present=False, text=text, mend=error.mend or str(error), wrong=True)
    if path is None:
        return ModelState(
            present=False,
            text="not on this machine",
            mend="the first job fetches the base model from the hub, which is several gigabytes;"
            " `everydream models pull` fetches it now",
        )
    pinned = f", commit {pin.commit[:12]}" if pin else ", not pinned" if model else ""
    return ModelState(present=True, text=f"here, {size(_bytes_in(path))}{pinned}")


def models_here(settings: Settings) -> list[dict[str, Any]]:
    """The models of this machine: name, commit, folder, bytes, and whether training starts there.

    Raises:
        SettingsError: the setting names no model; or the file with the pins is damaged.
    """
    names = dict.fromkeys((TINY, *read_pins(settings.home), settings.base_model))
    found = {name: locate(name, settings.home) for name in names}
    return [
        {
            "name": name,
            "commit": pin.commit if pin else None,
            "folder": str(settings.home / pin.folder if pin else path),
            "bytes": _bytes_in(path) if path else None,
            "is_base_model": name == settings.base_model,
        }
        for name, (path, _, pin) in found.items()
        if path or pin
    ]


def print_models(console: Console, models: list[dict[str, Any]]) -> None:
    """Print a table of models."""
    rows = [
        (
            model["name"],
            (model["commit"] or "")[:12],
            "not there" if model["bytes"] is None else size(model["bytes"]),
            "training starts here" if model["is_base_model"] else "",
        )
        for model in models
    ]
    print_table(console, ("model", "commit", "size", ""), rows)
    if not any(model["is_base_model"] and model["bytes"] is not None for model in models):
        console.print("The base model is not here: everydream models pull")


def _bytes_in(folder: Path) -> int:
    """Bytes of all files, each once though it may be linked."""
    if folder.is_file():
        return folder.stat().st_size
    files = {path.resolve() for path in folder.rglob("*") if path.is_file()}
    return sum(path.stat().st_size for path in files)
