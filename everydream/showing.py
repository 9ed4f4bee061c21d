"""Shows a job on the terminal, and says where its results go."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from everydream.client import Client

FOLDERS = {"image": "images", "sample": "samples"}
"""Subfolders for kinds of artifacts; others lie beside the summary."""
PRINT_SECONDS = 5.0
"""Between two lines of progress if the output is not a terminal."""


async def _ignore_status(_status: dict[str, Any]) -> None:
    """Ignore a status."""


async def show(
    client: Client,
    job: str,
    console: Console,
    on_status: Callable[[dict[str, Any]], Awaitable[None]] = _ignore_status,
) -> dict[str, Any]:
    """Show the job's progress until it ends; returns its final status.

    ``on_status`` gets every status, the final one too.
    """
    columns = (
        TextColumn("{task.description:>12}"),
        BarColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
    )
    status: dict[str, Any] = {}
    last_print = 0.0
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("waiting", total=None, numbers="")
        async for status in client.follow(job):
            _update(progress, task, status["output"] or {})
            await on_status(status)
            if not console.is_terminal and time.monotonic() - last_print > PRINT_SECONDS:
                last_print = time.monotonic()
                shown = progress.tasks[0]
                console.print(f"{shown.description}: {shown.fields['numbers']}")
    return status


def _update(progress: Progress, task: TaskID, output: dict[str, Any]) -> None:
    if "stage" not in output:
        return
    numbers = [
        f"step {output['step']}/{output['steps']}" if output.get("steps") else "",
        f"loss {output['loss']:.4f}" if output.get("loss") is not None else "",
        f"{output['images_per_second']:.1f} images/s" if output.get("images_per_second") else "",
        f"{output['eta_seconds']:.0f} s left" if output.get("eta_seconds") is not None else "",
    ]
    progress.update(
        task,
        description=output["stage"],
        total=output.get("steps"),
        completed=output.get("step") or 0,
        numbers="  ".join(filter(None, numbers)),
    )


def path_of(artifact: dict[str, Any], output: Path) -> Path:
    """Where an artifact is saved."""
    name = str(artifact["name"]).rsplit("/", 1)[-1]
    return output / FOLDERS.get(artifact["kind"], "") / name


def summary(status: dict[str, Any]) -> str:
    """A summary in a few lines of Markdown."""
    train = status["output"]["train"]
    images = status["output"]["inference"]
    lines = [
        f"# Job {status['id']}: {status['status']}",
        "",
        f"- {train['epochs']} epochs, {train['steps']} steps, {train['images']} images seen",
        f"- last loss {train['loss']:.4f}",
        f"- {train['optimizer']}, {train['precision']}, {train['attention']} on {status['gpu']}",
        f"- waited {status['delayTime'] / 1000:.1f} s, ran {status['executionTime'] / 1000:.1f} s",
        f"- {len(images)} images drawn:",
        *(f"  - `{image['prompt']}`, seed {image['seed']}" for image in images),
    ]
    return "\n".join(lines) + "\n"
