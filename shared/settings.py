"""Settings from the environment, read once at start.

Each has a default that works. ``NAME_FILE`` may instead name a file that holds the value of
``NAME`` (for secrets). ``docs/settings.md`` is the table for people.
"""

from __future__ import annotations

import base64
import difflib
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple, TypeVar

import structlog

from shared.errors import SettingsError

T = TypeVar("T")
MAX_PORT = 65535
MAX_SECONDS = 1e9
MIN_WEBHOOK_SECRET = 24
"""Bytes; required by Standard Webhooks."""
MAX_BODY = 20 << 20
"""Bytes of the largest request body; RunPod's limit for ``/runsync``."""
HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:[0-9]{1,5})?")
NO_NAMES: tuple[str, ...] = ()
RENAMED = {"CONCURRENCY": "PLACES", "HEARTBEAT": "BEAT"}
"""Old names of settings, still read if the new one is not set."""
PREFIX, FILE = "EVERYDREAM_", "_FILE"
OF_CLIENTS = ("URL", "API_KEY")
"""Names that the command line reads by itself."""

log = structlog.get_logger()


class DeviceSetting(NamedTuple):
    """A device to compute on, and the variable that asks for it."""

    value: str
    name: str = f"{PREFIX}DEVICE"


ANY_DEVICE = DeviceSetting("auto")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A deployment's settings; see :func:`from_environment`."""

    home: Path
    """Folder for local state: database, folder store, caches, scratch."""
    api_keys: tuple[str, ...] = field(repr=False)
    """Bearer keys; empty: one is created at the first start."""
    host: str
    port: int
    metrics_host: str
    metrics_port: int | None
    """Where each process serves metrics and answers probes; None: nowhere."""
    public_url: str
    """URL under which clients reach the gateway; links to files start with it."""
    cors_origins: frozenset[str]
    """Sites whose pages may use the gateway from a browser; ``*``: all."""
    amqp_url: str = field(repr=False)
    """May name several hosts of one cluster, separated by commas."""
    delivery_limit: int
    """Deliveries of a message by the broker before it is a dead letter."""
    quorum_group_size: int | None
    """Nodes of the broker that hold a queue when it is made; None: as the broker is set."""
    database_url: str = field(repr=False)
    database_connections: int
    """Of one gateway, to PostgreSQL."""
    store_url: str
    store_public_endpoint: str | None
    """Endpoint in presigned links, if clients reach the store under another name."""
    base_model: str
    """The path of a diffusers folder or a model file, a hub id, or ``tiny``."""
    device: str
    """What GPU work is done on: ``auto``, ``cpu``, ``cuda``, or a card such as ``cuda:1``."""
    trainer_device: str | None
    """The trainer's, where it is to be another; None: ``device``."""
    inferencer_device: str | None
    private_models: frozenset[str]
    """Hub ids, or ``org/*``, that users may name although they need the deployment's token."""
    secret_key: str | None = field(repr=False)
    """Signs links and seals secrets; shared by all services. None: created and kept in ``home``."""
    webhook_secret: str | None = field(repr=False)
    """``whsec_`` and base64, as in Standard Webhooks. None: derived from the secret key."""
    allowed_private_hosts: frozenset[str]
    """Private hosts (``host`` or ``host:port``) that users' URLs may reach."""
    concurrency: int | None
    """How many jobs one fetcher or notifier works on at a time; None: the service's default."""
    resume_every: float
    """Seconds between resume points."""
    drain_seconds: float
    """How long a worker that is told to stop may go on with the jobs that it has."""
    keep_days: float
    heartbeat: float
    """Seconds; leases, patience, retry delays and the broker's heartbeat are multiples of it."""
    log_level: str
    """The least that is logged: ``debug``, ``info``, ``warning`` or ``error``."""
    access_log: bool
    """Whether the gateway logs every request."""
    max_live_jobs: int
    """Jobs of one key that have not ended; this and what follows are the budgets of each key."""
    max_kept_jobs: int
    """Jobs that are kept with their results, ended ones included."""
    max_request_bytes: int
    """Of the requests of all kept jobs."""
    max_body_bytes: int
    """Of bodies that arrive or wait at one gateway."""
    max_upload_bytes: int
    """Of all kept uploads, with their announced sizes."""
    max_unfinished_uploads: int
    max_upload_parts: int
    """Stored files of all kept uploads."""
    max_model_bytes: int
    """Of models from URLs and the hub that its jobs still need."""
    max_waiting_requests: int
    """Long polls and streams at one gateway."""
    body_memory: int
    """Bytes that one gateway holds of the bodies of all keys."""

    @property
    def trainers_device(self) -> DeviceSetting:
        """What the trainer computes on."""
        return self._device_of(self.trainer_device, "TRAINER_DEVICE")

    @property
    def inferencers_device(self) -> DeviceSetting:
        """What the inferencer computes on."""
        return self._device_of(self.inferencer_device, "INFERENCER_DEVICE")

    def _device_of(self, own: str | None, name: str) -> DeviceSetting:
        return DeviceSetting(own, f"{PREFIX}{name}") if own else DeviceSetting(self.device)

    @property
    def scratch(self) -> Path:
        """Files of the current job; nothing here outlives its job."""
        return self.home / "scratch"

    @property
    def cache(self) -> Path:
        """Models that GPU workers keep between jobs."""
        return self.home / "cache"


