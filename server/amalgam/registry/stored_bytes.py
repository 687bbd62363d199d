"""How many bytes tenants and keys have stored, and whether more of them fit into their limits.

A limit is read in the transaction that stores something, so that it holds whichever server or worker does so, and
however many do at once. Keys that were rotated to one another count as one.
"""

from collections.abc import Collection, Iterable, Mapping

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.domain.stored_bytes import StoredBy, StoredBytes
from amalgam.domain.tenant import Key
from amalgam.errors.limits import StorageSpent
from amalgam.registry.database import LONG_S, Database
from amalgam.registry.tables import files, keys, tenants, versions

_Place = tuple[str, str]
"""It is a tenant and the id of a key."""
_NOTHING = StoredBytes()


class StoredBytesRegistry:
    """Every method is one transaction, which reads; every one may raise `RegistryUnavailable`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def totals(self) -> Mapping[str, StoredBytes]:
        """The sums by tenant; of all that have stored anything."""
        async with self._database.read(statement_s=LONG_S) as connection:
            by_key = await _by_key(connection, None)
        found: dict[str, StoredBytes] = {}
        for (tenant, _), stored in by_key.items():
            found[tenant] = found.get(tenant, _NOTHING) + stored
        return found

    async def of_tenants(self, ids: Collection[str]) -> Mapping[str, StoredBytes]:
        """The sums by tenant; of all of ``ids``."""
        async with self._database.read(statement_s=LONG_S) as connection:
            by_key = await _by_key(connection, ids)
        found = dict.fromkeys(ids, _NOTHING)
        for (tenant, _), stored in by_key.items():
            found[tenant] += stored
        return found

    async def of_keys(self, of: Collection[Key]) -> Mapping[str, StoredBytes]:
        """The sums by the id of each key, with what the keys stored that it was rotated from or to."""
        owners = {key.tenant for key in of}
        async with self._database.read(statement_s=LONG_S) as connection:
            by_key = await _by_key(connection, owners)
            lines = await _lines(connection, owners)
        return {key.id: _of_line(by_key, lines, key.id) for key in of}


def stored_by_columns(who: StoredBy | None) -> dict[str, str]:
    """The columns of a row that say whose bytes it counts as; the server's own stay at their defaults."""
    return {} if who is None else {"tenant": who.tenant, "key_id": who.key_id}


async def require_storage(connection: AsyncConnection, who: StoredBy, needed: int) -> None:
    """Nothing where ``needed`` bytes more fit into the limits of a tenant and its key. Raises StorageSpent."""
    of_tenant = await _limit(connection, tenants, who.tenant)
    of_key = await _limit(connection, keys, who.key_id) if who.key_id else None
    if of_tenant is None and of_key is None:
        return
    by_key = await _by_key(connection, (who.tenant,))
    if of_tenant is not None:
        _require(f"The tenant {who.tenant!r}", of_tenant, _sum(by_key.values()), needed)
    if of_key is not None:
        lines = await _lines(connection, (who.tenant,))
        _require(f"The key ak_{who.key_id}", of_key, _of_line(by_key, lines, who.key_id), needed)


def _require(owner: str, limit: int, stored: StoredBytes, needed: int) -> None:
    if stored.total + needed > limit:
        raise StorageSpent(owner, limit, stored.total, needed)


async def _limit(connection: AsyncConnection, table: sa.Table, row_id: str) -> int | None:
    limits = (await connection.execute(sa.select(table.c.limits).where(table.c.id == row_id))).scalar_one_or_none()
    found = (limits or {}).get("stored_bytes")
    return None if found is None else int(found)


async def _by_key(connection: AsyncConnection, of: Collection[str] | None) -> Mapping[_Place, StoredBytes]:
    """What each key of those tenants, or of all, has stored itself."""
    found: dict[_Place, StoredBytes] = {}
    for table, size, alive, kind in (
        (versions, versions.c.size_bytes, versions.c.deleted_at.is_(None), "adapters"),
        (files, files.c.bytes, sa.true(), "files"),
    ):
        whose = (table.c.tenant, table.c.key_id)
        query = sa.select(*whose, sa.func.sum(size)).where(alive).group_by(*whose)
        if of is not None:
            query = query.where(table.c.tenant.in_(of))
        for tenant, key_id, total in await connection.execute(query):
            place = (tenant, key_id)
            found[place] = found.get(place, _NOTHING) + StoredBytes(**{kind: int(total)})
    return found


async def _lines(connection: AsyncConnection, of: Collection[str]) -> Mapping[str, str]:
    """Give, by the id of a key that was rotated, the id of its successor."""
    rotated = (keys.c.tenant.in_(of), keys.c.successor.is_not(None))
    rows = await connection.execute(sa.select(keys.c.id, keys.c.successor).where(*rotated))
    return {str(key_id): str(successor) for key_id, successor in rows}


def _of_line(by_key: Mapping[_Place, StoredBytes], lines: Mapping[str, str], key_id: str) -> StoredBytes:
    last = _last(lines, key_id)
    return _sum(stored for (_, one), stored in by_key.items() if _last(lines, one) == last)


def _last(lines: Mapping[str, str], key_id: str) -> str:
    """The key that the rotations of ``key_id`` came to; a successor is always new, so that they come to an end."""
    while key_id in lines:
        key_id = lines[key_id]
    return key_id


def _sum(stored: Iterable[StoredBytes]) -> StoredBytes:
    return sum(stored, _NOTHING)
