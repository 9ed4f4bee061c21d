"""All stores of the gateway in one database."""

from __future__ import annotations

from services.gateway.database.api_keys import SqlKeyStore
from services.gateway.database.connection import Database
from services.gateway.database.dead_letters import SqlDeadLetterStore
from services.gateway.database.events import SqlEventStore
from services.gateway.database.jobs import SqlJobStore
from services.gateway.database.load import SqlLoadStore
from services.gateway.database.system import SqlSystemStore
from services.gateway.database.turns import SqlTurnStore
from services.gateway.database.uploads import SqlUploadStore
from services.gateway.stores import Stores


def stores_in(database: Database) -> Stores:
    return Stores(
        jobs=SqlJobStore(database),
        events=SqlEventStore(database),
        turns=SqlTurnStore(database),
        keys=SqlKeyStore(database),
        uploads=SqlUploadStore(database),
        system=SqlSystemStore(database),
        load=SqlLoadStore(database),
        dead_letters=SqlDeadLetterStore(database),
    )
