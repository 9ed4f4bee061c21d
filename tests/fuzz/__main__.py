"""Fuzz every target for a while, and write down what came of it: ``make fuzz``.

An input that crashes a reader is counted and kept, and the fuzzing goes on with the next seed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import secrets
import shlex
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "fuzzing.md"
LONGEST = 4096
"""Bytes of an input."""
SLOW_SECONDS = 10
"""An input that takes longer counts as a crash: it would hold a service up."""
MEGABYTES = 2048
"""An input that takes more memory counts as one, too."""
EXECUTED = re.compile(r"stat::number_of_executed_units:\s+(\d+)")
COVERED = re.compile(r"cov: (\d+)")
LEAST_SECONDS = 2.0


class Outcome(NamedTuple):
    """What came of one target."""

    name: str
    seconds: float
    inputs: int
    covered: int
    """Edges of the code that some input has taken."""
    crashes: int


async def fuzz(name: str, seconds: float, seed: int, kept: Path) -> Outcome:
    """Fuzz one target for so long; inputs that crash it are left in ``kept``."""
    corpus = corpus_of(name, kept)
    begun, inputs, covered, crashes = monotonic(), 0, 0, 0
    while (left := seconds - (monotonic() - begun)) > LEAST_SECONDS:
        log, status = await run_once(name, left, seed + crashes, corpus)
        inputs += _last(EXECUTED, log)
        covered = max(covered, _last(COVERED, log))
        if status != 0:
            crashes += 1
            print(f"--- {name}, crash {crashes}\n{log[-4000:]}", flush=True)  # noqa: T201
    return Outcome(name, monotonic() - begun, inputs, covered, crashes)


def corpus_of(name: str, folder: Path) -> Path:
    """A folder with the target's seeds, to which libFuzzer adds what it finds."""
    corpus = folder / name
    corpus.mkdir(parents=True)
    for number, seed in enumerate(TARGETS[name].seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    return corpus


async def run_once(name: str, seconds: float, seed: int, corpus: Path) -> tuple[str, int]:
    """libFuzzer's words, and its exit status: 0 when the time is over without a crash."""
    flags = (
        f"-max_total_time={int(seconds)}", f"-seed={seed}", f"-max_len={LONGEST}",
        f"-timeout={SLOW_SECONDS}", f"-rss_limit_mb={MEGABYTES}", "-print_final_stats=1",
        f"-artifact_prefix={corpus.parent}/crash-{name}-", str(corpus),
    )  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.fuzz.one", name, *flags,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=ROOT,
    )  # fmt: skip
    log, _ = await process.communicate()
    return log.decode(errors="replace"), process.returncode or 0


def _last(pattern: re.Pattern[str], log: str) -> int:
    found = pattern.findall(log)
    return int(found[-1]) if found else 0


async def fuzz_all(seconds: float, seed: int, kept: Path) -> list[Outcome]:
    """Every target, as many at once as there are cores."""
    room = asyncio.Semaphore(os.cpu_count() or 1)

    async def in_turn(name: str) -> Outcome:
        async with room:
            print(f"{name}: {seconds:g} s, seed {seed}", flush=True)  # noqa: T201
            return await fuzz(name, seconds, seed, kept)

    return await asyncio.gather(*(in_turn(name) for name in TARGETS))


PROLOGUE = f"""# Fuzzing

The parsers of untrusted input are fuzzed, guided by code coverage.
A crash is any exception other than the parser's own errors, or an input that takes more than
{SLOW_SECONDS} s or {MEGABYTES} MB of memory.
The parsers and their inputs are in `tests/fuzz/targets.py`.
"""


def page(outcomes: list[Outcome], command: str) -> str:
    """The page of docs/ that says what came of it."""
    written = f"Written by `{command}` on {datetime.now(UTC):%Y-%m-%d}:"
    return "\n".join([PROLOGUE, written, "", *table(outcomes), ""])


def table(outcomes: list[Outcome]) -> Iterator[str]:
    yield "| reader | minutes | inputs | edges covered | crashes |"
    yield "|---|---|---|---|---|"
    for each in outcomes:
        minutes = f"{each.seconds / 60:.1f}"
        yield f"| {each.name} | {minutes} | {each.inputs} | {each.covered} | {each.crashes} |"


def main() -> None:
    """Exit status 1: there was a crash."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=600.0, help="for each reader")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    asked = parser.parse_args()
    kept = Path(tempfile.mkdtemp(prefix="fuzz-"))
    outcomes = asyncio.run(fuzz_all(asked.seconds, asked.seed, kept))
    command = f"python -m tests.fuzz --seconds {asked.seconds:g} --seed {asked.seed}"
    PAGE.write_text(page(outcomes, command))
    print("\n".join(table(outcomes)))  # noqa: T201
    if crashes := sum(each.crashes for each in outcomes):
        sys.exit(f"{crashes} crashes; the inputs are in {shlex.quote(str(kept))}")


if __name__ == "__main__":
    main()
