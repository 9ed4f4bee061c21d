"""Which store the settings open."""

from pathlib import Path

import pytest

from shared.adapters.folder import FolderStore
from shared.adapters.s3 import S3Store
from shared.adapters.stores import open_store
from shared.errors import SettingsError
from shared.settings import Settings, from_environment


def settings(home: Path, **others: str) -> Settings:
    return from_environment({"EVERYDREAM_HOME": str(home), **others})


async def test_without_a_word_the_store_is_a_folder_in_the_home(tmp_path: Path) -> None:
    store = open_store(settings(tmp_path / "a b#c?d"), "key")
    await store.put("x/y", b"z")
    assert isinstance(store, FolderStore)
    assert store.path_of("x/y") == tmp_path / "a b#c?d" / "store" / "x" / "y"


async def test_a_file_url_names_another_folder(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/with%20space"
    store = open_store(settings(tmp_path, EVERYDREAM_STORE_URL=url), "key")
    await store.put("x", b"y")
    assert isinstance(store, FolderStore)
    assert store.path_of("x") == tmp_path / "with space" / "x"


async def test_links_to_a_folder_start_with_the_public_url_and_depend_on_the_key(
    tmp_path: Path,
) -> None:
    one = settings(tmp_path, EVERYDREAM_PUBLIC_URL="https://dreams.example/base/")
    links = [await open_store(one, key).link("a b", seconds=60) for key in ("k1", "k2")]
    assert all(link.startswith("https://dreams.example/base/files/a%20b?") for link in links)
    assert links[0].partition("signature=")[2] != links[1].partition("signature=")[2]


async def test_an_s3_url_names_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    others = {
        "EVERYDREAM_STORE_URL": "s3://bucket/some/prefix",
        "EVERYDREAM_STORE_PUBLIC_ENDPOINT": "https://s3.example",
    }
    store = open_store(settings(tmp_path, **others), "key")
    assert isinstance(store, S3Store)
    link = await store.link("x", seconds=60)
    assert link.startswith("https://s3.example/bucket/some/prefix/x?")
    await store.close()


@pytest.fixture
def keys_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The AWS libraries' file of keys, and no keys but those."""
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    file = tmp_path / "aws-credentials"
    file.write_text("[default]\naws_access_key_id = of-the-file\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    return file


BUCKET = {"EVERYDREAM_STORE_URL": "s3://bucket"}


@pytest.mark.usefixtures("keys_file")
async def test_the_keys_of_a_bucket_may_come_from_a_file(tmp_path: Path) -> None:
    store = open_store(settings(tmp_path, **BUCKET), "key")
    assert "X-Amz-Credential=of-the-file" in await store.link("x", seconds=60)
    await store.close()


def test_a_file_of_keys_that_cannot_be_read_is_named(tmp_path: Path, keys_file: Path) -> None:
    keys_file.unlink()
    with pytest.raises(SettingsError, match=r"AWS_SHARED_CREDENTIALS_FILE is '.*', which cannot"):
        open_store(settings(tmp_path, **BUCKET), "key")


@pytest.mark.usefixtures("keys_file")
def test_the_keys_of_a_bucket_are_not_given_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(SettingsError, match="AWS_SHARED_CREDENTIALS_FILE are both set"):
        open_store(settings(tmp_path, **BUCKET), "key")
