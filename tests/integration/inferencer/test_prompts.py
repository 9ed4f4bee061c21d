"""Encode prompts of any length, with emphasis, or empty."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.inferencer.generation.prompts import MAX_BLOCKS, Fragment, PromptEncoder, parse
from shared.diffusion.loading import Parts
from shared.diffusion.text import encode, tokenize
from tests.support.models import random_parts, random_sd2_parts

PLAIN = [
    "a red wall",
    "",
    " ",
    "a (red) wall, ((blue)) [wall] {wall} <wall>",
    "red++ blue-- (wall)1.3 (red)+ ('red', 'blue').blend(1, 0.5) and().",
    "(word:abc) (red:) (red:1,2) :1.2) red:1.2 (wall",
    "a red wall!!!",
    "<|endoftext|> red <|startoftext|>",
    "zorblat \N{SNOWMAN} 壁\n\x00",
    "red " * 75,
]
SIGNS = ["(", ")", ":1.2)", ":0)", ":9e999)", ":-3)", "\\", ",", "!", " ", "red", "<|endoftext|>"]


@pytest.fixture(scope="module")
def sd1() -> Parts:
    return random_parts()


@pytest.fixture(scope="module")
def sd2() -> Parts:
    return random_sd2_parts()


def plain(parts: Parts, text: str, clip_skip: int = 0) -> Tensor:
    """One block, encoded as captions are in training."""
    with torch.inference_mode():
        return encode(parts.text_encoder, tokenize(parts.tokenizer, [text]), clip_skip)


def embed(parts: Parts, prompt: str, clip_skip: int = 0) -> Tensor:
    return PromptEncoder(parts, clip_skip).embed(prompt)[0]


@pytest.mark.parametrize("clip_skip", range(5))
@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_a_prompt_without_emphasis_means_to_the_bit_what_a_caption_means(
    kind: str, clip_skip: int, request: pytest.FixtureRequest
) -> None:
    parts: Parts = request.getfixturevalue(kind)
    encoder = PromptEncoder(parts, clip_skip)

    for text in PLAIN:
        wanted, unwanted = encoder.embed(text, text)
        assert torch.equal(wanted, plain(parts, text, clip_skip)), text
        assert torch.equal(unwanted, wanted), text


def test_the_precision_is_the_models_own_and_weights_are_applied_in_a_higher_one() -> None:
    parts = random_parts().to(torch.device("cpu"), torch.float16)

    before, empty = plain(parts, "red"), plain(parts, "")

    assert before.dtype == torch.float16
    assert torch.equal(embed(parts, "red"), before)
    exact = empty.float() + 1.3 * (before.float() - empty.float())
    assert torch.equal(embed(parts, "(red:1.3)")[:, 1], exact.half()[:, 1])


def test_no_negative_prompt_is_the_empty_caption(sd1: Parts) -> None:
    _, unwanted = PromptEncoder(sd1, 2).embed("a red wall")

    assert torch.equal(unwanted, plain(sd1, "", 2))
    assert not torch.equal(unwanted, plain(sd1, "blue", 2))


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_a_long_prompt_is_blocks_that_break_between_phrases_and_the_shorter_one_is_filled_up(
    kind: str, request: pytest.FixtureRequest
) -> None:
    parts: Parts = request.getfixturevalue(kind)
    first, second, third = "red " * 60 + ",", "blue " * 50 + ",", "red " * 40
    empty = plain(parts, "", 2)

    wanted, unwanted = PromptEncoder(parts, 2).embed(first + second + third, "blue")

    blocks = [plain(parts, each, 2) for each in (first, second, third)]
    assert torch.equal(wanted, torch.cat(blocks, dim=1))
    assert torch.equal(unwanted, torch.cat([plain(parts, "blue", 2), empty, empty], dim=1))

    wanted, unwanted = PromptEncoder(parts, 2).embed("blue", first + second)

    assert torch.equal(wanted, torch.cat([plain(parts, "blue", 2), empty], dim=1))
    assert unwanted.shape == wanted.shape


def test_a_word_stays_in_one_block_where_there_is_no_phrase_to_break_at(sd1: Parts) -> None:
    """``zorblat`` is seven tokens, and the block has room for three."""
    embedded = embed(sd1, "red " * 72 + "zorblat")

    blocks = [plain(sd1, "red " * 72), plain(sd1, "zorblat")]
    assert torch.equal(embedded, torch.cat(blocks, dim=1))


def test_what_comes_after_the_last_block_is_cut_off(sd1: Parts) -> None:
    most = embed(sd1, "red " * 75 * MAX_BLOCKS)

    assert most.shape == (1, 77 * MAX_BLOCKS, 32)
    assert torch.equal(embed(sd1, "red " * 75 * MAX_BLOCKS + "blue"), most)
    assert torch.equal(embed(sd1, "red " * 25_000), most)
    assert embed(sd1, "blue, " + "zorblat" * 4_000 + "(, red:1.2)" * 4_000).shape == most.shape


def test_a_prompt_whose_end_is_cut_off_is_known(sd1: Parts) -> None:
    encoder = PromptEncoder(sd1, clip_skip=0)
    fits, one_more = "red " * 75 * MAX_BLOCKS, "red " * 75 * MAX_BLOCKS + "blue"
    phrases = ("red " * 70 + ", ") * (MAX_BLOCKS + 1)

    for prompt, negative in ((fits, one_more), (phrases, "blue"), ("red", one_more)):
        encoder.embed(prompt, negative)

    assert encoder.cut == [one_more, phrases]


@pytest.mark.parametrize("clip_skip", [0, 2])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.25, 2.0])
def test_a_weight_scales_how_far_a_word_is_from_the_empty_prompt(
    sd1: Parts, weight: float, clip_skip: int
) -> None:
    before, empty = plain(sd1, "blue red blue", clip_skip), plain(sd1, "", clip_skip)
    expected = before.clone()
    expected[:, 2] = empty[:, 2] + weight * (before[:, 2] - empty[:, 2])

    embedded = embed(sd1, f"blue (red:{weight}) blue", clip_skip)

    assert torch.allclose(embedded, expected, atol=1e-6)
    assert not torch.allclose(embedded[:, 2], before[:, 2], atol=1e-2)


def test_a_weight_follows_its_word_into_a_later_block(sd1: Parts) -> None:
    before, empty = plain(sd1, "blue"), plain(sd1, "")

    embedded = embed(sd1, "red " * 75 + "(blue:1.5)")

    expected = empty[:, 1] + 1.5 * (before[:, 1] - empty[:, 1])
    assert torch.allclose(embedded[:, 77 + 1], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("prompt", "fragments"),
    [
        ("", []),
        ("a (red:1.2) wall", [("a ", 1.0), ("red", 1.2), (" wall", 1.0)]),
        ("(red: +.5 )(blue:5e-1)", [("redblue", 0.5)]),
        ("a (red:1.0) (wall:1)", [("a red wall", 1.0)]),
        ("((red:1.5) blue:0.5)", [("red", 0.75), (" blue", 0.5)]),
        ("((red:2) blue:0.5)", [("red", 1.0), (" blue", 0.5)]),
        ("((red:0.5):2)", [("red", 1.0)]),
        ("(a (b) c:1.2) (d)", [("a (b) c", 1.2), (" (d)", 1.0)]),
        ("(a ( b:1.2)", [("(a ", 1.0), (" b", 1.2)]),
        ("(a:1.2))", [("a", 1.2), (")", 1.0)]),
        ("(a:1.2:1.3)", [("a:1.2", 1.3)]),
        (r"zorb \(blue:1.2\) \n", [("zorb (blue:1.2) " + r"\n", 1.0)]),
        (r"(4:3\)", [("(4:3)", 1.0)]),
        (r"(a \) b:1.5)", [("a ) b", 1.5)]),
        ("(red:9e99) ", [("red", 2.0), (" ", 1.0)]),
        ("(red:-1)", [("red", 0.0)]),
        ("((red:0):9e999)", [("red", 0.0)]),
        ("(red:nan) (red:inf) (red:٣)", [("(red:nan) (red:inf) (red:٣)", 1.0)]),
    ],
)
def test_emphasis_is_a_parenthesis_with_a_number_and_all_else_is_literal(
    prompt: str, fragments: list[tuple[str, float]]
) -> None:
    assert parse(prompt) == [Fragment(*each) for each in fragments]


LETTERS = st.characters(exclude_characters="\\0123456789", codec="utf-8")


@given(st.text(st.one_of(LETTERS, st.sampled_from("(): ,"))))
def test_a_text_without_emphasis_is_given_back_to_the_letter(text: str) -> None:
    assert parse(text) == [Fragment(text, 1.0)] * bool(text)


@given(st.lists(st.one_of(st.sampled_from(SIGNS), st.text(max_size=3))).map("".join))
@example("(" * 30_000 + "red" + ":1.1)" * 30_000)
@example("(" * 30_000 + ")(" * 30_000 + ":1.1)" * 30_000)
@example("(red:" + "1" * 100_000)
@settings(max_examples=50, deadline=5000)
def test_any_text_has_an_embedding(sd1: Parts, text: str) -> None:
    wanted, unwanted = PromptEncoder(sd1, 2).embed(text, "blue")

    assert wanted.shape == unwanted.shape
    assert wanted.shape[0] == 1
    assert wanted.shape[1] in range(77, 77 * MAX_BLOCKS + 1, 77)
    assert wanted.isfinite().all()
