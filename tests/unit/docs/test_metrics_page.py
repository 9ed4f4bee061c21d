"""docs/metrics.md names every metric of the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from shared.messaging.messages import STAGES
from tests.support.measured_page import read
from tests.support.metrics_table import MODULES, PAGE, PART, every_metric, text_of

ROOT = Path(__file__).parents[3]
TELLING = {"job", "owner", "key", "id", "path", "worker", "upload", "webhook"}
"""Labels that would have as many values as there are jobs, users or processes."""


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    written = "write it anew: python -m tests.support.metrics_table"
    assert read(PART, PAGE).strip() == text_of().strip(), written


def test_no_module_makes_metrics_that_the_table_does_not_know() -> None:
    made = re.compile(r"\b(?:Counter|Gauge|Histogram|Summary|Info|Enum)\(\s*\"everydream")
    paths = (
        path for top in ("services", "shared", "everydream") for path in ROOT.glob(f"{top}/**/*.py")
    )
    making = {path for path in paths if made.search(path.read_text())}
    assert making == {Path(str(module.__file__)) for module in MODULES}


def test_no_label_has_as_many_values_as_there_are_jobs() -> None:
    metrics = every_metric()
    assert len(metrics) > 40
    assert not {label for each in metrics for label in each.labels} & TELLING


def test_the_metrics_for_scaling_keep_their_names() -> None:
    labels = {each.name: each.labels for each in every_metric()}
    assert labels["everydream_stage_jobs"] == ("stage", "state")
    assert labels["everydream_stage_open_jobs"] == ("stage",)
    assert {"training", "generation", "staging"} <= {*STAGES}


def test_a_worker_shows_no_metric_of_gateways() -> None:
    code = (
        "import services.trainer.__main__, services.inferencer.__main__;"
        "import services.fetcher.__main__, services.notifier.__main__;"
        "from prometheus_client import generate_latest;"
        "from shared.monitoring.registry import REGISTRY;"
        "print(generate_latest(REGISTRY).decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    shown = {line.split()[2] for line in done.stdout.splitlines() if line.startswith("# TYPE")}
    assert "everydream_claim_seconds" in shown
    of_gateways = {each.name for each in every_metric() if each.service == "gateway"}
    assert not shown & of_gateways
