"""Cuts a connection whose database says nothing: no driver gives up by itself on a server that stands still.

A cancellation would not do, because a driver that is cancelled asks the same silent server to cancel, and waits for it.
So the wait is ended from the other side: what the driver waits for breaks, and it reports that.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

_WATCH: Final = "amalgam_silence"
"""This execution option holds the watch over a connection, for the listeners of its engine."""
_GRACE_S: Final = 0.1
"""After a pause of this process the answer may be there already: whoever waits for it is let go first."""


class Silence:
    """The watch over one connection while it is used.

    Args:
        driver: the connection of the driver: psycopg's or aiosqlite's.
        limit_s: longest wait for one statement.
    """

    def __init__(self, driver: Any, limit_s: float) -> None:
        self._driver = driver
        self.limit_s = limit_s
        self._timer: asyncio.TimerHandle | None = None
        self.has_cut = False

    def expect(self) -> None:
        """Something was asked just now: its answer has ``limit_s`` seconds."""
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(self.limit_s, self._cut_after, _GRACE_S)

    def _cut_after(self, grace_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(grace_s, self._cut)

    def _cut(self) -> None:
        self.has_cut = True
        if hasattr(self._driver, "pgconn"):
            _shut_down(self._driver)
        else:
            self._driver._conn.interrupt()

    def stop(self) -> None:
        """Nothing is waited for any more."""
        if self._timer is not None:
            self._timer.cancel()


def _shut_down(driver: Any) -> None:
    # A closed connection has no descriptor, and one that broke by itself cannot be shut down again.
    with contextlib.suppress(OSError, driver_errors()), socket.socket(fileno=os.dup(driver.fileno())) as peer:
        peer.shutdown(socket.SHUT_RDWR)


def driver_errors() -> type[Exception]:
    """The root of what psycopg raises; only asked where a connection of it is open."""
    import psycopg

    return psycopg.Error


@asynccontextmanager
async def watched(connection: AsyncConnection, limit_s: float) -> AsyncIterator[Silence]:
    """Cut ``connection`` where one of its statements takes longer than ``limit_s`` seconds."""
    raw = await connection.get_raw_connection()
    watch = Silence(raw.driver_connection, limit_s)
    await connection.execution_options(**{_WATCH: watch})
    watch.expect()
    try:
        yield watch
    finally:
        watch.stop()


def install(engine: sa.Engine) -> None:
    """Have every statement of ``engine`` tell the watch over its connection."""

    def asked(connection: sa.Connection, *_: Any) -> None:
        watch = connection.get_execution_options().get(_WATCH)
        if watch is not None:
            watch.expect()

    for event in ("before_cursor_execute", "commit", "rollback"):
        sa.event.listen(engine, event, asked)
