"""How many bytes a tenant and a key have stored, and whether more of them fit into a limit."""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.domain.limits import Payer
from amalgam.errors.limits import StorageSpent
from amalgam.registry.tables import files


@dataclass(frozen=True, slots=True)
class StorageLimit:
    """One limit on stored bytes.

    Attributes:
        owner: whose limit it is, as errors name it.
        limit: bytes.
        tenant: what it stored is counted.
        key_id: only what this key stored; None: all keys of the tenant.
    """

    owner: str
    limit: int
    tenant: str
    key_id: str | None = None


def storage_limits(payer: Payer) -> tuple[StorageLimit, ...]:
    """The limits on stored bytes of whoever asks: the tenant's and the key's."""
    tenant, key = payer.tenant, payer.key
    found = []
    if tenant.limits.stored_bytes is not None:
        found.append(StorageLimit(f"The tenant {tenant.id!r}", tenant.limits.stored_bytes, tenant.id))
    if key is not None and key.limits.stored_bytes is not None:
        found.append(StorageLimit(f"The key {key.prefix}", key.limits.stored_bytes, tenant.id, key.id))
    return tuple(found)


async def require_storage(connection: AsyncConnection, limits: Sequence[StorageLimit], needed: int) -> None:
    """Nothing where ``needed`` bytes more fit into all of ``limits``. Raises StorageSpent."""
    for limit in limits:
        stored = await _stored(connection, limit)
        if stored + needed > limit.limit:
            raise StorageSpent(limit.owner, limit.limit, stored, needed)


async def _stored(connection: AsyncConnection, limit: StorageLimit) -> int:
    """Bytes of files."""
    mine = [files.c.tenant == limit.tenant]
    if limit.key_id is not None:
        mine.append(files.c.key_id == limit.key_id)
    query = sa.select(sa.func.coalesce(sa.func.sum(files.c.bytes), 0)).where(*mine)
    return int((await connection.execute(query)).scalar_one())
