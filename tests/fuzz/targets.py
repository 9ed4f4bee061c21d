"""What is fuzzed: each target reads bytes as a service would.

It may refuse them in its own words; whatever else it raises is a crash.
"""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import aio_pika
import pamqp.commands
import pamqp.header
import yaml
from aiormq.abc import DeliveredMessage

from services.fetcher.parsing.datasets.archive import Unpacked, _Unpacker
from services.fetcher.parsing.datasets.sidecars import Sidecars
from services.fetcher.parsing.zip_reader import checked_members, open_zip
from services.gateway.background.intake import job_id_for, owner_for
from services.gateway.jobs.admission import dataset_alone, unwrap, with_seeds
from services.gateway.jobs.request_parser import Invalid, parse_request
from services.gateway.web.bodies import _decoded
from shared.adapters.dead_letters import Undecodable, dead_letter, decode_untrusted
from shared.adapters.rabbitmq_envelope import envelope_of
from shared.dataset.captions import bounded, merge, shuffled
from shared.errors import Refused
from shared.messaging.messages import JobRequested, JobStarted, encode

SEPARATOR = b"\x00\x00"
"""Between the parts of an input that has several."""
CAPTION_FILES = ("a/b.yaml", "a/b.txt", "a/b.caption", "a/multiply.txt", "global.yaml")
REQUEST: dict[str, Any] = {
    "input": {
        "train": {
            "data_url": "https://example.com/dataset.zip", "resolution": 512, "lr": 1e-6,
            "max_epochs": 3, "validation": {"stabilize": True}, "sample_prompts": ["a", "b"],
        },
        "inference": [{"prompt": "a (b:1.2)", "seed": 7, "scheduler": "DDIM", "width": 512}],
    },
    "webhook": "https://example.com/hook",
    "webhook_events_filter": ["start", "completed"],
    "policy": {"executionTimeout": 5000, "ttl": 10000},
    "s3Config": {"accessId": "a", "accessSecret": "b", "bucketName": "c",
                 "endpointUrl": "https://s3.example.com"},
}  # fmt: skip


class Target(NamedTuple):
    """A reader, and inputs to begin with."""

    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]


def read_archive(data: bytes) -> None:
    with tempfile.TemporaryDirectory(dir=_fastest()) as folder:
        path = Path(folder, "dataset.zip")
        path.write_bytes(data)
        try:
            unpacked = unpack(path, Path(folder))
        except Refused:
            return
        for image in unpacked.images:
            assert Path(folder, image.file).resolve().parent == Path(folder).resolve()


def unpack(archive: Path, folder: Path) -> Unpacked:
    with open_zip(archive, "dataset.zip") as zipped:
        unpacker = _Unpacker(zipped, folder)
        for number, member in enumerate(checked_members(zipped, archive, "dataset.zip")):
            unpacker.add(member, number)
        return unpacker.unpacked


def read_captions(data: bytes) -> None:
    """The parts are the caption files of one image."""
    texts = dict(zip(CAPTION_FILES, data.split(SEPARATOR), strict=False))
    sidecars = Sidecars(texts)
    options = sidecars.of("a/b.png").options
    caption = merge([options.caption, options.caption])
    text = bounded(", ".join([caption.main, *(tag.text for tag in caption.tags)]), 1, 300)
    assert len(text) <= 300
    shuffled(text, (), Random(7), keep_tags=1)
    assert all(isinstance(warning, str) for warning in sidecars.warnings)


def read_envelope(data: bytes) -> None:
    """The first part is the body, the others are AMQP properties and headers."""
    body, *values = data.split(SEPARATOR)
    try:
        message = decode_untrusted(body)
    except Undecodable:
        return
    envelope = envelope_of(delivered(body, values), message)
    assert envelope.id
    encode(message)
    dead_letter(body, message, queue="fetcher", reason="")
    if isinstance(message, JobRequested):
        job_id_for(envelope)
        _allowing_invalid(lambda: owner_for(envelope))


