"""Which files are in the bucket, so that nobody removes what another server is about to name.

A server that publishes touches the digest before it writes; one that sweeps marks the digest as removed before it
removes. The database takes one of the two first, and the other gives way.
"""

from datetime import timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.domain.clock import Clock
from amalgam.domain.job import LIVE_STATES
from amalgam.errors.registry import ObjectStoreUnavailable
from amalgam.registry.database import Database
from amalgam.registry.tables import jobs, kept_objects, versions

_REMOVAL_S: Final = 600.0
"""Whoever began to remove files so long ago has died."""


class KeptObjectRegistry:
    """Every method is one transaction; every one may raise `RegistryUnavailable`, and then has changed nothing."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def touch(self, digest: str) -> None:
        """Say that the files of ``digest`` are about to be written, or used again.

        Raises:
            ObjectStoreUnavailable: another server is removing them now.
        """
        async with self._database.write() as connection:
            now = self._clock()
            old = kept_objects.c.touched_at < now - timedelta(seconds=_REMOVAL_S)
            touched = await connection.execute(
                kept_objects.update()
                .where(kept_objects.c.digest == digest, old | ~kept_objects.c.is_removed)
                .values(touched_at=now, is_removed=False)
            )
            if touched.rowcount:
                return
            if await self._is_known(connection, digest):
                raise ObjectStoreUnavailable("files of the same digest are just being removed from it")
            row = {"digest": digest, "touched_at": now, "is_removed": False}
            await connection.execute(kept_objects.insert().values(**row))

    async def release(self, digest: str, grace_s: float, kept_s: float = 0.0) -> bool:
        """Mark what nothing names, and nobody touched for a while, as removed by the caller.

        Args:
            digest: Of files in the bucket.
            grace_s: Those that were touched within so many seconds stay: their row may be on its way.
            kept_s: Those of versions that were deleted within so many seconds stay as well.

        Returns: whether the caller is to remove the files, and to `forget` them then.
        """
        async with self._database.write() as connection:
            now = self._clock()
            if not await self._is_known(connection, digest):
                # Written by an earlier release, or into another database: it ages from now on.
                row = {"digest": digest, "touched_at": now, "is_removed": False}
                await connection.execute(kept_objects.insert().values(**row))
                return False
            if await self._is_named(connection, digest, kept_s):
                return False
            before = now - timedelta(seconds=grace_s)
            marked = await connection.execute(
                kept_objects.update()
                .where(kept_objects.c.digest == digest, kept_objects.c.touched_at <= before)
                .values(touched_at=now, is_removed=True)
            )
            return bool(marked.rowcount)

    async def forget(self, digest: str) -> None:
        """The files are gone, as `release` had allowed."""
        async with self._database.write() as connection:
            gone = (kept_objects.c.digest == digest) & kept_objects.c.is_removed
            await connection.execute(kept_objects.delete().where(gone))

    async def _is_known(self, connection: AsyncConnection, digest: str) -> bool:
        query = sa.select(kept_objects.c.digest).where(kept_objects.c.digest == digest)
        return (await connection.execute(query)).first() is not None

    async def _is_named(self, connection: AsyncConnection, digest: str, kept_s: float) -> bool:
        kept = versions.c.deleted_at > self._clock() - timedelta(seconds=kept_s)
        live = versions.c.deleted_at.is_(None) | kept
        of_versions = sa.select(versions.c.id).where(versions.c.digest == digest, live)
        if (await connection.execute(of_versions.limit(1))).first() is not None:
            return True
        of_jobs = sa.select(jobs.c.input_digests).where(jobs.c.state.in_(LIVE_STATES))
        return any(digest in inputs for inputs in (await connection.execute(of_jobs)).scalars())
