"""What a preset makes of a request, and what is said of it."""

from __future__ import annotations

from typing import Any

from shared.presets import PRESETS, Preset


def fields_of(preset: Preset | None) -> dict[str, Any]:
    """The fields that a preset sets."""
    return {name: choice.value for name, choice in PRESETS[preset].items()} if preset else {}


def explained(preset: Preset, used: dict[str, Any]) -> list[str]:
    """What a preset sets and why, a line each; ``used`` is the request's train."""
    return [
        f"  {name} = {choice.value}: {choice.why} ({choice.source})"
        if used.get(name) == choice.value
        else f"  {name}: yours, {used.get(name)}, counts"
        for name, choice in PRESETS[preset].items()
    ]
