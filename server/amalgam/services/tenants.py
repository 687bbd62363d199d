"""The life of tenants and their keys. A change is in force, here, when its call returns; elsewhere within a period."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from amalgam.domain.clock import Clock
from amalgam.domain.scopes import Scopes
from amalgam.domain.stored_bytes import StoredBytes
from amalgam.domain.tenant import (
    Key,
    KeyChange,
    KeyPage,
    Limits,
    Role,
    Tenant,
    TenantChange,
    TenantPage,
    require_fitting,
    secret_digest,
)
from amalgam.registry.keys import KeyRegistry
from amalgam.registry.stored_bytes import StoredBytesRegistry
from amalgam.registry.tenants import TenantRegistry
from amalgam.services.key_directory import KeyDirectory


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key as it is asked for."""

    tenant: str
    role: Role
    name: str
    scopes: Scopes
    limits: Limits
    lifetime_s: float | None
    """It expires after so many seconds; None: it does not."""


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key with its secret: this once, and kept nowhere."""

    key: Key
    token: str
    """It is the whole key, as a client sends it."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """A key and its successor, both of which open until the old one ends."""

    old: Key
    new: IssuedKey


class TenantService:
    """Everything the admin plane does with tenants and keys.

    Args:
        tenants, keys: the truth.
        directory: refreshed after every change.
        clock: the database's.
        new_id: gives an id of a key.
        new_secret: gives a secret of 256 random bits, in letters that a header carries.
        stored: how many bytes there are of whom.
    """

    def __init__(
        self,
        tenants: TenantRegistry,
        keys: KeyRegistry,
        directory: KeyDirectory,
        clock: Clock,
        new_id: Callable[[], str],
        new_secret: Callable[[], str],
        stored: StoredBytesRegistry,
    ) -> None:
        self._tenants = tenants
        self._keys = keys
        self._directory = directory
        self._clock = clock
        self._new_id = new_id
        self._new_secret = new_secret
        self._stored = stored

    async def create(self, tenant_id: str, given: TenantChange) -> Tenant:
        """A new tenant, with what of it is given. Raises TenantExists."""
        now = self._clock()
        fields = {"name": "", "id": tenant_id, "created_at": now, "updated_at": now}
        tenant = await self._tenants.create(Tenant.model_validate(fields | given.model_dump(exclude_unset=True)))
        await self._directory.refresh()
        return tenant

    async def update(self, tenant_id: str, change: TenantChange) -> Tenant:
        """Change a tenant. Raises TenantNotFound, TenantKept."""
        tenant = await self._tenants.update(tenant_id, change)
        await self._directory.refresh()
        return tenant

    async def delete(self, tenant_id: str) -> Tenant:
        """Delete a tenant and revoke its keys. Raises TenantNotFound, TenantKept."""
        tenant = await self._tenants.delete(tenant_id)
        await self._directory.refresh()
        return tenant

    async def tenant(self, tenant_id: str) -> Tenant:
        """One tenant. Raises TenantNotFound."""
        return await self._tenants.get(tenant_id)

    async def list_tenants(self, limit: int, cursor: str | None) -> TenantPage:
        """A page of tenants, in order of id."""
        return await self._tenants.list(limit=limit, cursor=cursor)

    async def issue(self, asked: NewKey) -> IssuedKey:
        """A new key, with the one sight of its secret.

        Raises:
            TenantNotFound: there is no such tenant.
            ScopesUnfit: an administrator's key cannot be narrowed.
        """
        require_fitting(asked.role, asked.scopes)
        draft, token = self._drawn(asked)
        key = await self._keys.create(draft, lifetime_s=asked.lifetime_s)
        await self._directory.refresh()
        return IssuedKey(key, token)

    async def rotate(self, key_id: str, *, overlap_s: float, lifetime_s: float | None) -> Rotation:
        """Put a successor beside a key, with the one sight of its secret; see `KeyRegistry.rotate`.

        Raises:
            KeyNotFound, KeyNotLive.
        """
        old = await self._keys.get(key_id)
        draft, token = self._drawn(NewKey(old.tenant, old.role, old.name, old.scopes, old.limits, None))
        ending, new = await self._keys.rotate(key_id, draft, overlap_s=overlap_s, lifetime_s=lifetime_s)
        await self._directory.refresh()
        return Rotation(ending, IssuedKey(new, token))

    async def update_key(self, key_id: str, change: KeyChange) -> Key:
        """Change a key: here at once, at other servers within a period. Raises as `KeyRegistry.update`."""
        key = await self._keys.update(key_id, change)
        await self._directory.refresh()
        return key

    async def revoke(self, key_id: str) -> Key:
        """End a key: here at once, at other servers within a period. Raises KeyNotFound."""
        key = await self._keys.revoke(key_id)
        await self._directory.refresh()
        return key

    async def key(self, key_id: str) -> Key:
        """One key, revoked or not. Raises KeyNotFound."""
        return await self._keys.get(key_id)

    async def list_keys(self, tenant: str | None, limit: int, cursor: str | None) -> KeyPage:
        """A page of keys, in order of id; of one tenant, or of all."""
        return await self._keys.list(tenant, limit=limit, cursor=cursor)

    async def stored_of_tenants(self, tenants: Collection[Tenant]) -> Mapping[str, StoredBytes]:
        """How many bytes each has stored, by id."""
        return await self._stored.of_tenants([tenant.id for tenant in tenants])

    async def stored_of_keys(self, keys: Collection[Key]) -> Mapping[str, StoredBytes]:
        """How many bytes each has stored, by id, with the keys that it was rotated from and to."""
        return await self._stored.of_keys(keys)

    def _drawn(self, asked: NewKey) -> tuple[Key, str]:
        """A draft and the key that it will be."""
        key_id, secret = self._new_id(), self._new_secret()
        draft = Key(
            id=key_id,
            tenant=asked.tenant,
            name=asked.name,
            secret_digest=secret_digest(secret).hex(),
            role=asked.role,
            scopes=asked.scopes,
            limits=asked.limits,
            created_at=self._clock(),
        )
        return draft, f"{draft.prefix}_{secret}"
