"""The tables of ``make hostile`` in docs/security.md."""

from __future__ import annotations

import os
from collections.abc import Iterable

from tests.hostile.bars import MEMORY, SLOWER, WEBHOOK_SECONDS, Outcome
from tests.hostile.measure import Peak, percentile
from tests.hostile.other import JOBS, Run
from tests.support.measured_page import table, today

MIB = 1 << 20


def page(outcome: Outcome, minutes: float, wrong: Iterable[str]) -> str:
    """Its part of the page."""
    measured = f"Measured on {today()}, {os.cpu_count()} cores, {minutes:g} minutes of rudeness."
    verdict = "\n".join(f"- Missed: {sentence}" for sentence in wrong) or "Nothing was missed."
    tables = (_of_other(outcome), _of_services(outcome), _acts(outcome))
    return "\n\n".join((measured, verdict, *tables))


def _of_other(outcome: Outcome) -> str:
    alone, beside, turns = outcome.alone, outcome.beside, outcome.turns
    times = f"{outcome.own_seconds / alone.seconds:.1f} times"
    rows = (
        ("completed jobs", *(f"{run.ends['COMPLETED']}" for run in (alone, beside)), f"{JOBS}"),
        ("time of the ten jobs", f"{alone.seconds:.0f} s", f"{beside.seconds:.0f} s", ""),
        (
            "of it, waiting while the rude key's trainings had their turns",
            "",
            f"{sum(turns):.0f} s in {len(turns)} turns, the longest {max(turns, default=0):.0f} s",
            "",
        ),
        ("the rest", f"{alone.seconds:.0f} s", f"{outcome.own_seconds:.0f} s, {times}",
         f"{SLOWER:g} times"),
        ("`/status`, p50", *(_milliseconds(run, 50) for run in (alone, beside)), ""),
        ("`/status`, p99", *(_milliseconds(run, 99) for run in (alone, beside)), ""),
        ("requests without an answer", *(f"{run.unanswered.total()}" for run in (alone, beside)),
         "0"),
        ("latest webhook after its job's end", *(_latest(run) for run in (alone, beside)),
         f"{WEBHOOK_SECONDS:g} s"),
    )  # fmt: skip
    return table(("the other key", "alone", "beside the rude key", "at most"), rows)


def _of_services(outcome: Outcome) -> str:
    head = ("service", "memory alone", "memory beside the rude key", "its container's",
            "open files alone", "open files beside the rude key", "died")  # fmt: skip
    rows = (
        (
            name,
            _memory(outcome.quiet_peaks.get(name, Peak())),
            _memory(peak),
            f"{MEMORY[name] // MIB:,} MiB",
            f"{outcome.quiet_peaks.get(name, Peak()).files}",
            f"{peak.files}",
            f"{outcome.restarts.get(name, 0)}",
        )
        for name, peak in outcome.peaks.items()
    )
    left = f"Left at the end, files and processes together: {len(outcome.left)}."
    return f"{table(head, rows)}\n\n{left}"


def _acts(outcome: Outcome) -> str:
    head = ("the rude key's acts", "its requests, by status", "jobs accepted", "of these begun")
    rows = (
        (
            act,
            ", ".join(f"{status}: {number:,}" for status, number in sorted(answers.items())),
            *(f"{number:,}" for number in outcome.jobs.get(act, (0, 0))),
        )
        for act, answers in outcome.answers.items()
    )
    return table(head, rows)


def _milliseconds(run: Run, of: int) -> str:
    return f"{1000 * percentile(run.looks, of):.0f} ms"


def _latest(run: Run) -> str:
    return f"{max(run.webhooks.values(), default=0.0):.1f} s"


def _memory(peak: Peak) -> str:
    return f"{peak.own_bytes // MIB:,} + {peak.children_bytes // MIB:,} MiB"
