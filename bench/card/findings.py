"""What a section found, and the report of all: JSON for programs, Markdown for people."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

Verdict = Literal["as expected", "not as expected", "failed", "out of time"]


class Findings(Struct, kw_only=True):
    """What one section found."""

    facts: dict[str, str] = {}
    """What was measured or said, in the order of the report."""
    problems: list[str] = []
    """What is not as expected of this card."""


class Result(Struct, frozen=True, kw_only=True):
    """How one section went."""

    name: str
    about: str
    verdict: Verdict
    seconds: float
    findings: Findings
    log: str = ""
    """The end of what it printed, if it failed."""


class Report(Struct, frozen=True, kw_only=True):
    """Everything to send in."""

    device: str
    written: str
    results: list[Result]

    @property
    def is_good(self) -> bool:
        return all(result.verdict == "as expected" for result in self.results)


def write(report: Report, folder: Path) -> list[Path]:
    """Write both forms."""
    folder.mkdir(parents=True, exist_ok=True)
    data, page = folder / "card-report.json", folder / "card-report.md"
    data.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    page.write_text(as_markdown(report))
    return [page, data]


def as_markdown(report: Report) -> str:
    lines = [f"# Report of {report.device}", "", f"Written {report.written}.", ""]
    lines += ["| section | verdict | seconds |", "|---|---|---|"]
    lines += [f"| {each.name} | {each.verdict} | {each.seconds:.0f} |" for each in report.results]
    for each in report.results:
        lines += ["", f"## {each.name}: {each.verdict}", "", each.about, ""]
        lines += [f"- **{problem}**" for problem in each.findings.problems]
        if each.findings.facts:
            lines += ["", "| | |", "|---|---|"]
        lines += [f"| {name} | {_cell(text)} |" for name, text in each.findings.facts.items()]
        if each.log:
            lines += ["", "```text", each.log.strip(), "```"]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
