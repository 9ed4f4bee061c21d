"""The operator's commands for database and store as a whole."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from everydream.commands.parameters import Json
from everydream.maintenance.parts import PARTS, Part

if TYPE_CHECKING:
    from shared.settings import Settings

Only = Annotated[
    Part | None, Parameter(show_default=False, help="One of the two; the other has other means.")
]


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


def backup(
    folder: Annotated[Path, Parameter(help="Where to; a folder for this backup alone.")],
    /,
    *,
    only: Only = None,
    json: Json = False,
) -> None:
    """Copy database and store into a folder, while the services run.

    It needs the services' settings, and pg_dump if the database is PostgreSQL.
    """
    from everydream.maintenance import backup as backups  # noqa: PLC0415

    _copy(backups.back_up, folder, only, json=json)


def restore(
    folder: Annotated[Path, Parameter(help="What everydream backup has written.")],
    /,
    *,
    only: Only = None,
    json: Json = False,
) -> None:
    """Fill an empty database and an empty store from a backup, before the services start.

    It needs the services' settings, and pg_restore if the database is PostgreSQL.
    """
    from everydream.maintenance import backup as backups  # noqa: PLC0415

    _copy(backups.restore, folder, only, json=json)


def _copy(
    copy: Callable[[Settings, Path, Sequence[Part]], Coroutine[Any, Any, dict[str, Any]]],
    folder: Path,
    only: Part | None,
    *,
    json: bool,
) -> None:
    from everydream.maintenance import backup as backups  # noqa: PLC0415
    from everydream.outcome import errors_in_one_line, print_json  # noqa: PLC0415
    from everydream.this_machine.machine import make_home, read_settings  # noqa: PLC0415

    with errors_in_one_line(as_json=json):
        settings = read_settings()
        make_home(settings)
        done = asyncio.run(copy(settings, folder, (only,) if only else PARTS))
        if json:
            print_json({"folder": str(folder)} | done)
        else:
            print("\n".join(backups.lines(done, folder)))  # noqa: T201 - the result
