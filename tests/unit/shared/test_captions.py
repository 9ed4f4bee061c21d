"""Parsing, merging, shuffling and limiting captions."""

from collections import Counter
from random import Random
from unittest.mock import ANY

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.dataset.captions import (
    Caption,
    Tag,
    bounded,
    controls_in,
    decode,
    from_name,
    merge,
    parse,
    shuffled,
    weighted_sample,
    without_controls,
)


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("a photo of ted bennet, sitting_1.jpg", "a photo of ted bennet, sitting"),
        ("x_y_z.jpg", "x"),
        ("ted/by the sea.PNG", "by the sea"),
        ("version 1.5 of it.webp", "version 1.5 of it"),
        ("_1.jpg", ""),
    ],
)
def test_a_name_is_a_caption_up_to_its_first_underscore(name: str, caption: str) -> None:
    assert from_name(name).text == caption


def test_commas_part_the_main_prompt_from_tags_and_a_tag_counts_once() -> None:
    assert parse("main,, t , t, u,").text == "main, , t, u"
    assert parse("main,, t , t, u,").main == "main"


def test_a_caption_file_is_utf_8_with_or_without_a_mark_and_otherwise_what_windows_wrote() -> None:
    assert decode("\ufeffa café\n".encode()).text == "a café"
    assert decode("a café".encode("cp1252")).text == "a café"
    assert decode(b"\x81 is no letter in 1252").text == "\x81 is no letter in 1252"
    assert decode("a café\n".encode("utf-16")).text == "a café"


JAPANESE, CHINESE = "日本語、猫", "中文, a cat"
SEVEN_BITS = [
    *((JAPANESE, f"iso2022_jp{kind}") for kind in ("", "_1", "_2", "_3", "_2004", "_ext")),
    ("ｱｲ", "iso2022_jp_ext"),
    ("größe", "iso2022_jp_1"),
    ("größe", "iso2022_jp_2004"),
    ("한국어", "iso2022_jp_2"),
    ("한국어", "iso2022_kr"),
]


@pytest.mark.parametrize(("text", "encoding"), SEVEN_BITS)
def test_escape_characters_show_the_encoding(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding)) == (text, ANY, False, "")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [(JAPANESE, "utf-7"), ("Mädchen", "utf-7"), (CHINESE, "utf-7"), (CHINESE, "hz")],
)
def test_what_may_be_another_encoding_in_ascii_is_left_and_shown_as_it_would_be(
    text: str, encoding: str
) -> None:
    raw = text.encode(encoding)

    assert decode(raw) == (raw.decode(), "utf-8", False, text)


@pytest.mark.parametrize(
    "text",
    [
        "c++, 1+1=2, lgbt+",
        "1girl+standing+iPhone14",
        "a+Standing woman",
        "~{cat~} ~{~}",
        "\x1b[0mcat",
    ],
)
def test_a_plus_or_a_brace_alone_makes_nothing_doubtful(text: str) -> None:
    assert decode(text.encode()) == (text, "utf-8", False, "")


@given(st.text(st.sampled_from("+-~{}$()B\x1b\x0eAa1/ ä中"), min_size=1))
def test_a_text_in_utf_8_is_read_as_it_is_unless_it_has_escape_characters(text: str) -> None:
    decoded = decode(text.encode())

    assert decoded.text == text.strip() or (text.isascii() and "\x1b" in text)


@pytest.mark.parametrize("raw", [b"a cat\0", b"a red cat\0\0", b"a\0 red cat, old"])
def test_nuls_in_a_text_or_behind_it_are_named_and_no_sign_of_utf_16(raw: bytes) -> None:
    text = decode(raw).text

    assert without_controls(text) == raw.replace(b"\0", b"").decode()
    assert controls_in(text) == "control characters are taken out: U+0000"


def test_a_text_with_a_mark_that_is_wrong_is_doubtful() -> None:
    decoded = decode(b"\xef\xbb\xbfa cat\xe9")

    assert decoded.is_doubtful
    assert "cat" in decoded.text


def test_the_first_main_prompt_wins_and_tags_add_up_the_heaviest_first() -> None:
    yaml = Caption("from yaml", (Tag("y1"), Tag("y2", 2.0)))

    merged = merge([yaml, parse("from caption, t2"), parse("from txt, t1")])

    assert merged.text == "from yaml, y2, y1, t2, t1"
    assert merged.weights == (2.0, 1.0, 1.0, 1.0)


def test_a_caption_without_words_leaves_the_main_prompt_to_the_next() -> None:
    assert merge([parse(""), parse("the name")]).text == "the name"


def test_the_first_weight_given_to_a_tag_is_the_one_that_counts() -> None:
    first, second = Caption("a", (Tag("t", 3.0),)), Caption("b", (Tag("u"), Tag("t", 9.0)))

    assert merge([first, second]).tags == (Tag("t", 3.0), Tag("u"))


