"""Prints what torch sees on this machine, as JSON: ``python -m`` this module.

For processes that must not load torch themselves.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from shared.diffusion.device import device_name, this_device
from shared.errors import Passing, SettingsError


def device_facts() -> dict[str, Any]:
    """Versions, device and its memory in bytes; if it cannot be used, ``problem`` and ``mend``."""
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "problem": None,
        "mend": None,
    }
    try:
        device = this_device()
    except SettingsError as error:
        found = {"problem": error.reason, "mend": error.mend}
        return {**facts, "device": "none", "name": "none", **found}
    except Passing as error:
        found = {"problem": str(error), "mend": "`nvidia-smi` names what has it"}
        return {**facts, "device": "none", "name": "none", **found}
    facts |= {"device": device.type, "name": device_name(device)}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        facts |= {"memory_bytes": total, "free_bytes": free}
    return facts


if __name__ == "__main__":
    sys.stdout.write(json.dumps(device_facts()))
