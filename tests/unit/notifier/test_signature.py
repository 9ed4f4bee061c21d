"""Webhook signatures, as the receivers' own library reads them."""

import base64
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from services.notifier import signature

SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()
OTHER = "whsec_" + base64.b64encode(bytes(24)).decode()
BODY = '{"id": "7b1c", "prompt": "ein Fuß"}'.encode()


def headers(at: int | None = None, secret: str = SECRET) -> dict[str, str]:
    now = int(time.time()) if at is None else at
    return signature.headers(secret, "msg-1", now, BODY)


def test_a_receiver_with_the_secret_accepts_the_body_as_it_was_sent() -> None:
    assert Webhook(SECRET).verify(BODY, headers())["prompt"] == "ein Fuß"


def test_the_signature_is_the_one_that_the_receivers_library_makes() -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)

    signed = headers(at=int(at.timestamp()))

    assert signed["webhook-signature"] == Webhook(SECRET).sign("msg-1", at, BODY.decode())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("webhook-timestamp", lambda old: str(int(old) + 1)),
        ("webhook-id", lambda old: old + "2"),
        ("webhook-signature", lambda old: old[:3] + old[3:].swapcase()),
    ],
)
def test_a_header_that_was_changed_is_found_out(name: str, change: Callable[[str], str]) -> None:
    good = headers()

    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(BODY, good | {name: change(good[name])})


def test_a_body_that_was_changed_is_found_out() -> None:
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(BODY + b" ", headers())


def test_another_secret_signs_otherwise() -> None:
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(BODY, headers(secret=OTHER))


def test_an_old_webhook_cannot_be_played_again() -> None:
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(BODY, headers(at=int(time.time()) - 3600))


def test_every_try_of_one_event_carries_its_id_and_its_own_time() -> None:
    first, second = headers(at=1000), headers(at=1010)

    assert first["webhook-id"] == second["webhook-id"] == "msg-1"
    assert (first["webhook-timestamp"], second["webhook-timestamp"]) == ("1000", "1010")
    assert first["webhook-signature"] != second["webhook-signature"]
