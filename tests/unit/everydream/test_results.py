"""Whether results can be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from everydream.results import check_writable
from shared.errors import Refused


def test_a_folder_that_can_be_made_is_not_made_yet(tmp_path: Path) -> None:
    check_writable(tmp_path / "results" / "of" / "ted")

    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")

    for folder in (file, file / "results"):
        with pytest.raises(Refused, match=rf"cannot be written: {file}: Not a directory; give"):
            check_writable(folder)


def test_a_place_where_nothing_can_be_written_is_refused() -> None:
    with pytest.raises(Refused, match="results cannot be written"):
        check_writable(Path("/proc/results"))
