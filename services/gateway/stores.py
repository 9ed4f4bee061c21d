"""All stores that the gateway needs."""

from __future__ import annotations

from typing import NamedTuple

from services.gateway.key_ports import KeyStore
from services.gateway.ports import EventStore, JobStore, TurnStore
from services.gateway.system_ports import DeadLetterStore, LoadStore, SystemStore
from services.gateway.upload_ports import UploadStore


class Stores(NamedTuple):
    """The stores of the gateway, in one database."""

    jobs: JobStore
    events: EventStore
    turns: TurnStore
    keys: KeyStore
    uploads: UploadStore
    system: SystemStore
    load: LoadStore
    dead_letters: DeadLetterStore
