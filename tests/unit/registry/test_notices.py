"""Changes are heard of as they are committed, where the database tells of them."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.database import Database
from amalgam.registry.notices import CHANNEL, Notices
from tests.registry_fixtures import FakeClock, draft


class Heard:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.times = 0
        self._news = asyncio.Event()

    def __call__(self) -> None:
        self.times += 1
        self._news.set()

    async def more_than(self, times: int) -> None:
        async with asyncio.timeout(20):
            while self.times <= times:
                self._news.clear()
                await self._news.wait()


@pytest.fixture
async def listening(database: Database) -> AsyncIterator[tuple[Notices, Heard]]:
    if not database.is_shared:
        pytest.skip("SQLite tells nobody")
    notices, heard = Notices(database, alive_period_s=0.2), Heard()
    task = asyncio.create_task(notices.listen_loop(heard))
    await heard.more_than(0)
    yield notices, heard
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not notices.is_listening


async def test_every_commit_of_a_change_is_told(
    listening: tuple[Notices, Heard], database: Database, registry: AdapterRegistry
) -> None:
    _, heard = listening
    for number in range(3):
        before = heard.times
        await registry.create_version(draft("sql", number))
        await heard.more_than(before)


async def test_what_is_rolled_back_is_told_to_nobody(
    listening: tuple[Notices, Heard], database: Database, registry: AdapterRegistry
) -> None:
    _, heard = listening
    told = heard.times

    async def given_up() -> None:
        async with database.write() as connection:
            await connection.execute(sa.select(sa.func.pg_notify(CHANNEL, "")))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await given_up()
    await registry.create_version(draft("sql", 1))
    await heard.more_than(told)
    assert heard.times == told + 1


async def test_a_line_that_breaks_is_made_again(
    listening: tuple[Notices, Heard], database: Database, registry: AdapterRegistry
) -> None:
    notices, heard = listening
    told = heard.times
    async with database.write() as connection:
        query = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE query = %s AND datname = current_database() AND pid <> pg_backend_pid()"
        )
        for said in (f"LISTEN {CHANNEL}", "SELECT 1"):
            await connection.exec_driver_sql(query, (said,))
    # What was committed meanwhile may have been missed, so the new line begins with a word.
    await heard.more_than(told)
    assert notices.is_listening
    told = heard.times
    await registry.create_version(draft("sql", 1))
    await heard.more_than(told)


async def test_listening_takes_no_connection_from_others(
    listening: tuple[Notices, Heard], database: Database, clock: FakeClock
) -> None:
    registry = AdapterRegistry(database, clock)
    await asyncio.gather(*(registry.revision() for _ in range(40)))


async def test_a_line_whose_end_is_interrupted_is_closed_all_the_same(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not database.is_shared:
        pytest.skip("SQLite tells nobody")
    lines: list[AsyncConnection] = []

    async def interrupted(connection: AsyncConnection) -> None:
        lines.append(connection)
        raise asyncio.CancelledError

    monkeypatch.setattr(AsyncConnection, "invalidate", interrupted)
    with pytest.raises(asyncio.CancelledError):
        async with database.line(f"LISTEN {CHANNEL}"):
            pass
    assert [line.closed for line in lines] == [True]
