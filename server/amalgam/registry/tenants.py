"""The registry of tenants, and the revision by which servers see that tenants or keys changed."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.domain.clock import Clock
from amalgam.domain.tenant import BUILT_IN_TENANT, AccessRows, Key, Tenant, TenantChange, TenantPage
from amalgam.errors.tenants import TenantExists, TenantKept, TenantNotFound
from amalgam.registry.database import LONG_S, Database
from amalgam.registry.notices import announce
from amalgam.registry.tables import keys, registry_state, tenants


class TenantRegistry:
    """Every method is one transaction; every one may raise `RegistryUnavailable`, and then has changed nothing."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def revision(self) -> int:
        """Grows with every change to tenants or keys."""
        async with self._database.read() as connection:
            return await read_access_revision(connection)

    async def load(self) -> AccessRows:
        """Tenants that were not deleted, and their keys that were not revoked."""
        live_keys = sa.select(keys).where(keys.c.state != "revoked").order_by(keys.c.id)
        async with self._database.read(statement_s=LONG_S) as connection:
            revision = await read_access_revision(connection)
            found = (await connection.execute(_live().order_by(tenants.c.id))).mappings().all()
            known = (await connection.execute(live_keys)).mappings().all()
        return AccessRows(revision, tuple(map(tenant_of, found)), tuple(map(key_of, known)))

    async def create(self, draft: Tenant) -> Tenant:
        """Write a new tenant; its times are set here.

        Raises:
            TenantExists: the id is, or was, another's.
        """
        async with self._database.write() as connection:
            await bump_access(connection)
            state = await self._state(connection, draft.id)
            if state is not None:
                raise TenantExists(draft.id, is_deleted=state == "deleted")
            now = self._clock()
            tenant = draft.model_copy(update={"created_at": now, "updated_at": now})
            await connection.execute(tenants.insert().values(**_row(tenant)))
            return tenant

    async def update(self, tenant_id: str, change: TenantChange) -> Tenant:
        """Change a tenant.

        Raises:
            TenantNotFound: there is none.
            TenantKept: the built-in one cannot be suspended.
        """
        if tenant_id == BUILT_IN_TENANT and change.state not in (None, "active"):
            raise TenantKept(tenant_id)
        async with self._database.write() as connection:
            await bump_access(connection)
            await live_tenant(connection, tenant_id)
            fields = change.fields() | {"updated_at": self._clock()}
            await connection.execute(tenants.update().where(tenants.c.id == tenant_id).values(**fields))
            return await live_tenant(connection, tenant_id)

    async def delete(self, tenant_id: str) -> Tenant:
        """Delete a tenant and revoke its keys; the rows stay, and the id is not used again.

        Raises:
            TenantNotFound: there is none.
            TenantKept: the built-in one.
        """
        if tenant_id == BUILT_IN_TENANT:
            raise TenantKept(tenant_id)
        async with self._database.write() as connection:
            await bump_access(connection)
            tenant = await live_tenant(connection, tenant_id)
            gone = {"state": "deleted", "updated_at": self._clock()}
            await connection.execute(tenants.update().where(tenants.c.id == tenant_id).values(**gone))
            await connection.execute(keys.update().where(keys.c.tenant == tenant_id).values(state="revoked"))
            return tenant

    async def get(self, tenant_id: str) -> Tenant:
        """One tenant. Raises TenantNotFound."""
        async with self._database.read() as connection:
            return await live_tenant(connection, tenant_id)

    async def list(self, *, limit: int, cursor: str | None) -> TenantPage:
        """A page in order of id; ``cursor`` is the last id of the page before."""
        query = _live().order_by(tenants.c.id).limit(limit + 1)
        if cursor is not None:
            query = query.where(tenants.c.id > cursor)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
        items = tuple(map(tenant_of, rows[:limit]))
        return TenantPage(items, items[-1].id if len(rows) > limit else None)

    async def _state(self, connection: AsyncConnection, tenant_id: str) -> str | None:
        query = sa.select(tenants.c.state).where(tenants.c.id == tenant_id)
        return (await connection.execute(query)).scalar_one_or_none()


def _live() -> sa.Select[Any]:
    return sa.select(tenants).where(tenants.c.state != "deleted")


async def live_tenant(connection: AsyncConnection, tenant_id: str) -> Tenant:
    """A tenant that was not deleted. Raises TenantNotFound."""
    row = (await connection.execute(_live().where(tenants.c.id == tenant_id))).mappings().one_or_none()
    if row is None:
        raise TenantNotFound(tenant_id)
    return tenant_of(row)


async def bump_access(connection: AsyncConnection) -> None:
    """Tell every server that tenants or keys changed."""
    await connection.execute(registry_state.update().values(access_revision=registry_state.c.access_revision + 1))
    await announce(connection)


async def read_access_revision(connection: AsyncConnection) -> int:
    """The revision of tenants and keys."""
    return int((await connection.execute(sa.select(registry_state.c.access_revision))).scalar_one())


def tenant_of(row: sa.RowMapping) -> Tenant:
    """The domain's tenant from a row of ``tenants``."""
    return Tenant.model_validate({field: row[field] for field in Tenant.model_fields})


def key_of(row: sa.RowMapping) -> Key:
    """The domain's key from a row of ``keys``."""
    return Key.model_validate({field: row[field] for field in Key.model_fields})


def _row(tenant: Tenant) -> dict[str, Any]:
    as_json = tenant.model_dump(mode="json", include={"limits", "model_limits"})
    return tenant.model_dump() | as_json
