"""The registry of the audit: entries are added and read, and nothing here changes or removes one."""

from datetime import datetime

import sqlalchemy as sa

from amalgam.domain.audit import AuditDraft, AuditEntry, AuditKind, AuditPage
from amalgam.domain.clock import Clock
from amalgam.registry.database import Database
from amalgam.registry.tables import audit


class AuditRegistry:
    """Every method is one transaction; every one may raise `RegistryUnavailable`, and then has written nothing."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def append(self, draft: AuditDraft) -> None:
        """Write one entry, at this moment of the database's clock."""
        async with self._database.write() as connection:
            await connection.execute(audit.insert().values(at=self._clock(), **draft.model_dump()))

    async def list(
        self,
        *,
        limit: int,
        cursor: str | None,
        tenant: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        kind: AuditKind | None = None,
        object_name: str | None = None,
        oldest_first: bool = False,
    ) -> AuditPage:
        """A page of entries, newest first unless the other way round is asked for.

        Args:
            limit: Most entries of a page, from 1.
            cursor: Id of the last entry of the page before.
            tenant: Of this tenant's keys alone; None: of all.
            since: From this moment on.
            until: Before this moment.
            kind: Of objects of this kind alone; None: of all.
            object_name: Of the objects of this name or id alone; None: of all.
            oldest_first: The order.
        """
        order = audit.c.id.asc() if oldest_first else audit.c.id.desc()
        query = sa.select(audit).order_by(order).limit(limit + 1)
        if cursor is not None:
            last = int(cursor)
            query = query.where(audit.c.id > last if oldest_first else audit.c.id < last)
        if tenant is not None:
            query = query.where(audit.c.tenant == tenant)
        if since is not None:
            query = query.where(audit.c.at >= since)
        if until is not None:
            query = query.where(audit.c.at < until)
        if kind is not None:
            query = query.where(audit.c.kind == kind)
        if object_name is not None:
            query = query.where(audit.c.object == object_name)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
        items = tuple(AuditEntry.model_validate(dict(row)) for row in rows[:limit])
        return AuditPage(items, str(items[-1].id) if len(rows) > limit else None)
