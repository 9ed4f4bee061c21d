"""KEDA's part, played: what a ScaledJob's trigger reads, and how many workers it then starts.

By KEDA's documentation of ``ScaledJob`` and of the trigger ``metrics-api``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

SAMPLE = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class ScaledJob:
    """What of a ScaledJob decides how many jobs there are."""

    strategy: str
    most: int
    target: float
    value_location: str

    @classmethod
    def of(cls, manifest: dict[str, Any]) -> ScaledJob:
        spec = manifest["spec"]
        (trigger,) = spec["triggers"]
        assert (trigger["type"], trigger["metadata"]["format"]) == ("metrics-api", "prometheus")
        assert spec["minReplicaCount"] == 0
        return cls(
            strategy=spec["scalingStrategy"]["strategy"],
            most=spec["maxReplicaCount"],
            target=float(trigger["metadata"]["targetValue"]),
            value_location=trigger["metadata"]["valueLocation"],
        )

    def starts(self, value: float, *, running: int, pending: int = 0) -> int:
        """How many jobs it starts at one look.

        Args:
            value: of the metric.
            running: jobs that have not ended, the pending ones included.
            pending: of these, those without a running pod.
        """
        wanted = math.ceil(value / self.target)
        most = min(wanted, self.most)
        match self.strategy:
            case "default":
                missing = most - running
            case "accurate":
                full = most + running > self.most
                missing = self.most - running if full else most - pending
            case other:
                raise ValueError(f"the strategy {other} is not played")
        return max(0, min(wanted, missing))


def value_at(location: str, metrics: str) -> float:
    """The value of the first sample that has this name and these labels.

    Args:
        location: a selector: ``name{label="value"}``.
        metrics: Prometheus' text format.

    Raises:
        LookupError: there is none; KEDA then starts nothing.
    """
    wanted = re.fullmatch(r"(\w+)(?:\{(.*)\})?", location)
    assert wanted, location
    labels = dict(LABEL.findall(wanted[2] or "")).items()
    for sample in SAMPLE.finditer(metrics):
        has = dict(LABEL.findall(sample["labels"] or "")).items()
        if sample["name"] == wanted[1] and labels <= has:
            return float(sample["value"])
    raise LookupError(f"there is no {location}")
