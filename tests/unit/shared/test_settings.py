"""Every setting: its default, a valid value, and the error for a wrong one."""

import base64
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from shared.errors import SettingsError
from shared.settings import Settings, from_environment, on_free_port

DOCUMENT = Path(__file__).parents[3] / "docs" / "settings.md"
HOME = Path("~/.everydream").expanduser()
LONG = "k" * 32
WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"s" * 24).decode()
SHORT_SECRET = "whsec_" + base64.b64encode(b"s" * 23).decode()


@dataclass(frozen=True)
class Case:
    """One variable."""

    name: str
    default: Any
    good: dict[str, Any]
    """Text to value."""
    wrong: tuple[str, ...] = ()
    takes: str = ""
    """What an error says that the variable accepts."""

    @property
    def variable(self) -> str:
        return f"EVERYDREAM_{self.name}"

    @property
    def field(self) -> str:
        return self.name.lower()


URL_WORDS = "an http or https URL"
CASES = [
    Case("HOME", HOME, {"/srv/x": Path("/srv/x"), "~/x": Path("~/x").expanduser()},
         ("~nobody-of-this-name/x",), "a folder"),
    Case("API_KEYS", (), {"one": ("one",), " one, two ,,": ("one", "two")},
         (",,", " ,, "), "at least one, separated by commas"),
    Case("DEVICE", "auto", {"cpu": "cpu", "cuda": "cuda", "cuda:1": "cuda:1"},
         ("gpu", "cuda:", "cuda:x", "cuda:200", "CPU", "mps"),
         "auto, cpu, cuda or a card such as cuda:1"),
    Case("TRAINER_DEVICE", None, {"cuda:0": "cuda:0"}, ("0",), "auto, cpu, cuda or a card"),
    Case("INFERENCER_DEVICE", None, {"cpu": "cpu"}, ("1",), "auto, cpu, cuda or a card"),
    Case("HOST", "127.0.0.1", {"0.0.0.0": "0.0.0.0"}),  # noqa: S104 - nothing listens
    Case("PORT", 8080, {"80": 80, "0": 0, "65535": 65535},
         ("65536", "-1", "http", "8.0", "²", " "), "a port number from 0 to 65535"),
    Case("METRICS_HOST", "127.0.0.1", {"0.0.0.0": "0.0.0.0"}),  # noqa: S104 - nothing listens
    Case("METRICS_PORT", None, {"9464": 9464, "0": 0}, ("65536", "-1", "http"),
         "a port number from 0 to 65535"),
    Case("PUBLIC_URL", "http://127.0.0.1:8080",
         {"https://a.example": "https://a.example", "http://a/b/": "http://a/b"},
         ("a.example", "ftp://a", "http://", "https:///x"), URL_WORDS),
    Case("CORS_ORIGINS", frozenset(),
         {"*": frozenset("*"), "https://a.example, http://b:3000":
          frozenset({"https://a.example", "http://b:3000"})},
         ("a.example", "https://a.example/", "https://*.example", "null", "ftp://a", "* x"),
         "origins such as https://app.example.com, without a path, or *"),
    Case("AMQP_URL", "amqp://guest:guest@127.0.0.1/",
         {"amqp://u:p@h:1/v": "amqp://u:p@h:1/v", "amqps://h": "amqps://h",
          "amqp://u:p@h,i:1/v": "amqp://u:p@h,i:1/v"},
         ("h:5672", "http://u:secret@h"), "an amqp:// or amqps:// URL"),
    Case("DELIVERY_LIMIT", 20, {"5": 5}, ("0", "-1"), "a whole number of at least 1"),
    Case("QUORUM_GROUP_SIZE", None, {"3": 3}, ("0", "all"), "a whole number of at least 1"),
    Case("DATABASE_CONNECTIONS", 15, {"40": 40}, ("0", "many"), "a whole number of at least 1"),
    Case("DATABASE_URL", f"sqlite:///{HOME}/everydream.db",
         {"postgresql://u:p@h/n": "postgresql://u:p@h/n", "sqlite:////x.db": "sqlite:////x.db",
          "postgresql+asyncpg://h/n": "postgresql+asyncpg://h/n"},
         ("mysql://u:secret@h/n", "/x.db"), "sqlite:///file or postgresql://"),
    Case("STORE_URL", f"file://{HOME}/store",
         {"s3://bucket/prefix": "s3://bucket/prefix", "file:///srv/store": "file:///srv/store"},
         ("/srv/store", "file://srv/store", "s3://", "gs://bucket"),
         "file:///folder or s3://bucket/prefix"),
    Case("STORE_PUBLIC_ENDPOINT", None, {"https://s3.example/": "https://s3.example"},
         ("s3.example",), URL_WORDS),
    Case("BASE_MODEL", "stable-diffusion-v1-5/stable-diffusion-v1-5", {"tiny": "tiny"}),
    Case("PRIVATE_MODELS", frozenset(), {"org/name, our-org/*": {"org/name", "our-org/*"}},
         ("org", "*/name", "org/name/more", "org/na*"), "hub ids such as org/name, or org/*"),
    Case("SECRET_KEY", None, {LONG: LONG}, ("k" * 31,), "at least 32 characters"),
    Case("WEBHOOK_SECRET", None, {WEBHOOK_SECRET: WEBHOOK_SECRET},
         (SHORT_SECRET, WEBHOOK_SECRET.removeprefix("whsec_"), WEBHOOK_SECRET + "A",
          "whsec_" + "é" * 32), "whsec_ and at least 24 bytes in base64"),
    Case("ALLOWED_PRIVATE_HOSTS", frozenset(), {"a, 10.0.0.5:9000": {"a", "10.0.0.5:9000"},
          "[::1]:9000, [fd00::1], ::1": {"[::1]:9000", "[fd00::1]", "::1"}},
         ("http://minio:9000", "minio:9000/bucket", "minio:http", "*.internal", "u@minio"),
         "hosts such as files.internal, 10.0.0.5:9000 or [fd00::1]:9000, without http://"),
    Case("CONCURRENCY", None, {"1": 1, "8": 8}, ("0", "-1", "two", "1.5", "²"),
         "a whole number of at least 1"),
    Case("RESUME_EVERY", 300.0, {"0.5": 0.5, "120": 120.0},
         ("0", "-1", "soon", "nan", "inf"), "a number above 0"),
    Case("DRAIN_SECONDS", 0.0, {"0": 0.0, "3600": 3600.0}, ("-1", "soon", "inf"),
         "a number above 0"),
    Case("KEEP_DAYS", 30.0, {"7": 7.0}, ("0", "-1", "week", "nan", "inf"), "a number above 0"),
    Case("HEARTBEAT", 10.0, {"0.2": 0.2}, ("0", "-1", "fast", "nan", "inf", "1_0"),
         "a number above 0"),
    Case("LOG_LEVEL", "info", {"debug": "debug", "error": "error"}, ("INFO", "trace", "0"),
         "debug, info, warning or error"),
    Case("ACCESS_LOG", default=False, good={"on": True, "off": False}, wrong=("yes", "1", "true"),
         takes="on or off"),
    Case("MAX_LIVE_JOBS", 10_000, {"1": 1}, ("0", "many"), "a whole number of at least 1"),
    Case("MAX_KEPT_JOBS", 100_000, {"1": 1}, ("0",), "a whole number of at least 1"),
    Case("MAX_REQUEST_BYTES", 1 << 30, {"1000": 1000}, ("1e9",), "a whole number of at least 1"),
    Case("MAX_BODY_BYTES", 256 << 20, {str(20 << 20): 20 << 20}, (str((20 << 20) - 1), "20M"),
         "a number of bytes of at least 20971520"),
    Case("MAX_UPLOAD_BYTES", 100 << 30, {"1": 1}, ("0",), "a whole number of at least 1"),
    Case("MAX_UNFINISHED_UPLOADS", 16, {"1": 1}, ("0",), "a whole number of at least 1"),
    Case("MAX_UPLOAD_PARTS", 50_000, {"2": 2}, ("0",), "a whole number of at least 1"),
    Case("MAX_MODEL_BYTES", 100 << 30, {"1": 1}, ("0",), "a whole number of at least 1"),
    Case("MAX_WAITING_REQUESTS", 1_000, {"1": 1}, ("0",), "a whole number of at least 1"),
    Case("BODY_MEMORY", 48 << 20, {str(40 << 20): 40 << 20}, (str((40 << 20) - 1), "0"),
         "a number of bytes of at least 41943040"),
]  # fmt: skip
NAMES = [case.name for case in CASES]
GOOD = [(case, text) for case in CASES for text in case.good]
WRONG = [(case, text) for case in CASES for text in case.wrong]
SECRETS = ("API_KEYS", "SECRET_KEY", "WEBHOOK_SECRET", "AMQP_URL", "DATABASE_URL")


