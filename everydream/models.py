"""Downloads the base model in advance, so that no job waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from services.fetcher.models.configured_model import ConfiguredModel, ModelFolders, Pin
from services.fetcher.parser import Parser
from services.fetcher.progress_meter import ProgressMeter
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
