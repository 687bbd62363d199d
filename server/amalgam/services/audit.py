"""The audit of the admin plane: written before a change is acknowledged, and read in pages."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from amalgam.domain.audit import AuditDraft, AuditEntry, AuditKind, AuditPage
from amalgam.errors import Unavailable
from amalgam.errors.tenants import AuditUnavailable
from amalgam.registry.audit import AuditRegistry

_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which entries."""

    tenant: str | None = None
    """Entries are by this tenant's keys alone; None: by all."""
    since: datetime | None = None
    until: datetime | None = None
    """Entries of this moment are not among them."""
    kind: AuditKind | None = None
    object_name: str | None = None
    """It is the name or id of what was changed."""


class AuditService:
    """Writes and reads entries."""

    def __init__(self, registry: AuditRegistry) -> None:
        self._registry = registry

    async def append(self, draft: AuditDraft) -> None:
        """Write one entry.

        Raises:
            AuditUnavailable: it cannot be written, so that what was done is not to be acknowledged.
        """
        try:
            await self._registry.append(draft)
        except Unavailable as error:
            raise AuditUnavailable(draft.verb) from error

    async def page(self, asked: AuditQuery, limit: int, cursor: str | None, *, oldest_first: bool = False) -> AuditPage:
        """A page of entries, newest first unless the other way round is asked for."""
        return await self._registry.list(
            limit=limit,
            cursor=cursor,
            tenant=asked.tenant,
            since=asked.since,
            until=asked.until,
            kind=asked.kind,
            object_name=asked.object_name,
            oldest_first=oldest_first,
        )

    async def all(self, asked: AuditQuery) -> AsyncIterator[AuditEntry]:
        """Every entry, oldest first, as it is read."""
        cursor: str | None = None
        while True:
            page = await self.page(asked, _PAGE, cursor, oldest_first=True)
            for entry in page.items:
                yield entry
            cursor = page.next_cursor
            if cursor is None:
                return