def from_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read every ``EVERYDREAM_*`` variable.

    One of an unknown name is a warning, which names the nearest.

    Raises:
        SettingsError: names the variable, its value and what it accepts.
    """
    read = _Reader(environment)
    settings = _read(read)
    read.warn_of_unknown()
    return settings


def _read(read: _Reader) -> Settings:
    home = read("HOME", _path, None) or _path("~/.everydream")
    port = read("PORT", _port, 8080)
    return Settings(
        home=home,
        api_keys=read("API_KEYS", _names, NO_NAMES),
        host=read("HOST", str, "127.0.0.1"),
        port=port,
        metrics_host=read("METRICS_HOST", str, "127.0.0.1"),
        metrics_port=read("METRICS_PORT", _port, None),
        public_url=read("PUBLIC_URL", _http_url, _local_url(port)),
        cors_origins=frozenset(read("CORS_ORIGINS", _origins, NO_NAMES)),
        amqp_url=read("AMQP_URL", _amqp_url, "amqp://guest:guest@127.0.0.1/"),
        delivery_limit=read("DELIVERY_LIMIT", _count, 20),
        quorum_group_size=read("QUORUM_GROUP_SIZE", _count, None),
        database_connections=read("DATABASE_CONNECTIONS", _count, 15),
        database_url=read("DATABASE_URL", _database_url, f"sqlite:///{home / 'everydream.db'}"),
        store_url=read("STORE_URL", _store_url, f"file://{home / 'store'}"),
        store_public_endpoint=read("STORE_PUBLIC_ENDPOINT", _http_url, None),
        base_model=read("BASE_MODEL", str, "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        device=read("DEVICE", _device, "auto"),
        trainer_device=read("TRAINER_DEVICE", _device, None),
        inferencer_device=read("INFERENCER_DEVICE", _device, None),
        private_models=frozenset(read("PRIVATE_MODELS", _models, NO_NAMES)),
        secret_key=read("SECRET_KEY", _secret, None),
        webhook_secret=read("WEBHOOK_SECRET", _webhook_secret, None),
        allowed_private_hosts=frozenset(read("ALLOWED_PRIVATE_HOSTS", _hosts, NO_NAMES)),
        concurrency=read("CONCURRENCY", _count, None),
        resume_every=read("RESUME_EVERY", _seconds, 300.0),
        drain_seconds=read("DRAIN_SECONDS", _seconds_or_none, 0.0),
        keep_days=read("KEEP_DAYS", _seconds, 30.0),
        heartbeat=read("HEARTBEAT", _seconds, 10.0),
        log_level=read("LOG_LEVEL", _level, "info"),
        access_log=read("ACCESS_LOG", _on_or_off, default=False),
        max_live_jobs=read("MAX_LIVE_JOBS", _count, 10_000),
        max_kept_jobs=read("MAX_KEPT_JOBS", _count, 100_000),
        max_request_bytes=read("MAX_REQUEST_BYTES", _count, 1 << 30),
        max_body_bytes=read("MAX_BODY_BYTES", _bytes(MAX_BODY), 256 << 20),
        max_upload_bytes=read("MAX_UPLOAD_BYTES", _count, 100 << 30),
        max_unfinished_uploads=read("MAX_UNFINISHED_UPLOADS", _count, 16),
        max_upload_parts=read("MAX_UPLOAD_PARTS", _count, 50_000),
        max_model_bytes=read("MAX_MODEL_BYTES", _count, 100 << 30),
        max_waiting_requests=read("MAX_WAITING_REQUESTS", _count, 1_000),
        body_memory=read("BODY_MEMORY", _bytes(2 * MAX_BODY), 48 << 20),
    )


def read_secret(environment: Mapping[str, str], variable: str, file_variable: str) -> str | None:
    """A variable's value, or the stripped text of the file that ``file_variable`` names.

    Raises:
        SettingsError: both are set, or the file cannot be read.
    """
    value, file = environment.get(variable), environment.get(file_variable)
    if not file:
        return value
    if value:
        raise SettingsError(f"{variable} and {file_variable} are both set, but only one may be")
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"{file_variable} is {file!r}, which cannot be read: {error}") from None


class _Reader:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._known = {*OF_CLIENTS, *RENAMED.values()}

    def __call__(self, name: str, parse: Callable[[str], T], default: T) -> T:
        self._known.add(name)
        variable = f"{PREFIX}{name}"
        text = self._text(variable)
        if not text and (old := RENAMED.get(name)):
            old = f"{PREFIX}{old}"
            if text := self._text(old):
                log.warning("setting_renamed", old=old, new=variable)
                variable = old
        if text is None or text == "":
            return default
        try:
            return parse(text)
        except ValueError as error:
            shown = (
                "(hidden)" if "SECRET" in name or "URL" in name or "KEYS" in name else repr(text)
            )
            raise SettingsError(f"{variable} is {shown}, but takes {error}") from None

    def warn_of_unknown(self) -> None:
        """Warn of every variable with our prefix that was not read."""
        known = [f"{name}{end}" for name in sorted(self._known) for end in ("", FILE)]
        for variable in sorted(self._environment):
            name = variable.removeprefix(PREFIX)
            if variable.startswith(PREFIX) and name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                nearest = f"{PREFIX}{near[0]}" if near else None
                log.warning("setting_unknown", name=variable, nearest=nearest)

    def _text(self, variable: str) -> str | None:
        return read_secret(self._environment, variable, f"{variable}{FILE}")


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ValueError("a folder; this ~ stands for none") from None


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) > MAX_PORT:
        raise ValueError("a port number from 0 to 65535")
    return int(text)


def on_free_port(settings: Settings) -> Settings:
    """With a free port in the place of 0, which is also in the URL if none was set."""
    if settings.port:
        return settings
    with socket.create_server((settings.host, 0)) as server:
        port = int(server.getsockname()[1])
    is_derived = settings.public_url == _local_url(0)
    return replace(
        settings, port=port, public_url=_local_url(port) if is_derived else settings.public_url
    )


def _local_url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise ValueError("a whole number of at least 1")
    return int(text)


def _bytes(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or int(text) < least:
            raise ValueError(f"a number of bytes of at least {least}")
        return int(text)

    return parse


def _seconds(text: str) -> float:
    try:
        # Python's own numbers may have digits of any alphabet, and underscores as in 1_0.
        value = float(text) if text.isascii() and "_" not in text else -1.0
    except ValueError:
        value = -1.0
    if not 0.0 < value < MAX_SECONDS:
        raise ValueError("a number above 0")
    return value


def _seconds_or_none(text: str) -> float:
    return 0.0 if text == "0" else _seconds(text)


def _names(text: str) -> tuple[str, ...]:
    """Raises ValueError: it has commas or blanks alone, and is not meant to be empty."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise ValueError("at least one, separated by commas")
    return names


