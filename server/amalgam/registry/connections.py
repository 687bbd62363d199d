"""How this server connects to either kind of database, and what it asks of its driver."""

import sqlite3
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from amalgam.errors.registry import UnsupportedDatabase
from amalgam.registry.sqlite_file import make_private

BEGIN: Final = "amalgam_begin"
"""The execution option of this name says how SQLite begins a transaction."""
LONGEST_STATEMENT_S: Final = 120.0
"""After so long PostgreSQL gives a statement up by itself: nobody waits for its result any more."""
_DRIVERS: Final = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_LEAST_CONNECT_S: Final = 2
"""For libpq a shorter ``connect_timeout`` is this."""


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return sa.URL.create("sqlite+aiosqlite", database=str(path)).render_as_string(hide_password=False)


def create_engine(url: str, busy_timeout_s: float, answer_timeout_s: float) -> AsyncEngine:
    """An engine that has not connected yet.

    Args:
        url: see `amalgam.registry.database.Database.open`.
        busy_timeout_s: longest wait for another writer.
        answer_timeout_s: longest silence of a database that is connected to.

    Raises:
        UnsupportedDatabase: another kind of URL, or its driver is not installed.
    """
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
            return _postgres(parsed, busy_timeout_s, answer_timeout_s)
        return _sqlite(parsed, busy_timeout_s)
    except ModuleNotFoundError as error:
        raise UnsupportedDatabase(
            f"the driver {error.name!r} is not installed; install the extra 'postgres'"
        ) from error


def _postgres(url: sa.URL, busy_timeout_s: float, answer_timeout_s: float) -> AsyncEngine:
    limits = {
        "lock_timeout": busy_timeout_s,
        "statement_timeout": LONGEST_STATEMENT_S,
        # A server that stands still in the middle of a write would keep all others from writing.
        "idle_in_transaction_session_timeout": busy_timeout_s + answer_timeout_s,
    }
    options = [str(url.query.get("options", "")), *(f"-c {name}={round(s * 1000)}" for name, s in limits.items())]
    connect_args: dict[str, int] = {
        "connect_timeout": max(_LEAST_CONNECT_S, round(answer_timeout_s)),
        "keepalives": 1,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": round(LONGEST_STATEMENT_S * 1000),
    }
    for given in connect_args.keys() & url.query.keys():
        del connect_args[given]
    return create_async_engine(
        url.update_query_dict({"options": " ".join(options).strip()}),
        connect_args=connect_args,
        pool_timeout=answer_timeout_s,
        # One of them listens for changes and is never given back.
        pool_size=6,
        # Whether a pooled connection is alive is asked by `Database`, under a limit.
        pool_pre_ping=False,
    )


def _sqlite(url: sa.URL, busy_timeout_s: float) -> AsyncEngine:
    if not url.database or url.database == ":memory:":
        raise UnsupportedDatabase("a database in memory cannot be shared; name a file")
    if not url.database.startswith("file:"):
        make_private(Path(url.database))
    engine = create_async_engine(url, connect_args={"timeout": busy_timeout_s, "factory": SqliteConnection})
    sa.event.listen(engine.sync_engine, "connect", _configure_sqlite)
    sa.event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


class SqliteConnection(sqlite3.Connection):
    """Gives its locks back when it is closed.

    A task that is cancelled in the middle of a query leaves a cursor behind, in a traceback if nowhere else. SQLite
    keeps a closed connection alive, transaction and write lock included, until the last cursor is gone.
    """

    def close(self) -> None:
        """Roll back what is open first."""
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
    connection.exec_driver_sql(connection.get_execution_options().get(BEGIN, "BEGIN"))
