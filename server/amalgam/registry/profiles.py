"""The registry of serving profiles: what holds for each version, and every change that led there."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.domain.adapter import AdapterVersion
from amalgam.domain.clock import Clock
from amalgam.domain.serving_profile import (
    MAX_CHANGES_KEPT,
    ProfileAction,
    ProfileOrigin,
    ServingProfile,
    VersionProfile,
)
from amalgam.errors.profiles import ProfileNotFound
from amalgam.registry.database import LONG_S, Database
from amalgam.registry.tables import version_profiles, versions
from amalgam.registry.version_rows import live_version, mark_changed

_CHUNK: Final = 500
"""One statement has so many ids."""


class ProfileRegistry:
    """Every method is one transaction; every one may raise `RegistryUnavailable`, and then has changed nothing."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def history(self, name: str, number: int) -> tuple[VersionProfile, ...]:
        """The states of a live version's profile, newest first; empty where it never had one.

        Raises:
            AdapterNotFound, VersionNotFound: there is no such version.
        """
        async with self._database.read() as connection:
            version = await live_version(connection, name, number)
            query = (
                sa.select(version_profiles)
                .where(version_profiles.c.version_id == version.id)
                .order_by(version_profiles.c.revision.desc())
            )
            return tuple(_state(row) for row in (await connection.execute(query)).mappings())

    async def put(
        self,
        name: str,
        number: int,
        profile: ServingProfile,
        *,
        action: ProfileAction = "set",
        origin: ProfileOrigin = "api",
        active: bool,
    ) -> VersionProfile:
        """Make ``profile`` that of a live version.

        Raises:
            AdapterNotFound, VersionNotFound: there is no such version.
        """
        async with self._database.write() as connection:
            version = await live_version(connection, name, number)
            await mark_changed(connection, version)
            newest = await _newest(connection, version.id)
            return await self._add(connection, version.id, newest, action, origin, profile, active=active)

    async def switch(self, name: str, number: int, *, active: bool) -> VersionProfile:
        """Have requests get a version's profile, or not; one that is so already is left as it is.

        Raises:
            AdapterNotFound, VersionNotFound, ProfileNotFound: there is none.
        """
        async with self._database.write() as connection:
            version, state = await self._live(connection, name, number)
            await mark_changed(connection, version)
            if state.active == active:
                return state
            action: ProfileAction = "on" if active else "off"
            what = (action, state.origin, state.profile)
            return await self._add(connection, state.version_id, state, *what, active=active)

    async def delete(self, name: str, number: int) -> VersionProfile:
        """Take a version's profile away; its history stays.

        Raises:
            AdapterNotFound, VersionNotFound, ProfileNotFound: there is none.
        """
        async with self._database.write() as connection:
            version, state = await self._live(connection, name, number)
            await mark_changed(connection, version)
            return await self._add(connection, state.version_id, state, "delete", state.origin, None, active=False)

    async def newer(self, known: Mapping[int, int]) -> dict[int, VersionProfile]:
        """The newest states of live versions' profiles that the caller does not know.

        Args:
            known: Version id -> revision that the caller knows.
        """
        newest = sa.func.max(version_profiles.c.revision)
        query = sa.select(version_profiles.c.version_id, newest).group_by(version_profiles.c.version_id)
        query = query.join(versions, versions.c.id == version_profiles.c.version_id)
        async with self._database.read(statement_s=LONG_S) as connection:
            marks = (await connection.execute(query.where(versions.c.deleted_at.is_(None)))).all()
            changed = [(mark[0], mark[1]) for mark in marks if known.get(mark[0]) != mark[1]]
            found: dict[int, VersionProfile] = {}
            for start in range(0, len(changed), _CHUNK):
                pair = sa.tuple_(version_profiles.c.version_id, version_profiles.c.revision)
                rows = sa.select(version_profiles).where(pair.in_(changed[start : start + _CHUNK]))
                found |= {row["version_id"]: _state(row) for row in (await connection.execute(rows)).mappings()}
        return found

    async def newest_of(self, version_ids: Sequence[int]) -> dict[int, VersionProfile]:
        """The newest state of each of these versions, deleted ones too, where they ever had a profile."""
        async with self._database.read() as connection:
            return await newest_states(connection, version_ids)

    async def _live(self, connection: AsyncConnection, name: str, number: int) -> tuple[AdapterVersion, VersionProfile]:
        version = await live_version(connection, name, number)
        state = await _newest(connection, version.id)
        if state is None or state.profile is None:
            raise ProfileNotFound(str(version.ref))
        return version, state

    async def _add(
        self,
        connection: AsyncConnection,
        version_id: int,
        newest: VersionProfile | None,
        action: ProfileAction,
        origin: ProfileOrigin,
        profile: ServingProfile | None,
        *,
        active: bool,
    ) -> VersionProfile:
        revision = 1 if newest is None else newest.revision + 1
        row: dict[str, Any] = {
            "version_id": version_id,
            "revision": revision,
            "action": action,
            "origin": origin,
            "profile": None if profile is None else profile.model_dump(mode="json", exclude_defaults=True),
            "active": active,
            "created_at": self._clock(),
        }
        await connection.execute(version_profiles.insert().values(**row))
        too_old = version_profiles.c.revision <= revision - MAX_CHANGES_KEPT
        mine = version_profiles.c.version_id == version_id
        await connection.execute(version_profiles.delete().where(mine, too_old))
        return VersionProfile.model_validate(row)


async def newest_states(connection: AsyncConnection, version_ids: Sequence[int]) -> dict[int, VersionProfile]:
    """The newest state of each of these versions' profiles, where they ever had one."""
    table, found = version_profiles.c, dict[int, VersionProfile]()
    for start in range(0, len(version_ids), _CHUNK):
        ids = table.version_id.in_(version_ids[start : start + _CHUNK])
        rows = sa.select(version_profiles).where(ids).order_by(table.version_id, table.revision)
        found |= {row["version_id"]: _state(row) for row in (await connection.execute(rows)).mappings()}
    return found


async def _newest(connection: AsyncConnection, version_id: int) -> VersionProfile | None:
    query = (
        sa.select(version_profiles)
        .where(version_profiles.c.version_id == version_id)
        .order_by(version_profiles.c.revision.desc())
        .limit(1)
    )
    row = (await connection.execute(query)).mappings().one_or_none()
    return None if row is None else _state(row)


def _state(row: sa.RowMapping) -> VersionProfile:
    return VersionProfile.model_validate({field: row[field] for field in VersionProfile.model_fields})