def _hosts(text: str) -> tuple[str, ...]:
    hosts = _names(text)
    if not all(HOST_AND_PORT.fullmatch(host) or _is_address(host) for host in hosts):
        raise ValueError(
            "hosts such as files.internal, 10.0.0.5:9000 or [fd00::1]:9000, without http:// and"
            " without a path"
        )
    return hosts


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _models(text: str) -> tuple[str, ...]:
    names = _names(text)
    if not all(re.fullmatch(r"[\w.-]+/([\w.-]+|\*)", name) for name in names):
        raise ValueError("hub ids such as org/name, or org/* for all of an organisation")
    return names


def _origins(text: str) -> tuple[str, ...]:
    origins = _names(text)
    if not all(re.fullmatch(r"\*|https?://[^/\s?#@*]+", origin) for origin in origins):
        raise ValueError("origins such as https://app.example.com, without a path, or *")
    return origins


def _webhook_secret(text: str) -> str:
    try:
        secret = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except ValueError:
        secret = b""
    if not text.startswith("whsec_") or len(secret) < MIN_WEBHOOK_SECRET:
        raise ValueError("whsec_ and at least 24 bytes in base64")
    return text


def _matching(pattern: str, expected: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(expected)
        return text.rstrip("/") if text.startswith("http") else text

    return parse


def _on_or_off(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError("on or off")
    return text == "on"


_level = _matching(r"debug|info|warning|error", "debug, info, warning or error")
_device = _matching(r"auto|cpu|cuda(:[0-9]{1,2})?", "auto, cpu, cuda or a card such as cuda:1")
_http_url = _matching(r"https?://[^/\s]+.*", "an http or https URL")
_amqp_url = _matching(r"amqps?://\S+", "an amqp:// or amqps:// URL")
_store_url = _matching(r"(file:///|s3://[^/\s]+)\S*", "file:///folder or s3://bucket/prefix")
_database_url = _matching(
    r"(sqlite|postgresql)(\+\w+)?://\S+", "sqlite:///file or postgresql://user:password@host/name"
)
_secret = _matching(r".{32,}", "at least 32 characters")
