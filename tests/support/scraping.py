"""Read what a process shows to those who operate it: its metrics, and its answers to probes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from shared.monitoring.server import monitored
from shared.settings import Settings
from tests.support.services import ServiceProcess

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]
"""By the name of a series and its labels."""


def parsed(text: str, only: str = "") -> Samples:
    """The samples of an exposition, or only the series whose names begin with ``only``.

    Who polls for one series names it: to parse thousands costs more than all else in a look.
    """
    if only:
        text = "".join(f"{line}\n" for line in text.split("\n") if line.startswith(only))
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, /, **labels: str) -> float:
    """One sample; 0 for a series that nobody has counted yet."""
    return samples.get((name, frozenset(labels.items())), 0.0)


@dataclass
class Port:
    """The port of one process."""

    url: str

    async def text(self) -> str:
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/metrics") as answer:
            assert answer.status == 200
            return await answer.text()

    async def scrape(self, only: str = "") -> Samples:
        return parsed(await self.text(), only)

    async def probe(self, path: str) -> tuple[int, dict[str, Any]]:
        """The status and the body of the answer."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}{path}") as answer:
            return answer.status, await answer.json()

    async def lacking(self) -> dict[str, str]:
        """The parts that are not ready, and why."""
        status, body = await self.probe("/readyz")
        told = {each["part"]: each["reason"] for each in body["lacking"]}
        assert (status == 200) == (body["status"] == "ready") == (not told)
        return told


@asynccontextmanager
async def port_of_this_process(settings: Settings) -> AsyncIterator[Port]:
    async with monitored("test", replace(settings, metrics_port=0)) as port:
        yield Port(f"http://127.0.0.1:{port}")


async def port_of(process: ServiceProcess) -> Port:
    """By its own word; it was started with ``EVERYDREAM_METRICS_PORT=0``."""
    await process.wait_for_log("metrics_listening")
    lines = [line for line in process.text.splitlines() if "metrics_listening" in line]
    return Port(f"http://127.0.0.1:{json.loads(lines[0])['port']}")
