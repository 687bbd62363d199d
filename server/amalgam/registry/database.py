"""Opens the registry's database and hands out transactions: one kind that reads, one that writes."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from amalgam.domain.failpoints import NO_FAILPOINTS, Failpoints
from amalgam.errors.registry import RegistryUnavailable, UnsupportedDatabase
from amalgam.registry.schema import upgrade
from amalgam.registry.tables import registry_state

_DRIVERS: Final = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_BEGIN: Final = "amalgam_begin"
"""Name of the execution option that says how SQLite begins a transaction."""
_RETRY_S: Final = 0.02
_REASONS: Final = {
    "locked": "it is locked",
    "lock timeout": "it is locked",
    "full": "its disk is full",
    "readonly": "it is read-only",
}


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return sa.URL.create("sqlite+aiosqlite", database=str(path)).render_as_string(hide_password=False)


class Database:
    """An open database with the tables of this release."""

    def __init__(self, engine: AsyncEngine, busy_timeout_s: float, failpoints: Failpoints) -> None:
        self._engine = engine
        self._busy_timeout_s = busy_timeout_s
        self._failpoints = failpoints
        self._is_sqlite = engine.dialect.name == "sqlite"
        if self._is_sqlite:
            self._reader = engine.execution_options(**{_BEGIN: "BEGIN"})
            self._writer = engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})
        else:
            self._reader = engine.execution_options(isolation_level="REPEATABLE READ")
            self._writer = engine
        # SQLite lets waiting writers in by chance and not by turn; inside one process they queue here instead.
        self._turn = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, *, busy_timeout_s: float = 10.0, failpoints: Failpoints = NO_FAILPOINTS
    ) -> AsyncIterator["Database"]:
        """Connect, bring the tables up to date, and close at the end.

        Args:
            url: ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``postgresql://user@host/name``.
            busy_timeout_s: Longest wait for another writer.

        Raises:
            UnsupportedDatabase: another kind of URL, or its driver is not installed.
            RegistryUnavailable: the database cannot be reached.
            SchemaTooNew: a later release wrote it.
        """
        engine = _create_engine(url, busy_timeout_s)
        try:
            database = cls(engine, busy_timeout_s, failpoints)
            await database._prepare()
            yield database
        finally:
            await engine.dispose()

    async def _prepare(self) -> None:
        if self._is_sqlite:
            await self._use_wal()
        async with self._transaction(self._writer) as connection:
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
                    raise RegistryUnavailable(_reason(error)) from error
            await asyncio.sleep(_RETRY_S)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that sees one moment of the database and changes nothing.

        Raises:
            RegistryUnavailable: the database cannot be used now.
        """
        async with self._transaction(self._reader) as connection:
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that no other writer overlaps, in this process or another; committed unless the block raises.

        Raises:
            RegistryUnavailable: the database cannot be used now; nothing was changed.
        """
        async with self._queue(), self._transaction(self._writer) as connection:
            if not self._is_sqlite:
                await connection.execute(sa.select(registry_state.c.id).with_for_update())
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
    async def _transaction(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        with _translated():
            async with engine.begin() as connection:
                yield connection


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        raise RegistryUnavailable(_reason(error)) from error


def _reason(error: Exception) -> str:
    """A word that says what is wrong and gives away neither host nor path."""
    text = str(error).lower()
    return next((reason for sign, reason in _REASONS.items() if sign in text), "it cannot be reached")


def _create_engine(url: str, busy_timeout_s: float) -> AsyncEngine:
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        raise UnsupportedDatabase("it is not a database URL") from None
    driver = _DRIVERS.get(parsed.drivername)
    if driver is None:
        raise UnsupportedDatabase(f"{parsed.drivername!r} is not one of: sqlite, postgresql")
    parsed = parsed.set(drivername=driver)
    try:
        if driver == "postgresql+psycopg":
            options = f"{parsed.query.get('options', '')} -c lock_timeout={round(busy_timeout_s * 1000)}"
            parsed = parsed.update_query_dict({"options": options.strip()})
            return create_async_engine(parsed, pool_pre_ping=True, connect_args={"connect_timeout": 10})
        if not parsed.database or parsed.database == ":memory:":
            raise UnsupportedDatabase("a database in memory cannot be shared; name a file")
        engine = create_async_engine(parsed, connect_args={"timeout": busy_timeout_s, "factory": _SqliteConnection})
    except ModuleNotFoundError as error:
        raise UnsupportedDatabase(
            f"the driver {error.name!r} is not installed; install the extra 'postgres'"
        ) from error
    sa.event.listen(engine.sync_engine, "connect", _configure_sqlite)
    sa.event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


class _SqliteConnection(sqlite3.Connection):
    """Gives its locks back when it is closed.

    A task that is cancelled in the middle of a query leaves a cursor behind, in a traceback if nowhere else. SQLite
    keeps a closed connection alive, transaction and write lock included, until the last cursor is gone.
    """

    def close(self) -> None:
        if self.in_transaction:
            self.rollback()
        super().close()


def _configure_sqlite(connection: Any, _: Any) -> None:
    # The driver would begin transactions on its own, late and without the write lock; `_begin_sqlite` does it instead.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("synchronous = FULL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))
