"""The device to compute on: the one that the deployment asks for, tried before it is used."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import torch

from shared.child.records import DEVICE, DEVICE_SETTING
from shared.diffusion.memory import is_out_of_memory
from shared.errors import Passing, SettingsError

NVIDIA = ("proc/driver/nvidia/version", "dev/nvidiactl", "usr/lib/wsl/lib/libcuda.so.1")
"""One of these is there where a card is: the driver's own, the device's, Windows'."""
DRIVERS = {"12": 525, "13": 580}
"""The oldest driver by CUDA's major version, by NVIDIA's table of minor version compatibility."""
HIDDEN = ("", "-1")
"""What ``CUDA_VISIBLE_DEVICES`` says where no card is to be used."""


def this_device(system: Path = Path("/")) -> torch.device:
    """The device of this process, as its parent's variable asks.

    ``auto`` is the first card, or the processor of a machine without one. A card has computed
    something before it is returned; one that cannot be used is never passed over in silence.

    Args:
        system: the folder of ``proc`` and ``dev``.

    Raises:
        SettingsError: the card that is here or asked for cannot be used; says why and what to do.
        Passing: others have taken all of its memory.
    """
    wanted = os.environ.get(DEVICE) or "auto"
    if wanted == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return _tried(torch.device("cuda:0" if wanted in ("auto", "cuda") else wanted))
    if wanted != "auto":
        raise SettingsError(f"{_setting()} is {wanted}, but {_why_no_card(system)}", _mend())
    if _has_nvidia(system) and os.environ.get("CUDA_VISIBLE_DEVICES") not in HIDDEN:
        raise SettingsError(f"this machine has an NVIDIA card, but {_why_no_card(system)}", _mend())
    return torch.device("cpu")


def device_uuid(device: torch.device) -> str:
    """The card's UUID, without the driver's prefix; empty: it is no card."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


def device_name(device: torch.device) -> str:
    """The card's name, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _has_nvidia(system: Path) -> bool:
    """Whether an NVIDIA driver or card is here, whatever torch sees."""
    return any((system / path).exists() for path in NVIDIA)


def _tried(device: torch.device) -> torch.device:
    """Have the card compute something, and wait for it: it may be listed and have no kernels."""
    count = torch.cuda.device_count()
    if device.index >= count:
        cards = f"cuda:0 to cuda:{count - 1}"
        raise SettingsError(f"{_setting()} is {device}, but the cards are {cards}", _mend())
    torch.cuda.set_device(device)  # bitsandbytes and questions about memory mean the current one
    try:
        torch.ones(2, device=device).sum().item()
    except RuntimeError as error:
        if is_out_of_memory(error):
            text = f"other processes have taken the memory of {device}; the worker tries again"
            raise Passing(text) from error
        raise SettingsError(
            f"{device} cannot compute: {_first_line(error)}; it has compute capability"
            f" {'.'.join(map(str, torch.cuda.get_device_capability(device)))}, this torch has"
            f" kernels for {', '.join(torch.cuda.get_arch_list())}",
            _mend(),
        ) from error
    return device


def _setting() -> str:
    """The setting that asks for the device of this process."""
    return os.environ.get(DEVICE_SETTING) or DEVICE


def _mend() -> str:
    return f"docs/gpu.md says how to mend it, and {_setting()}=cpu does without the card"


def _why_no_card(system: Path) -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    why = f"torch (CUDA {torch.version.cuda}) finds none: {_complaint()}"
    found = _driver(system)
    needed = DRIVERS.get((torch.version.cuda or "").partition(".")[0])
    if found and needed and found < needed:
        return f"{why}; its driver is {found}, and must be {needed} or newer"
    return why


def _complaint() -> str:
    """What torch says when it is made to use a card."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.cuda.current_device()
        except (RuntimeError, AssertionError) as error:
            return _first_line(error)
    return "no device"


def _driver(system: Path) -> int | None:
    """The driver's major version; None: it is not told."""
    try:
        text = (system / NVIDIA[0]).read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(r"\s(\d{3,4})\.\d+", text)
    return int(found[1]) if found else None


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
