"""Who may enter, as this process knows it: tenants and keys in memory, read again where the registry changed.

No SQL on the way of a request. A key that is not known here is not looked for in the database, so that nobody can make
work there by making keys up; a key that another server has made is known within a period.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from amalgam.domain.clock import Clock
from amalgam.domain.tenant import AccessRows, Key, KeyEnd, Role, Tenant, split_key
from amalgam.errors import AmalgamError
from amalgam.registry.keys import KeyRegistry
from amalgam.registry.tenants import TenantRegistry

logger = logging.getLogger(__name__)

_PERIOD_S: Final = 1.0
_USED_PERIOD_S: Final = 60.0
"""So many seconds lie between two writes of when keys were last used."""

_LONGEST_LINE: Final = 100
"""At most so many successors of one key are looked at, one after the other."""


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A key that was sent with its right secret."""

    key: Key
    tenant: Tenant
    ended: KeyEnd | None
    """It tells why the key opens nothing any more; None: it does."""


@dataclass(frozen=True, slots=True)
class _Known:
    revision: int = -1
    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    keys: Mapping[str, Key] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: AccessRows) -> "_Known":
        tenants = {tenant.id: tenant for tenant in rows.tenants}
        return cls(rows.revision, tenants, {key.id: key for key in rows.keys if key.tenant in tenants})

    def asking(self) -> frozenset[tuple[str, str]]:
        """Tenant and id of every key that may ask for inference."""
        asking = (Role.CLIENT, Role.PUBLISHER, Role.ADMIN)
        live = (key for key in self.keys.values() if key.state == "active")
        return frozenset((key.tenant, key.id) for key in live if key.role in asking)


class KeyDirectory:
    """Finds keys. `refresh` after every change, and from time to time for those of other servers.

    Args:
        tenants, keys: the truth.
        clock: the database's; keys expire by it.
    """

    def __init__(self, tenants: TenantRegistry, keys: KeyRegistry, clock: Clock) -> None:
        self._tenants = tenants
        self._keys = keys
        self._clock = clock
        self._known = _Known()
        self._used: dict[str, datetime] = {}
        self._told: list[Callable[[], None]] = []

    def on_change(self, told: Callable[[], None]) -> None:
        """Call ``told`` now, and whenever tenants or keys changed."""
        self._told.append(told)
        told()

    def asking(self) -> frozenset[tuple[str, str]]:
        """Tenant and id of every key of the registry that may ask for inference."""
        return self._known.asking()

    @property
    def revision(self) -> int:
        """The revision of what is known here; -1 before the first `refresh`."""
        return self._known.revision

    def find(self, token: str) -> KnownKey | None:
        """The key that ``token`` is; None for one that is not known, with a wrong secret, or revoked."""
        parts = split_key(token)
        known = self._known
        key = None if parts is None else known.keys.get(parts[0])
        # What is looked up is the public half; the secret half is compared whole.
        if parts is None or key is None or not key.opens(parts[1]):
            return None
        now, tenant = self._clock(), known.tenants[key.tenant]
        if key.expires_at is not None and key.expires_at <= now:
            return KnownKey(key, tenant, "expired")
        if key.state != "active":
            return KnownKey(key, tenant, "key_suspended")
        if tenant.state != "active":
            return KnownKey(key, tenant, "suspended")
        self._used[key.id] = now
        return KnownKey(key, tenant, None)

    def tenant(self, tenant_id: str) -> Tenant | None:
        """A tenant that was not deleted."""
        return self._known.tenants.get(tenant_id)

    def key(self, key_id: str) -> Key | None:
        """A key of the registry that was not revoked; those of the environment are not among them."""
        return self._known.keys.get(key_id)

    def living(self, key_id: str) -> Key | None:
        """The key, or the successor that it was rotated to once it has expired; None where none of them is valid."""
        now, key, passed = self._clock(), self._known.keys.get(key_id), 0
        while key is not None and key.expires_at is not None and key.expires_at <= now:
            passed += 1
            key = self._known.keys.get(key.successor or "") if passed <= _LONGEST_LINE else None
        return key

    async def refresh(self) -> None:
        """Read the registry where its revision of tenants and keys moved."""
        if await self._tenants.revision() == self._known.revision:
            return
        found = _Known.of(await self._tenants.load())
        # Two refreshes may overlap; the older answer must not win.
        if found.revision >= self._known.revision:
            self._known = found
            for told in self._told:
                told()

    async def follow_loop(self, period_s: float = _PERIOD_S) -> None:
        """See what other servers changed, within ``period_s`` seconds, for ever."""
        while True:
            await asyncio.sleep(period_s)
            try:
                await self.refresh()
            except AmalgamError as error:
                logger.warning("keys_not_read reason=%s", error)

    async def note_used(self) -> None:
        """Write when keys were last used, where that is not written yet."""
        used, self._used = self._used, {}
        if used:
            await self._keys.note_used(used)

    async def used_loop(self, period_s: float = _USED_PERIOD_S) -> None:
        """`note_used` now and every ``period_s`` seconds, for ever: of each key at most once in that time."""
        while True:
            try:
                await self.note_used()
            except AmalgamError as error:
                logger.warning("key_use_not_written reason=%s", error)
            await asyncio.sleep(period_s)

    async def close(self) -> None:
        """Write what is not written yet, where the registry answers."""
        try:
            await self.note_used()
        except AmalgamError as error:
            logger.warning("key_use_not_written reason=%s", error)
