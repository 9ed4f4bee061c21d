"""Which addresses users' URLs may reach."""

import socket

import pytest

from shared.errors import Refused
from shared.network.addresses import is_forbidden, shown_url
from shared.network.outbound import Blocked, Guard, check_url, was_blocked

NOBODY: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",  # noqa: S104 - an address to refuse
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.0.8",
        "192.88.99.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:a00:1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "not an address",
        "",
    ],
)
def test_an_address_that_is_not_plainly_public_is_forbidden(address: str) -> None:
    assert is_forbidden(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "::ffff:8.8.8.8", "2606:4700::1111", "2a00:1450::1"]
)
def test_a_public_address_is_not(address: str) -> None:
    assert not is_forbidden(address)


def test_an_allowed_name_opens_the_addresses_it_has_on_the_port_it_was_asked_for() -> None:
    guard = Guard(frozenset({"minio"}))

    guard.check_answers("MinIO.", 9000, ["10.0.0.5"])

    assert guard.passes("10.0.0.5", 9000)
    assert not guard.passes("10.0.0.5", 5672)
    assert not guard.passes("10.0.0.6", 9000)


def test_an_allowed_port_opens_no_other_one() -> None:
    guard = Guard(frozenset({"minio:9000", "127.0.0.1:8000", "[::1]:8000"}))

    guard.check_answers("minio", 9000, ["10.0.0.5"])
    with pytest.raises(Blocked):
        guard.check_answers("minio", 9001, ["10.0.0.5"])

    assert guard.passes("127.0.0.1", 8000)
    assert not guard.passes("127.0.0.1", 8001)
    assert guard.passes("::1", 8000)
    assert not guard.passes("::1", 8001)


def test_one_private_answer_among_public_ones_is_enough_to_block_a_name() -> None:
    with pytest.raises(Blocked):
        Guard(NOBODY).check_answers("rebound.example", 80, ["8.8.8.8", "127.0.0.1"])


def test_no_socket_is_opened_towards_a_private_address() -> None:
    there = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))

    with pytest.raises(Blocked):
        Guard(NOBODY).open_socket(there)
    Guard(frozenset({"127.0.0.1"})).open_socket(there).close()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (
            "http://127.0.0.1/a",
            r"127\.0\.0\.1/a: the host is a private address; the operator can",
        ),
        ("http://[::ffff:127.0.0.1]:81/", "is a private address"),
        ("http://169.254.169.254/latest", "EVERYDREAM_ALLOWED_PRIVATE_HOSTS"),
        ("ftp://example.com/a", "expected an http or https URL"),
        ("file:///etc/passwd", "expected an http or https URL"),
        ("https://user:secret@example.com/a", "a user name or password is not taken"),
        ("https://example.com:port/", "not a URL"),
        ("http://[::1/", "not a URL"),
    ],
)
def test_a_url_is_refused_for_what_it_shows(url: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason) as refused:
        check_url(url, NOBODY)

    assert "secret" not in str(refused.value)


def test_a_url_with_an_allowed_literal_or_a_name_passes() -> None:
    check_url("http://127.0.0.1:9000/bucket", frozenset({"127.0.0.1:9000"}))
    check_url("https://example.com/a.zip", NOBODY)


def test_a_signed_url_is_shown_without_its_signature() -> None:
    assert (
        shown_url("https://u:p@host:81/a/b.zip?X-Amz-Signature=abc#x") == "https://host:81/a/b.zip"
    )


def test_the_guard_is_recognised_behind_the_errors_of_a_client() -> None:
    wrapped, other = ConnectionError("cannot connect"), ConnectionError("cannot connect")
    wrapped.__cause__ = ValueError("wrapped twice")
    wrapped.__cause__.__context__ = Blocked("no")

    assert was_blocked(wrapped)
    assert not was_blocked(other)
