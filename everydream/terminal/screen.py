"""What is shown of a job at a moment: a pure function of its status and the time.

A :class:`Screen` becomes at most four lines that no terminal of 60 columns or more wraps, however
it is resized, or one line of a log.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from everydream.terminal.words import clock, duration, fit, plain, size
from shared.words import counted

WIDEST = 60
"""Columns; a terminal that is made narrower down to this does not wrap the lines."""
BAR = 24
"""Columns of the bar."""
HOST = 19
"""Columns of the gateway's name, so that the rest of its line fits."""
SILENT_SECONDS = 3.0
"""From when on an answer that has not come is said."""
STALE_SECONDS = 120.0
"""From when on numbers that do not change are said to be old."""
STAGES = {
    "staging": "preparing the pictures",
    "bucket_check": "trying your bucket",
    "training": "training",
    "generation": "drawing the images",
    "model_publication": "publishing the model",
    "image_publication": "publishing the images",
}


@dataclass(frozen=True)
class View:
    """What is known of a job. Times are in seconds since the epoch."""

    status: dict[str, Any] | None
    """The newest answer of ``/status``; None: there is none yet."""
    changed_at: float
    """When its newest numbers came."""
    url: str
    """The gateway's."""
    silent_since: float | None = None
    """Since when the gateway is asked without an answer; None: it has answered."""


@dataclass(frozen=True)
class Screen:
    """What is shown at a moment."""

    heading: str
    """What is going on; another one is another phase."""
    fraction: float | None = None
    """How much of it is done, from 0 to 1; None: unknown."""
    numbers: tuple[str, ...] = ()
    """The first says how much is done."""
    notes: tuple[str, ...] = ()
    """Times, and what is amiss."""

    def lines(self, width: int) -> list[str]:
        """At most four lines for a terminal of ``width`` columns."""
        first, rest = (self.numbers[:1], self.numbers[1:]) if self._bar() else ((), self.numbers)
        bar = "  ".join((self._bar(), *first))
        rows = (self.heading, bar, ", ".join(rest), ", ".join(self.notes))
        return [fit(row, min(width, WIDEST) - 2) for row in rows if row]

    def line(self) -> str:
        """The same as one line of a log."""
        rest = ", ".join((*self.numbers, *self.notes))
        separator = ", " if ":" in self.heading else ": "
        return self.heading + (separator + rest if rest else "")

    def _bar(self) -> str:
        if self.fraction is None:
            return ""
        done = min(max(self.fraction, 0.0), 1.0)
        filled = int(done * BAR)
        return f"[{'#' * filled}{'-' * (BAR - filled)}] {int(done * 100):>3} %"


def screen_of(view: View, now: float) -> Screen:
    """What is shown of a job that has not ended at ``now``, in seconds since the epoch."""
    notes = tuple(_silence(view, now))
    if (status := view.status) is None:
        return Screen(heading="connecting", notes=notes)
    output = status.get("output") or {}
    retry = _retry(output)
    if retry and retry["next_at"]:
        return Screen(
            heading=f"{_words(retry['stage'])}: waiting for try {retry['number']} of"
            f" {retry['tries']}",
            numbers=(f"the last one failed: {plain(retry['reason'] or 'unknown')}",),
            notes=notes or (_due(retry["next_at"], now),),
        )
    if not _is_worked_on(output):
        return Screen(heading=_waiting(status), notes=notes or tuple(_start(status, now)))
    return Screen(
        heading=_phase(output),
        fraction=_fraction(output),
        numbers=tuple(_numbers(output)),
        notes=notes or tuple(_time_left(view, output, now)),
    )


def transfer_screen(heading: str, done: int, total: int, seconds: float) -> Screen:
    """What is shown of a transfer of ``total`` bytes that has taken so many seconds."""
    rate = done / seconds if seconds > 1 else 0.0
    return Screen(
        heading=heading,
        fraction=done / total if total else 1.0,
        numbers=(
            f"{size(done)} of {size(total)}" if done else size(total),
            *((f"{size(rate)}/s",) if rate else ()),
        ),
        notes=(f"{duration((total - done) / rate)} left",) if rate and done < total else (),
    )