def delivered(body: bytes, values: list[bytes]) -> aio_pika.IncomingMessage:
    """As aio-pika hands it out; headers may hold text, bytes or numbers."""
    names = ("id", "source", "time", "subject", "traceparent", "tracestate")
    headers: dict[str, Any] = {
        f"cloudEvents_{name}": value if index % 2 else _text(value)
        for index, (name, value) in enumerate(zip(names, values, strict=False))
    }
    rest = [_text(value)[:255] for value in values[len(names) : len(names) + 3]]
    message_id, user_id, reply_to = [*rest, "", "", ""][:3]
    properties = pamqp.commands.Basic.Properties(
        headers=headers, message_id=message_id, user_id=user_id or None, reply_to=reply_to or None
    )
    header = pamqp.header.ContentHeader(body_size=len(body), properties=properties)
    deliver = pamqp.commands.Basic.Deliver("tag", 1, False, "everydream", "job.requested")  # noqa: FBT003 - AMQP's order
    return aio_pika.IncomingMessage(DeliveredMessage(deliver, header, body, _NO_CHANNEL))


def read_request(data: bytes) -> None:
    _allowing_invalid(lambda: admit(data))


def admit(data: bytes) -> None:
    """As admission does, but for the database."""
    request = with_seeds(parse_request(unwrap(_decoded(data))))
    dataset_alone(request)


def _allowing_invalid(call: Callable[[], object]) -> None:
    try:
        call()
    except Invalid as invalid:
        if not all(0 < len(mistake) < 2000 for mistake in invalid.mistakes or ("",)):
            raise AssertionError("a mistake that says nothing, or too much") from invalid


def _text(value: bytes) -> str:
    return value.decode(errors="replace")


def _fastest() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a folder in memory


def zip_of(files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _yaml() -> bytes:
    options = {
        "main_prompt": "a b",
        "tags": [{"tag": "c", "weight": 2}],
        "multiply": 2,
        "flip_p": 0.5,
    }
    return yaml.safe_dump(options).encode()


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


class _NoChannel:
    """Nothing is acknowledged here."""


_NO_CHANNEL: Any = _NoChannel()
_ASKED = encode(JobRequested(job="", request=REQUEST))
_STARTED = encode(JobStarted(job="a", run=1, gpu="card"))
_PROPERTIES = (b"id", b"source", b"2026-01-01T00:00:00Z", b"subject", b"00-1-2-3", b"m", b"u", b"r")

TARGETS: Mapping[str, Target] = {
    "archive": Target(
        read_archive,
        (
            zip_of({"a.png": b"\x89PNG", "a.txt": b"caption", "b/../c.jpg": b"\xff\xd8"}),
            zip_of({"a.png": b"0" * 500, "local.yaml": _yaml()}, zipfile.ZIP_STORED),
            zip_of({"a.png": b"0" * 500}, zipfile.ZIP_BZIP2),
            zip_of({"a.png": b"0" * 500}, zipfile.ZIP_LZMA),
            b"<html>",
        ),
    ),
    "captions": Target(
        read_captions,
        (
            SEPARATOR.join((_yaml(), b"a, b, c", "\u00e9, d".encode("utf-16"), b"2", _yaml())),
            SEPARATOR.join((b"main_prompt: [a, {b: c}]", "a\u00e9".encode("cp1252"))),
        ),
    ),
    "envelope": Target(
        read_envelope,
        (
            SEPARATOR.join((_ASKED, *_PROPERTIES)),
            SEPARATOR.join((_STARTED, *_PROPERTIES)),
            b'{"type": "claim.granted"}',
        ),
    ),
    "request": Target(
        read_request,
        (
            _json(REQUEST),
            _json({"input": {"model": {"job": "x"}, "inference": {"prompt": "a"}}}),
            _json({"input": REQUEST}),
            b"[[[[", b'{"input": {"train": {"max_epochs": 1e999}}}',
        ),
    ),
}  # fmt: skip
