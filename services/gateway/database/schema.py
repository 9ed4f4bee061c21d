"""The schema's revisions: which a database has, which it lacks, and beside which we can work.

A revision's id is its number, and after the first release with this rule also the number of the
newest revision that an older gateway may know and still work beside it: ``0018_beside_0017``. A
database carries its revision's id, so that a gateway can judge a schema that is newer than itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from shared.errors import SettingsError

MIGRATIONS = Path(__file__).with_name("migrations")
REVISION = re.compile(r"(?P<number>\d{4})(_beside_(?P<beside>\d{4}))?")

log = structlog.get_logger()


class Revision(NamedTuple):
    """One step of the schema."""

    id: str
    about: str
    """The first line of its module."""


class Schema(NamedTuple):
    """How a database stands to this version's schema."""

    current: str | None
    """The revision that the database has; None: it is empty."""
    newest: str
    """The newest that this version knows."""
    lacking: tuple[Revision, ...]
    """What :func:`upgrade_schema` would apply, in order."""
    is_newer: bool
    """A newer version has upgraded it."""

    @property
    def works_beside_it(self) -> bool:
        """Whether the database's revision names ours, or an older one, as one to work beside."""
        parts = REVISION.fullmatch(self.current or "")
        beside: str | None = parts and parts["beside"]
        return beside is not None and beside <= self.newest[:4]

    def check(self) -> None:
        """Raise SettingsError if a newer version has it, beside which this one cannot work."""
        if self.is_newer and not self.works_beside_it:
            raise SettingsError(
                f"the database has revision {self.current} of a newer version, beside which this"
                f" one, which knows {self.newest}, cannot work",
                "start the newer version, or restore the backup that was made before the upgrade",
            )


def read_schema(connection: Connection, migrations: Path = MIGRATIONS) -> Schema:
    """Compare; changes nothing."""
    scripts = _scripts(migrations)
    newest, current = scripts.get_current_head(), _current(connection)
    assert newest is not None  # noqa: S101 - there are revisions
    if current and current not in {script.revision for script in scripts.walk_revisions()}:
        return Schema(current, newest, (), is_newer=True)
    return Schema(current, newest, tuple(_after(current, scripts)), is_newer=False)


def upgrade_schema(connection: Connection, migrations: Path = MIGRATIONS) -> Schema:
    """Upgrade to the newest revision, inside the open transaction; as it was before.

    A schema that is newer, and beside which this version works, stays as it is.

    Raises:
        SettingsError: it is newer, and this version cannot work beside it.
    """
    found = read_schema(connection, migrations)
    found.check()
    if found.is_newer:
        log.warning("database_is_newer", revision=found.current, known=found.newest)
    elif found.lacking:
        command.upgrade(_config(migrations, connection=connection), "head")
    return found


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _after(current: str | None, scripts: ScriptDirectory) -> Iterator[Revision]:
    """The revisions after the current one, oldest first."""
    newer = scripts.iterate_revisions("head", current or "base")
    for script in reversed([*newer]):
        yield Revision(script.revision, script.doc)


@cache
def _scripts(migrations: Path) -> ScriptDirectory:
    """Read once: alembic compiles and runs every revision's module."""
    return ScriptDirectory.from_config(_config(migrations))


def _config(migrations: Path, **attributes: Connection) -> Config:
    config = Config(attributes=attributes)
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
