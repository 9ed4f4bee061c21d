"""Packing batches of one name into updates."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.dataset.packing import packed


@pytest.mark.parametrize(
    ("groups", "size", "fillers", "row"),
    [
        ([[1] * 4, [2] * 2], 3, [], [1, 1, 1, 2, 2, 1]),
        ([[1] * 4, [2] * 2], 3, [9, 9], [1, 1, 1, 2, 2, 9, 1, 9]),
        ([[1] * 2, [2] * 2, [3] * 3], 4, [], [3, 3, 3, 2, 1, 1, 2]),
        ([[1], [2] * 3, [3] * 2], 5, [], [2, 2, 2, 3, 3, 1]),
        ([], 3, [9, 9, 9, 9], [9, 9, 9, 9]),
    ],
)
def test_groups_are_packed_as_the_reference_packs_them(
    groups: list[list[int]], size: int, fillers: list[int], row: list[int]
) -> None:
    assert [item for bin_ in packed(groups, size, fillers) for item in bin_] == row


@given(st.lists(st.integers(0, 12), max_size=8), st.integers(1, 6), st.integers(0, 20))
def test_nothing_is_lost_and_only_the_last_update_may_be_short(
    counts: list[int], size: int, spare: int
) -> None:
    groups = [[name] * count for name, count in enumerate(counts)]

    bins = packed(groups, size, [-1] * spare)

    assert Counter(item for bin_ in bins for item in bin_) == Counter(
        [*(item for group in groups for item in group), *[-1] * spare]
    )
    assert all(len(bin_) == size for bin_ in bins[:-1])
    assert all(1 <= len(bin_) <= size for bin_ in bins[-1:])
    for name, count in enumerate(counts):  # as many as fill updates alone
        assert sum(bin_ == [name] * size for bin_ in bins) >= count // size


def test_with_enough_fillers_no_name_is_torn_apart() -> None:
    bins = packed([[1] * 3, [2] * 2, [3] * 2], 4, [9] * 5)

    assert [bin_ for bin_ in bins if set(bin_) != {9}] == [[1, 1, 1, 9], [2, 2, 9, 9], [3, 3, 9, 9]]