@given(st.lists(st.sampled_from("abcdefg"), unique=True), st.integers())
def test_shuffling_keeps_the_first_part_in_front_and_loses_no_tag(
    tags: list[str], seed: int
) -> None:
    main, *rest = shuffled(", ".join(["main", *tags]), (), Random(seed)).split(", ")

    assert main == "main"
    assert sorted(rest) == sorted(tags)


def test_every_order_of_three_tags_comes_about_equally_often() -> None:
    random = Random(1)

    orders = Counter(shuffled("m, a, b, c", (), random) for _ in range(6000))

    assert len(orders) == 6
    assert all(850 < count < 1150 for count in orders.values())


def test_a_tag_of_three_times_the_weight_comes_first_three_times_as_often() -> None:
    random = Random(2)

    firsts = Counter(shuffled("m, a, b", (3.0, 1.0), random) for _ in range(8000))

    assert firsts["m, a, b"] / 8000 == pytest.approx(0.75, abs=0.02)


def test_drawing_two_of_four_by_rating_has_the_exact_odds() -> None:
    random = Random(3)

    drawn = Counter(
        index for _ in range(20_000) for index in weighted_sample([1, 1, 1, 3], 2, random)
    )

    odds = [drawn[index] / 20_000 for index in range(4)]
    assert odds == pytest.approx([0.4, 0.4, 0.4, 0.8], abs=0.015)


tags = st.lists(st.sampled_from("abcdefg"), unique=True)


@given(tags, st.integers(0, 8), st.integers(), st.sampled_from([0.0, 1.0]))
def test_the_first_tags_stay_where_they_are_when_that_is_asked_for(
    names: list[str], keep: int, seed: int, steps: float
) -> None:
    weights = [1.0 + steps * number for number in range(len(names))] if steps else []

    text = shuffled(", ".join(["main", *names]), weights, Random(seed), keep_tags=keep)

    main, *rest = text.split(", ")
    assert (main, rest[:keep]) == ("main", names[:keep])
    assert sorted(rest) == sorted(names)


def test_tags_that_are_not_kept_are_drawn_by_weights_of_their_own() -> None:
    random = Random(2)

    seconds = Counter(
        shuffled("m, kept, a, b", (9.0, 4.0, 1.0), random, keep_tags=1) for _ in range(8000)
    )

    assert seconds["m, kept, a, b"] / 8000 == pytest.approx(0.8, abs=0.02)


def test_a_main_prompt_with_commas_of_its_own_stays_whole() -> None:
    caption = merge([Caption("a cat, on a mat, by day", (Tag("t"), Tag("u")))])

    orders = {
        shuffled(caption.text, (), Random(seed), main_parts=caption.main_parts)
        for seed in range(20)
    }

    assert orders == {"a cat, on a mat, by day, t, u", "a cat, on a mat, by day, u, t"}


@pytest.mark.parametrize(
    ("most", "text"),
    [
        (24, "main, first, second, 3"),
        (22, "main, first, second, 3"),
        (21, "main, first, second"),
        (18, "main, first"),
        (10, "main"),
        (3, "mai"),
    ],
)
def test_a_caption_ends_before_the_tag_that_would_overshoot(most: int, text: str) -> None:
    assert bounded("main, first, second, 3", 1, most) == text


@given(st.lists(st.text("abc", max_size=6), min_size=1, max_size=9), st.integers(1, 40))
def test_a_bounded_caption_never_overshoots_and_drops_tags_from_the_end_alone(
    parts: list[str], most: int
) -> None:
    whole = ", ".join(parts)

    text = bounded(whole, 1, most)

    assert len(text) <= most
    assert whole.startswith(text)
    kept = text.split(", ")
    if len(parts[0]) <= most:
        assert kept == parts[: len(kept)]
        longer = ", ".join(parts[: len(kept) + 1])
        assert len(longer) > most or len(kept) == len(parts)
    else:
        assert text == parts[0][:most]


@example("\\\\)")
@example("\\\x1b)")
@given(st.text(max_size=60))
def test_any_text_is_a_caption_whose_own_text_says_the_same_again(text: str) -> None:
    caption = parse(text)

    assert parse(caption.text) == caption
    assert len({tag.text for tag in caption.tags}) == len(caption.tags)
    assert caption.text.count(", ") == caption.main_parts - 1 + len(caption.tags)


@given(st.lists(st.builds(parse, st.text("ab, ", max_size=12)), max_size=5))
def test_merging_keeps_every_tag_once_and_in_order(captions: list[Caption]) -> None:
    merged = merge(captions)

    every = dict.fromkeys(tag.text for caption in captions for tag in caption.tags)
    assert [tag.text for tag in merged.tags] == list(every)
    assert merged.main == next((one.main for one in captions if one.main), "")
