"""Hears of changes in the moment of their commit, where the database can tell: PostgreSQL's LISTEN and NOTIFY.

A notice is a hint and carries nothing. Whoever listens looks at the registry now and then as well: SQLite tells nobody,
a connection pooler may swallow notices, and a line that was cut loses those of the time until it is there again.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.errors.registry import RegistryFailed, RegistryUnavailable
from amalgam.registry.database import Database

logger = logging.getLogger(__name__)

CHANNEL: Final = "amalgam_registry"
ALIVE_PERIOD_S: Final = 5.0
"""A line that is silent for so long is asked whether it is there."""
_RETRY_S: Final = 1.0


async def announce(connection: AsyncConnection) -> None:
    """Tell every listener, once and only if the open transaction of ``connection`` is committed."""
    if connection.dialect.name == "postgresql":
        await connection.execute(sa.select(sa.func.pg_notify(CHANNEL, "")))


class Notices:
    """Listens on a connection of its own, which is made again where it breaks.

    Args:
        database: whose notices.
        alive_period_s: see `ALIVE_PERIOD_S`.
    """

    def __init__(self, database: Database, alive_period_s: float = ALIVE_PERIOD_S) -> None:
        self._database = database
        self._alive_period_s = alive_period_s
        self.is_listening = False
        """Whether a change would be heard of now."""

    async def listen_loop(self, on_change: Callable[[], None]) -> None:
        """Call ``on_change`` soon after every commit of a change, for ever; only where the database tells of them."""
        while True:
            try:
                await self._listen(on_change)
            except (RegistryUnavailable, RegistryFailed) as error:
                if self.is_listening:
                    logger.warning("notices_not_heard reason=%s", error)
            finally:
                self.is_listening = False
            await asyncio.sleep(_RETRY_S)

    async def _listen(self, on_change: Callable[[], None]) -> None:
        async with self._database.line(f"LISTEN {CHANNEL}") as line:
            self.is_listening = True
            # What was committed while nobody listened.
            on_change()
            while True:
                if await line.is_told(self._alive_period_s):
                    on_change()
                else:
                    await line.ask("SELECT 1")
