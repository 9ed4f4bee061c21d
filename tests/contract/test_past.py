"""What version after version has said and written is understood, and keeps its meaning.

Fixtures are added, never edited; see ``tests/fixtures/README.md``.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import aio_pika
import msgspec
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from msgspec import structs

from services.fetcher.models.configured_model import Pin
from services.gateway.background.intake import former_job_id_for, job_id_for, owner_for
from services.gateway.jobs.record import Job
from services.gateway.ports import Status
from services.gateway.web.authentication import Scope, _KeyFile
from shared import request
from shared.adapters.dead_letters import decode_untrusted
from shared.adapters.rabbitmq_envelope import envelope_of, to_amqp
from shared.adapters.rabbitmq_topology import parts_of
from shared.dataset.manifest import Manifest, Picture, TrainedPicture
from shared.dataset.speed import ProbedDevice, Speed
from shared.messaging.envelope import Envelope
from shared.messaging.messages import AnyMessage, SavedCheckpoint, Stage, decode, encode, type_of
from shared.messaging.topology import Quorum
from shared.storage.manifest import FolderManifest
from shared.storage.uploads import PartList
from tests.contract.past import FIXTURES, each, forgotten, json_in, lost, unseen

RECORDS: dict[str, Any] = {
    "records/*.json": Job,
    "home/keys.json": _KeyFile,
    "home/models.json": dict[str, Pin],
    "page*.json": list[TrainedPicture],
    "home/store/cache/speed.json": Speed,
    "device*.json": ProbedDevice,
    "home/store/uploads/*/parts.json": PartList,
    "**/*.folder.sha256.json": FolderManifest,
    "**/dataset/manifest.json": Manifest,
    "home/store/jobs/*/training/*/resume/*/checkpoints.json": list[SavedCheckpoint],
}
WORDS: dict[str, Any] = {
    "Stage": Stage,
    "Status": Status,
    "Scope": Scope,
    "Wish": request.Command,
    "WebhookEvent": request.WebhookEvent,
    "Scheduler": request.Scheduler,
    "LrScheduler": request.LrScheduler,
    "LossType": request.LossType,
    "CheckpointFormat": request.CheckpointFormat,
    "Resolution": request.Resolution,
    "Side": request.Side,
}


# --- Messages ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", each("messages/*.json"))
def test_a_message_of_the_past_is_understood_and_says_the_same(path: Path) -> None:
    message = decode_untrusted(path.read_bytes())

    assert type_of(message) == path.stem.partition("+")[0]
    assert [*lost(json_in(path), msgspec.json.decode(encode(message)))] == []


def test_every_message_of_today_has_a_fixture_and_each_of_its_fields() -> None:
    documents = [json_in(path) for path in FIXTURES.glob("*/messages/*.json")]

    known = {document["type"] for document in documents}
    assert {type_of(kind) for kind in get_args(AnyMessage)} - known == set()
    assert unseen(AnyMessage, documents) == []


@pytest.mark.parametrize("path", each("left_out.json"))
def test_a_field_that_the_past_left_out_means_what_it_meant(path: Path) -> None:
    left_out = json_in(path)

    for kind, meanings in left_out["messages"].items():
        document = json_in(path.with_name("messages") / f"{kind}.json")
        said = {name: value for name, value in document.items() if name not in meanings}
        assert _plain(decode(msgspec.json.encode(said)), meanings) == meanings, kind
    picture = msgspec.convert({"file": "0.png", "caption": "", "width": 1, "height": 1}, Picture)
    assert _plain(picture, left_out["pictures"]) == left_out["pictures"]


def _plain(struct: msgspec.Struct, names: dict[str, Any]) -> dict[str, Any]:
    """These fields as JSON has them, whether they would be written or not."""
    fields = {field.encode_name: field.name for field in structs.fields(struct)}
    values = {name: getattr(struct, fields[name]) for name in names}
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(values))
    return plain


@pytest.mark.parametrize("path", each("words.json"))
def test_the_words_of_the_past_are_still_words(path: Path) -> None:
    gone = {
        name: [word for word in words if word not in get_args(WORDS[name])]
        for name, words in json_in(path).items()
    }

    assert {name: words for name, words in gone.items() if words} == {}


# --- The broker -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", each("letter.json"))
def test_a_letter_of_the_past_is_opened_and_would_be_sent_the_same(path: Path) -> None:
    told = json_in(path)
    incoming = SimpleNamespace(
        **{**told["letter"], "body": told["letter"]["body"].encode()},
        user_id=told["envelope"]["user_id"], app_id=None, timestamp=None,
    )  # fmt: skip
    message = decode_untrusted(incoming.body)

    envelope = envelope_of(cast("AbstractIncomingMessage", incoming), message)

    assert envelope == msgspec.convert(told["envelope"], Envelope)
    id_of = former_job_id_for if path.parent.name == "0.1.0" else job_id_for
    assert (id_of(envelope), owner_for(envelope)) == (told["job"], told["owner"])
    letter = to_amqp(incoming.body, envelope)
    sent = {name: getattr(letter, name) for name in told["letter"] if name != "body"}
    assert [*lost(told["letter"], {**sent, "body": letter.body.decode()})] == []


@pytest.mark.parametrize("path", each("topology.json"))
async def test_what_the_past_has_declared_is_declared_the_same(path: Path) -> None:
    """Or the broker refuses it, or what waits in a queue waits for ever.

    Bindings may be added; one that is none any more is removed from the broker, too.
    """
    told, channel = json_in(path), NotedChannel()
    for part in parts_of(Quorum()).values():
        await part.declare(cast("AbstractChannel", channel))

    for name, settings in told["settings"].items():
        assert channel.settings.get(name) == settings, name
    known = [*channel.bindings, *channel.removed]
    assert [one for one in told["bindings"] if one not in known] == []


class NotedChannel:
    """Notes what is declared on it."""

    def __init__(self) -> None:
        self.settings: dict[str, dict[str, Any]] = {}
        self.bindings: list[dict[str, str]] = []
        self.removed: list[dict[str, str]] = []

    async def declare_exchange(
        self, name: str, kind: aio_pika.ExchangeType, **settings: Any
    ) -> None:
        self.settings[f"exchange {name}"] = {"type": kind.value, **settings}

    async def declare_queue(self, name: str, **settings: Any) -> Any:
        async def bind(exchange: str, key: str = "") -> None:
            self.bindings.append({"queue": name, "exchange": exchange, "key": key})

        async def unbind(exchange: str, key: str) -> None:
            self.removed.append({"queue": name, "exchange": exchange, "key": key})

        self.settings[f"queue {name}"] = settings
        return SimpleNamespace(bind=bind, unbind=unbind)


# --- What is written down ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        pytest.param(path, kind, id=path.relative_to(FIXTURES).as_posix())
        for pattern, kind in RECORDS.items()
        for path in sorted(FIXTURES.glob(f"*/{pattern}"))
    ],
)
def test_a_record_of_the_past_is_understood_and_says_the_same(path: Path, kind: Any) -> None:
    assert forgotten(path.read_bytes(), kind) == []


@pytest.mark.parametrize(("pattern", "kind"), RECORDS.items())
def test_every_field_of_a_record_of_today_has_a_fixture(pattern: str, kind: Any) -> None:
    documents = [json_in(path) for path in FIXTURES.glob(f"*/{pattern}")]

    assert documents
    assert unseen(kind, documents) == []


@pytest.mark.parametrize("path", each("records/*.json"))
def test_what_asks_for_a_stage_of_a_job_of_the_past_is_understood(path: Path) -> None:
    """It is a message within the record, and is put on the stage's queue again."""
    job = msgspec.json.decode(path.read_bytes(), type=Job)

    assert job.stages
    for record in job.stages.values():
        assert forgotten(record.trigger, AnyMessage) == []
