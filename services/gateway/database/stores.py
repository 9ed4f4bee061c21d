"""All stores of the gateway in one database."""

from __future__ import annotations

from services.gateway.database.api_keys import SqlKeyStore
from services.gateway.database.connection import Database
from services.gateway.database.events import SqlEventStore
from services.gateway.database.jobs import SqlJobStore
from services.gateway.database.turns import SqlTurnStore
from services.gateway.database.uploads import SqlUploadStore
from services.gateway.ports import Stores


def stores_in(database: Database) -> Stores:
    return Stores(
        jobs=SqlJobStore(database),
        events=SqlEventStore(database),
        turns=SqlTurnStore(database),
        keys=SqlKeyStore(database),
        uploads=SqlUploadStore(database),
    )
