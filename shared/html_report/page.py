"""Render a report as HTML: everything in it, and whatever users gave escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from shared.html_report import charts
from shared.html_report.charts import charts_of
from shared.html_report.facts import TrainingFacts, clipped
from shared.html_report.pictures import Grid, Images

NAME = "report.html"
HERE = Path(__file__).parent
MOST_CHECKPOINTS = 200
MOST_WARNINGS = 100
UNITS = ("bytes", "kB", "MB", "GB", "TB")
KILO = 1000
MINUTE, HOUR, DAY = 60, 3600, 86400


class CheckpointRow(NamedTuple):
    """A checkpoint as the page lists it."""

    step: int | None
    name: str
    size: str
    sha256: str
    validation_loss: float | None
    remark: str


class Job(NamedTuple):
    """What the gateway knows of the job."""

    submitted_at: float
    """Seconds since the epoch; 0: not known."""
    started_at: float
    """Of the first work on a GPU; 0: not known."""
    warnings: tuple[str, ...]


def render(
    facts: TrainingFacts, job: Job, grid: Grid, images: Images | None, *, made_at: float
) -> str:
    """The page; ``images`` is None if none were asked for. Takes some milliseconds."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "clipped": clipped, "moment": moment, "number": _number, "size": size,
    }  # fmt: skip
    saved = [each.step for each in facts.checkpoints]
    return environment.get_template("page.html.jinja").render(
        facts=facts,
        grid=grid,
        images=images,
        charts=charts_of(facts.points, saved),
        canvas=charts,
        checkpoints=_checkpoints(facts),
        checkpoints_left_out=max(0, len(saved) + 1 - MOST_CHECKPOINTS),
        times=[*_times(facts, job, made_at)],
        warnings=_warnings(facts, job.warnings),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
    )


def _checkpoints(facts: TrainingFacts) -> list[CheckpointRow]:
    """The finished model first, then the others, newest first."""
    last = facts.checkpoint
    ranks = [each for each in facts.settings if each.name == "lora_rank" and not each.is_default]
    what = "the LoRA" if ranks else "the model"
    is_best = " · lowest validation loss" if facts.summary.get("best") else ""
    validation = facts.summary.get("validation") or {}
    rows = [
        CheckpointRow(
            facts.summary.get("steps"), last.name, size(last.bytes), last.sha256,
            (validation.get("last") or {}).get("loss"), f"{what}{is_best}",
        ),
        *(
            CheckpointRow(
                facts.summary.get("steps"), each.name, size(each.bytes), each.sha256, None,
                "merged into the base model",
            )
            for each in facts.merged
        ),
        *(
            CheckpointRow(
                each.step, each.artifact.name, size(each.artifact.bytes), each.artifact.sha256,
                each.validation_loss, "lowest validation loss" if each.best else "",
            )
            for each in reversed(facts.checkpoints)
        ),
    ]  # fmt: skip
    return rows[:MOST_CHECKPOINTS]


def _times(facts: TrainingFacts, job: Job, made_at: float) -> Iterable[tuple[str, str]]:
    if job.submitted_at:
        yield "Submitted", moment(job.submitted_at)
    if job.started_at:
        yield "Started on a GPU", moment(job.started_at)
    yield "Training ended", moment(facts.ended_at)
    yield "This report", moment(made_at)
    if job.submitted_at and job.started_at:
        yield "Waited", duration(job.started_at - job.submitted_at)
    if job.started_at:
        yield "From the start to this report", duration(made_at - job.started_at)


def _warnings(facts: TrainingFacts, of_job: Iterable[str]) -> list[str]:
    every = [
        *of_job, *facts.dataset.get("warnings", ()), *facts.summary.get("warnings", ()),
    ]  # fmt: skip
    return [clipped(each) for each in dict.fromkeys(every)][:MOST_WARNINGS]


def moment(seconds: float) -> str:
    """A time for people, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration(seconds: float) -> str:
    """A time span in its two largest units."""
    whole = max(0, round(seconds))
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE} s"
    if whole < DAY:
        return f"{whole // HOUR} h {whole % HOUR // MINUTE} min"
    return f"{whole // DAY} d {whole % DAY // HOUR} h"


def size(number: float) -> str:
    """Bytes for people, in decimal units."""
    unit = 0
    while number >= KILO and unit < len(UNITS) - 1:
        number, unit = number / KILO, unit + 1
    return f"{number:.3g} {UNITS[unit]}" if unit else f"{number:g} {UNITS[0]}"


def _number(value: Any) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:.4g}"
        case Mapping():
            return ", ".join(f"{name} {_number(each)}" for name, each in value.items())
    return str(value)
