"""Transactions: writers take turns, readers see one moment, and trouble is one error that changed nothing."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from amalgam.errors.registry import RegistryUnavailable, UnsupportedDatabase
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.connections import SqliteConnection
from amalgam.registry.database import Database, sqlite_url
from amalgam.registry.tables import registry_state
from tests.registry_fixtures import FakeClock, draft


async def revision(database: Database) -> int:
    async with database.read() as connection:
        return int((await connection.execute(sa.select(registry_state.c.revision))).scalar_one())


async def add_one(database: Database) -> None:
    """Read, wait, write back: two of these that overlap lose one of the two."""
    async with database.write() as connection:
        seen = (await connection.execute(sa.select(registry_state.c.revision))).scalar_one()
        await asyncio.sleep(0.002)
        await connection.execute(registry_state.update().values(revision=seen + 1))


class TestTransactions:
    async def test_writers_take_turns(self, database: Database, database_url: str) -> None:
        async with Database.open(database_url, busy_timeout_s=60, answer_timeout_s=30) as other:
            await asyncio.gather(*(add_one((database, other)[i % 2]) for i in range(24)))
        assert await revision(database) == 24

    async def test_what_outlives_the_database_leaves_no_connection(self, database_url: str) -> None:
        """A task of a request may end after the server has closed its registry."""
        ending = asyncio.Event()
        kept: list[Any] = []

        async def late(database: Database) -> None:
            async with database.read() as connection:
                kept.append((await connection.get_raw_connection()).driver_connection)
                await ending.wait()

        async with Database.open(database_url) as database:
            task = asyncio.create_task(late(database))
            while not kept:
                await asyncio.sleep(0)
        ending.set()
        await task
        if database.is_shared:
            assert kept[0].closed
        else:
            with pytest.raises(ValueError, match="no active connection"):
                await kept[0].execute("SELECT 1")

    async def test_a_block_that_raises_changes_nothing(self, database: Database) -> None:
        async def fail() -> None:
            async with database.write() as connection:
                await connection.execute(registry_state.update().values(revision=99))
                raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            await fail()
        assert await revision(database) == 0
        await add_one(database)
        assert await revision(database) == 1

    async def test_a_reader_sees_one_moment_and_does_not_wait(self, database: Database) -> None:
        query = sa.select(registry_state.c.revision)
        async with database.read() as connection:
            assert (await connection.execute(query)).scalar_one() == 0
            await add_one(database)
            assert (await connection.execute(query)).scalar_one() == 0
        assert await revision(database) == 1

    async def test_what_is_not_committed_is_not_seen(self, database: Database) -> None:
        async with database.write() as connection:
            await connection.execute(registry_state.update().values(revision=5))
            assert await revision(database) == 0
        assert await revision(database) == 5

    async def test_a_writer_that_is_cancelled_leaves_no_lock_behind(self, database: Database) -> None:
        begun = asyncio.Event()

        async def write() -> None:
            async with database.write() as connection:
                await connection.execute(registry_state.update().values(revision=99))
                begun.set()
                await asyncio.sleep(60)

        task = asyncio.create_task(write())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(add_one(database), 50)
        assert await revision(database) == 1

    async def test_writers_cancelled_at_any_moment_leave_a_working_database(self, database: Database) -> None:
        kept = []  # with their tracebacks, and in these the cursors of unfinished queries
        for delay_ms in range(0, 30, 2):
            tasks = [asyncio.create_task(add_one(database)) for _ in range(4)]
            await asyncio.sleep(delay_ms / 1000)
            for task in tasks:
                task.cancel()
            kept += await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.wait_for(add_one(database), 50)
        assert any(isinstance(outcome, asyncio.CancelledError) for outcome in kept)
        assert all(outcome is None or isinstance(outcome, asyncio.CancelledError) for outcome in kept)

    async def test_a_writer_that_does_not_end_is_waited_for_and_then_reported(
        self, database: Database, database_url: str
    ) -> None:
        async with Database.open(database_url, busy_timeout_s=0.3) as impatient, database.write():
            with pytest.raises(RegistryUnavailable, match="locked"):
                await add_one(impatient)
            assert await revision(impatient) == 0
        await add_one(database)


class TestSqlite:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "registry.db"

    @pytest.fixture
    def no_database(self, path: Path) -> Path:
        path.write_bytes(b"not a database at all, but long enough to look at" * 100)
        return path

    async def test_it_is_durable(self, path: Path) -> None:
        async with Database.open(sqlite_url(path)) as database, database.read() as connection:
            for pragma, value in {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}.items():
                assert (await connection.exec_driver_sql(f"PRAGMA {pragma}")).scalar_one() == value

    async def test_a_locked_file_is_waited_for_and_then_reported(self, path: Path) -> None:
        """F39: what is locked for long is a 503, and nothing was changed."""
        async with (
            Database.open(sqlite_url(path), busy_timeout_s=0.3) as impatient,
            Database.open(sqlite_url(path), busy_timeout_s=60) as patient,
        ):
            registry = AdapterRegistry(impatient, FakeClock())
            with closing(sqlite3.connect(path, isolation_level=None)) as rival:
                rival.execute("BEGIN IMMEDIATE")
                with pytest.raises(RegistryUnavailable) as caught:
                    await registry.create_version(draft())
                assert caught.value.status == 503
                assert caught.value.retry_after_s
                assert "locked" in caught.value.message
                assert str(path) not in caught.value.message
                # Readers go on.
                assert (await registry.list_adapters()).items == ()
                asyncio.get_running_loop().call_later(0.1, rival.execute, "COMMIT")
                assert (await AdapterRegistry(patient, FakeClock()).create_version(draft())).version.number == 1

    @pytest.mark.parametrize("factory", [sqlite3.Connection, SqliteConnection])
    def test_a_closed_connection_gives_its_lock_back_though_a_cursor_is_left(
        self, factory: type[sqlite3.Connection], path: Path
    ) -> None:
        """Python's own does not, which is why there is another: were it to change, this says so."""
        left = sqlite3.connect(path, isolation_level=None, factory=factory)
        left.execute("BEGIN IMMEDIATE")
        cursor = left.execute("SELECT 1 UNION SELECT 2")
        left.close()
        with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other:
            if factory is sqlite3.Connection:
                with pytest.raises(sqlite3.OperationalError, match="locked"):
                    other.execute("BEGIN IMMEDIATE")
            else:
                other.execute("BEGIN IMMEDIATE")
        del cursor

    async def test_a_full_disk_changes_nothing(self, path: Path) -> None:
        """F11, with the database's own limit on its pages standing for the disk's."""
        async with Database.open(sqlite_url(path)) as database:
            registry = AdapterRegistry(database, FakeClock())
            await registry.create_version(draft(number=1))
            before = await registry.load_catalog()
            async with database.read() as connection:
                pages = (await connection.exec_driver_sql("PRAGMA page_count")).scalar_one()
            # A connection keeps the limit; the pool has exactly this one.
            async with database.read() as connection:
                await connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
            with pytest.raises(RegistryUnavailable, match="disk is full"):
                await registry.create_version(draft(number=2, lineage={"long": "x" * 200_000}))
            assert await registry.load_catalog() == before
            async with database.read() as connection:
                await connection.exec_driver_sql("PRAGMA max_page_count = 100000")
            made = await registry.create_version(draft(number=2, lineage={"long": "x" * 200_000}))
            assert made.version.number == 2

    async def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(RegistryUnavailable) as caught:
            async with Database.open(sqlite_url(tmp_path / "no" / "registry.db")):
                pass
        assert str(tmp_path) not in caught.value.message

    async def test_something_that_is_no_database(self, no_database: Path) -> None:
        with pytest.raises(RegistryUnavailable):
            async with Database.open(sqlite_url(no_database)):
                pass

    async def test_paths_with_odd_characters(self, tmp_path: Path) -> None:
        path = tmp_path / "a b%20?#ü.db"
        async with Database.open(sqlite_url(path)) as database:
            await add_one(database)
        assert path.is_file()


class TestUrls:
    @pytest.mark.parametrize(
        "url", ["", "nonsense", "mysql://localhost/x", "sqlite://", "sqlite:///:memory:", "oracle:x"]
    )
    async def test_others_are_refused(self, url: str) -> None:
        with pytest.raises(UnsupportedDatabase):
            async with Database.open(url):
                pass

    async def test_plain_sqlite_urls_work(self, tmp_path: Path) -> None:
        async with Database.open(f"sqlite:///{tmp_path}/registry.db") as database:
            assert await revision(database) == 0

    async def test_a_server_that_is_not_there_is_unavailable_and_not_named(self) -> None:
        with pytest.raises(RegistryUnavailable) as caught:
            async with Database.open("postgresql://someone:secret@127.0.0.1:1/x"):
                pass
        assert not any(word in caught.value.message for word in ("someone", "secret", "127.0.0.1"))
