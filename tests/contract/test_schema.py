"""What a gateway does with a database that a newer version has upgraded."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from services.gateway.database.connection import Database
from services.gateway.database.jobs import SqlJobStore
from services.gateway.database.schema import MIGRATIONS, REVISION, upgrade_schema
from shared.errors import SettingsError
from shared.service_process import closing
from tests.contract.test_job_store import job

NEWEST = max(path.name[:4] for path in (MIGRATIONS / "versions").glob("*.py"))
LAST_IN_0_2_0 = "0017"
"""Nothing was promised to those who know only older ones."""
NEXT = '''"""What the next version adds."""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{newest}"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("mood", sa.Text, nullable=True))
    op.create_table("moods", sa.Column("job", sa.String(255), primary_key=True))
'''


async def upgrade_to(database: Database, revision: str, folder: Path) -> None:
    """As a newer version does that has one revision more."""
    newer = folder / "migrations"
    shutil.copytree(MIGRATIONS, newer)
    ours = await database.schema()
    text = NEXT.format(revision=revision, newest=ours.newest)
    (newer / "versions" / "9001_moods.py").write_text(text)
    async with database.writing() as connection:
        await connection.run_sync(partial(upgrade_schema, migrations=newer))


async def test_a_gateway_works_and_starts_beside_the_schema_of_the_next_version(
    empty_url: str, tmp_path: Path
) -> None:
    async with closing(Database.open(empty_url)) as database:
        await database.migrate()
        store = SqlJobStore(database)
        assert await store.insert(job("before"), [])

        await upgrade_to(database, f"9001_beside_{NEWEST}", tmp_path)

        assert await store.insert(job("after"), []), "it goes on"
        with capture_logs() as logs:
            found = await database.migrate()
        assert found.is_newer, "it starts again"
        assert [line["event"] for line in logs] == ["database_is_newer"]
        assert {each.id for each in await store.newest()} == {"before", "after"}
        moods = await database.all(sa.text("SELECT count(*) FROM moods"))
        assert moods[0][0] == 0, "what is newer stays"


@pytest.mark.parametrize("revision", ["9001", "9001_beside_9000", "other"])
async def test_a_gateway_refuses_a_schema_beside_which_it_cannot_work(
    empty_url: str, tmp_path: Path, revision: str
) -> None:
    async with closing(Database.open(empty_url)) as database:
        await database.migrate()
        await upgrade_to(database, revision, tmp_path)

        with pytest.raises(SettingsError, match=f"{revision} of a newer version.*start the newer"):
            await database.migrate()


async def test_a_look_at_the_schema_tells_what_is_lacking_and_changes_nothing(
    empty_url: str,
) -> None:
    async with closing(Database.open(empty_url)) as database:
        found = await database.schema()
        for _ in range(2):
            assert await database.schema() == found
            assert (found.current, found.lacking[0].id) == (None, "0001")
            assert found.lacking[-1].id == found.newest

        assert await database.migrate() == found, "as it was before"
        assert (await database.schema())[:3] == (found.newest, found.newest, ())


async def test_every_revision_says_beside_which_versions_it_may_be_applied(
    tmp_path: Path,
) -> None:
    async with closing(Database.open(f"sqlite:///{tmp_path}/jobs.db")) as database:
        every = (await database.schema()).lacking
        before = ""
        for revision in every:
            parts = REVISION.fullmatch(revision.id)
            assert parts, f"{revision.id}: four digits, and _beside_ with four more"
            if parts["number"] > LAST_IN_0_2_0:
                assert parts["beside"], f"{revision.id}: add _beside_ and a number (ADR 21)"
                assert LAST_IN_0_2_0 <= parts["beside"] <= before
            before = parts["number"]
