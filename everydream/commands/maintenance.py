"""The operator's commands for database and store as a whole."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

from cyclopts import Parameter

from everydream.commands.parameters import Json


def migrate(
    *,
    check: Annotated[
        bool,
        Parameter(
            show_default=False,
            help="Change nothing; say what would be done, and exit with 4 if that is something.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Bring the database to this version's tables, as a gateway does when it starts."""
    from everydream.maintenance import migration  # noqa: PLC0415
    from everydream.outcome import PENDING, errors_in_one_line, print_json  # noqa: PLC0415
    from everydream.this_machine.machine import make_home, read_settings  # noqa: PLC0415

    with errors_in_one_line(as_json=json):
        settings = read_settings()
        make_home(settings)
        found = asyncio.run((migration.look if check else migration.upgrade)(settings))
        if json:
            print_json(migration.document(found, applied=not check))
        else:
            print("\n".join(migration.lines(found, applied=not check)))  # noqa: T201 - the result
    if check and found.lacking:
        sys.exit(PENDING)
