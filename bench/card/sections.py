"""The sections, each run in a process of its own: a fault of one takes no other along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import msgspec

from bench.card.findings import Findings, Result, Verdict
from bench.card.setting import Setting

ROOT = Path(__file__).parents[2]
IN_ALL = 585.0
"""Seconds for everything together."""
LOG_LINES = 25


class Section(NamedTuple):
    """A function of a :class:`Setting` that returns :class:`Findings`."""

    about: str
    function: str
    limit: float
    """Seconds."""
    arguments: tuple[str, ...] = ()


SECTIONS = {
    "machine": Section("Driver, versions, capability", "machine.machine", 45),
    "probe": Section("What can be used, and what is chosen", "machine.probing", 60),
    "tests": Section("pytest -m gpu", "suite.tests_in", 120, ("not fp16",)),
    "tests without bf16": Section(
        "pytest -m gpu, bf16 forced off", "suite.tests_in", 120, ("fp16",)
    ),
    "gradients": Section(
        "One step in three precisions against the CPU's gradients",
        "precision.gradients_in_three_precisions", 150,
    ),
    "peaks": Section("Peak memory of real trainings", "peaks.peaks_of_training", 150),
    "children": Section(
        "Memory of the services' children, idle and drawing", "children.idle_and_drawing", 90
    ),
    "together": Section("Training and drawing at once", "children.both_at_work", 90),
    "filled": Section(
        "A third process fills the card: what is said", "children.filled_by_others", 90
    ),
    "schedulers": Section(
        "Every scheduler, fp16 against fp32", "drawn.schedulers_in_half_precision", 120
    ),
    "resuming": Section(
        "Resumed against uninterrupted", "resuming.resumed_against_whole", 60
    ),
}  # fmt: skip


def run(name: str, setting: Setting, left: float) -> Result:
    """Run a section within its limit, and within the seconds that are left of all."""
    section, begun = SECTIONS[name], perf_counter()
    answer, log = (setting.folder / f"{name}.{end}" for end in ("json", "log"))
    with log.open("wb") as output, subprocess.Popen(  # noqa: S603 - this interpreter, our own code
        command_of(name, setting), cwd=ROOT, env=setting.environment, stdout=output, stderr=output,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            status = process.wait(min(section.limit, left))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    findings = (
        msgspec.json.decode(answer.read_bytes(), type=Findings) if answer.exists() else Findings()
    )
    verdict = verdict_of(status, findings)
    return Result(
        name=name, about=section.about, verdict=verdict, seconds=perf_counter() - begun,
        findings=findings, log=_end_of(log) if verdict in ("failed", "out of time") else "",
    )  # fmt: skip


def command_of(name: str, setting: Setting) -> list[str]:
    """What runs a section in a process of its own."""
    module = "bench.card.sections"
    return [sys.executable, "-m", module, name, setting.device, str(setting.folder)]


def verdict_of(status: int | None, findings: Findings) -> Verdict:
    """By the exit status; None: it was ended at its limit."""
    if status is None:
        return "out of time"
    if status:
        return "failed"
    return "not as expected" if findings.problems else "as expected"


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])


def main(name: str, device: str, folder: str) -> None:
    """In the section's own process: write what it finds."""
    section = SECTIONS[name]
    module, function = section.function.split(".")
    find = getattr(import_module(f"bench.card.{module}"), function)
    findings = find(*section.arguments, Setting(device, Path(folder)))
    (Path(folder) / f"{name}.json").write_bytes(msgspec.json.encode(findings))


if __name__ == "__main__":
    main(*sys.argv[1:])
