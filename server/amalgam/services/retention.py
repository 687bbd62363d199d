"""Files that no row names: left by a crash between publishing and the commit, or by a deletion that was cut short.

Where several servers share a registry, deletions leave the files as well, and they go here.
"""

import asyncio
import logging
from collections.abc import Collection
from dataclasses import replace

from amalgam.domain.clock import Clock
from amalgam.errors import AmalgamError
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.kept_objects import KeptObjectRegistry
from amalgam.store.adapter_store import AdapterStore, SweepReport
from amalgam.store.bucket_store import BucketStore

logger = logging.getLogger(__name__)

GRACE_S = 3600.0
"""It is longer than any upload waits between its files and its row, and than a reader may still need a deleted version.
"""
FIRST_GRACE_S = 24 * GRACE_S
"""The first sweep has this grace: whether a clock was set before this server began, nobody can tell."""


class Retention:
    """Keeps the store as small as the registry says. Never removes what a version or a live job names.

    Args:
        registry: says what is named.
        store: whose files they are.
        clock: by which files are stamped, see `amalgam.store.file_clock`; blocks.
        deleted_keep_s: files of a deleted version stay for so many seconds: another server may not have heard of the
            deletion yet, or has requests that wait with it.
        kept: what was written to the store's bucket; None where it has none.
    """

    def __init__(
        self,
        registry: AdapterRegistry,
        store: AdapterStore,
        clock: Clock,
        deleted_keep_s: float = 0.0,
        kept: KeptObjectRegistry | None = None,
    ) -> None:
        self._registry = registry
        self._store = store
        self._clock = clock
        self._deleted_keep_s = deleted_keep_s
        self._kept = kept

    async def sweep(self, grace_s: float = GRACE_S) -> SweepReport:
        """Remove files that no row names and that are older than ``grace_s`` seconds.

        The rows are asked about before: files whose row comes later are younger than the grace.
        """
        store = self._store
        found = await asyncio.to_thread(store.digests)
        if self._kept is not None and isinstance(store, BucketStore):
            found = found | await asyncio.to_thread(store.kept_digests)
        # Of what is here, and not of all that a registry of a million adapters names.
        known = await self._registry.digests_in_use(kept_s=self._deleted_keep_s, among=found)
        report = await asyncio.to_thread(self._sweep, known, grace_s)
        if self._kept is None or not isinstance(self._store, BucketStore):
            return report
        removed = await self._sweep_bucket(self._kept, self._store, known, grace_s)
        return replace(report, objects=(*report.objects, *removed))

    async def _sweep_bucket(
        self, kept: KeptObjectRegistry, store: BucketStore, known: Collection[str], grace_s: float
    ) -> list[str]:
        removed = []
        for digest in sorted(await asyncio.to_thread(store.kept_digests) - frozenset(known)):
            if await kept.release(digest, grace_s, self._deleted_keep_s):
                await asyncio.to_thread(store.remove_kept, digest)
                await kept.forget(digest)
                removed.append(digest)
        return removed

    def _sweep(self, known: Collection[str], grace_s: float) -> SweepReport:
        return self._store.sweep(known, now=self._clock().timestamp(), grace_s=grace_s)

    async def sweep_loop(self, period_s: float = GRACE_S) -> None:
        """Sweep now and every ``period_s`` seconds; runs until it is cancelled."""
        grace_s = FIRST_GRACE_S
        while True:
            try:
                report = await self.sweep(grace_s)
            except AmalgamError as error:
                logger.warning("store_sweep_failed reason=%s", error)
            else:
                if report.objects or report.staging:
                    logger.info("store_swept objects=%d staging=%d", len(report.objects), report.staging)
                grace_s = GRACE_S
            await asyncio.sleep(period_s)
