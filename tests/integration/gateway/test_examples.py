"""The examples of the API documents are what a gateway answers."""

from __future__ import annotations

from pathlib import Path

from services.gateway.api_docs.examples import examples
from tests.support.examples_story import tell


async def test_every_example_is_what_the_gateway_answers(tmp_path: Path) -> None:
    told = await tell(tmp_path)

    assert told.keys() == {each.name for each in examples()}
    for example in examples():
        hint = f"the example {example.name!r} is stale: `make examples` writes it anew"
        assert told[example.name] == example, hint