def settings(**variables: str) -> Settings:
    return from_environment({f"EVERYDREAM_{name}": text for name, text in variables.items()})


def test_no_setting_is_left_out_here_or_in_the_table_for_people() -> None:
    assert {case.field for case in CASES} == {each.name for each in dataclasses.fields(Settings)}
    for case in CASES:
        assert f"| `{case.variable}` |" in DOCUMENT.read_text()


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_setting_that_nobody_made_has_a_default(case: Case) -> None:
    assert getattr(settings(), case.field) == case.default
    assert getattr(settings(**{case.name: ""}), case.field) == case.default


@pytest.mark.parametrize(("case", "text"), GOOD)
def test_a_good_value_is_taken(case: Case, text: str) -> None:
    assert getattr(settings(**{case.name: text}), case.field) == case.good[text]


@pytest.mark.parametrize(("old", "new"), [("BEAT", "HEARTBEAT"), ("PLACES", "CONCURRENCY")])
def test_a_setting_under_its_old_name_is_taken_with_a_warning_that_names_the_new_one(
    old: str, new: str
) -> None:
    field = new.lower()
    with capture_logs() as logs:
        assert getattr(settings(**{old: "7"}), field) == 7
    warning = {"event": "setting_renamed", "log_level": "warning"}
    assert logs == [{**warning, "old": f"EVERYDREAM_{old}", "new": f"EVERYDREAM_{new}"}]

    with capture_logs() as logs:
        assert getattr(settings(**{old: "7", new: "8"}), field) == 8
    assert logs == []


