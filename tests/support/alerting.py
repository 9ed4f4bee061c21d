"""Play to our alerts what was scraped: ``promtool`` evaluates them as Prometheus does."""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.compose import DEPLOY
from tests.support.scraping import Port, Samples, parsed

RULES = DEPLOY / "monitoring" / "alerts.yaml"
CALM, FAULT = 15, 20
"""Minutes for which what was scraped first, and then the fault, is played."""
UP = ("up", frozenset[tuple[str, str]]())
MISSING = "_"
CUMULATIVE = ("_total", "_bucket", "_count", "_sum")


async def observed(port: Port) -> Samples:
    """What Prometheus gets of a process: its samples, and whether it answers."""
    try:
        return with_up(await port.text())
    except aiohttp.ClientError:
        return {UP: 0.0}


def with_up(text: str) -> Samples:
    """What Prometheus gets of a process that has answered with this exposition."""
    return {**parsed(text), UP: 1.0}


def expect_firing(
    before: Samples, after: Samples, alerts: Iterable[str], *, goes_on: bool = False
) -> None:
    """Just these alerts fire once the second has lasted, and none before.

    What was counted in between was counted once; or each minute again, if the fault ``goes_on``.

    Raises:
        AssertionError: others do; with the words of promtool.
    """
    series = [
        {
            "series": _selector(*key),
            "values": _values(key[0], before.get(key), after.get(key), goes_on=goes_on),
        }
        for key in sorted(before.keys() | after.keys(), key=str)
    ]
    test = {
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [_expected(CALM, ()), _expected(CALM + FAULT, alerts)],
    }
    _run({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]})


def _selector(name: str, labels: Iterable[tuple[str, str]]) -> str:
    every = {"job": "everydream", "instance": "one:9464", **dict(labels)}
    shown = ",".join(f'{label}="{text}"' for label, text in sorted(every.items()))
    return f"{name}{{{shown}}}"


def _values(name: str, before: float | None, after: float | None, *, goes_on: bool) -> str:
    growth = 0.0
    if goes_on and name.endswith(CUMULATIVE) and after is not None:
        growth = after - (before or 0.0)
    return f"{_shown(before)}x{CALM} {_shown(after, growth)}x{FAULT}"


def _shown(value: float | None, growth: float = 0.0) -> str:
    """NaN is no figure to compare with either: it is left out, as no sample is."""
    return MISSING if value is None or math.isnan(value) else f"{value!r}+{growth!r}"


def _expected(minute: int, alerts: Iterable[str]) -> dict[str, Any]:
    return {
        "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": f"{minute}m",
        "exp_samples": [
            {"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(alerts)
        ],
    }


def _run(tests: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tests.yaml"
        file.write_text(json.dumps(tests))  # which is YAML, too, and written at once
        done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def promtool(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run it; it comes with Debian's package ``prometheus``."""
    return subprocess.run(
        ["promtool", *arguments],  # noqa: S607 - wherever the system has it
        input=text, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
