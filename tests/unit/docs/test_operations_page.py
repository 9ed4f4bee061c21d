"""The page for operators names every warning that a service can log."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "operations.md"
LEVELS = {"warning", "error", "exception", "critical"}


def test_every_warning_of_a_service_is_explained() -> None:
    page = PAGE.read_text()
    logged = {name for path in sources() for name in warnings_in(path)}
    assert len(logged) > 20
    assert sorted(name for name in logged if f"`{name}`" not in page) == []


def sources() -> list[Path]:
    folders = (ROOT / "services", ROOT / "shared")
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def warnings_in(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="log"), attr=level),
                args=[ast.Constant(value=str(name)), *_],
            ) if level in LEVELS:
                yield name
