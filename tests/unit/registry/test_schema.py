"""Migrations: they make the tables that the code knows, once, whoever opens the database."""

import asyncio
import sys

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from amalgam.errors.registry import SchemaTooNew
from amalgam.registry.database import Database
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
