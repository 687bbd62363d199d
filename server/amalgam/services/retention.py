"""Files that no row names: left by a crash between publishing and the commit, or by a deletion that was cut short."""

import asyncio
import logging

from amalgam.domain.clock import Clock
from amalgam.errors import AmalgamError
from amalgam.registry.adapters import AdapterRegistry
from amalgam.store.adapter_store import AdapterStore, SweepReport

logger = logging.getLogger(__name__)

GRACE_S = 3600.0
"""Longer than any upload waits between its files and its row, and than a reader may still need a deleted version."""


class Retention:
    """Keeps the store as small as the registry says. Never removes what a version or a live job names."""

    def __init__(self, registry: AdapterRegistry, store: AdapterStore, clock: Clock) -> None:
        self._registry = registry
        self._store = store
        self._clock = clock

    async def sweep(self, grace_s: float = GRACE_S) -> SweepReport:
        """Remove files that no row names and that are older than ``grace_s`` seconds.

        The rows are read first: files whose row comes later are younger than the grace.
        """
        known = await self._registry.digests_in_use()
        now = self._clock().timestamp()
        return await asyncio.to_thread(self._store.sweep, known, now=now, grace_s=grace_s)

    async def sweep_loop(self, period_s: float = GRACE_S) -> None:
        """Sweep now and every ``period_s`` seconds; runs until it is cancelled."""
        while True:
            try:
                report = await self.sweep()
            except AmalgamError as error:
                logger.warning("the store was not swept: %s", error)
            else:
                if report.objects or report.staging:
                    logger.info("swept %d objects, %d staging folders", len(report.objects), report.staging)
            await asyncio.sleep(period_s)
