"""The files of deploy/monitoring: Prometheus takes them, and they name what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.alerting import RULES, promtool
from tests.support.compose import DEPLOY, our_services, read_compose
from tests.support.gateway_world import TRAIN_ONLY, world
from tests.support.metrics_table import every_metric, series_names
from tests.support.scraping import port_of_this_process

ROOT = DEPLOY.parent
CONFIG = DEPLOY / "monitoring" / "prometheus.yaml"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "monitoring" / "dashboard.json").read_text())
ALERTS = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
SERIES = re.compile(r"\b(?:everydream|process)_\w+|\bup\b")
OF_PROMETHEUS = {"up"}
GRAFANA = {"$__rate_interval": "5m"}


def expressions() -> dict[str, str]:
    """Of all alerts and panels, by their names."""
    shown = {
        f"{panel['title']}: {target['legendFormat']}": target["expr"]
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", [])
    }
    for variable, text in GRAFANA.items():
        shown = {name: expr.replace(variable, text) for name, expr in shown.items()}
    return shown | {rule["alert"]: rule["expr"] for rule in ALERTS}


def labels_of(name: str) -> set[str]:
    (metric,) = [each for each in every_metric() if name in each.series]
    return {*metric.labels, "job", "instance"} | ({"le"} if name.endswith("_bucket") else set())


@pytest.mark.parametrize(("kind", "file"), [("rules", RULES), ("config", CONFIG)])
def test_prometheus_takes_the_files(kind: str, file: Path) -> None:
    checked = promtool("check", kind, str(file))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_prometheus_understands_every_panel(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expr}
        for number, expr in enumerate(expressions().values())
    ]
    assert len(rules) > 40
    file = tmp_path / "panels.yaml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    checked = promtool("check", "rules", str(file))
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(("name", "expr"), expressions().items(), ids=str)
def test_an_expression_names_metrics_and_labels_that_there_are(name: str, expr: str) -> None:
    named = {each for each in SERIES.findall(expr) if not each.endswith("_info")}
    assert named, name
    assert named - OF_PROMETHEUS <= series_names()
    known = {label for each in named - OF_PROMETHEUS for label in labels_of(each)}
    asked = set(re.findall(r"[{,]\s*(\w+)\s*(?:=|!=|=~|!~)\"", expr))
    grouped = {each for found in re.findall(r"(?:by|on) \(([\w, ]+)\)", expr)
               for each in found.split(", ")}  # fmt: skip
    assert asked | grouped <= known | {"job", "instance"}


def test_every_alert_is_explained_and_none_that_there_is_not() -> None:
    page = OPERATIONS.partition("### Alerts")[2].partition("\n## ")[0]
    explained = re.findall(r"^\| `(EveryDream\w+)` \|", page, re.MULTILINE)
    assert explained == [rule["alert"] for rule in ALERTS]


def test_every_alert_says_how_bad_it_is_and_what_it_is_about() -> None:
    for rule in ALERTS:
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"]["summary"]


def test_prometheus_finds_every_service_of_compose() -> None:
    (scraping,) = yaml.safe_load(CONFIG.read_text())["scrape_configs"]
    (found,) = scraping["dns_sd_configs"]
    services = our_services(read_compose())
    assert set(found["names"]) == set(services)
    for entry in services.values():
        assert entry["environment"]["EVERYDREAM_METRICS_PORT"] == str(found["port"])
    monitoring = read_compose("compose.monitoring.yaml")["services"]["prometheus"]
    for name, entry in services.items():
        assert {*entry["networks"]} & {*monitoring["networks"]}, name


async def test_what_is_shown_is_as_prometheus_wants_it(tmp_path: Path) -> None:
    async with world(tmp_path) as here, port_of_this_process(here.settings) as port:
        await here.run(TRAIN_ONLY)
        checked = promtool("check", "metrics", text=await port.text())
    assert checked.returncode == 0, checked.stdout + checked.stderr
