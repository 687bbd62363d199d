"""Opens the registry's database and opens transactions: one kind that reads, one that writes.

Every wait has a limit: for the connection, for each statement, for other writers. A database that is silent, and not
only one that refuses, is `RegistryUnavailable` after ``answer_timeout_s`` seconds.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from amalgam.domain.failpoints import NO_FAILPOINTS, Failpoints
from amalgam.errors.registry import RegistryUnavailable
from amalgam.registry import silence
from amalgam.registry.connections import BEGIN, LONGEST_STATEMENT_S, create_engine, sqlite_url
from amalgam.registry.driver_errors import Progress, reason_of, translated
from amalgam.registry.schema import upgrade
from amalgam.registry.tables import registry_state

__all__ = ["ANSWER_TIMEOUT_S", "LONG_S", "Database", "sqlite_url"]

ANSWER_TIMEOUT_S: Final = 2.0
LONG_S: Final = LONGEST_STATEMENT_S / 2
"""It is for statements that read or write a large part of the registry."""
_RETRY_S: Final = 0.02
_SQLITE_TIME: Final = "SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')"
_POSTGRES_TIME: Final = "SELECT clock_timestamp()"


@dataclass(frozen=True, slots=True)
class Line:
    """A connection of PostgreSQL that is kept, outside of transactions. Its errors are those of a transaction."""

    connection: AsyncConnection
    driver: Any
    """It is the connection of the driver."""
    answer_timeout_s: float

    async def ask(self, statement: str) -> None:
        """Have it done, within the time that the database may be silent."""
        async with silence.watched(self.connection, self.answer_timeout_s):
            await self.connection.exec_driver_sql(statement)

    async def is_told(self, timeout_s: float) -> bool:
        """Whether a notice came within ``timeout_s`` seconds; those that came together are one."""
        told = False
        try:
            async for _ in self.driver.notifies(timeout=timeout_s, stop_after=1):
                told = True
        except silence.driver_errors() as error:
            raise RegistryUnavailable(reason_of(error)) from error
        return told


class Database:
    """An open database with the tables of this release."""

    def __init__(
        self, engine: AsyncEngine, busy_timeout_s: float, answer_timeout_s: float, failpoints: Failpoints
    ) -> None:
        self._engine = engine
        self._busy_timeout_s = busy_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._failpoints = failpoints
        self._is_sqlite = engine.dialect.name == "sqlite"
        silence.install(engine.sync_engine)
        if self._is_sqlite:
            self._reader = engine.execution_options(**{BEGIN: "BEGIN"})
            self._writer = engine.execution_options(**{BEGIN: "BEGIN IMMEDIATE"})
        else:
            self._reader = engine.execution_options(isolation_level="REPEATABLE READ")
            self._writer = engine
        self._time: tuple[datetime, float] | None = None
        self._is_closed = False
        # SQLite lets waiting writers in by chance and not by turn; inside one process they queue here instead.
        self._turn = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: str,
        *,
        busy_timeout_s: float = 10.0,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        failpoints: Failpoints = NO_FAILPOINTS,
    ) -> AsyncIterator["Database"]:
        """Connect, bring the tables up to date, and close at the end.

        Args:
            url: ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``postgresql://user@host/name``.
            busy_timeout_s: Longest wait for another writer.
            answer_timeout_s: Longest silence of the database, while a connection is made and at each statement.
            failpoints: Told of the steps of a write.

        Raises:
            UnsupportedDatabase: another kind of URL, or its driver is not installed.
            RegistryUnavailable: the database cannot be reached.
            SchemaTooNew: a later release wrote it.
        """
        engine = create_engine(url, busy_timeout_s, answer_timeout_s)
        database = cls(engine, busy_timeout_s, answer_timeout_s, failpoints)
        try:
            await database._prepare()
            yield database
        finally:
            database._is_closed = True
            await engine.dispose()

    def clock(self) -> datetime:
        """The database's own time: as it said at the begin of the last transaction, and what has passed since.

        All who share a database share this clock. Leases and whatever else one process promises another are counted by
        it, so that it does not matter what the clock of a host says.
        """
        assert self._time is not None, "open"
        said, at = self._time
        return said + timedelta(seconds=time.monotonic() - at)

    @property
    def is_shared(self) -> bool:
        """Whether servers on several hosts may use it: PostgreSQL, which also tells all of them of a commit."""
        return not self._is_sqlite

    @asynccontextmanager
    async def line(self, statement: str) -> AsyncIterator[Line]:
        """A connection of PostgreSQL for the caller alone, on which ``statement`` was run; closed at the end.

        Raises:
            RegistryUnavailable: the database cannot be used now, or was lost while the block ran.
        """
        with translated():
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(self._answer_timeout_s):
                    connection = await self._engine.connect()
                    # At once: also where the time is up in this very moment.
                    stack.push_async_callback(_ended, connection)
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                driver = (await connection.get_raw_connection()).driver_connection
                line = Line(connection, driver, self._answer_timeout_s)
                await line.ask(statement)
                yield line

    async def _prepare(self) -> None:
        if self._is_sqlite:
            await self._use_wal()
        async with self._transaction(self._writer, LONG_S, connect_s=LONG_S) as connection:
            await connection.run_sync(upgrade, self._failpoints)

    async def _use_wal(self) -> None:
        """Switch the file to write-ahead logging, for good.

        SQLite does not wait its turn for this one, so two processes that create a database at once meet here.
        """
        deadline = asyncio.get_running_loop().time() + self._busy_timeout_s
        while True:
            try:
                async with self._engine.connect() as connection:
                    driver = await connection.get_raw_connection()
                    await driver.driver_connection.execute("PRAGMA journal_mode = WAL")  # type: ignore[union-attr]
                    return
            except DBAPIError as error:
                if "locked" not in str(error.orig) or asyncio.get_running_loop().time() > deadline:
                    raise RegistryUnavailable(reason_of(error)) from error
            await asyncio.sleep(_RETRY_S)

    @asynccontextmanager
    async def read(self, *, statement_s: float | None = None) -> AsyncIterator[AsyncConnection]:
        """A transaction that sees one moment of the database and changes nothing.

        Args:
            statement_s: Longest time of a statement; None: as long as the database may be silent.

        Raises:
            RegistryUnavailable: the database cannot be used now.
            RegistryFailed: it refused a statement that should be right.
        """
        async with self._transaction(self._reader, statement_s or self._answer_timeout_s) as connection:
            yield connection

    @asynccontextmanager
    async def write(self, *, statement_s: float | None = None) -> AsyncIterator[AsyncConnection]:
        """A transaction that no other writer overlaps, in this process or another; committed unless the block raises.

        Args:
            statement_s: As in `read`.

        Raises:
            RegistryUnavailable: the database cannot be used now; nothing was changed, unless the error says that the
                connection was lost in the moment of the commit.
            RegistryFailed: it refused a statement that should be right; nothing was changed.
        """
        limit_s = statement_s or self._answer_timeout_s
        async with self._queue(), self._transaction(self._writer, limit_s, is_writer=True) as connection:
            yield connection
            self._failpoints.reach("registry.written")
        self._failpoints.reach("registry.committed")

    @asynccontextmanager
    async def _queue(self) -> AsyncIterator[None]:
        if not self._is_sqlite:
            yield
            return
        try:
            async with asyncio.timeout(self._busy_timeout_s):
                await self._turn.acquire()
        except TimeoutError:
            raise RegistryUnavailable("too many writers are waiting") from None
        try:
            yield
        finally:
            self._turn.release()

    @asynccontextmanager
    async def _transaction(
        self, engine: AsyncEngine, statement_s: float, *, is_writer: bool = False, connect_s: float | None = None
    ) -> AsyncIterator[AsyncConnection]:
        progress = Progress()
        with translated(progress):
            async with AsyncExitStack() as stack:
                connection = await self._begin(stack, engine, connect_s or self._answer_timeout_s, progress)
                if is_writer and not self._is_sqlite:
                    progress.watch.limit_s = self._busy_timeout_s + self._answer_timeout_s
                    await connection.execute(sa.select(registry_state.c.id).with_for_update())
                # A lock of SQLite's file may be met by any statement.
                progress.watch.limit_s = statement_s + (self._busy_timeout_s if self._is_sqlite else 0.0)
                yield connection
                progress.is_committing = True

    async def _ask_time(self, connection: AsyncConnection) -> None:
        """The first statement of a transaction, which shows as well whether the connection is alive."""
        said = (await connection.exec_driver_sql(_SQLITE_TIME if self._is_sqlite else _POSTGRES_TIME)).scalar_one()
        moment = datetime.fromisoformat(said).replace(tzinfo=UTC) if isinstance(said, str) else said.astimezone(UTC)
        self._time = moment, time.monotonic()

    async def _begin(
        self, stack: AsyncExitStack, engine: AsyncEngine, connect_s: float, progress: Progress
    ) -> AsyncConnection:
        """A connection in a transaction, both of which end with ``stack``; one of the pool that broke is replaced."""
        now = asyncio.get_running_loop().time
        deadline = now() + connect_s
        while True:
            try:
                async with AsyncExitStack() as attempt:
                    async with asyncio.timeout_at(None if self._is_sqlite else deadline):
                        connection = await attempt.enter_async_context(engine.connect())
                    attempt.push_async_callback(self._leave, connection)
                    limit_s = self._busy_timeout_s + connect_s if self._is_sqlite else max(deadline - now(), 0.0)
                    progress.watch = await attempt.enter_async_context(silence.watched(connection, limit_s))
                    await attempt.enter_async_context(connection.begin())
                    await self._ask_time(connection)
                    stack.push_async_exit(attempt.pop_all())
                    return connection
            except DBAPIError as error:
                if progress.watch.has_cut or not error.connection_invalidated or now() >= deadline:
                    raise

    async def _leave(self, connection: AsyncConnection) -> None:
        # A task may outlive the database; the pool that it would give its connection back to is gone.
        if self._is_closed:
            await connection.invalidate()


async def _ended(connection: AsyncConnection) -> None:
    # Nobody else may get a connection that listens.
    try:
        await connection.invalidate()
    finally:
        await connection.close()
