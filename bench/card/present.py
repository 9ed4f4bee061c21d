"""Whether this machine has an NVIDIA card; needs nothing installed: ``make card`` asks it first."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

DRIVER = ("proc/driver/nvidia/version", "dev/nvidiactl", "usr/lib/wsl/lib/libcuda.so.1")
NO_CARD = """\
There is no NVIDIA card here: neither its driver nor nvidia-smi is.
  - On a machine with a card, install the driver first: docs/gpu.md says which.
  - In a container, give it the card: docker run --gpus all ...
  - To try the command itself on the processor, with a small model:
      .venv/bin/python -m bench.card --device cpu
Nothing was measured, and no report was written."""


def has_card(system: Path = Path("/")) -> bool:
    """Whether the driver's own files are here, or its tool lists a card."""
    if any((system / path).exists() for path in DRIVER):
        return True
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    listed = subprocess.run([tool, "-L"], capture_output=True, check=False)  # noqa: S603 - the driver's
    return listed.returncode == 0 and bool(listed.stdout.strip())


if __name__ == "__main__" and not has_card():
    sys.exit(NO_CARD)
