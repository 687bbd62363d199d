"""Migrations: they make the tables that the code knows, once, whoever opens the database."""

import asyncio
import sys
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from amalgam.errors.registry import SchemaTooNew
from amalgam.registry.connections import create_engine
from amalgam.registry.database import Database
from amalgam.registry.names import NameRegistry
from amalgam.registry.schema import STEPS
from amalgam.registry.tables import METADATA

OPEN_AND_WRITE = """
import asyncio, sys
from amalgam.domain.clock import utc_now
from amalgam.domain.version import VersionDraft
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.database import Database

async def main(url, number):
    async with Database.open(url) as database:
        draft = VersionDraft("sql", f"{number:064x}", 8, 1, 1, "f" * 64, "upload")
        await AdapterRegistry(database, utc_now).create_version(draft)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def test_the_steps_make_the_tables_of_the_code(database: Database) -> None:
    def differences(connection: sa.Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), METADATA))

    async with database.read() as connection:
        assert await connection.run_sync(differences) == []


async def test_ids_of_versions_are_never_given_again(database: Database) -> None:
    """SQLite needs to be told so in the table itself, which comparing columns does not see."""
    if database.is_shared:
        pytest.skip("a matter of SQLite alone")
    async with database.read() as connection:
        query = "SELECT sql FROM sqlite_master WHERE name = 'versions'"
        assert "AUTOINCREMENT" in (await connection.exec_driver_sql(query)).scalar_one()


async def test_opening_again_changes_nothing(database: Database, database_url: str) -> None:
    async with database.write() as connection:
        await connection.exec_driver_sql("UPDATE registry_state SET revision = 7")
    async with Database.open(database_url) as again, again.read() as connection:
        assert (await connection.exec_driver_sql("SELECT revision FROM registry_state")).scalar_one() == 7


async def test_processes_that_open_a_new_database_at_once(database_url: str) -> None:
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", OPEN_AND_WRITE, database_url, str(number))
        for number in range(3)
    ]
    assert [await asyncio.wait_for(process.wait(), 60) for process in processes] == [0] * 3
    async with Database.open(database_url) as database, database.read() as connection:
        numbers = (await connection.exec_driver_sql("SELECT number FROM versions")).scalars().all()
    assert sorted(numbers) == [1, 2, 3]


async def test_a_database_of_a_later_release_is_left_alone(database: Database, database_url: str) -> None:
    async with database.write() as connection:
        await connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaTooNew, match="9999"):
        async with Database.open(database_url):
            pass


def _before_rows_knew_when_they_changed(connection: sa.Connection) -> None:
    """The tables of an earlier release, with some adapters in them."""
    config = Config()
    config.set_main_option("script_location", str(STEPS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "0017")
    then, at = sa.MetaData(), datetime(2030, 1, 31, tzinfo=UTC)
    then.reflect(connection, only=["adapters", "versions"])
    made = {"description": "", "next_version": 3, "created_at": at}
    connection.execute(
        then.tables["adapters"].insert(),
        [
            {"name": "sql", "default_version": 2, "deleted_at": None} | made,
            {"name": "gone", "default_version": None, "deleted_at": at} | made,
        ],
    )
    fields = {
        "digest": "d" * 64, "rank": 1, "size_bytes": 1, "module_count": 1, "base_fingerprint": "f" * 64,
        "source": "upload", "warnings": [], "created_at": at,
    }  # fmt: skip
    connection.execute(
        then.tables["versions"].insert(),
        [
            {"name": "sql", "number": 1, "proved": True, "deleted_at": None} | fields,
            {"name": "sql", "number": 2, "proved": True, "deleted_at": None} | fields,
            {"name": "sql", "number": 3, "proved": False, "deleted_at": None} | fields,
            {"name": "gone", "number": 1, "proved": True, "deleted_at": at} | fields,
        ],
    )


async def test_rows_of_an_earlier_release_are_counted_and_found_from_their_ends(database_url: str) -> None:
    made = create_engine(database_url, 10.0, 10.0)
    async with made.begin() as connection:
        await connection.run_sync(_before_rows_knew_when_they_changed)
    await made.dispose()
    async with Database.open(database_url) as database:
        names = NameRegistry(database)
        state = await names.state()
        assert state.served_versions == 2
        near = (await names.look_up(["zql"])).near["zql"]
        assert near.names == ("sql",)
        assert (await names.changes(state.revision)).names == frozenset()
        assert [row.name for row in await names.page(None, 10)] == ["sql"]