def test_a_wrong_value_is_reported_under_the_name_that_was_given() -> None:
    with pytest.raises(SettingsError, match=r"^EVERYDREAM_BEAT is 'fast', but takes a number"):
        settings(BEAT="fast")


@pytest.mark.parametrize(("case", "text"), WRONG)
def test_a_wrong_value_is_reported_with_its_variable_and_the_allowed_values(
    case: Case, text: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(**{case.name: text})
    assert str(caught.value).startswith(f"{case.variable} is ")
    assert f"but takes {case.takes}" in str(caught.value)


@pytest.mark.parametrize(
    ("case", "text"), [(case, text) for case, text in WRONG if case.name in SECRETS]
)
def test_no_error_shows_a_secret(case: Case, text: str) -> None:
    with pytest.raises(SettingsError, match=r"is \(hidden\)") as caught:
        settings(**{case.name: text})
    assert text not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_error_shows_what_is_no_secret() -> None:
    with pytest.raises(SettingsError, match="EVERYDREAM_PORT is 'http'"):
        settings(PORT="http")


def test_the_defaults_follow_home_and_port() -> None:
    chosen = settings(HOME="/srv/x", PORT="9000")

    assert chosen.database_url == "sqlite:////srv/x/everydream.db"
    assert chosen.store_url == "file:///srv/x/store"
    assert chosen.public_url == "http://127.0.0.1:9000"
    assert (chosen.scratch, chosen.cache) == (Path("/srv/x/scratch"), Path("/srv/x/cache"))


def test_a_relative_home_does_not_move_with_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings(HOME="here").home == tmp_path / "here"


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_every_value_may_come_from_a_file(case: Case, tmp_path: Path) -> None:
    text, value = next(iter(case.good.items()))
    file = tmp_path / "value"
    file.write_text(f"{text}\n")

    chosen = settings(**{f"{case.name}_FILE": str(file), case.name: ""})

    assert getattr(chosen, case.field) == value


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_value_and_a_file_for_one_setting_are_one_too_many(case: Case, tmp_path: Path) -> None:
    text = next(iter(case.good))
    file = tmp_path / "value"
    file.write_text(text)

    with pytest.raises(SettingsError) as caught:
        settings(**{f"{case.name}_FILE": str(file), case.name: text})

    both = f"{case.variable} and {case.variable}_FILE"
    assert str(caught.value) == f"{both} are both set, but only one may be"


def test_an_empty_name_of_a_file_counts_as_none() -> None:
    assert settings(SECRET_KEY_FILE="", SECRET_KEY=LONG).secret_key == LONG


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x80"], ids=["missing", "no text"])
def test_a_file_that_cannot_be_read_is_named(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(SettingsError, match=r"SECRET_KEY_FILE is '.*secret', which cannot"):
        settings(SECRET_KEY_FILE=str(file))


def test_a_wrong_secret_in_a_file_is_not_shown_either(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("too-short")

    with pytest.raises(SettingsError, match="EVERYDREAM_SECRET_KEY is ") as caught:
        settings(SECRET_KEY_FILE=str(file))
    assert "too-short" not in str(caught.value)


def test_a_variable_that_is_no_setting_is_a_warning_with_the_nearest_name() -> None:
    given = {
        "EVERYDREAM_PROT": "1", "EVERYDREAM_XYZZY": "1", "EVERYDREAM_URL": "http://x",
        "EVERYDREAM_API_KEY": "k", "EVERYDREAM_PLACES": "2", "EVERYDREAM_SECRET_KEY_FILE": "",
        "EVERYDREAMER": "1",
    }  # fmt: skip
    with capture_logs() as logs:
        from_environment(given)

    assert [log for log in logs if log["event"] == "setting_unknown"] == [
        {"event": "setting_unknown", "log_level": "warning", "name": "EVERYDREAM_PROT",
         "nearest": "EVERYDREAM_PORT"},
        {"event": "setting_unknown", "log_level": "warning", "name": "EVERYDREAM_XYZZY",
         "nearest": None},
    ]  # fmt: skip


def test_any_free_port_is_also_in_the_url_that_clients_get() -> None:
    settings = on_free_port(from_environment({"EVERYDREAM_PORT": "0"}))
    assert settings.port > 0
    assert settings.public_url == f"http://127.0.0.1:{settings.port}"

    own = {"EVERYDREAM_PORT": "0", "EVERYDREAM_PUBLIC_URL": "https://train.example.com"}
    assert on_free_port(from_environment(own)).public_url == "https://train.example.com"
    fixed = from_environment({"EVERYDREAM_PORT": "8081"})
    assert on_free_port(fixed) == fixed
