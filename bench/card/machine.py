"""The driver, the versions and the card; and what the probe finds on it."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter

import msgspec
import torch

from bench.card.expected import expected_of, has_xformers
from bench.card.findings import Findings
from bench.card.setting import Setting, mebibytes
from services.trainer.training.device import probe, teraflops
from services.trainer.training.device_facts import device_facts
from services.trainer.training.recipe import choose
from shared.diffusion.device import this_device
from shared.request import Train

PACKAGES = (
    "torch",
    "triton",
    "xformers",
    "bitsandbytes",
    "diffusers",
    "transformers",
    "accelerate",
)
QUERY = "name,driver_version,memory.total,memory.used,compute_cap,power.limit"


def machine(setting: Setting) -> Findings:
    """Driver, versions, capability."""
    facts = device_facts()
    found = Findings(facts={"system": platform.platform(), "python": platform.python_version()})
    found.facts |= {name: _version(name) for name in PACKAGES}
    found.facts |= {name: str(value) for name, value in facts.items() if name != "torch"}
    if facts["problem"]:
        found.problems.append(facts["problem"])
    if not setting.is_card:
        return found
    found.facts["nvidia-smi"] = nvidia_smi()
    found.facts["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
    found.facts["kernels"] = " ".join(torch.cuda.get_arch_list())
    found.facts["cuDNN"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
    return found


def probing(setting: Setting) -> Findings:
    """What the probe finds, and what it chooses, against what is expected of the capability."""
    device = this_device()
    begun = perf_counter()
    found, train = probe(device), Train(data_url="https://example.org/x.zip")
    choices = choose(train, found)
    findings = Findings(
        facts={
            "seconds": f"{perf_counter() - begun:.1f}",
            "TFLOP/s in matrices": f"{teraflops(device):.1f}",
            **{name: str(value) for name, value in msgspec.to_builtins(found).items()},
            "chosen": ", ".join(msgspec.to_builtins(choices).values()),
        }
    )
    if setting.is_card:
        capability = torch.cuda.get_device_capability()
        expected = expected_of(capability, train, xformers=has_xformers())
        if expected != (choices.precision, choices.optimizer, choices.attention):
            findings.problems.append(f"expected {', '.join(expected)}")
        free, total = torch.cuda.mem_get_info()
        findings.facts["free memory"] = f"{mebibytes(free)} of {mebibytes(total)}"
    return findings


def nvidia_smi() -> str:
    """What the driver's tool says of the cards."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "is not here"
    command = [tool, f"--query-gpu={QUERY}", "--format=csv"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the driver's
    return (said.stdout or said.stderr).strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
