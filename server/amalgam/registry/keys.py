"""The registry of keys: created, rotated, revoked; a secret never reaches it, only its SHA-256."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.domain.clock import Clock
from amalgam.domain.tenant import Key, KeyChange, KeyPage
from amalgam.errors.tenants import KeyNotFound, KeyNotLive
from amalgam.registry.database import Database
from amalgam.registry.tables import keys
from amalgam.registry.tenants import bump_access, key_of, live_tenant

_CHUNK: Final = 500
"""One transaction has so many keys."""


class KeyRegistry:
    """Every method is one transaction; every one may raise `RegistryUnavailable`, and then has changed nothing."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def create(self, draft: Key, *, lifetime_s: float | None = None) -> Key:
        """Write a new key.

        Args:
            draft: its times are set here.
            lifetime_s: seconds until it expires, by the database's clock; None: ``expires_at`` of the draft.

        Raises:
            TenantNotFound: there is no such tenant.
        """
        async with self._database.write() as connection:
            await bump_access(connection)
            await live_tenant(connection, draft.tenant)
            return await self._insert(connection, draft, lifetime_s)

    async def rotate(self, key_id: str, draft: Key, *, overlap_s: float, lifetime_s: float | None) -> tuple[Key, Key]:
        """Put a successor beside a key, which goes on for a while: the old one as it is now, and the new one.

        Args:
            key_id: of the key that is to end.
            draft: gives the successor's id and digest; all else is the old key's.
            overlap_s: seconds for which both are valid; the old key's own end may come sooner.
            lifetime_s: seconds until the successor expires; None: as long from now as the old one had from its start.

        Raises:
            KeyNotFound: there is none.
            KeyNotLive: it has ended, or has a successor.
        """
        async with self._database.write() as connection:
            await bump_access(connection)
            old, now = await _key(connection, key_id), self._clock()
            has_ended = old.state != "active" or (old.expires_at is not None and old.expires_at <= now)
            if has_ended or old.successor is not None:
                raise KeyNotLive(key_id, old.successor)
            if lifetime_s is None and old.expires_at is not None:
                lifetime_s = (old.expires_at - old.created_at).total_seconds()
            taken = {"id": draft.id, "secret_digest": draft.secret_digest, "last_used_at": None, "expires_at": None}
            new = await self._insert(connection, old.model_copy(update=taken), lifetime_s)
            until = now + timedelta(seconds=overlap_s)
            ends = {"successor": new.id, "expires_at": until if old.expires_at is None else min(old.expires_at, until)}
            await connection.execute(keys.update().where(keys.c.id == key_id).values(**ends))
            return await _key(connection, key_id), new

    async def update(self, key_id: str, change: KeyChange) -> Key:
        """Change a key; it is in force for the next request.

        Raises:
            KeyNotFound: there is none.
            KeyNotLive: it was revoked; or it was rotated, and is to end at another time.
            ScopesUnfit: its role cannot have such scopes.
        """
        async with self._database.write() as connection:
            await bump_access(connection)
            old = await _key(connection, key_id)
            if old.state == "revoked" or (change.moves_end and old.successor is not None):
                raise KeyNotLive(key_id, old.successor)
            fields = _row(change.applied(old))
            if change.moves_end:
                ends_in_s = change.expires_in_s
                fields["expires_at"] = None if ends_in_s is None else self._clock() + timedelta(seconds=ends_in_s)
            await connection.execute(keys.update().where(keys.c.id == key_id).values(**fields))
            return await _key(connection, key_id)

    async def revoke(self, key_id: str) -> Key:
        """End a key at once; one that has ended already is left as it is. Raises KeyNotFound."""
        async with self._database.write() as connection:
            await bump_access(connection)
            await _key(connection, key_id)
            await connection.execute(keys.update().where(keys.c.id == key_id).values(state="revoked"))
            return await _key(connection, key_id)

    async def get(self, key_id: str) -> Key:
        """One key, revoked or not. Raises KeyNotFound."""
        async with self._database.read() as connection:
            return await _key(connection, key_id)

    async def list(self, tenant: str | None, *, limit: int, cursor: str | None) -> KeyPage:
        """A page in order of id, revoked keys too.

        Args:
            tenant: whose; None: everybody's.
            limit: Most items of a page, from 1.
            cursor: the last id of the page before.
        """
        query = sa.select(keys).order_by(keys.c.id).limit(limit + 1)
        if tenant is not None:
            query = query.where(keys.c.tenant == tenant)
        if cursor is not None:
            query = query.where(keys.c.id > cursor)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
        items = tuple(map(key_of, rows[:limit]))
        return KeyPage(items, items[-1].id if len(rows) > limit else None)

    async def note_used(self, used: Mapping[str, datetime]) -> None:
        """Keep when keys were last used; nobody is told of it, and no moment goes back."""
        pairs = sorted(used.items())
        for start in range(0, len(pairs), _CHUNK):
            async with self._database.write() as connection:
                for key_id, moment in pairs[start : start + _CHUNK]:
                    is_older = sa.or_(keys.c.last_used_at.is_(None), keys.c.last_used_at < moment)
                    change = keys.update().where(keys.c.id == key_id, is_older).values(last_used_at=moment)
                    await connection.execute(change)

    async def _insert(self, connection: AsyncConnection, draft: Key, lifetime_s: float | None) -> Key:
        now = self._clock()
        ends = draft.expires_at if lifetime_s is None else now + timedelta(seconds=lifetime_s)
        key = draft.model_copy(update={"created_at": now, "expires_at": ends})
        await connection.execute(keys.insert().values(**_row(key)))
        return key


async def _key(connection: AsyncConnection, key_id: str) -> Key:
    row = (await connection.execute(sa.select(keys).where(keys.c.id == key_id))).mappings().one_or_none()
    if row is None:
        raise KeyNotFound(key_id)
    return key_of(row)


def _row(key: Key) -> dict[str, Any]:
    return key.model_dump() | key.model_dump(mode="json", include={"scopes", "limits", "role"})
