"""``pytest -m gpu``, in the precision of its own or with bf16 forced off."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from bench.card.findings import Findings
from bench.card.setting import Setting

ROOT = Path(__file__).parents[2]
SUMMARY = re.compile(r"^\d+ (?:passed|failed|skipped|deselected|error)\b.*", re.MULTILINE)
BROKEN = re.compile(r"^(?:FAILED|ERROR) .*", re.MULTILINE)


def tests_in(chosen: str, setting: Setting) -> Findings:
    """Run the tests of a card that ``pytest -k`` chooses: ``fp16`` are those without bf16."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-n", "0", "-p",
               "no:cacheprovider", "-k", chosen, "tests/gpu"]  # fmt: skip
    said = subprocess.run(  # noqa: S603 - our own tests
        command, cwd=ROOT, env=setting.environment, capture_output=True, text=True, check=False
    )
    print(said.stdout, said.stderr)
    return read(said.stdout, said.returncode, setting)


def read(output: str, status: int, setting: Setting) -> Findings:
    """What pytest's closing lines say."""
    summary = SUMMARY.findall(output)
    findings = Findings(facts={"pytest": summary[-1] if summary else f"ended with {status}"})
    findings.problems += BROKEN.findall(output)
    if status and not findings.problems:
        findings.problems.append(f"pytest ended with {status}")
    if setting.is_card and "passed" not in findings.facts["pytest"]:
        findings.problems.append("no test ran on the card")
    return findings
