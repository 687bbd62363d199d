"""Which versions every server keeps in memory: pinned by one, they are pinned on all, and after a restart too."""

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.domain.adapter import AdapterVersion
from amalgam.domain.clock import Clock
from amalgam.registry.database import Database
from amalgam.registry.tables import pins
from amalgam.registry.version_rows import bump_revision, live_version


async def read_pins(connection: AsyncConnection) -> frozenset[int]:
    """Ids of pinned versions."""
    return frozenset((await connection.execute(sa.select(pins.c.version_id))).scalars())


class PinRegistry:
    """Every method is one transaction; every one may raise `RegistryUnavailable`, and then has changed nothing."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def pin(self, version: AdapterVersion) -> None:
        """Pin a live version. Repeating it changes nothing.

        Raises:
            AdapterNotFound, VersionNotFound: it was deleted.
        """
        async with self._database.write() as connection:
            await live_version(connection, version.name, version.number)
            if version.id not in await read_pins(connection):
                await connection.execute(pins.insert().values(version_id=version.id, created_at=self._clock()))
                await bump_revision(connection)

    async def unpin(self, version_id: int) -> None:
        """End that. Repeating it changes nothing."""
        async with self._database.write() as connection:
            gone = await connection.execute(pins.delete().where(pins.c.version_id == version_id))
            if gone.rowcount:
                await bump_revision(connection)
