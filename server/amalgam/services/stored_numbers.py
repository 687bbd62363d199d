"""How much tenants have stored, for the page of metrics: summed up in the background, by no scrape."""

import asyncio
import logging
from typing import Final

from amalgam.errors import AmalgamError
from amalgam.registry.stored_bytes import StoredBytesRegistry
from amalgam.services.key_directory import KeyDirectory
from amalgam.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_PERIOD_S: Final = 300.0


class StoredNumbers:
    """Sums up what is stored.

    Args:
        stored: what there is.
        keys: the tenants, with their limits.
        metrics: told of both.
    """

    def __init__(self, stored: StoredBytesRegistry, keys: KeyDirectory, metrics: Metrics) -> None:
        self._stored = stored
        self._keys = keys
        self._metrics = metrics

    async def look(self) -> None:
        """Sum up once. Raises RegistryUnavailable."""
        found = await self._stored.totals()
        tenants = {name: self._keys.tenant(name) for name in found}
        limits = {
            name: tenant.limits.stored_bytes
            for name, tenant in tenants.items()
            if tenant is not None and tenant.limits.stored_bytes is not None
        }
        self._metrics.tenants_stored(((name, one.adapters, one.files) for name, one in sorted(found.items())), limits)

    async def look_loop(self, period_s: float = _PERIOD_S) -> None:
        """Sum up now and every ``period_s`` seconds, for ever."""
        while True:
            try:
                await self.look()
            except AmalgamError as error:
                logger.warning("stored_bytes_not_read reason=%s", error)
            await asyncio.sleep(period_s)
