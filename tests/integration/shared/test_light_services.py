"""Only the children that do GPU work load torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.services import ROOT, ServiceProcess, running

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "bitsandbytes", "opentelemetry")
LIGHT = ("gateway", "fetcher", "notifier")
FETCHER_BYTES = 120 << 20
"""Resident memory of a fetcher at rest, with the child that waits to read files."""


def modules_after(statement: str) -> set[str]:
    """What a new interpreter has loaded after a statement."""
    code = f"{statement}; import json, sys; print(json.dumps([*sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def libraries_of(process: ServiceProcess) -> str:
    """The shared libraries that a running process has mapped."""
    return Path(f"/proc/{process.pid}/maps").read_text()


def has_read_pillow(process: psutil.Process) -> bool:
    return any("_imaging" in each.path for each in process.memory_maps())


def test_no_parent_imports_anything_heavy_nor_does_the_process_of_all_five() -> None:
    parents = ", ".join(f"services.{name}.__main__" for name in (*LIGHT, "trainer", "inferencer"))
    loaded = modules_after(f"import {parents}, everydream.cli, everydream.all_in_one")
    assert [name for name in HEAVY if name in loaded] == []


@pytest.mark.long  # many seconds of imports, and no more than that they would be more
def test_a_trainers_child_leaves_torchs_compiler_alone() -> None:
    settings = "import os; from shared.child.process import FOR_LIBRARIES as own"
    loaded = modules_after(f"{settings}; os.environ |= own; import services.trainer.training.train")

    assert {"torch", "bitsandbytes"} <= loaded
    assert "torch._inductor.compile_fx" not in loaded


async def test_light_services_run_without_torch_and_log_their_start_and_stop(amqp_url: str) -> None:
    environment = {
        "EVERYDREAM_AMQP_URL": amqp_url,
        "EVERYDREAM_BASE_MODEL": "tiny",
        "EVERYDREAM_API_KEYS": "test-key",
    }

    async with running(LIGHT, environment) as services:
        for name in LIGHT:
            libraries = libraries_of(services.first(name))
            assert "msgspec" in libraries, "a library that they all have is not seen"
            assert "libtorch" not in libraries
            assert "google/_upb" not in libraries, "what exports traces is not loaded for nothing"
        assert not services.first("gateway").children
        assert not services.first("notifier").children
        fetcher = services.first("fetcher")
        assert "_imaging" not in libraries_of(fetcher)
        await fetcher.wait_for(lambda: any(map(has_read_pillow, fetcher.children)), 60.0)
        (parser,) = fetcher.children
        resident = [each.memory_info().rss for each in (psutil.Process(fetcher.pid), parser)]
        assert sum(resident) < FETCHER_BYTES, resident
        await services.stop()
        for process in services.all:
            lines = [json.loads(line) for line in process.text.splitlines()]
            assert {(line["service"], line["pid"]) for line in lines} == {
                (process.name, process.pid)
            }
            told = [line["event"] for line in lines if line["event"] in {"starting", "stopping"}]
            assert told == ["starting", "stopping"]
