"""The table of docs/metrics.md: ``python -m`` this module writes it from the code."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

from prometheus_client import Counter, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from services.gateway import metrics as gateway
from services.notifier import metrics as notifier
from shared.monitoring import child, registry, worker
from tests.support.measured_page import DOCS, table, write

PAGE = DOCS / "metrics.md"
PART = "metrics"
HEAD = ("Metric", "kind", "labels", "shown by", "what it says")
MODULES: dict[ModuleType, str] = {
    registry: "every service",
    gateway: "gateway",
    worker: "workers",
    child: "trainer, inferencer",
    notifier: "notifier",
}
"""Where metrics are made, and whose processes import that."""


class Shown(NamedTuple):
    """One metric as Prometheus names it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    service: str
    text: str

    @property
    def series(self) -> set[str]:
        """The names that expressions may use."""
        if self.kind == "histogram":
            return {f"{self.name}_{end}" for end in ("bucket", "sum", "count")}
        return {self.name}


def every_metric() -> list[Shown]:
    """In the order of the code, each service's own ones together."""
    return [shown for module, service in MODULES.items() for shown in _of(module, service)]


def series_names() -> set[str]:
    return {name for shown in every_metric() for name in shown.series}


def _of(module: ModuleType, service: str) -> Iterator[Shown]:
    for member in vars(module).values():
        if isinstance(member, MetricWrapperBase):
            yield _wrapped(member, service)
        elif isinstance(member, ProcessCollector | child.Card):
            yield from _collected(member, service)


def _wrapped(metric: MetricWrapperBase, service: str) -> Shown:
    end = "_total" if isinstance(metric, Counter) else ""
    text = metric._documentation
    return Shown(f"{metric._name}{end}", metric._type or "", metric._labelnames, service, text)


def _collected(collector: ProcessCollector | child.Card, service: str) -> Iterator[Shown]:
    for family in collector.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        yield Shown(name, family.type, (), service, family.documentation)


def text_of() -> str:
    rows = (
        (f"`{each.name}`", each.kind, ", ".join(f"`{label}`" for label in each.labels) or "none",
         each.service, each.text)
        for each in every_metric()
    )  # fmt: skip
    return table(HEAD, rows)


if __name__ == "__main__":
    write(PART, text_of(), PAGE)
