"""Who may ask: tenants and keys in memory, and the record of what was changed."""

from dataclasses import dataclass

from amalgam.domain.clock import new_key_id, new_key_secret
from amalgam.registry.audit import AuditRegistry
from amalgam.registry.keys import KeyRegistry
from amalgam.registry.stored_bytes import StoredBytesRegistry
from amalgam.registry.tenants import TenantRegistry
from amalgam.services.audit import AuditService
from amalgam.services.key_directory import KeyDirectory
from amalgam.services.tenants import TenantService
from amalgam.wiring.parts import Parts
from amalgam.wiring.storage import Storage


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask, and what was changed."""

    directory: KeyDirectory
    tenants: TenantService
    audit: AuditService

    @classmethod
    async def open(cls, parts: Parts, kept: Storage) -> "Access":
        """Read tenants and keys once; when keys were used is written at the end."""
        database, clock = kept.database, kept.database.clock
        tenants, keys = TenantRegistry(database, clock), KeyRegistry(database, clock)
        directory = KeyDirectory(tenants, keys, clock)
        await directory.refresh()
        parts.stack.push_async_callback(directory.close)
        stored = StoredBytesRegistry(database)
        service = TenantService(tenants, keys, directory, clock, new_key_id, new_key_secret, stored)
        return cls(directory, service, AuditService(AuditRegistry(database, clock)))
