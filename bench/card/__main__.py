"""Look at a card: ``make card``, or ``python -m bench.card``. Writes a report to send in."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import msgspec

from bench.card.findings import Report, Result, now, write
from bench.card.present import NO_CARD, has_card
from bench.card.sections import IN_ALL, ROOT, SECTIONS, run
from bench.card.setting import Setting

FACTS = "services.trainer.training.device_facts"


def main(arguments: list[str] | None = None) -> int:
    """Run the sections one after another; 0: everything is as expected of this card."""
    asked = _parse(arguments)
    if asked.device != "cpu" and not has_card():
        print(NO_CARD, file=sys.stderr)
        return 1
    with TemporaryDirectory(prefix="everydream-card-") as folder:
        setting = Setting(asked.device, Path(folder))
        name, problem = device_of(setting)
        if problem:
            print(f"The card cannot be used: {problem}", file=sys.stderr)
            return 1
        report = Report(device=name, written=now(), results=look(asked.sections, setting))
    for path in write(report, asked.out):
        print(f"wrote {path}")
    return 0 if report.is_good else 1


def look(names: list[str], setting: Setting) -> list[Result]:
    """Run sections, with a line for each before and after."""
    begun, results = perf_counter(), []
    for number, name in enumerate(names, 1):
        left = IN_ALL - (perf_counter() - begun)
        limit = min(SECTIONS[name].limit, left)
        print(f"[{number}/{len(names)}] {name} (at most {max(limit, 0):.0f} s) ...", flush=True)
        result = run(name, setting, max(left, 0.0))
        results.append(result)
        print(f"      {result.verdict}, {result.seconds:.0f} s", flush=True)
        for problem in result.findings.problems:
            print(f"      {problem}", flush=True)
    return results


def device_of(setting: Setting) -> tuple[str, str | None]:
    """The device's name, and what is wrong with it: asked in a process that then ends."""
    said = subprocess.run(  # noqa: S603 - this interpreter, our own code
        [sys.executable, "-m", FACTS], cwd=ROOT, env=setting.environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if said.returncode:
        return "none", said.stderr.strip().rpartition("\n")[2] or "no answer"
    facts = msgspec.json.decode(said.stdout)
    name = "a processor (no card was looked at)" if facts["device"] == "cpu" else facts["name"]
    return name, facts["problem"]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.card", description=__doc__)
    parser.add_argument(
        "--device", default="cuda",
        help="cuda, cuda:1; cpu tries this command itself, with a small model",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("card-report"), help="folder of the report"
    )
    parser.add_argument(
        "--only", nargs="+", dest="sections", default=list(SECTIONS), choices=SECTIONS
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
