"""Results of queries, for people on stdout."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from rich.console import Console

from everydream.client import ENDS
from everydream.terminal.display import print_lines, print_table
from everydream.terminal.report import (
    dataset_lines,
    is_check,
    next_steps,
    outcome_lines,
    picture_lines,
    unreported_warnings,
)
from everydream.terminal.screen import View, screen_of
from everydream.terminal.words import clock, duration, size
from shared.words import counted

HEADINGS = ("job", "status", "kind", "made", "waited", "ran")


def print_report(console: Console, status: dict[str, Any]) -> None:
    """The report of a dataset check, or why there is none."""
    report = (status.get("output") or {}).get("dataset")
    if not report:
        print_lines(console, "\n".join(outcome_lines(status)))
        return
    _print_dataset(console, report)
    for each in unreported_warnings(status):
        print_lines(console, f"warning: {each}")


def _print_dataset(console: Console, report: dict[str, Any]) -> None:
    print_lines(console, "\n".join(dataset_lines(report)))
    if pictures := "\n".join(picture_lines(report)):
        print_lines(
            console, f"number and name of each picture, and how it is trained on:\n{pictures}"
        )
    rows = []
    short, batches = report.get("short_buckets", {}), report.get("buckets", {})
    for bucket, number in batches.items():
        filled = f"repeats: its last batch has {short[bucket]}" if bucket in short else ""
        rows.append((bucket, str(number), filled))
    if rows:
        print_table(console, ("size", "pictures", "filled up with"), rows)


def print_jobs(console: Console, page: dict[str, Any], flags: str) -> None:
    """A page of jobs; ``flags`` ask for the next one alike.

    Each is a line, or two on a terminal that is too narrow for one; none is cut.
    """
    if not page["jobs"]:
        print_lines(console, "no jobs")
        return
    now = time.time()
    rows = [HEADINGS, *(_row(job, now) for job in page["jobs"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    is_narrow = console.is_terminal and sum(widths) + 2 * (len(widths) - 1) > console.width
    for row in rows:
        job, status, kind, *times = (
            text.ljust(width) for text, width in zip(row, widths, strict=True)
        )
        first, second = f"{job}  {status}  {kind}", "  ".join(times).rstrip()
        print_lines(
            console, f"{first.rstrip()}\n    {second}" if is_narrow else f"{first}  {second}"
        )
    for job in page["jobs"]:
        if job.get("error"):
            print_lines(console, f"{job['id']}: {job['error']}")
    if page["next"]:
        print_lines(console, f"more:  everydream jobs --cursor {page['next']}{flags}")


def print_uploads(console: Console, page: dict[str, Any], flags: str) -> None:
    """A page of uploads; ``flags`` ask for the next one alike."""
    if not page["uploads"]:
        print_lines(console, "no uploads")
        return
    now = time.time()
    rows = [
        (
            each["id"], size(each["bytes"]), _arrived(each),
            clock(datetime.fromisoformat(each["changed_at"]).timestamp(), now),
        )
        for each in page["uploads"]
    ]  # fmt: skip
    print_table(console, ("upload", "size", "state", "changed"), rows)
    if page["next"]:
        print_lines(console, f"more:  everydream uploads --cursor {page['next']}{flags}")


def _arrived(upload: dict[str, Any]) -> str:
    if upload["received"] < upload["bytes"]:
        return f"{size(upload['received'])} have arrived"
    return "complete" if upload["sha256"] else "not compared yet"


def _row(job: dict[str, Any], now: float) -> tuple[str, ...]:
    """A job in a list; an older gateway does not say its kind."""
    made = clock(datetime.fromisoformat(job["created_at"]).timestamp(), now)
    waited, ran = (duration(job[name] / 1000) for name in ("delayTime", "executionTime"))
    if job["status"] == "IN_QUEUE":
        waited, ran = f"waits {waited}", ""
    elif not job["started_at"]:
        ran = "not at all"
    elif job["status"] == "IN_PROGRESS":
        ran = f"runs {ran}"
    return job["id"], job["status"], job.get("kind", ""), made, waited, ran


def print_status(console: Console, status: dict[str, Any], flags: str) -> None:
    """A job as it is now, a check with its whole report; ``flags`` reach its gateway."""
    output, now = status.get("output") or {}, time.time()
    lines = [f"job {status['id']}: {status['status']}"]
    if not (has_ended := status["status"] in ENDS):
        lines.append(screen_of(View(status, now, ""), now).line())
        report = output.get("dataset") or {}
        lines += dataset_lines(report) if report else ()
        lines += [f"warning: {each}" for each in unreported_warnings(status)]
        if samples := output.get("samples"):
            lines.append(f"{counted(len(samples), 'sample')} so far, the last at step"
                         f" {samples[-1]['step']}")  # fmt: skip
    else:
        lines = [f"job {status['id']}", *outcome_lines(status)]
        if output.get("artifacts"):
            lines.append(f"files:  everydream fetch {status['id']}{flags}")
    print_lines(console, "\n".join(lines))
    if is_check(status) and output["dataset"]:
        _print_dataset(console, output["dataset"])
    for line in next_steps(status, flags) if has_ended else ():
        print_lines(console, line)