def _is_worked_on(output: dict[str, Any]) -> bool:
    """Whether a worker has said anything of the current stage."""
    return any(output.get(name) is not None for name in ("phase", "step", "bytes", "images"))


def _waiting(status: dict[str, Any]) -> str:
    """Why nobody works on a job: it is not its turn, or its next worker is busy or away."""
    output = status.get("output") or {}
    if position := (status.get("queue") or {}).get("position"):
        return f"waiting in line, number {position}"
    if status["status"] == "IN_QUEUE":
        return "waiting in line"
    stage = output.get("stage")
    return f"{_words(stage)}: waiting for a worker" if stage else "waiting for a worker"


def _start(status: dict[str, Any], now: float) -> Iterator[str]:
    """When a job that waits is expected to start."""
    if text := (status.get("queue") or {}).get("estimated_start"):
        start = datetime.fromisoformat(text).timestamp()
        yield f"starts in about {duration(start - now)}, at {clock(start, now)}"


def _retry(output: dict[str, Any]) -> dict[str, Any] | None:
    """The next try, or the one at work, of the current stage, if its last one failed."""
    tried = output.get("retries") or []
    return next((each for each in tried if each["stage"] == output.get("stage")), None)


def _due(moment: str, now: float) -> str:
    due = datetime.fromisoformat(moment).timestamp()
    return f"next try in {duration(due - now)}, at {clock(due, now)}"


def _words(stage: Any) -> str:
    return STAGES.get(str(stage), plain(stage))


def _phase(output: dict[str, Any]) -> str:
    stage, phase = _words(output.get("stage") or "working"), plain(output.get("phase") or "")
    said = stage if phase in ("", stage, output.get("stage")) else f"{stage}: {phase}"
    retry = _retry(output)
    return f"{said}, try {retry['number']} of {retry['tries']}" if retry else said


def _fraction(output: dict[str, Any]) -> float | None:
    for done, of in (("step", "steps"), ("bytes", "bytes_total"), ("images", "of")):
        if output.get(done) is not None and output.get(of):
            return float(output[done] / output[of])
    return None


def _numbers(output: dict[str, Any]) -> Iterator[str]:
    """Step, epoch, loss and speed; or files and bytes of what is moved."""
    if (step := output.get("step")) is not None:
        yield f"step {step} of {output['steps']}" if output.get("steps") else f"step {step}"
    if (epoch := output.get("epoch")) is not None:
        epochs = output.get("epochs")
        yield f"epoch {min(epoch + 1, epochs)} of {epochs}" if epochs else f"epoch {epoch + 1}"
    if output.get("loss") is not None:
        yield f"loss {output['loss']:.4f}"
    if output.get("images_per_second"):
        yield f"{output['images_per_second']:.1f} pictures/s"
    if (images := output.get("images")) is not None:
        of = f"{images} of " if output.get("of") else ""
        yield of + counted(output.get("of") or images, "picture")
    if output.get("bytes"):
        total = output.get("bytes_total")
        yield size(output["bytes"]) + (f" of {size(total)}" if total else "")
    if output.get("files"):
        yield counted(output["files"], "file")


def _time_left(view: View, output: dict[str, Any], now: float) -> Iterator[str]:
    """When the stage ends, as long as its worker says anything."""
    if now - view.changed_at >= STALE_SECONDS:
        yield f"no news for {duration(now - view.changed_at)}"
    elif (seconds := output.get("eta_seconds")) is not None:
        end = view.changed_at + seconds
        yield f"{duration(max(end - now, 0))} left, about {clock(end, now)}"


def _silence(view: View, now: float) -> Iterator[str]:
    if view.silent_since is not None and now - view.silent_since >= SILENT_SECONDS:
        silence = duration(now - view.silent_since)
        host = fit(view.url.partition("://")[2], HOST)
        yield f"no answer from {host} for {silence}, trying again"
