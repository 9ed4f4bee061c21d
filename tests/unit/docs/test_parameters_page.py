"""docs/parameters.md says what the code checks: every name, default and range."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec import NODEFAULT, Struct
from msgspec import inspect as types

from services.gateway.jobs.fields.descriptions import describe
from shared.request import Inference, Policy, S3Config, Train, Validation

ROOT = Path(__file__).parents[3]
ROW = re.compile(r"\| `(\w+)` \| (.+?) \| (.+?) \| (.+) \|")
SECTIONS = {
    "`input.train`, as the endpoint's page has it": Train,
    "`input.train`, beyond the page": Train,
    "`input.train.validation`": Validation,
    "`input.inference`": Inference,
    "`s3Config`": S3Config,
    "`policy`": Policy,
}


def rows(title: str) -> dict[str, tuple[str, str]]:
    """A section's parameters: name to default and range."""
    text = (ROOT / "docs/parameters.md").read_text()
    section = re.split(r"^#+ ", text.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    return {name: (default, span) for name, default, span, _ in ROW.findall(section)}


def in_code(kind: type[Struct]) -> dict[str, tuple[str, str]]:
    fields = cast("types.StructType", types.type_info(kind)).fields
    return {each.name: (default_of(each), describe(each.type)) for each in fields}


def default_of(each: types.Field) -> str:
    if each.required:
        return "required"
    value: Any = each.default if each.default is not NODEFAULT else each.default_factory()
    return f"`{json.dumps(value)}`"


@pytest.mark.parametrize("kind", dict.fromkeys(SECTIONS.values()), ids=lambda kind: kind.__name__)
def test_every_parameter_is_documented_with_the_default_and_the_range_that_is_checked(
    kind: type[Struct],
) -> None:
    documented: dict[str, tuple[str, str]] = {}
    for title, of in SECTIONS.items():
        if of is kind:
            documented |= rows(title)

    assert documented == in_code(kind)


def test_the_page_has_31_parameters_and_ours_are_apart() -> None:
    theirs, beyond, *_ = SECTIONS

    assert len(rows(theirs)) == 31
    assert not rows(theirs).keys() & rows(beyond).keys()
