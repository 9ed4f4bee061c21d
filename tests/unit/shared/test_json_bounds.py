"""Bounds of a JSON text, however long its texts are."""

from __future__ import annotations

import json

import pytest

from shared.messaging.json_bounds import MAX_DEPTH, OutOfBounds, check_bounds

LETTERS = (10, 900, 1100, 8100, 100_000)
"""Of a text: around the lengths from which it is looked through otherwise."""
LISTS = "[" * (MAX_DEPTH + 1)


def refusal(text: str) -> OutOfBounds:
    with pytest.raises(OutOfBounds) as refused:
        check_bounds(text.encode())
    return refused.value


@pytest.mark.parametrize("letters", LETTERS)
@pytest.mark.parametrize("ending", ["", '"', "\\", '\\"' * 9, "\n" * 20])
def test_what_is_in_a_text_counts_as_nothing_else(letters: int, ending: str) -> None:
    text = json.dumps({"a": LISTS + "x" * letters + ending, "b": [LISTS + ending]})

    check_bounds(text.encode())

    assert "in one another" in str(refusal(text.removesuffix("]}") + f",{LISTS}"))


@pytest.mark.parametrize("letters", LETTERS)
@pytest.mark.parametrize("ending", ["", '"' * 9])
def test_a_name_that_stands_twice_is_found_at_any_length(letters: int, ending: str) -> None:
    name = "x" * letters + ending
    one, other = json.dumps({name: 1}), json.dumps({name + "y": 1})

    check_bounds(f"{one[:-1]},{other[1:]}".encode())

    assert refusal(f"{one[:-1]} , {one[1:]}").name == name
    assert refusal(f"{one[:-4]} : 1, {one[1:]}").name == name


@pytest.mark.parametrize("letters", LETTERS)
@pytest.mark.parametrize("ending", ["", "\\", '\\"'])
def test_a_text_without_an_end_is_left_to_the_decoder(letters: int, ending: str) -> None:
    check_bounds(f'["{"x" * letters}{ending}'.encode())
