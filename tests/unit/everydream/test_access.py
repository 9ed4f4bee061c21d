"""Where the command line finds the gateway and its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from everydream.access import Access, access, address_of
from services.gateway.web.authentication import CLIENT_FILE, first_key
from shared.errors import Refused
from shared.settings import Settings, from_environment


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EVERYDREAM_URL", "EVERYDREAM_API_KEY", "EVERYDREAM_API_KEYS"):
        monkeypatch.delenv(name, raising=False)


def settings_in(home: Path) -> Settings:
    return from_environment({"EVERYDREAM_HOME": str(home)})


def test_the_key_of_the_first_start_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first_key(tmp_path, "https://train.example.com")
    key = capsys.readouterr().out.split()[-1]

    assert access(None, None, settings_in(tmp_path)) == Access("https://train.example.com", key)


def test_address_and_key_come_each_from_a_flag_or_else_from_the_home_folder(
    tmp_path: Path,
) -> None:
    first_key(tmp_path, "https://train.example.com")
    home = settings_in(tmp_path)
    kept = access(None, None, home).key

    given = access("https://other.example.com/", "k", home)
    key_alone = access(None, "k", home)
    address_alone = access("https://train.example.com/", None, home)

    assert given[:2] == ("https://other.example.com", "k")
    assert key_alone == Access("https://train.example.com", "k", " --key KEY")
    assert address_alone[:2] == ("https://train.example.com", kept)


def test_without_a_home_the_usual_address_is_asked(tmp_path: Path) -> None:
    assert access(None, "k", settings_in(tmp_path))[:2] == ("http://127.0.0.1:8080", "k")


def test_the_doctor_asks_the_server_that_the_commands_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = settings_in(tmp_path)
    assert address_of(home) == "http://127.0.0.1:8080"
    first_key(tmp_path, "https://train.example.com")
    assert address_of(home) == access(None, "k", home).url == "https://train.example.com"
    monkeypatch.setenv("EVERYDREAM_URL", "box:1")
    assert address_of(home) == "http://box:1"


def test_an_address_without_a_scheme_is_taken_as_http(tmp_path: Path) -> None:
    assert access("gpu-box:8080", "k", settings_in(tmp_path)).url == "http://gpu-box:8080"


def test_an_address_that_is_none_is_reported(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"^ftp://x: expected the gateway's address"):
        access("ftp://x", "k", settings_in(tmp_path))


def test_what_to_do_next_names_the_gateway_unless_the_environment_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERYDREAM_API_KEY", "k")
    assert access("box:1", "k", settings_in(tmp_path)).flags == " --url http://box:1"
    monkeypatch.setenv("EVERYDREAM_URL", "box:1")
    assert access("box:1", "k", settings_in(tmp_path)).flags == ""


def test_what_to_do_next_has_a_place_for_a_key_that_was_given_and_does_not_show_it(
    tmp_path: Path,
) -> None:
    assert access("box:1", "secret", settings_in(tmp_path)).flags == (
        " --url http://box:1 --key KEY"
    )


def test_the_key_at_home_is_sent_to_no_other_gateway(tmp_path: Path) -> None:
    first_key(tmp_path, "https://train.example.com")

    with pytest.raises(Refused, match=r"client\.toml belongs to another gateway"):
        access("https://other.example.com", None, settings_in(tmp_path))


def test_without_any_key_the_error_says_what_there_is_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give = "no key for http://127.0.0.1:8080: give --key KEY, or set EVERYDREAM_API_KEY"
    with pytest.raises(Refused, match=give) as refused:
        access(None, None, settings_in(tmp_path))
    assert f"there is no {tmp_path / CLIENT_FILE}" in str(refused.value)

    monkeypatch.setenv("EVERYDREAM_API_KEYS", "one")
    with pytest.raises(Refused, match="a client sends one of them"):
        access(None, None, settings_in(tmp_path))


@pytest.mark.parametrize("text", ["url = ", "url = 'http://x'", "\\xff"])
def test_a_damaged_client_file_is_reported(tmp_path: Path, text: str) -> None:
    (tmp_path / CLIENT_FILE).write_text(text)

    with pytest.raises(Refused, match=r"client\.toml cannot be read .*; give --url and --key"):
        access(None, None, settings_in(tmp_path))
