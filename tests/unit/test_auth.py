"""Who may ask, and whose a job is."""

from __future__ import annotations

import stat
import tomllib
from hashlib import sha256
from pathlib import Path

import pytest

from services.gateway.auth import Keys, digest_of, make_key

URL = "http://127.0.0.1:8080"


def test_the_owner_is_the_keys_digest() -> None:
    keys = Keys([digest_of("one"), digest_of("two")])
    assert keys.owner("Bearer one") == sha256(b"one").hexdigest()
    assert keys.owner("Bearer two") == sha256(b"two").hexdigest()


@pytest.mark.parametrize("header", ["Bearer one", "bearer one", "BEARER   one ", "one", " one "])
def test_every_way_to_send_a_key(header: str) -> None:
    assert Keys([digest_of("one")]).owner(header) == digest_of("one")


@pytest.mark.parametrize(
    "header",
    [None, "", " ", "Bearer", "Bearer ", "Bearer One", "Bearer one two", "Basic one", "onee",
     "Bearer\tone", "Bearer one\x00", "Bearer \udcff", digest_of("one"), "é"],
)  # fmt: skip
def test_nobody_else_is_let_in(header: str | None) -> None:
    assert Keys([digest_of("one")]).owner(header) is None


def test_without_keys_nobody_is_let_in() -> None:
    assert Keys([]).owner("Bearer one") is None
    assert Keys([]).owner(None) is None


def test_a_key_with_a_space_works_when_it_is_sent_as_bearer() -> None:
    assert Keys([digest_of("two words")]).owner("Bearer two words")


def test_a_key_is_made_once_shown_once_and_kept_as_a_hash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "not" / "there" / "yet"
    made = make_key(home, URL)
    client = tomllib.loads((home / "client.toml").read_text())
    assert client["url"] == URL
    assert capsys.readouterr().out.count(client["key"]) == 1
    assert len(client["key"]) >= 43
    owner = made.owner(f"Bearer {client['key']}")
    assert owner == digest_of(client["key"])

    again = make_key(home, URL)
    assert capsys.readouterr().out == ""
    assert again.owner(client["key"]) == owner
    assert client["key"] not in (home / "keys.json").read_text()
    for name in ("client.toml", "keys.json"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    assert sorted(path.name for path in home.iterdir()) == ["client.toml", "keys.json"]


def test_two_homes_have_two_keys(tmp_path: Path) -> None:
    make_key(tmp_path / "a", URL)
    other = make_key(tmp_path / "b", URL)
    key = tomllib.loads((tmp_path / "a" / "client.toml").read_text())["key"]
    assert other.owner(key) is None
