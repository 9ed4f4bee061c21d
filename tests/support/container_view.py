"""Tell, as JSON, what a process may do: run by the tests in a container of theirs."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path


def view(folders: list[str]) -> dict[str, object]:
    """Rights and secrets, and in which of these folders a file can be written."""
    status = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in status if ":\t" in line)
    return {
        "capabilities": {value for name, value in fields.items() if name.startswith("Cap")},
        "no_new_privileges": fields["NoNewPrivs"] == "1",
        "secrets": sorted(path.name for path in Path("/run/secrets").iterdir()),
        "writable": [folder for folder in folders if is_writable(folder)],
    }


def is_writable(folder: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    json.dump(view(sys.argv[1:]), sys.stdout, default=sorted)
