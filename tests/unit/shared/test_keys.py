"""The deployment's key: its file, derived keys, signatures and seals."""

import base64
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared import keys
from shared.errors import Refused, SettingsError
from shared.request import S3Config
from shared.settings import from_environment

KEY = "a key of thirty-two letters or more"
OTHER_KEY = "another key of thirty-two letters or more"
S3 = S3Config(
    accessId="AKIA-very-private",
    accessSecret="hunter2-very-private",
    bucketName="my-bucket",
    endpointUrl="https://s3.example.com",
    objectPath="models/é",
)
JOB = "11111111-1111-1111-1111-111111111111"
ADVICE = "gateway and notifier have different EVERYDREAM_SECRET_KEY"


# --- The key itself


def test_a_configured_key_is_used_and_no_file_is_made(tmp_path: Path) -> None:
    assert keys.secret_key(KEY, tmp_path) == KEY
    assert list(tmp_path.iterdir()) == []


def test_without_one_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"

    made = keys.secret_key(None, home)

    assert len(made) >= 32
    assert stat.S_IMODE((home / "secret.key").stat().st_mode) == 0o600
    assert keys.secret_key(None, home) == made
    assert [file.name for file in home.iterdir()] == ["secret.key"]
    assert keys.secret_key(None, tmp_path) != made


def test_services_that_start_at_the_same_time_agree_on_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as threads:
        made = set(threads.map(lambda _: keys.secret_key(None, tmp_path), range(64)))

    assert len(made) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["secret.key"]


def test_a_process_that_finds_the_key_made_meanwhile_takes_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    winner = keys.secret_key(None, tmp_path)
    # As if the file did not exist yet when it was checked.
    monkeypatch.setattr(Path, "exists", lambda _: False)

    assert keys.secret_key(None, tmp_path) == winner
    assert [file.name for file in tmp_path.iterdir()] == ["secret.key"]


def test_an_empty_key_file_is_reported_and_never_used(tmp_path: Path) -> None:
    (tmp_path / "secret.key").write_text("\n")

    with pytest.raises(SettingsError, match=r"secret\.key holds no key; remove it"):
        keys.secret_key(None, tmp_path)


def test_what_is_derived_for_one_purpose_serves_no_other_one() -> None:
    derived = [
        keys.derive(key, purpose) for key in (KEY, OTHER_KEY) for purpose in ("links", "webhooks")
    ]

    assert len(set(derived)) == 4
    assert {len(each) for each in derived} == {32}
    assert keys.derive(KEY, "links") == derived[0]


def test_a_webhook_secret_is_the_configured_one_or_derived_in_the_form_of_one() -> None:
    assert keys.webhook_secret("whsec_mine", KEY) == "whsec_mine"
    derived = keys.webhook_secret(None, KEY)
    assert derived == keys.webhook_secret(None, KEY) != keys.webhook_secret(None, OTHER_KEY)
    taken = from_environment({"EVERYDREAM_WEBHOOK_SECRET": derived})
    assert taken.webhook_secret == derived


# --- Links


def test_a_link_holds_for_its_path_until_it_ends() -> None:
    signature = keys.link_signature(KEY, "jobs/1/a.png", 1000)

    assert keys.link_holds(KEY, "jobs/1/a.png", 1000, signature, now=999.9)
    assert not keys.link_holds(KEY, "jobs/1/a.png", 1000, signature, now=1000.0)


@pytest.mark.parametrize(
    ("key", "path", "expires"),
    [(OTHER_KEY, "jobs/1/a.png", 1000), (KEY, "jobs/2/a.png", 1000), (KEY, "jobs/1/a.png", 1001)],
    ids=["another key", "another path", "a later end"],
)
def test_a_signature_is_good_for_nothing_else(key: str, path: str, expires: int) -> None:
    signature = keys.link_signature(KEY, "jobs/1/a.png", 1000)

    assert not keys.link_holds(key, path, expires, signature, now=0.0)


@pytest.mark.parametrize("signature", ["", "0" * 64, "é", "\udcff", "\0"])
def test_what_is_no_signature_of_ours_opens_nothing(signature: str) -> None:
    assert not keys.link_holds(KEY, "jobs/1/a.png", 1000, signature, now=0.0)


# --- Sealed bucket secrets


def test_what_the_gateway_seals_the_notifier_opens() -> None:
    assert keys.unseal(KEY, keys.seal(KEY, S3, JOB), JOB) == S3


def test_a_sealed_text_shows_nothing_and_is_never_the_same_twice() -> None:
    first, second = keys.seal(KEY, S3, JOB), keys.seal(KEY, S3, JOB)

    assert first != second
    for private in (b"AKIA", b"hunter2", b"my-bucket"):
        assert private not in base64.b64decode(first)


def test_secrets_are_not_shown_by_the_thing_that_holds_them() -> None:
    for shown in (repr(S3), str(S3), f"{S3}", repr([S3])):
        assert "my-bucket" in shown
        assert "very-private" not in shown


def test_another_key_opens_nothing_and_says_what_to_look_at() -> None:
    with pytest.raises(Refused, match=ADVICE) as caught:
        keys.unseal(OTHER_KEY, keys.seal(KEY, S3, JOB), JOB)
    assert "very-private" not in str(caught.value)


def test_not_one_changed_byte_goes_unnoticed() -> None:
    sealed = base64.b64decode(keys.seal(KEY, S3, JOB))

    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(Refused, match=ADVICE):
            keys.unseal(KEY, base64.b64encode(changed).decode(), JOB)


@pytest.mark.parametrize("text", ["", "A", "AAAA", "A" * 16, "no base64!", "é", "A" * 17])
def test_a_damaged_text_is_refused_and_crashes_nobody(text: str) -> None:
    with pytest.raises(Refused, match=ADVICE):
        keys.unseal(KEY, text, JOB)
